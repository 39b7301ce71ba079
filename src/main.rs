//! The `lemniscate` program.
fn main() {}
