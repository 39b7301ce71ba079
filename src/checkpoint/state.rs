//! Where a run stands: the counters that a checkpoint carries beside the tensors.

use serde::{Deserialize, Serialize};

use super::format::{Checkpoint, CheckpointView};
use crate::error::Result;

/// Everything that training continues from, but for tensors and configuration. Floats come back bit by bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The epoch under way, counted from 0; equal to the number of finished epochs.
    pub epoch: u64,
    /// Batches done in this epoch.
    pub step_in_epoch: u64,
    /// Optimiser steps since the start of the run.
    pub step: u64,
    /// Images trained on since the start of the run, repetitions counted.
    pub images_seen: u64,
    /// The logarithm of the partition constant Z, once it is known; only NCE has one.
    #[serde(with = "exact")]
    pub ln_z: Option<f64>,
    /// The best value of the monitor so far.
    #[serde(with = "exact")]
    pub best: Option<f64>,
    /// The epoch that [`best`](Self::best) was reached in.
    pub best_epoch: Option<u64>,
    /// Length of `metrics.jsonl` when this was saved; what follows in it will be done again.
    pub metrics_bytes: u64,
    /// The run's seed.
    pub seed: u64,
}

impl Progress {
    /// The metadata field of a checkpoint that holds it.
    pub const KEY: &str = "progress";

    /// Puts it into a checkpoint that is to be saved.
    pub fn store(&self, view: &mut CheckpointView) {
        view.set(Self::KEY, self);
    }

    /// Takes it from a checkpoint.
    ///
    /// # Errors
    /// If the checkpoint has none, or one of another form.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        checkpoint.get(Self::KEY)
    }
}

/// Floats as JSON numbers where that is exact, and as text (`"NaN"`, `"inf"`, `"-inf"`) where JSON has no number.
///
/// Finite numbers are written with as many digits as they need, and read back to the same bits thanks to
/// serde_json's feature `float_roundtrip`.
mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Float {
        Number(f64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        let float = |x: f64| if x.is_finite() { Float::Number(x) } else { Float::Text(x.to_string()) };
        value.map(float).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        match Option::deserialize(deserializer)? {
            None => Ok(None),
            Some(Float::Number(number)) => Ok(Some(number)),
            Some(Float::Text(text)) => text.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::scratch;
    use crate::checkpoint::format::save_atomic;
    use crate::rng::{Purpose, stream};
    use rand::Rng;

    fn through_json(ln_z: f64) -> Option<f64> {
        let progress = Progress { ln_z: Some(ln_z), ..Default::default() };
        serde_json::from_str::<Progress>(&serde_json::to_string(&progress).unwrap()).unwrap().ln_z
    }

    #[test]
    fn floats_come_back_bit_by_bit() {
        let mut random = stream(1, Purpose::Test, 0, 0);
        let awkward =
            [0.0, -0.0, 0.1, 1.0 / 3.0, f64::MIN_POSITIVE, 5e-324, f64::MAX, f64::INFINITY, -f64::INFINITY];
        let drawn = std::iter::repeat_with(|| f64::from_bits(random.next_u64())).take(20_000);
        for x in awkward.into_iter().chain(drawn.filter(|x| !x.is_nan())) {
            assert_eq!(through_json(x).map(f64::to_bits), Some(x.to_bits()), "{x:e}");
        }
        assert!(through_json(f64::NAN).unwrap().is_nan());
    }

    #[test]
    fn it_travels_in_a_checkpoint() {
        let (_dir, folder) = scratch();
        let progress = Progress {
            epoch: 3,
            step_in_epoch: 17,
            step: 1190,
            images_seen: u64::MAX,
            ln_z: Some(11.677_912_345_678_9),
            best: None,
            best_epoch: Some(2),
            metrics_bytes: 12_345,
            seed: 1 << 63,
        };
        let mut view = CheckpointView::default();
        progress.store(&mut view);
        save_atomic(&folder.join("a"), &view).unwrap();
        assert_eq!(Progress::load(&Checkpoint::open(folder.join("a")).unwrap()).unwrap(), progress);
        save_atomic(&folder.join("b"), &CheckpointView::default()).unwrap();
        let error = Progress::load(&Checkpoint::open(folder.join("b")).unwrap()).unwrap_err().to_string();
        assert!(error.contains("expected the field `progress`, found none"), "{error}");
    }
}
