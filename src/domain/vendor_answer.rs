//! What a vendor's answer means for the updates that it was sent, whatever is in it. An answer that is wrong in one
//! place says nothing about the other places, and what is not said clearly is not believed.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::book::Answer;
use super::ids::UpdateId;
use super::vendor_api::{ResultOutcome, UpdateResult};

/// Most characters of what is wrong with a result, which quotes it.
const PROBLEM_CHARS_MAX: usize = 120;

/// What a vendor answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// The updates whose outcome its ledger holds.
    pub recorded: Vec<Answer>,
    /// The updates that it refused because it knows their id with another content.
    pub conflicts: Vec<UpdateId>,
    /// The updates that it did not answer for in a way that can be believed, each with what is wrong.
    pub unusable: BTreeMap<UpdateId, String>,
}

/// An answer of which each result can be read, as nearly always.
#[derive(Deserialize)]
struct Clear {
    results: Vec<UpdateResult>,
}

/// An answer of which each result is read by itself.
#[derive(Deserialize)]
struct Response {
    results: Vec<serde_json::Value>,
}

/// What was read for one update.
enum Read {
    Outcome(ResultOutcome),
    Unusable(String),
}

/// Reads the body of an answer for the updates that were sent. Results for other updates are nobody's.
///
/// # Errors
/// The body is no answer at all; the text says why.
pub fn read(sent: &[UpdateId], body: &[u8]) -> Result<Answers, String> {
    let results = match serde_json::from_slice(body) {
        Ok(Clear { results }) => results
            .into_iter()
            .map(|result| (result.id, Read::Outcome(result.outcome)))
            .collect(),
        Err(_) => read_each(body)?,
    };
    let mut by_id: BTreeMap<UpdateId, Read> = BTreeMap::new();
    for (id, read) in results {
        let read = match (by_id.remove(&id), read) {
            (None, read) => read,
            (Some(Read::Outcome(first)), Read::Outcome(second)) if first == second => {
                Read::Outcome(first)
            }
            (Some(Read::Outcome(first)), Read::Outcome(second)) => Read::Unusable(format!(
                "two outcomes that contradict each other, {first:?} and {second:?}"
            )),
            (Some(unusable @ Read::Unusable(_)), _) | (_, unusable) => unusable,
        };
        by_id.insert(id, read);
    }
    let mut answers = Answers::default();
    for id in sent {
        match by_id.remove(id) {
            None => {
                answers.unusable.insert(*id, "no result".to_owned());
            }
            Some(Read::Unusable(problem)) => {
                answers.unusable.insert(*id, problem);
            }
            Some(Read::Outcome(outcome)) => match outcome.recorded() {
                Some(outcome) => answers.recorded.push(Answer { id: *id, outcome }),
                None => answers.conflicts.push(*id),
            },
        }
    }
    Ok(answers)
}

/// Reads each result by itself, as far as it says what it is for.
fn read_each(body: &[u8]) -> Result<Vec<(UpdateId, Read)>, String> {
    let response: Response = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let each = response.results.into_iter().filter_map(|result| {
        let id = UpdateId::deserialize(result.get("id")?).ok()?;
        let read = match UpdateResult::deserialize(result) {
            Ok(result) => Read::Outcome(result.outcome),
            Err(error) => Read::Unusable(format!(
                "a result that cannot be read: {}",
                shown(&error.to_string(), PROBLEM_CHARS_MAX)
            )),
        };
        Some((id, read))
    });
    Ok(each.collect())
}

/// A vendor's own text as ours may hold it: cut after so many characters, and without those that a store or a terminal
/// would choke on.
#[must_use]
pub fn shown(text: &str, chars_max: usize) -> String {
    text.chars()
        .take(chars_max)
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::domain::update::Outcome;

    fn id(n: u128) -> UpdateId {
        UpdateId(Uuid::from_u128(n))
    }

    fn read_results(results: serde_json::Value) -> Answers {
        let body = json!({ "results": results, "more": true }).to_string();
        read(&[id(1), id(2)], body.as_bytes()).expect("an answer")
    }

    fn applied(id: UpdateId) -> Answer {
        Answer {
            id,
            outcome: Outcome::Applied,
        }
    }

    #[test]
    fn each_outcome_is_sorted_by_what_it_means() {
        let answers = read_results(json!([
            {"id": id(1), "outcome": "applied", "stock": 3, "new": "field"},
            {"id": id(2), "outcome": "conflict"},
        ]));
        assert_eq!(answers.recorded, [applied(id(1))]);
        assert_eq!(answers.conflicts, [id(2)]);
        assert_eq!(answers.unusable, BTreeMap::new());
    }

    #[test]
    fn results_for_other_updates_are_no_answer_for_ours() {
        let answers = read_results(json!([
            {"id": id(7), "outcome": "applied"}, {"id": "none", "outcome": "applied"}, 5,
            {"id": id(2), "outcome": "applied"},
        ]));
        assert_eq!(answers.recorded, [applied(id(2))]);
        assert_eq!(answers.unusable[&id(1)], "no result");
    }

    #[test]
    fn an_outcome_that_is_not_known_concerns_its_update_only() {
        let answers = read_results(json!([
            {"id": id(1), "outcome": "maybe\u{0}"}, {"id": id(2), "outcome": "applied"},
        ]));
        assert_eq!(answers.recorded, [applied(id(2))]);
        let problem = &answers.unusable[&id(1)];
        assert!(problem.contains("maybe"), "{problem}");
        assert!(!problem.contains('\0'), "{problem:?}");
    }

    #[test]
    fn outcomes_that_contradict_each_other_are_not_believed_in_whatever_order() {
        let result = |n, outcome| json!({"id": id(n), "outcome": outcome});
        for outcomes in [
            ["applied", "rejected"],
            ["rejected", "applied"],
            ["void", "nonsense"],
            ["nonsense", "void"],
        ] {
            let answers = read_results(json!([
                result(1, outcomes[0]),
                result(2, "applied"),
                result(1, outcomes[1]),
                result(1, outcomes[1]),
                result(2, "applied"),
            ]));
            assert_eq!(answers.recorded, [applied(id(2))], "{outcomes:?}");
            assert!(answers.unusable.contains_key(&id(1)), "{outcomes:?}");
        }
    }

    #[test]
    fn a_body_that_is_no_answer_says_why() {
        for body in ["", "<html>", "[]", "{\"results\":{}}", "null", "{}"] {
            assert!(read(&[id(1)], body.as_bytes()).is_err(), "{body}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_vendor_answers_each_update_has_one_meaning_at_most_and_none_is_anothers(
            bytes: Vec<u8>,
            results in proptest::collection::vec(
                (0_u128..5, "applied|rejected|void|conflict|x", "null|-?[1-9][0-9]{0,19}|\"[a-z]{0,9}\""),
                0..8,
            ),
        ) {
            let _ = read(&[id(1)], &bytes);
            let results: Vec<String> = results
                .iter()
                .map(|(n, outcome, stock)| format!(r#"{{"id":"{}","outcome":"{outcome}","stock":{stock}}}"#, id(*n)))
                .collect();
            let body = format!(r#"{{"results":[{}]}}"#, results.join(","));
            let sent = [id(1), id(2), id(3)];
            let answers = read(&sent, body.as_bytes()).expect("it has results");
            let mut told: Vec<UpdateId> = answers
                .recorded
                .iter()
                .map(|answer| answer.id)
                .chain(answers.conflicts)
                .chain(answers.unusable.into_keys())
                .collect();
            told.sort();
            proptest::prop_assert_eq!(told, sent);
        }
    }
}
