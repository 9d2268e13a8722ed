//! The part of `stockctl work` that tells receivers of webhooks. As long as nobody subscribes it asks once a second whether
//! somebody does, and nothing else: no connection to the broker, no queues, no look at the events.

use std::time::Duration;

use chrono::Utc;
use tokio::task::JoinSet;

use super::{EXIT_BUG, EXIT_CONFIGURATION, Failure, broker_settings, watch_queues};
use crate::app::Context;
use crate::app::relay::Relay;
use crate::app::webhooks::{self, Feeder, Roster, Teller};
use crate::config::Config;
use crate::consumers::Door;
use crate::consumers::watchdog::Watchdog;
use crate::consumers::webhooks::{self as consumer, Limits, Notes};
use crate::domain::webhooks::{Subscription, patience};
use crate::mq::{self, Consumer, Publisher, Queue};
use crate::receivers::Client;
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;

/// What cannot be written is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The subscriptions of the configuration.
///
/// # Errors
/// One will not do.
pub(super) fn configured(config: &Config) -> Result<Vec<Subscription>, Failure> {
    let all = config.webhooks.of_name.iter().map(|(name, webhook)| {
        webhooks::configured(
            name,
            webhook.url.expose(),
            &webhook.types,
            webhook.secret.expose(),
            config.webhooks.allow_private,
            Utc::now(),
        )
    });
    all.collect::<Result<_, String>>().map_err(|problem| {
        let text = format!("the configuration will not do:\n  {problem}");
        Failure::new(EXIT_CONFIGURATION, text)
    })
}

/// What the part works with.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) context: Context,
    /// Those of the configuration.
    pub(super) configured: Vec<Subscription>,
    pub(super) relay: Relay,
    pub(super) shutdown: Shutdown,
    pub(super) supervisor: Supervisor,
}

impl Parts {
    /// Tells receivers until the shutdown.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(super) async fn run_until_stopped(self) -> Result<(), Failure> {
        let shutdown = self.shutdown.clone();
        let roster = Roster::default();
        let mut tasks = JoinSet::new();
        tokio::select! {
            () = shutdown.begun() => return Ok(()),
            () = self.configure() => {}
        }
        tasks.spawn(
            roster
                .clone()
                .look_until_stopped(self.context.clone(), shutdown.clone()),
        );
        tokio::select! {
            () = shutdown.begun() => return Ok(()),
            () = roster.somebody() => {}
        }
        tracing::info!("somebody subscribes to webhooks");
        let broker = mq::Settings {
            with_webhooks: true,
            ..broker_settings(&self.config)
        };
        let publisher = Publisher::start(broker.clone(), "work-webhooks");
        self.tell(&broker, &publisher, &roster, &mut tasks).await?;
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(Failure::bug)?;
        }
        publisher.close(self.config.http.shutdown_deadline).await;
        Ok(())
    }

    /// Writes the subscriptions of the configuration, once our database takes them.
    async fn configure(&self) {
        let mut is_said = false;
        while let Err(error) = webhooks::configure(&self.context, &self.configured).await {
            if !is_said {
                tracing::warn!(%error, "the webhooks of the configuration cannot be written yet; trying again");
                is_said = true;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Starts what tells, and waits for the shutdown.
    async fn tell(
        &self,
        broker: &mq::Settings,
        publisher: &Publisher,
        roster: &Roster,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), Failure> {
        let (config, shutdown) = (&self.config.webhooks, &self.shutdown);
        let consumer = Consumer::start(broker.clone(), Queue::Webhooks, config.prefetch);
        let watchdog = Watchdog::new(
            self.context.clone(),
            publisher.clone(),
            vec![(Queue::Webhooks, consumer.pulse())],
            self.config.work.stalled_after,
        );
        let feeder = Feeder::new(self.context.clone(), publisher.clone(), roster.clone());
        let feeding = self
            .supervisor
            .part("what feeds webhooks", Feeder::SILENCE_MAX);
        tasks.spawn(feeder.run_until_stopped(shutdown.clone(), move || feeding.moved()));
        let notes = Notes::default();
        tasks.spawn(
            notes
                .clone()
                .write_until_stopped(self.context.clone(), shutdown.clone()),
        );
        let client = Client::new(config.allow_private, config.timeout);
        let teller = Teller::new(self.context.clone(), roster.clone(), client);
        let door = Door {
            context: self.context.clone(),
            publisher: publisher.clone(),
            relay: self.relay.clone(),
            retries_max: config.retries_max,
            shutdown: shutdown.clone(),
        };
        let limits = Limits {
            prefetch: config.prefetch,
            calls_max: config.calls_max,
            patience: patience(config.retry_delay, config.retries_max),
            shutdown_deadline: self.config.http.shutdown_deadline,
        };
        tasks.spawn(consumer::run_until_stopped(
            door, consumer, teller, notes, limits,
        ));
        tokio::select! {
            // First, since the others end by it too.
            biased;
            () = shutdown.begun() => Ok(()),
            failure = watch_queues(publisher.link()) => Err(failure),
            ended = watchdog.run_until_stopped(shutdown.clone(), &self.supervisor) => match ended {
                Ok(()) => Ok(()),
                Err(stalled) => Err(Failure::new(EXIT_BUG, stalled.to_string())),
            },
            _ = tasks.join_next() => Err(Failure::bug("a part that tells receivers of webhooks ended by itself")),
        }
    }
}
