//! Builders for the tests: an origin, a proxy in front of it, a client. Everything listens on port 0 of the loopback.

#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses its part")]

pub mod binary;
pub mod body;
pub mod bridge;
pub mod by_hand;
pub mod checker;
pub mod client;
pub mod exchange;
pub mod frames;
pub mod origin;
pub mod over;
pub mod proxy;
pub mod streams;
pub mod tight;
pub mod tls;

use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

/// How long anything in a test may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Resolves when `condition` holds; fails the test when it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails the test when `future` takes longer than [`PATIENCE`].
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Gives a file its text in one step: one that is written in place may be seen before it has all of it.
pub fn replace(path: &Path, text: impl AsRef<[u8]>) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).expect("the test can write");
    fs::rename(&draft, path).expect("the test can rename");
}

/// A temporary directory in memory, where there is such a thing: a test that promises nothing about disks need not wait
/// for one.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}
