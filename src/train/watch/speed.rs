//! Where the time of a step goes, and what to change.

use super::Facts;
use crate::config::{ObjectiveKind, TrainConfig};
use crate::data::detect::DataFormat;
use crate::report::{Finding, StepRecord};

/// Steps at the beginning of a pass that are passed over: threads start, the first batches are decoded.
pub(super) const WARM_UP: u64 = 10;

/// Steps and milliseconds that a judgement needs.
pub(super) const ENOUGH: (u64, f64) = (30, 10_000.0);

/// Share of the time spent waiting for images from which on a run is loader-bound.
pub(super) const WAITING: f64 = 0.2;

/// Share of the time from which on the objective is worth a remark.
pub(super) const OBJECTIVE: f64 = 0.3;

/// Sums over the steps of an epoch, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Pace {
    seen: u64,
    steps: u64,
    total: f64,
    waiting: f64,
    network: f64,
    objective: f64,
}

impl Pace {
    pub(super) fn step(&mut self, record: &StepRecord) {
        self.seen += 1;
        if self.seen > WARM_UP {
            self.add(record);
        }
    }

    /// Counts a step that is known to be a usual one.
    pub(super) fn add(&mut self, record: &StepRecord) {
        let part = |name: &str| record.extra.get(name).and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        self.steps += 1;
        self.total += record.step_ms;
        self.waiting += record.data_ms;
        self.network += part("forward_ms") + part("backward_ms") + part("update_ms");
        self.objective += part("objective_ms");
    }
}

/// What bounds a run, once enough of it was seen.
pub(super) fn look(config: &TrainConfig, facts: &Facts, pace: &Pace) -> Option<Finding> {
    let enough = pace.steps >= ENOUGH.0 && pace.total >= ENOUGH.1;
    enough.then(|| judge(config, facts, pace))
}

/// What bounds steps like those of `pace`, of which there is at least one.
pub(super) fn judge(config: &TrainConfig, facts: &Facts, pace: &Pace) -> Finding {
    let percent = |part: f64| 100.0 * part / pace.total;
    if pace.waiting > WAITING * pace.total {
        let remedy = if config.workers < facts.cores {
            format!("give decoding more threads: -j {} (now {})", facts.cores, config.workers)
        } else {
            let packed = match config.data_format {
                DataFormat::Folder | DataFormat::Flat | DataFormat::List => ": see lemniscate pack",
                _ => "",
            };
            format!(
                "all {} processors decode already; images stored near the training size ({} px) and on a local disk decode \
                 faster{packed}",
                facts.cores, config.image_size
            )
        };
        let text =
            format!("the network waits for images {:.0} % of the time; {remedy}", percent(pace.waiting));
        return Finding::warning("loader-bound", text);
    }
    let shares = format!(
        "compute-bound: of a step the network takes {:.0} %, the objective {:.0} %, waiting for images {:.0} %",
        percent(pace.network),
        percent(pace.objective),
        percent(pace.waiting)
    );
    let mut remedies = Vec::new();
    if pace.objective > OBJECTIVE * pace.total {
        remedies.push(match config.objective {
            ObjectiveKind::Softmax => format!("--nce-k 4096 samples from the {} rows", facts.rows),
            _ => format!("fewer negatives than --nce-k {} are cheaper", config.n_negatives),
        });
    }
    if facts.on_cpu && config.threads != 0 && config.threads < facts.cores {
        remedies.push(format!("--threads 0 uses all {} processors (now {})", facts.cores, config.threads));
    }
    let text = match remedies.is_empty() {
        true => shares,
        false => format!("{shares}; {}", remedies.join("; ")),
    };
    Finding::advice("compute-bound", text)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, facts};
    use super::*;
    use crate::config::Preset;

    /// An epoch of `steps` steps of a second each, parts in shares of it.
    fn pace(steps: u64, waiting: f64, objective: f64) -> Pace {
        let mut pace = Pace::default();
        // The first steps of a pass wait, whatever comes later.
        for step in 0..steps {
            let data_ms = if step < WARM_UP { 1000.0 } else { 1000.0 * waiting };
            let network = (1000.0 - data_ms - 1000.0 * objective) / 2.0;
            let parts =
                [("forward_ms", network), ("backward_ms", network), ("objective_ms", 1000.0 * objective)];
            let extra = parts.map(|(name, ms)| (name.to_owned(), ms.into())).into();
            pace.step(&StepRecord { step_ms: 1000.0, data_ms, extra, ..Default::default() });
        }
        pace
    }

    #[test]
    fn a_loader_bound_run_is_told_what_to_change() {
        let few = TrainConfig { workers: 1, ..config(Preset::Cifar) };
        let found = look(&few, &facts(), &pace(60, 0.35, 0.1)).unwrap();
        assert!(found.about == "loader-bound" && found.is_warning);
        assert!(found.text.contains("35 %") && found.text.contains("-j 2 (now 1)"), "{}", found.text);
        let all = TrainConfig { workers: 2, ..few };
        let found = look(&all, &facts(), &pace(60, 0.35, 0.1)).unwrap();
        assert!(found.text.contains("all 2 processors decode already"), "{}", found.text);
        assert!(found.text.contains("lemniscate pack"), "{}", found.text);
    }

    #[test]
    fn a_compute_bound_run_is_told_where_the_time_goes() {
        let plain = TrainConfig { threads: 0, ..config(Preset::Cifar) };
        let found = look(&plain, &facts(), &pace(60, 0.01, 0.04)).unwrap();
        assert!(!found.is_warning, "being busy is no fault");
        let expected =
            "compute-bound: of a step the network takes 95 %, the objective 4 %, waiting for images 1 %";
        assert_eq!(found.text, expected);
        let one_thread = TrainConfig { threads: 1, ..plain.clone() };
        let found = look(&one_thread, &facts(), &pace(60, 0.01, 0.5)).unwrap();
        assert!(
            found.text.contains("--nce-k 4096 are cheaper") && found.text.contains("--threads 0"),
            "{}",
            found.text
        );
        let softmax = TrainConfig { objective: ObjectiveKind::Softmax, n_negatives: 0, ..plain };
        let found = look(&softmax, &facts(), &pace(60, 0.01, 0.5)).unwrap();
        assert!(found.text.contains("samples from the 50000 rows"), "{}", found.text);
    }

    #[test]
    fn too_little_is_no_ground_to_judge() {
        let config = config(Preset::Cifar);
        assert_eq!(look(&config, &facts(), &pace(WARM_UP + ENOUGH.0 - 1, 0.9, 0.0)), None);
        assert_eq!(
            look(&config, &facts(), &Pace { steps: 1000, total: 900.0, waiting: 800.0, ..Pace::default() }),
            None
        );
    }
}
