//! Integration tests, against a real PostgreSQL and a real RabbitMQ. A database for each test, a queue prefix for each
//! test; nothing is shared but the servers.

mod architecture;
mod flow;
mod support;
