//! Lets what a switch left behind run to its end, and keeps the account of it.
//!
//! Streams are told goodbye one after the other ([`pace`]); a drain is over when nobody owns the generation any more. What
//! is still open at the deadline is cut, and counted as cut. If the color becomes active again before that, what is still
//! open stays, untouched, and is counted as kept. `at_switch = finished + kept + cut + open` holds in every report, because
//! all come from the same three sums.

pub mod pace;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::config::Color;
use crate::drain::pace::Goodbyes;
use crate::roster::Roster;
use crate::service::{ByKind, Count, Kind, Service, Tally};

/// How often those that have not noticed the cut are told again.
const CUT_AGAIN: Duration = Duration::from_millis(100);

/// The end of one or more generations that left in the same switch.
#[derive(Debug)]
pub struct Drain {
    leaving: Vec<Leaving>,
    started: Instant,
    deadline: SystemTime,
    last_goodbye: Option<SystemTime>,
    ended_at: OnceLock<SystemTime>,
    is_over: watch::Sender<bool>,
}

/// One generation that is no longer active.
#[derive(Debug)]
pub struct Leaving {
    pub service: Arc<str>,
    pub color: Color,
    pub tally: Arc<Tally>,
    settings: crate::config::Drain,
    /// Where its clients go to; a service that was removed has none.
    newcomer: Option<Arc<crate::metrics::ServiceStats>>,
    left_before: ByKind<Count>,
    stage: watch::Sender<Stage>,
    /// The last report, once its color is active again.
    kept: OnceLock<ByKind<KindReport>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Leaving,
    /// Its color is active again.
    Kept,
    /// The deadline has passed.
    Cutting,
}

impl Leaving {
    /// To be made right after the store of the snapshot in which the generation is gone.
    pub fn new(service: &Service, has_newcomer: bool) -> Leaving {
        let tally = service.generation.tally().clone();
        Leaving {
            service: service.config.name.clone(),
            color: service.active,
            settings: service.config.drain.clone(),
            newcomer: has_newcomer.then(|| service.stats.clone()),
            left_before: tally.counts(),
            tally,
            stage: watch::Sender::new(Stage::Leaving),
            kept: OnceLock::new(),
        }
    }

    /// What has become of the exchanges that were open at the switch, by kind.
    pub fn report(&self) -> ByKind<KindReport> {
        self.kept.get().copied().unwrap_or_else(|| self.counted(|open| KindReport { open, ..KindReport::default() }))
    }

    /// Whether nothing is left to wait for.
    pub fn is_over(&self) -> bool {
        self.kept.get().is_some() || self.tally.is_ended()
    }

    /// The color becomes active again: what is still open stays. False: too late, it is being cut.
    pub fn keep(&self, rosters: &[Arc<Roster>]) -> bool {
        let keep = |stage: &mut Stage| {
            let may_stay = *stage == Stage::Leaving;
            if may_stay {
                *stage = Stage::Kept;
                let _ = self.kept.set(self.counted(|kept| KindReport { kept, ..KindReport::default() }));
            }
            may_stay
        };
        let may_stay = self.stage.send_if_modified(keep);
        if may_stay {
            rosters.iter().for_each(|roster| roster.recall(self.tally.id()));
        }
        may_stay
    }

    /// `of_open` says where those count that are still open.
    fn counted(&self, of_open: fn(u64) -> KindReport) -> ByKind<KindReport> {
        let now = self.tally.counts();
        Kind::ALL.map(|kind| {
            let (now, before) = (now[kind as usize], self.left_before[kind as usize]);
            let (open, finished, cut) = (now.open(), now.finished - before.finished, now.cut - before.cut);
            KindReport { at_switch: open + finished + cut, finished, cut, ..of_open(open) }
        })
    }

    async fn run(&self, started: Instant, rosters: &[Arc<Roster>]) {
        let mut stage = self.stage.subscribe();
        tokio::select! {
            // Nobody may be told any more once what was told has been recalled.
            biased;
            _ = stage.wait_for(|stage| *stage == Stage::Kept) => {}
            () = self.leave(started, rosters) => {}
        }
    }

    async fn leave(&self, started: Instant, rosters: &[Arc<Roster>]) {
        let goodbyes = self.goodbyes(started, rosters);
        tokio::select! {
            () = self.gone() => return,
            () = goodbyes.say() => {}
            () = tokio::time::sleep_until(goodbyes.deadline) => {}
        }
        self.stage.send_if_modified(|stage| {
            let is_due = *stage == Stage::Leaving;
            if is_due {
                *stage = Stage::Cutting;
            }
            is_due
        });
        while *self.stage.borrow() == Stage::Cutting {
            for roster in rosters {
                roster.cut(self.tally.id());
            }
            if tokio::time::timeout(CUT_AGAIN, self.gone()).await.is_ok() {
                return;
            }
        }
    }

    fn goodbyes<'a>(&'a self, started: Instant, rosters: &'a [Arc<Roster>]) -> Goodbyes<'a> {
        Goodbyes {
            rosters,
            generation: self.tally.id(),
            settings: &self.settings,
            newcomer: self.newcomer.as_deref().map(|stats| (stats, self.color.other())),
            started,
            deadline: started + self.settings.timeout,
        }
    }

    /// Resolves when nobody owns the generation any more.
    async fn gone(&self) {
        loop {
            let ending = self.tally.ending().notified();
            tokio::pin!(ending);
            ending.as_mut().enable();
            if self.tally.is_ended() {
                return;
            }
            ending.await;
        }
    }
}

/// Whether a drain is still under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DrainState {
    /// Some of what was open at the switch still is.
    Draining,
    /// Nobody works for the old generation any more.
    Drained,
    /// It is over because a color that it drained became active again.
    Kept,
}

/// The exchanges of one kind. Always `at_switch = finished + kept + cut + open`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct KindReport {
    pub open: u64,
    pub at_switch: u64,
    pub finished: u64,
    /// Still open when their color became active again, and left alone.
    #[serde(default)]
    pub kept: u64,
    pub cut: u64,
}

impl std::ops::AddAssign for KindReport {
    fn add_assign(&mut self, other: KindReport) {
        self.open += other.open;
        self.at_switch += other.at_switch;
        self.finished += other.finished;
        self.kept += other.kept;
        self.cut += other.cut;
    }
}

/// A drain as the receipt shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DrainReport {
    pub state: DrainState,
    /// When what is left is cut; RFC 3339.
    pub deadline: String,
    /// When the last stream is told goodbye, unless the new color is slow to take them; RFC 3339. Absent if none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_goodbye: Option<String>,
    /// RFC 3339; absent while it runs.
    pub ended_at: Option<String>,
    pub http: KindReport,
    pub sse: KindReport,
    pub websocket: KindReport,
}

impl DrainReport {
    pub fn cut(&self) -> u64 {
        self.http.cut + self.sse.cut + self.websocket.cut
    }
}

impl Drain {
    pub fn new(leaving: Vec<Leaving>) -> Drain {
        let (now, started) = (SystemTime::now(), Instant::now());
        let longest = leaving.iter().map(|leaving| leaving.settings.timeout).max().unwrap_or_default();
        let last = leaving.iter().filter_map(|leaving| leaving.goodbyes(started, &[]).last()).max();
        Drain {
            leaving,
            started,
            deadline: now + longest,
            last_goodbye: last.map(|last| now + (last - started)),
            ended_at: OnceLock::new(),
            is_over: watch::Sender::new(false),
        }
    }

    pub fn leaving(&self) -> &[Leaving] {
        &self.leaving
    }

    /// Runs the drain to its end. Dropping the future leaves the drain unfinished for ever.
    pub async fn run(self: Arc<Drain>, rosters: Arc<[Arc<Roster>]>) {
        let mut drains: JoinSet<()> = JoinSet::new();
        for place in 0..self.leaving.len() {
            let (drain, rosters) = (self.clone(), rosters.clone());
            drains.spawn(async move { drain.leaving[place].run(drain.started, &rosters).await });
        }
        drains.join_all().await;
        let _ = self.ended_at.set(SystemTime::now());
        self.is_over.send_replace(true);
    }

    /// Resolves when the drain is over; cancel-safe.
    pub async fn over(&self) {
        let mut is_over = self.is_over.subscribe();
        // An error would mean that the sender is gone, but `self` owns it.
        let _ = is_over.wait_for(|is_over| *is_over).await;
    }

    pub fn is_over(&self) -> bool {
        *self.is_over.borrow()
    }

    pub fn report(&self) -> DrainReport {
        let ended_at = self.ended_at.get().map(|at| rfc3339(*at));
        let mut sums = [KindReport::default(); 3];
        for leaving in &self.leaving {
            sums.iter_mut().zip(leaving.report()).for_each(|(sum, report)| *sum += report);
        }
        let is_kept = self.leaving.iter().any(|leaving| leaving.kept.get().is_some());
        let state = match ended_at {
            None => DrainState::Draining,
            Some(_) if is_kept => DrainState::Kept,
            Some(_) => DrainState::Drained,
        };
        let [http, sse, websocket] = sums;
        let last_goodbye = self.last_goodbye.map(rfc3339);
        DrainReport { state, deadline: rfc3339(self.deadline), last_goodbye, ended_at, http, sse, websocket }
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
