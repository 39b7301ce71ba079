//! The `lemniscate` program: parse, dispatch, print an error once.

use std::process::ExitCode;

fn main() -> ExitCode {
    lemniscate::cli::main()
}
