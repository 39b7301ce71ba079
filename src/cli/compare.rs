//! `lemniscate compare`: several runs beside each other.

use std::path::PathBuf;

use super::say;
use crate::atomic;
use crate::error::Result;
use crate::report::comparison::{differing_settings, results, same_data};
use crate::report::history::History;
use crate::report::html::comparison_page;

/// Flags of `lemniscate compare`.
#[derive(clap::Args)]
#[command(
    after_help = "Prints the numbers and the settings that differ; the page also has the curves over each other.\n\n\
Examples:\n  lemniscate compare runs/a runs/b\n  lemniscate compare runs/* --out all.html"
)]
pub struct Arguments {
    /// Run folders, two or more
    #[arg(value_name = "RUN", required = true, num_args = 2..)]
    runs: Vec<PathBuf>,
    /// The page
    #[arg(short, long, value_name = "FILE.html", default_value = "compare.html")]
    out: PathBuf,
}

/// Prints the tables and writes the page.
pub fn run(arguments: Arguments) -> Result<()> {
    let runs: Vec<History> = arguments.runs.iter().map(|path| History::read(path)).collect::<Result<_>>()?;
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    atomic::write_text(&arguments.out, &comparison_page(&runs))?;
    say(results(&runs).to_text(&names))?;
    let differing = differing_settings(&runs);
    if differing.rows.is_empty() {
        say("the settings are the same\n")?;
    } else {
        say(differing.to_text(&names))?;
    }
    if same_data(&runs) == Some(false) {
        super::note("these runs were not on the same images");
    }
    say(format_args!("wrote {}", arguments.out.display()))
}
