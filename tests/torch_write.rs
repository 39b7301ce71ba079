//! Files for `torch.load`: read back by our own reader, and by PyTorch where there is one.
//!
//! `LEMNISCATE_TORCH_PYTHON` names a Python that has torch and torchvision; `interop_check.py` then opens the same
//! files.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use half::{bf16, f16};
use lemniscate::checkpoint::format::TensorBytes;
use lemniscate::interop::import::{ImportOptions, import};
use lemniscate::interop::published::{Bank, Objective, Published, Script, Sgd};
use lemniscate::interop::torch::{Archive, Container, TorchFile};
use lemniscate::model::{Arch, Encoder, EncoderConfig, Family, Mode, to_vec_f32};
use lemniscate::pickle::Tree;
use lemniscate::train::state::{BANK, ENCODER, MOMENTUM, Saved};
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

/// Tensors of every type that has a storage, and of every awkward shape.
fn values() -> Vec<TensorBytes<'static>> {
    let f32s = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let specials = [0.1, -0.0, f32::INFINITY, f32::from_bits(0x7fc0_1234), f32::MIN_POSITIVE / 4.0, f32::MAX];
    let halves: Vec<u8> =
        [0.1, -0.0, 65504.0, 6e-8, f32::NAN].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    let brains: Vec<u8> = [0.1, -3e38, 1e-40].iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    let doubles: Vec<u8> =
        [0.1, -1e300, f64::NAN, 5e-324].iter().flat_map(|x: &f64| x.to_le_bytes()).collect();
    let longs: Vec<u8> = [i64::MIN, -1, 0, i64::MAX].iter().flat_map(|x| x.to_le_bytes()).collect();
    let bytes = |n: u8| (0..n).map(|x| x.wrapping_mul(37)).collect::<Vec<u8>>();
    vec![
        TensorBytes::new("f32", Dtype::F32, [2, 3], f32s(&specials)),
        TensorBytes::new("f16", Dtype::F16, [5], halves),
        TensorBytes::new("bf16", Dtype::BF16, [3, 1], brains),
        TensorBytes::new("f64", Dtype::F64, [2, 2], doubles),
        TensorBytes::new("i64", Dtype::I64, [4], longs),
        TensorBytes::new("i32", Dtype::I32, [1, 3], bytes(12)),
        TensorBytes::new("i16", Dtype::I16, [3], bytes(6)),
        TensorBytes::new("i8", Dtype::I8, [7], bytes(7)),
        TensorBytes::new("u8", Dtype::U8, [2, 1, 3], bytes(6)),
        TensorBytes::new("bool", Dtype::BOOL, [3], vec![1, 0, 1]),
        TensorBytes::new("c64", Dtype::C64, [2], bytes(16)),
        TensorBytes::new("scalar", Dtype::F32, [], f32s(&[2.5])),
        TensorBytes::new("layer1.0.bn1.num_batches_tracked", Dtype::I64, [], 391i64.to_le_bytes().to_vec()),
        TensorBytes::new("empty", Dtype::F32, [0, 4], vec![]),
        TensorBytes::new("empty too", Dtype::F16, [3, 0, 2], vec![]),
        TensorBytes::new("after", Dtype::F32, [2, 2, 2], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])),
    ]
}

/// Values that are no tensors; `interop_check.py` has the same list.
fn plain() -> Tree<'static> {
    let ints = [0, 255, 256, 65536, -1, 1 << 31, -(1 << 40), i64::MAX, i64::MIN];
    let mut list = vec![Tree::None, Tree::Bool(true), Tree::Bool(false)];
    list.extend(ints.map(Tree::Int));
    list.extend([Tree::Float(0.1), Tree::text("caf\u{e9}")]);
    list.extend([Tree::Tuple(vec![]), Tree::Tuple(vec![Tree::Int(1)])]);
    Tree::List(list)
}

fn write_values(path: &Path) {
    let mut archive = Archive::new();
    let tensors = archive.state_dict(values()).unwrap();
    archive.save(path, &Tree::dict([("tensors", tensors), ("plain", plain())])).unwrap();
}

#[test]
fn every_tensor_is_read_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("values.pth");
    write_values(&path);
    let file = TorchFile::open(&path).unwrap();
    assert_eq!((file.container(), file.version(), file.big_endian()), (Container::Zip, "3", false));
    let checkpoint = file.read().unwrap();
    let dict = checkpoint.pickle().entry(checkpoint.root(), "tensors").unwrap();
    let found = checkpoint.named_tensors(dict).unwrap();
    assert_eq!(found.len(), values().len());
    for ((name, tensor), expected) in found.iter().zip(values()) {
        assert_eq!((&name[..], tensor.shape()), (&*expected.name, &expected.shape[..]));
        assert_eq!(tensor.bytes(), expected.bytes, "{name}");
        assert_eq!(tensor.dtype().size() * 8, expected.dtype.bitsize(), "{name}");
        // The file is mapped at the start of a page.
        assert_eq!(tensor.storage_address() % 64, 0, "{name}");
        assert!(tensor.is_contiguous() && !tensor.is_parameter(), "{name}");
    }
}

#[test]
fn entries_are_stored_with_their_checksums_and_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("values.pth");
    write_values(&path);
    let mut zip = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
    let names: Vec<String> = zip.file_names().map(str::to_owned).collect();
    let storages = (0..values().len()).map(|key| format!("archive/data/{key}"));
    let expected: Vec<String> = ["archive/data.pkl".to_owned(), "archive/byteorder".to_owned()]
        .into_iter()
        .chain(storages)
        .chain(["archive/version".to_owned()])
        .collect();
    assert_eq!(names, expected);
    for name in names {
        let mut entry = zip.by_name(&name).unwrap();
        assert_eq!(entry.compression(), zip::CompressionMethod::Stored, "{name}");
        assert_eq!(entry.data_start().unwrap() % 64, 0, "{name}");
        // Reading to the end compares the checksum.
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        match &name[..] {
            "archive/version" => assert_eq!(content, b"3\n"),
            "archive/byteorder" => assert_eq!(content, b"little"),
            _ => {}
        }
    }
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a.pth"), folder.path().join("b.pth"));
    write_values(&first);
    write_values(&second);
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
    write_values(&first);
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "a file that is replaced");
}

#[test]
fn a_type_without_storages_is_refused_by_name() {
    for (dtype, size) in [(Dtype::U16, 2), (Dtype::F8_E4M3, 1), (Dtype::F8_E8M0, 1)] {
        let tensor = TensorBytes::new("layer1.weight", dtype, [3], vec![0; 3 * size]);
        let message = Archive::new().tensor(tensor).unwrap_err().to_string();
        assert!(message.contains("layer1.weight") && message.contains(&format!("{dtype:?}")), "{message}");
    }
}

/// A file in which long runs of zeros are holes, so that it may be larger than what it takes.
struct Sparse(File);

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
        let chunk = &bytes[..bytes.len().min(ZEROS.len())];
        if chunk.len() < 4096 || *chunk != ZEROS[..chunk.len()] {
            return self.0.write(chunk);
        }
        self.0.seek(SeekFrom::Current(chunk.len() as i64))?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// A tensor of more than 4 GiB, nearly all of it zeros, and a small one after it.
#[cfg(target_pointer_width = "64")]
fn write_large(path: &Path) {
    let mut large = memmap2::MmapMut::map_anon((1 << 32) + 100).unwrap();
    let end = large.len() - 3;
    large[end..].copy_from_slice(&[1, 2, 3]);
    let mut archive = Archive::new();
    let first = archive.tensor(TensorBytes::new("large", Dtype::U8, [large.len()], &large[..])).unwrap();
    let after = archive.tensor(TensorBytes::from_f32("after", [3], &[0.5, -0.5, 2.0])).unwrap();
    let root = Tree::dict([("large", first), ("after", after)]);
    archive.write(Sparse(File::create(path).unwrap()), &root).unwrap();
}

#[cfg(target_pointer_width = "64")]
#[test]
fn archives_may_be_larger_than_4_gigabytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.pth");
    write_large(&path);
    let file = TorchFile::open(&path).unwrap();
    let checkpoint = file.read().unwrap();
    let tensors = checkpoint.named_tensors(checkpoint.root()).unwrap();
    let [(_, large), (_, after)] = &tensors[..] else { panic!("two tensors") };
    assert_eq!(large.shape(), [(1 << 32) + 100]);
    assert_eq!(large.bytes()[(1 << 32) + 96..], [0, 1, 2, 3]);
    assert_eq!(*after.bytes(), [0.5f32, -0.5, 2.0].map(f32::to_le_bytes).concat());
    assert_eq!((large.storage_address() % 64, after.storage_address() % 64), (0, 0));
}

const ROWS: usize = 7;
const DIM: usize = 4;

fn memory() -> Vec<f32> {
    (0..ROWS * DIM).map(|n| (n as f32).sin()).collect()
}

fn bank(memory: &[f32], objective: Objective) -> Bank<'_> {
    let temperature = if objective == Objective::FullSoftmax { 0.1 } else { 0.07 };
    let memory = TensorBytes::from_f32("memory", [ROWS, DIM], memory);
    Bank { memory, temperature, momentum: 0.5, objective }
}

fn sgd(buffers: Vec<TensorBytes<'_>>) -> Sgd<'_> {
    Sgd { lr: 0.03, momentum: 0.9, weight_decay: 1e-4, buffers }
}

/// Two layers' worth of a network.
fn tensors() -> Vec<TensorBytes<'static>> {
    values().into_iter().filter(|tensor| ["f32", "after"].contains(&&*tensor.name)).collect()
}

#[test]
fn the_published_layouts_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.pth.tar");
    let memory = memory();
    for (objective, class, params) in [
        (Objective::Nce { n_negatives: 4096, z: None }, "NCEAverage", &[4096.0, 0.07, -1.0, 0.5][..]),
        (
            Objective::Nce { n_negatives: 9, z: Some(2_876_934.0) },
            "NCEAverage",
            &[9.0, 0.07, 2_876_934.0, 0.5],
        ),
        (Objective::FullSoftmax, "LinearAverage", &[0.1, 0.5]),
    ] {
        for cifar in [false, true] {
            let script = match cifar {
                true => Script::Cifar,
                false => Script::ImageNet { arch: "resnet18", optimizer: sgd(tensors()) },
            };
            let bank = bank(&memory, objective);
            Published { script, epoch: 12, encoder: tensors(), bank, best: 0.375 }.save(&path).unwrap();

            let file = TorchFile::open(&path).unwrap();
            let c = file.read().unwrap();
            let p = c.pickle();
            let keys: Vec<_> =
                p.entries(c.root()).unwrap().iter().map(|&(key, _)| p.text(key).unwrap()).collect();
            let at = |key: &str| p.entry(c.root(), key).unwrap_or_else(|| panic!("no {key}"));
            let (network, prefix) = if cifar {
                assert_eq!(keys, ["net", "lemniscate", "acc", "epoch"]);
                assert_eq!(p.int(at("epoch")), Some(11));
                ("net", "")
            } else {
                assert_eq!(keys, ["epoch", "arch", "state_dict", "lemniscate", "best_prec1", "optimizer"]);
                assert_eq!((p.int(at("epoch")), &*p.text(at("arch")).unwrap()), (Some(12), "resnet18"));
                let state = p.entries(p.entry(at("optimizer"), "state").unwrap()).unwrap().into_owned();
                assert_eq!(state.len(), 2);
                for (n, (&(key, entry), expected)) in state.iter().zip(tensors()).enumerate() {
                    let buffer = c.tensor(p.entry(entry, "momentum_buffer").unwrap()).unwrap().unwrap();
                    assert_eq!((p.int(key), buffer.bytes()), (Some(n as i64), expected.bytes));
                }
                let groups = p.items(p.entry(at("optimizer"), "param_groups").unwrap()).unwrap();
                assert_eq!(c.numbers(p.entry(groups[0], "params").unwrap()).unwrap(), [0, 1]);
                ("state_dict", "module.")
            };
            let named = c.named_tensors(at(network)).unwrap();
            for ((name, tensor), expected) in named.iter().zip(tensors()) {
                assert_eq!(*name, format!("{prefix}{}", expected.name));
                assert_eq!(tensor.bytes(), expected.bytes);
            }
            let module = at("lemniscate");
            assert_eq!(c.class(module).unwrap().to_string(), format!("lib.{class}.{class}"));
            let found = c.named_tensors(module).unwrap();
            let [(first, found_params), (second, found_memory)] = &found[..] else { panic!("two buffers") };
            assert_eq!((&first[..], &second[..]), ("params", "memory"));
            let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            assert_eq!(*found_params.bytes(), bytes(params));
            assert_eq!(
                (found_memory.shape(), &*found_memory.bytes()),
                (&[ROWS, DIM][..], &bytes(&memory)[..])
            );
            assert_eq!(p.int(p.attribute(module, "nLem").unwrap()), Some(ROWS as i64));
            if let Objective::Nce { n_negatives, .. } = objective {
                assert_eq!(p.int(p.attribute(module, "K").unwrap()), Some(n_negatives as i64));
                let table = p.attribute(module, "multinomial").unwrap();
                assert_eq!(c.class(table).unwrap().to_string(), "lib.alias_multinomial.AliasMethod");
                let tensor = |id| c.tensor(id).unwrap().unwrap();
                let prob = tensor(p.attribute(table, "prob").unwrap());
                let alias = tensor(p.attribute(table, "alias").unwrap());
                let unigrams = tensor(p.attribute(module, "unigrams").unwrap());
                assert_eq!(*prob.bytes(), bytes(&[1.0; ROWS]));
                assert_eq!(*unigrams.bytes(), bytes(&[1.0 / ROWS as f32; ROWS]));
                assert_eq!((alias.dtype().name(), &*alias.bytes()), ("int64", &[0; 8 * ROWS][..]));
            }
        }
    }
}

#[test]
fn what_was_written_in_the_published_layouts_is_imported_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.pth.tar");
    let memory = memory();
    for family in [Family::ImageNet, Family::Cifar] {
        let config =
            EncoderConfig { width: 4, embed_dim: DIM as i64, ..EncoderConfig::new(Arch::ResNet18, family) };
        let encoder = Encoder::new(config, 5, Device::Cpu);
        let state: Vec<_> =
            encoder.parameters().state().map(|entry| copied(&entry.name, &entry.tensor)).collect();
        let momentum: Vec<_> =
            encoder.parameters().trainable().map(|entry| copied(&entry.name, &entry.tensor.sin())).collect();
        let (script, objective) = match family {
            Family::ImageNet => (
                Script::ImageNet { arch: "resnet18", optimizer: sgd(momentum.clone()) },
                Objective::Nce { n_negatives: 9, z: Some(44.5) },
            ),
            Family::Cifar => (Script::Cifar, Objective::FullSoftmax),
        };
        let bank = bank(&memory, objective);
        Published { script, epoch: 12, encoder: state.clone(), bank, best: 0.375 }.save(&path).unwrap();

        let checkpoint = import(&path, &ImportOptions::default()).unwrap().checkpoint;
        let saved = Saved::read(&checkpoint).unwrap();
        assert_eq!(saved.config.encoder(), config);
        assert_eq!((saved.progress.epoch, saved.progress.best), (12, Some(37.5)));
        assert_eq!(saved.config.bank_momentum, 0.5);
        let (temperature, ln_z) =
            if family == Family::ImageNet { (0.07, Some(44.5f64.ln())) } else { (0.1, None) };
        assert_eq!((saved.config.temperature, saved.progress.ln_z), (temperature, ln_z));
        let same = |prefix: &str, expected: &TensorBytes<'_>| {
            let name = format!("{prefix}{}", expected.name);
            let found = checkpoint.tensor(&name).unwrap();
            assert!(found.shape == expected.shape && found.bytes == expected.bytes, "{name}");
        };
        state.iter().for_each(|tensor| same(ENCODER, tensor));
        same("", &TensorBytes::from_f32(BANK, [ROWS, DIM], &memory));
        if family == Family::ImageNet {
            momentum.iter().for_each(|tensor| same(MOMENTUM, tensor));
        }
    }
}

#[test]
fn what_the_published_program_could_not_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.pth");
    let memory = memory();
    let save = |bank: Bank<'_>| {
        let published = Published { script: Script::Cifar, epoch: 1, encoder: vec![], bank, best: 0.0 };
        published.save(&path).unwrap_err().to_string()
    };
    for z in [0.0, -5.0, 1e39, 1e-60, f64::NAN, f64::INFINITY] {
        let message = save(bank(&memory, Objective::Nce { n_negatives: 1, z: Some(z) }));
        assert!(message.contains("Z: expected a positive 32-bit float"), "{message}");
    }
    let good = bank(&memory, Objective::FullSoftmax);
    let flat = TensorBytes::from_f32("memory", [ROWS * DIM], &memory);
    let message = save(Bank { memory: flat, ..good.clone() });
    assert!(message.contains("expected F32 [N, D], found F32 [28]"), "{message}");
    let half = TensorBytes::new("memory", Dtype::F16, [ROWS, DIM], vec![0; 2 * ROWS * DIM]);
    let message = save(Bank { memory: half, ..good });
    assert!(message.contains("expected F32 [N, D], found F16 [7, 4]"), "{message}");
    assert!(!path.exists());
}

/// A tensor of libtorch's, copied.
fn copied(name: &str, tensor: &Tensor) -> TensorBytes<'static> {
    let shape: Vec<usize> = tensor.size().into_iter().map(|n| n as usize).collect();
    let (dtype, width) = match tensor.kind() {
        Kind::Int64 => (Dtype::I64, 8),
        Kind::Float => (Dtype::F32, 4),
        other => panic!("{name}: {other:?}"),
    };
    let mut bytes = vec![0; tensor.numel() * width];
    tensor.detach().contiguous().copy_data_u8(&mut bytes, tensor.numel());
    TensorBytes::new(name.to_owned(), dtype, shape, bytes)
}

/// Type, shape and bytes as `interop_check.py` compares them.
fn described(tensor: &TensorBytes<'_>) -> serde_json::Value {
    let dtype = match tensor.dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::F64 => "float64",
        Dtype::I64 => "int64",
        Dtype::I32 => "int32",
        Dtype::I16 => "int16",
        Dtype::I8 => "int8",
        Dtype::U8 => "uint8",
        Dtype::BOOL => "bool",
        Dtype::C64 => "complex64",
        other => panic!("{other:?}"),
    };
    let hex: String = tensor.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serde_json::json!([dtype, tensor.shape, hex])
}

#[cfg(target_pointer_width = "64")]
#[test]
fn pytorch_opens_them() {
    let Some(python) = std::env::var_os("LEMNISCATE_TORCH_PYTHON") else {
        let note = "SKIPPED: opening what was written with PyTorch; \
                    LEMNISCATE_TORCH_PYTHON names no Python with torch and torchvision";
        // Not `eprintln!`, which the test harness would hide.
        writeln!(io::stderr(), "{note}").unwrap();
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_values(&at("values.pth"));
    // A list: a map of JSON's would lose the order.
    let expected: Vec<_> =
        values().iter().map(|tensor| (tensor.name.to_string(), described(tensor))).collect();
    fs::write(at("values.json"), serde_json::to_string(&expected).unwrap()).unwrap();
    write_large(&at("large.pth"));

    // A ResNet-18 of 1000 numbers has all of torchvision's names and shapes.
    let config = EncoderConfig { embed_dim: 1000, ..EncoderConfig::new(Arch::ResNet18, Family::ImageNet) };
    let encoder = Encoder::new(config, 5, Device::Cpu);
    let state: Vec<TensorBytes<'_>> =
        encoder.parameters().state().map(|entry| copied(&entry.name, &entry.tensor)).collect();
    let mut archive = Archive::new();
    let root = archive.state_dict(state.clone()).unwrap();
    archive.save(&at("resnet18.pth"), &root).unwrap();

    let input = Tensor::arange(2 * 3 * 96 * 96, (Kind::Float, Device::Cpu)).sin().view([2, 3, 96, 96]);
    let features = encoder.forward(&input, Mode::Eval);
    assert!(to_vec_f32(&features).iter().all(|x| x.is_finite()));
    let mut archive = Archive::new();
    let run = [("input", &input), ("features", &features)];
    let root = archive.state_dict(run.map(|(name, tensor)| copied(name, tensor))).unwrap();
    archive.save(&at("forward.pth"), &root).unwrap();

    // The n-th momentum buffer is full of n.
    let buffers = encoder.parameters().trainable().enumerate();
    let buffers =
        buffers.map(|(n, entry)| copied(&entry.name, &(entry.tensor.detach().zeros_like() + n as f64)));
    let memory = memory();
    let imagenet = Published {
        script: Script::ImageNet { arch: "resnet18", optimizer: sgd(buffers.collect()) },
        epoch: 12,
        encoder: state.clone(),
        bank: bank(&memory, Objective::Nce { n_negatives: 4096, z: None }),
        best: 0.375,
    };
    imagenet.save(&at("imagenet.pth")).unwrap();
    let cifar = Published {
        script: Script::Cifar,
        epoch: 12,
        encoder: state,
        bank: bank(&memory, Objective::FullSoftmax),
        best: 0.8,
    };
    cifar.save(&at("cifar.pth")).unwrap();
    let rows = described(&TensorBytes::from_f32("memory", [ROWS, DIM], &memory));
    fs::write(at("bank.json"), rows.to_string()).unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop_check.py");
    let output = Command::new(python).arg(script).arg(folder.path()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    writeln!(io::stderr(), "{out}").unwrap();
}
