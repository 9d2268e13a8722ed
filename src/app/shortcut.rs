//! A cheaper way to do the usual. Where it was in vain, everything is done the long way for a while: what was not usual once
//! is likely to be so again, and each attempt in vain costs, and may leave an error in a server's log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whether the cheaper way is worth an attempt.
#[derive(Debug)]
pub(super) struct Shortcut {
    closed_for: Duration,
    closed_until: Mutex<Option<Instant>>,
}

impl Shortcut {
    /// One that is not tried for so long after it was in vain.
    pub(super) const fn new(closed_for: Duration) -> Self {
        Self {
            closed_for,
            closed_until: Mutex::new(None),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        let until = self.closed_until.lock();
        until
            .unwrap_or_else(PoisonError::into_inner)
            .is_none_or(|until| Instant::now() >= until)
    }

    pub(super) fn was_in_vain(&self) {
        let mut until = self
            .closed_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *until = Some(Instant::now() + self.closed_for);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_attempt_in_vain_it_is_closed_for_a_while() {
        let shortcut = Shortcut::new(Duration::from_secs(3600));
        assert!(shortcut.is_open());
        shortcut.was_in_vain();
        assert!(!shortcut.is_open());

        let shortcut = Shortcut::new(Duration::ZERO);
        shortcut.was_in_vain();
        assert!(shortcut.is_open(), "the while is over");
    }
}
