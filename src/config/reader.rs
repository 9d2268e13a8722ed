//! Takes settings out of the layers by key and type, and gathers what is wrong with them. What was not taken in the
//! end is unknown.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::{ConfigError, Origin, Problem};
use super::layers::{Key, Layers, Setting, VENDORS, Value};
use super::limits;

/// Every read gives `None` when it has noted a problem, so that the other keys are read all the same.
#[derive(Debug)]
pub(super) struct Reader {
    layers: Layers,
    known: Vec<Key>,
}

impl Reader {
    pub(super) fn new(layers: Layers) -> Self {
        Self {
            layers,
            known: Vec::new(),
        }
    }

    /// A text, and what `parse` makes of it.
    pub(super) fn text<T>(
        &mut self,
        key: &Key,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.required(key, |setting| parse_text(setting, parse))
    }

    /// A text and what `parse` makes of it, or `default` when the key is not set.
    pub(super) fn text_or<T>(
        &mut self,
        key: &Key,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.optional(key, |setting| parse_text(setting, parse))
            .map(|value| value.unwrap_or(default))
    }

    /// One text or a list of them, each made something of by `parse`; a variable separates them by commas.
    pub(super) fn texts<T>(
        &mut self,
        key: &Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        self.list(key, false, parse)
    }

    /// As [`Self::texts`], and an empty list is one.
    pub(super) fn texts_or_none<T>(
        &mut self,
        key: &Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        self.list(key, true, parse)
    }

    /// As [`Self::texts`], if the key is set.
    pub(super) fn texts_if_any<T>(
        &mut self,
        key: &Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<Vec<T>>> {
        self.optional(key, |setting| parse_list(setting, false, parse))
    }

    fn list<T>(
        &mut self,
        key: &Key,
        may_be_empty: bool,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        self.required(key, |setting| parse_list(setting, may_be_empty, parse))
    }

    /// A whole number within `bounds`.
    pub(super) fn number<T>(&mut self, key: &Key, bounds: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        self.required(key, |setting| parse_number(setting, &bounds))
    }

    /// A whole number within `bounds`, if there is one.
    pub(super) fn number_if_any<T>(
        &mut self,
        key: &Key,
        bounds: RangeInclusive<T>,
    ) -> Option<Option<T>>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        self.optional(key, |setting| parse_number(setting, &bounds))
    }

    /// A number between two bounds, both allowed, which may have a fraction.
    pub(super) fn fraction(&mut self, key: &Key, bounds: RangeInclusive<f64>) -> Option<f64> {
        self.required(key, |setting| {
            let wanted = format!(
                "it must be a number from {} to {}",
                bounds.start(),
                bounds.end()
            );
            let number = match (&setting.value, &setting.origin) {
                (Value::Fraction(number), _) => *number,
                // Whole ones are numbers too; those within any bounds here are exact.
                (Value::Integer(number), _) => *number as f64,
                (Value::Text(text), Origin::Variable(_)) => text
                    .trim()
                    .parse()
                    .map_err(|_| format!("{wanted}, not {}", quoted(text)))?,
                (other, _) => return Err(format!("{wanted}, not {}", kind(other))),
            };
            match bounds.contains(&number) {
                true => Ok(number),
                false => Err(format!("{wanted}, not {number}")),
            }
        })
    }

    /// A time in whole milliseconds within `bounds`.
    pub(super) fn milliseconds(
        &mut self,
        key: &Key,
        bounds: RangeInclusive<u64>,
    ) -> Option<Duration> {
        self.number(key, bounds).map(Duration::from_millis)
    }

    /// True or false, or `default` when the key is not set.
    pub(super) fn boolean_or(&mut self, key: &Key, default: bool) -> Option<bool> {
        self.optional(key, |setting| match (&setting.value, &setting.origin) {
            (Value::Boolean(value), _) => Ok(*value),
            (Value::Text(text), Origin::Variable(_)) => text
                .trim()
                .to_lowercase()
                .parse()
                .map_err(|_| format!("it must be true or false, not {}", quoted(text))),
            (other, _) => Err(format!("it must be true or false, not {}", kind(other))),
        })
        .map(|value| value.unwrap_or(default))
    }

    /// The ids under `vendors` or `webhooks` with the place of their first key, also of those that have no keys yet.
    pub(super) fn ids_below(&self, section: &str) -> BTreeMap<String, Origin> {
        let mut ids = BTreeMap::new();
        for (key, setting) in &self.layers.settings {
            let id = match (key.0.as_slice(), &setting.value) {
                ([of, id], Value::EmptySection) if of == section => id,
                ([of, id, _, ..], _) if of == section => id,
                _ => continue,
            };
            ids.entry(id.clone())
                .or_insert_with(|| setting.origin.clone());
        }
        ids
    }

    /// Notes a problem that is not one value's.
    pub(super) fn note(&mut self, key: &Key, origin: Option<Origin>, message: String) {
        self.layers.problems.push(Problem {
            key: key.to_string(),
            origin,
            message,
        });
    }

    /// Makes a key known without reading it, so that it can be the nearest one.
    pub(super) fn make_known(&mut self, key: Key) {
        self.known.push(key);
    }

    /// The keys that were asked for so far, in that order.
    #[cfg(test)]
    pub(super) fn known_keys(&self) -> Vec<String> {
        self.known.iter().map(ToString::to_string).collect()
    }

    /// The value that was read, unless anything is wrong; settings that nobody asked for are.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, ConfigError> {
        for (key, setting) in std::mem::take(&mut self.layers.settings) {
            if let Some(message) = self.objection(&key, &setting) {
                self.note(&key, Some(setting.origin), message);
            }
        }
        match value {
            Some(value) if self.layers.problems.is_empty() => Ok(value),
            _ => Err(ConfigError::Invalid {
                problems: self.layers.problems,
            }),
        }
    }

    fn required<T>(
        &mut self,
        key: &Key,
        parse: impl FnOnce(&Setting) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.optional(key, parse)?;
        if value.is_none() {
            let place = match &self.layers.file {
                Some(path) => format!("set it in {}", path.display()),
                None => "no file was found, so name one with --config".to_owned(),
            };
            let variable = key.variable();
            let message = format!("it is required and not set; {place}, or set {variable}");
            self.note(key, None, message);
        }
        value
    }

    /// `None` with a problem noted, or `Some(None)` when the key is not set.
    fn optional<T>(
        &mut self,
        key: &Key,
        parse: impl FnOnce(&Setting) -> Result<T, String>,
    ) -> Option<Option<T>> {
        self.known.push(key.clone());
        let Some(setting) = self.layers.settings.remove(key) else {
            return Some(None);
        };
        match parse(&setting) {
            Ok(value) => Some(Some(value)),
            Err(message) => {
                self.note(key, Some(setting.origin), message);
                None
            }
        }
    }

    /// What is wrong with a setting that nobody asked for; an empty section is none when such a section exists.
    fn objection(&self, key: &Key, setting: &Setting) -> Option<String> {
        let is_section =
            key.0 == [VENDORS] || self.known.iter().any(|known| known.0.starts_with(&key.0));
        if is_section {
            return match setting.value {
                Value::EmptySection => None,
                _ => Some("it is a section with keys of its own, not a value".to_owned()),
            };
        }
        if matches!(setting.value, Value::EmptySection) {
            let sections = self.known.iter().map(Key::section);
            let nearest = sections.min_by_key(|known| distance(key, known))?;
            return Some(format!(
                "there is no such section; the nearest one is {nearest}"
            ));
        }
        let nearest = self.known.iter().min_by_key(|known| distance(key, known))?;
        Some(match setting.origin {
            Origin::Variable(_) => format!(
                "there is no such key; the nearest one is {nearest}, set by {}",
                nearest.variable()
            ),
            _ => format!("there is no such key; the nearest one is {nearest}"),
        })
    }
}

/// The last part counts twice, so that a right name in the wrong section is found.
fn distance(left: &Key, right: &Key) -> usize {
    let last = |key: &Key| key.0.last().cloned().unwrap_or_default();
    strsim::osa_distance(&left.to_string(), &right.to_string())
        + strsim::osa_distance(&last(left), &last(right))
}

/// A value to be repeated in a message: shortened, and not at all when it looks like a URL put in the wrong place.
pub(super) fn quoted(text: &str) -> String {
    if text.contains('@') || text.contains("://") {
        return "a URL".to_owned();
    }
    if text.chars().count() > limits::QUOTED_LENGTH {
        let start: String = text.chars().take(limits::QUOTED_LENGTH).collect();
        return format!("{start:?}...");
    }
    format!("{text:?}")
}

fn parse_text<T>(
    setting: &Setting,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, String> {
    match &setting.value {
        Value::Text(text) => parse(text.trim()),
        other => Err(format!("it must be a text, not {}", kind(other))),
    }
}

fn parse_list<T>(
    setting: &Setting,
    may_be_empty: bool,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let texts: Vec<&str> = match (&setting.value, &setting.origin) {
        (Value::Text(text), _) if may_be_empty && text.is_empty() => Vec::new(),
        (Value::Text(text), Origin::Variable(_)) => text.split(',').collect(),
        (Value::Text(text), _) => vec![text],
        (Value::List(values), _) => values
            .iter()
            .map(|value| match value {
                Value::Text(text) => Ok(text.as_str()),
                other => Err(format!("the list must be of texts, not of {}", kind(other))),
            })
            .collect::<Result<_, _>>()?,
        (other, _) => {
            return Err(format!("it must be a text or a list, not {}", kind(other)));
        }
    };
    if texts.is_empty() && !may_be_empty {
        return Err("the list is empty".to_owned());
    }
    let several = texts.len() > 1;
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            parse(text.trim()).map_err(|message| match several {
                true => format!("number {} of the list: {message}", index + 1),
                false => message,
            })
        })
        .collect()
}

fn parse_number<T>(setting: &Setting, bounds: &RangeInclusive<T>) -> Result<T, String>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    let wanted = format!(
        "it must be a whole number from {} to {}",
        bounds.start(),
        bounds.end()
    );
    let number = match (&setting.value, &setting.origin) {
        (Value::Integer(number), _) => *number,
        (Value::Text(text), Origin::Variable(_)) => text
            .trim()
            .parse()
            .map_err(|_| format!("{wanted}, not {}", quoted(text)))?,
        (other, _) => return Err(format!("{wanted}, not {}", kind(other))),
    };
    T::try_from(number)
        .ok()
        .filter(|number| bounds.contains(number))
        .ok_or_else(|| format!("{wanted}, not {number}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Text(_) => "a text",
        Value::Integer(_) => "a number",
        Value::Fraction(_) => "a number with a fraction",
        Value::Boolean(_) => "true or false",
        Value::List(_) => "a list",
        Value::EmptySection => "a section",
        Value::Other(kind) => kind,
    }
}
