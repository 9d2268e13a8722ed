//! The context of a distributed trace, as the W3C's recommendation "Trace Context" writes it into headers: which trace
//! something belongs to, and which span of it caused it.

use std::fmt;
use std::sync::Arc;

/// The header, of HTTP and of messages, that names trace and span.
pub const TRACEPARENT: &str = "traceparent";
/// The header in which tracing systems pass on what is theirs.
pub const TRACESTATE: &str = "tracestate";

/// Members of a tracestate at most, by the recommendation.
const STATE_MEMBERS_MAX: usize = 32;
/// As much of a tracestate as the recommendation asks to be passed on; longer ones are cut at a member.
const STATE_BYTES_MAX: usize = 512;
/// Of the flags, those that are defined: sampled, and that the trace's id is random. Others are not passed on.
const FLAGS_DEFINED: u8 = 0b11;
const SAMPLED: u8 = 0b01;
/// A traceparent of version 00, which is also the beginning of those of later ones.
const PARENT_BYTES: usize = 55;

/// The id of a trace; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(u128);

/// The id of a span in its trace; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(u64);

impl TraceId {
    /// Of a random number. Zero, which would mean none, becomes one.
    #[must_use]
    pub fn of(number: u128) -> Self {
        Self(number.max(1))
    }

    /// Whether a trace that begins with this id is one of the share `ratio` (0 to 1) that is sampled. By the lower half
    /// of the id, which is random with every generator of ids, so that all processes agree.
    #[must_use]
    pub fn is_within(self, ratio: f64) -> bool {
        // The lower 63 bits, as the other implementations do; what a float cannot tell apart makes no difference.
        let place = (self.0 & u128::from(u64::MAX >> 1)) as f64;
        place < ratio * (u64::MAX >> 1) as f64
    }
}

impl SpanId {
    /// Of a random number. Zero, which would mean none, becomes one.
    #[must_use]
    pub fn of(number: u64) -> Self {
        Self(number.max(1))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A span's place in its trace, as it is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Which trace.
    pub trace_id: TraceId,
    /// Which span of it.
    pub span_id: SpanId,
    flags: u8,
    /// What tracing systems pass on; checked.
    state: Option<Arc<str>>,
}

impl TraceContext {
    /// The first span of a trace of its own.
    #[must_use]
    pub fn root(trace_id: TraceId, span_id: SpanId, is_sampled: bool) -> Self {
        Self {
            trace_id,
            span_id,
            flags: if is_sampled { SAMPLED } else { 0 },
            state: None,
        }
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn child(&self, span_id: SpanId) -> Self {
        Self {
            span_id,
            ..self.clone()
        }
    }

    /// Reads the two headers. One that is not as the recommendation has it is as good as none: a traceparent makes a new
    /// trace begin, a tracestate is left out.
    #[must_use]
    pub fn parse(traceparent: &[u8], tracestate: Option<&[u8]>) -> Option<Self> {
        let (trace_id, span_id, flags) = parse_parent(traceparent)?;
        Some(Self {
            trace_id: TraceId(trace_id),
            span_id: SpanId(span_id),
            flags: flags & FLAGS_DEFINED,
            state: tracestate.and_then(parse_state),
        })
    }

    /// Whether its spans are recorded, as whoever began the trace has decided.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The value of the header [`TRACEPARENT`].
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }

    /// The value of the header [`TRACESTATE`], if there is one.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

fn parse_parent(text: &[u8]) -> Option<(u128, u64, u8)> {
    let (parent, rest) = text.split_at_checked(PARENT_BYTES)?;
    let version = hex(&parent[0..2])?;
    let is_whole = match version {
        0 => rest.is_empty(),
        0xff => false,
        // A later version may add to it, behind another dash.
        _ => rest.first().is_none_or(|byte| *byte == b'-'),
    };
    if !is_whole || [2, 35, 52].iter().any(|at| parent[*at] != b'-') {
        return None;
    }
    let trace_id = hex(&parent[3..35])?;
    let span_id = u64::try_from(hex(&parent[36..52])?).ok()?;
    let flags = u8::try_from(hex(&parent[53..55])?).ok()?;
    (trace_id != 0 && span_id != 0).then_some((trace_id, span_id, flags))
}

/// Reads up to 32 hexadecimal digits; capital ones are none here.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

fn parse_state(text: &[u8]) -> Option<Arc<str>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut members: Vec<&str> = Vec::new();
    let mut bytes = 0;
    for member in text
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']))
    {
        if member.is_empty() {
            continue;
        }
        if !is_member(member) || members.len() == STATE_MEMBERS_MAX {
            return None;
        }
        // The newest stand first, so it is the oldest that are left out.
        bytes += member.len() + 1;
        if bytes <= STATE_BYTES_MAX + 1 {
            members.push(member);
        }
    }
    (!members.is_empty()).then(|| members.join(",").into())
}

fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else {
        return false;
    };
    let in_key =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(byte);
    let in_value = |byte: &u8| (b' '..=b'~').contains(byte) && !b",=".contains(byte);
    (1..=256).contains(&key.len())
        && key
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
        && key.as_bytes().iter().all(in_key)
        && (1..=256).contains(&value.len())
        && value.as_bytes().iter().all(in_value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(parent: &str, state: Option<&str>) -> Option<TraceContext> {
        TraceContext::parse(parent.as_bytes(), state.map(str::as_bytes))
    }

    #[test]
    fn a_context_is_passed_on_as_it_came() {
        let context = parse(PARENT, Some("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")).expect("good");
        assert_eq!(context.traceparent(), PARENT);
        assert_eq!(
            context.tracestate(),
            Some("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")
        );
        assert!(context.is_sampled());
        let child = context.child(SpanId::of(1));
        assert_eq!(
            child.traceparent(),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000001-01"
        );
        assert_eq!(child.tracestate(), context.tracestate());
        let not_sampled = PARENT.replace("-01", "-00");
        assert!(!parse(&not_sampled, None).expect("good").is_sampled());
        let unknown_flags = PARENT.replace("-01", "-f9");
        let context = parse(&unknown_flags, None).expect("good");
        assert_eq!(
            context.traceparent(),
            PARENT,
            "undefined flags are not passed on"
        );
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parse(bad, Some("a=b")), None, "{bad}");
        }
        let later = PARENT.replacen("00", "01", 1);
        for good in [later.clone(), format!("{later}-what is to come")] {
            let context = parse(&good, None).expect("a later version is read as this one");
            assert_eq!(context.traceparent(), PARENT);
        }
    }

    #[test]
    fn a_tracestate_that_is_none_costs_only_itself() {
        let state = |text: &str| {
            let context = parse(PARENT, Some(text)).expect("the parent is good");
            context.tracestate().map(str::to_owned)
        };
        assert_eq!(state("a=1 , ,\tb=2"), Some("a=1,b=2".to_owned()));
        for bad in ["", "a", "=1", "A=1", "a=", "a=1=2", "a=\u{e4}", "a=1,b"] {
            assert_eq!(state(bad), None, "{bad}");
        }
        let many = |count: usize| {
            (0..count)
                .map(|n| format!("k{n}=v"))
                .collect::<Vec<_>>()
                .join(",")
        };
        assert!(state(&many(32)).is_some());
        assert_eq!(state(&many(33)), None);
        let long = format!("new={},old={}", "x".repeat(250), "y".repeat(256));
        assert_eq!(state(&long), Some(format!("new={}", "x".repeat(250))));
    }

    #[test]
    fn a_share_of_the_traces_is_sampled() {
        let trace = |lower: u64| TraceId::of(u128::from(lower));
        assert!(trace(u64::MAX >> 2).is_within(1.0) && trace(1).is_within(0.1));
        assert!(!trace(1).is_within(0.0));
        assert!(!trace((u64::MAX >> 1) - 1).is_within(0.9));
        assert!(trace(u64::MAX >> 3).is_within(0.3) && !trace(u64::MAX >> 2).is_within(0.3));
    }

    proptest! {
        #[test]
        fn whatever_the_headers_hold_what_is_taken_survives_being_passed_on(
            parent in "([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,4})?|\\PC{0,60})",
            state in proptest::option::of("([a-z0-9]{0,3}=[ -~]{0,4},?){0,4}|\\PC{0,20}"),
        ) {
            if let Some(context) = parse(&parent, state.as_deref()) {
                prop_assert_eq!(parse(&context.traceparent(), context.tracestate()), Some(context));
            }
        }
    }
}
