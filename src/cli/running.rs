//! A run under way: those who watch it, and what it leaves behind when it ends.

use std::path::Path;

use log::{Level, LevelFilter};

use super::inputs::data_name;
use super::{note, say};
use crate::atomic;
use crate::bank::Bank;
use crate::checkpoint::run_folder::{self, RunFolder};
use crate::checkpoint::signals::Interrupt;
use crate::checkpoint::state::Progress;
use crate::config::{ObjectiveKind, TrainConfig, name_of};
use crate::data::dataset::{Dataset, Splits};
use crate::error::{Error, Result};
use crate::model::device::{DeviceChoice, device_name};
use crate::report::log_file::{LogFile, LogReporter};
use crate::report::machine::Machine;
use crate::report::retrievals::RetrievalsWriter;
use crate::report::tensorboard::EventWriter;
use crate::report::{MetricsWriter, Reporter, Tee, curves, metrics, progress};
use crate::train::images::ResidentImages;
use crate::train::replay::Replay;
use crate::train::state::{DataIdentity, TrainState};
use crate::train::step::Objective;
use crate::train::watch::{Facts, Watch};
use crate::train::{self, Session, Summary};

/// A session but for those who watch it.
pub struct Parts {
    pub config: TrainConfig,
    pub splits: Splits,
    pub identity: DataIdentity,
    pub state: TrainState,
    pub objective: Objective,
    pub folder: RunFolder,
    pub metrics: MetricsWriter,
    pub notes: Notes,
}

/// How a run is watched.
pub struct Watching {
    /// What the standard streams hear; nothing at all when off.
    pub verbosity: LevelFilter,
    /// What `train.log` keeps.
    pub log_level: LevelFilter,
    /// Whether event files are begun.
    pub tensorboard: bool,
}

/// What is said before there is a folder with a log; said at once, and logged when there is one.
pub struct Notes {
    quiet: bool,
    texts: Vec<String>,
    /// Where a resumed run goes on.
    pub resuming: Option<String>,
}

impl Notes {
    pub fn new(quiet: bool) -> Self {
        Notes { quiet, texts: Vec::new(), resuming: None }
    }

    pub fn add(&mut self, text: &str) {
        if !self.quiet {
            note(text);
        }
        self.log_only(text);
    }

    /// What keeps `auto` from a GPU goes into the log.
    pub fn about_device(&mut self, choice: DeviceChoice) {
        if let Some(reason) = choice.why_cpu() {
            self.log_only(&reason);
        }
    }

    /// For `train.log` alone.
    pub fn log_only(&mut self, text: &str) {
        self.texts.push(text.to_owned());
    }
}

/// Trains to the end, and draws the curves, whatever that end is.
///
/// # Errors
/// Those of [`train::run`], and files that cannot be written.
pub fn go(parts: Parts, watching: &Watching) -> Result<()> {
    let Parts { config, splits, identity, state, objective, folder, metrics, notes } = parts;
    let path = folder.path().to_owned();
    let device = state.encoder.device();
    let log = LogFile::open(&folder.file(run_folder::LOG), watching.log_level)?;
    let machine = Machine {
        from_step: state.progress.step,
        device: device_name(device),
        precision: state.encoder.precision().to_string(),
        threads: rayon::current_num_threads(),
        workers: config.workers,
        ..Machine::here()
    };
    remember_machine(&folder, &machine)?;
    notes.texts.iter().for_each(|text| log.write(Level::Info, text));
    if let Bank::Device(bank) = &state.bank
        && let Some(reason) = bank.why_no_kernels()
    {
        log.write(Level::Info, &format!("in tensor operations, without our CUDA kernels: {reason}"));
    }
    let quiet = watching.verbosity == LevelFilter::Off;
    let tell = |text: &str| {
        log.write(Level::Info, text);
        if quiet { Ok(()) } else { say(text) }
    };
    if let Some(text) = &notes.resuming {
        tell(text)?;
    }
    tell(&describe(&config, &splits, &path))?;
    log.write(Level::Info, &format!("machine: {}", machine.describe()));
    let mut reporters: Vec<Box<dyn Reporter>> =
        vec![Box::new(LogReporter::new(log.clone(), config.print_freq))];
    if !quiet {
        reporters.push(progress::for_standard_streams(config.print_freq, watching.verbosity));
    }
    let mut reporter = Tee(reporters);
    let interrupt = Interrupt::install()?;
    let event_folder = folder.file(run_folder::TENSORBOARD);
    let events = (watching.tensorboard || event_folder.is_dir())
        .then(|| EventWriter::resume(&event_folder, &state.progress, &folder.file(run_folder::METRICS)))
        .transpose()?;
    let said = metrics::said(folder.file(run_folder::METRICS));
    let resident = ResidentImages::of_run(&splits.train, &config.augmentation, device)?;
    if resident.is_some() {
        log.write(Level::Info, "the training images stay on the device");
    }
    let replay = Replay::of_run(&config, &objective, &state).unwrap_or_else(|why| {
        log.write(Level::Info, &format!("steps are not replayed as CUDA graphs: {why}"));
        None
    });
    let session = Session {
        retrievals: RetrievalsWriter::open(folder.file(run_folder::RETRIEVALS), state.progress.epoch)?,
        events,
        watch: Watch::new(config.clone(), Facts::of(&splits, device), said),
        config,
        splits,
        resident,
        replay,
        identity,
        state,
        objective,
        folder,
        metrics,
        starting: true,
        reporter: &mut reporter,
        interrupt,
    };
    let outcome = train::run(session);
    drop(reporter);
    let drawn = write_curves(&path);
    let ended = outcome.inspect_err(|error| {
        let level = if matches!(error, Error::Interrupted { .. }) { Level::Info } else { Level::Error };
        log.write(level, &error.to_string());
    });
    let Summary { steps, last, best } = ended.map_err(|cause| stopped(&path, cause))?;
    drawn?;
    tell(&format!("done: {steps} steps; {}", path.display()))?;
    if let (Some(last), Some((best, epoch))) = (last, best) {
        tell(&format!(
            "monitor: last {last:.2} %, best {best:.2} % after epoch {} (best.ckpt is chosen by this monitor)",
            epoch + 1
        ))?;
    }
    if !quiet {
        say(format_args!("test it:  lemniscate eval {0}\nsee it:   lemniscate report {0}", path.display()))?;
    }
    Ok(())
}

/// The end of a run by something outside of it, with what the folder says of what is safe.
fn stopped(run: &Path, cause: Error) -> Error {
    if let Error::Interrupted { .. } = cause {
        return cause;
    }
    let saved = run_folder::load_latest(run).and_then(|latest| Progress::load(&latest.checkpoint));
    let kept = match saved {
        Ok(progress) => format!(
            "everything up to step {} is saved; once the cause is mended, go on with: lemniscate train --resume {}",
            progress.step,
            run.display()
        ),
        Err(error) => format!("no checkpoint of this run can be read any longer ({error})"),
    };
    Error::Stopped { cause: Box::new(cause), kept }
}

fn describe(config: &TrainConfig, splits: &Splits, run: &Path) -> String {
    let test = splits.test.as_ref().map_or("no test split".into(), |t| format!("{} test", t.len()));
    let objective = match config.objective {
        ObjectiveKind::Softmax => "full softmax".to_owned(),
        kind => format!("{} with {} negatives", name_of(kind), config.n_negatives),
    };
    format!(
        "{}: {} train, {test}, {} classes ({})\n{} ({}), {} px, {}-d; {objective}, T = {}; {} on {}\nrun folder: {}",
        config.data.display(),
        splits.train.len(),
        splits.train.n_classes(),
        splits.format,
        name_of(config.arch),
        name_of(config.family),
        config.image_size,
        config.embed_dim,
        config.temperature,
        name_of(config.precision),
        config.device,
        run.display()
    )
}

/// What the data was, for people and tools.
///
/// # Errors
/// If it cannot be written.
pub fn write_manifest(folder: &RunFolder, splits: &Splits, identity: &DataIdentity) -> Result<()> {
    let names = |split: &Dataset| -> Vec<String> {
        split.quarantined().iter().map(|&i| split.name(i as usize).into_owned()).collect()
    };
    let manifest = serde_json::json!({
        "root": splits.root.to_string_lossy(),
        "format": splits.format.to_string(),
        "fingerprint": identity.fingerprint,
        "classes": identity.classes,
        "train": { "images": splits.train.len(), "quarantined": names(&splits.train) },
        "test": splits.test.as_ref().map(|t| serde_json::json!({ "images": t.len(), "quarantined": names(t) })),
    });
    folder.write_text(run_folder::MANIFEST, &format!("{manifest:#}\n"))
}

/// Adds `machine` to the manifest, unless the run was on one like it already.
fn remember_machine(folder: &RunFolder, machine: &Machine) -> Result<()> {
    // A manifest that is gone or damaged decides nothing: the run goes on without.
    let Ok(text) = std::fs::read_to_string(folder.file(run_folder::MANIFEST)) else { return Ok(()) };
    let Ok(mut manifest) = serde_json::from_str::<serde_json::Map<_, _>>(&text) else { return Ok(()) };
    let known = manifest.remove("machines").unwrap_or_default();
    let mut machines: Vec<Machine> = serde_json::from_value(known).unwrap_or_default();
    if machines.last().is_some_and(|last| last.same_as(machine)) {
        return Ok(());
    }
    machines.push(machine.clone());
    manifest.insert("machines".into(), serde_json::json!(machines));
    let manifest = serde_json::Value::Object(manifest);
    folder.write_text(run_folder::MANIFEST, &format!("{manifest:#}\n"))
}

/// Draws `curves.svg` from what `metrics.jsonl` holds; a run without a step has none.
fn write_curves(run: &Path) -> Result<()> {
    let records = metrics::read(run.join(run_folder::METRICS))?;
    if records.is_empty() {
        return Ok(());
    }
    let title = data_name(run);
    atomic::write_text(&run.join(run_folder::CURVES), &curves::curves_svg(&title, &records))
}
