//! The endpoints of a color and how one is chosen and lent.
//!
//! A [`Pool`] is part of a snapshot: its list never changes. Its [`Endpoint`]s live on from snapshot to snapshot as long
//! as (service, color, address) stays, and with them their health, their idle connections and their requests.

mod balance;
mod connect;
mod endpoint;
mod sharing;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::config::Upstream;

pub use balance::{Choice, hash_key};
pub use connect::{connect, is_ours};
pub use endpoint::{Endpoint, Health, Lease, ProbeResult, Transport};
pub use sharing::{Open, Sharing};

/// The endpoints of one color of one service.
#[derive(Debug)]
pub struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    /// DNS names of the pool that have no address yet.
    unresolved: Vec<Upstream>,
    turn: AtomicUsize,
    vacancy: Arc<Vacancy>,
}

impl Pool {
    pub fn new(endpoints: Vec<Arc<Endpoint>>, unresolved: Vec<Upstream>, vacancy: Arc<Vacancy>) -> Pool {
        Pool { endpoints, unresolved, turn: AtomicUsize::new(0), vacancy }
    }

    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    pub fn unresolved(&self) -> &[Upstream] {
        &self.unresolved
    }

    /// Endpoints that a switch may count on.
    pub fn healthy(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.is_healthy()).count()
    }

    /// What a request waits for when no endpoint can take it.
    pub fn vacancy(&self) -> &Arc<Vacancy> {
        &self.vacancy
    }

    /// One more failure of `endpoint`; after `limit` in a row it is ejected, unless it is the last one that is left.
    pub fn failed(&self, endpoint: &Endpoint, outlier: &crate::config::Outlier) {
        let Some(limit) = outlier.consecutive_errors else { return };
        if endpoint.count_failure() < limit {
            return;
        }
        let _one_at_a_time = self.vacancy.ejecting.lock();
        let has_other = self.endpoints.iter().any(|other| !std::ptr::eq(&**other, endpoint) && other.is_available());
        if has_other && endpoint.is_available() {
            endpoint.eject(outlier.eject);
        }
    }
}

/// Where requests of a service wait until an endpoint can take them. Shared by all its snapshots.
#[derive(Debug, Default)]
pub struct Vacancy {
    changed: Notify,
    waiting: AtomicUsize,
    ejecting: parking_lot::Mutex<()>,
}

impl Vacancy {
    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Everybody looks again: an endpoint became healthy, or there is a new snapshot.
    pub fn announce(&self) {
        self.changed.notify_waiters();
    }

    /// A place at one endpoint is free.
    pub fn one_free(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.changed.notify_one();
        }
    }

    /// Runs `attempt` until it gives something, after each change. Waits for ever: bound it from outside.
    pub async fn wait_for<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        let _waiting = Waiting::new(&self.waiting);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = attempt() {
                return found;
            }
            changed.await;
        }
    }
}

/// Counts a waiter for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Waiting<'a> {
        waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
