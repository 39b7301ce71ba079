//! What an import found, for a person or as JSON.

use std::fmt;

use serde::Serialize;

use crate::interop::recognise::Match;
use crate::model::Head;

/// What an import found, for a person or as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ImportReport {
    /// The file's name.
    pub file: String,
    /// What kind of file it is, and how its parts lie in it.
    pub format: String,
    /// The network, and which tensors make it.
    pub network: Match,
    /// Tensors under that network's part of the file.
    pub n_tensors: usize,
    /// Rows and width of the memory bank.
    pub bank: Option<[usize; 2]>,
    /// Momentum buffers taken.
    pub momentum: usize,
    /// Epochs finished.
    pub epoch: Option<u64>,
    /// Best accuracy so far, per cent.
    pub best: Option<f64>,
    /// What a person should know beside.
    pub notes: Vec<String>,
}

/// The network in a few words.
pub(super) fn describe(network: &Match) -> String {
    let c = &network.config;
    let head = match c.head {
        Head::Linear => format!("{}-d", c.embed_dim),
        Head::None => "no head".into(),
    };
    format!("{} ({} stem, width {}, {head})", c.arch, c.family, c.width)
}

/// At most this many names are listed.
const LISTED: usize = 12;

/// `names` under a heading, or nothing if there are none.
pub(super) fn list(what: &str, names: &[String]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let shown: Vec<_> = names.iter().take(LISTED).map(|name| format!("\n    {name}")).collect();
    let more = names.len().saturating_sub(LISTED);
    let more = if more > 0 { format!("\n    ... and {more} more") } else { String::new() };
    Some(format!("  {what} ({}):{}{more}", names.len(), shown.concat()))
}

impl ImportReport {
    /// All of it in one line.
    pub fn summary(&self) -> String {
        let bank = self.bank.map(|[n, d]| format!(", memory bank {n} × {d}")).unwrap_or_default();
        let epoch = self.epoch.map(|epoch| format!(", {epoch} epochs")).unwrap_or_default();
        format!("{}: {}{bank}{epoch}", self.format, describe(&self.network))
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = &self.network;
        writeln!(f, "{}", self.file)?;
        writeln!(f, "  {}", self.format)?;
        writeln!(f, "network: {}", describe(network))?;
        let total = network.matched.len() + network.missing.len() + network.mismatched.len();
        write!(f, "  {} of {total} tensors matched", network.matched.len())?;
        if !network.prefix.is_empty() {
            write!(f, ", under `{}`", network.prefix)?;
        }
        if network.renamed > 0 {
            write!(f, ", {} renamed", network.renamed)?;
        }
        if !network.missing_counters.is_empty() {
            write!(f, ", {} counters of BatchNorm not in the file", network.missing_counters.len())?;
        }
        writeln!(f)?;
        for (what, names) in [
            ("missing", &network.missing),
            ("of another shape", &network.mismatched),
            ("left over under the prefix", &network.left_over),
            ("the head, not taken", &network.head_left),
            ("elsewhere in the file", &network.outside),
        ] {
            if let Some(list) = list(what, names) {
                writeln!(f, "{list}")?;
            }
        }
        if !network.other_prefixes.is_empty() {
            writeln!(f, "  also under: {} (choose with --prefix)", network.other_prefixes.join(", "))?;
        }
        match self.bank {
            Some([n, d]) => writeln!(f, "memory bank: {n} × {d}")?,
            None => writeln!(f, "memory bank: none, so it can be tested and started from, but not resumed")?,
        }
        if self.momentum > 0 {
            writeln!(f, "momentum: {} buffers", self.momentum)?;
        }
        if let Some(epoch) = self.epoch {
            writeln!(f, "epochs finished: {epoch}")?;
        }
        if let Some(best) = self.best {
            writeln!(f, "best accuracy: {best:.2} %")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
