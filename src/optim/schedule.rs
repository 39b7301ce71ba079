//! The learning rate as a function of where training stands.

use serde::{Deserialize, Serialize};

/// Where warm-up begins, as a share of the base rate: no step is wasted at a rate of zero.
const WARMUP_START: f64 = 0.1;

/// How the learning rate falls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// Times `gamma` at each of `milestones`, in epochs from the start of the run. The published schedule.
    Step {
        /// Epochs at which the rate falls.
        milestones: Vec<f64>,
        /// Its factor.
        gamma: f64,
    },
    /// Half a cosine from the base rate, at the end of warm-up, to zero, at the end of the run
    /// (Loshchilov and Hutter 2017, without restarts). Changes with every step.
    Cosine,
    /// The base rate throughout.
    Constant,
}

impl Default for Schedule {
    /// As published, for 200 epochs: ×0.1 from epoch 120, ×0.01 from epoch 160.
    fn default() -> Self {
        Schedule::Step { milestones: vec![120.0, 160.0], gamma: 0.1 }
    }
}

/// The learning rate of a step that begins at `position`, in epochs from the start of the run of `epochs`.
///
/// During the first `warmup` epochs the rate rises linearly from a tenth of what `schedule` says to all of it.
pub fn lr(base: f64, schedule: &Schedule, warmup: f64, epochs: f64, position: f64) -> f64 {
    let factor = match schedule {
        Schedule::Step { milestones, gamma } => {
            let passed = milestones.iter().filter(|&&milestone| position >= milestone).count();
            gamma.powi(passed as i32)
        }
        Schedule::Cosine => {
            // Neither warm-up nor a run without length may divide by zero.
            let length = (epochs - warmup).max(f64::MIN_POSITIVE);
            let progress = ((position - warmup) / length).clamp(0.0, 1.0);
            0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        }
        Schedule::Constant => 1.0,
    };
    let rise = if position < warmup { WARMUP_START + (1.0 - WARMUP_START) * position / warmup } else { 1.0 };
    base * factor * rise
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn the_published_schedule_falls_at_120_and_160() {
        let rate = |position| lr(0.03, &Schedule::default(), 0.0, 200.0, position);
        assert!(close(rate(0.0), 0.03) && close(rate(119.999), 0.03));
        assert!(close(rate(120.0), 0.003) && close(rate(159.999), 0.003));
        assert!(close(rate(160.0), 0.0003) && close(rate(199.0), 0.0003));
    }

    #[test]
    fn the_cosine_goes_from_the_base_rate_to_zero() {
        let rate = |position| lr(0.4, &Schedule::Cosine, 10.0, 110.0, position);
        assert!(close(rate(10.0), 0.4) && close(rate(60.0), 0.2) && close(rate(110.0), 0.0));
        assert!(close(rate(120.0), 0.0), "a run that is longer than announced stays at zero");
    }

    #[test]
    fn warm_up_rises_linearly_to_the_schedule() {
        for schedule in [Schedule::default(), Schedule::Constant, Schedule::Cosine] {
            let rate = |position| lr(1.0, &schedule, 4.0, 200.0, position);
            assert!(close(rate(0.0), 0.1) && close(rate(2.0), 0.55) && close(rate(4.0), 1.0), "{schedule:?}");
        }
        assert!(lr(1.0, &Schedule::Cosine, 5.0, 5.0, 5.0).is_finite());
        assert!(close(lr(1.0, &Schedule::Constant, 0.0, 0.0, 0.0), 1.0));
    }

    #[test]
    fn schedules_survive_toml() {
        for schedule in [Schedule::default(), Schedule::Constant, Schedule::Cosine] {
            let text = toml::to_string(&schedule).unwrap();
            assert_eq!(toml::from_str::<Schedule>(&text).unwrap(), schedule);
        }
    }
}
