//! Everything that decides a run, its presets and its checks.
