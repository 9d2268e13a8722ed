//! `stockctl work`: the consumers.

use tokio::task::{JoinError, JoinSet};

use super::{
    EXIT_BUG, Failure, broker_settings, context_for_batches, wait_for_schema, watch_queues,
    webhooks,
};
use crate::app::relay::{self, Relay};
use crate::config::Config;
use crate::consumers::push_states::PushStates;
use crate::consumers::vendor_sync::Limits;
use crate::consumers::watchdog::Watchdog;
use crate::consumers::{Door, orders, vendor_sync};
use crate::mq::{Consumer, Publisher, Pulse, Queue, Settings};
use crate::shutdown::Shutdown;
use crate::supervisor::Supervisor;

/// A queue that can be worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WorkQueue {
    /// `orders_queue`: decide orders.
    Orders,
    /// `vendor_sync`: tell the vendors.
    VendorSync,
    /// `webhooks`: tell receivers what happens.
    Webhooks,
}

/// Consumes the given queues, or all, until the shutdown.
///
/// # Errors
/// See [`Failure`].
pub async fn run(
    config: &Config,
    queues: &[WorkQueue],
    shutdown: Shutdown,
    supervisor: &Supervisor,
) -> Result<(), Failure> {
    let configured = webhooks::configured(config)?;
    let context = context_for_batches(config)?;
    let gauges = super::metrics::gauges(config, &context)?;
    // To the end: also while what is in hand is finished.
    let _metrics = super::metrics::listen(config, &gauges)?;
    supervisor.ready("starting");
    if !wait_for_schema(config, &shutdown, supervisor).await {
        return Ok(());
    }
    let broker = broker_settings(config);
    let publisher = Publisher::start(broker.clone(), "work");
    let (relay, publishing) = Relay::new(context.clone(), publisher.clone());
    let mut publishing = tokio::spawn(publishing.run());
    let mut sweeping = tokio::spawn(relay::sweep_until_stopped(
        context.clone(),
        publisher.clone(),
        relay.clone(),
        config.events.kept_for,
        shutdown.clone(),
        supervisor.clone(),
    ));
    let door = |retries_max| Door {
        context: context.clone(),
        publisher: publisher.clone(),
        relay: relay.clone(),
        retries_max,
        shutdown: shutdown.clone(),
    };
    let works_on = |queue| queues.is_empty() || queues.contains(&queue);
    let deadline = config.http.shutdown_deadline;
    let mut consumers = JoinSet::new();
    let mut pulses = Vec::new();
    if works_on(WorkQueue::Orders) {
        let consumer = Consumer::start(broker.clone(), Queue::Orders, config.orders.prefetch);
        pulses.push((Queue::Orders, consumer.pulse()));
        consumers.spawn(orders::run_until_stopped(
            door(config.orders.retries_max),
            consumer,
            config.orders.batch_max.clone(),
            deadline,
        ));
    }
    if works_on(WorkQueue::VendorSync) {
        let door = door(config.vendor_sync.retries_max);
        let consumer = work_on_vendor_sync(config, broker, door, &mut consumers);
        pulses.push((Queue::VendorSync, consumer));
    }
    let mut hooks: JoinSet<Result<(), Failure>> = JoinSet::new();
    let works_on_webhooks = works_on(WorkQueue::Webhooks);
    if works_on_webhooks {
        let parts = webhooks::Parts {
            config: config.clone(),
            context: context.clone(),
            configured,
            relay: relay.clone(),
            shutdown: shutdown.clone(),
            supervisor: supervisor.clone(),
        };
        hooks.spawn(parts.run_until_stopped());
    }
    say_what_is_worked_on(&pulses, works_on_webhooks, supervisor);
    let watchdog = Watchdog::new(
        context.clone(),
        publisher.clone(),
        pulses,
        config.work.stalled_after,
    );
    let mut watching = tokio::spawn({
        let (shutdown, supervisor) = (shutdown.clone(), supervisor.clone());
        async move { watchdog.run_until_stopped(shutdown, &supervisor).await }
    });

    let mut result = tokio::select! {
        // First, since the others end by it too.
        biased;
        () = shutdown.begun() => Ok(()),
        failure = watch_queues(publisher.link()) => Err(failure),
        _ = &mut publishing => Err(Failure::bug("the part that publishes ended by itself")),
        _ = &mut sweeping => Err(Failure::bug("the sweeper ended by itself")),
        ended = &mut watching => Err(match ended {
            Ok(Err(stalled)) => Failure::new(EXIT_BUG, stalled.to_string()),
            Ok(Ok(())) | Err(_) => Failure::bug("the watchdog ended by itself"),
        }),
        // A loop ends before the shutdown only by a panic, and a process that no longer consumes must not look alive.
        Some(_) = consumers.join_next() => Err(Failure::bug("a consumer ended by itself")),
        Some(ended) = hooks.join_next() => Err(of_webhooks(ended)),
    };
    if result.is_err() {
        shutdown.begin();
        return result;
    }
    result = result.and(all_ended(&mut consumers, &mut hooks).await);
    let _ = sweeping.await;
    let _ = watching.await;
    drop(relay);
    if tokio::time::timeout(deadline, publishing).await.is_err() {
        tracing::warn!("not all was published within the deadline; the next process publishes it");
    }
    publisher.close(deadline).await;
    result
}

fn say_what_is_worked_on(pulses: &[(Queue, Pulse)], webhooks: bool, supervisor: &Supervisor) {
    let webhooks = webhooks.then_some(Queue::Webhooks);
    let queues = pulses.iter().map(|(queue, _)| *queue).chain(webhooks);
    let queues: Vec<&str> = queues.map(Queue::base_name).collect();
    let queues = queues.join(", ");
    tracing::info!(queues, "working");
    supervisor.status(&format!("working on {queues}"));
}

/// Starts what tells the vendors.
fn work_on_vendor_sync(
    config: &Config,
    broker: Settings,
    door: Door,
    consumers: &mut JoinSet<()>,
) -> Pulse {
    let prefetch = vendor_sync::prefetch(config.vendor_sync.prefetch, door.context.vendors.len());
    let consumer = Consumer::start(broker, Queue::VendorSync, prefetch);
    let pulse = consumer.pulse();
    let states = PushStates::default();
    consumers.spawn(
        states
            .clone()
            .write_until_stopped(door.context.clone(), door.shutdown.clone()),
    );
    let limits = Limits {
        prefetch,
        updates_per_call_max: config.vendor_sync.updates_per_call_max.clone(),
        shutdown_deadline: config.http.shutdown_deadline,
    };
    consumers.spawn(vendor_sync::run_until_stopped(
        door, consumer, states, limits,
    ));
    pulse
}

/// Why the part that tells receivers has ended before the shutdown.
fn of_webhooks(ended: Result<Result<(), Failure>, JoinError>) -> Failure {
    match ended {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) | Err(_) => {
            Failure::bug("the part that tells receivers of webhooks ended by itself")
        }
    }
}

/// Waits until the consumers have finished what they had in hand.
async fn all_ended(
    consumers: &mut JoinSet<()>,
    hooks: &mut JoinSet<Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut result = Ok(());
    while let Some(ended) = consumers.join_next().await {
        result = result.and(ended.map_err(Failure::bug));
    }
    while let Some(ended) = hooks.join_next().await {
        result = result.and(ended.map_err(Failure::bug).flatten());
    }
    result
}
