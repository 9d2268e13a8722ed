//! Places for those who wait on a connection: so many in all, and so many for each caller, so that nobody takes all of them
//! from the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::keys::LOCAL_CALLER;

/// A caller may take one in so many. Where no keys are required all have one name, which may take all.
const OF_CALLER: usize = 5;

/// Places to be taken. Clones share them.
#[derive(Clone)]
pub struct Places(Arc<Shared>);

struct Shared {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    in_all: usize,
    by_caller: BTreeMap<String, usize>,
}

impl Places {
    /// So many places.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Shared {
            max,
            taken: Mutex::default(),
        }))
    }

    /// As many as a caller may take.
    #[must_use]
    pub fn of_caller(&self, caller: &str) -> usize {
        match caller {
            LOCAL_CALLER => self.0.max,
            _ => (self.0.max / OF_CALLER).max(1),
        }
    }

    /// Takes a place until it is dropped; nothing where none is left for this caller.
    #[must_use]
    pub fn take(&self, caller: &str) -> Option<Place> {
        let mut taken = self.0.taken();
        let of_caller = taken.by_caller.get(caller).copied().unwrap_or_default();
        if taken.in_all >= self.0.max || of_caller >= self.of_caller(caller) {
            return None;
        }
        taken.in_all += 1;
        taken.by_caller.insert(caller.to_owned(), of_caller + 1);
        Some(Place {
            places: Arc::clone(&self.0),
            caller: caller.to_owned(),
        })
    }

    /// Whether all are free.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.taken().in_all == 0
    }
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken.
pub struct Place {
    places: Arc<Shared>,
    caller: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.in_all = taken.in_all.saturating_sub(1);
        if let Some(of_caller) = taken.by_caller.get_mut(&self.caller) {
            *of_caller -= 1;
            // Names are forgotten with their last place.
            if *of_caller == 0 {
                taken.by_caller.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_its_part_and_all_of_them_have_the_whole() {
        let places = Places::new(10);
        let first = [places.take("one"), places.take("one")];
        assert!(first.iter().all(Option::is_some));
        assert!(places.take("one").is_none(), "it has its part");
        let others: Vec<_> = ["two", "three", "four", "five"]
            .iter()
            .flat_map(|caller| [places.take(caller), places.take(caller)])
            .collect();
        assert!(others.iter().all(Option::is_some));
        assert!(places.take("six").is_none(), "there are no more");
        drop(first);
        let six = places.take("six");
        assert!(six.is_some());
        assert!(places.take("one").is_some());
        drop((others, six));
        assert!(places.is_empty());
        assert!(places.0.taken().by_caller.is_empty());
    }

    #[test]
    fn without_keys_there_is_one_name_for_all_and_it_may_take_all() {
        let places = Places::new(3);
        let taken: Vec<_> = (0..3).map(|_| places.take(LOCAL_CALLER)).collect();
        assert!(taken.iter().all(Option::is_some));
        assert!(places.take(LOCAL_CALLER).is_none());
    }
}
