//! Being asked to stop: the first signal lets the run save itself, a second Ctrl-C leaves at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::error::{Error, Result};

/// The exit code of a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// Makes a write beyond the limit on a file's size (`ulimit -f`) an error like that of a full disk, where the system would
/// end the process.
///
/// # Errors
/// If the system refuses the handler.
pub fn size_limit_is_an_error() -> Result<()> {
    let handled = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    handled.map(drop).map_err(|e| Error::io("SIGXFSZ", "listen", e))
}

/// Whether someone has asked the run to stop. Clones share the answer; the default one hears no signals.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for SIGINT and SIGTERM from now on, for the rest of the process.
    ///
    /// A second SIGINT ends the process at once with code 130, even inside a checkpoint write: those are
    /// atomic, and the half-written temporary file is removed when the run is resumed.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn install() -> Result<Self> {
        let interrupt = Interrupt::default();
        let pressed = Arc::new(AtomicBool::new(false));
        // Handlers run in this order, so the first SIGINT finds `pressed` still unset.
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&pressed))
            .and_then(|_| flag::register(SIGINT, pressed))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&interrupt.0)))
            .and_then(|_| flag::register(SIGTERM, Arc::clone(&interrupt.0)))
            .map_err(|e| Error::io("SIGINT, SIGTERM", "listen", e))?;
        Ok(interrupt)
    }

    /// Asks the run to stop, as a signal would.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the run should save itself and stop.
    pub fn interrupted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::low_level::raise;
    use std::process::Command;

    /// Set in the child process of the test below.
    const CHILD: &str = "LEMNISCATE_TEST_SIGNALS";

    /// Signals concern whole processes, so each case is this test again, in a process of its own.
    #[test]
    fn the_first_signal_asks_and_a_second_sigint_leaves() {
        if let Ok(signals) = std::env::var(CHILD) {
            let interrupt = Interrupt::install().unwrap();
            assert!(!interrupt.interrupted());
            for signal in signals.split(',') {
                raise(signal.parse().unwrap()).unwrap();
                assert!(interrupt.interrupted());
            }
            std::process::exit(42);
        }
        let exit_code = |signals: &[i32]| {
            let signals: Vec<_> = signals.iter().map(i32::to_string).collect();
            let child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "checkpoint::signals::tests::the_first_signal_asks_and_a_second_sigint_leaves",
                ])
                .env(CHILD, signals.join(","))
                .output();
            child.unwrap().status.code()
        };
        assert_eq!(exit_code(&[SIGINT]), Some(42));
        assert_eq!(exit_code(&[SIGTERM, SIGTERM, SIGINT]), Some(42));
        assert_eq!(exit_code(&[SIGINT, SIGINT]), Some(130));
        assert_eq!(exit_code(&[SIGINT, SIGTERM, SIGINT]), Some(130));
    }

    #[test]
    fn a_request_reaches_every_clone() {
        let interrupt = Interrupt::default();
        let clone = interrupt.clone();
        assert!(!clone.interrupted());
        interrupt.request();
        assert!(clone.interrupted());
    }
}
