//! `lemniscate export`: what is written holds what the checkpoint holds.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{fails, succeeds};
use lemniscate::interop::import::{ImportOptions, import};
use lemniscate::interop::inspect::{Node, inspect};
use lemniscate::interop::recognise::Hints;
use lemniscate::interop::torch::TorchFile;
use lemniscate::model::to_vec_f32;
use lemniscate::train::state::Saved;
use tch::Tensor;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

/// Every tensor and plain value of a PyTorch file by its path in the tree.
fn leaves(file: &Path) -> BTreeMap<String, String> {
    fn walk(node: &Node, path: String, leaves: &mut BTreeMap<String, String>) {
        match node {
            Node::Tree { entries, .. } => {
                entries.iter().for_each(|(key, node)| walk(node, format!("{path}/{key}"), leaves));
            }
            Node::Tensor { dtype, shape, .. } => {
                leaves.insert(path, format!("{dtype} {shape:?}"));
            }
            Node::Value { text } => {
                leaves.insert(path, text.clone());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&inspect(file, Hints::default()).unwrap().content, String::new(), &mut found);
    found
}

#[test]
fn the_published_layout_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["imagenet.pth.tar", "cifar.t7"] {
        let original = fixture(name);
        let arguments =
            ["export", original.to_str().unwrap(), "--to", "pth", "--layout", "published", "--out", name];
        succeeds(folder.path(), arguments);
        let written = folder.path().join(name);
        // Numbers bit for bit.
        let (a, b) = (TorchFile::open(&original).unwrap(), TorchFile::open(&written).unwrap());
        let (a, b) = (a.read().unwrap(), b.read().unwrap());
        let mut compared = 0;
        for key in ["state_dict", "net", "lemniscate"] {
            let Some(id) = a.pickle().entry(a.root(), key) else { continue };
            let theirs: BTreeMap<_, _> =
                b.named_tensors(b.pickle().entry(b.root(), key).unwrap()).unwrap().into_iter().collect();
            for (name, tensor) in a.named_tensors(id).unwrap() {
                assert!(tensor.bytes() == theirs[&name].bytes(), "{key}: {name}");
                compared += 1;
            }
        }
        assert_eq!(compared, if name == "cifar.t7" { 124 } else { 104 });
        // And everything else that the program looks at: counters, rates, accuracy, momentum. What newer versions of
        // PyTorch add to modules and optimisers is not written.
        let (a, b) = (leaves(&original), leaves(&written));
        for path in ["/epoch", "/arch", "/best_prec1", "/acc", "/lemniscate/nLem", "/lemniscate/K"] {
            assert_eq!(a.get(path), b.get(path), "{path}");
        }
        let of_optimizer = |path: &&String| path.starts_with("/optimizer");
        for path in b.keys().filter(of_optimizer) {
            assert_eq!(a[path], b[path], "{path}");
        }
        assert_eq!(b.keys().filter(of_optimizer).count(), if name == "cifar.t7" { 0 } else { 62 + 6 });
    }
}

#[test]
fn exports_hold_what_the_checkpoint_holds() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = fixture("cifar.t7");
    let file = file.to_str().unwrap();
    let export = |more: &[&str]| {
        let arguments: Vec<&str> = ["export", file].iter().chain(more).copied().collect();
        succeeds(folder, arguments)
    };
    export(&["--to", "safetensors", "--out", "all.safetensors"]);
    export(&["--to", "safetensors", "--head", "none", "--out", "trunk.safetensors"]);
    export(&["--to", "pth", "--out", "all.pth"]);
    let bank = ["--what", "bank", "--out", "bank.safetensors"];
    export(&[&["--to", "safetensors"], &bank[..]].concat());
    export(&["--to", "npy", "--out", "bank.npy"]);
    export(&["synthetic:20x32", "--to", "csv", "--out", "bank.csv"]);

    // torchvision's names, and back to the same network with the stem of the CIFAR family.
    let original = import(&fixture("cifar.t7"), &ImportOptions::default()).unwrap();
    let saved = Saved::read(&original.checkpoint).unwrap();
    for name in ["all.safetensors", "all.pth"] {
        let again = import(&folder.join(name), &ImportOptions::default()).unwrap();
        assert_eq!(again.report.network.config, saved.config.encoder(), "{name}");
        assert!(again.report.network.renamed > 0);
        for tensor in again.checkpoint.tensors().filter(|tensor| tensor.name.starts_with("encoder.")) {
            assert!(original.checkpoint.tensor(&tensor.name).unwrap() == tensor, "{}", tensor.name);
        }
    }
    let trunk: Vec<(String, Tensor)> = Tensor::read_safetensors(folder.join("trunk.safetensors")).unwrap();
    assert_eq!(trunk.len(), 120);
    assert!(trunk.iter().any(|(name, _)| name == "layer2.0.downsample.1.running_mean"));
    assert!(trunk.iter().all(|(name, _)| !name.starts_with("fc.")));

    let memory = original.checkpoint.tensor("bank.memory").unwrap();
    let bytes = std::fs::read(folder.join("bank.npy")).unwrap();
    assert!(bytes.ends_with(&memory.bytes));
    let memory = memory.to_f32().unwrap();
    let stored = Tensor::read_safetensors(folder.join("bank.safetensors")).unwrap();
    assert_eq!((stored.len(), &*stored[0].0, to_vec_f32(&stored[0].1)), (1, "memory", memory.clone()));
    let table = std::fs::read_to_string(folder.join("bank.csv")).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines.len(), lines[0]), (21, "row,name,label,e0,e1,e2,e3,e4,e5"));
    for (line, row) in lines[1..].iter().zip(memory.chunks(6)) {
        let fields: Vec<&str> = line.split(',').collect();
        assert!(fields[1].starts_with("train/") && !fields[2].is_empty(), "{line}");
        let values: Vec<f32> = fields[3..].iter().map(|field| field.parse().unwrap()).collect();
        assert_eq!(values, row);
    }

    for (arguments, code, named) in [
        (&["--to", "npy", "--out", "bank.npy"][..], 2, "bank.npy exists"),
        (&["--to", "onnx", "--what", "bank", "--out", "x"], 2, "--what bank"),
        (&["--to", "npy", "--what", "encoder", "--out", "x"], 2, "write the bank"),
        (&["--to", "safetensors", "--layout", "published", "--out", "x"], 2, "--to pth"),
        (&["synthetic:21x32", "--to", "csv", "--out", "x"], 1, "20 images"),
        (&["--to", "csv", "--out", "x"], 2, "which images"),
    ] {
        let said = fails(folder, code, ["export", file].iter().chain(arguments));
        assert!(said.contains(named), "{said}");
        assert!(!folder.join("x").exists());
    }
}
