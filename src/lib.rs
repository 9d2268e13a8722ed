//! stockctl: one aggregated view of vendors' stock; every order decided exactly once.
//!
//! The code map. Imports go down only:
//!
//! ```text
//! main, cli        the command line
//! commands/        one file per subcommand: wires the parts, owns their lifetime
//! http/            door: requests -> use case -> response
//! consumers/       door: delivery -> use case -> verdict (ack, retry, dead-letter)
//! schedule         door: cron ticks -> use case
//! app/             use cases: accept, wait for the outcome, decide, cancel, push, sync, relay, webhooks, dead letters, audit; only
//!                  here are transactions opened
//! db/              edge: our PostgreSQL
//! mq/              edge: RabbitMQ; the only place that names amiquip
//! vendors/         edge: a vendor's database and its HTTP API
//! receivers/       edge: whoever is told of events by webhooks
//! client/          edge: the HTTP API, as `orders` and `products` call it
//! bench/           edge: a load generator, which knows the product by its HTTP API alone
//! local/           edge: the private servers of `up` and of the tests
//! pg/              plumbing of the PostgreSQL edges
//! domain/          rules, pure: no async, no clock, no I/O
//! ```
//!
//! `config`, `telemetry`, `metrics` and `traces` (what is counted and traced, in any room but `domain`), `outgoing` (what all
//! that call others by HTTP have in common), `shutdown`, `supervisor` (what systemd is told) and `limit` (bounds that change
//! by a reload) stand beside them, and `fault_injection`, which is empty unless a build asks for planted bugs. Edges do not
//! name each other, and `domain` names none of tokio, diesel, actix or amiquip; a test holds the directions.
//!
//! What never happens, and where that is kept:
//! - an accepted order is lost: the outbox row is written with the order (`db::orders::insert_new`);
//! - an order is applied twice: `domain::book` here, `domain::ledger` at the vendor, ids as primary keys in both;
//! - stock is oversold, or sold stock brought back by a sync: `domain::book`, `app::sync`, driven through every
//!   interleaving by `domain::protocol_test`;
//! - a message is dropped: `consumers` acknowledges only what is committed or copied with a confirm.
//!
//! `app::audit` looks on the live data whether it was kept.

pub mod app;
pub mod bench;
pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod consumers;
pub mod db;
pub mod domain;
pub mod fault_injection;
pub mod http;
pub mod limit;
pub mod local;
pub mod metrics;
pub mod mq;
pub mod outgoing;
pub mod pg;
pub mod receivers;
pub mod schedule;
pub mod shutdown;
pub mod supervisor;
pub mod telemetry;
pub mod traces;
pub mod vendors;
