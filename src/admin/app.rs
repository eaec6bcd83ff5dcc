//! What every handler works with, and the bounds of what they may wait for: the disk, a drain, each other.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prometheus::process_collector::ProcessCollector;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::admin::gate::Access;
use crate::admin::problem::Problem;
use crate::admin::view::Seen;
use crate::state::{Record, State};
use crate::store::{Store, StoreError};

/// Requests that may wait for the end of a drain at the same time; the other connections are for those that do not.
const WAITING: usize = 128;
/// Reads of the store at the same time: a disk that hangs takes no more threads than that.
const READING: usize = 4;
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Shared by all connections.
#[derive(Clone)]
pub(super) struct App(Arc<Inner>);

pub(super) struct Inner {
    pub(super) state: Arc<State>,
    pub(super) access: Access,
    pub(super) started_at: SystemTime,
    pub(super) started: Instant,
    pub(super) process: ProcessCollector,
    /// Cancelled when the API stops; nobody waits on then.
    stop: CancellationToken,
    waiting: Semaphore,
    reading: Arc<Semaphore>,
}

impl std::ops::Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    pub(super) fn new(state: Arc<State>, access: Access, stop: CancellationToken) -> App {
        App(Arc::new(Inner {
            state,
            access,
            started_at: SystemTime::now(),
            started: Instant::now(),
            process: ProcessCollector::for_self(),
            stop,
            waiting: Semaphore::new(WAITING),
            reading: Arc::new(Semaphore::new(READING)),
        }))
    }

    pub(super) fn service(&self, name: &str) -> Result<Seen, Problem> {
        let snapshot = self.state.load();
        snapshot.service(name).map(|service| Seen::new(service)).ok_or_else(|| {
            let known: Vec<String> = snapshot.services.iter().map(|service| service.config.name.to_string()).collect();
            Problem::unknown_service(name, &known)
        })
    }

    /// The right to wait for a drain, to be had before anything is done.
    pub(super) fn patience(&self, limit: Duration) -> Result<Patience<'_>, Problem> {
        let too_many = |_| Problem::busy(format!("{WAITING} requests wait for a drain already"));
        let place = self.waiting.try_acquire().map_err(too_many)?;
        Ok(Patience { limit, stop: &self.stop, _place: place })
    }

    /// Reads what only the store knows, where it may wait for the disk.
    pub(super) async fn read_store<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let reading = async {
            let place = self.reading.clone().acquire_owned().await;
            let store = self.state.store().clone();
            blocking(move || {
                let _place = place;
                read(&store)
            })
            .await
        };
        match timeout(READ_TIMEOUT, reading).await {
            Ok(result) => Ok(result??),
            Err(_) => Err(Problem::busy("the disk of the state directory does not answer")),
        }
    }
}

/// Runs `work` on a thread where nobody else waits for it.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    spawn_blocking(work).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Problem::busy("the proxy is stopping"),
    })
}

/// The right to wait for a drain for some time.
pub(super) struct Patience<'a> {
    limit: Duration,
    stop: &'a CancellationToken,
    _place: tokio::sync::SemaphorePermit<'a>,
}

impl Patience<'_> {
    /// Returns when the drain of the record is over, or patience is.
    pub(super) async fn wait_for(self, record: &Record) {
        let Some(drain) = record.drain() else { return };
        tokio::select! {
            () = drain.over() => {}
            () = tokio::time::sleep(self.limit) => {}
            () = self.stop.cancelled() => {}
        }
    }
}
