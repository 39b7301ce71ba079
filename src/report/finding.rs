//! Something that a run noticed about itself and that a person can act on.

use log::Level;

/// A warning or a piece of advice. Each is said once in a run and kept in `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about, in a word or two with dashes: `loader-bound`. The key by which it is said once.
    pub about: &'static str,
    /// Whether the run is likely to disappoint as it is; otherwise it could merely be faster.
    pub is_warning: bool,
    /// What was found and what to change, in a sentence or two.
    pub text: String,
}

impl Finding {
    /// Something that is likely wrong.
    pub fn warning(about: &'static str, text: impl Into<String>) -> Self {
        Finding { about, is_warning: true, text: text.into() }
    }

    /// Something that could be better.
    pub fn advice(about: &'static str, text: impl Into<String>) -> Self {
        Finding { about, is_warning: false, text: text.into() }
    }

    /// `warning` or `advice`, as `metrics.jsonl` has it.
    pub fn weight(&self) -> &'static str {
        if self.is_warning { "warning" } else { "advice" }
    }

    /// Its level in a log.
    pub fn level(&self) -> Level {
        if self.is_warning { Level::Warn } else { Level::Info }
    }
}
