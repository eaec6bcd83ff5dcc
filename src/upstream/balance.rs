//! Which endpoint takes the next request.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::{Balance, Service};
use crate::upstream::{Endpoint, Lease, Pool};

/// What a choice depends on, besides the pool.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    pub service: &'a Service,
    /// Hash of what the service balances by, see [`hash_key`]; without it the least busy is chosen.
    pub key: Option<u64>,
    /// Endpoints that have just failed; taken only if there is no other.
    pub avoid: &'a [Arc<Endpoint>],
}

/// The hash of a client address, cookie or header value. The same in every process, so that a fleet agrees.
pub fn hash_key(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Pool {
    /// A place at an endpoint that can take a request now.
    pub fn choose(&self, choice: Choice<'_>) -> Option<Lease> {
        let max = choice.service.max_in_flight;
        if let Some(lease) = self.first_choice(choice).and_then(|endpoint| endpoint.lease(max)) {
            return Some(lease);
        }
        // The favourite cannot: anyone who can, the least busy first; those that have just failed come last.
        let mut others: Vec<&Arc<Endpoint>> = self.endpoints.iter().filter(|other| other.is_available()).collect();
        if others.is_empty() {
            // The others fell ill while this one was ejected: it passes its probes, and there is nobody else.
            others.extend(self.endpoints.iter().filter(|other| other.is_healthy()));
        }
        others.sort_by_key(|other| (is_avoided(other, choice), other.in_flight()));
        others.into_iter().find_map(|endpoint| endpoint.lease(max))
    }

    /// What the algorithm says, if that one is available.
    fn first_choice(&self, choice: Choice<'_>) -> Option<&Arc<Endpoint>> {
        let all = &self.endpoints;
        if all.is_empty() {
            return None;
        }
        let picked = match (&choice.service.balance, choice.key) {
            _ if all.len() == 1 => &all[0],
            (Balance::RoundRobin, _) => return self.next_in_turn(choice),
            (Balance::Random, _) => &all[fastrand::usize(..all.len())],
            (Balance::HashIp | Balance::HashCookie(_) | Balance::HashHeader(_), Some(key)) => {
                return highest_weight(all, key, choice);
            }
            // What has nothing to hash must not all go to one endpoint.
            _ => less_busy_of_two(all),
        };
        can_take(picked, choice).then_some(picked)
    }

    fn next_in_turn(&self, choice: Choice<'_>) -> Option<&Arc<Endpoint>> {
        let count = self.endpoints.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..count).map(|step| &self.endpoints[first.wrapping_add(step) % count]).find(|next| can_take(next, choice))
    }
}

/// Power of two choices: near to the least busy of all, without looking at all.
fn less_busy_of_two(all: &[Arc<Endpoint>]) -> &Arc<Endpoint> {
    let first = fastrand::usize(..all.len());
    let second = (first + fastrand::usize(1..all.len())) % all.len();
    let (first, second) = (&all[first], &all[second]);
    match (first.is_available(), second.is_available()) {
        (true, false) => first,
        (false, true) => second,
        _ if second.in_flight() < first.in_flight() => second,
        _ => first,
    }
}

/// Rendezvous hashing: when an endpoint leaves, only its own keys move.
fn highest_weight<'a>(all: &'a [Arc<Endpoint>], key: u64, choice: Choice<'_>) -> Option<&'a Arc<Endpoint>> {
    let weight = |endpoint: &Endpoint| {
        let mut hasher = DefaultHasher::new();
        (key, endpoint.name()).hash(&mut hasher);
        hasher.finish()
    };
    all.iter().filter(|endpoint| can_take(endpoint, choice)).max_by_key(|endpoint| weight(endpoint))
}

fn can_take(endpoint: &Endpoint, choice: Choice<'_>) -> bool {
    let has_room = choice.service.max_in_flight.is_none_or(|max| endpoint.in_flight() < max);
    endpoint.is_available() && has_room && !is_avoided(endpoint, choice)
}

fn is_avoided(endpoint: &Endpoint, choice: Choice<'_>) -> bool {
    choice.avoid.iter().any(|avoid| std::ptr::eq(&**avoid, endpoint))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::{self, Address, Upstream};
    use crate::upstream::Transport;
    use crate::upstream::Vacancy;

    fn endpoint(port: u16) -> Arc<Endpoint> {
        let address = ([127, 0, 0, 1], port).into();
        Arc::new(Endpoint::new(Upstream::Ip(address), Address::Tcp(address), Transport::default(), 1, Arc::default()))
    }

    #[test]
    fn an_ejected_endpoint_is_better_than_none() {
        let text = "[[listeners]]\nlisten = \"127.0.0.1:0\"\n[services.a]\nblue = [\"127.0.0.1:1\"]";
        let config = config::parse(text, Path::new("test.toml")).expect("a valid config");
        let (ejected, sick) = (endpoint(1), endpoint(2));
        ejected.probed(Ok(()), 1, 1);
        sick.probed(Ok(()), 1, 1);
        let pool = Pool::new(vec![ejected.clone(), sick.clone()], Vec::new(), Arc::<Vacancy>::default());
        let service = &config.services["a"];
        let choose = || pool.choose(Choice { service, key: None, avoid: &[] }).map(|lease| lease.endpoint().clone());

        ejected.eject(Duration::from_secs(60));
        assert!(choose().is_some_and(|chosen| Arc::ptr_eq(&chosen, &sick)));
        sick.probed(Err("refused".to_owned()), 1, 1);
        assert!(choose().is_some_and(|chosen| Arc::ptr_eq(&chosen, &ejected)));
    }
}
