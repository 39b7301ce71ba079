//! `lemniscate train`: start a run, repeat one from its configuration, or go on with one.

use std::path::{Path, PathBuf};

use log::LevelFilter;

use super::fresh::{Asked, Opened, check_memory, checked};
use super::inputs::{absolute, bar, data_name, set_threads, stored_path};
use super::running::{self, Notes, Parts, Watching, write_manifest};
use super::settings::Settings;
use super::{eval, pretrained};
use crate::checkpoint::run_folder::{self, RunFolder};
use crate::config::{BankInit, Monitor, Preset, TrainConfig, name_of};
use crate::data::detect::{self, OpenOptions};
use crate::error::{Error, Result};
use crate::interop;
use crate::report::MetricsWriter;
use crate::train::step::Objective;
use crate::train::{self, start};

/// Flags of `lemniscate train`.
#[derive(clap::Args)]
// The last of a repeated flag counts, as in the published program: scripts append to a common list.
#[command(args_override_self = true)]
#[command(
    after_help = "Settings come from the preset, then --config, then flags. A resumed run takes them from its \
checkpoint.\n\nExamples:\n  lemniscate train photos/\n  lemniscate train cifar-10-batches-bin --nce-k 0\n  \
lemniscate train imagenet/ --arch resnet18 -j 32 --nce-k 4096 --nce-t 0.07 --lr 0.03 --nce-m 0.5 --low-dim 128 -b 256\n  \
lemniscate train --resume runs/photos-resnet18"
)]
pub struct Arguments {
    /// A folder of images, a list file, CIFAR or MNIST files, an archive, or `synthetic`
    #[arg(value_name = "DATA")]
    data: Option<PathBuf>,
    /// Repeat the run that this config.toml describes; flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Published settings to start from [default: chosen from the size of the images]
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Go on with a run folder or checkpoint, the published program's too
    #[arg(long, value_name = "RUN|FILE", conflicts_with_all = ["config", "preset", "pretrained"])]
    resume: Option<PathBuf>,
    /// Test the features of --resume with weighted kNN, and train nothing
    #[arg(short, long, visible_alias = "test-only", requires = "resume")]
    evaluate: bool,
    /// Start from the weights of a checkpoint (ours, PyTorch's, safetensors), with a new bank
    #[arg(long, value_name = "FILE")]
    pretrained: Option<PathBuf>,
    /// The run folder [default: a new one under runs/]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Resume although the names, sizes or labels of the images have changed
    #[arg(long, requires = "resume")]
    accept_changed_data: bool,
    /// Do not decode every image once before training
    #[arg(long)]
    skip_scan: bool,
    /// Start although the run seems not to fit into memory
    #[arg(long)]
    ignore_memory_estimate: bool,
    /// Say nothing but errors; train.log in the run folder has the rest
    #[arg(short, long)]
    quiet: bool,
    /// Say more: every checkpoint, and how long it took
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// How much train.log in the run folder keeps: off, error, warn, info, debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
    /// Also write event files for TensorBoard into the run folder (a resumed run that has some goes on with them)
    #[arg(long)]
    tensorboard: bool,
    #[command(flatten)]
    settings: Settings,
    /// Processes; one process uses the whole machine, so only 1 is accepted
    #[arg(long, hide_short_help = true, value_name = "N", help_heading = "Published flags without effect")]
    world_size: Option<usize>,
    /// Accepted, without effect
    #[arg(long, hide_short_help = true, help_heading = "Published flags without effect")]
    dist_url: Option<String>,
    /// Accepted, without effect
    #[arg(long, hide_short_help = true, help_heading = "Published flags without effect")]
    dist_backend: Option<String>,
}

impl Arguments {
    fn watching(&self) -> Watching {
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::Off,
            (_, true) => LevelFilter::Debug,
            _ => LevelFilter::Info,
        };
        Watching { verbosity, log_level: self.log_level, tensorboard: self.tensorboard }
    }
}

/// Trains, or tests with `--evaluate`.
pub fn run(arguments: Arguments) -> Result<()> {
    if let Some(n) = arguments.world_size.filter(|&n| n != 1) {
        return Err(Error::Usage {
            message: format!("--world-size {n}: training runs in one process"),
            hint: Some("one process uses every core; drop the flag".into()),
        });
    }
    match (&arguments.resume, arguments.evaluate) {
        (Some(path), true) => {
            eval::run(eval::Arguments::of(path, arguments.data.clone(), &arguments.settings)?)
        }
        (Some(path), false) => resume(path, &arguments),
        (None, _) => fresh(&arguments),
    }
}

fn fresh(arguments: &Arguments) -> Result<()> {
    let mut notes = Notes::new(arguments.quiet);
    // The index is written while the files are listed, before there is a run folder to keep it in.
    let index = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), "create a folder", e))?;
    let opened = Opened::open(Asked {
        data: arguments.data.as_deref(),
        otherwise: None,
        config: arguments.config.as_deref(),
        preset: arguments.preset,
        settings: &arguments.settings,
        index_dir: Some(index.path().to_owned()),
    })?;
    let weights = arguments.pretrained.as_deref().map(interop::find_trunk).transpose()?;
    let network = match &weights {
        Some(weights) => pretrained::network_of(weights)?,
        None => toml::Table::new(),
    };
    let (config, device) = opened.settings(network)?;
    notes.about_device(config.device);
    let splits = opened.splits;
    // What can be refused is refused before every image is decoded.
    if let Some(out) = &arguments.out {
        RunFolder::check_free(out)?;
    }
    check_memory(arguments.ignore_memory_estimate, &mut notes, &config, splits.train.len(), device)?;
    start::noise(&config, &splits.train)?;
    let encoder = match &weights {
        Some(weights) => pretrained::encoder_from(weights, &config, device, |message| notes.add(message))?,
        None => start::fresh_encoder(&config, device),
    };
    for note in &splits.notes {
        notes.add(note);
    }
    let splits = if arguments.skip_scan { splits } else { checked(splits, &config)? };
    let n = splits.train.len() - splits.train.quarantined().len();
    if splits.train.labels().is_none() && config.monitor != Monitor::None {
        notes.add(
            "no labels: kNN accuracy is left out; progress is how often a second view finds its own row first",
        );
    }
    config.check_last_batch(n)?;
    let noise = start::noise(&config, &splits.train)?;
    let identity = start::identify(&splits)?;
    let folder = match &arguments.out {
        Some(path) => RunFolder::create(path)?,
        None => new_folder(&config)?,
    };
    folder.write_text(run_folder::CONFIG, &config.to_toml()?)?;
    write_manifest(&folder, &splits, &identity)?;
    keep_index(index.path(), &folder)?;
    let embedding = bar(if config.bank_init == BankInit::Features { n } else { 0 }, "filling the bank");
    let state =
        start::fresh_state(&config, &splits, encoder, &mut |done| embedding.set_position(done as u64))?;
    embedding.finish_and_clear();
    let metrics = MetricsWriter::create(folder.file(run_folder::METRICS))?;
    let objective = Objective::new(&config, noise, splits.train.quarantined().to_vec());
    // A run that is killed before its first checkpoint can be resumed too.
    let mut parts = Parts { config, splits, identity, state, objective, folder, metrics, notes };
    let Parts { config, identity, state, folder, .. } = &mut parts;
    state.save(config, identity, |view| folder.save_last(view))?;
    running::go(parts, &arguments.watching())
}

fn resume(path: &Path, arguments: &Arguments) -> Result<()> {
    let mut notes = Notes::new(arguments.quiet);
    let (found, folder) = interop::find_to_resume(path)?;
    for note in &found.notes {
        notes.add(note);
    }
    let mut flags = arguments.settings.layer()?;
    let usage = |e: toml::ser::Error| Error::usage(e.to_string());
    if let Some(data) = &arguments.data {
        // A run of another program does not say how its images lay.
        let format = match (&found.saved.origin, arguments.settings.data_format()) {
            (Some(_), None) => detect::detect(data)?,
            (_, given) => given.unwrap_or(found.saved.config.data_format),
        };
        flags.insert("data".into(), toml::Value::try_from(stored_path(data, format)?).map_err(usage)?);
        if found.saved.origin.is_some() {
            flags.insert("data-format".into(), toml::Value::try_from(format).map_err(usage)?);
        }
    } else if found.saved.config.data.as_os_str().is_empty() {
        return Err(Error::Usage {
            message: format!("{} does not say which images it was trained on", path.display()),
            hint: Some("lemniscate train DATA --resume FILE".into()),
        });
    }
    if let Some(path) = &arguments.settings.test_data {
        flags.insert("test-data".into(), absolute(path)?.to_string_lossy().into_owned().into());
    }
    let config = start::resumed_config(&found, &flags)?;
    set_threads(config.threads)?;
    let device = config.device.resolve()?;
    notes.about_device(config.device);
    // Another folder was asked for, or the checkpoint lies in none: its run goes on there.
    let same = |folder: &RunFolder, out: &Path| out.canonicalize().ok() == folder.path().canonicalize().ok();
    let out = arguments.out.as_ref().filter(|out| folder.as_ref().is_none_or(|folder| !same(folder, out)));
    let (folder, moved) = match (folder, out) {
        (Some(folder), None) => (folder, false),
        (_, Some(out)) => (RunFolder::create(out)?, true),
        (None, None) => (new_folder(&config)?, true),
    };
    let options = OpenOptions {
        seed: config.seed,
        test_path: config.test_data.clone(),
        index_dir: (!moved).then(|| folder.path().to_owned()),
        accept_changes: arguments.accept_changed_data,
    };
    let splits = detect::open(&config.data, Some(config.data_format), &options)?;
    let splits = start::quarantine_again(splits, &found.saved.data)?;
    let identity = start::identify(&splits)?;
    start::check_data(&found, &identity, arguments.accept_changed_data)?;
    check_memory(arguments.ignore_memory_estimate, &mut notes, &config, splits.train.len(), device)?;
    let noise = start::noise(&config, &splits.train)?;
    let mut state = train::state::load(&found.checkpoint, &found.saved, &config, device)?;
    let measure =
        |config: &TrainConfig| (config.monitor, config.knn_k, config.test_data.clone(), config.data.clone());
    if moved || measure(&config) != measure(&found.saved.config) {
        // The best so far lies in another folder, or was measured in another way.
        (state.progress.best, state.progress.best_epoch) = (None, None);
    }
    let metrics_path = folder.file(run_folder::METRICS);
    let mut metrics = if moved {
        write_manifest(&folder, &splits, &identity)?;
        MetricsWriter::create(&metrics_path)?
    } else {
        MetricsWriter::resume(&metrics_path, state.progress.metrics_bytes)?
    };
    metrics.note(state.progress.epoch, state.progress.step, "resumed")?;
    folder.write_text(run_folder::CONFIG, &config.to_toml()?)?;
    let objective = Objective::new(&config, noise, splits.train.quarantined().to_vec());
    notes.resuming = Some(format!(
        "resuming {} in epoch {} after step {}",
        found.path().display(),
        state.progress.epoch + 1,
        state.progress.step
    ));
    let parts = Parts { config, splits, identity, state, objective, folder, metrics, notes };
    running::go(parts, &arguments.watching())
}

/// Moves the file index of the data into the run folder, where a resumed run checks it instead of listing anew.
fn keep_index(written: &Path, folder: &RunFolder) -> Result<()> {
    let io = |e| Error::io(written, "keep the file index", e);
    for entry in std::fs::read_dir(written).map_err(io)? {
        let entry = entry.map_err(io)?;
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).map_err(io)?;
    }
    Ok(())
}

/// A new folder under `runs/`, named after time, data and architecture.
fn new_folder(config: &TrainConfig) -> Result<RunFolder> {
    RunFolder::create_in(Path::new("runs"), &data_name(&config.data), &name_of(config.arch))
}
