//! The API as the load generator uses it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::connection::Connection;

/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be used.
    #[error("{url} is no address of an HTTP API: {problem}")]
    Address {
        /// As given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The key cannot be one.
    #[error("the API key has characters that no key has")]
    Key,
    /// Nobody answers.
    #[error("the API at {at} cannot be reached: {problem}")]
    Unreachable {
        /// Host and port.
        at: String,
        /// What happened.
        problem: String,
    },
    /// It answers, but not as expected.
    #[error("the API at {at} answered {path} with {problem}")]
    Unexpected {
        /// Host and port.
        at: String,
        /// What was asked for.
        path: String,
        /// What it said.
        problem: String,
    },
    /// There is no product.
    #[error("the API lists no product; sync the vendors first (`stockctl sync --once`)")]
    NothingToSell,
}

/// Items of one page of a list: the most that the API gives.
const PAGE: usize = 200;
/// How often what is not told yet is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Orders that are looked at once more when the time is over: a few seconds' worth.
const LAST_LOOKS_MAX: usize = 10_000;

/// Where the API is.
#[derive(Clone)]
pub(super) struct Api {
    authority: String,
    base: String,
    authorization: Option<String>,
}

/// An order, as much as is read of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) vendor_sync: String,
    reference: Option<String>,
    pub(super) accepted_at: DateTime<Utc>,
    pub(super) decided_at: Option<DateTime<Utc>>,
    #[serde(default)]
    history: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    at: DateTime<Utc>,
    event: String,
}

impl Order {
    fn is_told(&self) -> bool {
        self.status != "pending" && self.vendor_sync != "pending"
    }

    /// When the last vendor had answered; none where none had to be told.
    pub(super) fn told_at(&self) -> Option<DateTime<Utc>> {
        let pushed = self.history.iter().filter(|entry| entry.event == "pushed");
        pushed.map(|entry| entry.at).max()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Orders {
    orders: Vec<Order>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Products {
    products: Vec<Product>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Product {
    id: String,
}

impl Api {
    pub(super) fn at(url: &str, key: Option<&str>) -> Result<Self, Error> {
        let address = |problem: &str| Error::Address {
            url: url.to_owned(),
            problem: problem.to_owned(),
        };
        let parsed = Url::parse(url).map_err(|error| address(&error.to_string()))?;
        if parsed.scheme() != "http" {
            return Err(address("only http:// is spoken"));
        }
        let host = parsed.host_str().ok_or_else(|| address("it has no host"))?;
        if key.is_some_and(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::Key);
        }
        let authorization = key.map(|key| format!("Bearer {key}"));
        Ok(Self {
            authorization,
            authority: format!("{host}:{}", parsed.port().unwrap_or(80)),
            base: parsed.path().trim_end_matches('/').to_owned(),
        })
    }

    pub(super) fn path(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        Connection::open(&self.authority, self.authorization.as_deref())
            .await
            .map_err(|problem| Error::Unreachable {
                at: self.authority.clone(),
                problem,
            })
    }

    async fn get<T: DeserializeOwned>(
        &self,
        connection: &mut Connection,
        path: &str,
    ) -> Result<T, Error> {
        let unexpected = |problem: String| Error::Unexpected {
            at: self.authority.clone(),
            path: path.to_owned(),
            problem,
        };
        let answer = connection
            .send("GET", &self.path(path), b"")
            .await
            .map_err(|problem| Error::Unreachable {
                at: self.authority.clone(),
                problem,
            })?;
        if answer.status != 200 {
            let text = String::from_utf8_lossy(&answer.body)
                .chars()
                .take(300)
                .collect::<String>();
            return Err(unexpected(format!("{}: {text}", answer.status)));
        }
        serde_json::from_slice(&answer.body).map_err(|error| unexpected(error.to_string()))
    }

    /// The ids of the first products.
    pub(super) async fn list_products(&self, max: usize) -> Result<Vec<String>, Error> {
        let mut connection = self.connect().await?;
        let mut ids = Vec::new();
        let mut cursor = String::new();
        while ids.len() < max {
            let limit = PAGE.min(max - ids.len());
            let page: Products = self
                .get(&mut connection, &format!("/products?limit={limit}{cursor}"))
                .await?;
            ids.extend(page.products.into_iter().map(|product| product.id));
            match page.next_cursor {
                Some(next) => cursor = format!("&cursor={}", encode(&next)),
                None => break,
            }
        }
        Ok(ids)
    }

    /// Looks at orders until all are decided and told, or the time is over. Returns those that are.
    ///
    /// Where one is not, it waits before it looks at the next: to look at all of them again and again would take the
    /// processor from what is measured.
    pub(super) async fn wait_until_told(
        &self,
        ids: &[String],
        until: Instant,
    ) -> Result<Vec<Order>, Error> {
        let mut connection = self.connect().await?;
        let mut left: VecDeque<&String> = ids.iter().collect();
        let mut told = Vec::with_capacity(left.len());
        while Instant::now() < until
            && let Some(id) = left.pop_front()
        {
            let order: Order = self.get(&mut connection, &format!("/orders/{id}")).await?;
            if order.is_told() {
                told.push(order);
            } else {
                left.push_back(id);
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        // Told meanwhile, perhaps, while others were waited for.
        for id in left.into_iter().take(LAST_LOOKS_MAX) {
            let order: Order = self.get(&mut connection, &format!("/orders/{id}")).await?;
            if order.is_told() {
                told.push(order);
            }
        }
        Ok(told)
    }

    /// Lists the orders of a run as they are in the end; those that are not decided and told yet are looked at again
    /// until the time is over.
    pub(super) async fn list_orders_of(
        &self,
        reference: &str,
        count: u64,
        until: Instant,
    ) -> Result<Vec<Order>, Error> {
        let mut connection = self.connect().await?;
        let mut orders = BTreeMap::new();
        let mut cursor = String::new();
        while u64::try_from(orders.len()).unwrap_or(u64::MAX) < count {
            let page: Orders = self
                .get(&mut connection, &format!("/orders?limit={PAGE}{cursor}"))
                .await?;
            for order in page.orders {
                if order.reference.as_deref() == Some(reference) {
                    orders.insert(order.id.clone(), order);
                }
            }
            match page.next_cursor {
                Some(next) => cursor = format!("&cursor={}", encode(&next)),
                None => break,
            }
        }
        let open: Vec<String> = orders
            .values()
            .filter(|order| !order.is_told())
            .map(|order| order.id.clone())
            .collect();
        for order in self.wait_until_told(&open, until).await? {
            orders.insert(order.id.clone(), order);
        }
        Ok(orders.into_values().collect())
    }
}

fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
