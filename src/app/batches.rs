//! What comes one by one and is done in batches: whatever has come while earlier batches were under way makes the next
//! one. Where there is no load, nothing waits; where there is, what a batch costs by itself is shared by many, and while one
//! waits for the disk, others use the processor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

/// The most of one batch.
const BATCH_MAX: usize = 500;
/// Batches under way at once. With two, the processor still waits for the disk at times.
pub(super) const UNDER_WAY_MAX: usize = 3;
/// Beside others, a batch has at least so many: fewer are not worth what a batch costs by itself.
const BESIDE_OTHERS_MIN: usize = 16;

/// Makes batches of what comes.
pub(super) struct Batches<T> {
    coming: mpsc::Receiver<T>,
    /// What has come of the next one.
    next: Vec<T>,
    under_way: Arc<UnderWay>,
}

/// The batches that have begun and are not over.
#[derive(Default)]
struct UnderWay {
    sizes: Mutex<Vec<usize>>,
    /// One is over. Only one task waits for that: the one that makes the batches.
    ended: Notify,
}

impl UnderWay {
    fn sizes(&self) -> MutexGuard<'_, Vec<usize>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a batch of so many, once it may begin.
    async fn place(self: Arc<Self>, size: usize) -> Place {
        loop {
            let may_begin = {
                let mut sizes = self.sizes();
                let may_begin = may_begin(size, &sizes);
                if may_begin {
                    sizes.push(size);
                }
                may_begin
            };
            if may_begin {
                return Place {
                    size,
                    under_way: self,
                };
            }
            self.ended.notified().await;
        }
    }
}

/// Whether a batch of `size` may begin beside batches of the sizes `under_way`. Whoever finds none waits for nothing.
/// Beside others it begins once it is as large as the largest of them, so they become alike under a steady load: else
/// whoever comes first after the end of a batch would begin a tiny one, and all who come a moment later would wait for it.
fn may_begin(size: usize, under_way: &[usize]) -> bool {
    let Some(largest) = under_way.iter().max() else {
        return true;
    };
    under_way.len() < UNDER_WAY_MAX && size >= BESIDE_OTHERS_MIN.max(*largest)
}

/// The place of a batch under way: it is over when this is dropped.
pub(super) struct Place {
    size: usize,
    under_way: Arc<UnderWay>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sizes = self.under_way.sizes();
        if let Some(at) = sizes.iter().position(|size| *size == self.size) {
            sizes.swap_remove(at);
        }
        drop(sizes);
        self.under_way.ended.notify_one();
    }
}

impl<T> Batches<T> {
    pub(super) fn new(coming: mpsc::Receiver<T>) -> Self {
        Self {
            coming,
            next: Vec::new(),
            under_way: Arc::default(),
        }
    }

    /// The next batch, and its place. `None` once nothing can come any more. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Option<(Vec<T>, Place)> {
        let mut is_open = true;
        while is_open || !self.next.is_empty() {
            let size = self.next.len();
            let room = BATCH_MAX - size;
            let place = tokio::select! {
                biased;
                received = self.coming.recv_many(&mut self.next, room), if is_open && room > 0 => {
                    is_open = received > 0;
                    continue;
                }
                place = Arc::clone(&self.under_way).place(size), if size > 0 => place,
                else => break,
            };
            return Some((std::mem::take(&mut self.next), place));
        }
        None
    }

    /// How many wait for the next batch.
    pub(super) fn waiting(&self) -> usize {
        self.coming.len() + self.next.len()
    }

    /// Waits until no batch is under way.
    pub(super) async fn finished(&self) {
        while !self.under_way.sizes().is_empty() {
            self.under_way.ended.notified().await;
        }
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
        send(&sender, BESIDE_OTHERS_MIN - 2);
        assert!(begun(&mut batches).is_none(), "too few to begin beside it");
        send(&sender, 1);
        assert!(begun(&mut batches).is_none(), "one too few still");
        assert_eq!(batches.waiting(), BESIDE_OTHERS_MIN - 1);
        drop(first);
        let all = begun(&mut batches).map(|(all, _)| all);
        assert_eq!(all, Some(BESIDE_OTHERS_MIN - 1));
    }

    #[tokio::test]
    async fn as_many_as_are_under_way_wait_for_no_disk_and_what_is_beyond_the_bounds_does() {
        let (sender, receiver) = mpsc::channel(10_000);
        let mut batches = Batches::new(receiver);
        send(&sender, 100);
        let (_, first) = begun(&mut batches).expect("it begins");
        send(&sender, 99);
        assert!(begun(&mut batches).is_none(), "fewer than are under way");
        send(&sender, BATCH_MAX + 1);
        let (second, _second) = begun(&mut batches).expect("as many begin");
        assert_eq!(second, BATCH_MAX);
        send(&sender, BATCH_MAX);
        let (third, _third) = begun(&mut batches).expect("and again");
        assert_eq!(third, BATCH_MAX);
        send(&sender, BATCH_MAX);
        assert!(begun(&mut batches).is_none(), "three are under way");
        drop(first);
        assert_eq!(begun(&mut batches).map(|(next, _)| next), Some(BATCH_MAX));
    }

    #[tokio::test]
    async fn one_that_waits_for_a_place_begins_when_the_last_under_way_is_over() {
        let (sender, receiver) = mpsc::channel(10_000);
        let mut batches = Batches::new(receiver);
        send(&sender, BATCH_MAX);
        let (_, first) = begun(&mut batches).expect("it begins");
        send(&sender, 1);
        let mut next = Box::pin(batches.next());
        assert!((&mut next).now_or_never().is_none(), "it waits");
        drop(first);
        let one = (&mut next).now_or_never().flatten();
        assert_eq!(one.map(|(one, _)| one.len()), Some(1), "it was woken");
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
