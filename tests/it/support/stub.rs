//! A server of a test's own, which plays somebody that the program calls.

use std::net::TcpListener;

use actix_web::dev::ServerHandle;
use actix_web::web::ServiceConfig;
use actix_web::{App, HttpServer};

/// A server, until this is dropped.
pub(crate) struct Stub(ServerHandle);

impl Stub {
    /// Serves on a listener.
    pub(crate) fn serve(
        listener: TcpListener,
        services: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
    ) -> Self {
        let server = HttpServer::new(move || App::new().configure(services.clone()))
            .workers(1)
            .disable_signals()
            .listen(listener)
            .expect("bound before")
            .run();
        let handle = server.handle();
        tokio::spawn(server);
        Self(handle)
    }

    /// Stops it, and waits until it has.
    pub(crate) async fn stop(&self) {
        self.0.stop(false).await;
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        // The server has got the word when this returns; its end needs nobody to wait.
        drop(self.0.stop(false));
    }
}
