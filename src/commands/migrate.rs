//! `stockctl migrate`: brings the schemas up to date.

use super::{EXIT_BUG, EXIT_UNREACHABLE, Failure, database_settings, say, vendor_settings};
use crate::config::Config;
use crate::{db, pg, vendors};

/// Migrates our database, and with `with_vendors` those of the vendors that have a ledger. Safe from many processes at
/// once.
///
/// # Errors
/// A server cannot be reached, or a migration failed.
pub async fn run(config: &Config, with_vendors: bool) -> Result<(), Failure> {
    migrate(&database_settings(config), "ordersdb", db::MIGRATIONS).await?;
    if with_vendors {
        for (id, vendor) in &config.vendors {
            // One without a ledger is somebody else's schema, which we only read.
            if vendor.ledger {
                let settings = vendor_settings(config, vendor);
                migrate(&settings, &format!("vendor {id}"), vendors::MIGRATIONS).await?;
            }
        }
    }
    Ok(())
}

async fn migrate(
    settings: &pg::Settings,
    name: &str,
    migrations: diesel_migrations::EmbeddedMigrations,
) -> Result<(), Failure> {
    let versions = pg::migrate(settings, migrations).await.map_err(|error| {
        let code = if error.is_unavailable() {
            EXIT_UNREACHABLE
        } else {
            EXIT_BUG
        };
        Failure::new(code, format!("{name}: {error}"))
    })?;
    say(&if versions.is_empty() {
        format!("{name} ({}): up to date", settings.address())
    } else {
        format!(
            "{name} ({}): ran {}",
            settings.address(),
            versions.join(", ")
        )
    });
    Ok(())
}
