//! The one writer: takes commands one by one, makes the next snapshot, stores it, answers.
//!
//! The order of a switch is: decide, commit to the store, store the snapshot, answer. A failure before the store leaves no
//! trace; what was answered is on disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::config::{self, Address, ByColor, Color, Config, Mode, Upstream};
use crate::drain::{Drain, Leaving, rfc3339};
use crate::roster::Roster;
use crate::router::Router;
use crate::service::{Generation, Requests, Service, new_generation};
use crate::state::fence::Fence;
use crate::state::receipt::{Receipt, Record, ServiceSwitch};
use crate::state::report::{count_drain, keep_receipt, log_done, log_drained, log_refused};
use crate::state::switch::{Refusal, Step, SwitchRequest, Trigger};
use crate::state::{Command, Resolved, Snapshot, State, Wanted};
use crate::store::{Entry, Store, StoreError, Stored};
use crate::upstream::{Endpoint, Pool, Transport, Vacancy};

/// Owned by its task; what it knows besides the snapshot is what the store knows, and what is under way.
pub(super) struct Writer {
    store: Arc<Store>,
    pub(super) rosters: Arc<[Arc<Roster>]>,
    stored: BTreeMap<String, Stored>,
    /// The last tenure of each color that is not active, as long as anybody works for it.
    former: HashMap<Arc<str>, ByColor<Option<Former>>>,
    pub(super) fences: Vec<Fence>,
    pub(super) last_fence: u64,
    /// The fence whose wait is over, and whether all requests have ended.
    pub(super) waits: JoinSet<(u64, bool)>,
}

/// A tenure that may be resumed: what still works for it need not notice that it was interrupted.
struct Former {
    generation: Weak<Generation>,
    requests: Weak<Requests>,
    drain: Arc<Drain>,
}

impl Writer {
    /// Reads the store, decides the color of each service, and records the decision.
    pub(super) fn open(
        config: Config,
        store: Arc<Store>,
        rosters: Arc<[Arc<Roster>]>,
    ) -> Result<(Writer, Snapshot), StoreError> {
        let mut stored = store.services()?;
        let changes: Vec<_> = config.services.values().filter_map(|service| on_start(service, &stored)).collect();
        if !changes.is_empty() {
            store.commit(&changes, None, None)?;
            stored.extend(changes);
        }
        let snapshot = snapshot(Arc::new(config), None, &stored, rosters.len());
        let writer = Writer {
            store,
            rosters,
            stored,
            former: HashMap::new(),
            fences: Vec::new(),
            last_fence: 0,
            waits: JoinSet::new(),
        };
        Ok((writer, snapshot))
    }

    pub(super) async fn run(mut self, state: Weak<State>, mut inbox: mpsc::Receiver<Command>) {
        loop {
            let command = tokio::select! {
                Some(ended) = self.waits.join_next() => {
                    let Some(state) = state.upgrade() else { return };
                    if let Ok((fence, is_over)) = ended {
                        self.end_fence(&state, fence, is_over).await;
                    }
                    continue;
                }
                command = inbox.recv() => command,
            };
            let (Some(command), Some(state)) = (command, state.upgrade()) else { return };
            // A caller that no longer listens has lost its answer, not the effect.
            match command {
                Command::Switch(request, called, reply) => self.switch(&state, request, called, reply).await,
                Command::Reload(config, reply) => {
                    let _ = reply.send(self.reload(&state, *config).await);
                }
                Command::Resolved(resolved, reply) => {
                    self.resolve(&state, resolved);
                    let _ = reply.send(());
                }
            }
        }
    }

    /// Switches and answers, now or when its fence has ended.
    pub(super) async fn switch(
        &mut self,
        state: &Arc<State>,
        request: SwitchRequest,
        called: Instant,
        reply: oneshot::Sender<Answer>,
    ) {
        if let Some(fence) = self.fences.iter_mut().find(|fence| fence.request.is_repeated_by(&request)) {
            fence.repeated.push((request, called, reply));
            return;
        }
        let result = match self.begin_switch(state, &request).await {
            Ok(Begun::Done(record)) => Ok(record),
            Ok(Begun::Steps(steps)) if steps.iter().any(|step| request.fences(&step.service)) && !request.dry_run => {
                return self.raise_fence(state, request, called, steps, reply);
            }
            Ok(Begun::Steps(steps)) => self.carry_out(state, &request, called, &steps, None).await,
            Err(refusal) => Err(refusal),
        };
        self.note(state, &request, &result);
        let _ = reply.send(result);
    }

    /// Reports what became of a switch.
    pub(super) fn note(&self, state: &State, request: &SwitchRequest, result: &Answer) {
        match result {
            Ok(record) => log_done(state, &record.receipt()),
            Err(refusal) => {
                log_refused(state, request, refusal);
                if request.trigger == Trigger::Config {
                    let why = refusal.to_string();
                    request.aims.keys().for_each(|name| state.set_refused(name, Some(why.clone())));
                }
            }
        }
    }

    async fn begin_switch(&mut self, state: &Arc<State>, request: &SwitchRequest) -> Result<Begun, Refusal> {
        if let Some(record) = self.done_before(state, request).await? {
            return Ok(Begun::Done(record));
        }
        if let Some(service) = self.fences.iter().find_map(|fence| fence.concerns(request)) {
            return Err(Refusal::InProgress { service: service.to_owned() });
        }
        request.plan(&state.load(), &self.stored).map(Begun::Steps)
    }

    /// Commits the switch and puts it into effect. `fence`: what it has held.
    pub(super) async fn carry_out(
        &mut self,
        state: &Arc<State>,
        request: &SwitchRequest,
        called: Instant,
        steps: &[Step],
        fence: Option<&Fence>,
    ) -> Answer {
        let mut receipt = self.receipt(request, steps);
        // Where all is as it should be there is nothing to record, but a key must be answered alike ever after.
        let is_recorded = !steps.is_empty() || request.key.is_some();
        if request.dry_run || !is_recorded {
            receipt.took_us = micros_since(called);
            return Ok(Arc::new(Record::new(receipt, None)));
        }
        let changes = changes(request, steps);
        self.commit(&changes, &receipt, request).await?;
        self.stored.extend(changes);
        let drain = self.put_into_effect(state, steps, fence);
        receipt.took_us = micros_since(called);
        let record = Arc::new(Record::new(receipt, drain));
        state.remember(record.clone());
        steps.iter().for_each(|step| state.set_refused(&step.service.config.name, None));
        self.watch_drain(state, &record);
        Ok(record)
    }

    /// The record of an earlier request with the same key.
    async fn done_before(&self, state: &State, request: &SwitchRequest) -> Result<Option<Arc<Record>>, Refusal> {
        let Some(key) = request.key.clone().filter(|_| !request.dry_run) else { return Ok(None) };
        let found = self.blocking({
            let key = key.clone();
            move |store| {
                let Some((fingerprint, id)) = store.key(&key)? else { return Ok(None) };
                Ok(Some((fingerprint, store.receipt(&id)?, id)))
            }
        });
        let Some((fingerprint, json, id)) = found.await? else { return Ok(None) };
        if fingerprint != request.fingerprint() {
            return Err(Refusal::KeyReused(key));
        }
        let stored = || Some(Arc::new(Record::new(serde_json::from_str(&json?).ok()?, None)));
        Ok(state.record(&id).or_else(stored))
    }

    fn receipt(&self, request: &SwitchRequest, steps: &[Step]) -> Receipt {
        let switched = |step: &Step| ServiceSwitch {
            service: step.service.config.name.to_string(),
            from: step.service.active,
            to: step.to,
            generation: step.service.number + 1,
        };
        Receipt {
            id: new_id(),
            at: rfc3339(SystemTime::now()),
            trigger: request.trigger,
            actor: request.actor.clone(),
            reason: request.reason.clone(),
            mode: if steps.iter().any(|step| request.fences(&step.service)) { Mode::Fence } else { Mode::Instant },
            took_us: 0,
            dry_run: request.dry_run,
            services: steps.iter().map(switched).collect(),
            drain: None,
        }
    }

    async fn commit(
        &self,
        changes: &[(String, Stored)],
        receipt: &Receipt,
        request: &SwitchRequest,
    ) -> Result<(), StoreError> {
        let json = serde_json::to_string(receipt).expect("a receipt has string keys only");
        let entry = Entry { id: receipt.id.clone(), json };
        let key = request.key.clone().map(|key| (key, request.fingerprint()));
        let changes = changes.to_vec();
        self.blocking(move |store| {
            let key = key.as_ref().map(|(key, fingerprint)| (key.as_str(), fingerprint.as_str()));
            store.commit(&changes, Some(&entry), key)
        })
        .await
    }

    /// The one store of the switch, and the drain of what it left behind.
    fn put_into_effect(&mut self, state: &State, steps: &[Step], fence: Option<&Fence>) -> Option<Arc<Drain>> {
        let next: Vec<_> = steps.iter().map(|step| self.switched(&step.service, step.to).share()).collect();
        // What a fence has held has left nothing behind; what ran before it has.
        let before: Vec<Service> = steps.iter().map(|step| before_fence(&step.service, fence)).collect();
        self.replace(state, next);
        if before.is_empty() {
            return None;
        }
        let drain = Arc::new(Drain::new(before.iter().map(|service| Leaving::new(service, true)).collect()));
        for service in &before {
            let requests = service.requests.as_ref().map(Arc::downgrade).unwrap_or_default();
            let former = Former { generation: Arc::downgrade(&service.generation), requests, drain: drain.clone() };
            let formers = self.former.entry(service.config.name.clone()).or_insert_with(|| ByColor::from_fn(|_| None));
            formers[service.active] = Some(former);
        }
        Some(drain)
    }

    /// Publishes these services instead of those with the same names.
    pub(super) fn replace(&self, state: &State, services: Vec<Arc<Service>>) {
        let before = state.snapshot.load_full();
        let mut all = before.services.clone();
        let vacancies: Vec<_> = services.iter().map(|service| service.active_pool().vacancy().clone()).collect();
        for service in services {
            if let Some(place) = before.places.get(&service.config.name) {
                all[*place] = service;
            }
        }
        let (config, places, router) = (before.config.clone(), before.places.clone(), before.router.clone());
        drop(before);
        state.publish(Snapshot { config, services: all, places, router });
        vacancies.iter().for_each(|vacancy| vacancy.announce());
    }

    /// The service with another color active. If anybody still works for the color's last tenure, that one goes on.
    fn switched(&mut self, service: &Service, to: Color) -> Service {
        let (generation, requests) = self.resume(&service.config.name, to).unzip();
        Service {
            active: to,
            number: service.number + 1,
            generation: generation.unwrap_or_else(|| new_generation(self.rosters.len())),
            requests: Some(requests.unwrap_or_default()),
            fenced: None,
            ..service.clone()
        }
    }

    fn resume(&mut self, service: &str, color: Color) -> Option<(Arc<Generation>, Arc<Requests>)> {
        let former = self.former.get_mut(service)?[color].take()?;
        let generation = former.generation.upgrade()?;
        let leaving = former.drain.leaving().iter().find(|leaving| leaving.tally.id() == generation.tally().id())?;
        leaving.keep(&self.rosters).then(|| (generation, former.requests.upgrade().unwrap_or_default()))
    }

    fn watch_drain(&self, state: &Arc<State>, record: &Arc<Record>) {
        let Some(drain) = record.drain().cloned() else { return };
        let (weak, record, store) = (Arc::downgrade(state), record.clone(), self.store.clone());
        let rosters = self.rosters.clone();
        state.drains.spawn(async move {
            drain.clone().run(rosters).await;
            if let Some(state) = weak.upgrade() {
                count_drain(&state, &drain);
            }
            log_drained(&record.receipt());
            keep_receipt(store, &record).await;
        });
    }

    /// Everything but the colors, which are returned.
    async fn reload(&mut self, state: &Arc<State>, config: Config) -> Result<Vec<Wanted>, StoreError> {
        let changes: Vec<_> = config.services.values().filter_map(|service| on_reload(service, &self.stored)).collect();
        if !changes.is_empty() {
            let committed = changes.clone();
            self.blocking(move |store| store.commit(&committed, None, None)).await?;
            self.stored.extend(changes);
        }
        let before = state.snapshot.load_full();
        let next = snapshot(Arc::new(config), Some(&before), &self.stored, self.rosters.len());
        let is_gone = |service: &&Arc<Service>| next.service(&service.config.name).is_none();
        let removed: Vec<Service> =
            before.services.iter().filter(is_gone).map(|service| self.without_fence(service)).collect();
        drop(before);
        let wanted = self.wanted(&next.config);
        state.keep_refused(&wanted);
        self.publish(state, next);
        self.drain_removed(removed);
        Ok(wanted)
    }

    fn wanted(&self, config: &Config) -> Vec<Wanted> {
        let changed = |service: &&Arc<config::Service>| {
            self.stored.get(&*service.name).is_some_and(|stored| stored.file_active != service.active)
        };
        let wanted = |service: &Arc<config::Service>| Wanted { service: service.name.clone(), to: service.active };
        config.services.values().filter(changed).map(wanted).collect()
    }

    /// The service as it was before a fence held it, if one does.
    fn without_fence(&self, service: &Service) -> Service {
        let fence = self.fences.iter().find(|fence| fence.held(&service.config.name).is_some());
        before_fence(service, fence)
    }

    fn drain_removed(&mut self, removed: Vec<Service>) {
        if removed.is_empty() {
            return;
        }
        let drain = Arc::new(Drain::new(removed.iter().map(|service| Leaving::new(service, false)).collect()));
        removed.iter().for_each(|service| drop(self.former.remove(&service.config.name)));
        drop(removed);
        tokio::spawn(drain.run(self.rosters.clone()));
    }

    /// Gives a name of a pool its addresses; those that stay keep their endpoints.
    fn resolve(&self, state: &State, resolved: Resolved) {
        let before = state.snapshot.load_full();
        let Some(service) = before.service(&resolved.service) else { return };
        let pool = &service.pools[resolved.color];
        if !service.config.pools[resolved.color].contains(&resolved.name) || has_addresses(pool, &resolved) {
            return;
        }
        let mut names: HashMap<Upstream, Vec<Address>> = HashMap::new();
        for endpoint in pool.endpoints() {
            names.entry(endpoint.upstream().clone()).or_default().push(endpoint.address().clone());
        }
        names.insert(resolved.name, resolved.addresses.into_iter().map(Address::Tcp).collect());
        let (config, color) = (&service.config, resolved.color);
        let mut next = (**service).clone();
        next.pools[color] = Arc::new(pool_of(config, color, &names, Some(pool), pool.vacancy(), self.rosters.len()));
        drop(before);
        self.replace(state, vec![next.share()]);
    }

    fn publish(&self, state: &State, next: Snapshot) {
        let vacancies: Vec<_> = next.services.iter().map(|service| service.active_pool().vacancy().clone()).collect();
        state.publish(next);
        vacancies.iter().for_each(|vacancy| vacancy.announce());
    }

    /// Runs `work` where it may wait for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

pub(super) type Answer = Result<Arc<Record>, Refusal>;

/// What a switch has come to before anything is changed.
enum Begun {
    /// It was done before.
    Done(Arc<Record>),
    Steps(Vec<Step>),
}

impl SwitchRequest {
    /// What makes two requests the same, whoever sends them.
    fn fingerprint(&self) -> String {
        let mode = self.mode.map_or(String::new(), |mode| format!(" mode {mode:?}"));
        format!("{:?} expect {:?} force {}{mode}", self.aims, self.expect, self.force)
    }

    /// Whether `other` is this request once more.
    fn is_repeated_by(&self, other: &SwitchRequest) -> bool {
        !other.dry_run && self.key.is_some() && self.key == other.key && self.fingerprint() == other.fingerprint()
    }
}

/// What the store has to learn about a switch.
fn changes(request: &SwitchRequest, steps: &[Step]) -> Vec<(String, Stored)> {
    let change = |step: &Step| {
        let stored = Stored {
            active: step.to,
            generation: step.service.number + 1,
            // Whoever switches has the last word: what the file asked for until now, it must ask for again.
            file_active: step.service.config.active,
            set_by: request.trigger.as_str().to_owned(),
            previous: Some(step.service.active),
            changed_at_ms: now_ms(),
        };
        (step.service.config.name.to_string(), stored)
    };
    steps.iter().map(change).collect()
}

/// What the store has to learn about a service when the proxy starts: the file wins if its `active` was changed.
fn on_start(service: &config::Service, stored: &BTreeMap<String, Stored>) -> Option<(String, Stored)> {
    let Some(known) = stored.get(&*service.name) else { return on_reload(service, stored) };
    if known.file_active == service.active {
        return None;
    }
    let mut changed = Stored { file_active: service.active, ..known.clone() };
    if known.active != service.active {
        changed.previous = Some(known.active);
        changed.active = service.active;
        changed.generation += 1;
        changed.set_by = Trigger::Config.as_str().to_owned();
        changed.changed_at_ms = now_ms();
    }
    Some((service.name.to_string(), changed))
}

/// What the store has to learn about a service at a reload: that it is there, or that the file now says what is so.
fn on_reload(service: &config::Service, stored: &BTreeMap<String, Stored>) -> Option<(String, Stored)> {
    let name = service.name.to_string();
    match stored.get(&name) {
        None => {
            let first = Stored {
                active: service.active,
                generation: 1,
                file_active: service.active,
                set_by: Trigger::Config.as_str().to_owned(),
                previous: None,
                changed_at_ms: now_ms(),
            };
            Some((name, first))
        }
        Some(known) if known.active == service.active && known.file_active != service.active => {
            Some((name, Stored { file_active: service.active, ..known.clone() }))
        }
        Some(_) => None,
    }
}

/// The service as it was before the fence held it.
fn before_fence(service: &Service, fence: Option<&Fence>) -> Service {
    let mut before = service.clone();
    if let Some(held) = fence.and_then(|fence| fence.held(&service.config.name)) {
        before.generation = held.generation.clone();
    }
    before
}

fn snapshot(
    config: Arc<Config>,
    before: Option<&Snapshot>,
    stored: &BTreeMap<String, Stored>,
    workers: usize,
) -> Snapshot {
    let next = |service: &Arc<config::Service>| {
        let before = before.and_then(|before| before.service(&service.name));
        next_service(service, before, stored.get(&*service.name), workers).share()
    };
    let services: Vec<Arc<Service>> = config.services.values().map(next).collect();
    let places: HashMap<Arc<str>, usize> =
        services.iter().enumerate().map(|(place, service)| (service.config.name.clone(), place)).collect();
    let router =
        Arc::new(Router::new(&config.routes, |name| places.get(name).copied(), before.map(|before| &*before.router)));
    Snapshot { config, services, places: Arc::new(places), router }
}

/// The service as a new configuration describes it, with all that outlives a reload.
fn next_service(
    config: &Arc<config::Service>,
    before: Option<&Arc<Service>>,
    stored: Option<&Stored>,
    workers: usize,
) -> Service {
    let active = stored.map_or(config.active, |stored| stored.active);
    let vacancy = before.map_or_else(Arc::default, |before| before.pools.blue.vacancy().clone());
    let pool = |color: Color| {
        let before = before.map(|before| &*before.pools[color]);
        let mut names: HashMap<Upstream, Vec<Address>> = HashMap::new();
        for endpoint in before.iter().flat_map(|pool| pool.endpoints()) {
            names.entry(endpoint.upstream().clone()).or_default().push(endpoint.address().clone());
        }
        Arc::new(pool_of(config, color, &names, before, &vacancy, workers))
    };
    let pools = ByColor::from_fn(pool);
    let number = stored.map_or(1, |stored| stored.generation);
    match before {
        None => Service::new(config.clone(), active, number, pools, workers),
        Some(before) => Service { config: config.clone(), active, number, pools, ..(**before).clone() },
    }
}

/// The pool of a color; endpoints stay that are reached as before. `names` has the addresses of DNS names.
fn pool_of(
    config: &config::Service,
    color: Color,
    names: &HashMap<Upstream, Vec<Address>>,
    before: Option<&Pool>,
    vacancy: &Arc<Vacancy>,
    workers: usize,
) -> Pool {
    let transport = Transport { protocol: config.protocol, tls: config.upstream_tls.clone() };
    let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
    let mut unresolved = Vec::new();
    for upstream in &config.pools[color] {
        let addresses = match upstream {
            Upstream::Ip(address) => vec![Address::Tcp(*address)],
            Upstream::Unix(path) => vec![Address::Unix(path.clone())],
            Upstream::Name { .. } => names.get(upstream).cloned().unwrap_or_default(),
        };
        if addresses.is_empty() {
            unresolved.push(upstream.clone());
        }
        for address in addresses {
            let is_same = |known: &&Arc<Endpoint>| {
                known.upstream() == upstream && *known.address() == address && *known.transport() == transport
            };
            let known = before.and_then(|before| before.endpoints().iter().find(is_same)).cloned();
            let new = || {
                Arc::new(Endpoint::new(upstream.clone(), address.clone(), transport.clone(), workers, vacancy.clone()))
            };
            endpoints.push(known.unwrap_or_else(new));
        }
    }
    Pool::new(endpoints, unresolved, vacancy.clone())
}

/// Whether the pool has just these addresses for the name already. No answer at all keeps what there is.
fn has_addresses(pool: &Pool, resolved: &Resolved) -> bool {
    let of_name = pool.endpoints().iter().filter(|endpoint| *endpoint.upstream() == resolved.name);
    let mut now: Vec<String> = of_name.map(|endpoint| endpoint.address().to_string()).collect();
    let mut then: Vec<String> = resolved.addresses.iter().map(ToString::to_string).collect();
    now.sort();
    then.sort();
    then.is_empty() || now == then
}

fn micros_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Ids sort by time.
fn new_id() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let wanted = now_ms() << 12;
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(wanted.max(last + 1)));
    let id = wanted.max(last.unwrap_or_default() + 1);
    format!("{id:014x}")
}
