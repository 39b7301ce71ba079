//! The images and settings of a fresh run: what `train` starts and `bench` measures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use super::inputs::{absolute, preset_for, set_threads, stored_path, without_unreadable};
use super::running::Notes;
use super::settings::Settings;
use crate::config::{Preset, TrainConfig, check_threads, read_layer};
use crate::data::dataset::Splits;
use crate::data::detect::{self, OpenOptions};
use crate::data::watch::DEFAULT_READ_TIMEOUT;
use crate::error::{Error, Result};
use crate::train::memory::{self, Estimate};

/// What a command line says of them.
pub struct Asked<'a> {
    /// DATA.
    pub data: Option<&'a Path>,
    /// The images where neither the command line nor `--config` names any.
    pub otherwise: Option<&'a str>,
    /// `--config`.
    pub config: Option<&'a Path>,
    /// `--preset`.
    pub preset: Option<Preset>,
    /// The settings as flags.
    pub settings: &'a Settings,
    /// Where an index of the files may be written.
    pub index_dir: Option<PathBuf>,
}

/// Images that are open, and settings that still miss those of given weights.
pub struct Opened {
    /// The images.
    pub splits: Splits,
    path: PathBuf,
    preset: Preset,
    file: Table,
    flags: Table,
}

impl Opened {
    /// Opens the images, with the threads that were asked for.
    ///
    /// # Errors
    /// If no images are named or they cannot be opened; if the file of settings cannot be read.
    pub fn open(asked: Asked<'_>) -> Result<Self> {
        let mut file = asked.config.map(read_layer).transpose()?.unwrap_or_default();
        let flags = asked.settings.layer()?;
        let named_in_file = file.get("data").and_then(Value::as_str).map(PathBuf::from);
        let data = asked.data.map(PathBuf::from).or(named_in_file).or(asked.otherwise.map(PathBuf::from));
        let data = data.ok_or_else(|| Error::Usage {
            message: "no data given".into(),
            hint: Some(
                "lemniscate train DATA; to see it work without any: lemniscate train synthetic".into(),
            ),
        })?;
        // Listing files uses the same threads as training, so their number is settled first.
        let threads = layered(&flags, &file, "threads").and_then(Value::as_integer).unwrap_or(0);
        check_threads(threads)?;
        set_threads(threads as usize)?;
        let seed = layered(&flags, &file, "seed").and_then(Value::as_integer).unwrap_or(0) as u64;
        let test_path = layered(&flags, &file, "test-data").and_then(Value::as_str).map(PathBuf::from);
        // A format in the configuration belongs to the data named there.
        let format = match (asked.settings.data_format(), asked.data, file.get("data-format")) {
            (None, None, Some(named)) => {
                Some(named.clone().try_into().map_err(|e: toml::de::Error| Error::usage(e.to_string()))?)
            }
            (given, _, _) => given,
        };
        let options = OpenOptions { seed, test_path, index_dir: asked.index_dir, ..OpenOptions::default() };
        let splits = detect::open(&data, format, &options)?;
        let preset = match asked.preset {
            Some(preset) => preset,
            // Before there are settings: this one is looked up by itself, and checked with the others later.
            None => {
                let given = layered(&flags, &file, "read-timeout").and_then(as_number);
                let limit = given.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                preset_for(&splits.train, limit.unwrap_or(DEFAULT_READ_TIMEOUT))?
            }
        };
        for key in ["data", "data-format"] {
            file.remove(key);
        }
        Ok(Opened { path: stored_path(&data, splits.format)?, splits, preset, file, flags })
    }

    /// The settings, checked, and the device that they name. `network` are those that given weights decide.
    ///
    /// # Errors
    /// If a setting is unknown or cannot work, alone or with others; if the device is not there.
    pub fn settings(&self, network: Table) -> Result<(TrainConfig, tch::Device)> {
        let layers =
            [("--pretrained", network), ("--config", self.file.clone()), ("flags", self.flags.clone())];
        let config = TrainConfig::resolve(self.preset, &self.path, self.splits.format, &layers)?;
        let device = config.device.resolve()?;
        let config = TrainConfig {
            precision: config.precision.resolve(device).into(),
            test_data: config.test_data.as_deref().map(absolute).transpose()?,
            noise_weights: config.noise_weights.as_deref().map(absolute).transpose()?,
            ..config
        };
        Ok((config, device))
    }
}

/// Refuses a run on `n` images that will not fit into memory, unless `ignore` says to go on; then it is a note. Where there is
/// plenty, freed memory is kept from now on, which makes steps faster.
///
/// # Errors
/// [`Error::Usage`] with what is needed and what there is.
pub fn check_memory(
    ignore: bool,
    notes: &mut Notes,
    config: &TrainConfig,
    n: usize,
    device: tch::Device,
) -> Result<()> {
    let Some(available) = memory::available() else { return Ok(()) };
    let estimate = Estimate::new(config, n, device);
    if estimate.leaves_as_much(&available) {
        memory::keep_freed();
    }
    match estimate.check(&available) {
        Err(error) if ignore => {
            notes.add(&error.to_string());
            Ok(())
        }
        checked => checked,
    }
}

/// The splits without unreadable images, or the list of them as an error.
///
/// # Errors
/// As [`without_unreadable`].
pub fn checked(splits: Splits, config: &TrainConfig) -> Result<Splits> {
    let check = |split| without_unreadable(split, config.quarantine, config.threads, config.read_timeout());
    Ok(Splits { train: check(splits.train)?, test: splits.test.map(check).transpose()?, ..splits })
}

fn layered<'a>(flags: &'a Table, file: &'a Table, key: &str) -> Option<&'a Value> {
    flags.get(key).or_else(|| file.get(key))
}

fn as_number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))
}
