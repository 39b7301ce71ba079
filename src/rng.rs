//! Randomness as a function of what it is for, never of what was drawn before.
//!
//! Every random decision takes its generator from [`stream`]: the run's seed, the purpose, and two counters
//! (an epoch and an index, a step and a row). So the number of workers cannot change a result, nothing
//! random has to be stored in a checkpoint, and a resumed run continues exactly.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream of random numbers is for. The numbers are part of every run's identity: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial encoder parameters; counters: parameter number, 0.
    Parameters = 1,
    /// Initial bank rows; counters: 0, 0.
    Bank = 2,
    /// The order of an epoch; counters: epoch, 0.
    Order = 3,
    /// Augmentation of a training image; counters: epoch, sample index.
    Augmentation = 4,
    /// Noise samples (negatives); counters: step, row within the batch.
    Noise = 5,
    /// A second augmented view, for the label-free monitor; counters: epoch, sample index.
    SecondView = 6,
    /// The generated data set; counters: split, sample index.
    Synthetic = 7,
    /// Anything in tests; counters free.
    Test = 8,
    /// Training images kept back to choose the settings of a linear classifier; counters: class, 0.
    HeldOut = 20,
    /// Labelled images of a fine-tuning; counters: class, 0.
    LabelFraction = 21,
    /// First centres of clusters; counters: restart, number of clusters.
    Clusters = 22,
    /// Which queries a page of retrievals shows; counters: 0, 0.
    Queries = 23,
}

/// The generator of one decision: a ChaCha8 stream keyed by all four numbers.
///
/// ChaCha8 is specified, portable and the same in every release of `rand_chacha`; distinct keys give
/// independent streams.
pub fn stream(seed: u64, purpose: Purpose, counter: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, counter, index]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn a_stream_depends_on_each_of_its_four_numbers() {
        let first = |seed, purpose, counter, index| stream(seed, purpose, counter, index).next_u64();
        let base = first(1, Purpose::Test, 2, 3);
        assert_eq!(base, first(1, Purpose::Test, 2, 3));
        for other in [
            first(0, Purpose::Test, 2, 3),
            first(1, Purpose::Noise, 2, 3),
            first(1, Purpose::Test, 1, 3),
            first(1, Purpose::Test, 2, 2),
        ] {
            assert_ne!(base, other);
        }
    }
}
