//! `stockctl orders`: placing, looking at and cancelling orders, through the HTTP API.

use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use tokio::time::Instant;
use uuid::Uuid;

use super::api::{Calling, failure, refusal};
use super::style::{Colour, Ink};
use super::table::{aligned, moment, printable};
use super::{EXIT_BUG, EXIT_CHECK_FAILED, Failure};
use crate::client::{
    Answer, Api, Error, Event, Line, NewOrder, Order, OrderFilter, Reason, WAIT_MAX, repeat,
    unless_limited,
};
use crate::config::Config;
use crate::domain::order::Status;

/// Between two looks at an order that the API does not wait for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks where the API cannot be reached, or says that it cannot look now.
const TROUBLE_INTERVAL: Duration = Duration::from_secs(1);
/// Lines of an order that a list has room for.
const LINES_SHOWN: usize = 3;
const NOT_FOUND: &str = "`stockctl orders list` lists the newest ones";

/// Placing, looking at and cancelling orders.
#[derive(Debug, Args)]
pub struct Orders {
    #[command(flatten)]
    calling: Calling,
    #[command(subcommand)]
    command: OrdersCommand,
}

/// What to do with orders.
#[derive(Debug, Subcommand)]
enum OrdersCommand {
    /// Place an order: it is confirmed whole, or not at all
    Place {
        /// What is ordered, such as p1=2
        #[arg(value_name = "PRODUCT=QUANTITY", required = true, value_parser = line)]
        lines: Vec<Line>,
        /// A remark of yours, which is shown with the order
        #[arg(long, value_name = "TEXT")]
        reference: Option<String>,
        /// Your name for this order: with the same key it is the same order, however often it is placed
        /// [default: a new one]
        #[arg(long, value_name = "KEY", value_parser = printable_ascii)]
        key: Option<String>,
        /// Wait so many seconds for the decision (exit code 5 unless it is confirmed, 1 when it is pending still)
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
        wait: Option<u64>,
    },
    /// Show an order, with what happened to it
    Show {
        /// The order's id
        #[arg(value_name = "ID", value_parser = order_id)]
        id: Uuid,
    },
    /// List orders, the newest first
    List {
        /// Only orders that stand so
        #[arg(long, value_name = "STATUS", value_parser = status())]
        status: Option<Status>,
        /// Only orders with a line of this product
        #[arg(long, value_name = "PRODUCT", value_parser = NonEmptyStringValueParser::new())]
        product: Option<String>,
        /// At most so many: 1 to 10000
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        limit: u16,
    },
    /// Take an order back; what was taken for it is returned
    Cancel {
        /// The order's id
        #[arg(value_name = "ID", value_parser = order_id)]
        id: Uuid,
    },
}

/// Reads a line; a product's id may hold an equals sign itself.
fn line(text: &str) -> Result<Line, String> {
    let (product, quantity) = text
        .rsplit_once('=')
        .filter(|(product, _)| !product.is_empty())
        .ok_or("write a product and a quantity, such as p1=2")?;
    let quantity = quantity
        .parse()
        .map_err(|_| format!("the quantity {quantity:?} is no whole number"))?;
    Ok(Line {
        product_id: product.to_owned(),
        quantity,
    })
}

/// What may stand in a header; its length is for the API to judge.
fn printable_ascii(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
        Ok(text.to_owned())
    } else {
        Err("only printable ASCII can be a key".to_owned())
    }
}

/// Its values are known to completions as well.
fn status() -> impl TypedValueParser<Value = Status> {
    let names = Status::ALL.map(Status::as_str);
    PossibleValuesParser::new(names).try_map(|name| Status::parse(&name).ok_or("it is no status"))
}

/// Reads an order's id; what is wrong with another text is for nobody to count.
pub(super) fn order_id(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text).map_err(|_| {
        format!("it must be a UUID, such as 01a21584-8706-763e-b5e8-dd1039028028; {NOT_FOUND}")
    })
}

/// Runs it; the configuration is loaded only where it has to say where the API is.
///
/// # Errors
/// See [`Failure`].
pub async fn run(
    orders: Orders,
    load: impl FnOnce() -> Result<Config, Failure>,
) -> Result<(), Failure> {
    let calling = orders.calling;
    match orders.command {
        OrdersCommand::Place {
            lines,
            reference,
            key,
            wait,
        } => {
            let api = calling.api(load)?;
            let order = NewOrder { lines, reference };
            let key = key.unwrap_or_else(|| Uuid::now_v7().to_string());
            place(&calling, &api, &order, &key, wait.map(Duration::from_secs)).await
        }
        OrdersCommand::Show { id } => {
            let api = calling.api(load)?;
            let answer = calling.expect(
                unless_limited(async || api.order(id, None).await).await,
                &api,
                NOT_FOUND,
            )?;
            show(&calling, &answer).map(|_| ())
        }
        OrdersCommand::List {
            status,
            product,
            limit,
        } => {
            let api = calling.api(load)?;
            let filter = OrderFilter {
                status: status.map(|status| status.as_str().to_owned()),
                product,
            };
            let page = async |limit, cursor: Option<String>| {
                unless_limited(async || api.orders(&filter, limit, cursor.as_deref()).await).await
            };
            let listed = calling.list(&api, limit.into(), page).await?;
            calling.print_list(&listed, "there are no such orders", table)
        }
        OrdersCommand::Cancel { id } => {
            let api = calling.api(load)?;
            // One that is cancelled already stays so.
            let repeated = repeat(async || api.cancel(id).await).await;
            let is_outcome_unknown = repeated.is_outcome_unknown;
            let answer = calling.expect(repeated.last, &api, NOT_FOUND);
            let answer = answer.map_err(|failure| {
                if is_outcome_unknown {
                    let hint =
                        format!("whether order {id} is cancelled is not known: run it again");
                    Failure::new(failure.code, format!("{}\n{hint}", failure.message))
                } else {
                    failure
                }
            })?;
            show(&calling, &answer).map(|_| ())
        }
    }
}

async fn place(
    calling: &Calling,
    api: &Api,
    order: &NewOrder,
    key: &str,
    wait: Option<Duration>,
) -> Result<(), Failure> {
    let until = wait.map(|wait| Instant::now() + wait);
    let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
    let repeated = repeat(async || api.place(order, key, left()).await).await;
    let is_outcome_unknown = repeated.is_outcome_unknown;
    let answer = calling.expect(repeated.last, api, NOT_FOUND);
    let answer = answer.map_err(|failure| {
        if is_outcome_unknown {
            let hint = format!(
                "whether the order was accepted is not known: with --key {key} it is the same order, so run it again with \
                 that"
            );
            Failure::new(failure.code, format!("{}\n{hint}", failure.message))
        } else {
            failure
        }
    })?;
    let Some(until) = until else {
        return show(calling, &answer).map(|_| ());
    };
    let (answer, trouble) = wait_for_outcome(api, answer, until).await?;
    let order = show(calling, &answer)?;
    verdict(&order, trouble)
}

/// Looks at an accepted order until it is decided or the time is over. Returns how it stood at the last look, and what
/// kept a later one from being taken.
async fn wait_for_outcome(
    api: &Api,
    mut answer: Answer,
    until: Instant,
) -> Result<(Answer, Option<Failure>), Failure> {
    let mut trouble = None;
    loop {
        let order: Order = answer.read().map_err(failure)?;
        let left = until.saturating_duration_since(Instant::now());
        if !is_pending(&order) || left.is_zero() {
            return Ok((answer, trouble));
        }
        let pause = match api.order(order.id, Some(left.min(WAIT_MAX))).await {
            Ok(seen) if seen.is_success() => {
                let pause = if seen.has_waited {
                    Duration::ZERO
                } else {
                    LOOK_INTERVAL
                };
                (answer, trouble) = (seen, None);
                pause
            }
            Ok(other) => {
                let pause = other.retry_after.unwrap_or(TROUBLE_INTERVAL);
                trouble = Some(refusal(&other, api.address(), NOT_FOUND));
                if other.status < 500 && other.status != 429 {
                    // That is no different in a second.
                    return Ok((answer, trouble));
                }
                pause
            }
            // It may be started anew; the order is accepted, whatever becomes of it.
            Err(error @ Error::Unreachable { .. }) => {
                trouble = Some(failure(error));
                TROUBLE_INTERVAL
            }
            Err(error) => return Err(failure(error)),
        };
        tokio::time::sleep_until(until.min(Instant::now() + pause)).await;
    }
}

fn is_pending(order: &Order) -> bool {
    order.status == Status::Pending.as_str()
}

/// What waiting for an order has come to.
fn verdict(order: &Order, trouble: Option<Failure>) -> Result<(), Failure> {
    if order.status == Status::Confirmed.as_str() {
        return Ok(());
    }
    if !is_pending(order) {
        let why = order
            .reason
            .as_ref()
            .map_or_else(String::new, |reason| format!(": {}", because(reason)));
        let message = format!("order {} is {}{why}", order.id, printable(&order.status));
        return Err(Failure::new(EXIT_CHECK_FAILED, message));
    }
    let later = format!(
        "it is accepted, and will be decided: `stockctl orders show {}`",
        order.id
    );
    Err(match trouble {
        None => Failure::new(
            EXIT_BUG,
            format!("order {} is pending still; {later}", order.id),
        ),
        Some(trouble) => Failure::new(
            trouble.code,
            format!(
                "{}\norder {} was pending before that; {later}",
                trouble.message, order.id
            ),
        ),
    })
}

/// Prints an order, and returns it.
fn show(calling: &Calling, answer: &Answer) -> Result<Order, Failure> {
    let order: Order = answer.read().map_err(failure)?;
    calling.print(answer, |ink| whole(&order, answer.is_replayed, ink));
    Ok(order)
}

fn painted_status(status: &str, ink: Ink) -> String {
    let text = printable(status);
    match Status::parse(status) {
        Some(Status::Confirmed) => ink.painted(Colour::Green, &text),
        Some(Status::Rejected | Status::Failed) => ink.painted(Colour::Red, &text),
        Some(Status::Pending | Status::Cancelled) | None => text,
    }
}

/// How far the vendors have been told.
fn told(vendor_sync: &str) -> String {
    match vendor_sync {
        "none" => "nothing to tell".to_owned(),
        "pending" => "being told".to_owned(),
        "done" => "told".to_owned(),
        "failed" => "could not be told".to_owned(),
        other => printable(other),
    }
}

fn because(reason: &Reason) -> String {
    let product = printable(reason.product_id.as_deref().unwrap_or("a product"));
    match (reason.code.as_str(), reason.requested, reason.available) {
        ("insufficient_stock", Some(requested), Some(available)) => {
            format!("{requested} of {product} were asked for, and {available} were available")
        }
        ("unknown_product", ..) => format!("no vendor has ever listed {product}"),
        ("vendor_rejected", ..) => {
            format!("a vendor had sold {product} elsewhere, and no other had enough")
        }
        ("idempotency_conflict", ..) => "its key belongs to another order".to_owned(),
        ("dropped", ..) => "processing gave up, and an operator dropped it".to_owned(),
        (code, ..) => match &reason.error {
            Some(error) => format!("{} ({})", printable(error), printable(code)),
            None => printable(code),
        },
    }
}

fn happened(event: &Event) -> String {
    let vendor = printable(event.vendor_id.as_deref().unwrap_or("a vendor"));
    match event.event.as_str() {
        "accepted" => "accepted".to_owned(),
        "confirmed" => "confirmed".to_owned(),
        "rejected" => "rejected".to_owned(),
        "failed" => "failed: processing gave up".to_owned(),
        "replayed" => "replayed by an operator".to_owned(),
        "cancelled" => "cancelled".to_owned(),
        "reallocated" => "taken from other vendors instead".to_owned(),
        "pushed" => {
            let outcome = printable(event.outcome.as_deref().unwrap_or("nothing"));
            format!("{vendor} told: {outcome}")
        }
        "push_failed" => format!("{vendor} could not be told"),
        "push_replayed" => format!("{vendor} is told again, by an operator"),
        "push_dropped" => format!("{vendor} is not told any more, by an operator"),
        other => printable(other),
    }
}

fn lines_in_short(lines: &[Line]) -> String {
    let mut parts: Vec<String> = lines
        .iter()
        .take(LINES_SHOWN)
        .map(|line| format!("{}={}", printable(&line.product_id), line.quantity))
        .collect();
    if lines.len() > LINES_SHOWN {
        parts.push(format!("and {} more", lines.len() - LINES_SHOWN));
    }
    parts.join(" ")
}

fn table(orders: &[Order], ink: Ink) -> String {
    let head = ["ID", "STATUS", "VENDORS", "ACCEPTED", "LINES", "REFERENCE"].map(str::to_owned);
    let rows = orders.iter().map(|order| {
        [
            order.id.to_string(),
            painted_status(&order.status, ink),
            told(&order.vendor_sync),
            moment(order.accepted_at),
            lines_in_short(&order.lines),
            printable(order.reference.as_deref().unwrap_or_default()),
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
    aligned(&rows)
}

/// An order with all there is to say about it.
fn whole(order: &Order, is_replayed: bool, ink: Ink) -> String {
    let fact = |name: &str, value: String| [name.to_owned(), value];
    let mut facts = vec![
        fact("order", order.id.to_string()),
        fact("status", painted_status(&order.status, ink)),
    ];
    if let Some(reason) = &order.reason {
        facts.push(fact("because", because(reason)));
    }
    facts.push(fact("vendors", told(&order.vendor_sync)));
    if let Some(reference) = &order.reference {
        facts.push(fact("reference", printable(reference)));
    }
    if let Some(caller) = &order.caller {
        facts.push(fact("caller", printable(caller)));
    }
    facts.push(fact("accepted", moment(order.accepted_at)));
    if let Some(at) = order.decided_at {
        facts.push(fact("decided", moment(at)));
    }
    if let Some(at) = order.cancelled_at {
        facts.push(fact("cancelled", moment(at)));
    }
    if is_replayed {
        facts.push(fact(
            "note",
            "it had been placed before, with this key".to_owned(),
        ));
    }
    let mut parts = vec![aligned(&facts)];

    let lines = order
        .lines
        .iter()
        .map(|line| [printable(&line.product_id), line.quantity.to_string()]);
    parts.push(with_head(["PRODUCT", "QUANTITY"], lines));
    let updates = order.updates.iter().map(|update| {
        [
            printable(&update.vendor_id),
            printable(&update.product_id),
            format!("{:+}", update.delta),
            printable(&update.state),
            update.id.to_string(),
        ]
    });
    parts.push(with_head(
        ["VENDOR", "PRODUCT", "CHANGE", "STATE", "UPDATE"],
        updates,
    ));
    let history = order
        .history
        .iter()
        .map(|event| [moment(event.at), happened(event)]);
    parts.push(with_head(["WHEN", "WHAT HAPPENED"], history));
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

/// A table; nothing where it would have no rows.
fn with_head<const COLUMNS: usize>(
    head: [&str; COLUMNS],
    rows: impl Iterator<Item = [String; COLUMNS]>,
) -> String {
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned))
        .chain(rows)
        .collect();
    match rows.len() {
        1 => String::new(),
        _ => aligned(&rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::EXIT_UNREACHABLE;

    fn order(json: &str) -> Order {
        serde_json::from_str(json).expect("an order")
    }

    fn pending() -> Order {
        order(
            r#"{"id":"01a21584-8706-763e-b5e8-dd1039028028","status":"pending","vendorSync":"none",
            "lines":[{"productId":"p1","quantity":1},{"productId":"p2","quantity":2},{"productId":"p3","quantity":3},
            {"productId":"p4","quantity":4},{"productId":"p5","quantity":5}],"updates":[],
            "reference":"cart \u001b[2J","acceptedAt":"2026-11-26T01:42:16.582834Z"}"#,
        )
    }

    fn confirmed() -> Order {
        order(
            r#"{"id":"01a21584-8706-763e-b5e8-dd1039028028","status":"confirmed","vendorSync":"done",
            "lines":[{"productId":"p2","quantity":18}],"updates":[
            {"id":"01a21584-878a-705c-8fe2-9b7561195789","vendorId":"vendorA","productId":"p2","delta":-15,"state":"acknowledged"},
            {"id":"01a21584-878a-705c-8fe2-9b76992cd5d3","vendorId":"vendorB","productId":"p2","delta":-3,"state":"open"}],
            "acceptedAt":"2026-11-26T01:42:16.582834Z","decidedAt":"2026-11-26T01:42:16.696737Z","history":[
            {"at":"2026-11-26T01:42:16.582834Z","event":"accepted"},
            {"at":"2026-11-26T01:42:16.696737Z","event":"confirmed","updates":["01a21584-878a-705c-8fe2-9b7561195789"]},
            {"at":"2026-11-26T01:42:16.768229Z","event":"pushed","vendorId":"vendorA","outcome":"applied","updates":[]},
            {"at":"2026-11-26T01:42:17.768229Z","event":"newer_event"}]}"#,
        )
    }

    fn rejected() -> Order {
        order(
            r#"{"id":"01a21584-8b64-7602-b493-dd1c7fadafdb","status":"rejected","vendorSync":"none",
            "reason":{"code":"insufficient_stock","productId":"p1","requested":11,"available":10},
            "lines":[{"productId":"p1","quantity":11}],"updates":[],"acceptedAt":"2026-11-26T01:42:17.700159Z",
            "decidedAt":"2026-11-26T01:42:17.720829Z"}"#,
        )
    }

    #[test]
    fn a_line_is_a_product_and_a_quantity() {
        for (text, product, quantity) in [("p1=2", "p1", 2), ("a=b=-3", "a=b", -3)] {
            let expected = Line {
                product_id: product.to_owned(),
                quantity,
            };
            assert_eq!(line(text), Ok(expected));
        }
        for text in [
            "",
            "p1",
            "=2",
            "p1=",
            "p1=two",
            "p1=1.5",
            "p1=99999999999999999999",
        ] {
            assert!(line(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_written_for_a_line_one_that_is_taken_is_as_it_was_written(
            text in "\\PC{0,9}=[+-]?[0-9]{0,20}|\\PC{0,20}",
        ) {
            if let Ok(Line { product_id, quantity }) = line(&text) {
                proptest::prop_assert!(!product_id.is_empty());
                let (product, number) = text.rsplit_once('=').expect("there");
                proptest::prop_assert_eq!((product_id.as_str(), quantity), (product, number.parse().expect("a number")));
            }
        }
    }

    #[test]
    fn an_order_is_shown_with_all_that_happened() {
        insta::assert_snapshot!(whole(&confirmed(), false, Ink::Plain), @"
        order     01a21584-8706-763e-b5e8-dd1039028028
        status    confirmed
        vendors   told
        accepted  2026-11-26 01:42:16.582 UTC
        decided   2026-11-26 01:42:16.696 UTC

        PRODUCT  QUANTITY
        p2       18

        VENDOR   PRODUCT  CHANGE  STATE         UPDATE
        vendorA  p2       -15     acknowledged  01a21584-878a-705c-8fe2-9b7561195789
        vendorB  p2       -3      open          01a21584-878a-705c-8fe2-9b76992cd5d3

        WHEN                         WHAT HAPPENED
        2026-11-26 01:42:16.582 UTC  accepted
        2026-11-26 01:42:16.696 UTC  confirmed
        2026-11-26 01:42:16.768 UTC  vendorA told: applied
        2026-11-26 01:42:17.768 UTC  newer_event
        ");
        insta::assert_snapshot!(whole(&rejected(), true, Ink::Plain), @"
        order     01a21584-8b64-7602-b493-dd1c7fadafdb
        status    rejected
        because   11 of p1 were asked for, and 10 were available
        vendors   nothing to tell
        accepted  2026-11-26 01:42:17.700 UTC
        decided   2026-11-26 01:42:17.720 UTC
        note      it had been placed before, with this key

        PRODUCT  QUANTITY
        p1       11
        ");
    }

    #[test]
    fn a_list_has_a_line_for_each_order() {
        let orders = [pending(), confirmed(), rejected()];
        insta::assert_snapshot!(table(&orders, Ink::Plain), @"
        ID                                    STATUS     VENDORS          ACCEPTED                     LINES                      REFERENCE
        01a21584-8706-763e-b5e8-dd1039028028  pending    nothing to tell  2026-11-26 01:42:16.582 UTC  p1=1 p2=2 p3=3 and 2 more  cart �[2J
        01a21584-8706-763e-b5e8-dd1039028028  confirmed  told             2026-11-26 01:42:16.582 UTC  p2=18
        01a21584-8b64-7602-b493-dd1c7fadafdb  rejected   nothing to tell  2026-11-26 01:42:17.700 UTC  p1=11
        ");
    }

    #[test]
    fn a_status_has_a_colour_where_that_is_wanted() {
        let paint = |status| painted_status(status, Ink::Coloured);
        assert_eq!(paint("confirmed"), "\x1b[32mconfirmed\x1b[0m");
        assert_eq!(paint("failed"), "\x1b[1;31mfailed\x1b[0m");
        assert_eq!(paint("pending"), "pending");
        assert_eq!(paint("newer"), "newer");
        assert_eq!(painted_status("confirmed", Ink::Plain), "confirmed");
    }

    #[test]
    fn only_a_confirmed_order_is_a_success_of_waiting() {
        assert!(verdict(&confirmed(), None).is_ok());
        let refused = verdict(&rejected(), None).expect_err("rejected");
        assert_eq!(refused.code, EXIT_CHECK_FAILED);
        let mut cancelled = confirmed();
        cancelled.status = "cancelled".to_owned();
        let taken_back = verdict(&cancelled, None).expect_err("cancelled");
        assert_eq!(taken_back.code, EXIT_CHECK_FAILED);
        let still = verdict(&pending(), None).expect_err("pending");
        assert_eq!(still.code, EXIT_BUG);
        let trouble = Failure::new(EXIT_UNREACHABLE, "nobody answers");
        let away = verdict(&pending(), Some(trouble)).expect_err("pending");
        assert_eq!(away.code, EXIT_UNREACHABLE);
        let texts = [refused, taken_back, still, away].map(|failure| failure.message);
        insta::assert_snapshot!(texts.join("\n"), @"
        order 01a21584-8b64-7602-b493-dd1c7fadafdb is rejected: 11 of p1 were asked for, and 10 were available
        order 01a21584-8706-763e-b5e8-dd1039028028 is cancelled
        order 01a21584-8706-763e-b5e8-dd1039028028 is pending still; it is accepted, and will be decided: `stockctl orders show 01a21584-8706-763e-b5e8-dd1039028028`
        nobody answers
        order 01a21584-8706-763e-b5e8-dd1039028028 was pending before that; it is accepted, and will be decided: `stockctl orders show 01a21584-8706-763e-b5e8-dd1039028028`
        ");
    }
}
