//! The snapshot that every request reads, the one pointer to it, and the one writer.
//!
//! All facts that must agree are in one [`Snapshot`]; a switch, a reload or a change of addresses makes the next one and
//! stores it in one step. Everybody else sends a [`Command`] to the writer and waits for its answer, which comes after
//! the store. Nobody may keep an `Arc<Snapshot>` longer than it takes to look something up.

mod fence;
mod readiness;
mod receipt;
mod report;
mod switch;
mod writer;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::config::{Color, Config, Problems, Upstream};
use crate::metrics::{ControlStats, ListenerStats};
use crate::roster::Roster;
use crate::router::{Router, Rules, Target};
use crate::service::Service;
use crate::store::{Store, StoreError};

pub use readiness::Readiness;
pub use receipt::{Receipt, Record, ServiceSwitch};
pub use switch::{Aim, EndpointHealth, Refusal, StillRunning, SwitchRequest, Trigger};

/// Commands that may wait for the writer; a full queue refuses.
const QUEUE: usize = 256;
/// Records that are kept in memory; the store has older ones.
const RECENT: usize = 256;

/// The immutable whole that a request reads.
#[derive(Debug)]
pub struct Snapshot {
    pub config: Arc<Config>,
    /// In the order of their names.
    pub services: Vec<Arc<Service>>,
    places: Arc<HashMap<Arc<str>, usize>>,
    router: Arc<Router>,
}

impl Snapshot {
    pub fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(*self.places.get(name)?)
    }

    /// The service for a path (without query) at a host (without port), and where its path begins.
    pub fn route(&self, host: &[u8], path: &str) -> Option<(&Arc<Service>, Target)> {
        let target = self.router.find(host, path)?;
        Some((self.services.get(target.service)?, target))
    }

    /// Who may use the route that was found.
    pub fn rules(&self, target: Target) -> &Rules {
        self.router.rules(target)
    }
}

/// What the writer can be told to do.
enum Command {
    Switch(SwitchRequest, std::time::Instant, oneshot::Sender<Result<Arc<Record>, Refusal>>),
    Reload(Box<Config>, oneshot::Sender<Result<Vec<Wanted>, StoreError>>),
    Resolved(Resolved, oneshot::Sender<()>),
}

/// A switch that the config file asks for since its last change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub service: Arc<str>,
    pub to: Color,
}

/// What a DNS name of a pool stands for now.
#[derive(Debug)]
pub struct Resolved {
    pub service: Arc<str>,
    pub color: Color,
    pub name: Upstream,
    pub addresses: Vec<std::net::SocketAddr>,
}

/// The writer takes no more commands: the proxy stops, or too many wait already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("too much to do: the proxy is stopping, or too many commands wait already")]
pub struct Busy;

/// The one pointer, and the way to the one writer.
#[derive(Debug)]
pub struct State {
    snapshot: ArcSwap<Snapshot>,
    commands: mpsc::Sender<Command>,
    recent: Mutex<VecDeque<Arc<Record>>>,
    /// Why the last reload was refused, until a good one comes.
    problems: Mutex<Option<Problems>>,
    /// Why a switch that the file asks for was refused.
    refused: Mutex<Vec<(Arc<str>, String)>>,
    is_draining: AtomicBool,
    /// Counts the snapshots that were stored.
    changes: watch::Sender<u64>,
    listeners: Mutex<BTreeMap<String, Arc<ListenerStats>>>,
    drains: TaskTracker,
    store: Arc<Store>,
    rosters: Arc<[Arc<Roster>]>,
    pub stats: ControlStats,
}

impl State {
    /// The state of a proxy that starts: stored colors, then the file's. Returns the writer's task, to be spawned on the
    /// control runtime; it ends when the last handle is gone.
    ///
    /// # Errors
    /// When the store can be neither read nor written.
    pub fn open(
        config: Config,
        store: Arc<Store>,
        rosters: Arc<[Arc<Roster>]>,
    ) -> Result<(Arc<State>, impl Future<Output = ()> + Send + use<>), StoreError> {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (writer, first) = writer::Writer::open(config, store.clone(), rosters.clone())?;
        let state = Arc::new(State {
            snapshot: ArcSwap::from_pointee(first),
            commands,
            recent: Mutex::default(),
            problems: Mutex::default(),
            refused: Mutex::default(),
            is_draining: AtomicBool::new(false),
            changes: watch::Sender::new(0),
            listeners: Mutex::default(),
            drains: TaskTracker::new(),
            store,
            rosters,
            stats: ControlStats::default(),
        });
        let task = writer.run(Arc::downgrade(&state), inbox);
        Ok((state, task))
    }

    /// The snapshot of this moment. Must not be held across an `.await`.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Switches; resolves after the new color is in effect or the switch was refused. Dropping the future does not take
    /// the command back.
    ///
    /// # Errors
    /// The reason why nothing was changed.
    pub async fn switch(&self, request: SwitchRequest) -> Result<Arc<Record>, Refusal> {
        let called = std::time::Instant::now();
        self.send(|reply| Command::Switch(request, called, reply)).await?
    }

    /// Puts a new configuration into effect, but for the colors: those that the file asks for are returned.
    ///
    /// # Errors
    /// When it could not be recorded; nothing has changed then.
    pub async fn reload(&self, config: Config) -> Result<Result<Vec<Wanted>, StoreError>, Busy> {
        self.send(|reply| Command::Reload(Box::new(config), reply)).await
    }

    /// Gives a DNS name of a pool its addresses.
    ///
    /// # Errors
    /// When the writer takes no commands.
    pub async fn resolved(&self, resolved: Resolved) -> Result<(), Busy> {
        self.send(|reply| Command::Resolved(resolved, reply)).await
    }

    /// The newest records, newest first.
    pub fn recent(&self) -> Vec<Arc<Record>> {
        self.recent.lock().iter().rev().cloned().collect()
    }

    /// A record that is still in memory.
    pub fn record(&self, id: &str) -> Option<Arc<Record>> {
        self.recent.lock().iter().find(|record| record.id() == id).cloned()
    }

    /// The newest drain of a service, if it has had one since the start.
    pub fn newest_drain(&self, service: &str) -> Option<Arc<Record>> {
        let recent = self.recent.lock();
        recent.iter().rev().find(|record| record.drains(service)).cloned()
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn set_problems(&self, problems: Option<Problems>) {
        *self.problems.lock() = problems;
    }

    pub fn problems(&self) -> Option<Problems> {
        self.problems.lock().clone()
    }

    /// Remembers, for `status`, why a switch that the file asks for was refused; `None` forgets.
    pub fn set_refused(&self, service: &str, why: Option<String>) {
        let mut refused = self.refused.lock();
        refused.retain(|(name, _)| **name != *service);
        refused.extend(why.map(|why| (service.into(), why)));
    }

    /// Forgets the refusals of what the file no longer asks for.
    fn keep_refused(&self, wanted: &[Wanted]) {
        self.refused.lock().retain(|(name, _)| wanted.iter().any(|wanted| wanted.service == *name));
    }

    pub fn refused(&self) -> Vec<(Arc<str>, String)> {
        self.refused.lock().clone()
    }

    /// Sees a new value after each new snapshot.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The counts of a listener, by its address; they survive its being closed and opened again.
    pub fn listener_stats(&self, address: &str) -> Arc<ListenerStats> {
        self.listeners.lock().entry(address.to_owned()).or_default().clone()
    }

    /// All listeners there have been, by address.
    pub fn listeners(&self) -> Vec<(String, Arc<ListenerStats>)> {
        self.listeners.lock().iter().map(|(address, stats)| (address.clone(), stats.clone())).collect()
    }

    /// From now on `ready_path` and `/readyz` answer 503.
    pub fn begin_shutdown(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// Resolves when no drain is under way and the last one's end has been recorded.
    pub async fn drains_ended(&self) {
        self.drains.close();
        self.drains.wait().await;
    }

    /// The one store.
    fn publish(&self, next: Snapshot) {
        self.snapshot.store(Arc::new(next));
        self.changes.send_modify(|count| *count += 1);
    }

    fn remember(&self, record: Arc<Record>) {
        let mut recent = self.recent.lock();
        if recent.len() >= RECENT {
            recent.pop_front();
        }
        recent.push_back(record);
    }

    async fn send<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Busy> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|_| Busy)?;
        answer.await.map_err(|_| Busy)
    }
}
