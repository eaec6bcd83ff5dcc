//! The admin API: status, switches, receipts and metrics over HTTP/1.1, on a TCP or a unix socket.
//!
//! It stands beside the path: it reads snapshots and sends commands, and however slow or many its clients are, no
//! request ever waits for one. Connections, bodies, waits and time are bounded. Whoever can reach it can switch, so a
//! request passes the `gate` first. Every refusal is a problem document (RFC 9457); `openapi` describes all of it.

mod act;
mod app;
mod connection;
mod extract;
mod gate;
mod metrics;
mod openapi;
mod probe;
mod problem;
mod socket;
pub mod status;
mod view;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::{MethodRouter, get, post};
use axum::{Router, middleware};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Address};
use crate::state::State;

use app::App;
use gate::Access;
use problem::Problem;
use socket::{Accepted, Acceptor, Socket};

pub use socket::BindError;

/// What runs: the version of the package, and the commit if the build was told.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const COMMIT: &str = match option_env!("TEAL_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Connections at the same time; further ones wait.
const CONNECTIONS: usize = 256;
/// Pause after an accept that failed for want of something.
const BACK_OFF: Duration = Duration::from_millis(100);
/// How long answers under way may take when the API stops.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// The admin API, bound to its address.
#[derive(Debug)]
pub struct Admin {
    socket: Socket,
    config: config::Admin,
}

impl Admin {
    /// Binds the address. A socket file that a dead process left is replaced.
    ///
    /// # Errors
    /// When the address cannot be had; in use names the process that has it, if that can be found out.
    pub fn bind(config: &config::Admin) -> Result<Admin, BindError> {
        Ok(Admin { socket: Socket::bind(&config.listen)?, config: config.clone() })
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn address(&self) -> &Address {
        &self.socket.address
    }

    /// Serves until `shutdown` resolves and the answers under way are sent, or two seconds later. A request that waits
    /// for a drain is answered then. Dropping the future ends everything at once; a switch that was begun goes on.
    pub async fn serve(self, state: Arc<State>, shutdown: impl Future<Output = ()>) {
        let access = Access::new(&self.config, self.socket.address.clone());
        let stop = CancellationToken::new();
        let router = router(App::new(state, access, stop.clone()));
        let acceptor = match self.socket.into_acceptor() {
            Ok(acceptor) => acceptor,
            Err(error) => return tracing::error!(%error, "the admin API cannot be served"),
        };
        let mut connections = JoinSet::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut door = Door { acceptor, admitted: self.config.access.clone(), places, is_failing: false };
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                ((stream, local), place) = door.open() => {
                    let serving = connection::serve(stream, local, router.clone(), stop.clone());
                    connections.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
        drop(door);
        stop.cancel();
        let _ = timeout(LAST_ANSWERS, async { while connections.join_next().await.is_some() {} }).await;
    }
}

/// Where connections come in, one for each place that is free.
struct Door {
    acceptor: Acceptor,
    /// Whoever is not is not even listened to.
    admitted: config::Access,
    places: Arc<Semaphore>,
    is_failing: bool,
}

/// `None` on a unix socket.
fn peer((stream, _): &Accepted) -> Option<IpAddr> {
    match stream {
        Either::Left(stream) => stream.peer_addr().ok().map(|peer| peer.ip()),
        Either::Right(_) => None,
    }
}

impl Door {
    /// The next connection. Cancel-safe.
    async fn open(&mut self) -> (Accepted, OwnedSemaphorePermit) {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.acceptor.accept().await {
                Ok(accepted) => {
                    self.is_failing = false;
                    if self.admitted.admits(peer(&accepted)) {
                        return (accepted, place);
                    }
                }
                Err(error) => self.back_off(&error).await,
            }
        }
    }

    /// A connection that was reset before it was accepted is nothing; anything else is likely to happen again at once.
    async fn back_off(&mut self, error: &io::Error) {
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        if !self.is_failing {
            tracing::error!(%error, "the admin API cannot accept");
        }
        self.is_failing = true;
        sleep(BACK_OFF).await;
    }
}

/// Every path there is. The description of the API has the same; a test compares them.
fn routes() -> [(&'static str, MethodRouter<App>); 10] {
    [
        ("/livez", get(probe::livez)),
        ("/readyz", get(probe::readyz)),
        ("/metrics", get(metrics::metrics)),
        ("/v1/status", get(status::whole)),
        ("/v1/services/{service}", get(status::one)),
        ("/v1/services/{service}/drain", get(act::drain)),
        ("/v1/services/{service}/rollback", post(act::rollback)),
        ("/v1/switch", post(act::switch)),
        ("/v1/receipts/{id}", get(act::receipt)),
        ("/v1/openapi.json", get(openapi::document)),
    ]
}

fn router(app: App) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| router.route(path, methods))
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .fallback(async || Problem::not_found())
        .layer(middleware::from_fn_with_state(app.clone(), gate::pass))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use utoipa::OpenApi;

    use super::*;

    #[test]
    fn the_description_has_every_path_and_no_other() {
        let served: BTreeSet<&str> = routes().iter().map(|(path, _)| *path).collect();
        let document = openapi::Document::openapi();
        let described: BTreeSet<&str> = document.paths.paths.keys().map(String::as_str).collect();
        assert_eq!(served, described);
    }
}
