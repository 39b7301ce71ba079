//! The two ways into a run: from nothing, or from a checkpoint that says how.

use std::path::Path;

use tch::Device;
use toml::Table;

use super::state::{DataIdentity, Saved, TrainState};
use crate::bank::{AliasTable, Bank, MemoryBank, Noise};
use crate::checkpoint::format::Checkpoint;
use crate::checkpoint::run_folder::{self, Loaded, RunFolder};
use crate::checkpoint::state::Progress;
use crate::config::{BankInit, ScheduleKind, TrainConfig};
use crate::data::dataset::{Dataset, Splits};
use crate::error::{Error, Result};
use crate::eval::features::{Input, embed_all};
use crate::model::Encoder;
use crate::objective::Normalizer;
use crate::optim::Sgd;

/// Settings that may differ from the checkpoint's when a run is resumed: they change no result but for rounding, or the
/// data's fingerprint says whether they do.
const FREE_ON_RESUME: [&str; 12] = [
    "data",
    "test-data",
    "workers",
    "read-timeout",
    "device",
    "bank-precision",
    "cuda-graphs",
    "monitor",
    "knn-k",
    "print-freq",
    "save-every",
    "max-steps",
];

/// A checkpoint that was found whole, and read.
pub struct Found {
    /// Tensors and metadata.
    pub checkpoint: Checkpoint,
    /// Settings, counters, data.
    pub saved: Saved,
    /// What a person should know of it: that a newer file was damaged, or what an import found.
    pub notes: Vec<String>,
}

impl Found {
    fn new(Loaded { checkpoint, warning }: Loaded) -> Result<Self> {
        Self::of(checkpoint, warning.into_iter().collect())
    }

    /// Reads what `checkpoint` says of itself.
    ///
    /// # Errors
    /// [`Error::Format`] if an entry is missing or malformed.
    pub fn of(checkpoint: Checkpoint, notes: Vec<String>) -> Result<Self> {
        Ok(Self { saved: Saved::read(&checkpoint)?, checkpoint, notes })
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }
}

/// Opens `path` to read from: a checkpoint, or a run folder whose newest undamaged checkpoint is taken.
///
/// # Errors
/// If there is none, or none that is undamaged.
pub fn find(path: &Path) -> Result<Found> {
    let loaded = if path.is_dir() {
        run_folder::load_latest(path)?
    } else {
        Loaded { checkpoint: Checkpoint::open(path)?, warning: None }
    };
    Found::new(loaded)
}

/// Opens `path` to go on with: also locks the run folder, where the checkpoint lies in one.
///
/// # Errors
/// As [`find`], and if another process is training in the folder.
pub fn find_to_resume(path: &Path) -> Result<(Found, Option<RunFolder>)> {
    if path.is_dir() {
        let mut folder = RunFolder::open(path)?;
        let found = Found::new(folder.load_latest()?)?;
        return Ok((found, Some(folder)));
    }
    let found = find(path)?;
    // A bare file name has an empty parent, which names no folder.
    let parent =
        path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let parent = parent.filter(|parent| parent.join(run_folder::CONFIG).is_file());
    let Some(mut folder) = parent.map(RunFolder::open).transpose()? else { return Ok((found, None)) };
    if let Ok(newest) = folder.load_latest() {
        let newest = Progress::load(&newest.checkpoint)?.step;
        if newest > found.saved.progress.step {
            return Err(Error::Resume {
                path: path.to_owned(),
                reason: format!(
                    "its run has gone on to step {newest}, and going back to step {} would overwrite that",
                    found.saved.progress.step
                ),
                hint: Some("copy the checkpoint elsewhere and resume the copy with --out OTHER".into()),
            });
        }
    }
    Ok((found, Some(folder)))
}

/// The settings of a resumed run: the checkpoint's, with those of `flags` that may change.
///
/// # Errors
/// [`Error::Resume`] naming the first flag that contradicts the checkpoint.
pub fn resumed_config(found: &Found, flags: &Table) -> Result<TrainConfig> {
    let refuse = |reason: String, hint: &str| {
        Err(Error::Resume { path: found.path().to_owned(), reason, hint: Some(hint.to_owned()) })
    };
    let was = Table::try_from(&found.saved.config).map_err(|e| Error::usage(e.to_string()))?;
    let mut table = was.clone();
    // Of an imported run only what its file stated is a fact.
    let guessed =
        |key: &String| found.saved.origin.as_ref().is_some_and(|origin| !origin.stated.contains(key));
    for (key, value) in flags {
        let unchanged = was.get(key) == Some(value);
        // More epochs contradict nothing unless the learning rate already fell towards the old end.
        let longer = key == "epochs" && found.saved.config.schedule != ScheduleKind::Cosine;
        if !(unchanged || longer || guessed(key) || FREE_ON_RESUME.contains(&key.as_str())) {
            let before = was.get(key).map_or("not set".to_owned(), |v| v.to_string());
            return refuse(
                format!("it was trained with {key} = {before}, not {value}"),
                &format!("drop --{key}; a resumed run takes its settings from the checkpoint"),
            );
        }
        table.insert(key.clone(), value.clone());
    }
    // A step limit ended the run that was saved; it does not end the one that goes on.
    if !flags.contains_key("max-steps") {
        table.remove("max-steps");
    }
    let mut config: TrainConfig =
        table.try_into().map_err(|e: toml::de::Error| Error::usage(e.to_string().trim().to_owned()))?;
    config.augmentation.size = config.image_size;
    config.validate()?;
    let done = found.saved.progress.epoch;
    if config.epochs < done {
        return refuse(
            format!("{done} epochs are finished, more than --epochs {}", config.epochs),
            "drop --epochs",
        );
    }
    Ok(config)
}

/// Refuses to go on with other images than the checkpoint's, unless `accept_changed` says that this is meant.
///
/// # Errors
/// [`Error::Resume`]; a different number of images is refused in any case, since rows would no longer fit.
pub fn check_data(found: &Found, now: &DataIdentity, accept_changed: bool) -> Result<()> {
    let was = &found.saved.data;
    let refuse = |reason: String, hint: Option<&str>| {
        Err(Error::Resume { path: found.path().to_owned(), reason, hint: hint.map(str::to_owned) })
    };
    if was.images != now.images {
        return refuse(
            format!(
                "it was trained on {} images, this data has {}; its bank has one row each",
                was.images, now.images
            ),
            Some("point at the data of the run, or start a new run"),
        );
    }
    if !was.is_of(now) && !accept_changed {
        return refuse(
            "the data has changed since (names, sizes or labels)".into(),
            Some("--accept-changed-data goes on all the same"),
        );
    }
    Ok(())
}

/// The splits of a run with the quarantine that its checkpoint remembers.
///
/// # Errors
/// If a remembered row does not exist in these images.
pub fn quarantine_again(splits: Splits, saved: &DataIdentity) -> Result<Splits> {
    let again =
        |split: Dataset, rows: &[u32]| if rows.is_empty() { Ok(split) } else { split.with_quarantine(rows) };
    Ok(Splits {
        train: again(splits.train, &saved.quarantined)?,
        test: splits.test.map(|test| again(test, &saved.test_quarantined)).transpose()?,
        ..splits
    })
}

/// What the images are, for checkpoints and manifests.
///
/// # Errors
/// If the data has to be read for its fingerprint and cannot be.
pub fn identify(splits: &Splits) -> Result<DataIdentity> {
    let train = &splits.train;
    Ok(DataIdentity {
        images: train.len(),
        fingerprint: Some(train.fingerprint()?),
        quarantined: train.quarantined().to_vec(),
        test_quarantined: splits.test.as_ref().map_or_else(Vec::new, |test| test.quarantined().to_vec()),
        classes: train.classes().to_vec(),
    })
}

/// The state before the first step: a new encoder and a new bank.
///
/// `encoder` replaces the random start where weights are given. `progress` hears how many images have been embedded
/// for `--bank-init features`.
///
/// # Errors
/// An image that cannot be read, while features for the bank are computed.
pub fn fresh_state(
    config: &TrainConfig,
    splits: &Splits,
    encoder: Encoder,
    progress: &mut dyn FnMut(usize),
) -> Result<TrainState> {
    let train = &splits.train;
    let mut bank = MemoryBank::random_in(config.bank_precision, train.len(), config.embed_dim, config.seed);
    if config.bank_init == BankInit::Features {
        let input = Input::new(config.family, config.image_size, config.workers)
            .with_read_timeout(config.read_timeout());
        let (indices, features) = embed_all(&encoder, train, &input, progress)?;
        for (&index, row) in indices.iter().zip(features.chunks_exact(config.embed_dim)) {
            bank.set_row(index as usize, row);
        }
    }
    let normalizer = Normalizer::new(config.normalizer.0, train.len(), config.embed_dim, config.temperature);
    let sgd = Sgd::new(encoder.parameters(), config.momentum, config.weight_decay);
    let progress = Progress {
        epoch: config.start_epoch,
        seed: config.seed,
        ln_z: normalizer.ln_z,
        ..Progress::default()
    };
    let bank = Bank::on(bank, encoder.device());
    Ok(TrainState::new(encoder, sgd, bank, normalizer, progress))
}

/// A new encoder for `config` on `device`.
pub fn fresh_encoder(config: &TrainConfig, device: Device) -> Encoder {
    Encoder::new(config.encoder(), config.seed, device).with_precision(config.precision.resolve(device))
}

/// The noise distribution of `config` over the rows of `train`: uniform, or the weights of a file; rows of
/// quarantined images are never drawn.
///
/// # Errors
/// If the weights file is unreadable, has another number of lines than there are images, or a line that is not a
/// non-negative number.
pub fn noise(config: &TrainConfig, train: &Dataset) -> Result<Noise> {
    let Some(path) = &config.noise_weights else {
        return Noise::uniform_except(train.len() as u32, train.quarantined());
    };
    let mut weights = read_weights(path, train.len())?;
    for &row in train.quarantined() {
        weights[row as usize] = 0.0;
    }
    Ok(Noise::Weighted(AliasTable::new(&weights)?))
}

fn read_weights(path: &Path, n: usize) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read the noise weights", e))?;
    let weights: Vec<f64> = text
        .lines()
        .enumerate()
        .map(|(i, line)| match line.trim().parse::<f64>() {
            Ok(weight) if weight.is_finite() && weight >= 0.0 => Ok(weight),
            _ => Err(Error::format(
                path,
                "a non-negative number on each line",
                format!("`{line}` on line {}", i + 1),
            )),
        })
        .collect::<Result<_>>()?;
    if weights.len() != n {
        return Err(Error::format(
            path,
            format!("{n} weights, one for each training image"),
            format!("{}", weights.len()),
        ));
    }
    Ok(weights)
}
