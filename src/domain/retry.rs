//! What becomes of a message whose processing failed, as a value.

/// What to do with a delivery once its step has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its effect is committed.
    Ack,
    /// Publish a copy with this `x-retry-count` to the retry queue, then acknowledge.
    Retry {
        /// How many retries the copy has had, itself included.
        retry_count: u32,
    },
    /// Publish a copy to the dead-letter queue, then acknowledge.
    DeadLetter {
        /// One of the codes in this module.
        code: &'static str,
        /// For an operator, with hosts, statements and all.
        error: String,
        /// Which kind of failure it was, in a word that anybody may read, where `code` does not say that.
        cause: Option<String>,
    },
}

/// Cannot be decoded, or can never succeed.
pub const INVALID_MESSAGE: &str = "invalid_message";
/// Failed as often as it may.
pub const RETRIES_EXHAUSTED: &str = "retries_exhausted";
/// Its consumer died of it, as often as it may.
pub const CRASH_LOOP: &str = "crash_loop";
/// A vendor knows the id of an update with another content.
pub const UPDATE_CONFLICT: &str = "update_conflict";

/// All of these.
pub const CODES: [&str; 4] = [
    INVALID_MESSAGE,
    RETRIES_EXHAUSTED,
    CRASH_LOOP,
    UPDATE_CONFLICT,
];

/// The cause of a letter whose receiver of webhooks has not taken it: its error is written for anybody.
pub const RECEIVER_FAILED: &str = "receiver_failed";

/// Attempts that a suspect message may begin alone. Its first delivery crashed beside others, so it ends after three.
pub const SUSPECT_ATTEMPTS_MAX: u32 = 2;

/// The verdict for a message that failed for a reason that may pass.
#[must_use]
pub fn after_transient(
    retries_so_far: u32,
    retries_max: u32,
    error: &str,
    cause: String,
) -> Verdict {
    if retries_so_far < retries_max {
        Verdict::Retry {
            retry_count: retries_so_far + 1,
        }
    } else {
        Verdict::DeadLetter {
            code: RETRIES_EXHAUSTED,
            error: error.to_owned(),
            cause: Some(cause),
        }
    }
}

/// The verdict for a message that was not tried, or not to its end, for no fault of its own: it comes again, and has lost
/// nothing.
#[must_use]
pub fn put_off(retries_so_far: u32) -> Verdict {
    Verdict::Retry {
        retry_count: retries_so_far,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_and_three_retries_then_the_dead_letter_queue() {
        let verdicts: Vec<_> = (0..4)
            .map(|n| after_transient(n, 3, "down", "out".into()))
            .collect();
        assert_eq!(
            verdicts[..3],
            [1, 2, 3].map(|retry_count| Verdict::Retry { retry_count })
        );
        assert_eq!(
            verdicts[3],
            Verdict::DeadLetter {
                code: RETRIES_EXHAUSTED,
                error: "down".into(),
                cause: Some("out".into()),
            }
        );
    }
}
