//! The progress bar.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use log::{Level, LevelFilter};

use super::metrics::{EvalRecord, StepRecord};
use super::progress::{Epoch, EpochStart, Reporter, labelled, sentence};

/// Draws a bar per epoch on standard error; lines scroll away above it.
pub struct TerminalReporter {
    screen: MultiProgress,
    bar: Option<ProgressBar>,
    style: ProgressStyle,
    verbosity: LevelFilter,
    epoch: Epoch,
}

impl TerminalReporter {
    /// A reporter on standard error, with or without colour, that leaves out messages of less weight than `verbosity`.
    pub fn new(colour: bool, verbosity: LevelFilter) -> Self {
        Self::with_target(colour, verbosity, ProgressDrawTarget::stderr())
    }

    fn with_target(colour: bool, verbosity: LevelFilter, target: ProgressDrawTarget) -> Self {
        let bar = if colour { "{wide_bar:.cyan/240}" } else { "{wide_bar}" };
        // Two lines: one is too short for it all on a terminal of 80 columns.
        let template = format!("{{prefix}} {bar} {{pos}}/{{len}}\n{{wide_msg}}");
        let style =
            ProgressStyle::with_template(&template).expect("the template is valid").progress_chars("━╸─");
        let screen = MultiProgress::with_draw_target(target);
        TerminalReporter { screen, bar: None, style, verbosity, epoch: Epoch::default() }
    }

    /// Says something above the bar, or where it will be.
    fn say(&self, text: &str) {
        // A terminal that was closed is no reason to lose a run.
        let _ = self.screen.println(text);
    }
}

impl Reporter for TerminalReporter {
    fn epoch_started(&mut self, start: EpochStart) {
        self.epoch.start(start);
        let bar = ProgressBar::new(start.batches)
            .with_style(self.style.clone())
            .with_prefix(format!("epoch {}/{}", start.epoch + 1, start.epochs))
            .with_position(start.batches_done);
        let bar = self.screen.add(bar);
        bar.tick();
        self.bar = Some(bar);
    }

    fn step(&mut self, batches_done: u64, step: &StepRecord) {
        self.epoch.step(batches_done, step);
        if let Some(bar) = &self.bar {
            let mut message = self.epoch.summary();
            if let Some(left) = self.epoch.left() {
                message += &format!("  {left}");
            }
            bar.set_message(message);
            bar.set_position(batches_done);
        }
    }

    fn epoch_finished(&mut self, epoch: u64) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            self.screen.remove(&bar);
            self.say(&format!("epoch {}/{}  {}", epoch + 1, self.epoch.start.epochs, self.epoch.summary()));
        }
    }

    fn evaluation(&mut self, evaluation: &EvalRecord) {
        self.say(&sentence(evaluation));
    }

    fn message(&mut self, level: Level, text: &str) {
        if level <= self.verbosity {
            self.say(&labelled(level, text));
        }
    }
}

impl Drop for TerminalReporter {
    fn drop(&mut self) {
        // An interrupted epoch leaves its bar where it stood, and the prompt below it.
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::TermLike;
    use std::cell::RefCell;
    use std::io;

    thread_local! {
        /// Everything the screen of this test's thread was sent.
        static SENT: RefCell<String> = const { RefCell::new(String::new()) };
    }

    #[derive(Debug)]
    struct Screen;

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)?;
            self.write_str("\n")
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            SENT.with_borrow_mut(|sent| sent.push_str(text));
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            // What a terminal that was closed answers.
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn watch(colour: bool) -> String {
        SENT.take();
        let target = ProgressDrawTarget::term_like(Box::new(Screen));
        let mut reporter = TerminalReporter::with_target(colour, LevelFilter::Info, target);
        reporter.message(Level::Info, "hello");
        reporter.epoch_started(EpochStart {
            epoch: 2,
            epochs: 9,
            batches: 4,
            batches_done: 1,
            batches_to_limit: None,
        });
        for done in 2..=4 {
            reporter.step(
                done,
                &StepRecord { loss: 5.0, images_per_s: 152.0, step_ms: 10.0, ..Default::default() },
            );
        }
        reporter.epoch_finished(2);
        reporter.evaluation(&EvalRecord {
            epoch: 2,
            metric: "nn_top1".into(),
            value: 30.0,
            ..Default::default()
        });
        drop(reporter);
        SENT.take()
    }

    #[test]
    fn a_bar_is_drawn_and_replaced_by_a_line() {
        let text = watch(false);
        assert!(text.starts_with("hello"), "{text:?}");
        for part in
            ["epoch 3/9 ━", " 1/4", "epoch 3/9  loss 5.0000  152 images/s  data wait 0 %", "nn_top1 30.00 %"]
        {
            assert!(text.contains(part), "{part}: {text:?}");
        }
    }

    #[test]
    fn no_colour_where_none_is_wanted() {
        assert!(!watch(false).contains('\u{1b}'));
    }
}
