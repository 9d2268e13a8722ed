//! Spans as OTLP has them, in its form of JSON: ids in hexadecimal, 64-bit numbers as texts, kinds by their numbers.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{Attribute, Finished, Kind};
use crate::domain::trace::TraceContext;

/// `STATUS_CODE_ERROR`.
const STATUS_ERROR: u8 = 2;

/// The process that spans are of.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    /// `service.name`.
    pub(super) service: String,
    /// `service.instance.id`.
    pub(super) instance: String,
}

/// A request for a collector.
pub(super) fn request(resource: &Resource, spans: &[Finished]) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            text("service.namespace", "stockctl"),
            text("service.name", &resource.service),
            text("service.instance.id", &resource.instance),
            text("service.version", version),
        ]},
        "scopeSpans": [{
            "scope": {"name": "stockctl", "version": version},
            "spans": spans.iter().map(span).collect::<Vec<Value>>(),
        }],
    }]})
}

fn span(span: &Finished) -> Value {
    let mut written = json!({
        "traceId": span.context.trace_id.to_string(),
        "spanId": span.context.span_id.to_string(),
        "name": span.name,
        "kind": kind(span.kind),
        "startTimeUnixNano": nanoseconds(span.begun_at),
        // By the clock that nobody sets, so that no span ends before it began.
        "endTimeUnixNano": nanoseconds(span.begun_at + span.took),
        "attributes": span.attributes.iter().map(attribute).collect::<Vec<Value>>(),
    });
    if let Some(parent) = span.parent {
        written["parentSpanId"] = json!(parent.to_string());
    }
    if let Some(state) = span.context.tracestate() {
        written["traceState"] = json!(state);
    }
    if !span.links.is_empty() {
        written["links"] = span.links.iter().map(link).collect();
        written["droppedLinksCount"] = json!(span.links_left_out);
    }
    if let Some(error) = &span.error {
        written["status"] = json!({"code": STATUS_ERROR, "message": error});
    }
    written
}

fn link(to: &TraceContext) -> Value {
    let mut link = json!({
        "traceId": to.trace_id.to_string(),
        "spanId": to.span_id.to_string(),
    });
    if let Some(state) = to.tracestate() {
        link["traceState"] = json!(state);
    }
    link
}

fn attribute((name, value): &(&'static str, Attribute)) -> Value {
    match value {
        Attribute::Text(value) => text(name, value),
        Attribute::Count(count) => {
            json!({"key": name, "value": {"intValue": count.to_string()}})
        }
    }
}

fn text(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}

fn kind(kind: Kind) -> u8 {
    match kind {
        Kind::Internal => 1,
        Kind::Server => 2,
        Kind::Client => 3,
        Kind::Producer => 4,
        Kind::Consumer => 5,
    }
}

fn nanoseconds(at: SystemTime) -> String {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_nanos()
        .to_string()
}

/// How many spans a collector says it did not take, of those that it was sent.
pub(super) fn rejected(answer: &[u8]) -> u64 {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let rejected = &answer["partialSuccess"]["rejectedSpans"];
    rejected
        .as_u64()
        .or_else(|| rejected.as_str()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::trace::{SpanId, TraceId};

    #[test]
    fn a_span_is_written_as_otlp_has_it() {
        let context = TraceContext::parse(
            b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            Some(b"rojo=1"),
        )
        .expect("good");
        let finished = Finished {
            name: "POST /orders".into(),
            kind: Kind::Server,
            parent: Some(SpanId::of(0x10)),
            links: vec![TraceContext::root(TraceId::of(5), SpanId::of(6), true)],
            links_left_out: 0,
            begun_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_800_000_000_000_000_001),
            took: Duration::from_nanos(5),
            attributes: vec![
                ("http.route", Attribute::Text("/orders".into())),
                ("http.response.status_code", Attribute::Count(500)),
            ],
            error: Some("why".into()),
            context,
        };
        insta::assert_snapshot!(span(&finished), @r#"{"attributes":[{"key":"http.route","value":{"stringValue":"/orders"}},{"key":"http.response.status_code","value":{"intValue":"500"}}],"droppedLinksCount":0,"endTimeUnixNano":"1800000000000000006","kind":2,"links":[{"spanId":"0000000000000006","traceId":"00000000000000000000000000000005"}],"name":"POST /orders","parentSpanId":"0000000000000010","spanId":"b7ad6b7169203331","startTimeUnixNano":"1800000000000000001","status":{"code":2,"message":"why"},"traceId":"0af7651916cd43dd8448eb211c80319c","traceState":"rojo=1"}"#);
        let resource = Resource {
            service: "stockctl-serve".into(),
            instance: "i".into(),
        };
        let written = request(&resource, &[finished]);
        insta::assert_snapshot!(written["resourceSpans"][0]["resource"]["attributes"][1], @r#"{"key":"service.name","value":{"stringValue":"stockctl-serve"}}"#);
        assert_eq!(
            written["resourceSpans"][0]["scopeSpans"][0]["spans"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
    }

    #[test]
    fn what_a_collector_did_not_take_is_read_from_its_answer() {
        assert_eq!(rejected(b"{}"), 0);
        assert_eq!(rejected(b""), 0);
        assert_eq!(
            rejected(br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"full"}}"#),
            3
        );
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":3}}"#), 3);
    }
}
