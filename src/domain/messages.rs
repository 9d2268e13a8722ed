//! The messages on the queues, and how a foreign one is read.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ids::{OrderId, ProductId, UpdateId, VendorId};
use super::order::{self, IDEMPOTENCY_KEY_CHARS_MAX, Invalid, Line, Lines, NewOrder};
use super::update::Update;

/// Header: how often a message was retried.
pub const RETRY_COUNT: &str = "x-retry-count";
/// Header: since when a message of webhooks has not been taken, in milliseconds since 1970.
pub const WAITING_SINCE: &str = "x-waiting-since";
/// Header: why a message is in the dead-letter queue.
pub const DEAD_REASON: &str = "x-dead-letter-reason";
/// Header: the error, for a person.
pub const DEAD_ERROR: &str = "x-dead-letter-error";
/// Header: which kind of failure it was, in a word that anybody may read; where the reason does not say it.
pub const DEAD_CAUSE: &str = "x-dead-letter-cause";
/// Header: when it was put there.
pub const DEAD_TIME: &str = "x-dead-letter-time";
/// Header: how many attempts it had.
pub const DEAD_ATTEMPTS: &str = "x-dead-letter-attempts";

/// The caller that orders published straight to the queue are accepted for.
pub const BROKER_CALLER: &str = "amqp";
/// The longest name of a caller in bytes, as in the schema.
const CALLER_BYTES_MAX: usize = 255;
/// Times outside are a clock's error, and far outside PostgreSQL cannot hold them.
const EARLIEST_YEAR: i32 = 2000;
const LATEST_YEAR: i32 = 9999;
/// Most updates of one message: what a vendor takes in one call.
pub const UPDATES_PER_MESSAGE_MAX: usize = 500;
/// Most orders of one message. What the broker does costs by the message; all of one is delivered again together.
pub const ORDERS_PER_MESSAGE_MAX: usize = 100;
/// Most bytes of the orders of one message, unless it is a single order.
const ORDERS_BYTES_MAX: usize = 256 * 1024;

/// Why a message is none of ours and never will be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or of another shape.
    #[error("the body is not a message of this queue: {0}")]
    Malformed(String),
    /// Well formed, but not allowed.
    #[error("the body is not valid: {0}")]
    Invalid(#[from] Invalid),
    /// Nothing to tell a second delivery from a second order by.
    #[error(
        "an order without an \"id\" needs the AMQP property message-id, so that it is not ordered twice"
    )]
    NoMessageId,
}

/// An order on its way to be decided; it carries the whole order, so that it can be inserted from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OrderMessage {
    id: OrderId,
    caller: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    lines: Vec<Line>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    accepted_at: DateTime<Utc>,
}

/// What another producer may publish.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ForeignOrder {
    product_id: Option<ProductId>,
    quantity: Option<i64>,
    lines: Option<Vec<Line>>,
    reference: Option<String>,
}

/// Writes an order's message.
#[must_use]
pub fn encode_order(order: &NewOrder) -> String {
    let message = OrderMessage {
        id: order.id,
        caller: order.caller.clone(),
        idempotency_key: order.idempotency_key.clone(),
        lines: order.lines.as_slice().to_vec(),
        reference: order.reference.clone(),
        accepted_at: order.accepted_at,
    };
    json(&message)
}

/// Writes the message of orders that are written already: one is its own message.
#[must_use]
pub fn join_orders(encoded: &[&str]) -> String {
    match encoded {
        [one] => (*one).to_owned(),
        several => format!("{{\"orders\":[{}]}}", several.join(",")),
    }
}

/// Which of the orders, written in turn, go together into one message: the number of it for each, from 0 on.
#[must_use]
pub fn share_messages(encoded: &[String]) -> Vec<usize> {
    let (mut message, mut orders, mut bytes) = (0, 0, 0);
    encoded
        .iter()
        .map(|order| {
            if orders > 0
                && (orders == ORDERS_PER_MESSAGE_MAX || bytes + order.len() > ORDERS_BYTES_MAX)
            {
                message += 1;
                (orders, bytes) = (0, 0);
            }
            orders += 1;
            bytes += order.len();
            message
        })
        .collect()
}

/// Reads a message of `orders_queue`: one order or several of ours, or one of another producer.
///
/// # Errors
/// Nothing that could ever be processed.
pub fn decode_orders(
    body: &[u8],
    message_id: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Vec<NewOrder>, MessageError> {
    // Ours are the only kinds with an id or with several orders; looking for these first keeps the error about the kind
    // that was meant.
    #[derive(Deserialize)]
    struct Kind {
        id: Option<serde::de::IgnoredAny>,
        orders: Option<serde::de::IgnoredAny>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Several {
        orders: Vec<OrderMessage>,
    }
    let malformed = |error: serde_json::Error| MessageError::Malformed(error.to_string());
    let kind: Kind = serde_json::from_slice(body).map_err(malformed)?;
    if kind.orders.is_some() {
        let several: Several = serde_json::from_slice(body).map_err(malformed)?;
        if !(1..=ORDERS_PER_MESSAGE_MAX).contains(&several.orders.len()) {
            let problem = format!("must have 1 to {ORDERS_PER_MESSAGE_MAX} orders");
            return Err(Invalid::new("/orders", problem).into());
        }
        return several.orders.into_iter().map(own_order).collect();
    }
    if kind.id.is_some() {
        let message = serde_json::from_slice(body).map_err(malformed)?;
        return Ok(vec![own_order(message)?]);
    }
    Ok(vec![foreign_order(body, message_id, now)?])
}

fn own_order(message: OrderMessage) -> Result<NewOrder, MessageError> {
    if let Some(reference) = &message.reference {
        order::check_reference(reference)?;
    }
    check_text("/caller", &message.caller, IDEMPOTENCY_KEY_CHARS_MAX)?;
    if message.caller.len() > CALLER_BYTES_MAX {
        let problem = format!("must be at most {CALLER_BYTES_MAX} bytes long");
        return Err(Invalid::new("/caller", problem).into());
    }
    if !(EARLIEST_YEAR..=LATEST_YEAR).contains(&message.accepted_at.year()) {
        let problem = format!("must be of the years {EARLIEST_YEAR} to {LATEST_YEAR}");
        return Err(Invalid::new("/acceptedAt", problem).into());
    }
    if let Some(key) = &message.idempotency_key {
        check_text("/idempotencyKey", key, IDEMPOTENCY_KEY_CHARS_MAX)?;
    }
    Ok(NewOrder {
        id: message.id,
        caller: message.caller,
        idempotency_key: message.idempotency_key,
        lines: Lines::parse_summed(message.lines)?,
        reference: message.reference,
        accepted_at: message.accepted_at,
    })
}

fn foreign_order(
    body: &[u8],
    message_id: Option<&str>,
    now: DateTime<Utc>,
) -> Result<NewOrder, MessageError> {
    let foreign: ForeignOrder =
        serde_json::from_slice(body).map_err(|error| MessageError::Malformed(error.to_string()))?;
    let message_id = message_id.ok_or(MessageError::NoMessageId)?;
    check_text("message-id", message_id, IDEMPOTENCY_KEY_CHARS_MAX)?;
    let lines = match (foreign.lines, foreign.product_id, foreign.quantity) {
        (Some(lines), None, None) => lines,
        (None, Some(product_id), Some(quantity)) => vec![Line {
            product_id,
            quantity,
        }],
        _ => {
            return Err(Invalid::new(
                "",
                "needs either \"lines\" or \"productId\" and \"quantity\"",
            )
            .into());
        }
    };
    let lines = Lines::parse(lines).map_err(|mut errors| errors.swap_remove(0))?;
    if let Some(reference) = &foreign.reference {
        order::check_reference(reference)?;
    }
    Ok(NewOrder {
        id: order::derive_id(
            BROKER_CALLER,
            message_id,
            &lines,
            foreign.reference.as_deref(),
        ),
        caller: BROKER_CALLER.to_owned(),
        idempotency_key: Some(message_id.to_owned()),
        lines,
        reference: foreign.reference,
        accepted_at: now,
    })
}

/// Says whether PostgreSQL can hold a text of at most `chars_max` characters.
fn check_text(field: &str, text: &str, chars_max: usize) -> Result<(), Invalid> {
    if text.is_empty() || text.chars().count() > chars_max {
        return Err(Invalid::new(
            field,
            format!("must be 1 to {chars_max} characters long"),
        ));
    }
    if text.contains('\0') {
        return Err(Invalid::new(field, "must not contain U+0000"));
    }
    Ok(())
}

/// Updates on their way to one vendor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdatesMessage {
    /// Whose.
    pub vendor_id: VendorId,
    /// What changes; at least one.
    pub updates: Vec<UpdateItem>,
}

/// One update in a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = StockUpdate)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateItem {
    /// Its name in the vendor's ledger.
    pub id: UpdateId,
    /// Which product.
    pub product_id: ProductId,
    /// Units; negative takes, positive returns.
    #[schema(minimum = -100_000_000, maximum = 100_000_000, example = -2)]
    pub delta: i64,
    /// The take that a return gives back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverses: Option<UpdateId>,
}

impl From<&Update> for UpdateItem {
    fn from(update: &Update) -> Self {
        Self {
            id: update.id,
            product_id: update.product_id.clone(),
            delta: update.delta,
            reverses: update.reverses,
        }
    }
}

/// The messages that tell the vendors of `updates`: one vendor each, as few as the limit allows.
#[must_use]
pub fn updates_messages<'a>(updates: impl IntoIterator<Item = &'a Update>) -> Vec<UpdatesMessage> {
    let mut by_vendor: BTreeMap<&VendorId, Vec<UpdatesMessage>> = BTreeMap::new();
    for update in updates {
        let messages = by_vendor.entry(&update.vendor_id).or_default();
        match messages.last_mut() {
            Some(last) if last.updates.len() < UPDATES_PER_MESSAGE_MAX => {
                last.updates.push(update.into());
            }
            _ => messages.push(UpdatesMessage {
                vendor_id: update.vendor_id.clone(),
                updates: vec![update.into()],
            }),
        }
    }
    by_vendor.into_values().flatten().collect()
}

/// Writes a vendor's message.
#[must_use]
pub fn encode_updates(message: &UpdatesMessage) -> String {
    json(message)
}

/// Reads a vendor's message.
///
/// # Errors
/// Nothing that could ever be processed.
pub fn decode_updates(body: &[u8]) -> Result<UpdatesMessage, MessageError> {
    let message: UpdatesMessage =
        serde_json::from_slice(body).map_err(|error| MessageError::Malformed(error.to_string()))?;
    if message.updates.is_empty() || message.updates.len() > UPDATES_PER_MESSAGE_MAX {
        return Err(Invalid::new(
            "/updates",
            format!("must have 1 to {UPDATES_PER_MESSAGE_MAX} updates"),
        )
        .into());
    }
    Ok(message)
}

/// These types hold nothing that JSON cannot, so this does not fail.
fn json(message: &impl Serialize) -> String {
    serde_json::to_string(message).unwrap_or_default()
}

/// What tells a message that was delivered before from another.
#[must_use]
pub fn fingerprint(message_id: Option<&str>, body: &[u8]) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_u128(0x0f8e_21c4_7c39_4d55_8d8b_6a0c_42a1_9b77);
    let mut name = message_id.unwrap_or_default().as_bytes().to_vec();
    name.push(0);
    name.extend_from_slice(body);
    Uuid::new_v5(&NAMESPACE, &name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
    }

    #[test]
    fn an_order_survives_its_message() {
        let order = NewOrder {
            id: OrderId(Uuid::from_u128(7)),
            caller: "local".into(),
            idempotency_key: Some("k".into()),
            lines: Lines::parse(vec![Line {
                product_id: ProductId::parse("p1").expect("valid"),
                quantity: 2,
            }])
            .expect("valid"),
            reference: None,
            accepted_at: now(),
        };
        let text = encode_order(&order);
        insta::assert_snapshot!(text, @r#"{"id":"00000000-0000-0000-0000-000000000007","caller":"local","idempotencyKey":"k","lines":[{"productId":"p1","quantity":2}],"acceptedAt":"2027-01-15T08:00:00Z"}"#);
        assert_eq!(
            decode_orders(text.as_bytes(), None, now()),
            Ok(vec![order.clone()])
        );
        assert_eq!(join_orders(&[&text]), text);
        let several = join_orders(&[&text, &text]);
        assert_eq!(
            decode_orders(several.as_bytes(), None, now()),
            Ok(vec![order.clone(), order])
        );
    }

    #[test]
    fn orders_share_messages_up_to_a_number_and_a_size() {
        let small = vec!["x".to_owned(); 2 * ORDERS_PER_MESSAGE_MAX + 1];
        let shares = share_messages(&small);
        assert_eq!(
            shares.iter().filter(|n| **n == 0).count(),
            ORDERS_PER_MESSAGE_MAX
        );
        assert_eq!(shares.last(), Some(&2));
        let large = vec![
            "x".repeat(ORDERS_BYTES_MAX + 1),
            "x".to_owned(),
            "y".to_owned(),
        ];
        assert_eq!(
            share_messages(&large),
            [0, 1, 1],
            "one that is too large goes alone"
        );
        assert_eq!(share_messages(&[]), [0; 0]);
    }

    #[test]
    fn another_producers_order_is_one_order_by_its_message_id() {
        let decode = |body: &str, id| {
            decode_orders(body.as_bytes(), id, now()).map(|mut orders| orders.remove(0))
        };
        let body = r#"{"productId":"p1","quantity":2}"#;
        let first = decode(body, Some("m1")).expect("an order");
        assert_eq!(decode(body, Some("m1")).expect("an order").id, first.id);
        assert_ne!(decode(body, Some("m2")).expect("an order").id, first.id);
        assert_eq!(decode(body, None), Err(MessageError::NoMessageId));
    }

    #[test]
    fn what_is_no_order_says_why() {
        let error = |body: &[u8]| {
            decode_orders(body, Some("m"), now())
                .expect_err("no order")
                .to_string()
        };
        insta::assert_snapshot!(error(b"no json"), @"the body is not a message of this queue: expected ident at line 1 column 2");
        insta::assert_snapshot!(error(br#"{"productId":"p1","quantity":0}"#), @"the body is not valid: /lines/0/quantity: must be 1 to 1000000, is 0");
        insta::assert_snapshot!(error(br#"{"productId":"p1"}"#), @r#"the body is not valid: : needs either "lines" or "productId" and "quantity""#);
        insta::assert_snapshot!(error(br#"{"productId":"a\u0000b","quantity":1}"#), @"the body is not a message of this queue: must not contain control characters at line 1 column 23");
        insta::assert_snapshot!(error(br#"{"productId":"p1","quantity":1,"colour":"red"}"#), @"the body is not a message of this queue: unknown field `colour`, expected one of `productId`, `quantity`, `lines`, `reference` at line 1 column 39");
        insta::assert_snapshot!(error(br#"{"orders":[]}"#), @"the body is not valid: /orders: must have 1 to 100 orders");
        assert!(decode_orders(b"\xff\xfe", Some("m"), now()).is_err());
    }

    #[test]
    fn updates_are_grouped_by_vendor_and_bounded() {
        let update = |n: u128, vendor: &str| Update {
            id: UpdateId(Uuid::from_u128(n)),
            order_id: OrderId(Uuid::nil()),
            vendor_id: VendorId::parse(vendor).expect("valid"),
            product_id: ProductId::parse("p1").expect("valid"),
            delta: -1,
            reverses: None,
            state: crate::domain::update::State::Open,
            turned: false,
        };
        let updates: Vec<_> = (0..1002)
            .map(|n| update(n, if n % 501 == 0 { "b" } else { "a" }))
            .collect();
        let sizes: Vec<_> = updates_messages(&updates)
            .iter()
            .map(|m| (m.vendor_id.to_string(), m.updates.len()))
            .collect();
        assert_eq!(
            sizes,
            [("a".into(), 500), ("a".into(), 500), ("b".into(), 2)]
        );
        let message = &updates_messages(&updates)[2];
        assert_eq!(
            decode_updates(encode_updates(message).as_bytes()).as_ref(),
            Ok(message)
        );
    }

    /// Bytes, and what looks like a message but for a place or two.
    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let value = prop_oneof![
            "[0-9.eE+-]{1,12}",
            "\"[^\"\\\\]{0,20}\"",
            Just("null".to_owned()),
            Just("[]".to_owned())
        ];
        let quantity = prop_oneof![
            (-2_i64..1_000_002).prop_map(|q| q.to_string()),
            value.clone()
        ];
        let line = (value.clone(), quantity).prop_map(|(product, quantity)| {
            format!(r#"{{"productId":{product},"quantity":{quantity}}}"#)
        });
        let own = (line.clone(), value.clone(), value.clone()).prop_map(|(line, caller, key)| {
            format!(
                r#"{{"id":"01a21584-8706-763e-b5e8-dd1039028028","caller":{caller},"idempotencyKey":{key},"lines":[{line}],"acceptedAt":"2026-11-26T01:42:16Z"}}"#
            )
        });
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            line.clone().prop_map(String::into_bytes),
            own.clone().prop_map(String::into_bytes),
            proptest::collection::vec(own, 0..4).prop_map(|orders| format!(
                r#"{{"orders":[{}]}}"#,
                orders.join(",")
            )
            .into_bytes()),
            (value, proptest::collection::vec(line, 0..3)).prop_map(|(vendor, lines)| {
                format!(r#"{{"vendorId":{vendor},"updates":[{}]}}"#, lines.join(",")).into_bytes()
            }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_in_orders_queue_what_is_taken_is_within_the_limits_and_survives_its_message(
            body in bodies(),
            message_id in proptest::option::of("\\PC{0,300}|m-[0-9]"),
        ) {
            if let Ok(orders) = decode_orders(&body, message_id.as_deref(), now()) {
                prop_assert!((1..=ORDERS_PER_MESSAGE_MAX).contains(&orders.len()));
                for order in orders {
                    prop_assert!(!order.lines.as_slice().is_empty());
                    prop_assert!(order.lines.as_slice().iter().all(|line| line.quantity > 0));
                    let key = order.idempotency_key.as_deref().unwrap_or("-");
                    prop_assert!((1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.chars().count()) && !key.contains('\0'));
                    let again = decode_orders(encode_order(&order).as_bytes(), None, now());
                    prop_assert_eq!(again.ok(), Some(vec![order]));
                }
            }
        }

        #[test]
        fn whatever_is_in_vendor_sync_what_is_taken_survives_its_message(body in bodies()) {
            if let Ok(message) = decode_updates(&body) {
                prop_assert!(!message.updates.is_empty());
                let again = decode_updates(encode_updates(&message).as_bytes());
                prop_assert_eq!(again.ok(), Some(message));
            }
        }
    }
}
