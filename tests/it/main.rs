//! Integration tests, against a real PostgreSQL and a real RabbitMQ. A database for each test, a queue prefix for each
//! test; nothing is shared but the servers.

#![expect(clippy::panic, reason = "a test that fails panics")]

mod all_in_one;
mod architecture;
mod audit;
mod bench;
mod broker;
mod browser;
mod catalogue;
mod cli;
mod client;
mod dead_letters;
mod deployment;
mod exactness;
mod faults;
mod flow;
mod half_dead;
mod http;
mod ledgerless;
mod metrics;
mod package;
mod plans;
mod pools;
mod queues;
mod rejections;
mod status;
mod support;
mod sync;
mod systemd;
mod traces;
mod vendor_calls;
mod vendor_changes;
mod vendor_stock;
mod webhooks;
