//! A load generator for whoever sizes an installation. It counts what really ended, read from the API: orders that were
//! decided, and of which the vendors were told; not what was sent.

mod api;
mod connection;
mod load;
mod measured;
mod plan;
mod report;

use std::time::{Duration, Instant};

pub use api::Error;
pub use plan::{Chooser, Distribution, Pace, Plan};
pub use report::{Latency, Report};

use self::api::Api;
use self::measured::Measured;

/// Runs a plan against the API, and reports.
///
/// # Errors
/// The API cannot be reached, or sells nothing.
pub async fn run(plan: &Plan, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<Report, Error> {
    let api = Api::at(&plan.url, plan.api_key.as_deref())?;
    let products = api.list_products(plan.products_max).await?;
    if products.is_empty() {
        return Err(Error::NothingToSell);
    }
    progress(&format!(
        "{} products, {} of warm-up, then {}",
        products.len(),
        seconds(plan.warm_up),
        seconds(plan.duration)
    ));
    let chooser = Chooser::new(products, plan.distribution);
    let Measured {
        accepted,
        refused,
        failed,
        samples,
        reference,
        took,
    } = load::generate(&api, plan, chooser).await;
    progress(&format!(
        "accepted {} orders; waiting for their decisions and their vendors",
        accepted.len()
    ));
    let until = Instant::now() + plan.drain;
    let told = api.wait_until_told(&samples, until).await?;
    let ended = api
        .list_orders_of(&reference, accepted.len(), until)
        .await?;
    Ok(Report::new(
        plan, took, &accepted, refused, failed, &ended, &told,
    ))
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}
