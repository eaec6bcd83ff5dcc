//! A service as a request sees it: its settings, its two pools, the active color and that color's generation.
//!
//! A [`Service`] is part of a snapshot and never changes; a switch or a reload makes a new one. A request that has
//! chosen its service holds a [`Passage`], which owns the service and with it the generation until the body or tunnel
//! is over. Nothing that outlives requests may hold an `Arc<Service>` or a `Passage`.

mod generation;
mod returning;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use crate::config::{self, ByColor, Color};
use crate::metrics::{ColorShard, ServiceStats};
use crate::upstream::Pool;

pub use generation::{ByKind, Count, Generation, Kind, Tally};
pub use returning::Returning;

/// What `generation.rs` is built from; the loom model brings its own.
mod sync {
    pub(super) use std::sync::Arc;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    pub(super) use crossbeam_utils::CachePadded;
    pub(super) use tokio::sync::Notify as Signal;
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A generation with an id that no other of this process has.
pub fn new_generation(workers: usize) -> Arc<Generation> {
    Arc::new(Generation::new(NEXT_ID.fetch_add(1, Ordering::Relaxed), workers))
}

/// One service of a snapshot.
#[derive(Clone, Debug)]
pub struct Service {
    pub config: Arc<config::Service>,
    pub active: Color,
    /// Number of the active color's tenure; only ever grows.
    pub number: u64,
    pub generation: Arc<Generation>,
    /// Shared with every plain request of the tenure; `None` in what streams and held requests see.
    pub requests: Option<Arc<Requests>>,
    /// The generation that works behind the fence, while one is up.
    pub fenced: Option<Arc<Tally>>,
    pub pools: ByColor<Arc<Pool>>,
    pub stats: Arc<ServiceStats>,
    pub returning: Arc<Returning>,
    /// The same service as its streams see it; [`Service::share`] makes it.
    pub for_streams: Option<Arc<Service>>,
}

/// Owned by every plain request of a tenure, as a [`Generation`] is owned by all its exchanges.
#[derive(Debug, Default)]
pub struct Requests {
    over: CancellationToken,
}

impl Requests {
    /// Cancelled when the last plain request has ended.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Service {
    /// A service at the beginning of its first tenure.
    pub fn new(
        config: Arc<config::Service>,
        active: Color,
        number: u64,
        pools: ByColor<Arc<Pool>>,
        workers: usize,
    ) -> Service {
        Service {
            config,
            active,
            number,
            generation: new_generation(workers),
            requests: Some(Arc::default()),
            fenced: None,
            pools,
            stats: Arc::new(ServiceStats::new(workers)),
            returning: Arc::default(),
            for_streams: None,
        }
    }

    /// As a snapshot has it.
    pub fn share(mut self) -> Arc<Service> {
        self.for_streams = None;
        if self.requests.is_some() {
            self.for_streams = Some(Arc::new(Service { requests: None, ..self.clone() }));
        }
        Arc::new(self)
    }

    /// Enters the active generation on behalf of one request of `worker`.
    pub fn enter(self: &Arc<Service>, worker: usize, asks_for_stream: bool) -> Passage {
        self.generation.tally().enter(worker, Kind::Http);
        let passage = Passage {
            service: self.clone(),
            worker,
            kind: Kind::Http,
            is_cut: false,
            is_shaking_hands: asks_for_stream,
        };
        passage.stats().begin(Kind::Http as usize);
        if asks_for_stream {
            passage.stats().handshakes.begun.fetch_add(1, Ordering::Relaxed);
        }
        passage
    }

    /// New requests wait: a fence is up.
    pub fn is_held(&self) -> bool {
        self.fenced.is_some()
    }

    /// The counts of those who work for the active color, whether new ones are held or not.
    pub fn at_work(&self) -> &Arc<Tally> {
        self.fenced.as_ref().unwrap_or_else(|| self.generation.tally())
    }

    pub fn active_pool(&self) -> &Arc<Pool> {
        &self.pools[self.active]
    }
}

/// One exchange's stay in a generation; dropping it leaves.
#[derive(Debug)]
pub struct Passage {
    service: Arc<Service>,
    worker: usize,
    kind: Kind,
    is_cut: bool,
    /// It asks for a stream and has no answer yet.
    is_shaking_hands: bool,
}

impl Passage {
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The id by which a drain finds the exchanges of its generation.
    pub fn generation_id(&self) -> u64 {
        self.service.generation.tally().id()
    }

    /// The exchange turned out to be a stream: whoever waits for plain requests need not wait for it.
    pub fn turn(&mut self, kind: Kind) {
        self.answered(true);
        if let Some(service) = self.service.for_streams.clone() {
            self.service = service;
        }
        self.service.generation.tally().turn(self.worker, self.kind, kind);
        self.stats().turn(self.kind as usize, kind as usize);
        self.kind = kind;
    }

    /// How a request for a stream was answered, if it is one; false: the color failed to take it.
    pub fn answered(&mut self, is_taken: bool) {
        if std::mem::take(&mut self.is_shaking_hands) {
            let handshakes = &self.stats().handshakes;
            let count = if is_taken { &handshakes.taken } else { &handshakes.failed };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The exchange did not end by itself: a deadline ended it.
    pub fn cut(&mut self) {
        self.is_cut = true;
    }

    pub fn stats(&self) -> &ColorShard {
        self.service.stats.shard(self.service.active, self.worker)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.answered(true);
        self.stats().end(self.kind as usize);
        self.service.generation.tally().leave(self.worker, self.kind, self.is_cut);
    }
}
