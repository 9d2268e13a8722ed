//! What breaks: each kind of fault, how it is brought about and mended again, and how long everything takes to be at
//! work afterwards.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::load::client;
use crate::proxy::{Proxy, Weather};
use crate::stage::{ORDERS, PROBE, Stage};

/// Longer than two heartbeats of 10 s, after which both sides of a broker's connection give the other up.
const LONGER_THAN_HEARTBEATS: Duration = Duration::from_secs(23);
/// A network that is slow, not broken.
const SLOW: Duration = Duration::from_millis(150);
/// Everything that has to come back has deadlines and pauses of seconds. What had been handed to a process that died, or
/// lost its connection, is handled one message at a time afterwards, which takes a busy machine a minute.
const RECOVERS_WITHIN: Duration = Duration::from_secs(240);
/// Between two looks at whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    KillProcess,
    EndProcess,
    PauseProcess,
    StopBroker,
    KillBroker,
    StopPostgres,
    KillPostgres,
    StopBoth,
    KillBoth,
    CutBroker,
    SlowBroker,
    FreezeBroker,
    CutPostgres,
    SlowPostgres,
    FreezePostgres,
    BrokerAlarm,
    VendorErrors,
    VendorHangs,
    VendorAnswersLost,
    VendorDatabaseAway,
    WorkersKilledWithoutPostgres,
    BrokerFrozenWithoutPostgres,
}

impl Kind {
    pub(crate) const ALL: [Kind; 22] = [
        Self::KillProcess,
        Self::EndProcess,
        Self::PauseProcess,
        Self::StopBroker,
        Self::KillBroker,
        Self::StopPostgres,
        Self::KillPostgres,
        Self::StopBoth,
        Self::KillBoth,
        Self::CutBroker,
        Self::SlowBroker,
        Self::FreezeBroker,
        Self::CutPostgres,
        Self::SlowPostgres,
        Self::FreezePostgres,
        Self::BrokerAlarm,
        Self::VendorErrors,
        Self::VendorHangs,
        Self::VendorAnswersLost,
        Self::VendorDatabaseAway,
        Self::WorkersKilledWithoutPostgres,
        Self::BrokerFrozenWithoutPostgres,
    ];

    /// Its name, for the report and for `CHAOS_KINDS`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KillProcess => "kill-process",
            Self::EndProcess => "end-process",
            Self::PauseProcess => "pause-process",
            Self::StopBroker => "stop-broker",
            Self::KillBroker => "kill-broker",
            Self::StopPostgres => "stop-postgres",
            Self::KillPostgres => "kill-postgres",
            Self::StopBoth => "stop-both",
            Self::KillBoth => "kill-both",
            Self::CutBroker => "cut-broker",
            Self::SlowBroker => "slow-broker",
            Self::FreezeBroker => "freeze-broker",
            Self::CutPostgres => "cut-postgres",
            Self::SlowPostgres => "slow-postgres",
            Self::FreezePostgres => "freeze-postgres",
            Self::BrokerAlarm => "broker-alarm",
            Self::VendorErrors => "vendor-errors",
            Self::VendorHangs => "vendor-hangs",
            Self::VendorAnswersLost => "vendor-answers-lost",
            Self::VendorDatabaseAway => "vendor-database-away",
            Self::WorkersKilledWithoutPostgres => "workers-killed-without-postgres",
            Self::BrokerFrozenWithoutPostgres => "broker-frozen-without-postgres",
        }
    }

    /// Whether exactly one store is down meanwhile: orders have to be accepted all the same.
    pub(crate) fn takes_one_store(self) -> bool {
        matches!(
            self,
            Self::StopBroker
                | Self::KillBroker
                | Self::StopPostgres
                | Self::KillPostgres
                | Self::CutBroker
                | Self::FreezeBroker
                | Self::CutPostgres
                | Self::FreezePostgres
                | Self::BrokerAlarm
        )
    }
}

/// The order in which faults come: all kinds are drawn before one is drawn again.
pub(crate) struct Deck {
    kinds: Vec<Kind>,
    left: Vec<Kind>,
}

impl Deck {
    pub(crate) fn of(kinds: &[Kind]) -> Self {
        Self {
            kinds: kinds.to_vec(),
            left: Vec::new(),
        }
    }

    pub(crate) fn draw(&mut self, random: &mut fastrand::Rng) -> Kind {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
            random.shuffle(&mut self.left);
        }
        self.left.pop().expect("a kind at least")
    }
}

/// A fault that happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Happened {
    pub(crate) kind: Kind,
    pub(crate) from: Instant,
    pub(crate) until: Instant,
    /// From its end until an order went all the way again.
    pub(crate) recovered_in: Duration,
}

impl Stage {
    /// Lets one fault happen, mends it, and waits until everything is at work again.
    pub(crate) async fn suffer(
        &mut self,
        kind: Kind,
        random: &mut fastrand::Rng,
    ) -> anyhow::Result<Happened> {
        let hold = Duration::from_millis(random.u64(1000..4000));
        let victim = random.usize(..self.parts.len());
        let after = random.bool();
        let whom = match kind {
            Kind::KillProcess | Kind::EndProcess | Kind::PauseProcess => self.parts[victim].name,
            _ => "",
        };
        self.findings.tell(&format!("{} {whom}", kind.name()));
        let from = Instant::now();
        match kind {
            Kind::KillProcess => self.parts[victim].kill().await,
            Kind::EndProcess => self.parts[victim].terminate().await,
            Kind::PauseProcess => {
                self.parts[victim].pause();
                tokio::time::sleep(LONGER_THAN_HEARTBEATS).await;
                self.parts[victim].resume();
            }
            Kind::StopBroker | Kind::KillBroker => self.lose_broker(kind, hold).await?,
            Kind::StopPostgres | Kind::KillPostgres => self.lose_postgres(kind, hold).await?,
            Kind::StopBoth | Kind::KillBoth => self.lose_both(kind, hold).await?,
            Kind::BrokerAlarm => self.alarm(hold).await?,
            Kind::WorkersKilledWithoutPostgres => self.lose_workers_without_postgres(hold).await,
            Kind::BrokerFrozenWithoutPostgres => self.lose_both_in_turn(hold).await,
            _ => self.bad_weather(kind, hold, after).await,
        }
        let until = Instant::now();
        let recovered_in = self.recover(kind).await?;
        Ok(Happened {
            kind,
            from,
            until,
            recovered_in,
        })
    }

    async fn lose_broker(&mut self, kind: Kind, hold: Duration) -> anyhow::Result<()> {
        match kind {
            Kind::StopBroker => self.servers.stop_rabbitmq().await?,
            _ => self.servers.kill_rabbitmq().await?,
        }
        tokio::time::sleep(hold).await;
        Ok(self.servers.start_rabbitmq().await?)
    }

    async fn lose_postgres(&mut self, kind: Kind, hold: Duration) -> anyhow::Result<()> {
        match kind {
            Kind::StopPostgres => self.servers.stop_postgres().await?,
            _ => self.servers.kill_postgres().await?,
        }
        tokio::time::sleep(hold).await;
        Ok(self.servers.start_postgres().await?)
    }

    async fn lose_both(&mut self, kind: Kind, hold: Duration) -> anyhow::Result<()> {
        if kind == Kind::StopBoth {
            self.servers.stop().await?;
        } else {
            self.servers.kill_postgres().await?;
            self.servers.kill_rabbitmq().await?;
        }
        tokio::time::sleep(hold).await;
        self.servers.start_rabbitmq().await?;
        Ok(self.servers.start_postgres().await?)
    }

    /// The broker blocks whoever publishes, and still delivers.
    async fn alarm(&mut self, hold: Duration) -> anyhow::Result<()> {
        let watermark = |to: &'static str| ["set_vm_memory_high_watermark", to];
        self.servers.rabbitmqctl(&watermark("0")).await?;
        tokio::time::sleep(hold).await;
        self.servers.rabbitmqctl(&watermark("0.4")).await?;
        Ok(())
    }

    /// Orders that only the broker has are with the workers when these die.
    async fn lose_workers_without_postgres(&mut self, hold: Duration) {
        self.network.database.set(Weather::Cut);
        tokio::time::sleep(hold).await;
        for name in ["orders-1", "orders-2"] {
            self.part(name).kill().await;
        }
        self.network.database.set(Weather::Fair);
    }

    /// Orders go through the broker, whose connections then swallow what is sent, and break.
    async fn lose_both_in_turn(&mut self, hold: Duration) {
        self.network.database.set(Weather::Cut);
        tokio::time::sleep(hold).await;
        self.network.broker.set(Weather::Frozen);
        tokio::time::sleep(hold).await;
        self.network.broker.break_connections().await;
        self.network.database.set(Weather::Fair);
    }

    /// What a proxy does.
    async fn bad_weather(&self, kind: Kind, hold: Duration, breaks_after: bool) {
        let network = &self.network;
        let (proxy, weather): (&Proxy, Weather) = match kind {
            Kind::CutBroker => (&network.broker, Weather::Cut),
            Kind::SlowBroker => (&network.broker, Weather::Slow(SLOW)),
            Kind::FreezeBroker => (&network.broker, Weather::Frozen),
            Kind::CutPostgres => (&network.database, Weather::Cut),
            Kind::SlowPostgres => (&network.database, Weather::Slow(SLOW)),
            Kind::FreezePostgres => (&network.database, Weather::Frozen),
            Kind::VendorErrors => (&network.vendor_api, Weather::Errors),
            Kind::VendorHangs => (&network.vendor_api, Weather::Frozen),
            Kind::VendorAnswersLost => (&network.vendor_api, Weather::AnswersLost),
            _ => (&network.vendor_database, Weather::Cut),
        };
        proxy.set(weather);
        tokio::time::sleep(hold).await;
        // What was frozen arrives late, or never.
        if weather == Weather::Frozen && breaks_after {
            proxy.break_connections().await;
        } else {
            proxy.set(Weather::Fair);
        }
    }

    /// Waits until each door has both stores, and an order goes all the way through it.
    async fn recover(&self, kind: Kind) -> anyhow::Result<Duration> {
        let since = Instant::now();
        let http = client();
        for api in self.addresses.api.clone() {
            while let Err(problem) = self.goes_all_the_way(&http, &api, since).await {
                if since.elapsed() > RECOVERS_WITHIN {
                    self.findings.violation(format!(
                        "not at work again {RECOVERS_WITHIN:?} after {}: {problem:#}",
                        kind.name()
                    ));
                    break;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(since.elapsed())
    }

    async fn goes_all_the_way(
        &self,
        http: &reqwest::Client,
        api: &str,
        since: Instant,
    ) -> anyhow::Result<()> {
        let ready: Value = http
            .get(format!("http://{api}/readyz"))
            .send()
            .await?
            .json()
            .await?;
        anyhow::ensure!(
            ready["postgresql"] == "up" && ready["rabbitmq"] == "up",
            "a door says {ready}"
        );
        let answer: Value = http
            .post(format!("http://{api}/orders"))
            .json(&json!({"productId": PROBE, "quantity": 1}))
            .send()
            .await?
            .json()
            .await?;
        let id = answer["id"]
            .as_str()
            .with_context(|| format!("an order was answered {answer}"))?;
        let database = self.addresses.connect(ORDERS).await?;
        let mut seen = String::new();
        while since.elapsed() <= RECOVERS_WITHIN {
            let row = database
                .query_opt(
                    "SELECT o.status, coalesce(u.state, 'none') FROM orders o
                     LEFT JOIN stock_updates u ON u.order_id = o.id WHERE o.id = $1::text::uuid",
                    &[&id],
                )
                .await?;
            let row: Option<(String, String)> = row.map(|row| (row.get(0), row.get(1)));
            match row {
                Some((_, state)) if state == "acknowledged" || state == "applied" => return Ok(()),
                other => seen = format!("{other:?}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        anyhow::bail!("order {id} came as far as {seen}")
    }
}
