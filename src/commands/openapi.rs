//! `stockctl openapi`: the description of the HTTP API, for generators of clients and for whoever wants to compare two
//! versions.

use super::say;
use crate::http::openapi;

/// Prints it.
pub fn run() {
    say(&format!("{:#}", openapi::document()));
}
