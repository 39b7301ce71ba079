//! Layouts on disk, tame and awkward, through `data::open`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, too, may panic and print")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use image::RgbImage;
use lemniscate::Error;
use lemniscate::data::scan::{ImageRef, SizeCount, Spread, scan};
use lemniscate::data::watch::DEFAULT_READ_TIMEOUT;
use lemniscate::data::{DataFormat, Dataset, OpenOptions, Splits, open};
use tempfile::TempDir;

/// A folder with these files; images get a picture each, all different, in the order given.
fn tree(files: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (i, file) in files.iter().enumerate() {
        put(&root.path().join(file), i as u8);
    }
    root
}

fn put(path: &Path, shade: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let image = RgbImage::from_pixel(3, 2, image::Rgb([shade, 100, 200]));
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    fs::write(path, png.into_inner()).unwrap();
}

fn opened(root: &Path) -> Splits {
    open(root, None, &OpenOptions::default()).unwrap()
}

fn names(data: &Dataset) -> Vec<String> {
    (0..data.len()).map(|i| data.name(i).into_owned()).collect()
}

fn failure(path: &Path, forced: Option<DataFormat>) -> String {
    open(path, forced, &OpenOptions::default()).unwrap_err().to_string()
}

#[test]
fn train_and_val_with_classes() {
    let root = tree(&["train/dog/1.png", "train/cat/b.png", "train/cat/a.JPG", "val/dog/9.png"]);
    let splits = opened(root.path());
    assert_eq!(splits.format, DataFormat::Folder);
    assert_eq!(names(&splits.train), ["cat/a.JPG", "cat/b.png", "dog/1.png"]);
    assert_eq!(splits.train.classes(), ["cat", "dog"]);
    assert_eq!(splits.train.labels().unwrap(), [0, 0, 1]);
    let test = splits.test.unwrap();
    assert_eq!(names(&test), ["dog/9.png"]);
    assert_eq!(test.label(0), Some(1), "numbered as in train, although val has one class");
    assert_eq!(splits.train.load(1).unwrap().get_pixel(0, 0).0, [1, 100, 200]);
    assert!(splits.notes.is_empty(), "{:?}", splits.notes);
}

/// The order of `torchvision.datasets.ImageFolder`, as printed by torchvision 0.26 for this very tree: by class, then by folder path,
/// then by name.
#[test]
fn nested_folders_are_ordered_as_torchvision_orders_them() {
    let root =
        tree(&["train/a/x/1.png", "train/a/z.png", "train/a.b/1.png", "train/a/x.y/0.png", "train/B/1.png"]);
    let train = opened(root.path()).train;
    assert_eq!(names(&train), ["B/1.png", "a/z.png", "a/x/1.png", "a/x.y/0.png", "a.b/1.png"]);
    assert_eq!(train.classes(), ["B", "a", "a.b"]);
    assert_eq!(train.labels().unwrap(), [0, 1, 1, 1, 2]);
}

#[test]
fn val_is_preferred_to_test_unless_it_is_empty() {
    let root = tree(&["train/a/1.png", "val/a/2.png", "test/a/3.png"]);
    let splits = opened(root.path());
    assert_eq!(names(&splits.test.unwrap()), ["a/2.png"]);
    assert_eq!(splits.notes, ["val/ is used for testing, test/ is not"]);

    fs::remove_file(root.path().join("val/a/2.png")).unwrap();
    let splits = opened(root.path());
    assert_eq!(names(&splits.test.unwrap()), ["a/3.png"]);
    assert_eq!(splits.notes, ["val/ holds no image"]);

    // Without class folders: images to look at, not to score.
    let root = tree(&["train/a/1.png", "test/3.png"]);
    let splits = opened(root.path());
    assert!(splits.test.unwrap().labels().is_none());
    assert_eq!(splits.notes.len(), 1);
}

#[test]
fn images_directly_in_train_have_no_labels() {
    let root = tree(&["train/1.png", "train/2.png", "val/a/1.png"]);
    let splits = opened(root.path());
    assert_eq!(splits.format, DataFormat::Folder);
    assert!(splits.train.labels().is_none() && splits.test.unwrap().labels().is_none());
}

#[test]
fn a_bare_folder_has_no_labels_unless_forced() {
    let root =
        tree(&["2020/may/1.png", "2021/2.gif", "0.webp", "2021/.hidden.png", ".trash/3.png", "notes.txt"]);
    let splits = opened(root.path());
    assert_eq!(splits.format, DataFormat::Flat);
    assert_eq!(names(&splits.train), ["0.webp", "2020/may/1.png", "2021/2.gif"]);
    assert!(splits.train.labels().is_none() && splits.test.is_none());
    assert_eq!(splits.train.n_classes(), 0);
    let notes = splits.notes.join("\n");
    assert!(notes.contains("1 files without") && notes.contains("--data-format folder"), "{notes}");

    let forced = open(root.path(), Some(DataFormat::Folder), &OpenOptions::default()).unwrap();
    assert_eq!(forced.train.classes(), ["2020", "2021"]);
    assert_eq!(names(&forced.train), ["2020/may/1.png", "2021/2.gif"]);
    assert!(forced.notes.iter().any(|note| note.contains("1 images lie outside")), "{:?}", forced.notes);
}

#[test]
fn an_empty_class_keeps_its_number() {
    let root = tree(&["train/a/1.png", "train/c/1.png", "val/b/x.txt", "val/c/1.png"]);
    fs::create_dir(root.path().join("train/b")).unwrap();
    let splits = opened(root.path());
    assert_eq!(splits.train.labels().unwrap(), [0, 2]);
    assert_eq!(splits.test.unwrap().labels().unwrap(), [2]);
    assert!(
        splits.notes.iter().any(|note| note.ends_with("1 classes hold no image: b")),
        "{:?}",
        splits.notes
    );
}

#[test]
fn what_cannot_be_used_is_said() {
    let root = tree(&["train/a/1.png", "val/a/1.png", "val/z/2.png", "list.weird", "empty/readme.txt"]);
    let unknown = failure(root.path(), None);
    assert!(unknown.contains("z/2.png has class \"z\""), "{unknown}");
    let missing = failure(&root.path().join("nowhere"), None);
    assert!(missing.contains("nowhere: there is no such file or folder"), "{missing}");
    for format in [DataFormat::Folder, DataFormat::Flat, DataFormat::List, DataFormat::Idx] {
        assert!(failure(&root.path().join("nowhere"), Some(format)).contains("nowhere: "));
    }
    assert!(failure(&root.path().join("list.weird"), None).contains("not a data set of a known kind"));
    assert!(failure(&root.path().join("list.weird"), Some(DataFormat::Flat)).contains("needs a folder"));
    assert!(failure(root.path(), Some(DataFormat::List)).contains("needs a list file"));
    let empty = open(&root.path().join("empty"), None, &OpenOptions::default()).unwrap_err();
    assert!(empty.to_string().contains("there is no image") && empty.hint().unwrap().contains(".jpeg"));
    assert!(
        failure(&root.path().join("empty"), Some(DataFormat::Folder)).contains("neither a train/ folder")
    );
}

#[test]
fn one_image_is_a_data_set() {
    let root = tree(&["only.png"]);
    assert_eq!(opened(root.path()).train.len(), 1);
}

#[test]
fn links_are_followed_and_loops_are_not() {
    let root = tree(&["train/a/1.png", "elsewhere/2.png"]);
    let train = root.path().join("train");
    symlink(root.path().join("elsewhere"), train.join("b")).unwrap();
    symlink(root.path(), train.join("a/up")).unwrap();
    symlink(train.join("a"), train.join("a/self")).unwrap();
    symlink("nowhere.png", train.join("a/dangling.png")).unwrap();
    let splits = opened(root.path());
    let found = names(&splits.train);
    assert!(found.contains(&"b/2.png".to_owned()), "{found:?}");
    assert!(found.len() < 20, "{found:?}");
    assert!(splits.notes.iter().any(|note| note.contains("lead back")), "{:?}", splits.notes);
    // The link that leads nowhere is a row and an unreadable image, not a silent gap.
    let dangling = found.iter().position(|name| name == "a/dangling.png").unwrap();
    assert!(splits.train.load(dangling).unwrap_err().to_string().contains("a/dangling.png: cannot be read"));
}

/// Linux only: other systems refuse such names.
#[cfg(target_os = "linux")]
#[test]
fn names_need_not_be_utf_8() {
    let root = tree(&["b.png"]);
    put(&root.path().join(OsStr::from_bytes(b"a\xFF\xFE.png")), 7);
    let train = opened(root.path()).train;
    assert_eq!(names(&train), ["a\u{FFFD}\u{FFFD}.png", "b.png"]);
    assert_eq!(train.load(0).unwrap().get_pixel(0, 0).0[0], 7);
}

#[test]
fn lists_and_test_data_from_elsewhere() {
    let root = tree(&["im/x.png", "im/y.png", "other/cat/1.png", "plain/5.png"]);
    fs::write(root.path().join("train.csv"), "path,label\nim/y.png,dog\nim/x.png,cat\n").unwrap();
    fs::write(root.path().join("test.csv"), "im/x.png,dog\n").unwrap();
    fs::write(root.path().join("bad.csv"), "im/x.png,cow\n").unwrap();
    let with_test = |test: &str| {
        let options = OpenOptions { test_path: Some(root.path().join(test)), ..Default::default() };
        open(&root.path().join("train.csv"), None, &options)
    };
    let splits = with_test("test.csv").unwrap();
    assert_eq!(splits.format, DataFormat::List);
    assert_eq!(names(&splits.train), ["im/y.png", "im/x.png"]);
    assert_eq!(splits.train.load(0).unwrap().get_pixel(0, 0).0[0], 1);
    assert_eq!(splits.test.unwrap().labels().unwrap(), [1]);
    assert_eq!(with_test("other").unwrap().test.unwrap().labels().unwrap(), [0]);
    assert!(with_test("plain").unwrap().test.unwrap().labels().is_none());
    assert!(with_test("bad.csv").unwrap_err().to_string().contains("\"cow\""));
    assert!(with_test("missing").unwrap_err().to_string().contains("missing: there is no such"));
}

#[test]
fn the_fingerprint_is_of_names_and_sizes() {
    let print = |root: &Path| opened(root).train.fingerprint().unwrap();
    let files = ["train/a/1.png", "train/b/2.png"];
    let root = tree(&files);
    let first = print(root.path());
    assert_eq!(first, print(tree(&files).path()), "a copy is the same data");
    File::open(root.path().join(files[0])).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(first, print(root.path()));
    fs::write(root.path().join(files[0]), "rewritten in place").unwrap();
    assert_ne!(first, print(root.path()));
    assert_ne!(first, print(tree(&["train/a/1.png", "train/b/3.png"]).path()));
    assert_ne!(first, print(tree(&["train/a/1.png", "train/c/2.png"]).path()));
}

#[test]
fn the_index_is_used_checked_and_refuses_changes() {
    let root = tree(&["data/train/a/1.png", "data/train/b/2.png", "data/val/a/3.png"]);
    let data = root.path().join("data");
    for folder in ["train", "train/a", "train/b", "val", "val/a"] {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        File::open(data.join(folder)).unwrap().set_modified(hour_ago).unwrap();
    }
    let mut options = OpenOptions { index_dir: Some(root.path().join("run")), ..Default::default() };
    let first = open(&data, None, &options).unwrap();
    let again = open(&data, None, &options).unwrap();
    assert_eq!(names(&first.train), names(&again.train));
    assert_eq!(first.train.fingerprint().unwrap(), again.train.fingerprint().unwrap());
    let index = root.path().join("run/train.index");
    assert!(index.exists() && root.path().join("run/val.index").exists());

    // A damaged index costs a listing.
    let mut bytes = fs::read(&index).unwrap();
    bytes[40] ^= 1;
    fs::write(&index, bytes).unwrap();
    let relisted = open(&data, None, &options).unwrap();
    assert!(relisted.notes[0].contains("listed again"), "{:?}", relisted.notes);
    assert_eq!(names(&first.train), names(&relisted.train));

    put(&data.join("train/b/1.png"), 9);
    let error = open(&data, None, &options).unwrap_err();
    assert!(error.to_string().contains("changed since the run began: 1 added (b/1.png)"), "{error}");
    options.accept_changes = true;
    assert_eq!(open(&data, None, &options).unwrap().train.len(), 3);
    options.accept_changes = false;
    assert_eq!(open(&data, None, &options).unwrap().train.len(), 3);
}

#[test]
fn a_scan_reports_sizes_duplicates_and_what_is_unreadable() {
    let root = tree(&["train/a/1.png", "train/a/2.png", "train/b/3.png"]);
    let train = root.path().join("train");
    fs::copy(train.join("a/1.png"), train.join("b/copy.png")).unwrap();
    fs::write(train.join("b/broken.jpg"), b"\xFF\xD8\xFF\xE0").unwrap();
    RgbImage::new(10, 20).save(train.join("b/large.bmp")).unwrap();
    let data = opened(root.path()).train;
    let calls = AtomicUsize::new(0);
    let highest = AtomicUsize::new(0);
    let progress = |done: usize| {
        calls.fetch_add(1, Ordering::Relaxed);
        highest.fetch_max(done, Ordering::Relaxed);
    };
    let report = scan(&data, &progress, 2, DEFAULT_READ_TIMEOUT).unwrap();
    assert_eq!((calls.into_inner(), highest.into_inner()), (6, 6));

    assert_eq!(report.images, 6);
    assert_eq!(report.classes.iter().map(|class| class.images).collect::<Vec<_>>(), [2, 4]);
    assert_eq!(report.width, Some(Spread { min: 3, median: 3, max: 10 }));
    assert_eq!(report.height, Some(Spread { min: 2, median: 2, max: 20 }));
    assert_eq!(report.sizes[0], SizeCount { width: 3, height: 2, images: 4 });
    let image = |index, name: &str| ImageRef { index, name: name.into() };
    assert_eq!(report.duplicates, [[image(0, "a/1.png"), image(4, "b/copy.png")]]);
    assert_eq!(report.duplicates_across_classes, 1);
    assert_eq!(report.unreadable.len(), 1);
    assert_eq!(report.unreadable[0].name, "b/broken.jpg");
    assert!(report.unreadable[0].reason.contains("truncated"), "{}", report.unreadable[0].reason);
    assert!(matches!(report.unreadable_error(), Some(Error::Unreadable { total: 6, .. })));

    let text = report.to_string();
    for line in ["images       6", "classes      2", "across classes", "unreadable   1", "b/broken.jpg: "] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert_eq!(serde_json::to_value(&report).unwrap()["unreadable"][0]["index"], 3);
    assert_eq!(text, scan(&data, &|_| (), 1, DEFAULT_READ_TIMEOUT).unwrap().to_string());

    // Quarantined, the broken image keeps its row.
    let usable = data.with_quarantine(&report.unreadable_indices()).unwrap();
    assert_eq!(usable.trainable_indices(), [0, 1, 2, 4, 5]);
    assert_eq!(usable.len(), 6);
}

/// A picture of a million files is taken in the same order whoever looks: here with one thread and with four.
#[test]
fn the_order_does_not_depend_on_threads() {
    let files: Vec<String> =
        (0..200).map(|i| format!("d{}/e{}/{}.png", i % 7, i % 3, i * 7919 % 200)).collect();
    let root = tree(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let listed = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| names(&opened(root.path()).train))
    };
    let one = listed(1);
    assert_eq!(one.len(), 200);
    assert_eq!(one, listed(4));
}
