//! The fields of spans, for the log in JSON.

use std::fmt;

use tracing::span::Record;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::{FormatFields, JsonFields, Writer};

/// A span's fields as one JSON object, behind which is written what the span is told later. The library's own formatter
/// reads the object back and writes it anew each time, which took a twentieth of the processor's time of `serve`.
#[derive(Default)]
pub(super) struct Appended(JsonFields);

impl<'writer> FormatFields<'writer> for Appended {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        self.0.format_fields(writer, fields)
    }

    /// One that is told twice stands there twice, and whoever reads the object takes the last.
    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let mut added = String::new();
        self.0.format_fields(Writer::new(&mut added), fields)?;
        let object = &mut current.fields;
        match (object.pop(), added.as_str()) {
            (None, _) => *object = added,
            (Some(end), "{}") => object.push(end),
            (Some(_), _) => {
                if object.len() > 1 {
                    object.push(',');
                }
                object.push_str(added.strip_prefix('{').ok_or(fmt::Error)?);
            }
        }
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
            .fmt_fields(Appended::default());
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
            let inner = tracing::error_span!("full", request = 7, caller = none);
            inner.record("caller", "shop");
            inner.in_scope(|| tracing::error!("inside"));
        });
        let written = written.0.lock().unwrap_or_else(PoisonError::into_inner);
        insta::assert_snapshot!(String::from_utf8_lossy(&written), @r#"
        {"level":"ERROR","message":"nothing is known","target":"stockctl::telemetry::fields::tests","span":{"name":"bare"}}
        {"level":"ERROR","message":"one field","target":"stockctl::telemetry::fields::tests","span":{"first":"\"{a}\"","name":"bare"}}
        {"level":"ERROR","message":"both","target":"stockctl::telemetry::fields::tests","span":{"first":"another","second":2,"name":"bare"}}
        {"level":"ERROR","message":"inside","target":"stockctl::telemetry::fields::tests","span":{"caller":"shop","request":7,"name":"full"}}
        "#);
    }
}
