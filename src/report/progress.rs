//! Telling whoever watches a run how it goes.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use log::{Level, LevelFilter};

use super::eta::{Eta, clock};
use super::metrics::{EvalRecord, StepRecord};
use super::terminal::TerminalReporter;

/// The beginning of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// Epochs of the whole run.
    pub epochs: u64,
    /// Batches of this epoch.
    pub batches: u64,
    /// Batches of it that were done before the run was resumed.
    pub batches_done: u64,
    /// Batches from here on after which the run ends although epochs are left, where `--max-steps` says so.
    pub batches_to_limit: Option<u64>,
}

/// Someone who watches a run. Every method may be ignored, and none can fail.
pub trait Reporter {
    /// An epoch begins, or continues after a resume.
    fn epoch_started(&mut self, start: EpochStart);
    /// A step was made, after which `batches_done` batches of the epoch are done.
    fn step(&mut self, batches_done: u64, step: &StepRecord);
    /// The epoch's training is over; evaluation follows.
    fn epoch_finished(&mut self, epoch: u64);
    /// The features were measured.
    fn evaluation(&mut self, evaluation: &EvalRecord);
    /// Something else is worth saying, in one line or several.
    fn message(&mut self, level: Level, text: &str);
}

/// The reporter that suits the standard streams: a bar if both are terminals, otherwise plain lines on standard
/// output, one every `print_freq` batches. Messages of less weight than `verbosity` are left out.
pub fn for_standard_streams(print_freq: u64, verbosity: LevelFilter) -> Box<dyn Reporter> {
    if std::io::stdout().is_terminal() && std::io::stderr().is_terminal() {
        // https://no-color.org: any non-empty value.
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Box::new(TerminalReporter::new(colour, verbosity))
    } else {
        Box::new(PlainReporter::new(std::io::stdout(), print_freq, verbosity))
    }
}

/// Hears everything and says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct SilentReporter;

impl Reporter for SilentReporter {
    fn epoch_started(&mut self, _: EpochStart) {}
    fn step(&mut self, _: u64, _: &StepRecord) {}
    fn epoch_finished(&mut self, _: u64) {}
    fn evaluation(&mut self, _: &EvalRecord) {}
    fn message(&mut self, _: Level, _: &str) {}
}

/// Tells several reporters the same.
#[derive(Default)]
pub struct Tee(pub Vec<Box<dyn Reporter>>);

impl Reporter for Tee {
    fn epoch_started(&mut self, start: EpochStart) {
        self.0.iter_mut().for_each(|reporter| reporter.epoch_started(start));
    }

    fn step(&mut self, batches_done: u64, step: &StepRecord) {
        self.0.iter_mut().for_each(|reporter| reporter.step(batches_done, step));
    }

    fn epoch_finished(&mut self, epoch: u64) {
        self.0.iter_mut().for_each(|reporter| reporter.epoch_finished(epoch));
    }

    fn evaluation(&mut self, evaluation: &EvalRecord) {
        self.0.iter_mut().for_each(|reporter| reporter.evaluation(evaluation));
    }

    fn message(&mut self, level: Level, text: &str) {
        self.0.iter_mut().for_each(|reporter| reporter.message(level, text));
    }
}

/// A message as a person reads it: what it is, where that matters.
pub(super) fn labelled(level: Level, text: &str) -> String {
    match level {
        Level::Error => format!("error: {text}"),
        Level::Warn => format!("warning: {text}"),
        Level::Info | Level::Debug | Level::Trace => text.to_owned(),
    }
}

/// Writes plain lines, for files and pipes. A reader that goes away does not stop the run.
#[derive(Debug)]
pub struct PlainReporter<W: Write> {
    out: W,
    print_freq: u64,
    verbosity: LevelFilter,
    epoch: Epoch,
}

impl<W: Write> PlainReporter<W> {
    /// Writes to `out`, one line every `print_freq` batches and at the end of each epoch.
    pub fn new(out: W, print_freq: u64, verbosity: LevelFilter) -> Self {
        PlainReporter { out, print_freq: print_freq.max(1), verbosity, epoch: Epoch::default() }
    }

    fn line(&mut self, text: &str) {
        // A closed pipe or a full disk under a log is no reason to lose a run; nobody is left to be told.
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }
}

impl<W: Write> Reporter for PlainReporter<W> {
    fn epoch_started(&mut self, start: EpochStart) {
        self.epoch.start(start);
    }

    fn step(&mut self, batches_done: u64, step: &StepRecord) {
        self.epoch.step(batches_done, step);
        let (start, width) = (self.epoch.start, self.epoch.start.batches.to_string().len());
        if batches_done.is_multiple_of(self.print_freq) || batches_done == start.batches {
            let mut text = format!(
                "epoch {}/{}  batch {batches_done:width$}/{}  lr {}  {}",
                start.epoch + 1,
                start.epochs,
                start.batches,
                short(step.lr),
                self.epoch.summary(),
            );
            if let Some(ln_z) = step.ln_z {
                text += &format!("  ln Z {ln_z:.3}");
            }
            if let Some(left) = self.epoch.left() {
                text += &format!("  {left}");
            }
            self.line(&text);
        }
    }

    fn epoch_finished(&mut self, _: u64) {}

    fn evaluation(&mut self, evaluation: &EvalRecord) {
        self.line(&sentence(evaluation));
    }

    fn message(&mut self, level: Level, text: &str) {
        if level <= self.verbosity {
            self.line(&labelled(level, text));
        }
    }
}

/// The epoch under way, as both kinds of reporter keep it.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) start: EpochStart,
    /// Sums over the epoch's steps: loss, milliseconds waited, milliseconds, and how many.
    loss: f64,
    data_ms: f64,
    step_ms: f64,
    steps: u64,
    images_per_s: f64,
    eta: Option<Eta>,
    began: Instant,
}

impl Default for Epoch {
    fn default() -> Self {
        let start = EpochStart { epoch: 0, epochs: 0, batches: 0, batches_done: 0, batches_to_limit: None };
        Epoch {
            start,
            loss: 0.0,
            data_ms: 0.0,
            step_ms: 0.0,
            steps: 0,
            images_per_s: 0.0,
            eta: None,
            began: Instant::now(),
        }
    }
}

impl Epoch {
    pub(super) fn start(&mut self, start: EpochStart) {
        let mut eta = self.eta.take().unwrap_or_else(|| Eta::new(start.epochs));
        eta.epoch_started(start.epoch, start.batches, start.batches_done, start.batches_to_limit);
        *self = Epoch { start, eta: Some(eta), began: self.began, ..Epoch::default() };
    }

    pub(super) fn step(&mut self, batches_done: u64, step: &StepRecord) {
        self.loss += step.loss;
        self.data_ms += step.data_ms;
        self.step_ms += step.step_ms;
        self.steps += 1;
        // Smoothed, since single steps jump.
        let newest = if self.steps == 1 { 1.0 } else { 0.1 };
        self.images_per_s += newest * (step.images_per_s - self.images_per_s);
        if let Some(eta) = &mut self.eta {
            eta.batch_done(self.began.elapsed(), batches_done);
        }
    }

    /// `loss 8.1234  152 images/s  data wait 2 %`, the loss and the wait being means over the epoch.
    pub(super) fn summary(&self) -> String {
        let loss = self.loss / self.steps.max(1) as f64;
        let wait = 100.0 * self.data_ms / self.step_ms.max(f64::MIN_POSITIVE);
        let speed = self.images_per_s;
        let digits = if speed < 10.0 { 1 } else { 0 };
        format!("loss {loss:.4}  {speed:.digits$} images/s  data wait {wait:.0} %")
    }

    /// `epoch 0:12  run 1:23:45 left`, once that is known.
    pub(super) fn left(&self) -> Option<String> {
        let eta = self.eta.as_ref()?;
        Some(format!("left: epoch {}, run {}", clock(eta.epoch_left()?), clock(eta.run_left()?)))
    }
}

/// A number with as many digits as tell it apart, and no more.
fn short(value: f64) -> String {
    let text = format!("{value:.6}");
    match text.trim_end_matches('0').trim_end_matches('.') {
        "0" if value != 0.0 => format!("{value:.2e}"),
        text => text.to_owned(),
    }
}

/// An evaluation in one line.
pub(super) fn sentence(evaluation: &EvalRecord) -> String {
    let EvalRecord { epoch, metric, value, k, temperature, bank, layer, seconds } = evaluation;
    let unit = if evaluation.is_percentage() { " %" } else { "" };
    let digits = if evaluation.is_percentage() { 2 } else { 4 };
    let mut details = Vec::new();
    details.extend(k.map(|k| format!("k = {k}")));
    details.extend(temperature.map(|t| format!("T = {}", short(t))));
    details.push(format!("{bank} bank"));
    if layer != "embedding" {
        details.push(layer.clone());
    }
    let details = details.join(", ");
    format!("after epoch {}: {metric} {value:.digits$}{unit}  ({details}; {seconds:.1} s)", epoch + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    pub(crate) fn step(loss: f64) -> StepRecord {
        StepRecord { loss, lr: 0.03, images_per_s: 152.4, data_ms: 2.0, step_ms: 100.0, ..Default::default() }
    }

    fn start(epoch: u64, epochs: u64, batches: u64, batches_done: u64) -> EpochStart {
        EpochStart { epoch, epochs, batches, batches_done, batches_to_limit: None }
    }

    fn knn() -> EvalRecord {
        let (bank, layer) = ("live".into(), "embedding".into());
        EvalRecord {
            epoch: 1,
            metric: "knn_top1".into(),
            value: 34.5,
            k: Some(200),
            temperature: Some(0.1),
            bank,
            layer,
            seconds: 2.0,
        }
    }

    #[test]
    fn plain_lines_come_as_often_as_asked_and_at_the_end() {
        let mut out = Vec::new();
        let mut reporter = PlainReporter::new(&mut out, 10, LevelFilter::Info);
        reporter.epoch_started(start(1, 2, 25, 3));
        for done in 4..=25 {
            reporter.step(
                done,
                &StepRecord { ln_z: Some(11.6779), ..step(if done % 2 == 0 { 8.0 } else { 9.0 }) },
            );
        }
        reporter.epoch_finished(1);
        reporter.evaluation(&knn());
        reporter.message(Level::Debug, "not heard");
        reporter.message(Level::Warn, "saved");
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        let begins = "epoch 2/2  batch 10/25  lr 0.03  loss 8.4286  152 images/s  data wait 2 %  ln Z 11.678";
        assert!(lines[0].starts_with(begins), "{text}");
        assert!(lines[0].contains("left: epoch 0:00, run 0:00"), "{text}");
        assert!(lines[1].contains("batch 20/25") && lines[2].contains("batch 25/25"), "{text}");
        assert_eq!(lines[3], "after epoch 2: knn_top1 34.50 %  (k = 200, T = 0.1, live bank; 2.0 s)");
        assert_eq!(lines[4], "warning: saved");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn what_is_no_percentage_has_more_digits() {
        let (metric, layer) = ("alignment".into(), "pooled".into());
        let text = sentence(&EvalRecord { metric, layer, value: 0.25, k: None, temperature: None, ..knn() });
        assert_eq!(text, "after epoch 2: alignment 0.2500  (live bank, pooled; 2.0 s)");
    }

    #[test]
    fn small_rates_keep_their_digits() {
        assert_eq!(
            [0.03, 0.003, 0.00012, 1e-9, 0.0, 1.0].map(short),
            ["0.03", "0.003", "0.00012", "1.00e-9", "0", "1"]
        );
    }

    /// A pipe whose reader has gone away.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_closed_pipe_is_ignored() {
        let mut reporter = PlainReporter::new(Closed, 0, LevelFilter::Info);
        reporter.epoch_started(start(0, 1, 0, 0));
        reporter.step(1, &step(f64::NAN));
        reporter.message(Level::Info, "unheard");
    }
}
