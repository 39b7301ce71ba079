//! How long it will still take.

use std::time::Duration;

/// The time per batch is averaged over about this share of an epoch, so that what happens inside an epoch again and again
/// (checkpoints by the clock, a page cache that fills) is averaged too, and a machine that got slower shows before long.
const SHARE_OF_EPOCH: f64 = 0.5;

/// But over at least so many batches: single ones jump.
const LEAST_BATCHES: f64 = 50.0;

/// And over at least so many seconds: on a machine that others use the speed differs from one second to the next, and the
/// epochs of a small data set are not longer than that.
const LEAST_SECONDS: f64 = 30.0;

/// Estimates the time left in an epoch and in the run, from a clock that the caller reads.
///
/// What lies between the last batch of an epoch and the first of the next (evaluation, checkpoint, loader start) is
/// measured apart, so that a run of short epochs is not promised too early an end.
#[derive(Clone, Debug)]
pub struct Eta {
    epochs: u64,
    epoch: u64,
    batches: u64,
    done: u64,
    /// Batches still to come before `--max-steps` ends the run.
    to_limit: Option<u64>,
    /// Weighted sum of seconds per batch, and of the weights.
    batch_seconds: (f64, f64),
    /// Weighted sum of seconds between epochs, and of the weights.
    between_seconds: (f64, f64),
    last: Option<Duration>,
}

/// Weight of the newest gap between epochs: evaluation times drift as other work on the machine comes and goes.
const NEWEST_GAP: f64 = 0.3;

impl Eta {
    /// For a run of `epochs` epochs.
    pub fn new(epochs: u64) -> Self {
        Eta {
            epochs,
            epoch: 0,
            batches: 0,
            done: 0,
            to_limit: None,
            batch_seconds: (0.0, 0.0),
            between_seconds: (0.0, 0.0),
            last: None,
        }
    }

    /// Epoch `epoch` (from 0) begins, `done` of whose `batches` batches were done before; after `to_limit` more batches,
    /// if that is given, the run ends.
    pub fn epoch_started(&mut self, epoch: u64, batches: u64, done: u64, to_limit: Option<u64>) {
        (self.epoch, self.batches, self.done, self.to_limit) = (epoch, batches, done, to_limit);
    }

    /// At time `now` (since any origin), `done` batches of the epoch are done.
    pub fn batch_done(&mut self, now: Duration, done: u64) {
        let passed = done.saturating_sub(self.done);
        if let Some(last) = self.last {
            let seconds = now.saturating_sub(last).as_secs_f64();
            let batches = passed.max(1) as f64;
            // The first batch of an epoch comes after evaluation; the difference is the time between epochs.
            if self.done == 0 {
                let between = (seconds - batches * self.seconds_per_batch().unwrap_or(0.0)).max(0.0);
                weigh(&mut self.between_seconds, between, NEWEST_GAP);
            } else {
                let usual = self.seconds_per_batch().unwrap_or(seconds / batches).max(f64::MIN_POSITIVE);
                let horizon =
                    (SHARE_OF_EPOCH * self.batches as f64).max(LEAST_BATCHES).max(LEAST_SECONDS / usual);
                weigh(&mut self.batch_seconds, seconds / batches, 1.0 - (-batches / horizon).exp());
            }
        }
        self.to_limit = self.to_limit.map(|left| left.saturating_sub(passed));
        self.last = Some(now);
        self.done = done;
    }

    /// Time left in this epoch, its evaluation not counted; `None` before the second batch.
    pub fn epoch_left(&self) -> Option<Duration> {
        let batches = self.batches.saturating_sub(self.done);
        duration(self.seconds_per_batch()? * batches.min(self.to_limit.unwrap_or(batches)) as f64)
    }

    /// Time left in the run, including the evaluations to come as far as one has been seen.
    pub fn run_left(&self) -> Option<Duration> {
        let later = self.epochs.saturating_sub(self.epoch + 1);
        let here = self.batches.saturating_sub(self.done);
        let all = here.saturating_add(later.saturating_mul(self.batches));
        // As many gaps as epochs are still to end.
        let (batches, gaps) = match self.to_limit {
            Some(limit) if limit < all => {
                let epochs_ended = limit.checked_sub(here).map_or(0, |rest| 1 + rest / self.batches.max(1));
                (limit, epochs_ended)
            }
            _ => (all, if self.epochs > self.epoch { later + 1 } else { 0 }),
        };
        let between = mean(self.between_seconds).unwrap_or(0.0);
        duration(self.seconds_per_batch()? * batches as f64 + gaps as f64 * between)
    }

    fn seconds_per_batch(&self) -> Option<f64> {
        mean(self.batch_seconds)
    }
}

/// Adds `value` to a weighted sum in which it has the weight `newest` and what was there the rest.
fn weigh((sum, weight): &mut (f64, f64), value: f64, newest: f64) {
    *sum = (1.0 - newest) * *sum + newest * value;
    *weight = (1.0 - newest) * *weight + newest;
}

fn mean((sum, weight): (f64, f64)) -> Option<f64> {
    (weight > 0.0).then(|| sum / weight)
}

fn duration(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// `0:07`, `12:34`, `1:02:03`, `2d 03:04`.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}:{:02}", seconds % 60),
        (0, _) => format!("{hours}:{minutes:02}:{:02}", seconds % 60),
        _ => format!("{days}d {hours:02}:{minutes:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a simulated run is like, in seconds.
    #[derive(Clone, Copy)]
    struct Run {
        epochs: u64,
        batches: u64,
        batch: f64,
        /// The very first batch: threads start, memory is taken.
        first: f64,
        /// Evaluation and the checkpoints around it.
        between: f64,
        /// A checkpoint inside an epoch, every so many seconds.
        save: f64,
        save_every: f64,
        /// The run ends after so many batches.
        limit: Option<u64>,
    }

    /// Plays the run; the clock when it ends. `look` hears of every batch: epoch, batch, clock, estimates.
    fn simulate(run: Run, mut look: impl FnMut(u64, u64, f64, &Eta)) -> f64 {
        let mut eta = Eta::new(run.epochs);
        let (mut now, mut saved, mut total) = (3.0, 3.0, 0);
        for epoch in 0..run.epochs {
            eta.epoch_started(epoch, run.batches, 0, run.limit.map(|limit| limit - total));
            for batch in 0..run.batches {
                if run.limit == Some(total) {
                    return now;
                }
                // Batches differ, here by up to a third either way, some of them by a lot.
                let noise = ((total * 2_654_435_761) % 1000) as f64 / 1000.0 - 0.5;
                now += run.batch * (1.0 + 0.6 * noise) + if total % 97 == 96 { run.batch } else { 0.0 };
                now += if total == 0 { run.first } else { 0.0 };
                if now - saved >= run.save_every {
                    now += run.save;
                    saved = now;
                }
                total += 1;
                eta.batch_done(Duration::from_secs_f64(now), batch + 1);
                look(epoch, batch + 1, now, &eta);
            }
            now += run.between;
            saved = now;
        }
        now
    }

    /// Of a run of 24 epochs of four seconds, on a machine whose speed is another one in each.
    #[test]
    fn the_speed_of_one_short_epoch_is_not_that_of_the_run() {
        let seconds = |epoch: u64| 4.0 + 1.5 * (((epoch * 2_654_435_761) % 1000) as f64 / 1000.0 - 0.5);
        let end: f64 = (0..24).map(seconds).sum();
        let (mut eta, mut now) = (Eta::new(24), 0.0);
        for epoch in 0..24 {
            eta.epoch_started(epoch, 63, 0, None);
            for batch in 1..=63 {
                now += seconds(epoch) / 63.0;
                eta.batch_done(Duration::from_secs_f64(now), batch);
            }
            // Towards the end so few epochs are left that theirs is another mean.
            if (1..16).contains(&epoch) {
                let (found, true_left) = (eta.run_left().unwrap().as_secs_f64(), end - now);
                assert!((found - true_left).abs() < 0.1 * true_left, "{epoch}: {found} for {true_left}");
            }
        }
    }

    /// Every estimate after the first epoch lies within a tenth of what came, or within two seconds at the very end.
    fn is_right(run: Run) {
        let end = simulate(run, |_, _, _, _| ());
        let mut looked = 0;
        simulate(run, |epoch, batch, now, eta| {
            if epoch > 0 {
                let (found, true_left) = (eta.run_left().unwrap().as_secs_f64(), end - now);
                let off = (found - true_left).abs();
                assert!(off < (0.1 * true_left).max(2.0), "{epoch} {batch}: {found} for {true_left}");
                looked += 1;
            }
        });
        assert!(looked > 100);
    }

    const CIFAR: Run = Run {
        epochs: 20,
        batches: 391,
        batch: 1.1,
        first: 6.0,
        between: 45.0,
        save: 1.5,
        save_every: 600.0,
        limit: None,
    };

    #[test]
    fn it_is_right_within_ten_percent_after_the_first_epoch() {
        is_right(CIFAR);
        // Epochs of a few batches, most of the time spent on measuring.
        is_right(Run { epochs: 60, batches: 7, batch: 0.2, between: 3.0, ..CIFAR });
        // Long epochs with large checkpoints inside them.
        is_right(Run {
            epochs: 3,
            batches: 5004,
            batch: 1.6,
            save: 25.0,
            between: 700.0,
            first: 60.0,
            ..CIFAR
        });
        is_right(Run { save: 0.0, between: 0.0, first: 0.0, ..CIFAR });
    }

    #[test]
    fn a_step_limit_ends_the_run_earlier() {
        is_right(Run { limit: Some(3 * 391 + 17), ..CIFAR });
        is_right(Run { limit: Some(2 * 391), ..CIFAR });
        let mut eta = Eta::new(9);
        eta.epoch_started(0, 100, 0, Some(5));
        eta.batch_done(Duration::from_secs(1), 1);
        eta.batch_done(Duration::from_secs(3), 2);
        assert_eq!((eta.epoch_left(), eta.run_left()), (duration(6.0), duration(6.0)));
    }

    #[test]
    fn an_epoch_is_estimated_without_its_evaluation() {
        simulate(CIFAR, |epoch, batch, _, eta| {
            if epoch > 0 {
                let (found, true_left) =
                    (eta.epoch_left().unwrap().as_secs_f64(), 1.1 * (391 - batch) as f64);
                assert!((found - true_left).abs() < 0.1 * true_left + 2.0, "{epoch} {batch}: {found}");
            }
        });
    }

    #[test]
    fn it_says_nothing_before_it_knows_anything() {
        let mut eta = Eta::new(2);
        eta.epoch_started(0, 10, 4, None);
        assert_eq!((eta.epoch_left(), eta.run_left()), (None, None));
        eta.batch_done(Duration::from_secs(1), 5);
        assert_eq!(eta.epoch_left(), None);
        eta.batch_done(Duration::from_secs(3), 6);
        let seconds = |time: Option<Duration>| time.unwrap().as_secs_f64().round();
        assert_eq!((seconds(eta.epoch_left()), seconds(eta.run_left())), (8.0, 28.0));
    }

    #[test]
    fn a_clock_that_goes_backwards_does_no_harm() {
        let mut eta = Eta::new(1);
        eta.epoch_started(0, 10, 1, None);
        for (now, done) in [(5, 1), (6, 2), (1, 3), (2, 3), (3, 2)] {
            eta.batch_done(Duration::from_secs(now), done);
        }
        assert!(eta.run_left().unwrap() < Duration::from_secs(60));
    }

    #[test]
    fn times_read_like_a_clock() {
        let text = |seconds| clock(Duration::from_secs(seconds));
        assert_eq!([7, 754, 3723, 183_840].map(text), ["0:07", "12:34", "1:02:03", "2d 03:04"]);
    }
}
