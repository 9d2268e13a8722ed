//! Reads section by section: which keys there are, of what type, and what a value has to fulfil.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use super::layers::{Key, VENDORS, WEBHOOKS};
use super::reader::{Reader, quoted};
use super::{
    Catalogue, Config, Database, Events, Http, Log, Metrics, Orders, QueueType, RabbitMq, Secret,
    SecretUrl, Sync, TableName, Telemetry, TlsFiles, Vendor, VendorSync, Webhook, Webhooks, Work,
    limits,
};
use crate::limit::{Limit, Rate, RateLimits, Rates};
use crate::telemetry;

/// Reads everything before it gives up, so that all problems are told at once.
pub(super) fn config(reader: &mut Reader) -> Option<Config> {
    let http = http(reader);
    let database = database(reader);
    let rabbitmq = rabbitmq(reader);
    let orders = orders(reader);
    let vendor_sync = vendor_sync(reader);
    let work = work(reader);
    let events = events(reader);
    let webhooks = webhooks(reader);
    let sync = sync(reader);
    let metrics = metrics(reader);
    let telemetry = telemetry_of(reader);
    let vendors = vendors(reader);
    let log = log(reader);
    Some(Config {
        http: http?,
        database: database?,
        rabbitmq: rabbitmq?,
        orders: orders?,
        vendor_sync: vendor_sync?,
        work: work?,
        events: events?,
        webhooks: webhooks?,
        sync: sync?,
        metrics: metrics?,
        telemetry: telemetry?,
        vendors: vendors?,
        log: log?,
    })
}

fn http(reader: &mut Reader) -> Option<Http> {
    let require_keys = reader.boolean_or(&Key::fixed("http.require_keys"), false);
    let listen = reader.text(&Key::fixed("http.listen"), |text| {
        listen_address(text, require_keys == Some(true))
    });
    let shutdown_deadline = reader.milliseconds(
        &Key::fixed("http.shutdown_deadline_ms"),
        limits::SHUTDOWN_DEADLINE_MS,
    );
    let cors_origins = reader.texts_or_none(&Key::fixed("http.cors_origins"), origin);
    let hosts = reader.texts_or_none(&Key::fixed("http.hosts"), host);
    let rates = rates(reader);
    let connections_max = reader.number(&Key::fixed("http.connections_max"), limits::CONNECTIONS);
    let tls = tls(reader);
    Some(Http {
        listen: listen?,
        shutdown_deadline: shutdown_deadline?,
        cors_origins: cors_origins?,
        hosts: hosts?,
        require_keys: require_keys?,
        rates: RateLimits::new(rates?),
        connections_max: connections_max?,
        tls: tls?,
    })
}

fn tls(reader: &mut Reader) -> Option<Option<TlsFiles>> {
    let keys = [
        Key::fixed("http.tls_certificate"),
        Key::fixed("http.tls_key"),
    ];
    let [certificate, key] = keys
        .each_ref()
        .map(|key| reader.text_or(key, None, |text| path(text).map(Some)));
    let files = match (certificate?, key?) {
        (None, None) => return Some(None),
        (Some(certificate), Some(key)) => return Some(Some(TlsFiles { certificate, key })),
        (None, Some(_)) => &keys,
        (Some(_), None) => &[keys[1].clone(), keys[0].clone()],
    };
    let [missing, given] = files;
    reader.note(missing, None, format!("{given} is set; set both, or none"));
    None
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("it must be the path of a file".to_owned());
    }
    Ok(PathBuf::from(text))
}

fn rates(reader: &mut Reader) -> Option<Rates> {
    let key = Key::fixed("http.rate_limit_per_second");
    let per_second = reader.number_if_any(&key, limits::RATE_PER_SECOND);
    let burst_key = Key::fixed("http.rate_limit_burst");
    let burst = reader.number_if_any(&burst_key, limits::RATE_BURST);
    let overrides = reader.texts_or_none(&Key::fixed("http.rate_limit_overrides"), rate_of_caller);
    let (per_second, burst) = (per_second?, burst?);
    if per_second.is_none() && burst.is_some() {
        reader.note(
            &burst_key,
            None,
            format!("a burst alone is no limit; set {key} too"),
        );
        return None;
    }
    let mut of_caller = BTreeMap::new();
    for (name, rate) in overrides? {
        if of_caller.insert(name.clone(), rate).is_some() {
            reader.note(
                &Key::fixed("http.rate_limit_overrides"),
                None,
                format!("it names {name} twice"),
            );
            return None;
        }
    }
    let of_each = per_second.and_then(|per_second| rate(per_second, burst.unwrap_or(per_second)));
    Some(Rates { of_each, of_caller })
}

fn rate(per_second: u32, burst: u32) -> Option<Rate> {
    Some(Rate {
        per_second: NonZeroU32::new(per_second)?,
        burst: NonZeroU32::new(burst)?,
    })
}

/// A caller's own rate: `webshop=500/1000`.
fn rate_of_caller(text: &str) -> Result<(String, Rate), String> {
    let parsed = || {
        let (name, rates) = text.split_once('=')?;
        let (per_second, burst) = rates.split_once('/').unwrap_or((rates, rates));
        let per_second: u32 = per_second.trim().parse().ok()?;
        let burst: u32 = burst.trim().parse().ok()?;
        let is_allowed =
            limits::RATE_PER_SECOND.contains(&per_second) && limits::RATE_BURST.contains(&burst);
        let rate = rate(per_second, burst).filter(|_| is_allowed && !name.trim().is_empty())?;
        Some((name.trim().to_owned(), rate))
    };
    let (name, rate) = parsed().ok_or_else(|| {
        format!(
            "it must be a caller's name, how much it may ask for in a second ({} to {}) and at once ({} to {}), such as \
             webshop=500/1000, not {}",
            limits::RATE_PER_SECOND.start(),
            limits::RATE_PER_SECOND.end(),
            limits::RATE_BURST.start(),
            limits::RATE_BURST.end(),
            quoted(text)
        )
    })?;
    Ok((name, rate))
}

fn database(reader: &mut Reader) -> Option<Database> {
    let url = reader.text(&Key::fixed("database.url"), SecretUrl::postgres);
    let pool_size = reader.number(&Key::fixed("database.pool_size"), limits::POOL_SIZE);
    let connect_timeout = reader.milliseconds(
        &Key::fixed("database.connect_timeout_ms"),
        limits::CONNECT_TIMEOUT_MS,
    );
    let statement_timeout = reader.milliseconds(
        &Key::fixed("database.statement_timeout_ms"),
        limits::STATEMENT_TIMEOUT_MS,
    );
    Some(Database {
        url: url?,
        pool_size: pool_size?,
        connect_timeout: connect_timeout?,
        statement_timeout: statement_timeout?,
    })
}

fn rabbitmq(reader: &mut Reader) -> Option<RabbitMq> {
    let urls = reader.texts(&Key::fixed("rabbitmq.url"), SecretUrl::amqp);
    let queue_prefix = reader.text(&Key::fixed("rabbitmq.queue_prefix"), queue_prefix);
    let queue_type = reader.text(&Key::fixed("rabbitmq.queue_type"), |text| match text {
        "quorum" => Ok(QueueType::Quorum),
        "classic" => Ok(QueueType::Classic),
        other => Err(format!(
            "it must be quorum or classic, not {}",
            quoted(other)
        )),
    });
    Some(RabbitMq {
        urls: urls?,
        queue_prefix: queue_prefix?,
        queue_type: queue_type?,
    })
}

fn orders(reader: &mut Reader) -> Option<Orders> {
    let retries_max = reader.number(&Key::fixed("orders.retries_max"), limits::RETRIES);
    let retry_delay =
        reader.milliseconds(&Key::fixed("orders.retry_delay_ms"), limits::RETRY_DELAY_MS);
    let batch_max = reader.number(&Key::fixed("orders.batch_max"), limits::ORDER_BATCH);
    let prefetch = reader.number(&Key::fixed("orders.prefetch"), limits::PREFETCH);
    Some(Orders {
        retries_max: retries_max?,
        retry_delay: retry_delay?,
        batch_max: Limit::new(batch_max?),
        prefetch: prefetch?,
    })
}

fn vendor_sync(reader: &mut Reader) -> Option<VendorSync> {
    let retries_max = reader.number(&Key::fixed("vendor_sync.retries_max"), limits::RETRIES);
    let retry_delay = reader.milliseconds(
        &Key::fixed("vendor_sync.retry_delay_ms"),
        limits::RETRY_DELAY_MS,
    );
    let prefetch = reader.number(&Key::fixed("vendor_sync.prefetch"), limits::PREFETCH);
    let timeout = reader.milliseconds(
        &Key::fixed("vendor_sync.timeout_ms"),
        limits::VENDOR_TIMEOUT_MS,
    );
    let updates_per_call_max = reader.number(
        &Key::fixed("vendor_sync.updates_per_call_max"),
        limits::UPDATES_PER_CALL,
    );
    Some(VendorSync {
        retries_max: retries_max?,
        retry_delay: retry_delay?,
        prefetch: prefetch?,
        timeout: timeout?,
        updates_per_call_max: Limit::new(updates_per_call_max?),
    })
}

fn work(reader: &mut Reader) -> Option<Work> {
    let stalled_after = reader.milliseconds(
        &Key::fixed("work.stalled_after_ms"),
        limits::STALLED_AFTER_MS,
    );
    Some(Work {
        stalled_after: stalled_after?,
    })
}

fn events(reader: &mut Reader) -> Option<Events> {
    let kept_for = reader.milliseconds(
        &Key::fixed("events.kept_for_ms"),
        limits::EVENTS_KEPT_FOR_MS,
    );
    Some(Events {
        kept_for: kept_for?,
    })
}

/// The keys of a webhook, in the order in which they are read.
const WEBHOOK_KEYS: [&str; 3] = ["url", "types", "secret"];

fn webhooks(reader: &mut Reader) -> Option<Webhooks> {
    let allow_private = reader.boolean_or(&Key::fixed("webhooks.allow_private"), false);
    let retries_max = reader.number(&Key::fixed("webhooks.retries_max"), limits::WEBHOOK_RETRIES);
    let retry_delay = reader.milliseconds(
        &Key::fixed("webhooks.retry_delay_ms"),
        limits::WEBHOOK_RETRY_DELAY_MS,
    );
    let timeout = reader.milliseconds(
        &Key::fixed("webhooks.timeout_ms"),
        limits::VENDOR_TIMEOUT_MS,
    );
    let prefetch = reader.number(&Key::fixed("webhooks.prefetch"), limits::PREFETCH);
    let calls_max = reader.number(&Key::fixed("webhooks.calls_max"), limits::WEBHOOK_CALLS);
    let of_name = webhooks_of_name(reader);
    Some(Webhooks {
        allow_private: allow_private?,
        retries_max: retries_max?,
        retry_delay: retry_delay?,
        timeout: timeout?,
        prefetch: prefetch?,
        calls_max: calls_max?,
        of_name: of_name?,
    })
}

fn webhooks_of_name(reader: &mut Reader) -> Option<BTreeMap<String, Webhook>> {
    let names = reader.ids_below(WEBHOOKS);
    if names.is_empty() {
        for name in WEBHOOK_KEYS {
            reader.make_known(Key::of_webhook("<name>", name));
        }
    }
    let mut webhooks = Some(BTreeMap::new());
    for (name, origin) in names {
        if let Err(message) = check_vendor_id(&name) {
            let section = Key(vec![WEBHOOKS.to_owned(), name.clone()]);
            let message = message.replace("a vendor's id", "a webhook's name");
            reader.note(&section, Some(origin), message);
        }
        // What they say is checked by who uses them: the rules of webhooks are not the configuration's.
        let url = reader.text(&Key::of_webhook(&name, "url"), Secret::parse_long);
        let types_key = Key::of_webhook(&name, "types");
        let types = reader.texts_if_any(&types_key, |text| Ok(text.to_owned()));
        let secret = reader.text(&Key::of_webhook(&name, "secret"), Secret::parse);
        match (url, types, secret, &mut webhooks) {
            (Some(url), Some(types), Some(secret), Some(webhooks)) => {
                let types = types.unwrap_or_default();
                webhooks.insert(name, Webhook { url, types, secret });
            }
            _ => webhooks = None,
        }
    }
    webhooks
}

fn sync(reader: &mut Reader) -> Option<Sync> {
    let schedule = reader.text(&Key::fixed("sync.schedule"), schedule);
    let chunk_rows = reader.number(&Key::fixed("sync.chunk_rows"), limits::CHUNK_ROWS);
    Some(Sync {
        schedule: schedule?,
        chunk_rows: Limit::new(chunk_rows?),
    })
}

fn metrics(reader: &mut Reader) -> Option<Metrics> {
    let listen = reader.text_or(&Key::fixed("metrics.listen"), None, |text| {
        metrics_address(text).map(Some)
    });
    Some(Metrics { listen: listen? })
}

fn telemetry_of(reader: &mut Reader) -> Option<Telemetry> {
    let otlp_endpoint = reader.text_or(&Key::fixed("telemetry.otlp_endpoint"), None, |text| {
        SecretUrl::http(text).map(Some)
    });
    let sample_ratio = reader.fraction(&Key::fixed("telemetry.sample_ratio"), limits::SAMPLE_RATIO);
    Some(Telemetry {
        otlp_endpoint: otlp_endpoint?,
        sample_ratio: sample_ratio?,
    })
}

/// The keys of a vendor, in the order in which they are read.
const VENDOR_KEYS: [&str; 9] = [
    "database_url",
    "api_url",
    "api_key",
    "api_ca",
    "ledger",
    "table",
    "id_column",
    "name_column",
    "stock_column",
];

fn vendors(reader: &mut Reader) -> Option<BTreeMap<String, Vendor>> {
    let ids = reader.ids_below(VENDORS);
    if ids.is_empty() {
        for name in VENDOR_KEYS {
            reader.make_known(Key::of_vendor("<id>", name));
        }
        let message = "at least one vendor is required; add a section [vendors.<id>] with database_url and api_url";
        reader.note(&Key::fixed(VENDORS), None, message.to_owned());
        return None;
    }
    let mut vendors = Some(BTreeMap::new());
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (id, origin) in ids {
        let section = Key(vec![VENDORS.to_owned(), id.clone()]);
        if let Err(message) = check_vendor_id(&id) {
            reader.note(&section, Some(origin.clone()), message);
        }
        if let Some(other) = seen.insert(id.to_lowercase(), id.clone()) {
            let message = format!("it differs from {VENDORS}.{other} in case only; rename one");
            reader.note(&section, Some(origin), message);
        }
        match (vendor(reader, &id), &mut vendors) {
            (Some(vendor), Some(vendors)) => {
                vendors.insert(id, vendor);
            }
            _ => vendors = None,
        }
    }
    vendors
}

fn vendor(reader: &mut Reader, id: &str) -> Option<Vendor> {
    let database_url = reader.text(&Key::of_vendor(id, "database_url"), SecretUrl::postgres);
    let api_url = reader.text(&Key::of_vendor(id, "api_url"), SecretUrl::http);
    let api_key = reader.text_or(&Key::of_vendor(id, "api_key"), None, |text| {
        Secret::parse(text).map(Some)
    });
    let api_ca = reader.text_or(&Key::of_vendor(id, "api_ca"), None, |text| {
        path(text).map(Some)
    });
    let ledger = reader.boolean_or(&Key::of_vendor(id, "ledger"), true);
    let catalogue = catalogue(reader, id, ledger == Some(true));
    Some(Vendor {
        database_url: database_url?,
        api_url: api_url?,
        api_key: api_key?,
        api_ca: api_ca?,
        ledger: ledger?,
        catalogue: catalogue?,
    })
}

fn catalogue(reader: &mut Reader, id: &str, has_ledger: bool) -> Option<Catalogue> {
    let default = TableName {
        schema: None,
        table: "products".to_owned(),
    };
    let table = reader.text_or(&Key::of_vendor(id, "table"), default.clone(), |text| {
        let table = table_name(text)?;
        only_without_ledger(id, has_ledger && table != default)?;
        Ok(table)
    });
    let mut column = |name, default: &str| {
        reader.text_or(&Key::of_vendor(id, name), default.to_owned(), |text| {
            identifier(text)?;
            only_without_ledger(id, has_ledger && text != default)?;
            Ok(text.to_owned())
        })
    };
    let id_column = column("id_column", "id");
    let name_column = column("name_column", "name");
    let stock_column = column("stock_column", "stock");
    Some(Catalogue {
        table: table?,
        id_column: id_column?,
        name_column: name_column?,
        stock_column: stock_column?,
    })
}

/// With a ledger the tables are ours: `migrate --vendors` makes them, and the vendor's API of `serve` writes them.
fn only_without_ledger(id: &str, is_violated: bool) -> Result<(), String> {
    if is_violated {
        return Err(format!(
            "a vendor with a ledger has its products where `stockctl migrate --vendors` puts them, in the table products \
             (id, name, stock); set {VENDORS}.{id}.ledger = false, or make products a view of the other table"
        ));
    }
    Ok(())
}

fn log(reader: &mut Reader) -> Option<Log> {
    let format = reader.text(&Key::fixed("log.format"), |text| match text {
        "auto" => Ok(telemetry::Format::Auto),
        "text" => Ok(telemetry::Format::Text),
        "json" => Ok(telemetry::Format::Json),
        other => Err(format!(
            "it must be auto, text or json, not {}",
            quoted(other)
        )),
    });
    let level = reader.text(
        &Key::fixed("log.level"),
        |text| match telemetry::parse_level(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(error.to_string()),
        },
    );
    Some(Log {
        format: format?,
        level: level?,
    })
}

fn listen_address(text: &str, require_keys: bool) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!(
            "it must be an IP address and a port such as 127.0.0.1:8080, not {}",
            quoted(text)
        )
    })?;
    if !require_keys {
        super::reachable_from_here_only(address)?;
    }
    Ok(address)
}

fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!(
            "it must be an IP address and a port such as 127.0.0.1:9464, not {}",
            quoted(text)
        )
    })?;
    if !address.ip().to_canonical().is_loopback() {
        return Err(format!(
            "{address} can be reached from other machines, and no API key is asked for there; only loopback addresses such as \
             127.0.0.1:9464 are possible, with an agent or a proxy on this machine"
        ));
    }
    Ok(address)
}

/// An origin as browsers send it, so that it can be compared as it is.
fn origin(text: &str) -> Result<String, String> {
    let wrong = || {
        format!(
            "it must be an origin as browsers send it, such as https://shop.example or http://localhost:3000: lower case, \
             without a path, and never *, since whoever reaches the API may order; it is {}",
            quoted(text)
        )
    };
    let url = url::Url::parse(text).map_err(|_| wrong())?;
    let is_web = ["http", "https"].contains(&url.scheme());
    if !is_web || url.origin().ascii_serialization() != text {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

/// A name or an address as browsers send it, so that it can be compared as it is.
fn host(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-[:]".contains(c);
    let host = url::Host::parse(text)
        .ok()
        .filter(|host| text.chars().all(is_name) && host.to_string() == text);
    host.map(|host| host.to_string()).ok_or_else(|| {
        format!(
            "it must be the name or the address of a host, such as shop.internal: lower case, without a port, and never *, \
             since whoever reaches the API may order; it is {}",
            quoted(text)
        )
    })
}

fn queue_prefix(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !text.chars().all(is_allowed) || !limits::QUEUE_PREFIX_LENGTH.contains(&text.len()) {
        return Err(format!(
            "it may have at most {} characters, of A-Z a-z 0-9 . _ - only; it is {}",
            limits::QUEUE_PREFIX_LENGTH.end(),
            quoted(text)
        ));
    }
    Ok(text.to_owned())
}

fn schedule(text: &str) -> Result<cron::Schedule, String> {
    let schedule: cron::Schedule = text.parse().map_err(|error: cron::error::Error| {
        // The crate draws the expression with a caret below it; the reason, where there is one, comes last.
        let drawing = error.to_string();
        let reason = drawing.lines().last().unwrap_or_default().trim();
        let reason = match reason {
            "" | "^" => String::new(),
            reason => format!(": {reason}"),
        };
        format!(
            "{} is not a cron expression of six fields, the seconds first, such as \"*/30 * * * * *\"{reason}",
            quoted(text)
        )
    })?;
    if schedule.upcoming(chrono::Utc).next().is_none() {
        return Err(format!(
            "{} never comes due, so no vendor would ever be synced",
            quoted(text)
        ));
    }
    Ok(schedule)
}

fn table_name(text: &str) -> Result<TableName, String> {
    let name = match text.split_once('.') {
        None => TableName {
            schema: None,
            table: text.to_owned(),
        },
        Some((schema, table)) if !table.contains('.') => TableName {
            schema: Some(schema.to_owned()),
            table: table.to_owned(),
        },
        Some(_) => {
            return Err(format!(
                "it must be a table or schema.table, not {}: the database is that of database_url",
                quoted(text)
            ));
        }
    };
    name.schema
        .iter()
        .try_for_each(|schema| identifier(schema))?;
    identifier(&name.table)?;
    Ok(name)
}

fn identifier(name: &str) -> Result<(), String> {
    if limits::IDENTIFIER_BYTES.contains(&name.len()) && !name.contains('\0') {
        return Ok(());
    }
    Err(format!(
        "a name in PostgreSQL has {} to {} bytes, and no U+0000; {} has {}",
        limits::IDENTIFIER_BYTES.start(),
        limits::IDENTIFIER_BYTES.end(),
        quoted(name),
        name.len()
    ))
}

fn check_vendor_id(id: &str) -> Result<(), String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if id.chars().all(is_allowed) && limits::VENDOR_ID_LENGTH.contains(&id.len()) {
        return Ok(());
    }
    Err(format!(
        "a vendor's id has {} to {} characters, of A-Z a-z 0-9 _ - only",
        limits::VENDOR_ID_LENGTH.start(),
        limits::VENDOR_ID_LENGTH.end()
    ))
}
