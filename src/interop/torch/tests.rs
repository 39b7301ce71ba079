//! Files that PyTorch wrote, against the bytes it said were in them; then damage.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use tempfile::NamedTempFile;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

/// Type, shape and bytes of each tensor, as PyTorch has them.
fn expected() -> HashMap<String, (String, Vec<usize>, Vec<u8>)> {
    let json: HashMap<String, (String, Vec<usize>, String)> =
        serde_json::from_slice(&fs::read(fixture("values.json")).unwrap()).unwrap();
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    json.into_iter().map(|(name, (dtype, shape, hex))| (name, (dtype, shape, bytes(&hex)))).collect()
}

#[test]
fn every_tensor_has_the_bytes_that_pytorch_gives() {
    let expected = expected();
    for (file, container, count) in [
        ("values.zip.pth", Container::Zip, expected.len()),
        ("values.legacy.pth", Container::Legacy, expected.len()),
        ("values.big.pth", Container::Zip, 6),
        ("values.tar.pth", Container::Tar, 6),
    ] {
        assert!(detect(&fixture(file)), "{file}");
        let opened = TorchFile::open(&fixture(file)).unwrap();
        assert_eq!(
            (opened.container(), opened.big_endian()),
            (container, file == "values.big.pth"),
            "{file}"
        );
        let checkpoint = opened.read().unwrap();
        let tensors = checkpoint.named_tensors(checkpoint.root()).unwrap();
        assert_eq!(tensors.len(), count, "{file}");
        for (name, tensor) in &tensors {
            if name == "of_view" {
                assert_eq!(*tensor.bytes(), [13f32.to_le_bytes(), 14f32.to_le_bytes()].concat(), "{file}");
                continue;
            }
            let (dtype, shape, bytes) = &expected[name];
            assert_eq!((tensor.dtype().name(), tensor.shape()), (&dtype[..], &shape[..]), "{file}: {name}");
            assert!(*tensor.bytes() == bytes[..], "{file}: {name}");
            assert_eq!(tensor.is_parameter(), name == "parameter", "{file}: {name}");
            assert_eq!(
                (tensor.n_bytes(), tensor.numel() * tensor.dtype().size()),
                (bytes.len(), bytes.len())
            );
        }
        let named = |wanted: &str| tensors.iter().find(|(name, _)| name == wanted).map(|(_, tensor)| tensor);
        if let (Some(base), Some(row)) = (named("base"), named("row")) {
            assert_eq!(base.storage_address(), row.storage_address(), "{file}: a view shares its storage");
            assert!(base.is_contiguous() && row.is_contiguous(), "{file}");
            assert!(!named("strided").unwrap().is_contiguous(), "{file}");
        }
    }
}

#[test]
fn tensors_become_libtorchs() {
    let opened = TorchFile::open(&fixture("values.zip.pth")).unwrap();
    let checkpoint = opened.read().unwrap();
    for (name, tensor) in checkpoint.named_tensors(checkpoint.root()).unwrap() {
        match tensor.to_tch() {
            Ok(copy) => {
                let shape: Vec<i64> = tensor.shape().iter().map(|&extent| extent as i64).collect();
                assert_eq!((copy.size(), Some(copy.kind())), (shape, tensor.dtype().kind()), "{name}");
                let mut bytes = vec![0; tensor.n_bytes()];
                copy.copy_data_u8(&mut bytes, tensor.numel());
                assert!(bytes == *tensor.bytes(), "{name}");
            }
            Err(reason) => assert!(reason.contains("is not a type that tch knows"), "{name}: {reason}"),
        }
    }
}

#[test]
fn a_pickled_module_yields_its_tensors_and_attributes_without_its_class() {
    for file in ["module.zip.pth", "module.legacy.pth"] {
        let opened = TorchFile::open(&fixture(file)).unwrap();
        let c = opened.read().unwrap();
        let at = |key: &str| c.pickle().entry(c.root(), key).unwrap_or_else(|| panic!("{file}: no {key}"));
        assert_eq!(c.pickle().int(at("epoch")), Some(12), "{file}");
        assert_eq!(c.pickle().text(at("arch")).unwrap(), "resnet18", "{file}");

        let bank = at("lemniscate");
        assert_eq!(c.class(bank).unwrap().to_string(), "lib.NCEAverage.NCEAverage", "{file}");
        assert_eq!(c.pickle().int(c.pickle().attribute(bank, "nLem").unwrap()), Some(5), "{file}");
        let tensors = c.named_tensors(bank).unwrap();
        let shapes: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape())).collect();
        assert_eq!(shapes, [("params", &[4][..]), ("memory", &[5, 4])], "{file}");
        let params: Vec<u8> = [4096f32, 0.07, -1.0, 0.5].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(*tensors[0].1.bytes(), params, "{file}");

        // The module's own names are those of its state dict, and its tensors the same.
        let module = c.named_tensors(at("net")).unwrap();
        let state = c.named_tensors(at("state_dict")).unwrap();
        assert_eq!(module.len(), 8, "{file}");
        let stripped: HashMap<_, _> =
            state.iter().map(|(name, tensor)| (name.strip_prefix("module.").unwrap(), tensor)).collect();
        assert_eq!(stripped.len(), module.len(), "{file}");
        for (name, tensor) in &module {
            assert_eq!(tensor.bytes(), stripped[name.as_str()].bytes(), "{file}: {name}");
            assert_eq!(
                tensor.is_parameter(),
                name.ends_with("weight") || name.ends_with("bias"),
                "{file}: {name}"
            );
        }
    }
}

#[test]
fn other_kinds_are_refused_by_name() {
    let dir = tempfile::TempDir::new().unwrap();
    fs::write(dir.path().join(".metadata"), "").unwrap();
    let plain = dir.path().join("plain.pkl");
    fs::write(&plain, b"\x80\x02}.").unwrap();
    let zip = dir.path().join("other.zip");
    fs::write(&zip, [b"PK\x03\x04".to_vec(), vec![0; 26], b"PK\x05\x06".to_vec(), vec![0; 18]].concat())
        .unwrap();
    let old_script = dir.path().join("x.distcp");
    fs::write(&old_script, "x").unwrap();
    for (path, what) in [
        (fixture("script.pt"), "a TorchScript archive, which is a program"),
        (fixture("quantised.pth"), "a quantised model (torch._utils._rebuild_qtensor)"),
        (dir.path().to_owned(), "a sharded (distributed) checkpoint"),
        (old_script, "a part of a sharded checkpoint"),
        (plain, "a plain pickle, which torch.save did not write"),
        (zip, "a zip archive that PyTorch did not write"),
        (fixture("make.py"), "something else"),
    ] {
        let message = TorchFile::open(&path).unwrap_err().to_string();
        assert!(message.contains(what) && message.contains("plain tensors"), "{message}");
    }
}

/// Opens a file and reads every tensor there is.
fn read_all(path: &Path) -> Result<usize> {
    let opened = TorchFile::open(path)?;
    let checkpoint = opened.read()?;
    let _ = checkpoint.named_tensors(checkpoint.root());
    let tensors = checkpoint.pickle().ids().filter_map(|id| checkpoint.tensor(id).ok().flatten());
    Ok(tensors.map(|tensor| tensor.bytes().len()).sum())
}

const FILES: [&str; 5] =
    ["values.zip.pth", "values.legacy.pth", "values.tar.pth", "values.big.pth", "module.legacy.pth"];

#[test]
fn every_prefix_is_refused() {
    for file in FILES {
        let bytes = fs::read(fixture(file)).unwrap();
        // The tar archive ends with blocks of zeros that nobody misses.
        let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
        let temp = NamedTempFile::new().unwrap();
        for cut in (0..end).step_by(if bytes.len() > 5_000 { 7 } else { 1 }) {
            fs::write(temp.path(), &bytes[..cut]).unwrap();
            assert!(read_all(temp.path()).is_err(), "{file} cut at {cut}");
        }
    }
}

#[test]
fn damaged_files_cost_an_error_at_most() {
    use rand::RngExt;
    let mut rng = crate::rng::stream(11, crate::rng::Purpose::Test, 0, 0);
    for file in FILES {
        let bytes = fs::read(fixture(file)).unwrap();
        let temp = NamedTempFile::new().unwrap();
        for _ in 0..2_000 {
            let mut bad = bytes.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bad.len());
                bad[at] = match rng.random_range(0..3) {
                    0 => rng.random_range(0..=255),
                    1 => 0xff,
                    _ => bad[at] ^ 1 << rng.random_range(0..8),
                };
            }
            fs::write(temp.path(), bad).unwrap();
            let _ = read_all(temp.path());
        }
    }
}

#[test]
fn a_tensor_must_lie_in_its_storage() {
    let storage = [0u8; 40];
    let tensor = |shape: &[i64], strides: &[i64], offset| {
        Tensor::new(Dtype::F32, (shape, strides, offset), &storage, false, 1000).map(|tensor| tensor.numel())
    };
    assert_eq!(tensor(&[2, 5], &[5, 1], 0), Ok(10));
    assert_eq!(tensor(&[5, 2], &[1, 5], 0), Ok(10));
    assert_eq!(tensor(&[], &[], 9), Ok(1));
    assert_eq!(tensor(&[0, i64::MAX, i64::MAX], &[1, 1, 1], 99), Ok(0));
    assert_eq!(tensor(&[1000], &[0], 0), Ok(1000));
    for (shape, strides, offset, reason) in [
        (&[2, 5][..], &[5, 1][..], 1, "outside its storage"),
        (&[2, 5], &[6, 1], 0, "outside its storage"),
        (&[], &[], 10, "outside its storage"),
        (&[2], &[i64::MAX], 0, "outside its storage"),
        (&[i64::MAX, 4], &[0, 0], 0, "absurd size"),
        (&[1 << 30], &[0], 0, "far more elements"),
        (&[-1], &[1], 0, "negative size"),
        (&[1], &[-1], 0, "negative strides"),
        (&[1], &[1], -1, "negative offset"),
        (&[1], &[1, 1], 0, "differing or too many axes"),
    ] {
        let found = tensor(shape, strides, offset).unwrap_err();
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn modules_that_share_parts_do_not_unfold() {
    // Each module has the next one twice, and a parameter of its own.
    let mut pickle =
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n".to_vec();
    pickle
        .extend(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01NtQK\x00))tRr\xff\x00\x00\x000c__main__\nM\n)R");
    for _ in 0..40 {
        pickle.extend(b"r\xfe\x00\x00\x000c__main__\nM\n)R}(U\x0b_parameters}U\x01pj\xff\x00\x00\x00s");
        pickle.extend(b"U\x08_modules}(U\x01aj\xfe\x00\x00\x00U\x01bj\xfe\x00\x00\x00uub");
    }
    pickle.push(b'.');
    let parsed = Pickle::read(&pickle).unwrap();
    let file = [0; 4];
    let layout = Layout {
        container: Container::Zip,
        version: String::new(),
        pickle: 0..0,
        storages: HashMap::from([("0".to_owned(), 0..4)]),
        big_endian: false,
        tensors: HashMap::new(),
    };
    let checkpoint = Checkpoint::new(parsed, &file, &layout).unwrap();
    let message = checkpoint.named_tensors(checkpoint.root()).unwrap_err();
    assert!(message.contains("without end"), "{message}");
}
