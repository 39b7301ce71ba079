//! What a run writes down about itself: steps, measurements after each epoch, the retrievals of the followed queries,
//! and what a person should know.

use std::time::Instant;

use log::Level;

use super::Session;
use super::watch::Epoch;
use crate::checkpoint::state::Progress;
use crate::config::Monitor;
use crate::error::Result;
use crate::eval::features::Input;
use crate::eval::knn::GridCell;
use crate::eval::monitor;
use crate::eval::retrieval::retrieve;
use crate::eval::spread::spread;
use crate::report::retrievals::{self, Snapshot};
use crate::report::tensorboard::EventWriter;
use crate::report::{EvalRecord, Finding, StepRecord};

/// Pixels of an image in TensorBoard's picture of the retrievals.
const TILE: u32 = 48;

impl Session<'_> {
    /// The monitor's value, in percent, after writing down all that is measured; `None` with `--monitor none`, which
    /// measures nothing.
    pub(super) fn measure(&mut self) -> Result<Option<f64>> {
        if self.config.monitor == Monitor::None {
            return Ok(None);
        }
        let started = Instant::now();
        let config = &self.config;
        let epoch = self.state.progress.epoch;
        let bank = self.state.bank.on_host();
        let input = Input::new(config.family, config.image_size, config.workers)
            .with_read_timeout(config.read_timeout());
        let queries = monitor::queries(&self.state.encoder, &self.splits, &input, &mut |_| {})?;
        let mut records = Vec::new();
        let value = match queries {
            Some(queries) => {
                let k = if config.monitor == Monitor::Nn { 1 } else { config.knn_k };
                let train = &self.splits.train;
                let neighbors = monitor::search(self.state.encoder.device(), &queries, &bank, train, k);
                // One search answers both: the nearest row is the first of the k.
                let mut ks = vec![1, k];
                ks.dedup();
                for cell in monitor::accuracies(&neighbors, &queries, train, &ks, &[config.temperature]) {
                    records.extend(accuracy_records(epoch, &cell));
                }
                records
                    .iter()
                    .rev()
                    .find(|record| record.metric.ends_with("_top1"))
                    .map(|record| record.value)
            }
            None => {
                let measured = monitor::label_free(
                    &self.state.encoder,
                    &bank,
                    &self.splits.train,
                    &config.augmentation,
                    &input,
                    config.seed,
                    epoch,
                )?;
                let own_row_first = 100.0 * measured.own_row_first;
                for (metric, value) in [
                    ("view_top1", own_row_first),
                    ("alignment", measured.alignment),
                    ("uniformity", measured.uniformity),
                ] {
                    records.push(live_record(epoch, metric, value));
                }
                Some(own_row_first)
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let spread = spread(&bank, self.splits.train.quarantined(), config.temperature);
        let seconds_of_spread = started.elapsed().as_secs_f64();
        records.iter_mut().for_each(|record| record.seconds = seconds);
        records.extend(spread.map(|spread| EvalRecord {
            seconds: seconds_of_spread,
            ..live_record(epoch, "effective_rank", spread.effective_rank)
        }));
        for record in &records {
            self.metrics.evaluation(record)?;
            self.reporter.evaluation(record);
            let step = self.state.progress.step;
            self.write_event(|events| events.evaluation(step, record));
        }
        self.retrieve(&input)?;
        let progress = &self.state.progress;
        let found = self.watch.epoch(Epoch {
            finished: epoch + 1,
            steps: progress.step,
            evaluations: &records,
            spread,
            ln_z: progress.ln_z,
        });
        self.tell(&found)?;
        Ok(value)
    }

    /// Looks up the followed queries and writes down what is found.
    fn retrieve(&mut self, input: &Input) -> Result<()> {
        let Progress { epoch, step, .. } = self.state.progress;
        if !retrievals::due(epoch, self.config.epochs) {
            return Ok(());
        }
        let queries = retrieve(&self.state.encoder, &self.state.bank.on_host(), &self.splits, input)?;
        let snapshot = Snapshot { epoch, step, queries };
        self.retrievals.append(&snapshot)?;
        let splits = self.splits.clone();
        self.write_event(|events| {
            events.image(step, "retrievals", &retrievals::sheet(&snapshot, &splits, TILE)?)
        });
        Ok(())
    }

    /// Says what the settings alone tell.
    pub(super) fn watch_settings(&mut self) -> Result<()> {
        let found = self.watch.start();
        self.tell(&found)
    }

    /// Writes down a step and tells everybody.
    pub(super) fn step_made(&mut self, record: &StepRecord) -> Result<()> {
        self.metrics.step(record)?;
        self.reporter.step(self.state.progress.step_in_epoch, record);
        self.watch.step(record);
        if record.step == 1 || record.step.is_multiple_of(self.config.print_freq) {
            self.write_event(|events| events.step(record));
        }
        Ok(())
    }

    /// Says findings, and writes them down as notes.
    fn tell(&mut self, found: &[Finding]) -> Result<()> {
        let Progress { epoch, step, .. } = self.state.progress;
        for finding in found {
            self.metrics.finding(epoch, step, finding)?;
            self.reporter.message(finding.level(), &finding.text);
        }
        Ok(())
    }

    /// Does `write` where event files are wanted. One that cannot be written is no reason to lose a run: that is said,
    /// and the rest is left out.
    fn write_event(&mut self, write: impl FnOnce(&mut EventWriter) -> Result<()>) {
        let Some(events) = &mut self.events else { return };
        if let Err(error) = write(events) {
            self.events = None;
            self.reporter.message(Level::Warn, &format!("no more event files for TensorBoard: {error}"));
        }
    }
}

/// `nn_top1` for the nearest row alone, `knn_top1` and `knn_top5` for a vote.
fn accuracy_records(epoch: u64, cell: &GridCell) -> Vec<EvalRecord> {
    let shares = match cell.k {
        1 => vec![("nn_top1", cell.accuracy.top1)],
        _ => vec![("knn_top1", cell.accuracy.top1), ("knn_top5", cell.accuracy.top5)],
    };
    let record = |(metric, share)| EvalRecord {
        k: Some(cell.k as u64),
        temperature: Some(cell.temperature),
        ..live_record(epoch, metric, 100.0 * share)
    };
    shares.into_iter().map(record).collect()
}

/// A measurement of embeddings against the live bank.
fn live_record(epoch: u64, metric: &str, value: f64) -> EvalRecord {
    EvalRecord {
        epoch,
        metric: metric.into(),
        value,
        bank: "live".into(),
        layer: "embedding".into(),
        ..EvalRecord::default()
    }
}
