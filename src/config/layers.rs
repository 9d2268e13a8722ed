//! The layers laid over one another: each key once, with the value of the last layer that has it and where that stands.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin, Problem};

pub(super) const DEFAULTS: &str = include_str!("../../config/default.toml");
/// Names the file when there is no `--config`.
const FILE_VARIABLE: &str = "STOCKCTL_CONFIG";
const KEY_VARIABLE_PREFIX: &str = "STOCKCTL__";
/// The sections whose keys have a part that is not fixed: `vendors.<id>.<name>` and `webhooks.<id>.<name>`.
pub(super) const VENDORS: &str = "vendors";
pub(super) const WEBHOOKS: &str = "webhooks";

/// The parts of a key, such as `http` and `listen`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub(super) Vec<String>);

/// A value before its type is known to be right.
#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Fraction(f64),
    Boolean(bool),
    List(Vec<Value>),
    /// A section without keys: it says that the section is there.
    EmptySection,
    /// What no key takes.
    Other(&'static str),
}

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// All settings, and what went wrong in laying them over one another.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) settings: BTreeMap<Key, Setting>,
    pub(super) problems: Vec<Problem>,
    /// The file that was read, for messages about what is missing in it.
    pub(super) file: Option<PathBuf>,
}

impl Layers {
    pub(super) fn read(
        explicit: Option<&Path>,
        fallback: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        // Sorted, so that the same environment always gives the same messages.
        let variables: BTreeMap<String, String> = variables.into_iter().collect();
        let mut layers = Self {
            settings: BTreeMap::new(),
            problems: Vec::new(),
            file: None,
        };
        layers.lay_text(DEFAULTS, Path::new("default.toml"), |_| Origin::Default)?;
        if let Some((path, text)) = read_file(explicit, fallback, &variables)? {
            layers.lay_text(&text, &path, |line| Origin::File(path.clone(), line))?;
            layers.file = Some(path);
        }
        for (name, value) in variables {
            if let Some(path) = name.strip_prefix(KEY_VARIABLE_PREFIX) {
                let key = layers.key_of_variable(path);
                layers.lay_variable(key, name, value);
            }
        }
        Ok(layers)
    }

    fn lay_text(
        &mut self,
        text: &str,
        path: &Path,
        origin: impl Fn(usize) -> Origin,
    ) -> Result<(), ConfigError> {
        // The parser's own display shows the line, which may hold a password; its message alone does not.
        let table = DeTable::parse(text).map_err(|error| ConfigError::NotToml {
            path: path.to_owned(),
            line: line_at(text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        let origin_at = |offset| origin(line_at(text, offset));
        self.lay_table(&Key(Vec::new()), table.into_inner(), &origin_at);
        Ok(())
    }

    fn lay_table(
        &mut self,
        section: &Key,
        table: DeTable<'_>,
        origin_at: &impl Fn(usize) -> Origin,
    ) {
        for (name, value) in table {
            let offset = name.span().start;
            let key = section.with(&name.into_inner());
            match value.into_inner() {
                DeValue::Table(table) if !table.is_empty() => {
                    self.lay_table(&key, table, origin_at);
                }
                value => {
                    let setting = Setting {
                        value: Value::from_toml(value),
                        origin: origin_at(offset),
                    };
                    self.settings.insert(key, setting);
                }
            }
        }
    }

    fn lay_variable(&mut self, key: Key, name: String, value: String) {
        let setting = Setting {
            value: Value::Text(value),
            origin: Origin::Variable(name),
        };
        match self.settings.entry(key) {
            // Which of the two counts would be chance.
            Entry::Occupied(entry) if matches!(entry.get().origin, Origin::Variable(_)) => {
                self.problems.push(Problem {
                    key: entry.key().to_string(),
                    origin: Some(setting.origin),
                    message: format!(
                        "{} sets the same key; unset one of them",
                        entry.get().origin
                    ),
                });
            }
            Entry::Occupied(mut entry) => {
                entry.insert(setting);
            }
            Entry::Vacant(entry) => {
                entry.insert(setting);
            }
        }
    }

    /// Variables are in upper case as a rule, and keys in lower case; the id of a vendor or a webhook has a case of its own,
    /// which is that of the file. An id that the file does not have is taken as it is written.
    fn key_of_variable(&self, path: &str) -> Key {
        let (section, rest) = path.split_once("__").unwrap_or((path, ""));
        let section = section.to_lowercase();
        // An id may itself contain two underscores, so the last two are the ones before the name.
        if [VENDORS, WEBHOOKS].contains(&section.as_str())
            && let Some((id, name)) = rest.rsplit_once("__")
        {
            let id = self
                .settings
                .keys()
                .filter(|key| key.0.len() > 1 && key.0[0] == section)
                .map(|key| key.0[1].as_str())
                .find(|known| known.eq_ignore_ascii_case(id))
                .unwrap_or(id);
            return Key(vec![section, id.to_owned(), name.to_lowercase()]);
        }
        let mut parts = vec![section];
        if !rest.is_empty() {
            parts.extend(rest.split("__").map(str::to_lowercase));
        }
        Key(parts)
    }
}

impl Key {
    /// A fixed key, such as `http.listen`.
    pub(super) fn fixed(dotted: &str) -> Self {
        Self(dotted.split('.').map(str::to_owned).collect())
    }

    /// A key of one vendor.
    pub(super) fn of_vendor(id: &str, name: &str) -> Self {
        Self(vec![VENDORS.to_owned(), id.to_owned(), name.to_owned()])
    }

    /// A key of one webhook.
    pub(super) fn of_webhook(id: &str, name: &str) -> Self {
        Self(vec![WEBHOOKS.to_owned(), id.to_owned(), name.to_owned()])
    }

    fn with(&self, name: &str) -> Self {
        let mut parts = self.0.clone();
        parts.push(name.to_owned());
        Self(parts)
    }

    /// The key without its last part.
    pub(super) fn section(&self) -> Self {
        let mut parts = self.0.clone();
        parts.pop();
        Self(parts)
    }

    /// The variable that sets this key.
    pub(super) fn variable(&self) -> String {
        format!("{KEY_VARIABLE_PREFIX}{}", self.0.join("__").to_uppercase())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0.join(".").escape_debug())
    }
}

impl Value {
    fn from_toml(value: DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.into_owned()),
            // TOML allows integers that no key takes; the reader refuses them by their bounds as any other.
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
                .map_or(Self::Other("a number beyond all bounds"), Self::Integer),
            DeValue::Boolean(value) => Self::Boolean(value),
            DeValue::Array(values) => Self::List(
                values
                    .into_iter()
                    .map(Spanned::into_inner)
                    .map(Self::from_toml)
                    .collect(),
            ),
            DeValue::Table(_) => Self::EmptySection,
            // What is no number to Rust (nan, inf) is none here.
            DeValue::Float(digits) => match digits.as_str().replace('_', "").parse::<f64>() {
                Ok(number) if number.is_finite() => Self::Fraction(number),
                _ => Self::Other("not a number"),
            },
            DeValue::Datetime(_) => Self::Other("a date or time"),
        }
    }
}

/// The file that counts, with its text: a file that was named must be there, the fallback may be missing.
fn read_file(
    explicit: Option<&Path>,
    fallback: &Path,
    variables: &BTreeMap<String, String>,
) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let by_variable = variables
        .get(FILE_VARIABLE)
        .filter(|path| !path.is_empty())
        .map(Path::new);
    let (path, named_by) = match (explicit, by_variable) {
        (Some(path), _) => (path, "named by --config"),
        (None, Some(path)) => (path, "named by STOCKCTL_CONFIG"),
        (None, None) => (fallback, "its default place"),
    };
    let is_named = explicit.is_some() || by_variable.is_some();
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => Ok(None),
        Err(source) => Err(ConfigError::Unreadable {
            path: path.to_owned(),
            named_by,
            source,
        }),
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|byte| **byte == b'\n').count()
}
