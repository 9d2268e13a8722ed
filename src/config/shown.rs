//! The configuration as it counts: each key with its value and where that comes from, and no secret.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::error::{ConfigError, Origin};
use super::layers::{Key, Layers, VENDORS, Value, WEBHOOKS};
use super::reader::Reader;
use super::{Config, SecretUrl, sections};

/// A key that is set.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// With its sections, such as `http.listen`.
    pub key: String,
    /// Its value; of a URL without the password.
    pub value: Json,
    /// Where it comes from.
    pub origin: Origin,
}

/// Reads the configuration as [`super::load_from`], and lists what it is made of, by key.
///
/// # Errors
/// As [`super::load_from`].
pub fn list_from(
    explicit: Option<&Path>,
    fallback: &Path,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<(Config, Vec<Shown>), ConfigError> {
    let layers = Layers::read(explicit, fallback, variables)?;
    let mut shown: Vec<Shown> = layers
        .settings
        .iter()
        .filter(|(_, setting)| !matches!(setting.value, Value::EmptySection))
        .map(|(key, setting)| Shown {
            key: key.to_string(),
            value: value(key, &setting.value, &setting.origin),
            origin: setting.origin.clone(),
        })
        .collect();
    let mut reader = Reader::new(layers);
    let read = sections::config(&mut reader);
    let config = reader.finish(read)?;
    for (id, vendor) in &config.vendors {
        let catalogue = &vendor.catalogue;
        let table = match &catalogue.table.schema {
            Some(schema) => format!("{schema}.{}", catalogue.table.table),
            None => catalogue.table.table.clone(),
        };
        for (name, value) in [
            ("ledger", json!(vendor.ledger)),
            ("table", json!(table)),
            ("id_column", json!(catalogue.id_column)),
            ("name_column", json!(catalogue.name_column)),
            ("stock_column", json!(catalogue.stock_column)),
        ] {
            let key = Key::of_vendor(id, name).to_string();
            if shown.iter().all(|one| one.key != key) {
                shown.push(Shown {
                    key,
                    value,
                    origin: Origin::Default,
                });
            }
        }
    }
    shown.sort_by(|one, other| one.key.cmp(&other.key));
    Ok((config, shown))
}

fn value(key: &Key, value: &Value, origin: &Origin) -> Json {
    let parts: Vec<&str> = key.0.iter().map(String::as_str).collect();
    let parse: fn(&str) -> Result<SecretUrl, String> = match parts.as_slice() {
        ["database", "url"] | [VENDORS, _, "database_url"] => SecretUrl::postgres,
        ["rabbitmq", "url"] => SecretUrl::amqp,
        [VENDORS, _, "api_url"] | ["telemetry", "otlp_endpoint"] => SecretUrl::http,
        [VENDORS, _, "api_key"] | [WEBHOOKS, _, "secret"] => return json!("***"),
        [WEBHOOKS, _, "url"] => SecretUrl::receiver,
        _ => return plain(value, origin),
    };
    let hidden = |text: &str| match parse(text.trim()) {
        Ok(url) => json!(url.to_string()),
        // Nobody knows which part of it is the password.
        Err(_) => json!("***"),
    };
    match (value, origin) {
        (Value::Text(text), Origin::Variable(_)) if text.contains(',') => {
            text.split(',').map(hidden).collect()
        }
        (Value::Text(text), _) => hidden(text),
        (Value::List(texts), _) => texts
            .iter()
            .map(|text| match text {
                Value::Text(text) => hidden(text),
                _ => json!("***"),
            })
            .collect(),
        _ => json!("***"),
    }
}

fn plain(value: &Value, origin: &Origin) -> Json {
    match (value, origin) {
        // A variable has no type; a number or a truth in it is shown as what it is read as.
        (Value::Text(text), Origin::Variable(_)) => match text.trim().parse::<i64>() {
            Ok(number) => json!(number),
            Err(_) => match text.trim().parse::<bool>() {
                Ok(truth) => json!(truth),
                // Only what has digits is a fraction to people; "nan" and "inf" are words.
                Err(_) => match text.trim().parse::<f64>() {
                    Ok(fraction) if text.contains(|c: char| c.is_ascii_digit()) => json!(fraction),
                    _ => json!(text),
                },
            },
        },
        (Value::Text(text), _) => json!(text),
        (Value::Integer(number), _) => json!(number),
        (Value::Fraction(number), _) => json!(number),
        (Value::Boolean(truth), _) => json!(truth),
        (Value::List(values), _) => values.iter().map(|one| plain(one, origin)).collect(),
        (Value::EmptySection, _) => json!({}),
        (Value::Other(kind), _) => json!(kind),
    }
}
