//! The time that the head of a request may take. The server itself sees to the first head of a connection, and lets every
//! later one come as slowly as its client likes.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, MessageBody};
use actix_web::dev::ServiceResponse;
use tokio::time::{Instant, Sleep, sleep_until};

use super::SEND_DEADLINE;
use super::holding::held_by;

/// What a connection and its requests know of each other. Clones are of one connection.
#[derive(Clone, Default)]
pub(super) struct Heads(Rc<Shared>);

#[derive(Default)]
struct Shared {
    /// Heads that have come whole.
    come: Cell<u64>,
    /// Requests that are being answered.
    answering: Cell<u32>,
}

impl Heads {
    /// A head has come whole.
    pub(super) fn came(&self) {
        self.0.come.set(self.0.come.get() + 1);
    }

    /// A head has come whole, and its request is answered until this is dropped.
    pub(super) fn answering(&self) -> Answering {
        self.came();
        self.0.answering.set(self.0.answering.get() + 1);
        Answering(self.clone())
    }
}

/// A request that is being answered.
pub(super) struct Answering(Heads);

impl Answering {
    /// Lets an answer that takes its time be answered until it has ended. Others are made whole, and only have to be sent.
    pub(super) fn until_the_end_of(self, answer: ServiceResponse) -> ServiceResponse {
        match answer.response().body().size() {
            BodySize::None | BodySize::Sized(_) => answer,
            BodySize::Stream => held_by(self, answer),
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let answering = &self.0.0.answering;
        answering.set(answering.get().saturating_sub(1));
    }
}

/// Until when the head that is coming has to be there.
#[derive(Default)]
pub(super) struct Deadline {
    heads: Heads,
    /// Heads that had come at the last look.
    seen: u64,
    until: Option<Instant>,
    /// Set anew when it is over and no sooner: a timer for each request would cost more than all the rest of this.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Whose heads these are.
    pub(super) fn heads(&self) -> &Heads {
        &self.heads
    }

    /// Bytes have come: unless somebody is answered meanwhile, and they are of a body, a head begins.
    pub(super) fn bytes_came(&mut self) {
        self.look();
        if self.heads.0.answering.get() == 0 && self.until.is_none() {
            self.until = Some(Instant::now() + SEND_DEADLINE);
        }
    }

    /// Whether the head that has begun should have come whole by now.
    pub(super) fn poll_passed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.look();
        let Some(until) = self.until else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        loop {
            ready!(sleep.as_mut().poll(context));
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
        }
    }

    fn look(&mut self) {
        let come = self.heads.0.come.get();
        if self.seen != come || self.heads.0.answering.get() > 0 {
            self.seen = come;
            self.until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    async fn passes(deadline: &mut Deadline, within: Duration) -> bool {
        let passed = poll_fn(|context| deadline.poll_passed(context));
        tokio::time::timeout(within, passed).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn each_head_has_its_time_from_its_first_byte_on() {
        let mut deadline = Deadline::default();
        let long = Duration::from_secs(3600);
        assert!(!passes(&mut deadline, long).await, "nothing has come");
        for _ in 0..3 {
            let begun = Instant::now();
            deadline.bytes_came();
            assert!(!passes(&mut deadline, SEND_DEADLINE / 2).await);
            deadline.bytes_came();
            assert!(passes(&mut deadline, long).await);
            assert_eq!(begun.elapsed(), SEND_DEADLINE);
            // Had it come whole just then, there would be no more to wait for.
            deadline.heads().came();
            assert!(!passes(&mut deadline, long).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_while_a_request_is_answered_is_no_head() {
        let mut deadline = Deadline::default();
        let long = Duration::from_secs(3600);
        deadline.bytes_came();
        let answering = deadline.heads().answering();
        deadline.bytes_came();
        assert!(!passes(&mut deadline, long).await);
        drop(answering);
        assert!(!passes(&mut deadline, long).await, "it came before");
        deadline.bytes_came();
        assert!(passes(&mut deadline, long).await);
    }
}
