//! How many requests an address may make, as the generic cell rate algorithm counts them.
//!
//! What is remembered is bounded: the addresses that asked last. One that is forgotten begins anew, so millions of addresses
//! cost no more memory than thousands, and none is punished for another.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use lru::LruCache;
use parking_lot::Mutex;

use crate::config::Rate;

/// Parts of the memory, so that workers seldom meet.
const SHARDS: usize = 16;
/// Addresses that one part remembers.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// The requests of each address, as far as they matter.
#[derive(Debug)]
pub struct RateLimit {
    rate: Rate,
    limiter: RateLimiter<u64, Recent, DefaultClock>,
}

impl RateLimit {
    pub fn new(rate: Rate) -> RateLimit {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        RateLimit { rate, limiter: RateLimiter::new(quota, Recent::default(), DefaultClock::default()) }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Counts a request of `address`.
    ///
    /// # Errors
    /// It is one too many; how long until the next may come.
    pub fn check(&self, address: IpAddr) -> Result<(), Duration> {
        let now = || DefaultClock::default().now();
        self.limiter.check_key(&key(address)).map_err(|not_until| not_until.wait_time_from(now()))
    }
}

/// Who has one IPv6 address has all of its /64.
fn key(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

/// When each address may ask again; those that asked last.
#[derive(Debug)]
struct Recent {
    shards: [Mutex<LruCache<u64, Nanos>>; SHARDS],
}

impl Default for Recent {
    fn default() -> Recent {
        Recent { shards: std::array::from_fn(|_| Mutex::new(LruCache::unbounded())) }
    }
}

impl StateStore for Recent {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // Fibonacci hashing: neighbours go to different shards.
        let shard = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize % SHARDS;
        let mut recent = self.shards[shard].lock();
        let (allowed, next) = decide(recent.get(key).copied())?;
        recent.put(*key, next);
        if recent.len() > REMEMBERED.get() {
            recent.pop_lru();
        }
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::num::NonZeroU32;

    use super::*;

    fn limit(per_second: u32, burst: u32) -> RateLimit {
        let number = |number| NonZeroU32::new(number).expect("not zero");
        RateLimit::new(Rate { per_second: number(per_second), burst: number(burst) })
    }

    #[test]
    fn a_burst_is_allowed_and_no_more() {
        let limit = limit(1, 5);
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        assert!((0..5).all(|_| limit.check(one).is_ok()));
        let wait = limit.check(one).expect_err("one too many");
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
        assert!(limit.check(other).is_ok(), "another address has its own");
    }

    #[test]
    fn addresses_of_one_network_are_one_client_in_ipv6_only() {
        let limit = limit(1, 1);
        let v6 = |host: u128| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | host));
        assert!(limit.check(v6(1)).is_ok() && limit.check(v6(2)).is_err() && limit.check(v6(1 << 64)).is_ok());
        let mapped = IpAddr::V6(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped());
        assert!(limit.check(mapped).is_ok() && limit.check(IpAddr::from([192, 0, 2, 1])).is_err());
    }

    #[test]
    fn millions_of_addresses_are_not_remembered() {
        let limit = limit(1, 1);
        for address in 0..1_000_000_u32 {
            let _ = limit.check(IpAddr::V4(Ipv4Addr::from_bits(address)));
        }
        let remembered: usize = limit.limiter.into_state_store().shards.iter().map(|shard| shard.lock().len()).sum();
        assert!((SHARDS..=SHARDS * REMEMBERED.get()).contains(&remembered), "{remembered}");
    }
}
