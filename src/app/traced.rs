//! The context of a trace in the headers of a message.

use crate::domain::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use crate::mq::{HeaderValue, Headers};

/// The headers that pass a context on; none without one.
#[must_use]
pub fn headers_of(context: Option<&TraceContext>) -> Headers {
    let mut headers = Headers::new();
    if let Some(context) = context {
        let text = |text: String| HeaderValue::Text(text);
        headers.insert(TRACEPARENT.to_owned(), text(context.traceparent()));
        if let Some(state) = context.tracestate() {
            headers.insert(TRACESTATE.to_owned(), text(state.to_owned()));
        }
    }
    headers
}

/// The context that a message came with, whoever has sent it.
#[must_use]
pub fn context_of(headers: &Headers) -> Option<TraceContext> {
    let text = |name: &str| match headers.get(name)? {
        HeaderValue::Text(text) => Some(text.as_bytes()),
        HeaderValue::Int(_) => None,
    };
    TraceContext::parse(text(TRACEPARENT)?, text(TRACESTATE))
}

/// The contexts of several messages, each once.
pub fn contexts_of<'a>(all: impl Iterator<Item = &'a Headers>) -> Vec<TraceContext> {
    let mut contexts = Vec::new();
    for context in all.filter_map(context_of) {
        // Messages of one batch come together, so a look at the last one is enough.
        if contexts.last() != Some(&context) {
            contexts.push(context);
        }
    }
    contexts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_survives_a_message() {
        let parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for state in [None, Some(b"a=1".as_slice())] {
            let context = TraceContext::parse(parent, state);
            let headers = headers_of(context.as_ref());
            assert_eq!(context_of(&headers), context);
            assert_eq!(contexts_of([&headers, &headers].into_iter()).len(), 1);
        }
        assert_eq!(headers_of(None), Headers::new());
        let number = Headers::from([(TRACEPARENT.to_owned(), HeaderValue::Int(0))]);
        assert_eq!(context_of(&number), None);
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_message_says_of_its_trace_what_is_taken_is_passed_on_as_it_was(
            parent in "00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]|[0-9a-f-]{50,60}|\\PC{0,9}",
            state in proptest::option::of("[a-z]{1,3}=[a-z]{1,3}(,[a-z]{1,3}=[!-~]{0,3})?|\\PC{0,9}"),
        ) {
            let text = |text: String| HeaderValue::Text(text);
            let mut headers = Headers::from([(TRACEPARENT.to_owned(), text(parent))]);
            headers.extend(state.map(|state| (TRACESTATE.to_owned(), text(state))));
            let context = context_of(&headers);
            proptest::prop_assert_eq!(context_of(&headers_of(context.as_ref())), context);
        }
    }
}
