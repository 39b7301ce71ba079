//! `lemniscate serve`, asked over loopback as a browser and as a nuisance would ask.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::{describe, fails, lemniscate, succeeds, tiny, write_images};
use serde_json::Value;

/// A server that is running.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
    address: String,
}

impl Running {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let arguments = [&["serve"], arguments, &["--port", "0", "-j", "1"]].concat();
        let mut child = lemniscate(folder, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(out.read_line(&mut line).unwrap() > 0, "it ended after\n{said}");
            if let Some((_, rest)) = line.split_once("serving at http://") {
                break rest.split('/').next().unwrap().to_owned();
            }
            said += &line;
        };
        Running { child, out, address }
    }

    /// Sends `head` with a Host line, and `body`; gives status, head and body.
    fn send(&self, request: &str, host: &str, more: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!("{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // The server may refuse before it has read everything.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), answer[end + 4..].to_vec())
    }

    fn get(&self, path: &str) -> (u16, String, Vec<u8>) {
        self.send(&format!("GET {path}"), &self.address, "", b"")
    }

    fn json(&self, path: &str) -> (u16, Value) {
        let (status, _, body) = self.get(path);
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn upload(&self, path: &str, more: &str, body: &[u8]) -> (u16, Value) {
        let more = format!("Content-Length: {}\r\n{more}", body.len());
        let (status, _, body) = self.send(&format!("POST {path}"), &self.address, &more, body);
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// Ctrl-C, and what it said until it ended.
    fn stop(mut self) -> String {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let started = Instant::now();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        let mut said = String::new();
        self.out.read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that failed leaves no server behind.
        let _ = self.child.kill();
    }
}

fn png(shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_fn(24, 20, |x, y| image::Rgb([shade, x as u8 * 9, y as u8 * 11]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn error(value: &Value) -> &str {
    value["error"].as_str().unwrap_or_else(|| panic!("an error: {value}"))
}

#[test]
fn a_run_is_searched_shown_and_followed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, tiny("synthetic:64x16", "run", &[]));
    let server = Running::start(folder, &["run"]);

    let (status, head, page) = server.get("/");
    let page = String::from_utf8(page).unwrap();
    assert_eq!(status, 200);
    for part in ["<title>run</title>", "id=\"map\"", "id=\"curves\"", "last.ckpt", "2 epochs finished"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("http://") && !page.contains("https://"), "nothing from elsewhere");
    for header in [
        "content-security-policy: default-src 'none'",
        "x-content-type-options: nosniff",
        "x-frame-options: deny",
        "cross-origin-resource-policy: same-origin",
        "cache-control: no-store",
    ] {
        assert!(head.contains(header), "{header}\n{head}");
    }

    let (_, about) = server.json("/api");
    assert!(about["endpoints"].as_array().unwrap().len() >= 10);
    let (_, facts) = server.json("/api/status");
    assert_eq!(
        (&facts["images"], &facts["bank"], &facts["embed_dim"]),
        (&64.into(), &"live".into(), &16.into())
    );
    assert!(facts.get("run").is_none(), "no paths: {facts}");

    // The image itself is not among its neighbours; they fall in similarity and say whose class they are.
    let (status, found) = server.json("/api/search?index=3&k=10");
    let neighbors = found["neighbors"].as_array().unwrap();
    assert_eq!((status, neighbors.len(), &found["query"]["index"]), (200, 10, &3.into()));
    assert!(neighbors.iter().all(|neighbor| neighbor["index"] != 3));
    let similarity = |neighbor: &Value| neighbor["similarity"].as_f64().unwrap();
    assert!(neighbors.is_sorted_by(|a, b| similarity(a) >= similarity(b)));
    for neighbor in neighbors {
        assert_eq!(neighbor["same"].as_bool().unwrap(), neighbor["label"] == found["query"]["label"]);
    }
    let (_, all) = server.json("/api/search?index=3&k=200");
    assert_eq!(all["neighbors"].as_array().unwrap().len(), 63);

    // A test image is embedded; its own vector as an upload finds the same.
    let (status, by_test) = server.json("/api/search?set=test&index=1&k=5");
    assert_eq!((status, by_test["neighbors"].as_array().unwrap().len()), (200, 5));
    let (status, found) = server.upload("/api/search?k=4", "", &png(200));
    assert_eq!((status, &found["query"]["width"], &found["query"]["height"]), (200, &24.into(), &20.into()));
    assert!(found["query"]["thumbnail"].as_str().unwrap().starts_with("data:image/jpeg;base64,"));
    assert_eq!(found["neighbors"].as_array().unwrap().len(), 4);
    assert!(found["neighbors"][0]["same"].is_null(), "nobody knows its class");

    let (status, head, jpeg) = server.get("/api/images/train/5/thumbnail?side=16");
    let picture = image::load_from_memory(&jpeg).unwrap();
    assert_eq!((status, picture.width().max(picture.height())), (200, 16));
    assert!(head.contains("content-type: image/jpeg"));
    let (_, random) = server.json("/api/random?set=train");
    assert!(random["index"].as_u64().unwrap() < 64);
    let (_, list) = server.json("/api/images?from=60&count=10");
    assert_eq!((list["images"].as_array().unwrap().len(), &list["total"]), (4, &64.into()));
    let (_, map) = server.json("/api/map");
    assert_eq!((&map["points"], map["x"].as_array().unwrap().len()), (&64.into(), 64));

    // The curves follow what is written while the server runs.
    let (_, before) = server.json("/api/metrics");
    assert_eq!(before["newest"]["step"], 8);
    let line = r#"{"kind":"step","epoch":2,"step":9,"loss":1.25,"lr":0.03,"images_per_s":1.0,"data_ms":0.0,"step_ms":1.0}"#;
    let metrics = std::fs::OpenOptions::new().append(true).open(folder.join("run/metrics.jsonl"));
    // A torn line behind it is what a reader sees while another is being written.
    write!(metrics.unwrap(), "{line}\n{{\"kind\":").unwrap();
    let started = Instant::now();
    loop {
        let (status, now) = server.json("/api/metrics");
        assert_eq!(status, 200, "{now}");
        if now["newest"]["step"] == 9 && now["revision"] != before["revision"] {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{now}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (status, head, svg) = server.get("/api/curves.svg");
    assert!(status == 200 && head.contains("image/svg+xml") && svg.starts_with(b"<svg"));

    // The port is taken while it runs.
    let port = server.address.split(':').next_back().unwrap().to_owned();
    let said = fails(folder, 2, ["serve", "run", "--port", &port]);
    assert!(said.contains("is in use") && said.contains("--port 0"), "{said}");
    assert!(server.stop().contains("stopped"));
}

#[test]
fn what_cannot_be_answered_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_images(&folder.join("photos"), 5);
    std::fs::write(folder.join("secret.txt"), "not to be served").unwrap();
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch/imagenet.pth.tar");
    let checkpoint = checkpoint.to_str().unwrap();
    let server = Running::start(folder, &[checkpoint, "photos", "--bank", "recomputed"]);
    let (_, facts) = server.json("/api/status");
    assert_eq!((&facts["bank"], &facts["test_images"]), (&"recomputed".into(), &0.into()));

    for (path, status, reason) in [
        ("/api/search?index=5", 404, "numbered 0 to 4"),
        ("/api/search?index=-1", 400, "index"),
        ("/api/search", 400, "index"),
        ("/api/search?index=1&k=0", 400, "k must be 1 to"),
        ("/api/search?index=1&k=9999", 400, "k must be 1 to"),
        ("/api/search?set=test&index=0", 404, "no test images"),
        ("/api/search?set=other&index=0", 400, "other"),
        ("/api/images/train/5", 404, "no image 5"),
        ("/api/images/train/99999999999", 404, ""),
        ("/api/images/train/1/thumbnail?side=100000", 400, "side must be"),
        ("/api/images/train/../../secret.txt", 404, "nothing here"),
        ("/api/images/train/..%2f..%2fsecret.txt/thumbnail", 404, ""),
        ("/../secret.txt", 404, "nothing here"),
        ("/photos/000.png", 404, "nothing here"),
        ("/secret.txt", 404, "nothing here"),
        ("/api/metrics", 404, "no metrics"),
    ] {
        let (found, answer) = server.json(path);
        assert_eq!(found, status, "{path}: {answer}");
        assert!(error(&answer).contains(reason), "{path}: {answer}");
    }

    let broken: [(&[u8], &str); 4] = [
        (b"", "empty"),
        (b"no image at all", "not an image of a known format"),
        (&png(1)[..60], "the uploaded image: "),
        // A header that claims 60,000 x 60,000 pixels.
        (b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x60\xEA\0\0\x60\xEA\0\0\x01\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "limits"),
    ];
    for (bytes, reason) in broken {
        let (status, answer) = server.upload("/api/search", "", bytes);
        assert_eq!(status, 400, "{answer}");
        assert!(error(&answer).contains(reason), "{answer}");
    }

    // Too large: refused by what it announces, and by what it sends.
    let announced = format!("Content-Length: {}\r\n", 40 << 20);
    let (status, _, body) = server.send("POST /api/search", &server.address, &announced, b"");
    assert_eq!(status, 413);
    assert!(error(&serde_json::from_slice(&body).unwrap()).contains("32 MiB"));
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = format!(
        "POST /api/search HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        server.address
    );
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [b"100000\r\n".as_slice(), &vec![7; 1 << 20], b"\r\n"].concat();
    let sent = (0..64).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent < 64, "it read all of 64 MiB");

    // Other names, other sites, other methods.
    let (status, _, body) = server.send("GET /", "evil.example", "", b"");
    assert_eq!(status, 403);
    assert!(error(&serde_json::from_slice(&body).unwrap()).contains("evil.example"));
    assert_eq!(server.send("GET /api/status", "localhost:1234", "", b"").0, 200);
    let (status, answer) = server.upload("/api/search", "Origin: http://evil.example\r\n", &png(1));
    assert_eq!((status, error(&answer)), (403, "other sites may not ask"));
    assert_eq!(server.send("DELETE /api/search", &server.address, "", b"").0, 405);

    // After all that it still answers.
    let (status, found) = server.upload("/api/search?k=3", "", &png(9));
    assert_eq!((status, found["neighbors"].as_array().unwrap().len()), (200, 3));
    server.stop();

    let said = fails(folder, 1, ["serve", checkpoint, "photos", "--bank", "live", "--port", "0"]);
    assert!(said.contains("no bank of these images") && said.contains("recomputed"), "{said}");
    let output = lemniscate(folder, ["serve", "nowhere", "--port", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
}
