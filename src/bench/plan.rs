//! What is asked of the load generator, and which products it orders.

use std::time::Duration;

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Each connection sends its next request when it has its answer.
    Closed,
    /// So many requests a second, whatever the answers take. Latency counts from the time at which a request was meant
    /// to start: a server that stalls is not spared those that could not be sent meanwhile ("coordinated omission",
    /// Gil Tene).
    Open(f64),
}

/// Which products are ordered how often.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// All alike.
    Uniform,
    /// The k-th in proportion to 1 / k^s.
    Zipf(f64),
    /// All orders are for one.
    Hot,
}

/// What to do. Not to be printed: it has the key.
#[derive(Clone, PartialEq)]
pub struct Plan {
    /// The base of the API.
    pub url: String,
    /// What the API lets us in by, with the scopes `orders:write` and `orders:read`.
    pub api_key: Option<String>,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// How requests follow each other.
    pub pace: Pace,
    /// For how long it is measured.
    pub duration: Duration,
    /// For how long before that it is not.
    pub warm_up: Duration,
    /// How long to wait at the end for what was accepted to be decided and told.
    pub drain: Duration,
    /// Products to order, the first by id.
    pub products_max: usize,
    /// Which of them how often.
    pub distribution: Distribution,
    /// Lines of each order.
    pub lines: usize,
    /// Units of each line.
    pub quantity: i64,
}

/// Chooses products.
#[derive(Debug, Clone)]
pub struct Chooser {
    products: Vec<String>,
    /// The share of all orders that goes to a product or one before it.
    cumulative: Vec<f64>,
}

impl Chooser {
    /// Chooses among products, the first most often where they differ.
    #[must_use]
    pub fn new(mut products: Vec<String>, distribution: Distribution) -> Self {
        let exponent = match distribution {
            Distribution::Uniform => 0.0,
            Distribution::Zipf(exponent) => exponent,
            Distribution::Hot => {
                products.truncate(1);
                0.0
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "a product's rank is small")]
        let weights = (1..=products.len()).map(|rank| (rank as f64).powf(-exponent));
        let mut sum = 0.0;
        let mut cumulative: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        for share in &mut cumulative {
            *share /= sum;
        }
        Self {
            products,
            cumulative,
        }
    }

    /// The product at a point of [0, 1).
    #[must_use]
    pub fn at(&self, point: f64) -> &str {
        let index = self.cumulative.partition_point(|share| *share <= point);
        // The last share may be a hair below 1.
        let last = self.products.len().saturating_sub(1);
        self.products
            .get(index.min(last))
            .map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chooser(count: usize, distribution: Distribution) -> Chooser {
        Chooser::new((1..=count).map(|n| format!("p{n}")).collect(), distribution)
    }

    #[test]
    fn uniform_gives_each_product_the_same_share() {
        let chooser = chooser(4, Distribution::Uniform);
        let at: Vec<_> = [0.0, 0.24, 0.25, 0.74, 0.76, 0.999_999_999]
            .map(|point| chooser.at(point))
            .into();
        assert_eq!(at, ["p1", "p1", "p2", "p3", "p4", "p4"]);
    }

    #[test]
    fn zipf_gives_the_first_product_twice_the_share_of_the_second() {
        let chooser = chooser(2, Distribution::Zipf(1.0));
        assert_eq!(chooser.at(0.66), "p1");
        assert_eq!(chooser.at(0.67), "p2");
    }

    #[test]
    fn one_hot_product_gets_everything() {
        let chooser = chooser(100, Distribution::Hot);
        assert_eq!((chooser.at(0.0), chooser.at(0.999)), ("p1", "p1"));
    }
}
