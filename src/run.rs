//! Puts everything together, and owns the order in which it starts and stops.
//!
//! N worker threads, each with a single-threaded runtime, serve the clients; one control thread with a runtime of its own
//! does everything else. Starting: store, state, sockets, control, workers. Stopping: not ready, listeners close,
//! connections end when they are idle, what has not ended at the deadline is cut, and the admin API gives its last
//! answers.

mod descriptors;
mod source;
#[cfg(test)]
mod spread;
mod stop;
mod vital;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::access::AccessLog;
use crate::admin::{self, Admin};
use crate::config::{self, Address, Config, Problems};
use crate::health;
use crate::http::{OverloadWatch, Worker};
use crate::listener::{self, BindError, Limit, Listening, WorkerSocket};
use crate::roster::Roster;
use crate::run::descriptors::Needs;
use crate::run::source::Source;
use crate::run::stop::{Answering, stop_when_told};
use crate::run::vital::{Vital, pass_on, with};
use crate::state::{Aim, Refusal, State, SwitchRequest, Trigger, Wanted};
use crate::store::{Store, StoreError};

/// How often the idle connections to origins are looked through.
const SWEEP: Duration = Duration::from_secs(5);
/// How long a reload waits for the sockets that it closes; where a limit is reached, accepting is slow to end.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);
/// How long a switch that the config file asks for waits until its endpoints have been probed.
const PROBED_WITHIN: Duration = Duration::from_secs(10);

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] Problems),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("admin API: {0}")]
    Admin(#[from] admin::BindError),
    #[error("cannot open the access log: {0}")]
    Access(io::Error),
    #[error("cannot watch the config file: {0}")]
    Watch(io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// A running proxy. Dropping it stops it at once; [`Proxy::stop`] lets requests finish.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    addresses: Vec<Address>,
    admin: Option<Address>,
    stage: watch::Sender<Stage>,
    reload: mpsc::Sender<()>,
    threads: Vec<JoinHandle<()>>,
    dead: watch::Receiver<Option<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Running,
    Stopping,
    Stopped,
}

/// What the control thread works with.
#[derive(Debug)]
struct Shared {
    state: Arc<State>,
    rosters: Arc<[Arc<Roster>]>,
    workers: Vec<mpsc::UnboundedSender<Order>>,
    listeners: Mutex<Vec<Arc<Listening>>>,
    process_limit: Arc<Limit>,
    source: Option<PathBuf>,
}

/// What a worker is told to do. There are as many as listeners, by hand of an operator.
enum Order {
    Serve(Arc<Listening>, WorkerSocket),
    Stop,
}

impl Proxy {
    /// Starts a proxy whose configuration stays as it is. Blocks until it accepts connections.
    ///
    /// # Errors
    /// When the state cannot be opened or an address cannot be had; nothing runs then.
    pub fn start(config: Config) -> Result<Proxy, StartError> {
        start(config, None)
    }

    /// Starts a proxy that follows its config file.
    ///
    /// # Errors
    /// As [`Proxy::start`], and when the file is invalid.
    pub fn start_watching(path: &Path) -> Result<Proxy, StartError> {
        // The watch comes first, so that no change between the two is missed.
        let mut source = Source::new(path).map_err(StartError::Watch)?;
        let config = source.load()?;
        source.is_in_effect();
        start(config, Some(source))
    }

    /// Where it listens, in the order of the configuration, with the ports that were chosen for port 0.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub fn admin(&self) -> Option<&Address> {
        self.admin.as_ref()
    }

    pub fn state(&self) -> &Arc<State> {
        &self.shared.state
    }

    /// Asks for a reload of the config file; the outcome is logged, counted, and shown by `status`.
    pub fn reload(&self) {
        // A full queue holds a reload that has not begun: it will read the same file.
        let _ = self.reload.try_send(());
    }

    /// Lets requests finish, up to `shutdown_timeout`. Returns when everything has ended.
    pub fn stop(mut self) {
        self.begin_stop();
        self.join();
    }

    /// Begins to stop; [`Proxy::is_stopped`] tells when it is over.
    pub fn begin_stop(&self) {
        self.stage.send_if_modified(|stage| {
            let is_new = *stage == Stage::Running;
            if is_new {
                *stage = Stage::Stopping;
            }
            is_new
        });
    }

    /// Resolves when a part without which the proxy is only half alive has ended, with its name: a worker, or what switches
    /// or probes. A panic has said why. The process should end then, for its supervisor to start it again.
    pub fn died(&self) -> impl Future<Output = String> + use<> {
        let mut dead = self.dead.clone();
        async move {
            match dead.wait_for(Option::is_some).await.map(|name| name.clone()) {
                Ok(Some(name)) => name,
                // Everybody has left in good order.
                Ok(None) | Err(_) => std::future::pending().await,
            }
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stage.send_replace(Stage::Stopped);
        self.join();
    }
}

fn start(config: Config, source: Option<Source>) -> Result<Proxy, StartError> {
    let path = source.as_ref().map(|source| source.path().to_owned());
    let connections = Needs::of(&config).provide();
    keep_secrets(&config, None);
    let store = Arc::new(Store::open(&config.state_dir)?);
    let rosters: Arc<[Arc<Roster>]> = (0..config.workers).map(|_| Roster::new()).collect();
    let access = AccessLog::open(&config.log.access).map_err(StartError::Access)?.map(Arc::new);
    let admin = config.admin.as_ref().map(Admin::bind).transpose()?;
    let admin_address = admin.as_ref().map(|admin| admin.address().clone());
    let process_limit = Arc::new(Limit::new(connections));
    let wanted_listeners = config.listeners.clone();
    let (state, writer) = State::open(config, store, rosters.clone())?;
    let bound = bind_all(&wanted_listeners, &state, &process_limit, rosters.len())?;
    let addresses = bound.iter().map(|(listening, _)| listening.address.clone()).collect();

    let (stage, stages) = watch::channel(Stage::Running);
    let (death, dead) = watch::channel(None);
    let vital = |name: &str| Vital { name: name.to_owned(), stages: stages.clone(), death: death.clone() };
    let mut threads = Vec::new();
    let mut workers = Vec::new();
    for (id, roster) in rosters.iter().enumerate() {
        let worker = Worker::new(id, state.clone(), roster.clone(), access.clone());
        let (orders, inbox) = mpsc::unbounded_channel();
        threads.push(start_worker(Arc::new(worker), inbox, vital(&format!("worker {id}")))?);
        workers.push(orders);
    }
    let shared = Arc::new(Shared { state, rosters, workers, listeners: Mutex::default(), process_limit, source: path });
    set_grain(&shared);
    let (reload, reloads) = mpsc::channel(1);
    let parts = [vital("the writer of the state"), vital("the health checks"), vital("the control thread")];
    let control = Control { shared: shared.clone(), stages: stages.clone(), reloads };
    threads.push(start_control(control, writer, admin, source, parts)?);
    for (listening, sockets) in bound {
        shared.serve(listening, sockets);
    }
    Ok(Proxy { shared, addresses, admin: admin_address, stage, reload, threads, dead })
}

type Bound = (Arc<Listening>, Vec<WorkerSocket>);

fn bind_all(
    listeners: &[Arc<config::Listener>],
    state: &State,
    process_limit: &Arc<Limit>,
    workers: usize,
) -> Result<Vec<Bound>, BindError> {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    let bind = |settings: &Arc<config::Listener>| {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let stats = |address: &str| state.listener_stats(address);
        let (listening, sockets) = Listening::bind(id, settings.clone(), stats, process_limit.clone(), workers)?;
        Ok((Arc::new(listening), sockets))
    };
    listeners.iter().map(bind).collect()
}

fn start_worker(
    worker: Arc<Worker>,
    orders: mpsc::UnboundedReceiver<Order>,
    vital: Vital,
) -> Result<JoinHandle<()>, StartError> {
    let runtime = runtime()?;
    let name = format!("worker-{}", worker.id);
    let run = move || {
        let _vital = vital;
        runtime.block_on(work(worker, orders));
    };
    std::thread::Builder::new().name(name).spawn(run).map_err(StartError::Thread)
}

/// The life of a worker thread.
async fn work(worker: Arc<Worker>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut parts = JoinSet::new();
    parts.spawn(keep_house(worker.clone()));
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Serve(listening, socket)) => drop(parts.spawn(listener::accept(listening, socket, worker.clone()))),
                Some(Order::Stop) | None => return,
            },
            // Loses nothing: whoever has ended is still there when it is asked again.
            Some(ended) = parts.join_next() => pass_on(ended),
        }
    }
}

/// Moves the roster's clock on, and looks through the idle connections to origins.
async fn keep_house(worker: Arc<Worker>) {
    let mut swept = Instant::now();
    let mut watch = OverloadWatch::new();
    loop {
        let pause = worker.roster.grain();
        tokio::time::sleep(pause).await;
        worker.overload.look(&mut watch, pause);
        worker.roster.tick();
        let now = Instant::now();
        if now.duration_since(swept) >= SWEEP {
            swept = now;
            let snapshot = worker.state.load();
            for pool in snapshot.services.iter().flat_map(|service| [&service.pools.blue, &service.pools.green]) {
                pool.endpoints().iter().for_each(|endpoint| endpoint.sweep(worker.id, now));
            }
        }
    }
}

/// The control thread and what it listens to.
struct Control {
    shared: Arc<Shared>,
    stages: watch::Receiver<Stage>,
    reloads: mpsc::Receiver<()>,
}

fn start_control(
    control: Control,
    writer: impl Future<Output = ()> + Send + 'static,
    admin: Option<Admin>,
    source: Option<Source>,
    [of_writer, of_health, of_control]: [Vital; 3],
) -> Result<JoinHandle<()>, StartError> {
    let runtime = runtime()?;
    let run = move || {
        let _vital = of_control;
        runtime.block_on(async move {
            tokio::spawn(with(of_writer, writer));
            let state = &control.shared.state;
            tokio::spawn(with(of_health, health::run(state.clone())));
            let answering = Answering::default();
            if let Some(admin) = admin {
                answering.task.spawn(admin.serve(state.clone(), answering.end.clone().cancelled_owned()));
            }
            tokio::spawn(follow(control.shared.clone(), control.reloads, source));
            stop_when_told(&control.shared, &answering, control.stages).await;
        });
        // What is still open on the control side is not waited for: a slow disk or a name that does not resolve.
        runtime.shutdown_timeout(Duration::from_millis(100));
    };
    std::thread::Builder::new().name("control".into()).spawn(run).map_err(StartError::Thread)
}

fn runtime() -> Result<Runtime, StartError> {
    Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)
}

/// Reloads whenever the file, or one that it names, changes or somebody asks for it.
async fn follow(shared: Arc<Shared>, mut reloads: mpsc::Receiver<()>, source: Option<Source>) {
    let Some(mut source) = source else { return };
    loop {
        tokio::select! {
            () = source.changed() => {}
            asked = reloads.recv() => if asked.is_none() { return },
        }
        if shared.state.is_draining() {
            // A proxy that stops opens nothing new.
            return;
        }
        // A disk can be slow.
        let loading = tokio::task::spawn_blocking(move || (source.load(), source)).await;
        let Ok((loaded, still)) = loading else { return };
        source = still;
        if shared.reload(loaded).await {
            source.is_in_effect();
        }
    }
}

impl Shared {
    /// Hands a listener to the workers, unless the doors have closed meanwhile.
    fn serve(&self, listening: Arc<Listening>, sockets: Vec<WorkerSocket>) {
        if self.rosters.iter().any(|roster| roster.is_closing()) {
            return;
        }
        for (worker, socket) in self.workers.iter().zip(sockets) {
            // A worker that is gone has ended the process's usefulness; its panic was reported.
            let _ = worker.send(Order::Serve(listening.clone(), socket));
        }
        self.listeners.lock().push(listening);
    }

    /// Puts what was read into effect, or reports why not and changes nothing; whether it is in effect.
    async fn reload(self: &Arc<Shared>, loaded: Result<Config, Problems>) -> bool {
        let applied = match loaded {
            Ok(config) => self.apply(config).await,
            Err(problems) => Err(problems),
        };
        match applied {
            Ok(wanted) => {
                self.reloaded(Ok(()));
                self.ask_for(wanted);
                true
            }
            Err(problems) => {
                self.reloaded(Err(problems));
                false
            }
        }
    }

    fn reloaded(&self, outcome: Result<(), Problems>) {
        let stats = &self.state.stats;
        let count = match &outcome {
            Ok(()) => {
                tracing::info!("config applied");
                &stats.reloads_applied
            }
            Err(problems) => {
                tracing::error!(%problems, "config rejected, the old one stays in effect");
                &stats.reloads_rejected
            }
        };
        self.state.set_problems(outcome.err());
        // Last: whoever sees the count sees what was counted.
        count.fetch_add(1, Ordering::Release);
    }

    /// New listeners are bound first: if one cannot be had, nothing changes.
    async fn apply(&self, config: Config) -> Result<Vec<Wanted>, Problems> {
        self.warn_of_restart(&config);
        let before = self.state.load().config.clone();
        let is_new =
            |listener: &&Arc<config::Listener>| !before.listeners.iter().any(|old| old.listen == listener.listen);
        let new: Vec<_> = config.listeners.iter().filter(is_new).cloned().collect();
        let bound = bind_all(&new, &self.state, &self.process_limit, self.rosters.len())
            .map_err(|error| self.problem(error.to_string()))?;
        let (listeners, needs) = (config.listeners.clone(), Needs::of(&config));
        let wanted = match self.state.reload(config).await {
            Ok(Ok(wanted)) => wanted,
            Ok(Err(error)) => return Err(self.problem(error.to_string())),
            Err(busy) => return Err(self.problem(busy.to_string())),
        };
        keep_secrets(&self.state.load().config, Some(&before));
        if needs != Needs::of(&before) {
            self.process_limit.resize(needs.provide());
        }
        let gone = self.change_listeners(&listeners);
        for (listening, sockets) in bound {
            self.serve(listening, sockets);
        }
        set_grain(self);
        // The next reload may want to listen there again.
        let closed = async {
            for listening in &gone {
                listening.closed().await;
            }
        };
        let _ = tokio::time::timeout(CLOSED_WITHIN, closed).await;
        Ok(wanted)
    }

    /// Those that stay get their new settings, those that are gone are closed, and returned.
    fn change_listeners(&self, next: &[Arc<config::Listener>]) -> Vec<Arc<Listening>> {
        let next_of = |listening: &Listening| {
            let now = listening.settings.load();
            next.iter().find(|settings| settings.listen == now.listen)
        };
        let mut listeners = self.listeners.lock();
        let (stay, gone): (_, Vec<_>) = listeners.drain(..).partition(|listening| next_of(listening).is_some());
        *listeners = stay;
        for listening in listeners.iter() {
            next_of(listening).into_iter().for_each(|settings| listening.update(settings.clone()));
        }
        for listening in &gone {
            listening.close();
            self.rosters.iter().for_each(|roster| roster.close_listener(listening.id));
        }
        gone
    }

    fn problem(&self, message: String) -> Problems {
        let file = self.source.clone().unwrap_or_default();
        Problems(vec![config::Problem { file, line: 1, column: 1, message }])
    }

    /// Some keys are read at the start only.
    fn warn_of_restart(&self, next: &Config) {
        let now = self.state.load().config.clone();
        let keys = [
            ("workers", now.workers != next.workers),
            ("state_dir", now.state_dir != next.state_dir),
            ("admin", now.admin != next.admin),
            ("log", now.log != next.log),
        ];
        for (key, _) in keys.into_iter().filter(|(_, is_changed)| *is_changed) {
            tracing::warn!(key, "this change of the config takes effect at the next start");
        }
    }

    /// Switches as the file asks for, once the endpoints have been probed. One call for all: they belong together.
    fn ask_for(self: &Arc<Shared>, wanted: Vec<Wanted>) {
        if wanted.is_empty() {
            return;
        }
        let state = self.state.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PROBED_WITHIN, probed(&state, &wanted)).await;
            let request = SwitchRequest {
                aims: wanted.iter().map(|wanted| (wanted.service.to_string(), Aim::To(wanted.to))).collect(),
                expect: std::collections::BTreeMap::new(),
                mode: None,
                force: false,
                dry_run: false,
                reason: Some("the config file changed".to_owned()),
                actor: None,
                trigger: Trigger::Config,
                key: None,
            };
            // Every other refusal was noted by the writer, in the order of the commands.
            if let Err(busy @ Refusal::Busy(_)) = state.switch(request).await {
                wanted.iter().for_each(|wanted| state.set_refused(&wanted.service, Some(busy.to_string())));
            }
        });
    }
}

/// Resolves when every endpoint of the wanted colors has been probed.
async fn probed(state: &State, wanted: &[Wanted]) {
    let is_probed = |wanted: &Wanted| {
        let snapshot = state.load();
        let Some(service) = snapshot.service(&wanted.service) else { return true };
        let pool = &service.pools[wanted.to];
        let unknown = crate::upstream::Health::Unknown;
        pool.unresolved().is_empty() && pool.endpoints().iter().all(|endpoint| endpoint.health() != unknown)
    };
    while !wanted.iter().all(is_probed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Tells the rosters how short the shortest timeout is, which is how finely they have to look.
fn set_grain(shared: &Shared) {
    let snapshot = shared.state.load();
    let listeners = snapshot.config.listeners.iter().map(|listener| &listener.limits);
    let of_listeners = listeners.flat_map(|limits| [limits.header_timeout, limits.idle_timeout, limits.body_timeout]);
    let services = snapshot.config.services.values();
    let of_services =
        services.flat_map(|service| [service.connect_timeout, service.response_timeout, service.queue_timeout]);
    let shortest = of_listeners.chain(of_services).min().unwrap_or(Duration::from_secs(1));
    shared.rosters.iter().for_each(|roster| roster.set_shortest_timeout(shortest));
}

/// Says what the config has to be warned of and had not `before`; where there are keys, a crash must not write them down.
fn keep_secrets(config: &Config, before: Option<&Config>) {
    let now = SystemTime::now();
    let known = before.map(|before| before.warnings(now)).unwrap_or_default();
    for warning in config.warnings(now).difference(&known) {
        tracing::warn!("{warning}");
    }
    if config.has_keys() {
        forbid_core_dumps();
    }
}

/// For good: keys that are not in use any more may still be in memory. With 0 the kernel writes no file, but starts a program
/// that takes dumps, if there is one; with 1, less than any dump has, it does neither (core(5)).
fn forbid_core_dumps() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    let current = maximum.map_or(1, |maximum| maximum.min(1));
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(current), maximum }) {
        tracing::warn!(%error, "a crash may write private keys to a core dump");
    }
}
