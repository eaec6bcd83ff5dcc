//! TLS ends at teal: who gets which certificate, who is let in, and what becomes of those who do not speak it well.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod care;
mod certificates;
mod clients;
mod endings;
mod rotation;

use std::sync::Arc;

use rustls::{ClientConfig, HandshakeKind};
use support::client::{Answer, Client};
use support::origin::{Origin, Requests};
use support::proxy::{Builder, Teal};
use support::scratch;
use support::tls::{self, Authority, BOTH_VERSIONS, Pair, Secured};
use teal::metrics::Handshake;
use tempfile::TempDir;

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// A proxy that speaks TLS, and who signs for it.
pub(crate) struct Site {
    pub(crate) teal: Teal,
    pub(crate) requests: Requests,
    pub(crate) authority: Authority,
    /// Where the certificates are.
    pub(crate) dir: TempDir,
    _origin: Origin,
}

impl Site {
    /// With a certificate for `a.test`; `keys` are more keys of `tls`, and begin with a comma.
    pub(crate) async fn new(keys: &str) -> Site {
        Site::with(Authority::new(), |authority, dir| {
            let pair = authority.issue(&["a.test"]).write(dir.path(), "a");
            format!("tls = {{ certificates = [{pair}] {keys} }}\n")
        })
        .await
    }

    /// `listener` makes the keys of the listener.
    pub(crate) async fn with(authority: Authority, listener: impl FnOnce(&Authority, &TempDir) -> String) -> Site {
        let dir = scratch();
        let (origin, requests) = Origin::recording().await;
        let keys = listener(&authority, &dir);
        let teal = Builder::app(&[&origin]).listener(&keys).start_watching().await;
        Site { teal, requests, authority, dir, _origin: origin }
    }

    /// A client that trusts the authority.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client_with(None)
    }

    /// A client that shows a certificate, if the proxy asks for it.
    pub(crate) fn client_with(&self, own: Option<&Pair>) -> Arc<ClientConfig> {
        Arc::new(tls::client_config(self.authority.roots(), BOTH_VERSIONS, own))
    }

    pub(crate) async fn connect(&self, name: &str, config: &Arc<ClientConfig>) -> Client<Secured> {
        self.try_connect(name, config).await.expect("a handshake")
    }

    pub(crate) async fn try_connect(&self, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<Client<Secured>> {
        support::soon("a handshake", tls::connect(self.teal.listener, name, config)).await
    }

    /// Whether somebody is served, with the kind of the handshake.
    pub(crate) async fn serves(&self, config: &Arc<ClientConfig>) -> Option<HandshakeKind> {
        let mut client = self.try_connect("a.test", config).await.ok()?;
        let answer = try_ask(&mut client, GET).await?;
        (answer.text() == "ok").then(|| client.stream.get_ref().1.handshake_kind().expect("it is over"))
    }

    /// Handshakes of the first listener that have ended so.
    pub(crate) fn handshakes(&self, outcome: Handshake) -> u64 {
        self.teal.state().listeners()[0].1.handshakes(outcome)
    }

    /// Connections of the first listener.
    pub(crate) fn connections(&self) -> i64 {
        self.teal.state().listeners()[0].1.connections.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Changes the config file, and waits until it is in effect.
    pub(crate) async fn edit(&self, change: impl FnOnce(String) -> String) {
        use std::sync::atomic::Ordering::Relaxed;
        let stats = &self.teal.state().stats;
        let before = stats.reloads_applied.load(Relaxed);
        let text = change(std::fs::read_to_string(self.teal.file()).expect("the file is there"));
        std::fs::write(self.teal.file(), text).expect("the test can write");
        support::eventually("the change is in effect", || stats.reloads_applied.load(Relaxed) > before).await;
    }
}

/// The answer, or `None` when the connection does not carry one.
pub(crate) async fn try_ask(client: &mut Client<Secured>, request: &str) -> Option<Answer> {
    use tokio::io::AsyncWriteExt;
    client.stream.write_all(request.as_bytes()).await.ok()?;
    client.try_answer(false).await
}
