//! Messages as this product sees them, and their translation to and from amiquip's types.

use std::collections::BTreeMap;

use amiquip::{AmqpProperties, AmqpValue, FieldTable};

use super::queues::Queue;

/// Headers of a message, or arguments of a queue.
pub type Headers = BTreeMap<String, HeaderValue>;

/// The kinds of header values that this product writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeaderValue {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
}

/// A message to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Where it goes.
    pub queue: Queue,
    /// The id by which consumers, and a return from the broker, know it.
    pub message_id: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body, JSON.
    pub body: Vec<u8>,
}

/// The handle by which a delivery is acknowledged: good only on the channel that brought it.
/// The default is good nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tag {
    pub(super) epoch: u64,
    pub(super) number: u64,
}

/// A message that the broker handed us and waits to see acknowledged.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// What to acknowledge it with.
    pub tag: Tag,
    /// The id that its producer gave it.
    pub message_id: Option<String>,
    /// Its headers, the broker's own among them; values of kinds we do not write are text or left out.
    pub headers: Headers,
    /// Its body.
    pub body: Vec<u8>,
    /// How often it was delivered before without being acknowledged. A classic queue does not count;
    /// there this is 1 for a redelivered message.
    pub redeliveries: u32,
}

/// AMQP short strings (a message id, a header's name) carry their length in one byte, and amiquip would
/// cut the length, not the text, which corrupts the frame.
const SHORT_STRING_MAX_BYTES: usize = 255;

/// Properties travel in a single frame, which RabbitMQ limits to 128 KiB by default and answers by closing
/// the connection; amiquip does not check. Half of it leaves room for a broker that was set lower.
const HEADERS_MAX_BYTES: usize = 64 << 10;

/// Far above any real message, and below RabbitMQ's own limit of 128 MiB. It bounds what one message can
/// add to the buffer of unsent bytes.
pub(super) const BODY_MAX_BYTES: usize = 16 << 20;

impl Message {
    /// Why the message can never be published, if it cannot.
    pub(super) fn problem(&self) -> Option<String> {
        let headers_bytes: usize = self
            .headers
            .iter()
            .map(|(name, value)| {
                name.len()
                    + match value {
                        HeaderValue::Text(text) => text.len(),
                        HeaderValue::Int(_) => 8,
                    }
            })
            .sum();
        if self.message_id.len() > SHORT_STRING_MAX_BYTES {
            Some(format!(
                "its id has {} bytes, and AMQP allows {SHORT_STRING_MAX_BYTES}",
                self.message_id.len()
            ))
        } else if let Some(name) = self
            .headers
            .keys()
            .find(|name| name.len() > SHORT_STRING_MAX_BYTES)
        {
            Some(format!(
                "the name of a header has {} bytes, and AMQP allows {SHORT_STRING_MAX_BYTES}",
                name.len()
            ))
        } else if headers_bytes > HEADERS_MAX_BYTES {
            Some(format!(
                "its headers have {headers_bytes} bytes, and the limit is {HEADERS_MAX_BYTES}"
            ))
        } else if self.body.len() > BODY_MAX_BYTES {
            Some(format!(
                "its body has {} bytes, and the limit is {BODY_MAX_BYTES}",
                self.body.len()
            ))
        } else {
            None
        }
    }

    /// Roughly what the message takes in the outgoing buffer.
    pub(super) fn wire_bytes(&self) -> usize {
        const FRAMES_AND_NAMES_BYTES: usize = 256;
        let headers: usize = self.headers.keys().map(|name| name.len() + 16).sum();
        self.body.len() + headers + FRAMES_AND_NAMES_BYTES
    }
}

/// Properties of a message that survives a restart of the broker.
pub(super) fn properties(message_id: &str, headers: &Headers) -> AmqpProperties {
    const PERSISTENT: u8 = 2;
    AmqpProperties::default()
        .with_content_type("application/json".to_owned())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(message_id.to_owned())
        .with_headers(table(headers))
}

/// Whole numbers always travel as 64 bits, so that a queue declared again is declared the same.
pub(super) fn table(headers: &Headers) -> FieldTable {
    headers
        .iter()
        .map(|(name, value)| {
            let value = match value {
                HeaderValue::Text(text) => AmqpValue::LongString(text.clone()),
                HeaderValue::Int(number) => AmqpValue::LongLongInt(*number),
            };
            (name.clone(), value)
        })
        .collect()
}

/// Takes body and properties out of amiquip's delivery, which stays behind as the handle to acknowledge.
pub(super) fn received(delivery: &mut amiquip::Delivery, epoch: u64) -> Delivery {
    let properties = std::mem::take(&mut delivery.properties);
    let headers = properties
        .headers()
        .as_ref()
        .map(read_headers)
        .unwrap_or_default();
    Delivery {
        tag: Tag {
            epoch,
            number: delivery.delivery_tag(),
        },
        message_id: properties.message_id().clone(),
        redeliveries: redeliveries(delivery.redelivered, &headers),
        headers,
        body: std::mem::take(&mut delivery.body),
    }
}

/// A producer may send a delivery count of its own, so the header counts only where the broker itself
/// says that the message was delivered before.
fn redeliveries(was_delivered: bool, headers: &Headers) -> u32 {
    match (was_delivered, headers.get("x-delivery-count")) {
        (false, _) => 0,
        (true, Some(HeaderValue::Int(count))) => u32::try_from(*count).unwrap_or(u32::MAX).max(1),
        (true, _) => 1,
    }
}

fn read_headers(table: &FieldTable) -> Headers {
    table
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), read_value(value)?)))
        .collect()
}

/// Other producers may use any type. What has a plain reading gets it; nested values have none here.
fn read_value(value: &AmqpValue) -> Option<HeaderValue> {
    use HeaderValue::{Int, Text};
    match value {
        AmqpValue::Boolean(value) => Some(Text(value.to_string())),
        AmqpValue::ShortShortInt(value) => Some(Int((*value).into())),
        AmqpValue::ShortShortUInt(value) => Some(Int((*value).into())),
        AmqpValue::ShortInt(value) => Some(Int((*value).into())),
        AmqpValue::ShortUInt(value) => Some(Int((*value).into())),
        AmqpValue::LongInt(value) => Some(Int((*value).into())),
        AmqpValue::LongUInt(value) => Some(Int((*value).into())),
        AmqpValue::LongLongInt(value) => Some(Int(*value)),
        AmqpValue::Float(value) => Some(Text(value.to_string())),
        AmqpValue::Double(value) => Some(Text(value.to_string())),
        AmqpValue::LongString(value) => Some(Text(value.clone())),
        AmqpValue::Timestamp(value) => {
            Some(i64::try_from(*value).map_or_else(|_| Text(value.to_string()), Int))
        }
        AmqpValue::ByteArray(bytes) => Some(Text(String::from_utf8_lossy(bytes).into_owned())),
        AmqpValue::DecimalValue(_)
        | AmqpValue::FieldArray(_)
        | AmqpValue::FieldTable(_)
        | AmqpValue::Void => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_corrupt_a_frame_is_never_published() {
        let good = Message {
            queue: Queue::Orders,
            message_id: "m".repeat(255),
            headers: Headers::from([("n".repeat(255), HeaderValue::Int(1))]),
            body: Vec::new(),
        };
        assert_eq!(good.problem(), None);
        let bad = [
            Message {
                message_id: "m".repeat(256),
                ..good.clone()
            },
            Message {
                headers: Headers::from([("n".repeat(256), HeaderValue::Int(1))]),
                ..good.clone()
            },
            Message {
                headers: Headers::from([(
                    "error".to_owned(),
                    HeaderValue::Text("e".repeat(70_000)),
                )]),
                ..good.clone()
            },
            Message {
                body: vec![0; BODY_MAX_BYTES + 1],
                ..good.clone()
            },
        ];
        for message in bad {
            assert!(message.problem().is_some());
        }
    }

    #[test]
    fn foreign_header_types_are_read_leniently() {
        let table = FieldTable::from([
            ("int".to_owned(), AmqpValue::LongInt(-3)),
            ("flag".to_owned(), AmqpValue::Boolean(true)),
            ("list".to_owned(), AmqpValue::FieldArray(Vec::new())),
            ("time".to_owned(), AmqpValue::Timestamp(7)),
        ]);
        let expected = Headers::from([
            ("int".to_owned(), HeaderValue::Int(-3)),
            ("flag".to_owned(), HeaderValue::Text("true".to_owned())),
            ("time".to_owned(), HeaderValue::Int(7)),
        ]);
        assert_eq!(read_headers(&table), expected);
    }

    /// Headers of every type, nested as deep as RabbitMQ's own `x-death` and deeper.
    fn foreign_values() -> impl Strategy<Value = AmqpValue> {
        let plain = prop_oneof![
            any::<bool>().prop_map(AmqpValue::Boolean),
            any::<i8>().prop_map(AmqpValue::ShortShortInt),
            any::<u16>().prop_map(AmqpValue::ShortUInt),
            any::<u32>().prop_map(AmqpValue::LongUInt),
            any::<i64>().prop_map(AmqpValue::LongLongInt),
            any::<u64>().prop_map(AmqpValue::Timestamp),
            any::<f32>().prop_map(AmqpValue::Float),
            any::<f64>().prop_map(AmqpValue::Double),
            "\\PC{0,9}|-?[0-9]{1,20}".prop_map(AmqpValue::LongString),
            proptest::collection::vec(any::<u8>(), 0..9).prop_map(AmqpValue::ByteArray),
            Just(AmqpValue::Void),
        ];
        plain.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(AmqpValue::FieldArray),
                proptest::collection::btree_map("x-death|[a-z]{0,3}", inner, 0..3)
                    .prop_map(AmqpValue::FieldTable),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_headers_a_message_has_they_are_read_and_no_name_is_made_up(
            table in proptest::collection::btree_map("x-(death|delivery-count)|[a-z]{0,5}", foreign_values(), 0..5),
            was_delivered: bool,
        ) {
            let headers = read_headers(&table);
            for (name, value) in &table {
                let is_nested = matches!(value, AmqpValue::FieldArray(_) | AmqpValue::FieldTable(_) | AmqpValue::Void);
                prop_assert_eq!(headers.contains_key(name), !is_nested, "{}", name);
            }
            prop_assert!(headers.keys().all(|name| table.contains_key(name)));
            prop_assert_eq!(redeliveries(was_delivered, &headers) > 0, was_delivered);
        }

        #[test]
        fn what_is_written_is_read_as_it_was(
            texts in proptest::collection::btree_map("[a-z-]{0,9}", "\\PC{0,20}".prop_map(HeaderValue::Text), 0..4),
            numbers in proptest::collection::btree_map("[A-Z]{1,9}", any::<i64>().prop_map(HeaderValue::Int), 0..4),
        ) {
            let headers: Headers = texts.into_iter().chain(numbers).collect();
            prop_assert_eq!(read_headers(&super::table(&headers)), headers);
        }
    }
}
