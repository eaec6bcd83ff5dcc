//! Whether the balancer in front should send traffic here.

use crate::config::ReadyWhen;
use crate::state::{Snapshot, State};

/// What a balancer is told, for the whole process: whichever worker is asked answers for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    Ready,
    /// The process is about to stop.
    Draining,
    /// One of the workers has not come round for seconds: what it was given waits.
    Stuck,
    /// Too few services have a healthy endpoint in their active color.
    Unhealthy,
}

impl Readiness {
    /// In a few words that tell nothing about our insides.
    pub fn as_str(self) -> &'static str {
        match self {
            Readiness::Ready => "ready",
            Readiness::Draining => "draining",
            Readiness::Stuck => "stuck",
            Readiness::Unhealthy => "no healthy service",
        }
    }
}

impl State {
    /// Whether a listener that is ready when `when` says so is.
    pub fn readiness(&self, when: ReadyWhen) -> Readiness {
        if self.is_draining() {
            Readiness::Draining
        } else if self.rosters.iter().any(|roster| roster.is_stuck()) {
            Readiness::Stuck
        } else if !is_served(&self.load(), when) {
            Readiness::Unhealthy
        } else {
            Readiness::Ready
        }
    }

    /// That of the listener that asks for most.
    pub fn overall_readiness(&self) -> Readiness {
        let listeners = &self.load().config.listeners;
        let strictest = listeners.iter().map(|listener| listener.ready_when).max();
        self.readiness(strictest.unwrap_or(ReadyWhen::Running))
    }
}

/// A service without endpoints has none that is healthy; where there are no services, none can fail.
fn is_served(snapshot: &Snapshot, when: ReadyWhen) -> bool {
    let mut healthy = snapshot
        .services
        .iter()
        .map(|service| service.active_pool().endpoints().iter().any(|endpoint| endpoint.is_healthy()));
    match when {
        ReadyWhen::Running => true,
        ReadyWhen::Any => snapshot.services.is_empty() || healthy.any(|is_healthy| is_healthy),
        ReadyWhen::All => healthy.all(|is_healthy| is_healthy),
    }
}
