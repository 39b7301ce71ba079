//! What a benchmark found, as a table for people and as an object for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::{Evaluation, Peak, milliseconds};
use crate::config::{ObjectiveKind, name_of};
use crate::data::DataFormat;
use crate::data::loader::LoaderStatistics;
use crate::model::EncoderConfig;
use crate::report::machine::Machine;
use crate::report::{Finding, StepRecord};

/// A benchmark of some steps. FLOP are counted by [`MultiplyAdds`](crate::model::cost::MultiplyAdds).
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it was taken, and with how many threads.
    pub machine: Machine,
    /// What the images were called.
    pub data: String,
    /// Their layout.
    pub data_format: DataFormat,
    /// N, rows of the bank.
    pub n_images: usize,
    /// The network.
    pub encoder: EncoderConfig,
    /// Side of the training images, in pixels.
    pub image_size: u32,
    /// B, images in a batch.
    pub batch_size: usize,
    /// Batches in a step.
    pub accumulate: usize,
    /// What was minimised.
    pub objective: ObjectiveKind,
    /// K; 0 with the full softmax.
    pub n_negatives: usize,
    /// FLOP of the network's forward pass, for an image.
    pub forward_flop: u64,
    /// FLOP of its backward pass, for an image.
    pub backward_flop: u64,
    /// Length of the measurement, without warm-up.
    pub seconds: f64,
    /// Optimiser steps in it.
    pub steps: usize,
    /// Images in those.
    pub images: u64,
    /// Images trained on per second, end to end.
    pub images_per_s: f64,
    /// How long steps took, in milliseconds.
    pub step_ms: StepTimes,
    /// Where the time of a step went, in milliseconds.
    pub parts_ms: Parts,
    /// What an image cost the loader's threads, beside the steps and the warm-up.
    pub loading: Loading,
    /// Computing features, after the steps.
    pub evaluation: Evaluation,
    /// The machine's peak, before the steps or after everything, whichever was higher.
    pub peak_flop_per_s: Peak,
    /// The network's arithmetic in the time of whole steps.
    pub flop_per_s: f64,
    /// That of the peak in the precision used.
    pub share_of_peak: f64,
    /// The same in the time of forward and backward passes alone.
    pub share_of_peak_in_network: f64,
    /// What bounds the steps, and what would make them faster.
    #[serde(serialize_with = "as_objects")]
    pub findings: Vec<Finding>,
}

/// Milliseconds of single steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepTimes {
    /// Half of them were faster.
    pub median: f64,
    /// The fastest.
    pub fastest: f64,
    /// The slowest.
    pub slowest: f64,
}

/// Milliseconds of a mean step, by what was done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Parts {
    /// Waiting for the loader.
    pub wait: f64,
    /// Normalising the images, and the network forward.
    pub forward: f64,
    /// Loss and its gradient.
    pub objective: f64,
    /// The network backward, and the bank's rows moved.
    pub backward: f64,
    /// The optimiser.
    pub update: f64,
    /// Everything else: adding up batches, starting the next epoch's loader.
    pub rest: f64,
}

/// What an image costs to load, in milliseconds of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Loading {
    /// Images that were loaded.
    pub images: u64,
    /// Reading and decoding.
    pub decode_ms: f64,
    /// Cropping, resizing, colours.
    pub augment_ms: f64,
}

impl StepTimes {
    pub(super) fn of(records: &[StepRecord]) -> Self {
        let mut times: Vec<f64> = records.iter().map(|record| record.step_ms).collect();
        times.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| times.get(index).copied().unwrap_or(0.0);
        let last = times.len().saturating_sub(1);
        StepTimes { median: (at(last / 2) + at(last.div_ceil(2))) / 2.0, fastest: at(0), slowest: at(last) }
    }
}

impl Parts {
    /// The means over `records`, at least one, which took `wall` in all.
    pub(super) fn mean(records: &[StepRecord], wall: Duration) -> Self {
        let count = records.len() as f64;
        let part = |name: &str| {
            let ms = |record: &StepRecord| record.extra.get(name).and_then(serde_json::Value::as_f64);
            records.iter().filter_map(ms).sum::<f64>() / count
        };
        let wait = records.iter().map(|record| record.data_ms).sum::<f64>() / count;
        let (forward, objective) = (part("forward_ms"), part("objective_ms"));
        let (backward, update) = (part("backward_ms"), part("update_ms"));
        let rest = milliseconds(wall) / count - wait - forward - objective - backward - update;
        Parts { wait, forward, objective, backward, update, rest }
    }

    fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("wait", self.wait),
            ("forward", self.forward),
            ("loss", self.objective),
            ("backward", self.backward),
            ("update", self.update),
            ("rest", self.rest),
        ]
    }
}

impl Loading {
    /// Adds what a loader did.
    pub(super) fn add(&mut self, done: &LoaderStatistics) {
        self.images += done.samples;
        self.decode_ms += milliseconds(done.decode);
        self.augment_ms += milliseconds(done.augment);
    }

    /// Sums as means.
    pub(super) fn per_image(self) -> Self {
        let images = self.images.max(1) as f64;
        Loading {
            decode_ms: self.decode_ms / images,
            augment_ms: self.augment_ms / images,
            images: self.images,
        }
    }
}

fn as_objects<S: serde::Serializer>(findings: &[Finding], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(findings.iter().map(|finding| {
        serde_json::json!({ "about": finding.about, "weight": finding.weight(), "text": finding.text })
    }))
}

/// `3.3 G`, to be followed by a unit.
fn readable(number: f64) -> String {
    let (size, prefix) = match number {
        n if n >= 1e12 => (1e12, "T"),
        n if n >= 1e9 => (1e9, "G"),
        _ => (1e6, "M"),
    };
    format!("{:.1} {prefix}", number / size)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let objective = match self.objective {
            ObjectiveKind::Softmax => "full softmax".to_owned(),
            kind => format!("{} with {} negatives", name_of(kind), self.n_negatives),
        };
        let batches = match self.accumulate {
            1 => format!("batches of {}", self.batch_size),
            n => format!("{n} batches of {} a step", self.batch_size),
        };
        writeln!(f, "{}", self.machine.describe())?;
        writeln!(f, "{}: {} images ({})", self.data, self.n_images, self.data_format)?;
        writeln!(
            f,
            "{} ({}), width {}, {} px, {}-d, {batches}; {objective}\n",
            self.encoder.arch,
            self.encoder.family,
            self.encoder.width,
            self.image_size,
            self.encoder.embed_dim
        )?;
        let step = self.seconds * 1e3 / self.steps as f64;
        let images = self.images as f64 / self.steps as f64;
        writeln!(f, "{:<12}{:>12}{:>8}{:>14}", "", "ms a step", "%", "ms an image")?;
        for (name, ms) in self.parts_ms.named() {
            writeln!(f, "{name:<12}{ms:>12.2}{:>8.1}{:>14.3}", 100.0 * ms / step, ms / images)?;
        }
        writeln!(f, "{:<12}{step:>12.2}{:>8.1}{:>14.3}", "whole step", 100.0, step / images)?;
        writeln!(f, "\nbeside it, in the loader's threads ({}):", self.machine.workers)?;
        for (name, ms) in [("decode", self.loading.decode_ms), ("augment", self.loading.augment_ms)] {
            writeln!(f, "{name:<12}{:>34.3}", ms)?;
        }
        let StepTimes { median, fastest, slowest } = self.step_ms;
        writeln!(
            f,
            "\nend to end  {:.1} images/s: {} images in {} steps, {:.1} s; a step took {median:.0} ms (median; {fastest:.0} to \
             {slowest:.0})",
            self.images_per_s, self.images, self.steps, self.seconds
        )?;
        writeln!(f, "{}", self.evaluation)?;
        let Peak { fp32, bf16 } = self.peak_flop_per_s;
        let bf16 = bf16.map(|peak| format!(", {}FLOP/s in bf16", readable(peak))).unwrap_or_default();
        writeln!(f, "peak        {}FLOP/s in fp32{bf16} (product of large matrices)", readable(fp32))?;
        writeln!(
            f,
            "network     {}FLOP an image, {}FLOP/s: {:.1} % of the peak in {} over whole steps, {:.1} % in forward and backward",
            readable((self.forward_flop + self.backward_flop) as f64),
            readable(self.flop_per_s),
            100.0 * self.share_of_peak,
            self.machine.precision,
            100.0 * self.share_of_peak_in_network
        )?;
        let found: Vec<&str> = self.findings.iter().map(|finding| finding.text.as_str()).collect();
        write!(f, "\n{}", found.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step_ms: f64, forward_ms: f64) -> StepRecord {
        let extra = [("forward_ms".to_owned(), forward_ms.into())].into();
        StepRecord { step_ms, data_ms: 1.0, extra, ..Default::default() }
    }

    #[test]
    fn large_numbers_are_readable() {
        for (number, text) in [(3.34e9, "3.3 G"), (2.5e14, "250.0 T"), (3.38e6, "3.4 M"), (0.0, "0.0 M")] {
            assert_eq!(readable(number), text);
        }
    }

    #[test]
    fn times_are_ordered_and_averaged() {
        let records = [record(9.0, 4.0), record(3.0, 2.0), record(6.0, 3.0), record(4.0, 3.0)];
        assert_eq!(StepTimes::of(&records), StepTimes { median: 5.0, fastest: 3.0, slowest: 9.0 });
        assert_eq!(StepTimes::of(&records[..3]).median, 6.0);
        let parts = Parts::mean(&records, Duration::from_millis(24));
        assert_eq!((parts.wait, parts.forward, parts.update, parts.rest), (1.0, 3.0, 0.0, 2.0));
    }

    #[test]
    fn what_several_loaders_did_is_averaged_over_images() {
        let done = |samples, ms| LoaderStatistics {
            samples,
            decode: Duration::from_millis(ms),
            augment: Duration::from_millis(2 * ms),
            ..Default::default()
        };
        let mut loading = Loading::default();
        loading.add(&done(4, 40));
        loading.add(&done(6, 80));
        assert_eq!(loading.per_image(), Loading { images: 10, decode_ms: 12.0, augment_ms: 24.0 });
        assert_eq!(Loading::default().per_image(), Loading::default());
    }
}
