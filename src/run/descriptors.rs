//! File descriptors: how many are wanted, and how many connections are let in with those that can be had.
//!
//! What the admin API, the probes and the store need is set aside. Were clients let in to the last descriptor, nobody could
//! ask what is wrong or switch, and every probe would fail.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::net::MOST_PIPES;

/// The client's, and one to an origin.
const PER_CONNECTION: u64 = 2;
/// What a worker has besides sockets: its runtime, and its pipes with two ends each.
const PER_WORKER: u64 = 6 + 2 * MOST_PIPES as u64;
/// For everything that is neither a connection, a worker nor a probe: 256 connections of the admin API, the store, logs,
/// watches.
const SPARE: u64 = 320;
/// Where the limit leaves next to nothing, this part of it is for connections all the same: some service is better than none.
const LEAST_PART: u64 = 8;

/// What a configuration needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Needs {
    connections: usize,
    /// Besides connections.
    reserve: u64,
}

impl Needs {
    pub(super) fn of(config: &Config) -> Needs {
        let pools = config.services.values().flat_map(|service| [&service.pools.blue, &service.pools.green]);
        // One for the probe of each.
        let endpoints: usize = pools.map(Vec::len).sum();
        let per_worker = PER_WORKER + config.listeners.len() as u64;
        let reserve = SPARE + endpoints as u64 + config.workers as u64 * per_worker;
        Needs { connections: config.connections, reserve }
    }

    fn descriptors(self) -> u64 {
        self.reserve.saturating_add(PER_CONNECTION.saturating_mul(self.connections as u64))
    }

    /// The connections that `available` descriptors are enough for, if not for all.
    fn within(self, available: u64) -> usize {
        let part = available.saturating_sub(self.reserve).max(available / LEAST_PART);
        let enough = usize::try_from(part / PER_CONNECTION).unwrap_or(usize::MAX);
        enough.max(1).min(self.connections)
    }

    /// Raises the limit of the process as far as needed and allowed; says how many connections may be let in.
    pub(super) fn provide(self) -> usize {
        let needed = self.descriptors();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let Some(current) = current.filter(|current| *current < needed) else { return self.connections };
        let wanted = maximum.map_or(needed, |maximum| maximum.min(needed));
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
        let available = if raised.is_ok() { wanted } else { current };
        if available >= needed {
            return self.connections;
        }
        let connections = self.within(available);
        tracing::warn!(
            needed,
            available,
            connections,
            "too few file descriptors for limits.connections, so fewer connections are let in: raise the limit \
             (LimitNOFILE, ulimit -n) or lower the key"
        );
        connections
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn needs(connections: usize, workers: usize, pools: &str) -> Needs {
        let text = format!(
            "workers = {workers}\nlimits.connections = {connections}\n[[listeners]]\nlisten = \"127.0.0.1:0\"\n\
             [services.a]\n{pools}"
        );
        Needs::of(&config::parse(&text, Path::new("test.toml")).expect("a valid config"))
    }

    const ONE: &str = "blue = [\"127.0.0.1:1\"]";

    #[test]
    fn each_connection_has_two_descriptors_and_each_endpoint_of_both_colors_one() {
        let few = needs(100, 1, ONE).descriptors();
        assert_eq!(needs(110, 1, ONE).descriptors(), few + 20);
        let more = "blue = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\ngreen = [\"127.0.0.1:3\", \"[::1]:1\"]";
        assert_eq!(needs(100, 1, more).descriptors(), few + 3);
        assert_eq!(needs(100, 3, ONE).descriptors(), few + 2 * (PER_WORKER + 1));
    }

    #[test]
    fn connections_get_what_the_rest_leaves_and_never_more_than_they_may() {
        let needs = needs(1_000, 1, ONE);
        let all = needs.descriptors();
        assert_eq!(needs.within(all), 1_000);
        assert_eq!(needs.within(all - 1), 999);
        assert_eq!(needs.within(all + 10_000), 1_000);
        assert_eq!(needs.within(all - 1_000), 500);
        assert_eq!(needs.within(64), 4, "an eighth");
        assert_eq!(needs.within(0), 1);
    }
}
