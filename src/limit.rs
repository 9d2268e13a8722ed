//! A bound that an operator may change while the process runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many there may be. Clones share it, and whoever keeps to it asks anew each time, so that a change counts from the
/// next batch on.
#[derive(Clone)]
pub struct Limit(Arc<AtomicUsize>);

impl Limit {
    /// A bound.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(most)))
    }

    /// What it is now.
    #[must_use]
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Changes it for everybody. Returns whether it was another one.
    pub fn set(&self, most: usize) -> bool {
        self.0.swap(most, Ordering::Relaxed) != most
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(out)
    }
}

impl PartialEq for Limit {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}
