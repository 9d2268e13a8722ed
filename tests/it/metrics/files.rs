//! The alerts, the dashboard and the README's table.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::promtool;

const ALERTS: &str = "config/alerts.yml";
const DASHBOARD: &str = "config/grafana-dashboard.json";
const UNIT_TESTS: [&str; 2] = [
    "tests/it/metrics/alerts.yml",
    "tests/it/metrics/alerts-of-days.yml",
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).expect("readable")
}

/// Every metric that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c: char| !is_of_name(c))
        .filter(|word| word.starts_with("stockctl_") || *word == "process_start_time_seconds")
        .collect()
}

/// Whatever the files name is in a scrape, and the README has every name of a scrape.
pub(super) fn assert_documented(scraped: &BTreeSet<String>) {
    let of_histogram = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"];
        parts
            .iter()
            .all(|part| scraped.contains(&format!("{name}{part}")))
    };
    let section = section_of_metrics();
    let texts = [text(ALERTS), text(DASHBOARD), section.clone()];
    for name in texts.iter().flat_map(|text| named(text)) {
        assert!(
            scraped.contains(name) || of_histogram(name),
            "{name} is in no scrape"
        );
    }
    let described = named(&section);
    for name in scraped {
        let parts = ["_bucket", "_sum", "_count"];
        let whole = parts
            .iter()
            .find_map(|part| name.strip_suffix(part))
            .filter(|whole| of_histogram(whole));
        let name = whole.unwrap_or(name);
        assert!(described.contains(name), "{name} is not in the README");
    }
}

/// The README's section.
fn section_of_metrics() -> String {
    let readme = text("README.md");
    let (_, section) = readme.split_once("\n## Metrics\n").expect("a section");
    section.split("\n## ").next().unwrap_or_default().to_owned()
}

#[test]
fn the_dashboard_shows_every_metric_that_the_readme_describes() {
    let (section, dashboard) = (section_of_metrics(), text(DASHBOARD));
    let described = named(&section);
    assert!(described.len() > 50, "{described:?}");
    let unseen: Vec<&str> = described
        .into_iter()
        .filter(|name| !dashboard.contains(name))
        .collect();
    assert!(unseen.is_empty(), "the dashboard does not show {unseen:?}");
}

/// The names after `alert:`.
fn alerts() -> BTreeSet<String> {
    text(ALERTS)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn each_alert_fires_when_it_should_and_not_before() {
    let alerts_file = path(ALERTS);
    let (is_content, said) = promtool(
        &[
            "check",
            "rules",
            "--lint=all",
            "--lint-fatal",
            alerts_file.to_str().expect("UTF-8"),
        ],
        "",
    )
    .await;
    assert!(is_content, "{said}");
    for unit_tests in UNIT_TESTS.map(path) {
        let unit_tests = unit_tests.to_str().expect("UTF-8");
        let (is_content, said) = promtool(&["test", "rules", unit_tests], "").await;
        assert!(is_content, "{said}");
    }

    // Each is tried in both ways: firing, and silent.
    let (tests, rules) = (UNIT_TESTS.map(text).concat(), text(ALERTS));
    for alert in alerts() {
        let tried: Vec<&str> = tests
            .split("alertname: ")
            .skip(1)
            .filter(|test| test.lines().next() == Some(&alert))
            .collect();
        let fires = tried
            .iter()
            .filter(|test| test.contains("exp_labels"))
            .count();
        assert!(fires > 0, "{alert} is never seen firing");
        assert!(tried.len() > fires, "{alert} is never seen silent");
    }
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap_or_default();
        for part in ["summary: ", "description: ", "severity: "] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
    }
    // And the README says of each what to do.
    let readme = text("README.md");
    for alert in alerts() {
        assert!(
            readme.contains(&format!("`{alert}`")),
            "{alert} is not in the README"
        );
    }
}

#[tokio::test]
async fn the_dashboard_is_one_that_grafana_and_prometheus_take() {
    let dashboard: serde_json::Value = serde_json::from_str(&text(DASHBOARD)).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("a list");
    let mut ids = BTreeSet::new();
    // promtool reads rules, so each query is made one.
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        let id = panel["id"].as_u64().expect("an id");
        assert!(ids.insert(id), "{title}: its id is taken");
        let place = &panel["gridPos"];
        let right = place["x"].as_u64().expect("x") + place["w"].as_u64().expect("w");
        assert!(right <= 24, "{title} is too wide");
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().expect("a list");
        assert!(!targets.is_empty(), "{title} shows nothing");
        for (number, target) in targets.iter().enumerate() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let query = target["expr"].as_str().expect("a query");
            let query = query
                .replace("$__rate_interval", "5m")
                .replace("$job", ".*");
            let query = serde_json::Value::String(query);
            rules += &format!("  - record: panel:{id}_{number}\n    expr: {query}\n");
        }
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &rules).expect("written");
    let file = file.path().to_str().expect("UTF-8");
    let (is_content, said) = promtool(&["check", "rules", file], "").await;
    assert!(is_content, "{said}{rules}");
}
