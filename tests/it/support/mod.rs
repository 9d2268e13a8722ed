//! What the tests stand on: the servers, and a shop of one's own on them.

pub(crate) mod amqp_proxy;
pub(crate) mod authority;
mod books;
mod elsewhere;
pub(crate) mod keep_alive;
pub(crate) mod messages;
mod process;
mod proxy;
pub(crate) mod receiver;
pub(crate) mod scrape;
mod scratch;
mod servers;
mod shop;
pub(crate) mod stub;
mod vendor;

use std::future::Future;
use std::time::Duration;

pub(crate) use elsewhere::{ELSEWHERE, Elsewhere, try_as_reader};
pub(crate) use process::{Ended, Process};
pub(crate) use proxy::Proxy;
pub(crate) use scratch::scratch;
pub(crate) use servers::{Servers, binary};
pub(crate) use shop::{Running, Shop, ShopOptions, reqwest_client};
pub(crate) use vendor::{Raw, RawVendor, StubVendor, all_applied};

/// Longer than anything takes on a busy machine; only a failure waits for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// Asks until the answer is there. `what` says what was waited for, should it never come.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, asking)
        .await
        .unwrap_or_else(|_| panic!("never came: {what}"))
}
