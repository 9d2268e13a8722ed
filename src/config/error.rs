//! What can be wrong with a configuration, told to the person who has to mend it. No message repeats a value that
//! could hold a password.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read. One that was not named and is not there is no error.
    #[error("the configuration file {} ({named_by}) cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What led to it: the flag, the variable, or its place.
        named_by: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("the configuration file {}, line {line}, is not TOML: {message}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What the parser says, without the text of that line.
        message: String,
    },
    /// A variable's value is not text.
    #[error("the variable {variable} is not valid UTF-8")]
    NotUnicode {
        /// The variable.
        variable: String,
    },
    /// One or more keys are missing, unknown, or have a value that will not do.
    #[error("the configuration will not do:{}", Indented(problems))]
    Invalid {
        /// All of them, at least one.
        problems: Vec<Problem>,
    },
}

/// What is wrong with one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key with its sections, such as `http.listen`.
    pub key: String,
    /// Where the value comes from; `None` when it is missing.
    pub origin: Option<Origin>,
    /// What is wrong with the value and what would do.
    pub message: String,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The defaults in the executable.
    Default,
    /// A file and the line in it, counted from 1.
    File(PathBuf, usize),
    /// A variable by its name.
    Variable(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(out, "{} ({origin}): {}", self.key, self.message),
            None => write!(out, "{}: {}", self.key, self.message),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("built-in default"),
            Self::File(path, line) => write!(out, "{}, line {line}", path.display()),
            Self::Variable(name) => out.write_str(name),
        }
    }
}

/// A line for each problem, below the first line of the message.
struct Indented<'a>(&'a [Problem]);

impl fmt::Display for Indented<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|problem| write!(out, "\n  {problem}"))
    }
}
