//! stockctl
pub mod domain;
