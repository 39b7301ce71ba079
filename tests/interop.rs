//! Other programs' files through the library and the command line, against what PyTorch computed from them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{fails, metrics, succeeds};
use lemniscate::bank::{Negatives, Noise};
use lemniscate::checkpoint::format::Checkpoint;
use lemniscate::interop::import::{Accept, ImportOptions, Imported, import};
use lemniscate::interop::inspect::inspect;
use lemniscate::interop::recognise::{Hints, recognise};
use lemniscate::interop::torch::TorchFile;
use lemniscate::model::{Encoder, Head, Layer, Mode, to_vec_f32};
use lemniscate::objective::{LossAndGradient, NormalizerMode, nce};
use lemniscate::optim::lr;
use lemniscate::train::state::{Saved, TrainState, load, load_encoder};
use tch::{Device, Tensor};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch").join(name)
}

fn options(accept: Accept, head: Option<Head>) -> ImportOptions {
    ImportOptions { accept, hints: Hints { prefix: None, head } }
}

fn imported(name: &str, options: &ImportOptions) -> (Imported, Saved) {
    let imported = import(&fixture(name), options).unwrap();
    let saved = Saved::read(&imported.checkpoint).unwrap();
    (imported, saved)
}

fn expected() -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(fixture("expected.safetensors")).unwrap().into_iter().collect()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[test]
fn imported_networks_compute_what_they_computed_in_pytorch() {
    let expected = expected();
    let none = Some(Head::None);
    for (name, file, options) in [
        ("imagenet", "imagenet.pth.tar", options(Accept::Complete, None)),
        ("cifar", "cifar.t7", options(Accept::Complete, None)),
        ("moco", "moco.pth", options(Accept::Complete, none)),
        ("moco", "moco.pth", options(Accept::Trunk, None)),
        ("trunk", "trunk.safetensors", options(Accept::Complete, None)),
    ] {
        let (imported, saved) = imported(file, &options);
        let encoder = load_encoder(&imported.checkpoint, &saved.config, Device::Cpu).unwrap();
        let features =
            encoder.features(&expected[&format!("{name}.pixels")], &[Layer::Pooled, Layer::Embedding]);
        // Made-up weights lead to pooled features of up to ten million, whose last bit is worth one.
        let pooled = &expected[&format!("{name}.pooled")];
        let largest = pooled.abs().max().double_value(&[]);
        let difference = largest_difference(&features[0], pooled) / largest;
        assert!(difference < 1e-6, "{file}: pooled features differ by {difference} of the largest");
        if saved.config.head == Head::Linear {
            let difference = largest_difference(&features[1], &expected[&format!("{name}.embedding")]);
            assert!(difference < 1e-5, "{file}: embeddings differ by {difference}");
        } else {
            let unit = features[1].square().sum_dim_intlist([1].as_slice(), false, None);
            assert_eq!(features[1].size(), [2, 16], "{file}");
            assert!(to_vec_f32(&unit).iter().all(|square| (square - 1.0).abs() < 1e-5), "{file}");
        }
    }
}

#[test]
fn the_published_imagenet_checkpoint_becomes_a_whole_state() {
    let (imported, saved) = imported("imagenet.pth.tar", &ImportOptions::default());
    let config = &saved.config;
    assert_eq!((config.temperature, config.bank_momentum, config.n_negatives), (0.07, 0.5, 8));
    assert_eq!((config.lr, config.momentum, config.weight_decay), (0.03, 0.9, 1e-4));
    assert_eq!((saved.progress.epoch, saved.progress.best), (131, Some(41.25)));
    assert_eq!(saved.progress.ln_z, Some(44.5f64.ln()));
    assert_eq!(config.normalizer.0, NormalizerMode::FirstBatch);
    assert_eq!((imported.report.momentum, imported.report.network.missing_counters.len()), (62, 20));

    // Each number is the file's, bit for bit, and in its place.
    let file = TorchFile::open(&fixture("imagenet.pth.tar")).unwrap();
    let theirs = file.read().unwrap();
    let entry = |key: &str| theirs.pickle().entry(theirs.root(), key).unwrap();
    let weights = theirs.named_tensors(entry("state_dict")).unwrap();
    for (name, tensor) in &weights {
        let ours = imported.checkpoint.tensor(&name.replace("module.", "encoder.")).unwrap();
        assert!(*ours.bytes == *tensor.bytes(), "{name}");
    }
    let memory = theirs.named_tensors(entry("lemniscate")).unwrap().remove(1);
    assert_eq!(memory.0, "memory");
    assert!(*imported.checkpoint.tensor("bank.memory").unwrap().bytes == *memory.1.bytes());
    let buffers = theirs.pickle().entry(entry("optimizer"), "state").unwrap();
    let buffers = theirs.pickle().entries(buffers).unwrap().into_owned();
    let parameters = weights.iter().filter(|(name, _)| !name.contains("running"));
    for ((name, _), (_, state)) in parameters.zip(buffers) {
        let buffer = theirs.pickle().entry(state, "momentum_buffer").unwrap();
        let buffer = theirs.tensor(buffer).unwrap().unwrap();
        let ours = imported.checkpoint.tensor(&name.replace("module.", "momentum.")).unwrap();
        assert!(*ours.bytes == *buffer.bytes(), "{name}");
    }
    let state = load(&imported.checkpoint, &saved, config, Device::Cpu).unwrap();
    assert_eq!((state.bank.len(), state.bank.dim()), (20, 6));
}

#[test]
fn the_published_cifar_checkpoint_has_its_own_counting() {
    let (imported, saved) = imported("cifar.t7", &ImportOptions::default());
    assert_eq!((saved.config.temperature, saved.config.n_negatives), (0.1, 0));
    // It stores the index of the last epoch, not their number.
    assert_eq!((saved.progress.epoch, saved.progress.best), (10, Some(71.5)));
    assert!(imported.report.notes.iter().any(|note| note.contains("no momentum")), "{}", imported.report);
}

#[test]
fn a_published_run_is_tested_resumed_and_started_from() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = fixture("imagenet.pth.tar");
    let file = file.to_str().unwrap();
    let data = "synthetic:20x32";
    let said = succeeds(folder, ["eval", file, data, "--bank", "both", "-j", "1"]);
    assert!(said.contains("131 epochs finished") && said.contains("live"), "{said}");

    let small = ["--image-size", "32", "--batch-size", "8", "-j", "1", "--threads", "1", "--knn-k", "5"];
    let resume = |out: &str, more: &[&str]| -> Vec<String> {
        ["train", data, "--resume", file, "--out", out]
            .iter()
            .chain(&small)
            .chain(more)
            .map(|s| (*s).to_owned())
            .collect()
    };
    succeeds(folder, resume("whole", &["--epochs", "133"]));
    let steps = metrics(&folder.join("whole"), "step");
    assert_eq!(steps.len(), 6);
    // Epoch 132 of the published schedule, and the Z of the file.
    assert!(steps.iter().all(|step| step["lr"].as_f64() == Some(0.003)));
    assert!(steps.iter().all(|step| (step["ln_z"].as_f64().unwrap() - 44.5f64.ln()).abs() < 1e-12));
    // In two parts it is the same run.
    succeeds(folder, resume("parts", &["--epochs", "133", "--max-steps", "134"]));
    succeeds(folder, ["train", "--resume", "parts"]);
    let same = |run: &str| {
        let open = |run: &str| Checkpoint::open(folder.join(run).join("last.ckpt")).unwrap();
        let (whole, other) = (open("whole"), open(run));
        assert!(whole.tensors().eq(other.tensors()), "{run}");
    };
    same("parts");

    // The same through a checkpoint of ours.
    succeeds(folder, ["import", file, "--out", "mine.ckpt"]);
    let said = fails(folder, 2, ["import", file, "--out", "mine.ckpt"]);
    assert!(said.contains("mine.ckpt exists"), "{said}");
    let args = resume("through", &["--epochs", "133"])
        .into_iter()
        .map(|a| if a == file { "mine.ckpt".into() } else { a });
    succeeds(folder, args);
    same("through");

    for (arguments, named) in [
        (resume("x", &["--nce-t", "0.1"]), "temperature = 0.07"),
        (resume("x", &["--arch", "resnet50"]), "arch = \"resnet18\""),
        (
            vec!["train".into(), "synthetic:21x32".into(), "--resume".into(), file.into()],
            "trained on 20 images",
        ),
    ] {
        let said = fails(folder, 1, arguments);
        assert!(said.contains(named), "{said}");
    }
    let said = fails(folder, 2, ["train", "--resume", file]);
    assert!(said.contains("which images"), "{said}");
}

#[test]
fn weights_alone_start_a_run_but_resume_none() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let moco = fixture("moco.pth");
    let moco = moco.to_str().unwrap();
    let said = fails(folder, 1, ["eval", moco, "synthetic:20x32"]);
    assert!(said.contains("encoder_q.fc.0.weight") && said.contains("--head none"), "{said}");
    succeeds(folder, ["import", moco, "--head", "none", "--out", "moco.ckpt"]);
    succeeds(folder, ["eval", "moco.ckpt", "synthetic:20x32", "-j", "1"]);
    let said = fails(folder, 1, ["train", "synthetic:20x32", "--resume", "moco.ckpt"]);
    assert!(said.contains("no memory bank"), "{said}");

    let small =
        ["--image-size", "32", "-b", "8", "--embed-dim", "6", "--nce-k", "4", "--epochs", "1", "-j", "1"];
    let start = |file: &str, out: &str| {
        let mut args = vec!["train", "synthetic:20x32", "--pretrained", file, "--out", out];
        args.extend(small);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    // Network and width are the file's; the head is new, or taken where it fits.
    for file in [moco.to_owned(), "moco.ckpt".into(), fixture("imagenet.pth.tar").display().to_string()] {
        let out = format!("from{}", file.len());
        succeeds(folder, start(&file, &out));
        let config: toml::Table =
            std::fs::read_to_string(folder.join(&out).join("config.toml")).unwrap().parse().unwrap();
        assert_eq!((config["width"].as_integer(), config["family"].as_str()), (Some(2), Some("imagenet")));
    }
    let mut contradicting = start(moco, "x");
    contradicting.extend(["--arch".into(), "resnet34".into()]);
    let said = fails(folder, 2, contradicting);
    assert!(said.contains("holds a resnet18") && said.contains("drop --arch"), "{said}");
}

#[test]
fn what_is_not_ours_is_refused_with_what_it_is() {
    let reason = |tensors: &[(&str, &[usize])]| {
        recognise(tensors, &Hints::default()).map(|found| found.0).unwrap_err()
    };
    let conv = |n: usize| [n, n, 3, 3];
    // The CIFAR ResNet-20: three stages of three blocks.
    let names: Vec<String> =
        (1..=3).flat_map(|s| (0..3).map(move |b| format!("module.layer{s}.{b}.conv1.weight"))).collect();
    let sixteen = conv(16);
    let mut tensors: Vec<(&str, &[usize])> = vec![("module.conv1.weight", &[16, 3, 3, 3])];
    tensors.extend(names.iter().map(|name| (name.as_str(), &sixteen[..])));
    let said = reason(&tensors);
    assert!(said.contains("3 stages with 3, 3, 3 basic blocks"), "{said}");
    let said = reason(&[("conv1.0.weight", &[32, 3, 3, 3]), ("layer1.0.conv1.weight", &[64, 64, 1, 1])]);
    assert!(said.contains("deep stem"), "{said}");
    assert!(reason(&[("features.0.weight", &[64, 3, 11, 11])]).contains("no residual network"));
    assert!(reason(&[]).contains("no weights"));
    let encoder = Encoder::new(
        lemniscate::model::EncoderConfig {
            width: 4,
            ..lemniscate::model::EncoderConfig::new(
                lemniscate::model::Arch::ResNet50,
                lemniscate::model::Family::ImageNet,
            )
        },
        0,
        Device::Cpu,
    );
    let shapes: Vec<(String, Vec<usize>)> = encoder
        .parameters()
        .state()
        .map(|e| (format!("encoder.{}", e.name), e.tensor.size().iter().map(|&n| n as usize).collect()))
        .collect();
    let mut tensors: Vec<(&str, &[usize])> = shapes.iter().map(|(n, s)| (n.as_str(), &s[..])).collect();
    let (found, _) = recognise(&tensors, &Hints::default()).unwrap();
    assert!(found.complete() && found.prefix == "encoder." && found.renamed == 0);
    let wrong = Hints { prefix: Some("backbone".into()), head: None };
    assert!(recognise(&tensors, &wrong).map(|found| found.0).unwrap_err().contains("but under `encoder.`"));
    tensors.retain(|(name, _)| *name != "encoder.layer3.5.bn2.bias");
    assert_eq!(recognise(&tensors, &Hints::default()).unwrap().0.missing, ["layer3.5.bn2.bias"]);
    let grouped = [128, 4, 3, 3];
    for tensor in &mut tensors {
        if tensor.0 == "encoder.layer4.0.conv2.weight" {
            tensor.1 = &grouped;
        }
    }
    assert!(
        recognise(&tensors, &Hints::default())
            .map(|found| found.0)
            .unwrap_err()
            .contains("wide or a grouped network")
    );
    assert!(
        encoder.forward(&Tensor::zeros([1, 3, 32, 32], (tch::Kind::Float, Device::Cpu)), Mode::Eval).size()
            [1]
            == 128
    );
}

#[test]
fn inspection_shows_the_tree_and_what_an_import_would_make_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = fixture("imagenet.pth.tar");
    let said = succeeds(folder.path(), ["inspect", file.to_str().unwrap()]);
    for part in [
        "PyTorch legacy stream, version 1001",
        "module.layer4.1.bn2.running_var",
        "lib.NCEAverage.NCEAverage",
        "memory  float32 [20, 6]",
        "epoch       131",
        "best_prec1  0.4125",
        "resnet18 (imagenet stem, width 2, 6-d)",
        "102 of 102 tensors matched, under `module.`",
    ] {
        assert!(said.contains(part), "{part}:\n{said}");
    }
    let json = succeeds(folder.path(), ["inspect", fixture("moco.pth").to_str().unwrap(), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["import"]["Ok"]["network"]["prefix"], "module.encoder_q.");
    assert_eq!(json["content"]["kind"], "tree");
    let said = fails(folder.path(), 1, ["inspect", fixture("script.pt").to_str().unwrap()]);
    assert!(said.contains("TorchScript"), "{said}");
}

#[test]
fn an_imported_run_goes_on_as_in_pytorch() {
    let expected = expected();
    let given = |name: &str| &expected[&format!("continued.{name}")];
    let (imported, saved) = imported("imagenet.pth.tar", &ImportOptions::default());
    let config = &saved.config;
    let TrainState { mut encoder, mut sgd, bank, normalizer, .. } =
        load(&imported.checkpoint, &saved, config, Device::Cpu).unwrap();
    let mut bank = bank.on_host().into_owned();
    let rate = lr(config.lr, &config.lr_schedule(), 0.0, 200.0, saved.progress.epoch as f64);
    let integers = |name: String| Vec::<i64>::try_from(given(&name).flatten(0, -1)).unwrap();
    let rows = |name: String| integers(name).into_iter().map(|i| i as u32).collect::<Vec<_>>();
    for (step, expected) in to_vec_f32(given("losses")).into_iter().enumerate() {
        let indices = rows(format!("indices.{step}"));
        let negatives = rows(format!("negatives.{step}"));
        let embedded = encoder.forward(given(&format!("pixels.{step}")), Mode::Train);
        let features = to_vec_f32(&embedded);
        let noise = Noise::Uniform { n: bank.len() as u32 };
        let LossAndGradient { loss, gradient, .. } = nce::loss(
            &features,
            &bank,
            &indices,
            &Negatives::Given(&negatives),
            config.temperature,
            normalizer.ln_z.unwrap(),
            &noise,
        );
        let difference = (loss - f64::from(expected)).abs() / f64::from(expected);
        assert!(difference < 1e-5, "step {step}: loss {loss}, PyTorch {expected}");
        let gradients = encoder.backward(&embedded, &Tensor::from_slice(&gradient).view_as(&embedded));
        bank.update(&features, &indices, config.bank_momentum);
        sgd.step(encoder.parameters_mut(), gradients, rate);
    }
    let memory = Tensor::from_slice(&bank.rows()).view_as(given("memory"));
    let difference = largest_difference(&memory, given("memory"));
    assert!(difference < 1e-5, "the bank differs by {difference}");
    let difference = largest_difference(encoder.parameters().get("fc.weight").unwrap(), given("fc"));
    assert!(difference < 1e-5, "the head differs by {difference}");
}

#[test]
fn damaged_checkpoints_cost_an_error_at_most() {
    use rand::RngExt;
    let mut random = lemniscate::rng::stream(5, lemniscate::rng::Purpose::Test, 0, 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut taken = 0;
    for name in ["imagenet.pth.tar", "moco.pth", "trunk.safetensors"] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        // Numbers are most of a file; what describes them is at its ends.
        let ends = 6_000.min(bytes.len() / 2);
        for _ in 0..250 {
            let mut bad = bytes.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..ends);
                let at = if random.random() { at } else { bytes.len() - 1 - at };
                bad[at] = match random.random_range(0..3) {
                    0 => random.random_range(0..=255),
                    1 => 0xff,
                    _ => bad[at] ^ 1 << random.random_range(0..8),
                };
            }
            std::fs::write(file.path(), bad).unwrap();
            let _ = inspect(file.path(), Hints::default()).map(|found| found.tree());
            taken += usize::from(import(file.path(), &options(Accept::Part, None)).is_ok());
        }
    }
    // Damage to a number leaves a checkpoint, damage to its description none.
    assert!((1..750).contains(&taken), "{taken} of 750");
}

#[test]
fn a_file_that_refers_to_itself_without_end_is_cut_short() {
    // Lists of 30,000 references to the next list, forty deep, in a legacy stream: three small pickles before it.
    let mut pickle = b"\x80\x02]q\x00".to_vec();
    for level in 1..40u8 {
        pickle.extend(b"](");
        for _ in 0..30_000 {
            pickle.extend([b'h', level - 1]);
        }
        pickle.extend([b'e', b'q', level]);
    }
    pickle.push(b'.');
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [&magic[..], &pickle, b"\x80\x02]q\x00."].concat()).unwrap();
    let started = std::time::Instant::now();
    let tree = inspect(file.path(), Hints::default()).unwrap().tree();
    assert!(tree.contains("not shown") && tree.len() < 50_000_000, "{}", tree.len());
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}
