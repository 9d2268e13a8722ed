//! The fields of a span, as the JSON object that the lines of the log take them from. tracing-subscriber's own formatter takes
//! that text apart and writes it anew when a field is recorded later, as each request does with its caller; this one
//! appends.

use std::error::Error;
use std::fmt::{self, Debug};
use std::io;

use serde::{Serialize, Serializer};
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, FormattedFields};

/// Formats the fields of spans; of two fields with one name, the later counts, as JSON's readers have it.
pub(super) struct SpanFields;

impl<'writer> FormatFields<'writer> for SpanFields {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        writer.write_char('{')?;
        append(&mut writer, true, &fields)?;
        writer.write_char('}')
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let is_first = match current.fields.pop() {
            Some(_) => current.fields.len() == 1,
            None => {
                current.fields.push('{');
                true
            }
        };
        append(&mut current.fields, is_first, fields)?;
        current.fields.push('}');
        Ok(())
    }
}

fn append(writer: &mut dyn fmt::Write, is_first: bool, fields: &impl RecordFields) -> fmt::Result {
    let mut appended = Appended {
        writer,
        is_first,
        result: Ok(()),
    };
    fields.record(&mut appended);
    appended.result
}

struct Appended<'a> {
    writer: &'a mut dyn fmt::Write,
    is_first: bool,
    result: fmt::Result,
}

impl Appended<'_> {
    fn put(&mut self, field: &Field, value: impl Serialize) {
        let name = field.name();
        // A record of the crate `log` says in such fields where it came from; the line has that already.
        if self.result.is_err() || name.starts_with("log.") {
            return;
        }
        self.result = self.try_put(name, value);
    }

    fn try_put(&mut self, name: &str, value: impl Serialize) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(',')?;
        }
        let mut bytes = Bytes(self.writer);
        // A field that has a word of Rust for its name is written `r#type`.
        serde_json::to_writer(&mut bytes, name.strip_prefix("r#").unwrap_or(name))
            .map_err(|_| fmt::Error)?;
        bytes.0.write_char(':')?;
        serde_json::to_writer(&mut bytes, &value).map_err(|_| fmt::Error)
    }
}

impl Visit for Appended<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.put(field, Shown(format_args!("{value}")));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, Shown(format_args!("{value:?}")));
    }
}

/// A text that is formatted where it is written.
struct Shown<'a>(fmt::Arguments<'a>);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// JSON is written as bytes, of which each part is UTF-8 by itself.
struct Bytes<'a>(&'a mut dyn fmt::Write);

impl io::Write for Bytes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        self.0.write_str(text).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use serde_json::Value;
    use tracing_subscriber::fmt::format::JsonFields;
    use tracing_subscriber::fmt::{self, MakeWriter};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// What is logged while `work` is done, a line a value.
    fn logged<F>(fields: F, work: &dyn Fn()) -> Vec<Value>
    where
        F: for<'writer> FormatFields<'writer> + Send + Sync + 'static,
    {
        let kept = Kept::default();
        let lines = fmt::layer()
            .json()
            .with_span_list(false)
            .without_time()
            .fmt_fields(fields)
            .with_writer(kept.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), work);
        let text = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text)
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }

    /// Values that JSON has to escape, and fields that come later, twice or not at all.
    fn work() {
        let later = tracing::field::Empty;
        let span = tracing::info_span!("all", text = "a\"b\\c\n\u{1}é", shown = %"x\ty", debug = ?Some("d"), int = -1, unsigned = u64::MAX,
            float = 1.5, not = f64::NAN, yes = true, r#type = "t", later, never = tracing::field::Empty);
        let error = io::Error::other("it \"failed\"");
        let within = span.enter();
        tracing::info!("before");
        span.record("later", "first");
        span.record("later", tracing::field::display("second"));
        tracing::info!("after");
        drop(within);
        let span = tracing::info_span!(
            "only later",
            later = tracing::field::Empty,
            other = tracing::field::Empty
        );
        let _within = span.enter();
        tracing::info!("nothing");
        span.record("later", &error as &(dyn Error + 'static));
        tracing::info!("one");
        span.record("other", 2);
        let inner = tracing::info_span!("inner");
        let _inner = inner.enter();
        tracing::info!("two");
    }

    #[test]
    fn lines_are_those_that_the_formatter_of_tracing_subscriber_makes() {
        let lines = logged(SpanFields, &work);
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[1]["span"]["later"], "second");
        assert_eq!(lines, logged(JsonFields::new(), &work));
    }
}
