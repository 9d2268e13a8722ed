//! The rules, pure: no async, no clock, no I/O. `now` and new ids come in as arguments, decisions go out as values.

pub mod allocation;
pub mod audit;
pub mod book;
pub mod breaker;
pub mod dead_letter;
pub mod difference;
pub mod events;
pub mod history;
pub mod ids;
pub mod keys;
pub mod ledger;
pub mod listing;
pub mod messages;
pub mod object;
pub mod order;
pub mod passwords;
pub mod retry;
pub mod status;
pub mod tally;
pub mod trace;
pub mod update;
pub mod vendor_answer;
pub mod vendor_api;
pub mod webhooks;

#[cfg(test)]
mod protocol_test;
