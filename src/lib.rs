//! stockctl
pub mod app;
pub mod config;
pub mod db;
pub mod domain;
pub mod mq;
pub mod pg;
pub mod shutdown;
pub mod telemetry;
pub mod vendors;
