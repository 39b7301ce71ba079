//! `lemniscate data`: what a data set holds.

use std::path::PathBuf;
use std::time::Duration;

use super::inputs::scan_with_progress;
use super::say;
use crate::data::detect::{self, DataFormat, OpenOptions};
use crate::error::{Error, Result};

/// Flags of `lemniscate data`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lemniscate data photos/\n  lemniscate data cifar-10-binary.tar.gz --json\n  lemniscate data list.csv --test-data photos/test"
)]
pub struct Arguments {
    /// A folder, list file, archive, or `synthetic`
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// How DATA is laid out; detected unless given
    #[arg(long, value_enum)]
    data_format: Option<DataFormat>,
    /// Test images kept elsewhere than in DATA
    #[arg(long, value_name = "PATH")]
    test_data: Option<PathBuf>,
    /// Reading threads; 0 for one a core
    #[arg(short = 'j', long, default_value_t = 0)]
    workers: usize,
    /// Seconds that one image may take before its file system is taken to hang
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    read_timeout: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Scans both splits and prints what is there.
pub fn run(arguments: Arguments) -> Result<()> {
    let read_timeout = Duration::try_from_secs_f64(arguments.read_timeout)
        .map_err(|e| Error::usage(format!("--read-timeout {}: {e}", arguments.read_timeout)))?;
    let options = OpenOptions { test_path: arguments.test_data.clone(), ..OpenOptions::default() };
    let splits = detect::open(&arguments.data, arguments.data_format, &options)?;
    let named =
        std::iter::once(("train", &splits.train)).chain(splits.test.as_ref().map(|test| ("test", test)));
    let reports: Vec<_> = named
        .map(|(name, split)| Ok((name, scan_with_progress(split, arguments.workers, read_timeout)?)))
        .collect::<Result<_>>()?;
    if arguments.json {
        let mut object = serde_json::Map::new();
        object.insert("format".into(), splits.format.to_string().into());
        for (name, report) in &reports {
            let value = serde_json::to_value(report).map_err(|e| Error::usage(format!("JSON: {e}")))?;
            object.insert((*name).into(), value);
        }
        return say(serde_json::Value::Object(object));
    }
    say(format_args!("{}: {}", arguments.data.display(), splits.format))?;
    for note in &splits.notes {
        say(format_args!("note: {note}"))?;
    }
    for (name, report) in &reports {
        say(format_args!("\n{name}\n{report}"))?;
    }
    Ok(())
}
