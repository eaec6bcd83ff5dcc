//! Every interleaving of entering, leaving and switching, by loom, on the code of `service/generation.rs` itself.
//!
//! The pointer to the snapshot is modelled by a lock around an `Arc`: what matters is that a reader gets the old value or
//! the new one, and may pause between loading it and being counted.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic like the test")]

use loom::sync::Mutex;
use loom::thread;

mod sync {
    pub(super) use loom::sync::Arc;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// Padding is nothing that a model could see.
    #[derive(Debug)]
    pub(super) struct CachePadded<T>(T);

    impl<T> CachePadded<T> {
        pub(super) fn new(value: T) -> CachePadded<T> {
            CachePadded(value)
        }
    }

    impl<T> std::ops::Deref for CachePadded<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    /// The end is asked for, not waited for, in the model.
    #[derive(Debug)]
    pub(super) struct Signal;

    impl Signal {
        pub(super) fn new() -> Signal {
            Signal
        }

        pub(super) fn notify_waiters(&self) {}
    }
}

#[allow(dead_code, unreachable_pub, reason = "the model uses a part of it")]
#[path = "../src/service/generation.rs"]
mod generation;

use generation::{Count, Generation, Kind, Tally};
use sync::Arc;

type Pointer = Arc<Mutex<Arc<Generation>>>;

/// A request: loads the snapshot, is counted some time later, leaves.
fn request(pointer: &Pointer, shard: usize, turns: bool) {
    let generation = pointer.lock().unwrap().clone();
    let mut kind = Kind::Http;
    generation.tally().enter(shard, kind);
    assert!(!generation.tally().is_ended(), "entered a generation that had ended");
    if turns {
        generation.tally().turn(shard, Kind::Http, Kind::WebSocket);
        kind = Kind::WebSocket;
    }
    generation.tally().leave(shard, kind, false);
}

fn sums(tally: &Tally) -> (u64, u64) {
    let counts: [Count; 3] = tally.counts();
    (counts.iter().map(|count| count.entered).sum(), counts.iter().map(|count| count.finished + count.cut).sum())
}

fn model(turns: bool) {
    loom::model(move || {
        let pointer: Pointer = Arc::new(Mutex::new(Arc::new(Generation::new(1, 2))));
        let old = pointer.lock().unwrap().tally().clone();
        let requests: Vec<_> = (0..2)
            .map(|shard| {
                let pointer = pointer.clone();
                thread::spawn(move || request(&pointer, shard, turns))
            })
            .collect();

        let next = Arc::new(Generation::new(2, 2));
        let new = next.tally().clone();
        let left = std::mem::replace(&mut *pointer.lock().unwrap(), next);
        drop(left);
        if old.is_ended() {
            let (entered, out) = sums(&old);
            assert_eq!(entered, out, "drained while somebody was inside");
        }

        requests.into_iter().for_each(|request| request.join().unwrap());
        assert!(old.is_ended(), "nobody is left, and yet it has not ended");
        assert!(!new.is_ended(), "the active generation has ended");
        let (entered, out) = sums(&old);
        let (entered_new, out_new) = sums(&new);
        assert_eq!((entered, entered_new), (out, out_new));
        assert_eq!(entered + entered_new, 2);
    });
}

#[test]
fn a_generation_ends_when_and_only_when_nobody_works_for_it() {
    model(false);
}

#[test]
fn an_exchange_that_becomes_a_stream_is_counted_once() {
    model(true);
}
