//! Answers that hold something until they have been sent, or their connection is gone.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::web::Bytes;

/// Lets an answer hold something.
pub(super) fn held_by<T: Unpin + 'static>(held: T, answer: ServiceResponse) -> ServiceResponse {
    answer.map_body(|_, body| BoxBody::new(Holding { body, held }))
}

/// The body of such an answer.
struct Holding<T> {
    body: BoxBody,
    #[expect(dead_code, reason = "it is enough that it is there")]
    held: T,
}

impl<T: Unpin> MessageBody for Holding<T> {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}
