use super::*;
use crate::atomic::{names_in, scratch};
use std::io::Cursor;

fn small() -> CheckpointView<'static> {
    let mut view = CheckpointView {
        tensors: vec![
            TensorBytes::from_f32("bank.rows", [2, 2], &[1.0, -0.5, f32::NAN, 0.25]),
            TensorBytes::new("steps", Dtype::I64, [], vec![7, 0, 0, 0, 0, 0, 0, 0]),
            TensorBytes::new("empty", Dtype::U8, [0, 3], vec![]),
        ],
        metadata: BTreeMap::from([("arch".into(), "resnet18 \"ünïcode\"".into())]),
    };
    view.set("numbers", &[1, 2, 3]);
    view
}

fn bytes_of(view: &CheckpointView) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    write(&mut file, view).unwrap();
    file.into_inner()
}

/// Opens a file that holds `bytes`.
fn open(folder: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    let path = folder.join("some.ckpt");
    fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

/// What a file that holds `bytes`, not a good checkpoint, is said to be.
fn refusal(bytes: &[u8]) -> String {
    contents(bytes).expect_err("must be refused")
}

#[test]
fn what_is_saved_is_read_back_bit_by_bit() {
    let (_dir, folder) = scratch();
    let path = folder.join("a.ckpt");
    let view = small();
    save_atomic(&path, &view).unwrap();
    let read = Checkpoint::open(&path).unwrap();
    assert_eq!(read.tensors().len(), 3);
    for tensor in &view.tensors {
        assert_eq!(&read.tensor(&tensor.name).unwrap(), tensor);
    }
    assert_eq!(read.metadata(), &view.metadata);
    assert_eq!(read.get::<Vec<u32>>("numbers").unwrap(), [1, 2, 3]);
    let rows = read.tensor("bank.rows").unwrap().to_f32().unwrap();
    let bits: Vec<_> = rows.iter().map(|x| x.to_bits()).collect();
    assert_eq!(bits, [1.0f32, -0.5, f32::NAN, 0.25].map(f32::to_bits));
    assert_eq!(read.tensor("steps").unwrap().to_f32(), None);
    assert!(read.tensor("conv1").unwrap_err().to_string().contains("a tensor `conv1`, found none"));
    assert!(read.get::<u32>("numbers").is_err() && read.get::<u32>("absent").is_err());
    assert_eq!(names_in(&folder), ["a.ckpt"]);
}

#[test]
fn any_safetensors_reader_opens_it_and_tensors_are_aligned() {
    let bytes = bytes_of(&small());
    let plain = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(plain.tensor("bank.rows").unwrap().shape(), [2, 2]);
    let (header, contents) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header % 8, 0);
    assert_eq!(CHECKSUM, 35..99, "as docs/formats.md says");
    assert_eq!(contents.info("steps").unwrap().data_offsets, (0, 8));
    assert_eq!(contents.metadata().as_ref().unwrap()["format"], "lemniscate checkpoint 1");
}

#[test]
fn the_same_view_gives_the_same_bytes_whatever_the_order() {
    let view = small();
    let mut reversed = view.clone();
    reversed.tensors.reverse();
    assert_eq!(bytes_of(&view), bytes_of(&reversed));
}

#[test]
fn a_flip_of_any_bit_is_refused() {
    let (_dir, folder) = scratch();
    let bytes = bytes_of(&small());
    assert!(open(&folder, &bytes).is_ok() && contents(&bytes).is_ok());
    let mut last = bytes.clone();
    *last.last_mut().unwrap() ^= 1;
    let error = open(&folder, &last).unwrap_err().to_string();
    let expected =
        "some.ckpt: expected a lemniscate checkpoint, found a damaged one: its checksum does not match";
    assert!(error.ends_with(expected), "{error}");
    for place in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << bit;
            refusal(&flipped);
        }
    }
}

#[test]
fn every_truncation_and_any_extension_is_refused() {
    let (_dir, folder) = scratch();
    let bytes = bytes_of(&small());
    for length in 0..bytes.len() {
        refusal(&bytes[..length]);
    }
    for more in [&b"\0"[..], b"x", b"trailing", &bytes] {
        refusal(&[&bytes, more].concat());
    }
    assert!(open(&folder, b"").unwrap_err().to_string().ends_with("found an empty file"));
    assert!(open(&folder, &bytes[..50]).is_err());
    let cut = refusal(&bytes[..bytes.len() - 1]);
    assert!(cut.contains(&format!("cut short: {} of {} bytes", bytes.len() - 1, bytes.len())), "{cut}");
    assert!(refusal(&[&bytes[..], b"abc"].concat()).contains("3 bytes after its end"));
}

/// `bytes` with `from` replaced by `to`, of the same length, and a checksum that is right again.
fn resealed(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let place = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    let digits = checksum(&bytes).to_hex();
    bytes[CHECKSUM].copy_from_slice(digits.as_bytes());
    bytes
}

#[test]
fn other_versions_are_refused_by_number() {
    let bytes = bytes_of(&small());
    let newer = refusal(&resealed(&bytes, "checkpoint 1", "checkpoint 2"));
    assert!(newer.contains("version 2, from a newer lemniscate; this one reads version 1"), "{newer}");
    let older = refusal(&resealed(&bytes, "checkpoint 1", "checkpoint 0"));
    assert!(older.contains("version 0; this lemniscate reads version 1"), "{older}");
    assert!(refusal(&resealed(&bytes, "checkpoint 1", "checkpoint x")).contains("`lemniscate ch"));
}

#[test]
fn hostile_headers_under_a_valid_checksum_are_errors() {
    let bytes = bytes_of(&small());
    for (from, to) in [
        (r#""shape":[2,2]"#, r#""shape":[9,9]"#),
        (r#""data_offsets":[0,8]"#, r#""data_offsets":[8,0]"#),
        (r#""data_offsets":[8,24]"#, r#""data_offsets":[8,99]"#),
        (r#""dtype":"I64""#, r#""dtype":"XYZ""#),
        ("}}", "}{"),
    ] {
        refusal(&resealed(&bytes, from, to));
    }
    for length in [0u64, 7, 1 << 20, 99_999_999, 1 << 40, u64::MAX - 7, u64::MAX] {
        let mut long = bytes.clone();
        long[..8].copy_from_slice(&length.to_le_bytes());
        refusal(&long);
        refusal(&resealed(&long, "format", "format"));
    }
}

#[test]
fn other_files_are_refused_by_the_name_of_what_they_are() {
    let (_dir, folder) = scratch();
    let view = safetensors::tensor::TensorView::new(Dtype::U8, vec![40], &[1; 40]).unwrap();
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let plain = safetensors::serialize([("fc.weight", view)], Some(metadata)).unwrap();
    let found = refusal(&plain);
    assert!(found.contains("a safetensors file of 1 tensors that lemniscate did not write"), "{found}");

    let ours = bytes_of(&small());
    let tensors = SafeTensors::deserialize(&ours).unwrap();
    let metadata = SafeTensors::read_metadata(&ours).unwrap().1.metadata().clone().unwrap();
    // Without the checksum: the header then begins otherwise, as it may in whatever order others write it.
    let metadata = metadata.into_iter().filter(|(key, _)| key != "blake3").collect();
    let rewritten = safetensors::serialize(tensors.tensors(), Some(metadata)).unwrap();
    assert!(refusal(&rewritten).contains("another program has rewritten"));

    assert!(refusal(b"PK\x03\x04 and so on").contains("perhaps a PyTorch checkpoint"));
    assert!(refusal(b"\x80\x02\x8a\x0al\xfc").contains("a Python pickle"));
    assert!(refusal(b"arch = \"resnet18\"\n").contains("something else"));
    let error = Checkpoint::open(&folder).unwrap_err().to_string();
    assert!(error.contains("found a folder"), "{error}");
    let error = Checkpoint::open(folder.join("absent.ckpt")).unwrap_err().to_string();
    assert!(error.contains("absent.ckpt: cannot read"), "{error}");
}

/// A disk that is full after so many bytes.
struct Disk(Cursor<Vec<u8>>, usize);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.position() as usize + bytes.len() > self.1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn a_disk_full_at_any_byte_is_an_error() {
    let view = small();
    let enough = bytes_of(&view).len();
    for size in 0..enough {
        assert!(write(&mut Disk(Cursor::default(), size), &view).is_err(), "{size}");
    }
    assert!(write(&mut Disk(Cursor::default(), enough), &view).is_ok());
}

#[test]
#[should_panic(expected = "two tensors are called a")]
fn repeated_names_are_a_bug_of_the_caller() {
    let tensor = || TensorBytes::new("a", Dtype::U8, [1], vec![0]);
    bytes_of(&CheckpointView { tensors: vec![tensor(), tensor()], ..Default::default() });
}

#[test]
#[should_panic(expected = "does not fill 3 bytes")]
fn a_shape_must_fit_its_bytes() {
    TensorBytes::new("a", Dtype::F32, [1], vec![0; 3]);
}
