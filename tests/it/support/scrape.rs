//! What a process shows at `/metrics`.

use std::collections::{BTreeMap, BTreeSet};

use super::{Process, reqwest_client};

/// One scrape.
pub(crate) struct Scrape {
    /// As it came.
    pub(crate) text: String,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Asks `host:port`.
    pub(crate) async fn of(address: &str) -> Self {
        let answer = reqwest_client()
            .get(format!("http://{address}/metrics"))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        let kind = answer.headers()["content-type"].to_str().expect("text");
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        Self::read(answer.text().await.expect("a body"))
    }

    /// Reads a scrape.
    pub(crate) fn read(text: String) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                (series.to_owned(), value.parse().expect("a number"))
            })
            .collect();
        Self { text, samples }
    }

    /// The value of one series, as it is written: `name{label="value"}`.
    pub(crate) fn value(&self, series: &str) -> f64 {
        *self
            .samples
            .get(series)
            .unwrap_or_else(|| panic!("{series} is in {}", self.text))
    }

    /// The values of several series.
    pub(crate) fn values<const N: usize>(&self, series: [&str; N]) -> [f64; N] {
        series.map(|series| self.value(series))
    }

    /// The sum over every series of a name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let of_name = self
            .samples
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(name));
        of_name.map(|(_, value)| value).sum()
    }

    /// The names of all series: those of a histogram end in `_bucket`, `_sum` and `_count`.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let name = |series: &String| series.split('{').next().unwrap_or_default().to_owned();
        self.samples.keys().map(name).collect()
    }
}

impl Process {
    /// Where its listener for metrics is, once it says so.
    pub(crate) async fn metrics_address(&self) -> String {
        // The address stands before this in the line.
        let written = self
            .writes("\"target\":\"stockctl::commands::metrics\"")
            .await;
        let line = written
            .lines()
            .find(|line| line.contains("metrics at /metrics"))
            .expect("said");
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        line["address"].as_str().expect("an address").to_owned()
    }

    /// What it shows now.
    pub(crate) async fn scrape(&self) -> Scrape {
        Scrape::of(&self.metrics_address().await).await
    }
}
