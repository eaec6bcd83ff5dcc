//! Lets what a switch left behind run to its end, and keeps the account of it.
//!
//! A drain is over when nobody owns the generation any more. What is still open at the deadline is cut, and counted as
//! cut. `at_switch = finished + cut + open` holds in every report, because all four come from the same three sums.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::config::Color;
use crate::roster::Roster;
use crate::service::{ByKind, Count, Kind, Tally};

/// How often those that have not noticed the cut are told again.
const CUT_AGAIN: Duration = Duration::from_millis(100);

/// The end of one or more generations that left in the same switch.
#[derive(Debug)]
pub struct Drain {
    leaving: Vec<Leaving>,
    deadline: SystemTime,
    ended_at: OnceLock<SystemTime>,
    is_over: watch::Sender<bool>,
}

/// One generation that is no longer active.
#[derive(Debug)]
pub struct Leaving {
    pub service: Arc<str>,
    pub color: Color,
    pub tally: Arc<Tally>,
    pub timeout: Duration,
    left_before: ByKind<Count>,
}

impl Leaving {
    /// To be made right after the store of the snapshot in which the generation is gone.
    pub fn new(service: Arc<str>, color: Color, tally: Arc<Tally>, timeout: Duration) -> Leaving {
        Leaving { service, color, timeout, left_before: tally.counts(), tally }
    }

    /// What has become of the exchanges that were open at the switch, by kind.
    pub fn report(&self) -> ByKind<KindReport> {
        let now = self.tally.counts();
        Kind::ALL.map(|kind| {
            let (now, before) = (now[kind as usize], self.left_before[kind as usize]);
            let (open, finished, cut) = (now.open(), now.finished - before.finished, now.cut - before.cut);
            KindReport { open, at_switch: open + finished + cut, finished, cut }
        })
    }

    async fn run(&self, started: Instant, rosters: &[Arc<Roster>]) {
        if tokio::time::timeout_at(started + self.timeout, self.gone()).await.is_ok() {
            return;
        }
        loop {
            for roster in rosters {
                roster.cut(self.tally.id());
            }
            if tokio::time::timeout(CUT_AGAIN, self.gone()).await.is_ok() {
                return;
            }
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
}

/// The exchanges of one kind. Always `at_switch = finished + cut + open`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct KindReport {
    pub open: u64,
    pub at_switch: u64,
    pub finished: u64,
    pub cut: u64,
}

impl std::ops::AddAssign for KindReport {
    fn add_assign(&mut self, other: KindReport) {
        self.open += other.open;
        self.at_switch += other.at_switch;
        self.finished += other.finished;
        self.cut += other.cut;
    }
}

/// A drain as the receipt shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DrainReport {
    pub state: DrainState,
    /// When what is left is cut; RFC 3339.
    pub deadline: String,
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
        let longest = leaving.iter().map(|leaving| leaving.timeout).max().unwrap_or_default();
        let deadline = SystemTime::now() + longest;
        Drain { leaving, deadline, ended_at: OnceLock::new(), is_over: watch::Sender::new(false) }
    }

    pub fn leaving(&self) -> &[Leaving] {
        &self.leaving
    }

    /// Runs the drain to its end. Dropping the future leaves the drain unfinished for ever.
    pub async fn run(self: Arc<Drain>, rosters: Arc<[Arc<Roster>]>) {
        let started = Instant::now();
        let mut drains: JoinSet<()> = JoinSet::new();
        for place in 0..self.leaving.len() {
            let (drain, rosters) = (self.clone(), rosters.clone());
            drains.spawn(async move { drain.leaving[place].run(started, &rosters).await });
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
        let state = if ended_at.is_some() { DrainState::Drained } else { DrainState::Draining };
        let [http, sse, websocket] = sums;
        DrainReport { state, deadline: rfc3339(self.deadline), ended_at, http, sse, websocket }
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
