//! A histogram of durations that many tasks write at once: 16 steps for every power of two of microseconds, so that a
//! percentile is off by at most one sixteenth, in a fixed 8 KiB.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const STEPS: u64 = 16;
const BUCKETS: usize = 61 * STEPS as usize;

pub(in crate::demo) struct Latency(Box<[AtomicU64]>);

impl Default for Latency {
    fn default() -> Latency {
        Latency((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Latency {
    pub(super) fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// The duration that `percent` of the recorded ones do not exceed; `None` when nothing was recorded.
    pub(in crate::demo) fn percentile(&self, percent: u64) -> Option<Duration> {
        let counts: Vec<u64> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let rank = (total * percent).div_ceil(100).max(1);
        let mut below = 0;
        let found = counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(Duration::from_micros(highest(found)))
    }
}

fn bucket(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let shift = micros.ilog2() - STEPS.ilog2();
    let step = (micros >> shift) - STEPS;
    (STEPS * u64::from(shift + 1) + step) as usize
}

/// The highest value that falls into a bucket.
fn highest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    (((u128::from(STEPS + bucket % STEPS) + 1) << shift) - 1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_tight_and_cover_everything() {
        for micros in [0, 1, 15, 16, 17, 31, 32, 33, 1000, 123_456, u64::MAX / 3, u64::MAX] {
            let high = highest(bucket(micros));
            assert!(high >= micros, "{micros}");
            assert!(high - micros <= micros / 16, "{micros} {high}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles() {
        let latency = Latency::default();
        assert_eq!(latency.percentile(50), None);
        (1..=100).for_each(|millis| latency.record(Duration::from_millis(millis)));
        let p50 = latency.percentile(50).unwrap().as_micros();
        assert!((50_000..=53_200).contains(&p50), "{p50}");
        let p99 = latency.percentile(99).unwrap().as_micros();
        assert!((99_000..=105_200).contains(&p99), "{p99}");
    }
}
