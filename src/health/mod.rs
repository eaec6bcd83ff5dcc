//! Knows how the endpoints of both colors are, and where the names of the pools lead.
//!
//! One task per endpoint probes it, one task per DNS name of a pool looks up its addresses; the task of [`run`] starts
//! and ends them as snapshots come, and takes ejected endpoints back when their time is over. Endpoints are the same
//! ones in every snapshot for as long as they are configured, so neither a switch nor a reload restarts a schedule or
//! forgets a result.
//!
//! Nothing here owns a snapshot, a service or a generation while it waits: that would keep a drain from ending. Nothing
//! is stored either: a proxy that starts knows nothing of an endpoint until its first probe.

mod probe;
mod resolve;

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::config::{self, Color, Config, Upstream};
use crate::service::Service;
use crate::state::{Snapshot, State};
use crate::upstream::Endpoint;

use probe::Pace;
use resolve::Resolver;

/// How long a new snapshot is left alone. Answers to the command that made it go out first, and commands that come in a
/// row are followed in one step.
const SETTLE: Duration = Duration::from_millis(5);
/// How late an ejected endpoint may be taken back.
const EJECTION_GRAIN: Duration = Duration::from_millis(100);

/// The newest settings of a service; closed when the service is gone.
type Settings = watch::Receiver<Arc<config::Service>>;

/// Probes, resolves and ends ejections until the state is gone, which it does not keep alive. To be spawned on the
/// control runtime; dropping the future ends all its tasks.
pub async fn run(state: Arc<State>) {
    let mut changes = state.changes();
    // The first snapshot is news, too.
    changes.mark_changed();
    let kept_by_others = Arc::downgrade(&state);
    drop(state);
    let mut watch = Watch::new(kept_by_others.clone());
    let mut tick = interval(EJECTION_GRAIN);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // The one that loses has lost nothing: both go on where they were.
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                sleep(SETTLE).await;
                // Before the look: what is stored from here on is a change again.
                changes.mark_unchanged();
                let Some(state) = kept_by_others.upgrade() else { return };
                watch.follow(&state.load());
            }
            _ = tick.tick() => watch.end_ejections(),
        }
    }
}

/// What is probed and resolved now.
struct Watch {
    /// The configuration that was followed last. Weak references serve to recognize things without owning them: as long
    /// as there is one, no other thing has that address.
    config: Weak<Config>,
    /// In the order of the snapshot.
    services: Vec<Watched>,
    pace: Arc<Pace>,
    resolver: Arc<Resolver>,
}

impl Watch {
    fn new(state: Weak<State>) -> Watch {
        let resolver = Arc::new(Resolver::new(state));
        Watch { config: Weak::new(), services: Vec::new(), pace: Arc::default(), resolver }
    }

    /// Starts what is new in the snapshot, ends what is gone, and leaves the rest in peace.
    fn follow(&mut self, snapshot: &Snapshot) {
        // Another switch of the same configuration has the same services.
        if self.config.as_ptr() != Arc::as_ptr(&snapshot.config) {
            self.config = Arc::downgrade(&snapshot.config);
            self.rearrange(snapshot);
        }
        for (watched, service) in self.services.iter_mut().zip(&snapshot.services) {
            watched.follow(service, &self.pace, &self.resolver);
        }
    }

    fn rearrange(&mut self, snapshot: &Snapshot) {
        let mut before: HashMap<_, _> = self.services.drain(..).map(|watched| (watched.name(), watched)).collect();
        let next = |service: &Arc<Service>| {
            before.remove(&service.config.name).unwrap_or_else(|| Watched::new(service.config.clone()))
        };
        self.services = snapshot.services.iter().map(next).collect();
    }

    fn end_ejections(&self) {
        let now = std::time::Instant::now();
        let endpoints = self.services.iter().flat_map(|watched| watched.probes.values());
        endpoints.filter(|(endpoint, _)| endpoint.is_ejected()).for_each(|(endpoint, _)| endpoint.end_ejection(now));
    }
}

/// A task that ends when it is dropped.
type Task = AbortOnDropHandle<()>;

/// One service of the watch.
struct Watched {
    /// What was followed last.
    seen: Weak<Service>,
    settings: watch::Sender<Arc<config::Service>>,
    /// By the address of the endpoint in memory, which is its identity.
    probes: HashMap<usize, (Arc<Endpoint>, Task)>,
    names: HashMap<(Color, Upstream), Task>,
}

impl Watched {
    fn new(settings: Arc<config::Service>) -> Watched {
        let settings = watch::Sender::new(settings);
        Watched { seen: Weak::new(), settings, probes: HashMap::new(), names: HashMap::new() }
    }

    fn name(&self) -> Arc<str> {
        self.settings.borrow().name.clone()
    }

    fn follow(&mut self, service: &Arc<Service>, pace: &Arc<Pace>, resolver: &Arc<Resolver>) {
        if self.seen.as_ptr() == Arc::as_ptr(service) {
            return;
        }
        self.seen = Arc::downgrade(service);
        self.settings.send_if_modified(|settings| {
            let is_new = **settings != *service.config;
            *settings = service.config.clone();
            is_new
        });
        // What is not taken over from these maps is dropped with them, and so ended.
        let (mut probes, mut names) = (mem::take(&mut self.probes), mem::take(&mut self.names));
        for color in Color::BOTH {
            for endpoint in service.pools[color].endpoints() {
                let identity = Arc::as_ptr(endpoint).addr();
                let start = || (endpoint.clone(), self.probe(endpoint.clone(), color, pace.clone()));
                let probe = probes.remove(&identity).unwrap_or_else(start);
                self.probes.insert(identity, probe);
            }
            let is_name = |upstream: &&Upstream| matches!(upstream, Upstream::Name { .. });
            for name in service.config.pools[color].iter().filter(is_name) {
                let key = (color, name.clone());
                let task = names.remove(&key).unwrap_or_else(|| self.resolve(name, color, resolver.clone()));
                self.names.insert(key, task);
            }
        }
    }

    fn probe(&self, endpoint: Arc<Endpoint>, color: Color, pace: Arc<Pace>) -> Task {
        AbortOnDropHandle::new(tokio::spawn(probe::keep_probing(endpoint, color, self.settings.subscribe(), pace)))
    }

    fn resolve(&self, name: &Upstream, color: Color, resolver: Arc<Resolver>) -> Task {
        AbortOnDropHandle::new(tokio::spawn(resolver.keep_resolving(name.clone(), color, self.settings.subscribe())))
    }
}

/// Resolves when `interval` has passed since `last`, give or take a tenth, so that those that began together do not
/// stay together. A new setting counts from `last`, too. False if the service is gone.
async fn is_due(last: Instant, settings: &mut Settings, interval: fn(&config::Service) -> Duration) -> bool {
    let jitter = 0.9 + 0.2 * fastrand::f64();
    loop {
        let due = last + interval(&settings.borrow_and_update()).mul_f64(jitter);
        match timeout_at(due, settings.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return false,
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    pub(super) fn settings(interval: &str) -> Arc<config::Service> {
        let text = format!("[[listeners]]\nlisten = \"127.0.0.1:0\"\n[services.api.health]\ninterval = \"{interval}\"");
        let config = config::parse(&text, Path::new("test.toml")).expect("a good config");
        config.services["api"].clone()
    }

    #[tokio::test(start_paused = true)]
    async fn an_interval_is_kept_give_or_take_a_tenth() {
        let (_sender, mut settings) = watch::channel(settings("1m"));
        let mut taken = Vec::new();
        for _ in 0..100 {
            let last = Instant::now();
            assert!(is_due(last, &mut settings, |service| service.health.interval).await);
            taken.push(last.elapsed());
        }
        assert!(taken.iter().all(|taken| (54_000..=66_001).contains(&taken.as_millis())), "{taken:?}");
        taken.dedup();
        assert!(taken.len() > 50, "{taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_interval_counts_from_the_last_time() {
        let (sender, mut now) = watch::channel(settings("1h"));
        let last = Instant::now();
        let due = tokio::spawn(async move { is_due(last, &mut now, |service| service.health.interval).await });
        sleep(Duration::from_secs(60)).await;
        sender.send_replace(settings("2m"));
        assert!(due.await.expect("no panic"));
        assert!((108..=133).contains(&last.elapsed().as_secs()), "{:?}", last.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_due_for_a_service_that_is_gone() {
        let (sender, mut now) = watch::channel(settings("1h"));
        drop(sender);
        assert!(!is_due(Instant::now(), &mut now, |service| service.health.interval).await);
    }
}
