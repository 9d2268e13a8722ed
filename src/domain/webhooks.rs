//! Webhooks: who is told of which events, how each message is signed (Standard Webhooks), where nobody is called, and what
//! becomes of a message that its receiver did not take.

// Addresses are only values there, and there is nothing to connect with.
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::Sha256;
use url::{Host, Url};
use uuid::Uuid;

use super::events::{Event, Filter, Notice, Position, RESET};
use super::ids::{OrderId, WebhookId};
use super::messages::MessageError;
use super::retry::{self, Verdict};

/// Subscriptions of one caller.
pub const OF_CALLER_MAX: i64 = 20;
/// Subscriptions in all: each process that tells them reads all of them every second.
pub const MAX: i64 = 500;
/// The longest address in bytes, as in the schema.
pub const URL_BYTES_MAX: usize = 2048;
/// Random bytes of a secret that is made here.
pub const SECRET_BYTES: usize = 32;
/// Bytes that a secret may have, by the specification.
const SECRET_BYTES_ALLOWED: std::ops::RangeInclusive<usize> = 24..=64;
/// How secrets begin, by the specification.
const SECRET_PREFIX: &str = "whsec_";
/// Most retries of a message: there is a queue for each.
pub const RETRIES_MAX: u32 = 4;
/// Each retry waits so many times as long as the one before.
const DELAY_FACTOR: u32 = 10;

/// The header with the id of a message, the same at every attempt.
pub const HEADER_ID: &str = "webhook-id";
/// The header with the time of the attempt.
pub const HEADER_TIMESTAMP: &str = "webhook-timestamp";
/// The header with the signature.
pub const HEADER_SIGNATURE: &str = "webhook-signature";

/// What signs a subscription's messages. It is not printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Makes one of random bytes.
    #[must_use]
    pub fn new(random: [u8; SECRET_BYTES]) -> Self {
        Self(random.to_vec())
    }

    /// Takes one as it is kept.
    #[must_use]
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Reads one as people have it.
    ///
    /// # Errors
    /// What it must be; the text is not repeated.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.strip_prefix(SECRET_PREFIX)
            .and_then(|encoded| STANDARD.decode(encoded).ok())
            .filter(|bytes| SECRET_BYTES_ALLOWED.contains(&bytes.len()))
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "must be {SECRET_PREFIX} and the base64 of {} to {} random bytes",
                    SECRET_BYTES_ALLOWED.start(),
                    SECRET_BYTES_ALLOWED.end()
                )
            })
    }

    /// As people have it, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{SECRET_PREFIX}{}", STANDARD.encode(&self.0))
    }

    /// Its bytes, to be kept.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value of [`HEADER_SIGNATURE`].
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).map(|mut mac| {
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body.as_bytes());
            STANDARD.encode(mac.finalize().into_bytes())
        });
        // A key of any length will do, so there is always one.
        format!("v1,{}", mac.unwrap_or_default())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a receiver stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = WebhookStatus)]
pub enum Standing {
    /// It is told.
    Active,
    /// It has failed several times in a row, and is tried now and then.
    Failing,
    /// It has answered 410: it is told no more.
    Disabled,
}

/// The namespace of ids derived from an idempotency key. Changing it would make every repeated request a new subscription.
const ID_NAMESPACE: Uuid = Uuid::from_u128(0x0b1e_7a52_63cf_5d19_8f4e_2c95_d0a7_3e61);

/// The id of what `caller` subscribes to with an idempotency key. It says whether the request brought its secret along: of
/// one that is kept nobody could tell any more. Each part goes in with its length before it, so that no two share a name.
#[must_use]
pub fn derive_id(caller: &str, key: &str, has_secret: bool) -> WebhookId {
    let mut name = vec![u8::from(has_secret)];
    for part in [caller, key] {
        name.extend_from_slice(&(part.len() as u64).to_be_bytes());
        name.extend_from_slice(part.as_bytes());
    }
    WebhookId(Uuid::new_v5(&ID_NAMESPACE, &name))
}

/// A subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Its id.
    pub id: WebhookId,
    /// Whose it is; nobody's where it is the configuration's.
    pub caller: Option<String>,
    /// What the configuration calls it.
    pub name: Option<String>,
    /// Where its receiver is.
    pub url: String,
    /// What it hears.
    pub filter: Filter,
    /// What its messages are signed with.
    pub secret: Secret,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was told no more.
    pub disabled_at: Option<DateTime<Utc>>,
    /// Since when it fails.
    pub failing_since: Option<DateTime<Utc>>,
    /// What it failed with last.
    pub last_error: Option<String>,
}

impl Subscription {
    /// Where its receiver stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        if self.disabled_at.is_some() {
            Standing::Disabled
        } else if self.failing_since.is_some() {
            Standing::Failing
        } else {
            Standing::Active
        }
    }
}

/// Checks where a receiver is to be. A host that is a name is judged when it is called: it may mean another address by
/// then.
///
/// # Errors
/// What is wrong with it.
pub fn check_url(text: &str, allow_private: bool) -> Result<(), String> {
    if text.len() > URL_BYTES_MAX {
        return Err(format!(
            "must have at most {URL_BYTES_MAX} bytes, has {}",
            text.len()
        ));
    }
    // The parser would pass over them.
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("must not contain blanks or control characters".to_owned());
    }
    // Written out: the parser would make an address of less.
    if !(text.starts_with("https://") || allow_private && text.starts_with("http://")) {
        return Err("must begin with https://".to_owned());
    }
    let url = Url::parse(text).map_err(|error| format!("must be a URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "must not contain a user or a password; messages are signed instead".to_owned(),
        );
    }
    if url.fragment().is_some() {
        return Err("must not contain a #, which is not sent".to_owned());
    }
    check_host(&url, allow_private)
}

/// Checks the host of an address where it is an IP address itself: no resolver is asked for those.
///
/// # Errors
/// It is one that is not called.
pub fn check_host(url: &Url, allow_private: bool) -> Result<(), String> {
    let address = match url.host() {
        None => return Err("must name a host".to_owned()),
        Some(Host::Domain(_)) => return Ok(()),
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
    };
    if allow_private || is_public(address) {
        return Ok(());
    }
    Err(not_called(address))
}

/// A receiver's address without what is behind its host, which may be a token.
#[must_use]
pub fn without_path(url: &str) -> String {
    let Ok(url) = Url::parse(url) else {
        return "***".to_owned();
    };
    let host = url.origin().ascii_serialization();
    match url.path() == "/" && url.query().is_none() {
        true => host,
        false => format!("{host}/***"),
    }
}

/// What is said of an address that is not public.
#[must_use]
pub fn not_called(address: IpAddr) -> String {
    format!(
        "{address} is a private, local or reserved address, which is not called unless webhooks.allow_private is set"
    )
}

/// Whether an address is one of the public Internet: what is inside a network must not be reached by whoever may name
/// an address here.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match (a, b, c) {
        // This network, private, loopback, multicast, reserved and broadcast.
        (0 | 10 | 127 | 224..=255, _, _) => true,
        // Shared by a carrier's customers.
        (100, 64..=127, _) => true,
        // Link-local, where clouds have what they tell of a machine.
        (169, 254, _) => true,
        (172, 16..=31, _) | (192, 168, _) => true,
        // Protocols, documentation, and the relay of IPv6 that is no more.
        (192, 0, 0 | 2) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99) => true,
        // Measurements of networks.
        (198, 18 | 19, _) => true,
        _ => false,
    };
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4 behind a translator: what is behind it counts.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Protocols (Teredo among them) and documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Loopback, unspecified, unique local, link-local, site-local, multicast, discarded, mapped and compatible IPv4:
        // all that is not global unicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// What one receiver is told of one event.
#[derive(Debug, Clone)]
pub struct Notification {
    /// The same at every attempt, and for whoever sends it again.
    pub id: String,
    /// Whom to tell.
    pub webhook_id: WebhookId,
    /// What to tell, as it is signed and sent.
    pub body: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NotificationMessage {
    webhook_id: WebhookId,
    event: Box<RawValue>,
}

impl Notification {
    /// Of an event.
    ///
    /// # Errors
    /// What is told is no JSON, which is ours to mend.
    pub fn of_event(webhook_id: WebhookId, event: &Event) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id: message_id(webhook_id, event.position, event.kind.as_str()),
            webhook_id,
            body: RawValue::from_string(event.data.clone())?,
        })
    }

    /// That events up to a place are gone.
    ///
    /// # Errors
    /// None that is known.
    pub fn of_reset(webhook_id: WebhookId, until: Position) -> Result<Self, serde_json::Error> {
        let notice = Notice {
            r#type: RESET,
            detail: "events before this were not told in time and are no longer kept; look at the orders and the stock anew",
        };
        Ok(Self {
            id: message_id(webhook_id, until, RESET),
            webhook_id,
            body: serde_json::value::to_raw_value(&notice)?,
        })
    }

    /// As it waits in the queue. The secret and the address are not in it.
    #[must_use]
    pub fn encode(&self) -> String {
        format!(
            r#"{{"webhookId":"{}","event":{}}}"#,
            self.webhook_id,
            self.body.get()
        )
    }

    /// Reads what [`Notification::encode`] has written.
    ///
    /// # Errors
    /// Nothing that could ever be told.
    pub fn decode(body: &[u8], message_id: Option<&str>) -> Result<Self, MessageError> {
        let malformed = |error: String| MessageError::Malformed(error);
        let message: NotificationMessage =
            serde_json::from_slice(body).map_err(|error| malformed(error.to_string()))?;
        let is_sendable =
            |id: &&str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic() && b != b'.');
        let id = message_id.filter(is_sendable).ok_or_else(|| {
            malformed(
                "it needs a message-id of printable ASCII without a dot, as webhook-id".to_owned(),
            )
        })?;
        Ok(Self {
            id: id.to_owned(),
            webhook_id: message.webhook_id,
            body: message.event,
        })
    }

    /// The order that it tells of, if it tells of one.
    #[must_use]
    pub fn order(&self) -> Option<OrderId> {
        #[derive(Deserialize)]
        struct Told {
            order: Option<Order>,
        }
        #[derive(Deserialize)]
        struct Order {
            id: OrderId,
        }
        let told: Told = serde_json::from_str(self.body.get()).ok()?;
        Some(told.order?.id)
    }
}

impl PartialEq for Notification {
    fn eq(&self, other: &Self) -> bool {
        (&self.id, self.webhook_id, self.body.get())
            == (&other.id, other.webhook_id, other.body.get())
    }
}

impl Eq for Notification {}

/// Of an event and a subscription: whoever tells it again, after whatever crash, comes to the same.
fn message_id(webhook_id: WebhookId, position: Position, kind: &str) -> String {
    const NAMESPACE: Uuid = Uuid::from_u128(0x6a0f_4f5c_9c1e_4d57_8d1b_20c7_51a3_e96b);
    let name = format!("{webhook_id}/{position}/{kind}");
    Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string()
}

/// How long the retry of this number waits, from 1 on.
#[must_use]
pub fn delay(first: Duration, retry: u32) -> Duration {
    first.saturating_mul(DELAY_FACTOR.saturating_pow(retry.saturating_sub(1)))
}

/// For how long a message is kept that is put off again and again since its receiver is down: as long as its retries
/// take.
#[must_use]
pub fn patience(first: Duration, retries_max: u32) -> Duration {
    (1..=retries_max).map(|retry| delay(first, retry)).sum()
}

/// The verdict for a message that was not tried, since its receiver is down: it costs no retry, but not for ever.
#[must_use]
pub fn put_off(
    retries_so_far: u32,
    waiting_since: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    patience: Duration,
    error: &str,
) -> Verdict {
    let waited = waiting_since.and_then(|since| (now - since).to_std().ok());
    if waited.is_some_and(|waited| waited > patience) {
        return Verdict::DeadLetter {
            code: retry::RETRIES_EXHAUSTED,
            error: format!("its receiver has been down for as long as all retries take: {error}"),
            cause: Some(retry::RECEIVER_FAILED.to_owned()),
        };
    }
    retry::put_off(retries_so_far)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::events::EventType;

    /// Of the specification's own libraries.
    #[test]
    fn a_message_is_signed_as_the_specification_says() {
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        assert_eq!(
            secret.sign(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                r#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        assert_eq!(secret.reveal(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        assert_eq!(format!("{secret:?}"), "***");
    }

    #[test]
    fn a_secret_has_as_many_bytes_as_the_specification_says() {
        for (bytes, is_one) in [(23, false), (24, true), (64, true), (65, false)] {
            let text = Secret::of_bytes(vec![7; bytes]).reveal();
            assert_eq!(Secret::parse(&text).is_ok(), is_one, "{bytes}");
        }
        for wrong in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_?"] {
            let problem = Secret::parse(wrong).expect_err(wrong);
            assert_eq!(
                problem,
                "must be whsec_ and the base64 of 24 to 64 random bytes"
            );
        }
    }

    #[test]
    fn only_public_addresses_are_called() {
        for (address, expected) in [
            ("93.184.215.14", true),
            ("1.1.1.1", true),
            ("172.32.0.1", true),
            ("100.128.0.1", true),
            ("0.0.0.0", false),
            ("10.1.2.3", false),
            ("100.64.0.1", false),
            ("100.127.255.255", false),
            ("127.0.0.1", false),
            ("127.8.8.8", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.8", false),
            ("192.0.2.1", false),
            ("192.88.99.1", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("198.51.100.1", false),
            ("203.0.113.1", false),
            ("224.0.0.1", false),
            ("239.1.1.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700:4700::1111", true),
            ("2a00:1450:4001:800::200e", true),
            ("::", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("::ffff:1.1.1.1", true),
            ("::127.0.0.1", false),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b::101:101", true),
            ("64:ff9b:1::1", false),
            ("100::1", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("2002:7f00:1::", false),
            ("2002:a00:1::", false),
            ("2002:101:101::", true),
            ("3fff::1", false),
            ("5f00::1", false),
            ("fc00::1", false),
            ("fd12:3456::1", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ] {
            let parsed: IpAddr = address.parse().expect("an address");
            assert_eq!(is_public(parsed), expected, "{address}");
        }
    }

    #[test]
    fn an_address_is_refused_with_what_is_wrong_with_it() {
        let problem = |text: &str| check_url(text, false).err().unwrap_or_default();
        assert_eq!(problem("https://shop.example/hooks?key=1"), "");
        assert_eq!(problem("https://93.184.215.14:8443/"), "");
        let told: Vec<String> = [
            "http://shop.example/",
            "ftp://shop.example/",
            "shop.example",
            "https://",
            "https://user@shop.example/",
            "https://shop.example/#here",
            "https://shop.example/ a",
            "https://127.0.0.1/",
            // As the parser reads them, they are the same.
            "https://0x7f.1/",
            "https://2130706433/",
            "https://[::ffff:7f00:1]/",
            "https://[fe80::1]/",
        ]
        .map(|text| format!("{text}: {}", problem(text)))
        .to_vec();
        insta::assert_snapshot!(told.join("\n"), @"
        http://shop.example/: must begin with https://
        ftp://shop.example/: must begin with https://
        shop.example: must begin with https://
        https://: must be a URL: empty host
        https://user@shop.example/: must not contain a user or a password; messages are signed instead
        https://shop.example/#here: must not contain a #, which is not sent
        https://shop.example/ a: must not contain blanks or control characters
        https://127.0.0.1/: 127.0.0.1 is a private, local or reserved address, which is not called unless webhooks.allow_private is set
        https://0x7f.1/: 127.0.0.1 is a private, local or reserved address, which is not called unless webhooks.allow_private is set
        https://2130706433/: 127.0.0.1 is a private, local or reserved address, which is not called unless webhooks.allow_private is set
        https://[::ffff:7f00:1]/: ::ffff:127.0.0.1 is a private, local or reserved address, which is not called unless webhooks.allow_private is set
        https://[fe80::1]/: fe80::1 is a private, local or reserved address, which is not called unless webhooks.allow_private is set
        ");
        assert!(problem(&format!("https://shop.example/{}", "a".repeat(2048))).contains("2048"));
        assert_eq!(check_url("http://127.0.0.1:1/", true), Ok(()));
        assert!(check_url("ftp://127.0.0.1:1/", true).is_err());
    }

    fn event(row: i64) -> Event {
        Event {
            position: Position {
                xid: 7,
                row,
                index: 0,
            },
            kind: EventType::StockChanged,
            owner: None,
            products: Vec::new(),
            data: r#"{"type":"stock.changed", "available":1.50}"#.to_owned(),
        }
    }

    #[test]
    fn a_message_keeps_its_id_and_its_bytes_on_its_way() {
        let id = WebhookId(Uuid::from_u128(1));
        let told = Notification::of_event(id, &event(1)).expect("JSON");
        let again = Notification::of_event(id, &event(1)).expect("JSON");
        assert_eq!(told, again);
        let read = Notification::decode(told.encode().as_bytes(), Some(&told.id)).expect("ours");
        assert_eq!(read, told);
        assert_eq!(read.body.get(), event(1).data);
        let other = Notification::of_event(WebhookId(Uuid::from_u128(2)), &event(1));
        assert_ne!(other.expect("JSON").id, told.id);
        assert_ne!(
            Notification::of_event(id, &event(2)).expect("JSON").id,
            told.id
        );
        let reset = Notification::of_reset(id, event(1).position).expect("JSON");
        assert_ne!(reset.id, told.id);
        assert!(reset.body.get().starts_with(r#"{"type":"reset","#));
        for id in [None, Some(""), Some("a.b"), Some("a b")] {
            assert!(Notification::decode(told.encode().as_bytes(), id).is_err());
        }
    }

    #[test]
    fn delays_grow_and_a_message_that_waits_for_its_receiver_is_not_kept_for_ever() {
        let first = Duration::from_secs(5);
        let delays: Vec<u64> = (1..=4).map(|n| delay(first, n).as_secs()).collect();
        assert_eq!(delays, [5, 50, 500, 5000]);
        let patience = patience(first, 4);
        assert_eq!(patience.as_secs(), 5555);
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let since = |seconds: i64| Some(now - chrono::TimeDelta::seconds(seconds));
        let again = Verdict::Retry { retry_count: 2 };
        assert_eq!(put_off(2, None, now, patience, "down"), again);
        assert_eq!(put_off(2, since(5555), now, patience, "down"), again);
        assert_eq!(put_off(2, since(-9), now, patience, "down"), again);
        let Verdict::DeadLetter { code, error, .. } =
            put_off(2, since(5556), now, patience, "refused")
        else {
            unreachable!("it waited for long");
        };
        assert_eq!(code, retry::RETRIES_EXHAUSTED);
        assert!(error.ends_with(": refused"), "{error}");
    }

    proptest! {
        #[test]
        fn whatever_the_text_a_secret_that_is_taken_is_given_back_as_it_was(
            text in "\\PC{0,60}|whsec_[A-Za-z0-9+/]{28,92}={0,3}|(whsec_){0,2}[A-Za-z0-9+/_-]{0,90}",
        ) {
            match Secret::parse(&text) {
                Ok(secret) => {
                    prop_assert_eq!(secret.reveal(), text);
                    prop_assert!(SECRET_BYTES_ALLOWED.contains(&secret.as_bytes().len()));
                }
                Err(problem) => {
                    // The text is what nobody may see.
                    prop_assert_eq!(problem, "must be whsec_ and the base64 of 24 to 64 random bytes");
                }
            }
        }

        #[test]
        fn whatever_is_in_the_queue_what_is_taken_survives_its_message(
            body in "\\PC{0,40}|\\{\"webhookId\":\"[0-9a-f-]{36}\",\"event\":(\\{\\}|[0-9]{1,3}|\"[a-z]{0,3}\")\\}",
            id in proptest::option::of("\\PC{0,9}"),
        ) {
            if let Ok(told) = Notification::decode(body.as_bytes(), id.as_deref()) {
                prop_assert_eq!(&Notification::decode(told.encode().as_bytes(), Some(&told.id)).ok(), &Some(told));
            }
        }

        #[test]
        fn no_text_breaks_the_check_of_an_address(text in "\\PC{0,60}|https?://[\\[\\]0-9a-fx.:@#/]{0,30}") {
            if check_url(&text, false).is_ok() {
                prop_assert!(text.to_ascii_lowercase().starts_with("https:"));
            }
        }

        #[test]
        fn what_carries_an_address_of_ipv4_is_as_public_as_that(bits: u32) {
            let inner = Ipv4Addr::from(bits);
            let mapped = IpAddr::V6(inner.to_ipv6_mapped());
            prop_assert_eq!(is_public(mapped), is_public(IpAddr::V4(inner)));
            let [a, b] = [(bits >> 16) as u16, bits as u16];
            for carried in [Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b), Ipv6Addr::new(0x2002, a, b, 0, 0, 0, 0, 1)] {
                prop_assert_eq!(is_public(IpAddr::V6(carried)), is_public(IpAddr::V4(inner)));
            }
        }
    }
}
