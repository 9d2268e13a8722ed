//! Finds where two catalogues differ from one hash of each row, so that of catalogues that hardly changed hardly anything is
//! read. The rows are counted into buckets by their ids, and a bucket holds the sum of the hashes of one side less those
//! of the other: it is zero where both have the same. This is the anti-entropy of Dynamo (DeCandia et al., 2007, §4.7), with
//! one level instead of a tree, since everything is read anyway.

/// The lowest bits of a row's hash are those of its id's hash alone, so that all rows of one id, on both sides, are in one
/// bucket. The others hash the whole row.
pub const ID_BITS: u32 = 20;

/// Buckets are worth reading by themselves while at most one of so many that could differ does.
const FEW: usize = 4;

/// So many rows are kept until it shows that there are more, so that the buckets of a small catalogue take no more room
/// than it needs.
const KEPT_MAX: usize = 1 << 16;

/// What two sides do not have in common, while their rows are counted.
///
/// That a row which differs cancels out is as likely as two random numbers of 44 bits being equal. The hashes have another
/// seed in each run, so such a row is missed by one run, and seen by the next.
#[derive(Default)]
pub struct Differences {
    kept: Vec<Row>,
    /// Empty while rows are kept.
    sums: Vec<u64>,
    listed: u64,
    held: u64,
}

#[derive(Clone, Copy)]
enum Row {
    Listed(i64),
    Held(i64),
}

impl Differences {
    /// Counts a row that is listed.
    pub fn add_listed(&mut self, hash: i64) {
        self.listed += 1;
        self.add(Row::Listed(hash));
    }

    /// Counts a row that is held.
    pub fn add_held(&mut self, hash: i64) {
        self.held += 1;
        self.add(Row::Held(hash));
    }

    fn add(&mut self, row: Row) {
        if !self.sums.is_empty() {
            self.sum(row);
            return;
        }
        self.kept.push(row);
        if self.kept.len() == KEPT_MAX {
            self.sum_kept(1 << ID_BITS);
        }
    }

    fn sum_kept(&mut self, buckets: usize) {
        self.sums = vec![0; buckets];
        for row in std::mem::take(&mut self.kept) {
            self.sum(row);
        }
    }

    fn sum(&mut self, row: Row) {
        let last = self.sums.len() - 1;
        let (Row::Listed(hash) | Row::Held(hash)) = row;
        let hash = hash.cast_unsigned();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "only the lowest bits are used"
        )]
        let sum = &mut self.sums[hash as usize & last];
        *sum = match row {
            Row::Listed(_) => sum.wrapping_add(hash),
            Row::Held(_) => sum.wrapping_sub(hash),
        };
    }

    /// How many rows are listed.
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.listed
    }

    /// The buckets that differ; `None` where they are so many that everything is as well read.
    #[must_use]
    pub fn into_few_buckets(mut self) -> Option<Buckets> {
        let rows = usize::try_from(self.listed.max(self.held)).unwrap_or(usize::MAX);
        if self.sums.is_empty() {
            // So many as keep the products apart.
            self.sum_kept((rows * 4).next_power_of_two().max(8));
        }
        let mut buckets = Buckets {
            bits: vec![0; self.sums.len() / 8],
        };
        let mut differing = 0;
        for (bucket, sum) in self.sums.iter().enumerate() {
            if *sum != 0 {
                buckets.bits[bucket / 8] |= 1 << (bucket % 8);
                differing += 1;
            }
        }
        (differing <= rows.min(self.sums.len()) / FEW).then_some(buckets)
    }
}

/// Some of the buckets that rows fall into, as bits from the lowest of the first byte on; a power of two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    bits: Vec<u8>,
}

impl Buckets {
    /// The bits, as PostgreSQL's `get_bit` counts them in a `bytea`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Of a row's hash, the bits that are the number of its bucket.
    #[must_use]
    pub fn mask(&self) -> usize {
        self.bits.len() * 8 - 1
    }

    /// Whether none is among them.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|byte| *byte == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::hash::{DefaultHasher, Hash, Hasher};

    use proptest::prelude::*;

    use super::*;

    fn hash(id: u32, stock: u8) -> i64 {
        let of = |what: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            what(&mut hasher);
            hasher.finish()
        };
        let mask = (1 << ID_BITS) - 1;
        let of_id = of(&|hasher| id.hash(hasher));
        let of_row = of(&|hasher| (id, stock).hash(hasher));
        (of_id & mask | of_row & !mask).cast_signed()
    }

    fn holds(buckets: &Buckets, id: u32) -> bool {
        let bucket = usize::try_from(hash(id, 0).cast_unsigned() & buckets.mask() as u64)
            .expect("a small number");
        buckets.as_bytes()[bucket / 8] & (1 << (bucket % 8)) != 0
    }

    fn compare(listed: &[(u32, u8)], held: &BTreeMap<u32, u8>) -> Option<Buckets> {
        let mut differences = Differences::default();
        for (id, stock) in listed {
            differences.add_listed(hash(*id, *stock));
        }
        for (id, stock) in held {
            differences.add_held(hash(*id, *stock));
        }
        differences.into_few_buckets()
    }

    proptest! {
        #[test]
        fn every_product_that_differs_is_in_a_bucket_that_does(
            held in prop::collection::btree_map(any::<u32>(), any::<u8>(), 0..300),
            changed in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
            new in prop::collection::btree_map(any::<u32>(), any::<u8>(), 0..5),
            repeated in any::<Option<prop::sample::Index>>(),
        ) {
            let mut listed = held.clone();
            let ids: Vec<u32> = held.keys().copied().collect();
            if !ids.is_empty() {
                for (index, stock) in changed {
                    listed.insert(*index.get(&ids), stock);
                }
                for index in gone {
                    listed.remove(index.get(&ids));
                }
            }
            listed.extend(new);
            let mut differing: BTreeSet<u32> =
                held.iter().filter(|(id, stock)| listed.get(id) != Some(stock)).map(|(id, _)| *id).collect();
            differing.extend(listed.keys().filter(|id| !held.contains_key(id)));
            let mut rows: Vec<(u32, u8)> = listed.into_iter().collect();
            if let Some(index) = repeated.filter(|_| !rows.is_empty()) {
                // The very same row a second time, which no sum may hide.
                let row = *index.get(&rows);
                rows.push(row);
                differing.insert(row.0);
            }
            if let Some(buckets) = compare(&rows, &held) {
                for id in &differing {
                    prop_assert!(holds(&buckets, *id), "{id}");
                }
                prop_assert_eq!(buckets.is_empty(), differing.is_empty());
            } else {
                // Two products may share a bucket, but no product needs two.
                prop_assert!(differing.len() * FEW >= rows.len().max(held.len()) / 2, "{differing:?}");
            }
        }
    }

    #[test]
    fn buckets_are_as_many_as_keep_the_products_apart() {
        for (products, buckets) in [
            (0, 8),
            (1, 8),
            (100, 512),
            (5000, 32_768),
            (300_000, 1 << 20),
        ] {
            let held: BTreeMap<u32, u8> = (0..products).map(|id| (id, 0)).collect();
            let mut listed: Vec<(u32, u8)> = held.iter().map(|(id, stock)| (*id, *stock)).collect();
            assert_eq!(
                compare(&listed, &held).expect("no difference").mask() + 1,
                buckets,
                "{products}"
            );
            // One difference does not make a catalogue of a hundred one that is read whole.
            if products >= 100 {
                listed[7].1 = 1;
                let few = compare(&listed, &held).expect("one difference");
                assert!(holds(&few, listed[7].0));
            }
        }
    }

    #[test]
    fn where_no_row_is_common_everything_is_read() {
        for products in [1, 2, 7, 1000] {
            let held: BTreeMap<u32, u8> = (0..products).map(|id| (id, 0)).collect();
            let listed: Vec<(u32, u8)> = (0..products).map(|id| (id, 1)).collect();
            assert_eq!(compare(&listed, &held), None, "{products}");
            assert_eq!(compare(&[], &held), None, "{products}");
            assert_eq!(compare(&listed, &BTreeMap::new()), None, "{products}");
        }
    }
}
