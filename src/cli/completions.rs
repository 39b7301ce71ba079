//! `lemniscate completions` and `lemniscate man`: what shells and `man` know of the program, from the same source as
//! `--help`.

use std::path::{Path, PathBuf};

use clap::CommandFactory;

use super::{Cli, say};
use crate::atomic;
use crate::error::{Error, Result};

/// Flags of `lemniscate completions`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lemniscate completions bash > ~/.local/share/bash-completion/completions/lemniscate\n  \
lemniscate completions zsh > ~/.zfunc/_lemniscate\n  lemniscate completions fish > ~/.config/fish/completions/lemniscate.fish"
)]
pub struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Flags of `lemniscate man`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lemniscate man --out ~/.local/share/man/man1\n  lemniscate man --out man && man man/lemniscate-train.1"
)]
pub struct ManArguments {
    /// The folder; it is created
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
}

/// Prints a completion script.
pub fn run(arguments: Arguments) -> Result<()> {
    let mut script = Vec::new();
    // Into memory: the generator panics where its output is closed.
    clap_complete::generate(arguments.shell, &mut Cli::command(), "lemniscate", &mut script);
    say(String::from_utf8_lossy(&script).trim_end())
}

/// Writes a page for the program and one for each command.
pub fn man(arguments: ManArguments) -> Result<()> {
    let out = &arguments.out;
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, "create", e))?;
    let mut program = Cli::command();
    // Takes over what commands inherit, so that a page has all of it.
    program.build();
    let mut written = vec![page(out, program.clone(), "lemniscate")?];
    for command in program.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("lemniscate-{}", command.get_name());
        written.push(page(out, command.clone(), &name)?);
    }
    say(format_args!("wrote {} pages to {}: {}", written.len(), out.display(), written.join(", ")))
}

fn page(out: &Path, command: clap::Command, name: &str) -> Result<String> {
    let file = format!("{name}.1");
    let path = out.join(&file);
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(|e| Error::io(&path, "compose", e))?;
    atomic::write_text(&path, &String::from_utf8_lossy(&page))?;
    Ok(file)
}
