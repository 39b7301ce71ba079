//! What several commands do with their arguments: opening data, scanning it, choosing a preset, progress bars.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::config::Preset;
use crate::data::dataset::{Dataset, Splits};
use crate::data::detect::{self, DataFormat, OpenOptions};
use crate::data::scan::{ScanReport, scan};
use crate::data::watch::load_within;
use crate::error::{Error, Result};
use crate::train::start::{self, Found};

/// A progress bar on a terminal, nothing elsewhere; it draws on standard error, so output can be piped.
pub fn bar(total: usize, what: &'static str) -> ProgressBar {
    let target = if std::env::var_os("LEMNISCATE_NO_PROGRESS").is_some() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total as u64), target).with_style(style);
    bar.set_message(what);
    bar
}

/// Does `work` under a [`bar`], which it tells how far it is.
///
/// # Errors
/// Those of `work`.
pub fn with_bar<T>(
    total: usize,
    what: &'static str,
    work: impl FnOnce(&mut dyn FnMut(usize)) -> Result<T>,
) -> Result<T> {
    let bar = bar(total, what);
    let result = work(&mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    result
}

/// Decodes every image once, in parallel, and says what was found.
///
/// # Errors
/// If the threads cannot be started, or an image takes longer than `read_timeout`; an unreadable image is part of the
/// report.
pub fn scan_with_progress(dataset: &Dataset, threads: usize, read_timeout: Duration) -> Result<ScanReport> {
    let bar = bar(dataset.len(), "reading images");
    let report = scan(dataset, &|done| bar.set_position(done as u64), threads, read_timeout);
    bar.finish_and_clear();
    report
}

/// `split` with its unreadable images quarantined, or the list of them as an error unless `quarantine` allows that.
///
/// # Errors
/// [`Error::Unreadable`], and [`Error::Slow`] for an image that takes longer than `read_timeout`.
pub fn without_unreadable(
    split: Dataset,
    quarantine: bool,
    threads: usize,
    read_timeout: Duration,
) -> Result<Dataset> {
    let needed = match split.format() {
        DataFormat::Folder | DataFormat::Flat | DataFormat::List => true,
        // Each image was decoded when it was packed; damage since then shows when it is read.
        DataFormat::Packed => quarantine,
        // The other layouts hold pixels, which are checked when they are opened.
        _ => false,
    };
    if !needed {
        return Ok(split);
    }
    let report = scan_with_progress(&split, threads, read_timeout)?;
    match report.unreadable_error() {
        None => Ok(split),
        Some(error) if !quarantine => Err(error),
        Some(_) => split.with_quarantine(&report.unreadable_indices()),
    }
}

/// A data path as a configuration keeps it: absolute, so that the run can be repeated from any folder.
///
/// # Errors
/// If the current folder cannot be told.
pub fn stored_path(data: &Path, format: DataFormat) -> Result<PathBuf> {
    if format == DataFormat::Synthetic {
        return Ok(data.to_owned());
    }
    absolute(data)
}

/// `path` as it reads from any folder.
///
/// # Errors
/// If the current folder cannot be told.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(path, "make absolute", e))
}

/// The images to use a checkpoint with: `data`, or else those of its run; with its quarantine where they are the same.
///
/// # Errors
/// If they cannot be opened, or neither the checkpoint nor the command says which they are.
pub fn open_run_data(
    found: &Found,
    data: Option<&Path>,
    format: Option<DataFormat>,
    test_data: Option<PathBuf>,
) -> Result<Splits> {
    let config = &found.saved.config;
    let own = data.is_none();
    let path = data.unwrap_or(&config.data);
    if path.as_os_str().is_empty() {
        return Err(Error::Usage {
            message: format!("{} does not say which images it was trained on", found.path().display()),
            hint: Some("name them after the checkpoint".into()),
        });
    }
    let options = OpenOptions {
        seed: config.seed,
        test_path: test_data.or(if own { config.test_data.clone() } else { None }),
        ..OpenOptions::default()
    };
    let splits = detect::open(path, format.or(own.then_some(config.data_format)), &options)?;
    if own || found.saved.data.is_of(&start::identify(&splits)?) {
        return start::quarantine_again(splits, &found.saved.data);
    }
    Ok(splits)
}

/// Fixes the number of computing threads of libtorch and of our own kernels; 0 takes all cores.
///
/// # Errors
/// If the threads cannot be started.
pub fn set_threads(threads: usize) -> Result<()> {
    let threads =
        if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    tch::set_num_threads(threads as i32);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| Error::usage(format!("--threads {threads}: {e}")))
}

/// Number of images looked at to choose a preset.
const LOOKED_AT: usize = 9;

/// Images whose short side is at most this many pixels are trained with the CIFAR settings.
const SMALL_SIDE: u32 = 64;

/// The published settings that fit the images: by the median short side of a few of them.
///
/// # Errors
/// If none of them can be read, or one takes longer than `read_timeout`.
pub fn preset_for(data: &Dataset, read_timeout: Duration) -> Result<Preset> {
    let n = data.len();
    let mut first_error = None;
    let mut sides = Vec::new();
    for i in 0..LOOKED_AT.min(n) {
        match load_within(data, i * n / LOOKED_AT.min(n), read_timeout) {
            Ok(image) => sides.push(image.width().min(image.height())),
            // The others would most likely hang as well.
            Err(error @ Error::Slow { .. }) => return Err(error),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    sides.sort_unstable();
    match (sides.get(sides.len() / 2), first_error) {
        (Some(&side), _) if side <= SMALL_SIDE => Ok(Preset::Cifar),
        (Some(_), _) => Ok(Preset::Imagenet),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::usage("the data set is empty")),
    }
}

/// The last part of a data path, for a run's name.
pub fn data_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}
