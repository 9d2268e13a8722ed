//! A row of a vendor's table, and what it lists. Vendors have tables of their own making, so a row is read as text, and
//! what cannot be one of our products is told with the reason.

use super::book::Listed;
use super::ids::{IdError, PRODUCT_ID_BYTES_MAX, ProductId};

/// Most units of one product, in either direction; the schemas have the same bound.
pub const STOCK_MAX: i64 = 1_000_000_000_000_000;
/// The longest name of a product in characters.
pub const NAME_CHARS_MAX: usize = 1000;
/// The most characters of a vendor's id that are read: one more than an id can have, so that what is too long shows.
pub const ID_CHARS_READ: usize = PRODUCT_ID_BYTES_MAX + 1;
/// The most characters of a vendor's stock that are read. The longest that is allowed has 17, and zeros after a point.
pub const STOCK_CHARS_READ: usize = 100;

/// Why a row lists nothing that we can sell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unlistable {
    /// Its id is NULL.
    #[error("a row has no id")]
    NoId,
    /// Its id cannot be one of ours.
    #[error("the id {id:?} {problem}")]
    Id {
        /// What was read of it.
        id: String,
        /// What is wrong with it.
        problem: IdError,
    },
    /// Its stock has a fraction, or is no number.
    #[error("product {id:?} has the stock {stock:?}, which is not a whole number", id = .id.as_str())]
    NotWhole {
        /// Which product.
        id: ProductId,
        /// What was read.
        stock: String,
    },
    /// Its stock is more, or further below zero, than we can hold.
    #[error("product {id:?} has the stock {stock}, which is not within -{STOCK_MAX} to {STOCK_MAX}", id = .id.as_str())]
    Outside {
        /// Which product.
        id: ProductId,
        /// What was read.
        stock: String,
    },
}

/// Reads a row. A stock of NULL is 0: what a vendor does not count cannot be sold. A name of NULL is empty.
///
/// # Errors
/// See [`Unlistable`].
pub fn read(
    id: Option<String>,
    name: Option<String>,
    stock: Option<&str>,
) -> Result<Listed, Unlistable> {
    let id = id.ok_or(Unlistable::NoId)?;
    let product_id = match ProductId::parse(id.as_str()) {
        Ok(product_id) => product_id,
        Err(problem) => return Err(Unlistable::Id { id, problem }),
    };
    let stock = match stock.map_or(Ok(0), whole_number) {
        Ok(stock) if (-STOCK_MAX..=STOCK_MAX).contains(&stock) => stock,
        Ok(_) | Err(NotRead::Beyond) => {
            return Err(Unlistable::Outside {
                id: product_id,
                stock: stock.unwrap_or_default().to_owned(),
            });
        }
        Err(NotRead::NotWhole) => {
            return Err(Unlistable::NotWhole {
                id: product_id,
                stock: stock.unwrap_or_default().to_owned(),
            });
        }
    };
    Ok(Listed {
        product_id,
        name: name.unwrap_or_default(),
        stock,
    })
}

enum NotRead {
    NotWhole,
    Beyond,
}

/// Reads `12`, and `12.00` as a numeric column writes it. A number with an exponent is refused: a column of floating
/// point that writes one has lost units.
fn whole_number(text: &str) -> Result<i64, NotRead> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let units = whole.parse().map_err(|error: std::num::ParseIntError| {
        use std::num::IntErrorKind::{NegOverflow, PosOverflow};
        match error.kind() {
            PosOverflow | NegOverflow => NotRead::Beyond,
            _ => NotRead::NotWhole,
        }
    })?;
    // A fraction that was cut off may go on with anything.
    if text.len() >= STOCK_CHARS_READ || fraction.bytes().any(|digit| digit != b'0') {
        return Err(NotRead::NotWhole);
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stock(text: &str) -> Result<i64, Unlistable> {
        read(Some("p1".into()), None, Some(text)).map(|listed| listed.stock)
    }

    #[test]
    fn a_whole_number_is_read_however_its_column_writes_it() {
        for (text, units) in [
            ("12", 12),
            ("12.00", 12),
            ("-3", -3),
            ("-3.0", -3),
            ("0", 0),
            ("-0.00", 0),
            ("1000000000000000", STOCK_MAX),
            ("-1000000000000000.000", -STOCK_MAX),
        ] {
            assert_eq!(stock(text), Ok(units), "{text}");
        }
    }

    #[test]
    fn a_stock_that_is_no_whole_number_is_told_with_its_product() {
        for text in [
            "2.5", "-0.01", "", ".", "NaN", "Infinity", "1e3", "1e+15", "12.0x", "twelve", "$5.00",
            "1.5e3",
        ] {
            let error = stock(text).expect_err(text);
            assert!(matches!(error, Unlistable::NotWhole { .. }), "{text}");
            assert_eq!(
                error.to_string(),
                format!("product \"p1\" has the stock {text:?}, which is not a whole number")
            );
        }
    }

    #[test]
    fn a_stock_beyond_what_we_can_hold_is_told_as_such() {
        for text in [
            "1000000000000001",
            "-1000000000000001",
            "1000000000000001.00",
            "9223372036854775808",
            "-99999999999999999999999999",
        ] {
            let error = stock(text).expect_err(text);
            assert!(matches!(error, Unlistable::Outside { .. }), "{text}");
        }
        assert_eq!(
            stock("1000000000000001").expect_err("outside").to_string(),
            "product \"p1\" has the stock 1000000000000001, which is not within -1000000000000000 to 1000000000000000"
        );
    }

    #[test]
    fn a_stock_that_was_cut_off_is_never_taken_for_whole() {
        let cut = format!("5.{}", "0".repeat(STOCK_CHARS_READ - 2));
        assert_eq!(cut.len(), STOCK_CHARS_READ);
        assert!(stock(&cut).is_err());
        assert_eq!(stock(&cut[..cut.len() - 1]), Ok(5));
    }

    #[test]
    fn what_is_null_is_empty_and_what_has_no_id_is_told() {
        let listed = read(Some("p1".into()), None, None).expect("listed");
        assert_eq!((listed.name.as_str(), listed.stock), ("", 0));
        assert_eq!(read(None, None, None), Err(Unlistable::NoId));
        let error = read(Some("a\tb".into()), None, None).expect_err("a tab");
        assert_eq!(
            error.to_string(),
            "the id \"a\\tb\" must not contain control characters"
        );
    }

    proptest! {
        #[test]
        fn every_number_within_the_bounds_is_read_as_itself(units in -STOCK_MAX..=STOCK_MAX, zeros in 0_usize..40) {
            prop_assert_eq!(stock(&units.to_string()), Ok(units));
            prop_assert_eq!(stock(&format!("{units}.{}", "0".repeat(zeros))), Ok(units));
        }

        #[test]
        fn no_text_breaks_the_reading(text in "\\PC{0,120}") {
            if let Ok(units) = stock(&text) {
                prop_assert!((-STOCK_MAX..=STOCK_MAX).contains(&units));
            }
        }
    }
}
