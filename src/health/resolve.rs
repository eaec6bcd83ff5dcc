//! Looks up the addresses of the DNS names in pools, again and again.
//!
//! Resolving blocks a thread of the blocking pool for as long as the system's resolver likes. So there is one call per
//! name at a time, however long it takes, and few at once: the rest of that pool is for the store. A call that takes
//! too long is waited out, but its answer is no longer news. What cannot be resolved keeps the addresses that it has.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::config::{Address, Color, Upstream};
use crate::health::probe::reason;
use crate::health::{Settings, is_due};
use crate::state::{Resolved, Snapshot, State};
use crate::upstream::Endpoint;

/// Calls of the system's resolver at once.
const MAX_CALLS: usize = 32;
/// How long an answer is waited for; the usual resolver has asked two servers by then.
const PATIENCE: Duration = Duration::from_secs(10);
/// Addresses of one name.
const MAX_ADDRESSES: usize = 64;

/// What all names share.
pub(super) struct Resolver {
    state: Weak<State>,
    calls: Arc<Semaphore>,
    /// Held while the writer is told, so that many names leave its queue to others.
    telling: Semaphore,
}

impl Resolver {
    pub(super) fn new(state: Weak<State>) -> Resolver {
        Resolver { state, calls: Arc::new(Semaphore::new(MAX_CALLS)), telling: Semaphore::new(1) }
    }

    /// Resolves `name` at once, and then every `resolve_interval` until the service is gone.
    pub(super) async fn keep_resolving(self: Arc<Resolver>, name: Upstream, color: Color, mut settings: Settings) {
        let Upstream::Name { host, port } = &name else { return };
        let service = settings.borrow().name.clone();
        let mut outcome = None;
        loop {
            let mut call = Call::begin(&self.calls, tokio::net::lookup_host((host.to_string(), *port))).await;
            let last = Instant::now();
            let answer = call.answer().await;
            if outcome.as_ref() != Some(&answer) {
                log(&service, color, &name, &answer);
            }
            if let Ok(addresses) = &answer {
                let (service, name, addresses) = (service.clone(), name.clone(), addresses.clone());
                self.tell(Resolved { service, color, name, addresses }).await;
            }
            outcome = Some(answer);
            call.end().await;
            if !is_due(last, &mut settings, |service| service.resolve_interval).await {
                return;
            }
        }
    }

    async fn tell(&self, resolved: Resolved) {
        let _turn = self.telling.acquire().await;
        let Some(state) = self.state.upgrade() else { return };
        if !is_known(&state.load(), &resolved) {
            // A writer with too much to do is told when the next answer is here.
            let _ = state.resolved(resolved).await;
        }
    }
}

/// Whether the name has these addresses already. The snapshot is asked, not the memory of the last answer, because a
/// service that goes and comes back has forgotten them.
fn is_known(snapshot: &Snapshot, resolved: &Resolved) -> bool {
    let Some(service) = snapshot.service(&resolved.service) else { return true };
    let address = |endpoint: &Arc<Endpoint>| match endpoint.address() {
        Address::Tcp(address) if *endpoint.upstream() == resolved.name => Some(*address),
        _ => None,
    };
    let known: BTreeSet<SocketAddr> = service.pools[resolved.color].endpoints().iter().filter_map(address).collect();
    known.into_iter().eq(resolved.addresses.iter().copied())
}

/// Why a name has no addresses.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
enum Unresolved {
    #[error("{0}")]
    Failed(String),
    #[error("it has no addresses")]
    Empty,
    #[error("no answer within {}", humantime::format_duration(PATIENCE))]
    Late,
}

/// Sorted, so that two answers are equal if they say the same.
type Answer = Result<Vec<SocketAddr>, Unresolved>;

/// One call of the resolver. Whoever drops it stops waiting; the call itself cannot be stopped and keeps its permit.
struct Call(JoinHandle<Answer>);

impl Call {
    /// Begins when there is a permit.
    async fn begin<T>(calls: &Arc<Semaphore>, lookup: impl Future<Output = io::Result<T>> + Send + 'static) -> Call
    where
        T: Iterator<Item = SocketAddr>,
    {
        let permit = calls.clone().acquire_owned().await;
        Call(tokio::spawn(async move {
            let _held_to_the_end = permit;
            match lookup.await {
                Ok(found) => chosen(found),
                Err(error) => Err(Unresolved::Failed(reason(&error))),
            }
        }))
    }

    /// What it says, if it says it in time.
    async fn answer(&mut self) -> Answer {
        match timeout(PATIENCE, &mut self.0).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(Unresolved::Failed(error.to_string())),
            Err(_) => Err(Unresolved::Late),
        }
    }

    /// Waits it out; to be called after [`Call::answer`].
    async fn end(self) {
        if !self.0.is_finished() {
            // Whatever it says is too old by now.
            let _ = self.0.await;
        }
    }
}

/// The addresses to use. Those of one family: a host with one of each is one endpoint, not two of which one cannot be
/// reached wherever IPv6 is not routed.
fn chosen(found: impl Iterator<Item = SocketAddr>) -> Answer {
    let all: BTreeSet<SocketAddr> = found.collect();
    let has_v4 = all.iter().any(SocketAddr::is_ipv4);
    let chosen: Vec<_> = all.into_iter().filter(|address| address.is_ipv4() == has_v4).take(MAX_ADDRESSES).collect();
    if chosen.is_empty() { Err(Unresolved::Empty) } else { Ok(chosen) }
}

fn log(service: &str, color: Color, name: &Upstream, answer: &Answer) {
    match answer {
        Ok(addresses) => tracing::info!(service, %color, %name, ?addresses, "name resolved"),
        Err(reason) => tracing::warn!(service, %color, %name, %reason, "name not resolved"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    type Addresses = std::vec::IntoIter<SocketAddr>;

    fn addresses(list: &[&str]) -> Addresses {
        list.iter().map(|address| address.parse().expect(address)).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn addresses_are_sorted_bounded_and_of_one_family() {
        let found = addresses(&["[::1]:80", "10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(chosen(found), Ok(addresses(&["10.0.0.1:80", "10.0.0.2:80"]).collect()));
        let found = addresses(&["[::2]:80", "[::1]:80"]);
        assert_eq!(chosen(found), Ok(addresses(&["[::1]:80", "[::2]:80"]).collect()));
        let many = (0..=255).map(|last| SocketAddr::from(([10, 0, 0, last], 80)));
        assert_eq!(chosen(many.clone().rev()), Ok(many.take(MAX_ADDRESSES).collect()));
        assert_eq!(chosen(addresses(&[])), Err(Unresolved::Empty));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_keeps_its_permit_until_it_ends() {
        let calls = Arc::new(Semaphore::new(1));
        let (hang_up, hanging) = oneshot::channel::<Addresses>();
        let lookup = async { hanging.await.map_err(io::Error::other) };
        let (mut call, start) = (Call::begin(&calls, lookup).await, Instant::now());
        assert_eq!(call.answer().await, Err(Unresolved::Late));
        assert_eq!(start.elapsed(), PATIENCE);
        let mut end = tokio::spawn(call.end());
        assert!(timeout(PATIENCE, &mut end).await.is_err());
        assert_eq!(calls.available_permits(), 0);
        hang_up.send(addresses(&["10.0.0.1:80"])).expect("it waits");
        end.await.expect("no panic");
        assert_eq!(calls.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_keeps_its_permit_too() {
        let calls = Arc::new(Semaphore::new(1));
        let (hang_up, hanging) = oneshot::channel::<Addresses>();
        drop(Call::begin(&calls, async { hanging.await.map_err(io::Error::other) }).await);
        let next = Call::begin(&calls, async { Ok(addresses(&[])) });
        let mut next = std::pin::pin!(next);
        assert!(timeout(PATIENCE, &mut next).await.is_err());
        drop(hang_up);
        assert_eq!(next.await.answer().await, Err(Unresolved::Empty));
    }

    #[tokio::test]
    async fn a_failure_tells_why() {
        let calls = Arc::new(Semaphore::new(1));
        let lookup = async { Err::<Addresses, _>(io::Error::other("Name or service not known")) };
        let answer = Call::begin(&calls, lookup).await.answer().await;
        assert_eq!(answer, Err(Unresolved::Failed("name or service not known".to_owned())));
    }
}
