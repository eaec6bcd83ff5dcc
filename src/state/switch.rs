//! What a switch asks for, and why one is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::config::{self, Color, Mode};
use crate::service::Service;
use crate::state::{Busy, Snapshot};
use crate::store::{StoreError, Stored};
use crate::upstream::Health;

/// One or more services to be switched in one step, all or none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwitchRequest {
    pub aims: BTreeMap<String, Aim>,
    /// Colors that must be active now.
    pub expect: BTreeMap<String, Color>,
    /// `None`: as the service is configured.
    pub mode: Option<Mode>,
    /// Switch although the target has too few healthy endpoints.
    pub force: bool,
    /// Decide, and change nothing.
    pub dry_run: bool,
    pub reason: Option<String>,
    pub actor: Option<String>,
    pub trigger: Trigger,
    /// A request with the same key is done once; the second gets the first one's receipt.
    pub key: Option<String>,
}

/// Where a service should go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aim {
    To(Color),
    /// To the color before the last switch.
    Back,
}

/// What asked for a switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    Api,
    Cli,
    Config,
}

impl Trigger {
    pub fn as_str(self) -> &'static str {
        match self {
            Trigger::Api => "api",
            Trigger::Cli => "cli",
            Trigger::Config => "config",
        }
    }
}

/// Why a switch changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("no service is named")]
    Nothing,
    #[error("unknown service {name:?}, known are: {}", known.join(", "))]
    UnknownService { name: String, known: Vec<String> },
    #[error("{service}: {active} is active, expected {expected}")]
    Unexpected { service: String, expected: Color, active: Color },
    #[error("{service}: {color} has no endpoints, nothing is deployed there")]
    Empty { service: String, color: Color },
    #[error("{service}: {healthy} of {total} endpoints of {color} are healthy, {needed} needed{}", reasons(endpoints))]
    NotHealthy {
        service: String,
        color: Color,
        healthy: usize,
        needed: usize,
        total: usize,
        /// Those that are not healthy.
        endpoints: Vec<EndpointHealth>,
    },
    #[error("{service}: there has been no switch to go back from")]
    NothingToRollBack { service: String },
    #[error("{service}: a reload has replaced the service meanwhile")]
    Replaced { service: String },
    #[error("{service}: another switch is in progress")]
    InProgress { service: String },
    #[error("the old color's requests did not end in time, so the switch was abandoned{}", list_running(running))]
    FenceTimeout { running: Vec<StillRunning> },
    #[error("idempotency key {0:?} was used for another request")]
    KeyReused(String),
    #[error("the switch cannot be recorded, so it was not done")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// An endpoint that keeps a switch from happening.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct EndpointHealth {
    pub endpoint: String,
    #[schema(value_type = String)]
    pub health: Health,
    /// What its last probe said.
    pub error: Option<String>,
}

/// What kept a fence from being passed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct StillRunning {
    pub service: String,
    pub color: Color,
    /// Plain requests that had not ended.
    pub requests: u64,
}

fn list_running(running: &[StillRunning]) -> String {
    let one =
        |still: &StillRunning| format!("; {}: {} still running on {}", still.service, still.requests, still.color);
    running.iter().map(one).collect()
}

fn reasons(endpoints: &[EndpointHealth]) -> String {
    let one = |endpoint: &EndpointHealth| {
        let reason = match (&endpoint.error, endpoint.health) {
            (Some(error), _) => error,
            (None, Health::Unknown) => "not probed yet",
            // Its last probe was good, and it needs more of them.
            (None, _) => "recovering",
        };
        format!("; {}: {reason}", endpoint.endpoint)
    };
    endpoints.iter().take(5).map(one).collect()
}

/// What is to be done for one service.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) service: Arc<Service>,
    pub(super) to: Color,
}

impl SwitchRequest {
    /// The services that have to change, or why the request is refused. Looks only.
    pub(super) fn plan(&self, snapshot: &Snapshot, stored: &BTreeMap<String, Stored>) -> Result<Vec<Step>, Refusal> {
        if self.aims.is_empty() {
            return Err(Refusal::Nothing);
        }
        for (name, expected) in &self.expect {
            let active = find(snapshot, name)?.active;
            if active != *expected {
                return Err(Refusal::Unexpected { service: name.clone(), expected: *expected, active });
            }
        }
        let mut steps = Vec::new();
        for (name, aim) in &self.aims {
            let service = find(snapshot, name)?.clone();
            let stored = stored.get(name);
            let previous = || stored.and_then(|stored| stored.previous);
            let to = match aim {
                Aim::To(color) => *color,
                Aim::Back => previous().ok_or_else(|| Refusal::NothingToRollBack { service: name.clone() })?,
            };
            if self.trigger == Trigger::Config && !is_wanted(&service.config, to, stored) {
                // While the switch waited for its endpoints the file was changed once more, or the API has switched.
                continue;
            }
            if to != service.active {
                steps.push(self.step(&service, to)?);
            }
        }
        Ok(steps)
    }

    /// The step of one service, if it may be taken.
    pub(super) fn step(&self, service: &Arc<Service>, to: Color) -> Result<Step, Refusal> {
        self.check_health(service, to)?;
        Ok(Step { service: service.clone(), to })
    }

    fn check_health(&self, service: &Service, color: Color) -> Result<(), Refusal> {
        let pool = &service.pools[color];
        let name = || service.config.name.to_string();
        let total = pool.endpoints().len() + pool.unresolved().len();
        if total == 0 {
            return Err(Refusal::Empty { service: name(), color });
        }
        let (healthy, needed) = (pool.healthy(), service.config.switch.min_healthy.of(total));
        if healthy >= needed || self.force {
            return Ok(());
        }
        let endpoints = unwell(service, color);
        Err(Refusal::NotHealthy { service: name(), color, healthy, needed, total, endpoints })
    }
}

/// Whether the config file asks for this color and nobody has switched the service since it began to.
fn is_wanted(service: &config::Service, color: Color, stored: Option<&Stored>) -> bool {
    service.active == color && stored.is_some_and(|stored| stored.file_active != color)
}

pub(super) fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Arc<Service>, Refusal> {
    snapshot.service(name).ok_or_else(|| Refusal::UnknownService {
        name: name.to_owned(),
        known: snapshot.services.iter().map(|service| service.config.name.to_string()).collect(),
    })
}

fn unwell(service: &Service, color: Color) -> Vec<EndpointHealth> {
    let pool = &service.pools[color];
    let known = pool.endpoints().iter().filter(|endpoint| !endpoint.is_healthy()).map(|endpoint| EndpointHealth {
        endpoint: endpoint.name().to_string(),
        health: endpoint.health(),
        error: endpoint.last_probe().and_then(|probe| probe.error),
    });
    let unresolved = pool.unresolved().iter().map(|name| EndpointHealth {
        endpoint: name.to_string(),
        health: Health::Unknown,
        error: Some("the name has no address".to_owned()),
    });
    known.chain(unresolved).collect()
}
