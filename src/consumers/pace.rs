//! How soon after the last batch the next one may begin.
//!
//! What a batch costs by itself (its statements, its commit, its messages to the vendors and all that follows from them)
//! takes the processor from the orders behind it, and whatever waits makes the next one: under load, batches would be as
//! small as the machine is quick to begin them. So a batch that shows load is followed by one that has had time to
//! gather. Where there is none, nothing waits.

use std::time::Duration;

use tokio::time::Instant;

/// Orders of one batch that show load.
const LOAD: usize = 32;
/// From the beginning of a batch that shows load to that of the next one, unless that is full before. A caller who waits
/// for the outcome does not notice it.
const PACE: Duration = Duration::from_millis(25);

/// When the next batch may begin.
#[derive(Debug, Default)]
pub(super) struct Pace {
    next: Option<Instant>,
}

impl Pace {
    /// Takes note of a batch.
    pub(super) fn note(&mut self, begun: Instant, orders: usize) {
        self.next = (orders >= LOAD).then(|| begun + PACE);
    }

    /// Until when the next batch gathers; `None` if it begins with the first that comes.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_batch_that_shows_load_makes_the_next_one_wait() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        assert_eq!(pace.next(), None);
        pace.note(begun, LOAD);
        assert_eq!(pace.next(), Some(begun + PACE));
        pace.note(begun, LOAD - 1);
        assert_eq!(pace.next(), None);
    }
}
