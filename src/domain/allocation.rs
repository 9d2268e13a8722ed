//! Which vendors serve a quantity: from one vendor if one can serve it whole, the fullest first, otherwise split.

use super::ids::VendorId;

/// What one vendor can give of the product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer<'a> {
    /// Whose stock.
    pub vendor_id: &'a VendorId,
    /// Units that are available there; none are taken where this is not positive.
    pub available: i64,
}

/// What is taken from one vendor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Whose stock.
    pub vendor_id: VendorId,
    /// Units, above 0.
    pub quantity: i64,
}

/// The parts that add up to `quantity`, or `None` when the offers together do not reach it. The same offers give the
/// same parts, whatever their order: the fullest vendor first, then by id.
#[must_use]
pub fn allocate(mut offers: Vec<Offer<'_>>, quantity: i64) -> Option<Vec<Part>> {
    offers.retain(|offer| offer.available > 0);
    offers.sort_by(|a, b| {
        b.available
            .cmp(&a.available)
            .then_with(|| a.vendor_id.cmp(b.vendor_id))
    });
    let mut missing = quantity;
    let mut parts = Vec::new();
    // The fullest is first, so if any vendor can serve it whole, the first step takes all of it.
    for offer in offers {
        let taken = missing.min(offer.available);
        parts.push(Part {
            vendor_id: offer.vendor_id.clone(),
            quantity: taken,
        });
        missing -= taken;
        if missing == 0 {
            return Some(parts);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vendors(count: usize) -> Vec<VendorId> {
        (0..count)
            .map(|i| VendorId::parse(format!("v{i}")).expect("valid"))
            .collect()
    }

    fn parts(available: &[i64], quantity: i64) -> Option<Vec<(String, i64)>> {
        let vendors = vendors(available.len());
        let offers = vendors
            .iter()
            .zip(available)
            .map(|(vendor_id, available)| Offer {
                vendor_id,
                available: *available,
            })
            .collect();
        Some(
            allocate(offers, quantity)?
                .into_iter()
                .map(|part| (part.vendor_id.to_string(), part.quantity))
                .collect(),
        )
    }

    #[test]
    fn one_vendor_serves_a_line_whole_when_it_can() {
        assert_eq!(parts(&[3, 9, 5], 4), Some(vec![("v1".into(), 4)]));
        assert_eq!(parts(&[9, 9], 4), Some(vec![("v0".into(), 4)]));
    }

    #[test]
    fn a_line_is_split_when_no_vendor_has_enough() {
        assert_eq!(
            parts(&[15, 5], 18),
            Some(vec![("v0".into(), 15), ("v1".into(), 3)])
        );
        assert_eq!(parts(&[15, 5], 21), None);
        assert_eq!(parts(&[15, -7], 16), None);
    }

    proptest! {
        #[test]
        fn parts_are_exact_and_within_what_is_available(
            available in prop::collection::vec(-5_i64..50, 0..6), quantity in 1_i64..120,
        ) {
            let total: i64 = available.iter().filter(|a| **a > 0).sum();
            match parts(&available, quantity) {
                None => prop_assert!(total < quantity),
                Some(parts) => {
                    prop_assert_eq!(parts.iter().map(|p| p.1).sum::<i64>(), quantity);
                    for (vendor, taken) in &parts {
                        let index: usize = vendor[1..].parse().expect("a number");
                        prop_assert!(*taken > 0 && *taken <= available[index]);
                    }
                    if available.iter().any(|a| *a >= quantity) {
                        prop_assert_eq!(parts.len(), 1);
                    }
                }
            }
        }
    }
}
