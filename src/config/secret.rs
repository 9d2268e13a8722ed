//! A secret text.

use std::fmt;

/// Longer than any key or token that somebody hands out.
const BYTES_MAX: usize = 1024;

/// Longer than any address that servers take.
const LONG_BYTES_MAX: usize = 2048;

/// A key that is sent in a header, or an address that may hold one. `Debug` leaves it out; [`Secret::expose`] gives it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, to be sent.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        Self::of_length(text, BYTES_MAX)
    }

    /// A longer one.
    pub(super) fn parse_long(text: &str) -> Result<Self, String> {
        Self::of_length(text, LONG_BYTES_MAX)
    }

    fn of_length(text: &str, bytes_max: usize) -> Result<Self, String> {
        let is_sendable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > bytes_max || !is_sendable {
            return Err(format!(
                "it must be 1 to {bytes_max} printable ASCII characters without blanks"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
