//! When each stream is told goodbye: one after the other over the configured time, never all at once, and no faster than
//! the new color takes those that come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{self, Color, Pace};
use crate::metrics::{Handshakes, ServiceStats};
use crate::roster::{Roster, Seated};
use crate::service::Kind;

/// The shortest pause between two goodbyes; where they must be more frequent, several are said at once.
const TICK: Duration = Duration::from_millis(5);
/// How often exchanges that have become streams late are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// What both sides of a WebSocket may take to answer, beside the wait for a quiet moment.
const WEBSOCKET_PATIENCE: Duration = Duration::from_secs(4);
/// What an event may take to end.
const EVENT_PATIENCE: Duration = Duration::from_secs(1);
/// How long those who are left when there is no more time to wait for the new color are spread over.
const LAST_CALL: Duration = Duration::from_secs(1);
/// The new color may be busy with so many handshakes, or with those of this time, before goodbyes wait for it.
const HANDSHAKES: u64 = 16;
const HANDSHAKE_TIME: Duration = Duration::from_millis(250);
/// How long goodbyes wait after the new color has failed to take a stream; doubled each time.
const FIRST_STRAIN: Duration = Duration::from_millis(100);
const LONGEST_STRAIN: Duration = Duration::from_secs(1);

/// The goodbyes to the streams of one generation.
#[derive(Debug)]
pub struct Goodbyes<'a> {
    pub rosters: &'a [Arc<Roster>],
    /// Its id in the process.
    pub generation: u64,
    pub settings: &'a config::Drain,
    /// Where the clients go to, if teal can see it.
    pub newcomer: Option<(&'a ServiceStats, Color)>,
    pub started: Instant,
    /// When what is left is cut.
    pub deadline: Instant,
}

/// When the streams of one kind are told.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    begin: Instant,
    end: Instant,
    /// Then nobody waits for the new color any more: the other way to end is to be cut.
    last_call: Instant,
}

impl Goodbyes<'_> {
    /// Says them; never resolves, as there may always be another stream.
    pub async fn say(&self) {
        let say_to = async |kind, schedule: Option<Schedule>| {
            if let Some(schedule) = schedule {
                self.say_to(kind, schedule).await;
            }
        };
        tokio::join!(say_to(Kind::WebSocket, self.websockets()), say_to(Kind::Sse, self.event_streams()));
        std::future::pending().await
    }

    /// When the last of them should have been told, if all goes well; `None`: nobody is told.
    pub fn last(&self) -> Option<Instant> {
        [self.websockets(), self.event_streams()].into_iter().flatten().map(|schedule| schedule.end).max()
    }

    fn websockets(&self) -> Option<Schedule> {
        let settings = self.settings.websocket.as_ref()?;
        Some(self.schedule(settings.pace, settings.quiet + WEBSOCKET_PATIENCE))
    }

    fn event_streams(&self) -> Option<Schedule> {
        self.settings.sse.as_ref().map(|settings| self.schedule(settings.pace, EVENT_PATIENCE))
    }

    /// `patience`: what a goodbye itself may take.
    fn schedule(&self, pace: Pace, patience: Duration) -> Schedule {
        let limit = self.deadline - self.started;
        let last_call = self.started + limit.saturating_sub(patience).max(limit / 2);
        let begin = (self.started + pace.hold).min(last_call);
        Schedule { begin, end: (begin + pace.spread).min(last_call), last_call }
    }

    async fn say_to(&self, kind: Kind, mut schedule: Schedule) {
        let mut strain = Strain::new(self.newcomer);
        let mut queue: Vec<Seated> = Vec::new();
        sleep_until(schedule.begin).await;
        loop {
            if queue.is_empty() {
                queue = self.untold(kind);
            }
            if queue.is_empty() {
                sleep(LOOK).await;
                continue;
            }
            schedule.end += strain.wait(queue.len(), schedule).await;
            if Instant::now() >= schedule.last_call {
                schedule.end =
                    schedule.end.max(schedule.last_call + LAST_CALL.min((self.deadline - schedule.last_call) / 2));
            } else {
                schedule.end = schedule.end.min(schedule.last_call);
            }
            let left = schedule.end.saturating_duration_since(Instant::now());
            let interval = left / u32::try_from(queue.len()).unwrap_or(u32::MAX);
            let pause = interval.max(TICK.min(left)).mul_f64(0.5 + fastrand::f64());
            let began = Instant::now();
            sleep(pause).await;
            // A sleep takes longer than it is told: without the difference all that falls behind would be said at the end.
            // After a long one the rest of it is spread over the time that is left.
            let slept = began.elapsed().min(pause * 2);
            let due = slept.as_secs_f64() / interval.as_secs_f64().max(1e-9);
            let due = (due.round() as usize).clamp(1, queue.len());
            for stream in queue.drain(queue.len() - due..) {
                stream.tell(self.generation);
            }
        }
    }

    /// Whoever has not been told yet, in random order.
    fn untold(&self, kind: Kind) -> Vec<Seated> {
        let of_worker = |roster: &Arc<Roster>| roster.untold(self.generation, kind as u8);
        let mut streams: Vec<Seated> = self.rosters.iter().flat_map(of_worker).collect();
        fastrand::shuffle(&mut streams);
        streams
    }
}

/// How hard the new color finds it to take the streams that come to it.
struct Strain<'a> {
    newcomer: Option<(&'a ServiceStats, Color)>,
    taken: u64,
    failed: u64,
    pause: Duration,
}

impl<'a> Strain<'a> {
    fn new(newcomer: Option<(&'a ServiceStats, Color)>) -> Strain<'a> {
        let mut strain = Strain { newcomer, taken: 0, failed: 0, pause: Duration::ZERO };
        (strain.taken, strain.failed) = (strain.sum(|shakes| &shakes.taken), strain.sum(|shakes| &shakes.failed));
        strain
    }

    /// Waits while the new color has enough to do, but not into the last call. Returns for how long.
    async fn wait(&mut self, left: usize, schedule: Schedule) -> Duration {
        let began = Instant::now();
        let time = schedule.end.saturating_duration_since(began).max(TICK);
        let rate = left as f64 / time.as_secs_f64();
        let allowed = HANDSHAKES.max((rate * HANDSHAKE_TIME.as_secs_f64()) as u64);
        loop {
            self.look();
            let is_busy = self.under_way() > allowed;
            if !is_busy && self.pause.is_zero() || Instant::now() >= schedule.last_call {
                return began.elapsed();
            }
            let pause = if is_busy { TICK.max(self.pause) } else { self.pause };
            sleep_until((Instant::now() + pause).min(schedule.last_call)).await;
            if !is_busy && self.failed == self.sum(|shakes| &shakes.failed) {
                return began.elapsed();
            }
        }
    }

    /// Takes into account what has become of the handshakes since the last look.
    fn look(&mut self) {
        let (taken, failed) = (self.sum(|shakes| &shakes.taken), self.sum(|shakes| &shakes.failed));
        if failed > self.failed {
            self.pause = (self.pause * 2).clamp(FIRST_STRAIN, LONGEST_STRAIN);
        } else if taken > self.taken {
            self.pause = Duration::ZERO;
        }
        (self.taken, self.failed) = (taken, failed);
    }

    fn under_way(&self) -> u64 {
        let over = self.sum(|shakes| &shakes.taken) + self.sum(|shakes| &shakes.failed);
        self.sum(|shakes| &shakes.begun).saturating_sub(over)
    }

    fn sum(&self, pick: fn(&Handshakes) -> &AtomicU64) -> u64 {
        let Some((stats, color)) = self.newcomer else { return 0 };
        stats.shards(color).map(|shard| pick(&shard.handshakes).load(Ordering::Relaxed)).sum()
    }
}
