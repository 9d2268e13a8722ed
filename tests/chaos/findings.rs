//! What a run has found, as it goes.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What a run has found, and when it began. Shared by all that looks.
#[derive(Clone)]
pub(crate) struct Findings {
    began: Instant,
    violations: Arc<Mutex<Vec<String>>>,
}

/// A thing that goes wrong at each order needs no thousand lines.
const VIOLATIONS_MAX: usize = 100;

impl Findings {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            violations: Arc::default(),
        }
    }

    /// A line for whoever watches, with the time since the beginning.
    pub(crate) fn tell(&self, text: &str) {
        let at = self.began.elapsed().as_secs_f32();
        say(&format!("[{at:7.1}] {text}"));
    }

    /// A promise was broken.
    pub(crate) fn violation(&self, text: String) {
        self.tell(&format!("VIOLATION: {text}"));
        let mut violations = self.lock();
        if violations.len() < VIOLATIONS_MAX {
            violations.push(text);
        }
    }

    /// Checks a promise.
    pub(crate) fn check(&self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.violation(otherwise());
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a line. Whoever closed the pipe does not want to read it.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
