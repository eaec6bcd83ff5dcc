//! A service as a request sees it: its settings, its two pools, the active color and that color's generation.
//!
//! A [`Service`] is part of a snapshot and never changes; a switch or a reload makes a new one. A request that has
//! chosen its service holds a [`Passage`], which owns the service and with it the generation until the body or tunnel
//! is over. Nothing that outlives requests may hold an `Arc<Service>` or a `Passage`.

mod generation;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::{self, ByColor, Color};
use crate::metrics::{ColorShard, ServiceStats};
use crate::upstream::Pool;

pub use generation::{ByKind, Count, Generation, Kind, Tally};

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
#[derive(Debug)]
pub struct Service {
    pub config: Arc<config::Service>,
    pub active: Color,
    /// Number of the active color's tenure; only ever grows.
    pub number: u64,
    pub generation: Arc<Generation>,
    pub pools: ByColor<Arc<Pool>>,
    pub stats: Arc<ServiceStats>,
}

impl Service {
    /// Enters the active generation on behalf of one request of `worker`.
    pub fn enter(self: &Arc<Service>, worker: usize) -> Passage {
        self.generation.tally().enter(worker, Kind::Http);
        let passage = Passage { service: self.clone(), worker, kind: Kind::Http, is_cut: false };
        passage.stats().begin(Kind::Http as usize);
        passage
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

    /// The exchange turned out to be a stream.
    pub fn turn(&mut self, kind: Kind) {
        self.service.generation.tally().turn(self.worker, self.kind, kind);
        self.stats().turn(self.kind as usize, kind as usize);
        self.kind = kind;
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
        self.stats().end(self.kind as usize);
        self.service.generation.tally().leave(self.worker, self.kind, self.is_cut);
    }
}
