//! What comes one by one and is done in batches: whatever has come while earlier batches were under way makes the next
//! one. Where there is no load, nothing waits; where there is, what a batch costs by itself is shared by many.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// The most of one batch.
const BATCH_MAX: usize = 500;
/// The batches that only a crowd begins, while the first is under way: a crowd is not to wait for the disk. With more of
/// them each is smaller, and what a batch costs by itself takes the processor from what follows.
const OTHERS: u32 = 1;
/// So many are a crowd.
const CROWD: usize = 128;

/// Batches under way at once.
pub(super) const UNDER_WAY_MAX: usize = 1 + OTHERS as usize;

/// Makes batches of what comes.
pub(super) struct Batches<T> {
    coming: mpsc::Receiver<T>,
    /// What has come of the next one.
    next: Vec<T>,
    first: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

/// The place of a batch under way: it is over when this is dropped.
pub(super) struct Place(
    #[expect(dead_code, reason = "is given back by its drop")] OwnedSemaphorePermit,
);

impl<T> Batches<T> {
    pub(super) fn new(coming: mpsc::Receiver<T>) -> Self {
        Self {
            coming,
            next: Vec::new(),
            first: Arc::new(Semaphore::new(1)),
            others: Arc::new(Semaphore::new(OTHERS as usize)),
        }
    }

    /// The next batch, and its place. `None` once nothing can come any more. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Option<(Vec<T>, Place)> {
        let mut is_open = true;
        while is_open || !self.next.is_empty() {
            let room = BATCH_MAX - self.next.len();
            let permit = tokio::select! {
                biased;
                received = self.coming.recv_many(&mut self.next, room), if is_open && room > 0 => {
                    is_open = received > 0;
                    continue;
                }
                Ok(permit) = Arc::clone(&self.first).acquire_owned(), if !self.next.is_empty() => permit,
                Ok(permit) = Arc::clone(&self.others).acquire_owned(), if self.next.len() >= CROWD => permit,
                // The semaphores are never closed.
                else => break,
            };
            return Some((std::mem::take(&mut self.next), Place(permit)));
        }
        None
    }

    /// How many wait for the next batch.
    pub(super) fn waiting(&self) -> usize {
        self.coming.len() + self.next.len()
    }

    /// Waits until no batch is under way.
    pub(super) async fn finished(&self) {
        let _ = self.first.acquire().await;
        let _ = self.others.acquire_many(OTHERS).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A batch, if one may begin now.
    fn begun(batches: &mut Batches<usize>) -> Option<(usize, Place)> {
        let begun = batches.next().now_or_never().flatten();
        begun.map(|(batch, place)| (batch.len(), place))
    }

    fn send(sender: &mpsc::Sender<usize>, count: usize) {
        (0..count).for_each(|n| sender.try_send(n).expect("room"));
    }

    #[tokio::test]
    async fn whoever_comes_first_begins_at_once_and_who_comes_meanwhile_shares_the_next() {
        let (sender, receiver) = mpsc::channel(10_000);
        let mut batches = Batches::new(receiver);
        send(&sender, 1);
        let (one, first) = begun(&mut batches).expect("it begins");
        assert_eq!(one, 1);
        send(&sender, 3);
        assert!(begun(&mut batches).is_none(), "no crowd");
        send(&sender, 2);
        assert!(begun(&mut batches).is_none(), "nor this");
        assert_eq!(batches.waiting(), 5);
        drop(first);
        assert_eq!(begun(&mut batches).map(|(five, _)| five), Some(5));
    }

    #[tokio::test]
    async fn a_crowd_does_not_wait_for_the_first_and_what_is_beyond_it_does() {
        let (sender, receiver) = mpsc::channel(10_000);
        let mut batches = Batches::new(receiver);
        send(&sender, BATCH_MAX + CROWD);
        let (first, _first) = begun(&mut batches).expect("it begins");
        let (second, _second) = begun(&mut batches).expect("a crowd begins");
        assert_eq!((first, second), (BATCH_MAX, CROWD));
        send(&sender, BATCH_MAX);
        assert!(begun(&mut batches).is_none(), "both are under way");
    }

    #[tokio::test]
    async fn what_has_come_before_the_end_is_a_batch_still() {
        let (sender, receiver) = mpsc::channel(10_000);
        let mut batches = Batches::new(receiver);
        send(&sender, 1);
        let (_, first) = begun(&mut batches).expect("it begins");
        send(&sender, 2);
        drop(sender);
        assert!(begun(&mut batches).is_none());
        drop(first);
        assert_eq!(begun(&mut batches).map(|(two, _)| two), Some(2));
        assert!(batches.next().await.is_none());
        batches.finished().await;
    }
}
