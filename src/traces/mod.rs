//! Traces: what was done for a request, across processes. A context ([`TraceContext`]) travels in the headers of HTTP and
//! of messages, whether anything is exported here or not; where `telemetry.otlp_endpoint` is set, spans are recorded and
//! sent to a collector by OTLP over HTTP.
//!
//! One span for one thing is a child of what caused it. What is done for many at once (orders of one transaction, updates
//! of one call) is a span of its own: in the trace of what it is for while that is a single one, and else the root of a
//! trace of its own with a link to each. What follows from it carries its context.
//!
//! It is own code and not the OpenTelemetry crates: a span is a dozen fields, OTLP allows JSON, reqwest is here, and the
//! queue has rules of its own (never to wait, to count what it drops, to say once that the collector is away). Nothing is
//! allocated for what is not recorded.

mod export;
mod otlp;

use std::fmt::Display;
use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::task::futures::TaskLocalFuture;

pub use self::export::{Exporting, Settings, export};
use crate::domain::trace::{SpanId, TraceContext, TraceId};
use crate::metrics::{SpanDropped, TRACES};

/// Links of one span at most: a batch has as many messages at most by default. More are counted.
const LINKS_MAX: usize = 500;
/// Attributes' texts are cut at this many characters: an error can be long.
const TEXT_CHARS_MAX: usize = 1000;

/// Where spans are recorded; set once for the process, if at all.
static TRACER: OnceLock<Tracer> = OnceLock::new();

tokio::task_local! {
    static CURRENT: Option<TraceContext>;
}

/// The context of what this task is doing, if it has one.
#[must_use]
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// Does something in a context, or in none.
pub fn within<F: Future>(
    context: Option<TraceContext>,
    future: F,
) -> TaskLocalFuture<Option<TraceContext>, F> {
    CURRENT.scope(context, future)
}

/// The context of what nobody has begun a trace for.
#[must_use]
pub fn root() -> TraceContext {
    new_root(|trace_id| {
        let tracer = TRACER.get();
        tracer.is_some_and(|tracer| trace_id.is_within(tracer.sample_ratio))
    })
}

fn new_root(is_sampled: impl FnOnce(TraceId) -> bool) -> TraceContext {
    // Ids name, and keep no secret, so a fast generator will do.
    let trace_id = TraceId::of(fastrand::u128(..));
    TraceContext::root(
        trace_id,
        SpanId::of(fastrand::u64(..)),
        is_sampled(trace_id),
    )
}

/// A context as the log has it: lines within have the trace's id, all in the same place.
#[must_use]
pub fn for_log(context: Option<&TraceContext>) -> tracing::Span {
    match context {
        // At the level of errors, so that whatever is logged at all has it.
        Some(context) => tracing::error_span!("traced", trace_id = %context.trace_id),
        None => tracing::Span::none(),
    }
}

/// The part that a span has in an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something inside this process.
    Internal,
    /// It answers a request.
    Server,
    /// It makes a request.
    Client,
    /// It sends messages.
    Producer,
    /// It handles messages.
    Consumer,
}

/// What a span says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Attribute {
    Text(String),
    Count(i64),
}

/// Something that is being done. It ends when it is dropped, and is exported then if it is recorded.
#[derive(Debug, Default)]
pub struct Span {
    context: Option<TraceContext>,
    recording: Option<Box<Recording>>,
}

#[derive(Debug)]
struct Recording {
    queue: mpsc::Sender<Finished>,
    begun: Instant,
    span: Finished,
}

/// A span as it is exported.
#[derive(Debug)]
struct Finished {
    name: String,
    kind: Kind,
    context: TraceContext,
    parent: Option<SpanId>,
    links: Vec<TraceContext>,
    links_left_out: usize,
    begun_at: SystemTime,
    took: Duration,
    attributes: Vec<(&'static str, Attribute)>,
    error: Option<String>,
}

impl Span {
    /// Nothing that is traced.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Begins a span that was caused by all of `parents`; without any, it is the first of a trace.
    #[must_use]
    pub fn begin(name: &str, kind: Kind, parents: &[TraceContext]) -> Self {
        match TRACER.get() {
            Some(tracer) => tracer.begin(name, kind, parents),
            // Nobody sees a span of its own, but the log names the trace.
            None => Self {
                context: Some(match shared(parents) {
                    Some(parent) => parent.clone(),
                    None => new_root(|_| false),
                }),
                recording: None,
            },
        }
    }

    /// Begins a span as a part of what this task is doing; what belongs to no trace begins none.
    #[must_use]
    pub fn child(name: &str, kind: Kind) -> Self {
        match current() {
            Some(parent) => Self::begin(name, kind, &[parent]),
            None => Self::none(),
        }
    }

    /// The context to pass on to what it causes.
    #[must_use]
    pub fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Does something as a part of it.
    pub fn around<F: Future>(&self, future: F) -> TaskLocalFuture<Option<TraceContext>, F> {
        within(self.context.clone(), future)
    }

    /// The same for the log, whose lines then have the trace's id.
    #[must_use]
    pub fn for_log(&self) -> tracing::Span {
        for_log(self.context.as_ref())
    }

    /// Whether it will be exported, so that it is worth while to describe it.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.recording.is_some()
    }

    /// Gives it a better name.
    pub fn rename(&mut self, name: impl FnOnce() -> String) {
        if let Some(recording) = &mut self.recording {
            recording.span.name = name();
        }
    }

    /// Says something of it.
    pub fn note(&mut self, name: &'static str, value: impl Display) {
        if let Some(recording) = &mut self.recording {
            let text = value.to_string().chars().take(TEXT_CHARS_MAX).collect();
            let attributes = &mut recording.span.attributes;
            attributes.push((name, Attribute::Text(text)));
        }
    }

    /// Says a number of it.
    pub fn note_count(&mut self, name: &'static str, count: usize) {
        if let Some(recording) = &mut self.recording {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let attributes = &mut recording.span.attributes;
            attributes.push((name, Attribute::Count(count)));
        }
    }

    /// Says that it failed, and why.
    pub fn fail(&mut self, error: impl Display) {
        if let Some(recording) = &mut self.recording {
            let text = error.to_string().chars().take(TEXT_CHARS_MAX).collect();
            recording.span.error = Some(text);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(recording) = self.recording.take() else {
            return;
        };
        let Recording { queue, begun, span } = *recording;
        let span = Finished {
            took: begun.elapsed(),
            ..span
        };
        // Whoever is traced never waits for that.
        if queue.try_send(span).is_err() {
            TRACES.dropped.of(SpanDropped::QueueFull).inc();
        }
    }
}

/// The context in whose trace all of them are: the first of them.
fn shared(contexts: &[TraceContext]) -> Option<&TraceContext> {
    let (first, others) = contexts.split_first()?;
    others
        .iter()
        .all(|other| other.trace_id == first.trace_id)
        .then_some(first)
}

struct Tracer {
    sample_ratio: f64,
    queue: mpsc::Sender<Finished>,
}

impl Tracer {
    fn begin(&self, name: &str, kind: Kind, parents: &[TraceContext]) -> Span {
        let parent = shared(parents);
        let context = match parent {
            Some(parent) => parent.child(SpanId::of(fastrand::u64(..))),
            None => new_root(|trace_id| match parents {
                [] => trace_id.is_within(self.sample_ratio),
                // Whoever looks at one of the traces that it is for finds it by its link.
                _ => parents.iter().any(TraceContext::is_sampled),
            }),
        };
        let recording = context.is_sampled().then(|| {
            let to_link = match parent {
                Some(_) => &parents[1..],
                None => parents,
            };
            let links: Vec<TraceContext> = to_link.iter().take(LINKS_MAX).cloned().collect();
            Box::new(Recording {
                queue: self.queue.clone(),
                begun: Instant::now(),
                span: Finished {
                    name: name.to_owned(),
                    kind,
                    context: context.clone(),
                    parent: parent.map(|parent| parent.span_id),
                    links_left_out: to_link.len() - links.len(),
                    links,
                    begun_at: SystemTime::now(),
                    took: Duration::ZERO,
                    attributes: Vec::new(),
                    error: None,
                },
            })
        });
        Span {
            context: Some(context),
            recording,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(trace: u128, span: u64, is_sampled: bool) -> TraceContext {
        TraceContext::root(TraceId::of(trace), SpanId::of(span), is_sampled)
    }

    fn tracer(sample_ratio: f64, spans: usize) -> (Tracer, mpsc::Receiver<Finished>) {
        let (queue, receiver) = mpsc::channel(spans);
        let tracer = Tracer {
            sample_ratio,
            queue,
        };
        (tracer, receiver)
    }

    #[test]
    fn a_span_is_in_the_trace_of_its_parent_and_recorded_if_that_is_sampled() {
        let (tracer, mut finished) = tracer(0.0, 4);
        let parent = context(7, 8, true);
        let mut span = tracer.begin("a", Kind::Client, std::slice::from_ref(&parent));
        span.note("who", "me");
        span.note_count("how many", 3);
        span.fail("broken");
        assert_eq!(span.context().expect("one").trace_id, parent.trace_id);
        drop(span);
        let span = finished.try_recv().expect("exported at its end");
        assert_eq!(
            (span.name.as_str(), span.parent),
            ("a", Some(parent.span_id))
        );
        assert_eq!(span.error.as_deref(), Some("broken"));
        assert_eq!(span.attributes.len(), 2);
        assert!(span.links.is_empty());

        let unsampled = context(7, 8, false);
        let span = tracer.begin("b", Kind::Client, &[unsampled]);
        assert!(!span.is_recorded());
        assert_ne!(span.context().expect("one").span_id, SpanId::of(8));
        drop(span);
        let root = tracer.begin("c", Kind::Server, &[]);
        assert!(!root.is_recorded(), "the share of the roots is nothing");
        drop(root);
        assert!(finished.try_recv().is_err());
    }

    #[test]
    fn what_is_done_for_many_traces_has_one_of_its_own_with_links_to_them() {
        let (tracer, mut finished) = tracer(0.0, 4);
        let parents = [
            context(1, 1, false),
            context(2, 2, true),
            context(2, 3, true),
        ];
        let span = tracer.begin("batch", Kind::Consumer, &parents);
        let own = span.context().expect("one").trace_id;
        assert!(parents.iter().all(|parent| parent.trace_id != own));
        drop(span);
        let span = finished.try_recv().expect("since one of them is sampled");
        assert_eq!((span.parent, span.links), (None, parents.to_vec()));

        let of_one_trace = &parents[1..];
        drop(tracer.begin("batch", Kind::Consumer, of_one_trace));
        let span = finished.try_recv().expect("recorded");
        assert_eq!(span.context.trace_id, parents[1].trace_id);
        assert_eq!(span.parent, Some(parents[1].span_id));
        assert_eq!(span.links, [parents[2].clone()]);

        let many: Vec<_> = (1..=501).map(|n| context(n, 1, true)).collect();
        drop(tracer.begin("batch", Kind::Consumer, &many));
        let span = finished.try_recv().expect("recorded");
        assert_eq!((span.links.len(), span.links_left_out), (LINKS_MAX, 1));
    }

    #[test]
    fn a_full_queue_drops_what_comes_and_counts_it() {
        let (tracer, _finished) = tracer(1.0, 1);
        let before = TRACES.dropped.of(SpanDropped::QueueFull).get();
        for _ in 0..3 {
            drop(tracer.begin("a", Kind::Internal, &[]));
        }
        assert_eq!(TRACES.dropped.of(SpanDropped::QueueFull).get() - before, 2);
    }

    #[tokio::test]
    async fn where_nothing_is_exported_a_context_passes_through_as_it_is() {
        let one = context(1, 1, true);
        let span = Span::begin("a", Kind::Server, std::slice::from_ref(&one));
        assert_eq!(span.context(), Some(&one));
        assert!(!span.is_recorded());
        let inside = span.around(async { Span::child("b", Kind::Client).context().cloned() });
        assert_eq!(inside.await, Some(one.clone()));
        assert_eq!(current(), None);
        let two = context(2, 1, true);
        let traces = [one.trace_id, two.trace_id];
        for parents in [vec![one, two], vec![]] {
            let span = Span::begin("a", Kind::Consumer, &parents);
            let own = span.context().expect("for the log");
            assert!(!traces.contains(&own.trace_id), "it is of neither trace");
            assert!(!own.is_sampled(), "nobody has its span");
            assert!(!span.is_recorded());
        }
    }
}
