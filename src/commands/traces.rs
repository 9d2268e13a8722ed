//! Traces of a process that runs until it is told to end.

use super::Failure;
use crate::config::Config;
use crate::traces::{self, Exporting};

/// Begins to export spans, where the configuration says so. `command` tells this process from the others.
///
/// # Errors
/// The TLS library cannot be set up.
pub fn export(config: &Config, command: &str) -> Result<Exporting, Failure> {
    let Some(endpoint) = &config.telemetry.otlp_endpoint else {
        return Ok(Exporting::default());
    };
    let settings = traces::Settings {
        endpoint: endpoint.expose().to_owned(),
        shown_endpoint: endpoint.to_string(),
        sample_ratio: config.telemetry.sample_ratio,
        service: format!("stockctl-{command}"),
    };
    traces::export(settings).map_err(Failure::bug)
}
