//! The order in which a proxy stops: not ready, who is idle leaves, doors closed, goodbyes, who stays too long is cut.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::drain::pace::Goodbyes;
use crate::listener::Listening;
use crate::roster::Roster;
use crate::run::{Order, Shared, Stage};

/// How long those that are cut at the end of a shutdown may take to notice.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a slow disk may take to record how the drains have ended.
const RECORDED: Duration = Duration::from_secs(10);

/// The admin API while it runs.
#[derive(Debug, Default)]
pub(super) struct Answering {
    pub(super) task: TaskTracker,
    pub(super) end: CancellationToken,
}

impl Answering {
    /// Lets it send the answers under way; how long that may take is its own affair.
    async fn finish(&self) {
        self.end.cancel();
        self.task.close();
        self.task.wait().await;
    }
}

pub(super) async fn stop_when_told(shared: &Shared, answering: &Answering, mut stages: watch::Receiver<Stage>) {
    let told = |at_least: fn(Stage) -> bool| move |stage: &Stage| at_least(*stage);
    // An error means that the handle is gone, which is the same as being told to stop at once.
    let _ = stages.wait_for(told(|stage| stage != Stage::Running)).await;
    let mut hurry = stages.clone();
    let gently = async {
        drain_all(shared).await;
        // Last, for whoever waits there for the end of a drain.
        answering.finish().await;
    };
    tokio::select! {
        () = gently => {}
        _ = hurry.wait_for(told(|stage| stage == Stage::Stopped)) => {}
    }
    for worker in &shared.workers {
        let _ = worker.send(Order::Stop);
    }
}

/// The gentle stop: tell the balancer and the clients, close the doors, let everybody finish, cut who does not.
async fn drain_all(shared: &Shared) {
    let config = shared.state.load().config.clone();
    shared.state.begin_shutdown();
    tokio::time::sleep(config.shutdown_delay).await;
    let close = |listening: Arc<Listening>| {
        listening.close();
        Arc::downgrade(&listening)
    };
    // Everybody is told before the doors close: no answer that begins behind closed doors keeps its connection.
    Roster::close_all(&shared.rosters);
    let closed: Vec<Weak<Listening>> = shared.listeners.lock().drain(..).map(close).collect();
    let ended = async {
        tokio::select! {
            () = everybody_left(&shared.rosters, &closed) => true,
            () = say_goodbye(shared, config.shutdown_timeout) => false,
        }
    };
    if !ended.await {
        let cut: usize = shared.rosters.iter().map(|roster| roster.cut_all()).sum();
        tracing::warn!(connections = cut, "shutdown timeout: cut what was left");
        let _ = tokio::time::timeout(LAST_WORDS, everybody_left(&shared.rosters, &closed)).await;
    }
    let _ = tokio::time::timeout(RECORDED, shared.state.drains_ended()).await;
}

/// Tells the streams of every service to come back elsewhere, as a switch does; resolves at the end of `limit`. Those of
/// former generations are told by their own drains.
async fn say_goodbye(shared: &Shared, limit: Duration) {
    let started = tokio::time::Instant::now();
    let active: Vec<_> = {
        let snapshot = shared.state.load();
        let of = |service: &Arc<crate::service::Service>| (service.at_work().id(), service.config.drain.clone());
        snapshot.services.iter().map(of).collect()
    };
    let deadline = started + limit;
    let all = active.iter().map(|(generation, settings)| {
        let goodbyes =
            Goodbyes { rosters: &shared.rosters, generation: *generation, settings, newcomer: None, started, deadline };
        async move { goodbyes.say().await }
    });
    let for_ever = async {
        futures_util::future::join_all(all).await;
        std::future::pending::<()>().await
    };
    let _ = tokio::time::timeout_at(deadline, for_ever).await;
}

/// A worker owns a listener until it has seated everybody who was let in.
async fn everybody_left(rosters: &[Arc<Roster>], closed: &[Weak<Listening>]) {
    while closed.iter().any(|listening| listening.strong_count() > 0) || rosters.iter().any(|roster| !roster.is_empty())
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
