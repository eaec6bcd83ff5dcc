//! Origins that know what runs at the other color: whether two colors ever worked at the same time.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use teal::config::Color;

use super::origin::{Origin, Request, ok};

/// What runs now and what has been seen, at both colors of one service.
#[derive(Debug, Default)]
pub struct Checker(Mutex<Seen>);

#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    running: [u32; 2],
    /// Requests that began.
    pub begun: u64,
    /// Requests that began while the other color was at work.
    pub overlaps: u64,
    /// The most that one color ran at once.
    pub most: u32,
}

/// A request that runs.
struct Run(Arc<Checker>, Color);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.0.lock().running[self.1 as usize] -= 1;
    }
}

impl Checker {
    pub fn seen(&self) -> Seen {
        *self.0.lock()
    }

    fn run(self: &Arc<Checker>, color: Color) -> Run {
        let mut seen = self.0.lock();
        seen.running[color as usize] += 1;
        seen.begun += 1;
        seen.overlaps += u64::from(seen.running[color.other() as usize] > 0);
        seen.most = seen.most.max(seen.running[color as usize]);
        drop(seen);
        Run(self.clone(), color)
    }

    /// An origin of this color. The last segment of a path is how many milliseconds the request takes; a body comes
    /// back behind the color.
    pub async fn origin(self: &Arc<Checker>, color: Color) -> Origin {
        let checker = self.clone();
        Origin::http(move |request: Request| {
            let run = checker.run(color);
            async move {
                let path = request.line().split(' ').nth(1).unwrap_or_default();
                let millis = path.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or(0);
                tokio::time::sleep(Duration::from_millis(millis)).await;
                // Whoever has the answer may know that it is over.
                drop(run);
                ok(&format!("{color}{}", String::from_utf8_lossy(&request.body)))
            }
        })
        .await
    }
}
