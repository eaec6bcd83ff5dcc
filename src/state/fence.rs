//! A switch that lets no two colors run requests at the same time: new ones are held until the old color's have ended.
//!
//! A held service is published with a generation that nobody executes anything for and without the token that plain
//! requests own, so the token's end says that none of them is left. Streams are no part of it: they are told goodbye after
//! the switch, as ever.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::config::{Color, Mode};
use crate::service::{Generation, Kind, Requests, Service, new_generation};
use crate::state::State;
use crate::state::switch::{Refusal, Step, StillRunning, SwitchRequest, find};
use crate::state::writer::{Answer, Writer};

/// A switch that waits for the end of requests.
#[derive(Debug)]
pub(super) struct Fence {
    pub(super) id: u64,
    pub(super) request: SwitchRequest,
    pub(super) called: Instant,
    /// Of every service of the switch, by name.
    to: BTreeMap<Arc<str>, Color>,
    pub(super) held: Vec<Held>,
    reply: oneshot::Sender<Answer>,
    /// The same request again, by its key: to be answered when this one is.
    pub(super) repeated: Vec<(SwitchRequest, Instant, oneshot::Sender<Answer>)>,
}

/// What a service had before it was held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) service: Arc<str>,
    pub(super) color: Color,
    pub(super) generation: Arc<Generation>,
    requests: Weak<Requests>,
}

impl Held {
    /// Plain requests that have not ended.
    fn running(&self) -> u64 {
        self.generation.tally().counts()[Kind::Http as usize].open()
    }
}

impl Fence {
    /// A service that both switch.
    pub(super) fn concerns<'r>(&self, request: &'r SwitchRequest) -> Option<&'r str> {
        request.aims.keys().find(|name| self.to.contains_key(name.as_str())).map(String::as_str)
    }

    /// What had the service when the fence went up.
    pub(super) fn held(&self, service: &str) -> Option<&Held> {
        self.held.iter().find(|held| *held.service == *service)
    }
}

impl SwitchRequest {
    /// Whether this service's requests must not overlap.
    pub(super) fn fences(&self, service: &Service) -> bool {
        self.mode.unwrap_or(service.config.switch.mode) == Mode::Fence
    }
}

impl Writer {
    /// Holds new requests of the services of `steps` that ask for it, and begins to wait for those that run.
    pub(super) fn raise_fence(
        &mut self,
        state: &State,
        request: SwitchRequest,
        called: Instant,
        steps: Vec<Step>,
        reply: oneshot::Sender<Answer>,
    ) {
        let fenced = || steps.iter().filter(|step| request.fences(&step.service));
        let held: Vec<Held> = fenced().map(|step| held(&step.service)).collect();
        let over: Vec<_> = fenced().filter_map(|step| Some(step.service.requests.as_ref()?.over())).collect();
        let limit = fenced().map(|step| step.service.config.switch.fence_timeout).min().unwrap_or_default();
        let next = |service: &Service| Service {
            generation: new_generation(self.rosters.len()),
            requests: None,
            fenced: Some(service.generation.tally().clone()),
            ..service.clone()
        };
        let services = fenced().map(|step| next(&step.service).share()).collect();
        let to = steps.iter().map(|step| (step.service.config.name.clone(), step.to)).collect();
        // The steps own the requests' token.
        drop(steps);
        self.replace(state, services);
        self.last_fence += 1;
        let id = self.last_fence;
        self.fences.push(Fence { id, request, called, to, held, reply, repeated: Vec::new() });
        self.waits.spawn(async move { (id, all_over(&over, limit).await) });
    }

    /// The wait of a fence is over: all requests have ended, or not in time.
    pub(super) async fn end_fence(&mut self, state: &Arc<State>, id: u64, is_over: bool) {
        let Some(place) = self.fences.iter().position(|fence| fence.id == id) else { return };
        let fence = self.fences.remove(place);
        let running = running(&fence);
        let timed_out = || Refusal::FenceTimeout { running: running.clone() };
        let result = if is_over { self.pass_fence(state, &fence).await } else { Err(timed_out()) };
        if result.is_err() {
            self.lift_fence(state, &fence);
        }
        self.note(state, &fence.request, &result);
        let _ = fence.reply.send(result);
        for (request, called, reply) in fence.repeated {
            if is_over {
                self.switch(state, request, called, reply).await;
            } else {
                let _ = reply.send(Err(timed_out()));
            }
        }
    }

    async fn pass_fence(&mut self, state: &Arc<State>, fence: &Fence) -> Answer {
        let steps = {
            let snapshot = state.load();
            let step = |(name, to): (&Arc<str>, &Color)| {
                let service = find(&snapshot, name)?;
                // One that was removed and came again is another one.
                let is_same = service.is_held() == fence.held(name).is_some();
                if is_same {
                    fence.request.step(service, *to)
                } else {
                    Err(Refusal::Replaced { service: name.to_string() })
                }
            };
            fence.to.iter().map(step).collect::<Result<Vec<_>, _>>()?
        };
        self.carry_out(state, &fence.request, fence.called, &steps, Some(fence)).await
    }

    /// What was held goes where it would have gone.
    fn lift_fence(&mut self, state: &State, fence: &Fence) {
        let services: Vec<_> = {
            let snapshot = state.load();
            let of = |held: &Held| snapshot.service(&held.service).filter(|service| service.is_held());
            let still = fence.held.iter().filter_map(|held| Some((of(held)?, held)));
            let lifted = |service: &Service, held: &Held| Service {
                generation: held.generation.clone(),
                // Those that still run belong to the tenure that goes on.
                requests: Some(held.requests.upgrade().unwrap_or_default()),
                fenced: None,
                ..service.clone()
            };
            still.map(|(service, held)| lifted(service, held).share()).collect()
        };
        self.replace(state, services);
    }
}

fn held(service: &Service) -> Held {
    Held {
        service: service.config.name.clone(),
        color: service.active,
        generation: service.generation.clone(),
        requests: service.requests.as_ref().map(Arc::downgrade).unwrap_or_default(),
    }
}

async fn all_over(over: &[tokio_util::sync::CancellationToken], limit: Duration) -> bool {
    let all = async {
        for token in over {
            token.cancelled().await;
        }
    };
    tokio::time::timeout(limit, all).await.is_ok()
}

/// What keeps the fence from being passed.
fn running(fence: &Fence) -> Vec<StillRunning> {
    let running = fence.held.iter().map(|held| StillRunning {
        service: held.service.to_string(),
        color: held.color,
        requests: held.running(),
    });
    running.filter(|still| still.requests > 0).collect()
}
