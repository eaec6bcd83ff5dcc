//! In which way the clients of a run reach the proxy: `TEAL_TEST_OVER` runs tests of plain HTTP/1.1 inside TLS or over
//! HTTP/2, with something between the clients and the listener that translates.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::OnceLock;

use teal::config::Listener;
use tokio::runtime::{Builder, Runtime};

use super::bridge::Bridge;
use super::tls::{self, Forwarder};

const VARIABLE: &str = "TEAL_TEST_OVER";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    PlainText,
    Tls,
    Http2,
}

/// What this run is asked for.
pub fn asked_for() -> Over {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) => Over::PlainText,
        Ok("tls") => Over::Tls,
        Ok("h2") => Over::Http2,
        Ok(other) => panic!("{VARIABLE} is {other:?}, not tls or h2"),
    }
}

/// Whether a test is passed over in this run, because it is about `what`, which HTTP/2 does not have.
pub fn is_passed_over(what: &str) -> bool {
    let is_passed_over = asked_for() == Over::Http2;
    if is_passed_over {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Not by `println`, which is shown of tests that fail only.
        let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {what}");
    }
    is_passed_over
}

/// What stands between the clients and a listener, until it is dropped.
pub enum Front {
    Tls(Forwarder),
    Http2(Bridge),
}

impl Front {
    /// `None`: the clients reach this listener, which is at `address`, as they are.
    pub fn of(listener: &Listener, address: SocketAddr, runtime: &Runtime) -> Option<Front> {
        let is_http2 = asked_for() == Over::Http2 && listener.http2;
        match &listener.tls {
            Some(tls) => tls::is_sample(tls).then(|| Front::Tls(Forwarder::start(address, tls, runtime))),
            None => is_http2.then(|| Front::Http2(Bridge::start(address, runtime))),
        }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        match self {
            Front::Tls(forwarder) => forwarder.address,
            Front::Http2(bridge) => bridge.address,
        }
    }
}

/// A thread of its own, so that a test that blocks its runtime is not in its own way.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(one_thread)
}

/// Another such thread, for a client that is not to wait for what stands before the others. It stays until the end.
pub fn another_runtime() -> &'static Runtime {
    Box::leak(Box::new(one_thread()))
}

fn one_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}
