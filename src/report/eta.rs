//! How long it will still take.

use std::time::Duration;

/// Weight of the newest batch in the average; about the last fifty count.
const NEWEST: f64 = 0.02;

/// Estimates the time left in an epoch and in the run, from a clock that the caller reads.
///
/// Within an epoch, time per batch is averaged over the recent batches. What lies between the last batch of an
/// epoch and the first of the next (evaluation, checkpoint, loader start) is measured apart, so that a run of
/// short epochs is not promised too early an end.
#[derive(Clone, Debug)]
pub struct Eta {
    epochs: u64,
    epoch: u64,
    batches: u64,
    done: u64,
    /// Weighted sum of seconds per batch, and of the weights.
    batch_seconds: (f64, f64),
    /// Sum of seconds between epochs, and their number.
    between_seconds: (f64, f64),
    last: Option<Duration>,
}

impl Eta {
    /// For a run of `epochs` epochs.
    pub fn new(epochs: u64) -> Self {
        Eta {
            epochs,
            epoch: 0,
            batches: 0,
            done: 0,
            batch_seconds: (0.0, 0.0),
            between_seconds: (0.0, 0.0),
            last: None,
        }
    }

    /// Epoch `epoch` (from 0) begins, `done` of whose `batches` batches were done before.
    pub fn epoch_started(&mut self, epoch: u64, batches: u64, done: u64) {
        (self.epoch, self.batches, self.done) = (epoch, batches, done);
    }

    /// At time `now` (since any origin), `done` batches of the epoch are done.
    pub fn batch_done(&mut self, now: Duration, done: u64) {
        if let Some(last) = self.last {
            let seconds = now.saturating_sub(last).as_secs_f64();
            // The first batch of an epoch comes after evaluation; the difference is the time between epochs.
            let batches = done.saturating_sub(self.done).max(1) as f64;
            if self.done == 0 {
                let between = (seconds - batches * self.seconds_per_batch().unwrap_or(0.0)).max(0.0);
                self.between_seconds.0 += between;
                self.between_seconds.1 += 1.0;
            } else {
                let (sum, weight) = self.batch_seconds;
                let kept = (1.0 - NEWEST).powf(batches);
                self.batch_seconds =
                    (kept * sum + (1.0 - kept) * seconds / batches, kept * weight + 1.0 - kept);
            }
        }
        self.last = Some(now);
        self.done = done;
    }

    /// Time left in this epoch, its evaluation not counted; `None` before the second batch.
    pub fn epoch_left(&self) -> Option<Duration> {
        duration(self.seconds_per_batch()? * self.batches.saturating_sub(self.done) as f64)
    }

    /// Time left in the run, including the evaluations to come as far as one has been seen.
    pub fn run_left(&self) -> Option<Duration> {
        let later = self.epochs.saturating_sub(self.epoch + 1) as f64;
        let batches = self.batches.saturating_sub(self.done) as f64 + later * self.batches as f64;
        let (sum, count) = self.between_seconds;
        let between = if count > 0.0 { sum / count } else { 0.0 };
        // As many gaps as epochs are still to end.
        let gaps = if self.epochs > self.epoch { later + 1.0 } else { 0.0 };
        duration(self.seconds_per_batch()? * batches + gaps * between)
    }

    fn seconds_per_batch(&self) -> Option<f64> {
        let (sum, weight) = self.batch_seconds;
        (weight > 0.0).then(|| sum / weight)
    }
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

    /// A run of 100 batches an epoch, 0.5 s each, and 20 s between epochs; the clock when it ends, and estimates.
    fn simulate(epochs: u64, mut look: impl FnMut(u64, u64, f64, &Eta)) -> f64 {
        let mut eta = Eta::new(epochs);
        let mut now = 3.0;
        for epoch in 0..epochs {
            eta.epoch_started(epoch, 100, 0);
            for batch in 0..100 {
                // Batches differ a little, the first one a lot.
                now += 0.5 + 0.05 * f64::from((batch % 3) as u8) - 0.05;
                eta.batch_done(Duration::from_secs_f64(now), batch + 1);
                look(epoch, batch + 1, now, &eta);
            }
            now += 20.0;
        }
        now
    }

    #[test]
    fn it_is_right_within_ten_percent_after_the_first_epoch() {
        let end = simulate(10, |_, _, _, _| ());
        let mut looked = 0;
        simulate(10, |epoch, batch, now, eta| {
            if epoch > 0 {
                let left = eta.run_left().unwrap().as_secs_f64();
                assert!((left / (end - now) - 1.0).abs() < 0.1, "{epoch} {batch}: {left} for {}", end - now);
                let left = eta.epoch_left().unwrap().as_secs_f64();
                assert!((left - 0.5 * (100 - batch) as f64).abs() < 2.5, "{epoch} {batch}: {left}");
                looked += 1;
            }
        });
        assert_eq!(looked, 900);
    }

    #[test]
    fn it_says_nothing_before_it_knows_anything() {
        let mut eta = Eta::new(2);
        eta.epoch_started(0, 10, 4);
        assert_eq!((eta.epoch_left(), eta.run_left()), (None, None));
        eta.batch_done(Duration::from_secs(1), 5);
        assert_eq!(eta.epoch_left(), None);
        eta.batch_done(Duration::from_secs(3), 6);
        assert_eq!(eta.epoch_left(), Some(Duration::from_secs(8)));
        assert_eq!(eta.run_left(), Some(Duration::from_secs(28)));
    }

    #[test]
    fn a_clock_that_goes_backwards_does_no_harm() {
        let mut eta = Eta::new(1);
        eta.epoch_started(0, 10, 1);
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
