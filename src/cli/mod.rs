//! The command line: one file per command. Nothing else prints, reads arguments or exits.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::checkpoint::signals::size_limit_is_an_error;
use crate::error::Result;

mod bench;
mod cluster;
mod compare;
mod completions;
mod data;
mod embed;
mod eval;
mod export;
mod finetune;
mod fresh;
mod import;
mod inputs;
mod inspect;
mod linear;
mod neighbors;
mod pack;
mod pretrained;
mod report;
mod running;
mod serve;
mod settings;
mod subject;
mod train;

/// Image features without labels: memory-bank instance discrimination (Wu et al., CVPR 2018)
#[derive(Parser)]
#[command(name = "lemniscate", version, about, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Start with:  lemniscate train synthetic --epochs 2 --arch resnet18 --width 16")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train an encoder on images, or continue a run
    Train(Box<train::Arguments>),
    /// Test the features of a checkpoint with weighted kNN
    Eval(eval::Arguments),
    /// Test the features of a checkpoint with a linear classifier
    Linear(Box<linear::Arguments>),
    /// Train a checkpoint's network further on a few labelled images, beside a network from scratch
    Finetune(Box<finetune::Arguments>),
    /// Write the features of every image to a file
    Embed(embed::Arguments),
    /// Show queries with their nearest training images, as a page; precision of retrieval
    Neighbors(neighbors::Arguments),
    /// Group similar images and find near-duplicates
    Cluster(cluster::Arguments),
    /// Write a run's page: curves, settings, machine, what it found, warnings
    Report(report::Arguments),
    /// Set runs beside each other: numbers, the settings that differ, curves
    Compare(compare::Arguments),
    /// Search a data set by image and watch a run, in a browser
    Serve(serve::Arguments),
    /// Say what a data set holds: classes, sizes, duplicates, unreadable files
    Data(data::Arguments),
    /// Make one file of a data set, which loads faster
    Pack(pack::Arguments),
    /// Say where the time of training goes on this machine, and what would make it faster
    Bench(Box<bench::Arguments>),
    /// Say what a checkpoint holds, ours or PyTorch's, or a packed data set
    Inspect(inspect::Arguments),
    /// Make a checkpoint of a PyTorch or safetensors file
    Import(import::Arguments),
    /// Write a checkpoint as safetensors, .pth, ONNX, or its bank as a table
    Export(export::Arguments),
    /// Print what a shell needs to complete commands and flags
    Completions(completions::Arguments),
    /// Write manual pages, one for each command
    Man(completions::ManArguments),
}

/// Runs the program and gives its exit code: 0 success, 1 failure, 2 usage, 130 interrupted.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let done = size_limit_is_an_error().and_then(|()| match command {
        Command::Train(arguments) => train::run(*arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Linear(arguments) => linear::run(*arguments),
        Command::Finetune(arguments) => finetune::run(*arguments),
        Command::Embed(arguments) => embed::run(arguments),
        Command::Neighbors(arguments) => neighbors::run(arguments),
        Command::Cluster(arguments) => cluster::run(arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Compare(arguments) => compare::run(arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Data(arguments) => data::run(arguments),
        Command::Pack(arguments) => pack::run(arguments),
        Command::Bench(arguments) => bench::run(*arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Completions(arguments) => completions::run(arguments),
        Command::Man(arguments) => completions::man(arguments),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("error: {error}"));
            if let Some(hint) = error.hint() {
                tell(&format!("hint: {hint}"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// Writes to standard output; a reader that went away (`| head`) is not an error.
fn say(text: impl std::fmt::Display) -> Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(crate::Error::io("standard output", "write", e))
        }
        _ => Ok(()),
    }
}

/// Writes a remark to standard error.
fn note(text: impl std::fmt::Display) {
    tell(&format!("note: {text}"));
}

/// Writes to standard error. Where nobody can hear it, nobody can be told that either.
fn tell(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
