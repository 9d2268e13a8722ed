//! The fields of spans, for the log in JSON.

use std::fmt::{self, Debug};
use std::io;

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};

/// A span's fields as one JSON object, behind which is written what the span is told later. The library's own formatter
/// keeps them in a map first, and reads the object back and writes it anew for what is told later: of the instructions of
/// `serve` each request took a sixth for that, nearly always for nothing, since few log anything.
pub(super) struct Appended;

impl<'writer> FormatFields<'writer> for Appended {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        writer.write_char('{')?;
        record(&mut writer, true, fields)?;
        writer.write_char('}')
    }

    /// One that is told twice stands there twice, and whoever reads the object takes the last.
    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let object = &mut current.fields;
        let is_first = match object.pop() {
            None => {
                object.push('{');
                true
            }
            Some(_) => object.len() == 1,
        };
        let recorded = record(object, is_first, fields);
        object.push('}');
        recorded
    }
}

fn record(writer: &mut dyn fmt::Write, is_first: bool, fields: impl RecordFields) -> fmt::Result {
    let mut members = Members {
        writer,
        is_first,
        result: Ok(()),
    };
    fields.record(&mut members);
    members.result
}

/// Writes the members of an object.
struct Members<'a> {
    writer: &'a mut dyn fmt::Write,
    is_first: bool,
    result: fmt::Result,
}

impl Members<'_> {
    fn add(&mut self, field: &Field, value: &impl Serialize) {
        self.member(field, |writer| {
            serde_json::to_writer(Utf8(writer), value).map_err(|_| fmt::Error)
        });
    }

    fn member(
        &mut self,
        field: &Field,
        write_value: impl FnOnce(&mut dyn fmt::Write) -> fmt::Result,
    ) {
        let is_first = std::mem::take(&mut self.is_first);
        self.result = self.result.and_then(|()| {
            self.writer.write_str(if is_first { "" } else { "," })?;
            write_text(self.writer, field.name())?;
            self.writer.write_char(':')?;
            write_value(self.writer)
        });
    }
}

/// Nearly all texts are names and ids, which stand in JSON as they are.
fn write_text(writer: &mut dyn fmt::Write, text: &str) -> fmt::Result {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    if !text.bytes().all(is_plain) {
        return serde_json::to_writer(Utf8(writer), text).map_err(|_| fmt::Error);
    }
    writer.write_char('"')?;
    writer.write_str(text)?;
    writer.write_char('"')
}

impl Visit for Members<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |writer| write_text(writer, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, &format_args!("{value:?}"));
    }
}

/// JSON, which is text, for whoever takes text.
struct Utf8<'a>(&'a mut dyn fmt::Write);

impl io::Write for Utf8<'_> {
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
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex, PoisonError};

    use tracing_subscriber::fmt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::Appended;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_span_is_told_later_stands_behind_what_it_had() {
        let written = Written::default();
        let writer = written.clone();
        let lines = fmt::layer()
            .with_writer(move || writer.clone())
            .without_time()
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .fmt_fields(Appended);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let none = tracing::field::Empty;
            let span = tracing::error_span!("bare", first = none, second = none);
            let _entered = span.enter();
            tracing::error!("nothing is known");
            span.record("first", "\"{a}\"");
            tracing::error!("one field");
            span.record("second", 2);
            span.record("first", "another");
            tracing::error!("both");
            let inner = tracing::error_span!(
                "full",
                request = 7,
                caller = none,
                share = 0.5,
                late = true,
                note = "grün\n",
                shown = %"a\"b"
            );
            inner.record("caller", "shop");
            inner.in_scope(|| tracing::error!("inside"));
        });
        let written = written.0.lock().unwrap_or_else(PoisonError::into_inner);
        insta::assert_snapshot!(String::from_utf8_lossy(&written), @r#"
        {"level":"ERROR","message":"nothing is known","target":"stockctl::telemetry::fields::tests","span":{"name":"bare"}}
        {"level":"ERROR","message":"one field","target":"stockctl::telemetry::fields::tests","span":{"first":"\"{a}\"","name":"bare"}}
        {"level":"ERROR","message":"both","target":"stockctl::telemetry::fields::tests","span":{"first":"another","second":2,"name":"bare"}}
        {"level":"ERROR","message":"inside","target":"stockctl::telemetry::fields::tests","span":{"caller":"shop","late":true,"note":"grün\n","request":7,"share":0.5,"shown":"a\"b","name":"full"}}
        "#);
    }
}
