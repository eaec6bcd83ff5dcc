//! The parts without which a proxy is only half alive, and what is said when one of them ends.

use tokio::sync::watch;
use tokio::task::JoinError;

use crate::run::Stage;

/// Says so when a part ends before the proxy is told to stop. Owned by the part.
#[derive(Debug)]
pub(super) struct Vital {
    pub(super) name: String,
    pub(super) stages: watch::Receiver<Stage>,
    pub(super) death: watch::Sender<Option<String>>,
}

impl Drop for Vital {
    fn drop(&mut self) {
        // Without anybody to tell it to stop it stops as well.
        if *self.stages.borrow() == Stage::Running && self.stages.has_changed().is_ok() {
            tracing::error!(part = self.name, "has died: what is left must not go on alone");
            self.death.send_replace(Some(std::mem::take(&mut self.name)));
        }
    }
}

/// Runs a part; its end is the end of something vital.
pub(super) async fn with<T>(vital: Vital, part: impl Future<Output = T>) -> T {
    let result = part.await;
    drop(vital);
    result
}

/// A part of a worker has ended: a worker that does not accept any more, or whose timeouts do not run, must not go on.
pub(super) fn pass_on(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_dies_of_the_panic_of_a_part() {
        let part = tokio::spawn(async { panic!("on purpose") });
        let worker = tokio::spawn(async move { pass_on(part.await) });
        assert!(worker.await.is_err_and(|error| error.is_panic()));
        let part = tokio::spawn(async {});
        pass_on(part.await);
        let aborted = tokio::spawn(std::future::pending());
        aborted.abort();
        pass_on(aborted.await);
    }

    #[test]
    fn a_part_that_ends_before_its_time_is_named() {
        let (stage, stages) = watch::channel(Stage::Running);
        let (death, dead) = watch::channel(None);
        let vital = |name: &str| Vital { name: name.to_owned(), stages: stages.clone(), death: death.clone() };
        let panicked = std::thread::spawn({
            let vital = vital("worker 1");
            move || {
                let _vital = vital;
                panic!("on purpose");
            }
        });
        assert!(panicked.join().is_err());
        assert_eq!(dead.borrow().as_deref(), Some("worker 1"));
        death.send_replace(None);
        stage.send_replace(Stage::Stopping);
        drop(vital("worker 2"));
        assert_eq!(*dead.borrow(), None, "it was told to");
    }
}
