//! `lemniscate pack`: a data set as one file.

use std::path::PathBuf;

use super::inputs::{bar, preset_for};
use super::say;
use crate::checkpoint::signals::Interrupt;
use crate::config::Preset;
use crate::data::detect::{self, DataFormat, OpenOptions};
use crate::data::packed::Form;
use crate::data::packed::write::{PackOptions, Report, pack};
use crate::data::watch::DEFAULT_READ_TIMEOUT;
use crate::error::{Error, Result};
use crate::interop::inspect::human;

/// How images are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum As {
    /// The files' bytes, unchanged
    Original,
    /// JPEG, resized
    Jpeg,
    /// Pixels, resized: nothing to decode, ten times the room
    Raw,
}

/// Length of the shorter side unless another is asked for: what the test view of 224 pixels is cut from.
const SHORT_SIDE: u32 = 256;
/// JPEG quality unless another is asked for.
const QUALITY: u8 = 90;

/// Flags of `lemniscate pack`.
#[derive(clap::Args)]
#[command(
    after_help = "Interrupted or killed, it keeps what it has beside OUT (OUT.part) and goes on with it when it is started again.\n\n\
Examples:\n  lemniscate pack photos/ photos.pack\n  lemniscate pack photos/ photos.pack --as original\n  lemniscate pack imagenet/ imagenet.pack --as raw --size 256\n  lemniscate train photos.pack"
)]
pub struct Arguments {
    /// A folder, list file, archive, packed file, or `synthetic`
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// How images are kept [default: jpeg; raw if they are of 64 pixels or less]
    #[arg(long = "as", value_enum, value_name = "FORM")]
    form: Option<As>,
    /// Resize the shorter side of larger images to this many pixels; 0 for not at all [default: 256; none if they are of 64
    /// pixels or less]
    #[arg(long, value_name = "PIXELS")]
    size: Option<u32>,
    /// Of JPEG, 1 to 100 [default: 90]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: Option<u8>,
    /// Go on without unreadable images: they keep their rows but never enter a batch
    #[arg(long)]
    quarantine: bool,
    /// How DATA is laid out; detected unless given
    #[arg(long, value_enum)]
    data_format: Option<DataFormat>,
    /// Test images kept elsewhere than in DATA
    #[arg(long, value_name = "PATH")]
    test_data: Option<PathBuf>,
    /// Seed of the generated set
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads; 0 for one a core
    #[arg(short = 'j', long, default_value_t = 0)]
    workers: usize,
    /// Replace OUT if it is there
    #[arg(long)]
    force: bool,
}

/// Packs and says what came of it.
pub fn run(arguments: Arguments) -> Result<()> {
    if arguments.out.exists() && !arguments.force {
        return Err(Error::Usage {
            message: format!("{} exists", arguments.out.display()),
            hint: Some("--force replaces it".into()),
        });
    }
    if arguments.out.is_dir() {
        return Err(Error::usage(format!("{} is a folder; OUT is a file", arguments.out.display())));
    }
    let options = OpenOptions {
        seed: arguments.seed,
        test_path: arguments.test_data.clone(),
        ..OpenOptions::default()
    };
    let splits = detect::open(&arguments.data, arguments.data_format, &options)?;
    for note in &splits.notes {
        super::note(note);
    }
    let small = arguments.form != Some(As::Original)
        && preset_for(&splits.train, DEFAULT_READ_TIMEOUT)? == Preset::Cifar;
    let form = form(&arguments, small)?;
    let total = splits.train.len() + splits.test.as_ref().map_or(0, |test| test.len());
    let interrupt = Interrupt::install()?;
    let progress = bar(total, "packing images");
    let options = PackOptions { form, quarantine: arguments.quarantine, threads: arguments.workers };
    let mut noted = false;
    let packed = pack(
        &splits,
        &arguments.out,
        options,
        &mut |done| {
            if !std::mem::replace(&mut noted, true) && done > 0 {
                progress.suspend(|| super::note(format_args!("going on after {done} images")));
            }
            progress.set_position(done as u64);
        },
        &|| interrupt.interrupted(),
    );
    progress.finish_and_clear();
    let Report { unreadable, bytes, .. } = packed?;
    let test = splits.test.as_ref().map_or(String::new(), |test| format!(" and {} test", test.len()));
    say(format_args!(
        "wrote {}: {} train{test} images, {form}; {}",
        arguments.out.display(),
        splits.train.len(),
        human(bytes)
    ))?;
    if unreadable > 0 {
        say(format_args!(
            "{unreadable} of {total} images cannot be read; they keep their rows, quarantined"
        ))?;
    }
    Ok(())
}

/// The form that the flags ask for.
fn form(arguments: &Arguments, small: bool) -> Result<Form> {
    let usual = (!small).then_some(SHORT_SIDE);
    let short_side = match arguments.size {
        None => usual,
        Some(0) => None,
        Some(size) => Some(size),
    };
    let unfit = |flag: &str, form: &str| {
        Err(Error::Usage {
            message: format!("{flag} does nothing to images that are kept as {form}"),
            hint: Some("--as jpeg takes it".into()),
        })
    };
    match arguments.form.unwrap_or(if small { As::Raw } else { As::Jpeg }) {
        As::Original if arguments.size.is_some_and(|size| size > 0) => unfit("--size", "the files are"),
        As::Original if arguments.quality.is_some() => unfit("--quality", "the files are"),
        As::Raw if arguments.quality.is_some() => unfit("--quality", "raw pixels"),
        As::Original => Ok(Form::Original),
        As::Raw => Ok(Form::Raw { short_side }),
        As::Jpeg => Ok(Form::Jpeg { quality: arguments.quality.unwrap_or(QUALITY), short_side }),
    }
}
