//! The bounds of the settings, each with its reason. `config/default.toml` repeats them for people, and a test
//! compares the two.

use std::ops::RangeInclusive;

/// Below 100 ms nothing in hand could finish; 5 minutes is longer than any supervisor waits.
pub(super) const SHUTDOWN_DEADLINE_MS: RangeInclusive<u64> = 100..=300_000;
/// A million take all the memory there is.
pub(super) const CONNECTIONS: RangeInclusive<usize> = 1..=1_000_000;
/// One process answers some ten thousand requests a second; a burst is what has come together in a minute of that.
pub(super) const RATE_PER_SECOND: RangeInclusive<u32> = 1..=100_000;
pub(super) const RATE_BURST: RangeInclusive<u32> = 1..=1_000_000;
/// PostgreSQL allows 100 connections by default.
pub(super) const POOL_SIZE: RangeInclusive<usize> = 1..=100;
/// Below 100 ms a busy server looks unreachable; beyond a minute the caller has gone.
pub(super) const CONNECT_TIMEOUT_MS: RangeInclusive<u64> = 100..=60_000;
/// Half of the 10 minutes for which a consumer may hold a message.
pub(super) const STATEMENT_TIMEOUT_MS: RangeInclusive<u64> = 100..=300_000;
/// What has failed 21 times will not succeed at the next; the dead-letter queue shows it to somebody.
pub(super) const RETRIES: RangeInclusive<u32> = 0..=20;
/// Below 100 ms a retry meets the same trouble again; beyond an hour an order is forgotten.
pub(super) const RETRY_DELAY_MS: RangeInclusive<u64> = 100..=3_600_000;
/// A transaction of more orders holds its locks longer than syncs and other workers should wait.
pub(super) const ORDER_BATCH: RangeInclusive<usize> = 1..=2_000;
/// 0 would mean no limit to the broker; what is held is also held in memory.
pub(super) const PREFETCH: RangeInclusive<u16> = 1..=10_000;
/// A vendor silent for a minute is down, and other vendors' messages wait behind the call.
pub(super) const VENDOR_TIMEOUT_MS: RangeInclusive<u64> = 100..=60_000;
/// Vendors limit the size of a body, and one answer lists every update of the call.
pub(super) const UPDATES_PER_CALL: RangeInclusive<usize> = 1..=1_000;
/// Below a second every slow batch looks stalled; beyond half an hour the broker has closed the channel anyway.
pub(super) const STALLED_AFTER_MS: RangeInclusive<u64> = 1_000..=1_800_000;
/// None of the traces, or all of them.
pub(super) const SAMPLE_RATIO: RangeInclusive<f64> = 0.0..=1.0;
/// Below a minute nobody is back in time; beyond 30 days the table is larger than what it tells of.
pub(super) const EVENTS_KEPT_FOR_MS: RangeInclusive<u64> = 60_000..=2_592_000_000;
/// There is a queue for each retry.
pub(super) const WEBHOOK_RETRIES: RangeInclusive<u32> = 0..=4;
/// The last wait is a thousand times as long: beyond this it would be a day.
pub(super) const WEBHOOK_RETRY_DELAY_MS: RangeInclusive<u64> = 100..=60_000;
/// Who opens more at once looks like an attack to its receiver.
pub(super) const WEBHOOK_CALLS: RangeInclusive<usize> = 1..=100;
/// A chunk's stock rows are locked while it is written, and orders wait for them.
pub(super) const CHUNK_ROWS: RangeInclusive<usize> = 1..=50_000;
/// The broker limits a queue's name to 255 bytes; this leaves room for the name itself, and is readable.
pub(super) const QUEUE_PREFIX_LENGTH: RangeInclusive<usize> = 0..=64;
/// A vendor's id stands in URLs, messages and metrics.
pub(super) const VENDOR_ID_LENGTH: RangeInclusive<usize> = 1..=64;
/// PostgreSQL cuts a longer name off, and would read another table or column than the one that was meant.
pub(super) const IDENTIFIER_BYTES: RangeInclusive<usize> = 1..=63;
/// A value is quoted in a message up to this many characters, so that the message stays readable.
pub(super) const QUOTED_LENGTH: usize = 60;
