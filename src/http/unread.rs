//! Bodies in chunks that nobody reads to their end. Left to itself, the server waits for the rest of such a body for as long
//! as its client likes, once its reader has gone, and keeps the connection. While there still is a reader when the answer has
//! been sent, it closes the connection instead, within its deadline; so the answer keeps one.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::HttpMessage;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::header::TRANSFER_ENCODING;
use actix_web::web::Bytes;
use futures_util::Stream;

use super::holding::held_by;

/// A body that two may hold: who reads it, and the answer.
#[derive(Clone)]
pub(super) struct Held(Rc<RefCell<Payload>>);

impl Held {
    /// Holds the body of a request, if it comes in chunks. One with a length is none of this file's trouble, and pays
    /// nothing for it.
    pub(super) fn of(request: &mut ServiceRequest) -> Option<Self> {
        if !request.headers().contains_key(TRANSFER_ENCODING) {
            return None;
        }
        let held = Self(Rc::new(RefCell::new(request.take_payload())));
        request.set_payload(Payload::Stream {
            payload: Box::pin(held.clone()),
        });
        Some(held)
    }

    /// Lets an answer hold it, until it has been sent.
    pub(super) fn by(self, answer: ServiceResponse) -> ServiceResponse {
        held_by(self, answer)
    }
}

impl Stream for Held {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(context)
    }
}
