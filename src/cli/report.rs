//! `lemniscate report`: one run on one page.

use std::path::PathBuf;
use std::time::SystemTime;

use super::say;
use crate::atomic;
use crate::checkpoint::run_folder;
use crate::config::TrainConfig;
use crate::data::dataset::Splits;
use crate::data::detect::{self, OpenOptions};
use crate::error::{Error, Result};
use crate::report::history::History;
use crate::report::html::{Pictures, run_page};

/// Flags of `lemniscate report`.
#[derive(clap::Args)]
#[command(
    after_help = "The run may still be training. Pictures of what was found come from the run's images; where those are gone, the \
page has their names.\n\nExamples:\n  lemniscate report runs/a\n  lemniscate report runs/a --out a.html --no-pictures"
)]
pub struct Arguments {
    /// The run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The page [default: report.html in the run folder]
    #[arg(short, long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Leave the images out: names have to do
    #[arg(long)]
    no_pictures: bool,
}

/// Writes the page.
pub fn run(arguments: Arguments) -> Result<()> {
    let history = History::read(&arguments.run)?;
    let pictures = match () {
        () if arguments.no_pictures => Pictures::None("they were left out".into()),
        () if history.retrievals.is_empty() => Pictures::None("there are none".into()),
        () => match images_of(&history) {
            Ok(splits) => Pictures::Of(splits),
            Err(error) => Pictures::None(error.to_string()),
        },
    };
    let out = arguments.out.unwrap_or_else(|| arguments.run.join(run_folder::REPORT));
    atomic::write_text(&out, &run_page(&history, &pictures, SystemTime::now()))?;
    say(format_args!("wrote {}", out.display()))
}

/// The images of the run as they are now; nothing is written.
fn images_of(history: &History) -> Result<Splits> {
    let config: TrainConfig = history
        .settings
        .clone()
        .try_into()
        .map_err(|e: toml::de::Error| Error::usage(format!("config.toml: {}", e.message())))?;
    let options = OpenOptions { seed: config.seed, test_path: config.test_data, ..OpenOptions::default() };
    detect::open(&config.data, Some(config.data_format), &options)
}
