//! A real proxy, started in this process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use teal::config::{self, Address, Color};
use teal::run::Proxy;
use teal::state::{Aim, Record, Refusal, State, SwitchRequest, Trigger};
use teal::upstream::Health;
use tempfile::TempDir;

use super::origin::Origin;
use super::over::{self, Front, Over};
use super::{eventually, replace, scratch, tls};

/// What a test configures; starts a [`Teal`].
pub struct Builder {
    top: String,
    listener: String,
    rest: String,
    workers: usize,
}

/// A running proxy and its state directory.
pub struct Teal {
    proxy: Option<Proxy>,
    /// Where clients connect and speak HTTP/1.1 in plain text: in a run over something else that is what translates, else
    /// the listener itself.
    pub address: SocketAddr,
    pub listener: SocketAddr,
    /// What an origin is told that clients speak.
    pub proto: &'static str,
    pub admin: SocketAddr,
    dir: TempDir,
    _front: Option<Front>,
}

impl Builder {
    /// `services` is TOML: `[services.…]` and `[[routes]]` tables.
    pub fn new(services: &str) -> Builder {
        Builder { top: String::new(), listener: String::new(), rest: services.to_owned(), workers: 2 }
    }

    /// A service `app` for every path, whose blue color is `origins`. They are probed once and then trusted for the test.
    pub fn app(origins: &[&Origin]) -> Builder {
        let blue: Vec<String> = origins.iter().map(|origin| origin.toml()).collect();
        Builder::new(&format!(
            "[[routes]]\npath = \"/\"\nservice = \"app\"\n\
             [services.app]\nhealth = {{ interval = \"1h\" }}\nblue = [{}]\n",
            blue.join(", ")
        ))
    }

    /// Keys of the last table; of the service, after [`Builder::app`].
    pub fn service(mut self, keys: &str) -> Builder {
        self.rest += keys;
        self.rest.push('\n');
        self
    }

    /// Keys before the first table.
    pub fn top(mut self, keys: &str) -> Builder {
        self.top += keys;
        self
    }

    /// Keys of the one `[[listeners]]` table.
    pub fn listener(mut self, keys: &str) -> Builder {
        self.listener += keys;
        self
    }

    pub fn workers(mut self, workers: usize) -> Builder {
        self.workers = workers;
        self
    }

    pub fn toml(&self, state_dir: &Path) -> String {
        // What sends clients from plain text to TLS is promised of plain text.
        let is_of_plain_text = ["tls =", "redirect_to_https ="].iter().any(|key| self.listener.contains(key));
        let tls = if over::asked_for() == Over::Tls && !is_of_plain_text { tls::sample_keys() } else { String::new() };
        format!(
            "state_dir = {state_dir:?}\nworkers = {}\n{}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [[listeners]]\nlisten = \"127.0.0.1:0\"\n{tls}{}\n{}\n",
            self.workers, self.top, self.listener, self.rest
        )
    }

    /// Starts the proxy and waits until every endpoint has been probed.
    pub async fn start(self) -> Teal {
        let teal = self.start_unprobed(scratch());
        teal.probed().await;
        teal
    }

    /// Starts the proxy on a state directory that may have been used before.
    pub fn start_unprobed(self, dir: TempDir) -> Teal {
        let config = config::parse(&self.toml(&dir.path().join("state")), Path::new("test.toml"));
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        Teal::of(Proxy::start(config).expect("the proxy starts"), dir)
    }

    /// Starts a proxy that follows `teal.toml` in its directory.
    pub async fn start_watching(self) -> Teal {
        let dir = scratch();
        self.write(dir.path());
        Teal::watching(dir).await
    }

    /// Writes `teal.toml` in `dir`, where the state will be, too.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("teal.toml");
        replace(&path, self.toml(&dir.join("state")));
        path
    }
}

impl Teal {
    /// Starts a proxy that follows the `teal.toml` that is in `dir` already.
    pub async fn watching(dir: TempDir) -> Teal {
        let proxy = Proxy::start_watching(&dir.path().join("teal.toml")).expect("the proxy starts");
        let teal = Teal::of(proxy, dir);
        teal.probed().await;
        teal
    }

    pub fn of(proxy: Proxy, dir: TempDir) -> Teal {
        let (Address::Tcp(address), Some(Address::Tcp(admin))) = (&proxy.addresses()[0], proxy.admin()) else {
            panic!("a TCP listener and a TCP admin API")
        };
        let (listener, admin) = (*address, *admin);
        let snapshot = proxy.state().load();
        let config = &snapshot.config.listeners[0];
        let proto = if config.tls.is_some() { "https" } else { "http" };
        let front = Front::of(config, listener, over::runtime());
        let address = front.as_ref().map_or(listener, Front::address);
        drop(snapshot);
        Teal { address, listener, proto, admin, proxy: Some(proxy), dir, _front: front }
    }

    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("it was not stopped")
    }

    /// Where a client connects that shares no thread with the others on its way to the listener.
    pub fn another_way(&self) -> (Option<Front>, SocketAddr) {
        let snapshot = self.state().load();
        let front = Front::of(&snapshot.config.listeners[0], self.listener, over::another_runtime());
        let address = front.as_ref().map_or(self.listener, Front::address);
        (front, address)
    }

    pub fn state(&self) -> &Arc<State> {
        self.proxy().state()
    }

    /// `teal.toml` of a proxy that was started by [`Builder::start_watching`].
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("teal.toml")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until every endpoint has been probed.
    pub async fn probed(&self) {
        eventually("all endpoints are probed", || {
            let snapshot = self.state().load();
            let mut pools = snapshot.services.iter().flat_map(|service| [&service.pools.blue, &service.pools.green]);
            pools.all(|pool| {
                pool.unresolved().is_empty()
                    && pool.endpoints().iter().all(|endpoint| endpoint.health() != Health::Unknown)
            })
        })
        .await;
    }

    /// Turns the health of an endpoint of the first service's active color, as a probe would.
    pub fn set_health(&self, place: usize, is_healthy: bool) {
        let result = if is_healthy { Ok(()) } else { Err("down".to_owned()) };
        self.state().load().services[0].active_pool().endpoints()[place].probed(result, 1, 1);
    }

    pub async fn switch(&self, service: &str, to: Color) -> Result<Arc<Record>, Refusal> {
        self.state().switch(to_color(&[(service, to)])).await
    }

    pub fn active(&self, service: &str) -> Color {
        self.state().load().service(service).expect("a known service").active
    }

    /// Stops gently, and gives the state directory back for another start.
    pub async fn stop(mut self) -> TempDir {
        let proxy = self.proxy.take().expect("it was not stopped");
        tokio::task::spawn_blocking(move || proxy.stop()).await.expect("the proxy stops");
        std::mem::replace(&mut self.dir, scratch())
    }
}

impl Drop for Teal {
    fn drop(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            // Its threads are joined: not on a thread of the runtime that serves the origins.
            std::thread::spawn(move || drop(proxy));
        }
    }
}

/// A plain request to switch.
pub fn to_color(aims: &[(&str, Color)]) -> SwitchRequest {
    SwitchRequest {
        aims: aims.iter().map(|(service, color)| ((*service).to_owned(), Aim::To(*color))).collect(),
        expect: BTreeMap::new(),
        mode: None,
        force: false,
        dry_run: false,
        reason: None,
        actor: Some("test".to_owned()),
        trigger: Trigger::Api,
        key: None,
    }
}
