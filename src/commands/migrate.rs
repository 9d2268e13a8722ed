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
    let pg::Migrated { ran, unknown } = pg::migrate(settings, migrations, pg::LOCK_DEADLINE)
        .await
        .map_err(|error| {
            let code = if error.is_passing() {
                EXIT_UNREACHABLE
            } else {
                EXIT_BUG
            };
            Failure::new(code, format!("{name}: {error}"))
        })?;
    let mut line = format!("{name} ({}): ", settings.address());
    line.push_str(&match ran.as_slice() {
        [] => "up to date".to_owned(),
        ran => format!("ran {}", ran.join(", ")),
    });
    if !unknown.is_empty() {
        line.push_str(&format!(
            "; it is newer than this version, which does not know {}",
            unknown.join(", ")
        ));
    }
    say(&line);
    Ok(())
}
