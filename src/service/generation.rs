//! One tenure of a color, and who still works for it.
//!
//! Whoever works for a generation owns an `Arc<Generation>`; when the last owner is gone its `Drop` marks the [`Tally`]
//! as ended. That is what *drained* means: owned by nobody, not counted zero, so a request that loaded the snapshot but
//! has not been counted yet still holds the drain open. The counts are for people: per kind, what was open at the switch
//! and how it ended.
//!
//! This file imports only `super::sync`, so that `tests/generation_model.rs` can run it under loom as it stands.

use super::sync::{Arc, AtomicBool, AtomicU64, CachePadded, Ordering, Signal};

/// What an exchange turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Http,
    Sse,
    WebSocket,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Http, Kind::Sse, Kind::WebSocket];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Http => "http",
            Kind::Sse => "sse",
            Kind::WebSocket => "websocket",
        }
    }
}

/// A value per [`Kind`], in the order of [`Kind::ALL`].
pub type ByKind<T> = [T; 3];

/// The right to work for one tenure of a color. Dropping the last one ends the tenure.
#[derive(Debug)]
pub struct Generation {
    tally: Arc<Tally>,
}

impl Generation {
    /// `id` is unique in the process; `shards` is the number of workers.
    pub fn new(id: u64, shards: usize) -> Generation {
        let shards = (0..shards.max(1)).map(|_| CachePadded::new(Shard::default())).collect();
        Generation { tally: Arc::new(Tally { id, shards, ended: AtomicBool::new(false), ending: Signal::new() }) }
    }

    /// The counts, which outlive the generation.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.tally.ended.store(true, Ordering::Release);
        self.tally.ending.notify_waiters();
    }
}

/// The counts of one generation. Holding it does not hold the generation.
#[derive(Debug)]
pub struct Tally {
    id: u64,
    shards: Box<[CachePadded<Shard>]>,
    ended: AtomicBool,
    ending: Signal,
}

/// The counts of one worker, so that workers do not share cache lines.
#[derive(Debug, Default)]
struct Shard {
    entered: ByKind<AtomicU64>,
    finished: ByKind<AtomicU64>,
    cut: ByKind<AtomicU64>,
}

/// Exchanges of one kind: how many entered, and how many have left in which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    pub entered: u64,
    pub finished: u64,
    pub cut: u64,
}

impl Count {
    pub fn open(self) -> u64 {
        self.entered.saturating_sub(self.finished + self.cut)
    }
}

impl Tally {
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn enter(&self, shard: usize, kind: Kind) {
        self.shards[shard].entered[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The exchange turned out to be of another kind than it entered as.
    pub fn turn(&self, shard: usize, from: Kind, to: Kind) {
        self.shards[shard].entered[to as usize].fetch_add(1, Ordering::Relaxed);
        // Who sees that it is gone from one kind sees it in the other.
        self.shards[shard].entered[from as usize].fetch_sub(1, Ordering::Release);
    }

    /// Must come before the owner drops its `Arc<Generation>`, so that the counts are complete when the tenure ends.
    pub fn leave(&self, shard: usize, kind: Kind, cut: bool) {
        let shard = &self.shards[shard];
        let way = if cut { &shard.cut } else { &shard.finished };
        way[kind as usize].fetch_add(1, Ordering::Release);
    }

    /// The sums over all workers. What has left is read before what entered, so `open` is never too small.
    pub fn counts(&self) -> ByKind<Count> {
        Kind::ALL.map(|kind| {
            let sum = |pick: fn(&Shard) -> &ByKind<AtomicU64>| -> u64 {
                self.shards
                    .iter()
                    .map(|shard| pick(shard)[kind as usize].load(Ordering::Acquire))
                    .fold(0, u64::wrapping_add)
            };
            let (finished, cut) = (sum(|shard| &shard.finished), sum(|shard| &shard.cut));
            Count { finished, cut, entered: sum(|shard| &shard.entered) }
        })
    }

    /// Whether nobody owns the generation any more; the counts are final then.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Notified when the generation ends; check [`Tally::is_ended`] after enabling.
    pub fn ending(&self) -> &Signal {
        &self.ending
    }
}
