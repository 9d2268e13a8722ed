//! Names of things, parsed once at the door: what holds one of these is known to be well formed.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use smol_str::SmolStr;
use uuid::Uuid;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing at all.
    #[error("must not be empty")]
    Empty,
    /// Longer than the limit, which the schema checks too.
    #[error("must be at most {max} bytes long, has {actual}")]
    TooLong {
        /// The limit in bytes.
        max: usize,
        /// What was given.
        actual: usize,
    },
    /// U+0000 cannot be stored as text in PostgreSQL, and other control characters are never meant.
    #[error("must not contain control characters")]
    Control,
    /// A vendor's id is part of URLs, configuration keys and variable names.
    #[error("must consist of letters, digits, '_' and '-'")]
    Charset,
}

/// The longest product id in bytes.
pub const PRODUCT_ID_BYTES_MAX: usize = 200;
/// The longest vendor id in bytes.
pub const VENDOR_ID_BYTES_MAX: usize = 64;

fn check(text: &str, bytes_max: usize) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > bytes_max {
        return Err(IdError::TooLong {
            max: bytes_max,
            actual: text.len(),
        });
    }
    if text.chars().any(char::is_control) {
        return Err(IdError::Control);
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, |$text:ident| $check:expr) => {
        // Cloned for each update and message it is a part of: a short one stands in its place, a long one is shared.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, utoipa::ToSchema)]
        $(#[$doc])*
        #[serde(transparent)]
        pub struct $name(SmolStr);

        impl $name {
            /// Checks and takes the text.
            ///
            /// # Errors
            /// [`IdError`] says what is wrong with it.
            pub fn parse(text: impl AsRef<str>) -> Result<Self, IdError> {
                let $text: &str = text.as_ref();
                $check?;
                Ok(Self(SmolStr::new($text)))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Parsed(|text| Self::parse(text)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Reads a text that is checked.
struct Parsed<T>(fn(&str) -> Result<T, IdError>);

impl<T> Visitor<'_> for Parsed<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

text_id!(
    /// A product, by the id that all its vendors share: 1 to 200 bytes without control characters.
    #[schema(value_type = String, min_length = 1, max_length = 200, example = "p1")]
    ProductId,
    |text| check(text, PRODUCT_ID_BYTES_MAX)
);

text_id!(
    /// A vendor, by its key in the configuration.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$", example = "vendorA")]
    VendorId,
    |text| check(text, VENDOR_ID_BYTES_MAX).and_then(|()| {
        if text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            Ok(())
        } else {
            Err(IdError::Charset)
        }
    })
);

/// The only form of a UUID with that length is the one with hyphens.
fn hyphenated(text: &str) -> Option<Uuid> {
    if text.len() != uuid::fmt::Hyphenated::LENGTH {
        return None;
    }
    Uuid::try_parse(text).ok()
}

/// Reads a UUID with hyphens.
struct Hyphenated;

impl Visitor<'_> for Hyphenated {
    type Value = Uuid;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a UUID with hyphens")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Uuid, E> {
        hyphenated(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        #[derive(
            Debug,
            Clone,
            Copy,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            Hash,
            Serialize,
            utoipa::ToSchema,
        )]
        $(#[$doc])*
        #[schema(value_type = String, format = Uuid)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Reads it as it is written: with hyphens, in upper or lower case, and in no other of the forms that there
            /// are. None where it is no such id.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                hyphenated(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Hyphenated).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// An order.
    OrderId
);
uuid_id!(
    /// One change of one product's stock at one vendor; the key of the vendor's ledger.
    UpdateId
);
uuid_id!(
    /// A subscription to events by HTTP.
    WebhookId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked_at_the_door() {
        assert_eq!(ProductId::parse(""), Err(IdError::Empty));
        assert_eq!(ProductId::parse("a\0b"), Err(IdError::Control));
        assert!(ProductId::parse("é".repeat(100)).is_ok());
        assert_eq!(
            ProductId::parse("é".repeat(101)),
            Err(IdError::TooLong {
                max: 200,
                actual: 202
            })
        );
        assert!(VendorId::parse("vendor-A_1").is_ok());
        assert_eq!(VendorId::parse("vendor/../A"), Err(IdError::Charset));
    }

    #[test]
    fn an_id_is_written_with_hyphens_in_either_case() {
        let text = "0191b6c4-d1b8-7b0e-a0b9-d3f7c9c9a001";
        let id = OrderId::parse(text).expect("an id");
        assert_eq!(id.to_string(), text);
        assert_eq!(OrderId::parse(&text.to_uppercase()), Some(id));
        let bare = text.replace('-', "");
        for other in [
            bare.clone(),
            format!("{{{text}}}"),
            format!("urn:uuid:{text}"),
            format!("{bare}----"),
            format!(" {text}"),
            String::new(),
            "x".repeat(36),
        ] {
            assert_eq!(OrderId::parse(&other), None, "{other}");
            assert!(serde_json::from_value::<OrderId>(other.into()).is_err());
        }
        let read: OrderId = serde_json::from_value(text.into()).expect("an id");
        assert_eq!(read, id);
    }
}
