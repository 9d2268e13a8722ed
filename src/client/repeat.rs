//! When a request is sent again: only such as change nothing the second time.

use std::time::Duration;

use tokio::time::Instant;

use super::{Answer, Error};

/// Most times that one request is sent.
const ATTEMPTS_MAX: u32 = 4;
/// None is sent later than this after the first.
const DEADLINE: Duration = Duration::from_secs(30);
/// The pause before the second; each further one is twice as long, unless the API says how long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Who asks too often is told when there may be more, and nothing was done.
const TOO_MANY_REQUESTS: u16 = 429;

/// What came of a request that was sent once or more.
#[derive(Debug)]
pub struct Repeated {
    /// The answer to the last one, or why there is none.
    pub last: Result<Answer, Error>,
    /// Whether one of them may have had an effect that no answer tells of.
    pub is_outcome_unknown: bool,
}

/// Sends a request, and again if its answer is lost or a later one may fare better.
pub async fn repeat(send: impl AsyncFn() -> Result<Answer, Error>) -> Repeated {
    let began = Instant::now();
    let mut is_outcome_unknown = false;
    let mut attempts = 0;
    loop {
        let last = send().await;
        attempts += 1;
        is_outcome_unknown |= leaves_outcome_unknown(&last);
        match pause_after(&last, attempts, is_outcome_unknown) {
            Some(pause) if began.elapsed() + pause <= DEADLINE => tokio::time::sleep(pause).await,
            _ => {
                // What was refused for good, or done, is known.
                is_outcome_unknown &= !is_final(&last);
                return Repeated {
                    last,
                    is_outcome_unknown,
                };
            }
        }
    }
}

fn leaves_outcome_unknown(last: &Result<Answer, Error>) -> bool {
    match last {
        Ok(answer) => {
            is_of_gateway(answer)
                || answer
                    .problem()
                    .is_some_and(|problem| problem.code == "outcome_unknown")
        }
        Err(Error::Unreachable {
            may_have_arrived, ..
        }) => *may_have_arrived,
        Err(_) => false,
    }
}

/// Answers of what stands between: the one of the API did not come through.
fn is_of_gateway(answer: &Answer) -> bool {
    matches!(answer.status, 502 | 504)
}

fn is_final(last: &Result<Answer, Error>) -> bool {
    last.as_ref().is_ok_and(|answer| {
        !matches!(answer.status, TOO_MANY_REQUESTS | 503) && !is_of_gateway(answer)
    })
}

/// Sends a request that only looks, and again while the API asks to come later because there were too many: whatever else is
/// the matter is for people to see at once.
///
/// # Errors
/// There is no answer.
pub async fn unless_limited(
    send: impl AsyncFn() -> Result<Answer, Error>,
) -> Result<Answer, Error> {
    let began = Instant::now();
    let mut attempts = 0;
    loop {
        let last = send().await;
        attempts += 1;
        let is_limited = matches!(&last, Ok(answer) if answer.status == TOO_MANY_REQUESTS);
        match pause_after(&last, attempts, false) {
            Some(pause) if is_limited && began.elapsed() + pause <= DEADLINE => {
                tokio::time::sleep(pause).await;
            }
            _ => return last,
        }
    }
}

/// How long to wait before the request is sent again; none if it is not.
fn pause_after(
    last: &Result<Answer, Error>,
    attempts: u32,
    is_outcome_unknown: bool,
) -> Option<Duration> {
    if attempts >= ATTEMPTS_MAX {
        return None;
    }
    let pause = FIRST_PAUSE * 2_u32.pow(attempts - 1);
    match last {
        Ok(answer) if !is_final(last) => Some(answer.retry_after.unwrap_or(pause)),
        // A server that was never there is no better in a second. One that has ended in the middle may be back.
        Err(Error::Unreachable { .. }) if is_outcome_unknown => Some(pause),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use reqwest::header::{HeaderMap, HeaderValue};

    use super::*;

    fn answered(status: u16, body: &str) -> Result<Answer, Error> {
        let mut headers = HeaderMap::new();
        if [429, 503].contains(&status) {
            headers.insert("retry-after", HeaderValue::from_static("1"));
        }
        Ok(Answer::new("here", status, &headers, body.to_owned()))
    }

    fn unreachable(may_have_arrived: bool) -> Result<Answer, Error> {
        Err(Error::Unreachable {
            at: "here".to_owned(),
            problem: "broken".to_owned(),
            may_have_arrived,
        })
    }

    const UNKNOWN: &str = r#"{"code":"outcome_unknown","title":"t","detail":"d"}"#;
    const BUSY: &str = r#"{"code":"busy","title":"t","detail":"d"}"#;

    /// What becomes of a request that is answered so, one after the other: how often it is sent, the last status, what is
    /// unknown, and the seconds it took.
    async fn sent(answers: Vec<Result<Answer, Error>>) -> (usize, Option<u16>, bool, f32) {
        let began = Instant::now();
        let given = answers.len();
        let answers = RefCell::new(answers.into_iter());
        let repeated = repeat(async || {
            let next = answers.borrow_mut().next();
            next.expect("not sent more often than expected")
        })
        .await;
        (
            given - answers.borrow().len(),
            repeated.last.ok().map(|answer| answer.status),
            repeated.is_outcome_unknown,
            (began.elapsed().as_secs_f32() * 10.0).round() / 10.0,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_asked_for_again_and_then_known() {
        let answers = vec![unreachable(true), unreachable(false), answered(202, "{}")];
        assert_eq!(sent(answers).await, (3, Some(202), false, 1.5));
        let answers = vec![unreachable(true), answered(422, BUSY)];
        assert_eq!(sent(answers).await, (2, Some(422), false, 0.5));
        let answers = vec![answered(504, ""), answered(200, "{}")];
        assert_eq!(sent(answers).await, (2, Some(200), false, 0.5));
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_after_four_times_with_what_is_known_then() {
        let answers = (0..9).map(|_| unreachable(true)).collect();
        assert_eq!(sent(answers).await, (4, None, true, 3.5));
        let answers = (0..9).map(|_| answered(503, BUSY)).collect();
        assert_eq!(sent(answers).await, (4, Some(503), false, 3.0));
        let mut answers = vec![answered(503, UNKNOWN)];
        answers.extend((0..9).map(|_| answered(503, BUSY)));
        assert_eq!(sent(answers).await, (4, Some(503), true, 3.0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_too_often_waits_for_as_long_as_it_is_told() {
        let answers = vec![answered(429, ""), answered(429, ""), answered(202, "{}")];
        assert_eq!(sent(answers).await, (3, Some(202), false, 2.0));
        // What was said before it stays unknown.
        let mut answers = vec![unreachable(true)];
        answers.extend((0..9).map(|_| answered(429, "")));
        assert_eq!(sent(answers).await, (4, Some(429), true, 2.5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_is_repeated_only_while_there_are_too_many() {
        let look = async |statuses: &[u16]| {
            let began = Instant::now();
            let left = RefCell::new(statuses.iter());
            let last = unless_limited(async || {
                let next = left.borrow_mut().next().copied();
                answered(next.expect("not sent more often than expected"), "")
            })
            .await;
            let status = last.expect("an answer").status;
            (left.borrow().len(), status, began.elapsed().as_secs())
        };
        assert_eq!(look(&[429, 200]).await, (0, 200, 1));
        assert_eq!(look(&[429, 503, 200]).await, (1, 503, 1));
        assert_eq!(look(&[429; 9]).await, (5, 429, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_never_sent_or_is_refused_is_not_repeated() {
        assert_eq!(sent(vec![unreachable(false)]).await, (1, None, false, 0.0));
        let refused = vec![answered(422, BUSY)];
        assert_eq!(sent(refused).await, (1, Some(422), false, 0.0));
        assert_eq!(
            sent(vec![answered(500, "")]).await,
            (1, Some(500), false, 0.0)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_sent_after_the_deadline() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", HeaderValue::from_static("31"));
        let later = Answer::new("here", 503, &headers, BUSY.to_owned());
        assert_eq!(sent(vec![Ok(later)]).await, (1, Some(503), false, 0.0));
    }
}
