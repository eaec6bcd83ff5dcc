//! The services as one snapshot has them, without what a drain waits for.
//!
//! Writing a status or the metrics takes a while; whoever held the snapshot meanwhile would hold its generations, and
//! with them a drain that begins just then. So the few shared parts are copied out, and the snapshot is let go.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::{self, ByColor, Color};
use crate::metrics::ServiceStats;
use crate::service::{ByKind, Kind, Service};
use crate::state::State;
use crate::upstream::Pool;

/// One service of a snapshot.
pub(super) struct Seen {
    pub(super) config: Arc<config::Service>,
    pub(super) active: Color,
    pub(super) number: u64,
    pub(super) is_held: bool,
    pub(super) pools: ByColor<Arc<Pool>>,
    pub(super) stats: Arc<ServiceStats>,
}

/// All services, by name.
pub(super) fn see(state: &State) -> Vec<Seen> {
    state.load().services.iter().map(|service| Seen::new(service)).collect()
}

impl Seen {
    pub(super) fn new(service: &Service) -> Seen {
        Seen {
            config: service.config.clone(),
            active: service.active,
            number: service.number,
            is_held: service.is_held(),
            pools: service.pools.clone(),
            stats: service.stats.clone(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    /// Exchanges under way. The shards are not read at one moment, so a sum may be off by what moves meanwhile.
    pub(super) fn in_flight(&self, color: Color) -> ByKind<u64> {
        Kind::ALL.map(|kind| {
            let sum: i64 =
                self.stats.shards(color).map(|shard| shard.in_flight[kind as usize].load(Ordering::Relaxed)).sum();
            u64::try_from(sum).unwrap_or_default()
        })
    }
}
