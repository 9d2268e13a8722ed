//! What may happen thousands of times a second, and is said once a second, with how often.

use std::time::{Duration, Instant};

/// Between two lines of the log that say the same.
pub const SAID_EVERY: Duration = Duration::from_secs(1);

/// Counts what is not said yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    said_at: Option<Instant>,
    unsaid: u64,
}

impl Tally {
    /// Nothing has happened yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            said_at: None,
            unsaid: 0,
        }
    }

    /// It has happened so many times more. Returns how often since it was last said, when it is to be said now.
    pub fn add(&mut self, times: u64, now: Instant) -> Option<u64> {
        self.unsaid += times;
        let is_too_soon = self
            .said_at
            .is_some_and(|at| now.saturating_duration_since(at) < SAID_EVERY);
        if self.unsaid == 0 || is_too_soon {
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_others_with_their_number() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut tally = Tally::default();
        assert_eq!(tally.add(0, at(0)), None, "nothing has happened");
        assert_eq!(tally.add(1, at(0)), Some(1));
        assert_eq!(tally.add(3, at(1)), None);
        assert_eq!(tally.add(2, at(999)), None);
        assert_eq!(tally.add(1, at(1000)), Some(6));
        assert_eq!(tally.add(1, at(1001)), None);
        assert_eq!(tally.add(1, at(60_000)), Some(2));
    }
}
