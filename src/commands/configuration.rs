//! `stockctl config`: what the configuration is, and whether it will do.

use std::path::Path;

use clap::Subcommand;
use serde_json::{Map, json};

use super::{EXIT_CONFIGURATION, Failure};
use crate::config::{self, Origin, Shown};

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration will do; nothing is connected
    Check,
    /// Show each key with its value and where that comes from; passwords are hidden
    Show {
        /// As JSON: for each key its value and its origin
        #[arg(long)]
        json: bool,
    },
}

/// Reads the configuration, and says what it is.
///
/// # Errors
/// It will not do.
pub fn run(file: Option<&Path>, command: &ConfigCommand) -> Result<(), Failure> {
    let (config, shown) = config::list(file).map_err(|error| {
        let text = format!("{:#}", anyhow::Error::new(error));
        Failure::new(EXIT_CONFIGURATION, text)
    })?;
    match command {
        ConfigCommand::Check => {
            super::webhooks::configured(&config)?;
            let vendors: Vec<&str> = config.vendors.keys().map(String::as_str).collect();
            super::say(&format!(
                "the configuration will do: vendors {}; from {}",
                vendors.join(", "),
                sources(&shown)
            ));
        }
        ConfigCommand::Show { json: true } => {
            let keys: Map<_, _> = shown
                .into_iter()
                .map(|one| {
                    let value = json!({"value": one.value, "origin": one.origin.to_string()});
                    (one.key, value)
                })
                .collect();
            super::say(&serde_json::to_string_pretty(&keys).map_err(Failure::bug)?);
        }
        ConfigCommand::Show { json: false } => {
            let line = |one: &Shown| format!("{} = {}", one.key, one.value);
            let widest = shown.iter().map(|one| line(one).chars().count()).max();
            // Beyond this, what is long stands out and the rest stays in its columns.
            let width = widest.unwrap_or(0).min(60);
            for one in &shown {
                super::say(&format!("{:width$}  # {}", line(one), one.origin));
            }
        }
    }
    Ok(())
}

/// The layers that set anything, each once.
fn sources(shown: &[Shown]) -> String {
    let mut sources = Vec::new();
    for one in shown {
        let source = match &one.origin {
            Origin::Default => "the defaults".to_owned(),
            Origin::File(path, _) => path.display().to_string(),
            Origin::Variable(name) => name.clone(),
        };
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    sources.join(", ")
}
