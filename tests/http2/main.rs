//! HTTP/2 towards clients: the same promises as over HTTP/1.1, and what nobody may do with its frames.

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod answers;
mod bridge;
mod floods;
mod flow;
mod good;
mod raw;
mod replies;
mod requests;
mod streams;
mod switching;

use support::origin::{Origin, Requests};
use support::proxy::{Builder, Teal};

/// A proxy before an origin that keeps what it gets and answers `ok`.
async fn recording() -> (Teal, Origin, Requests) {
    let (origin, requests) = Origin::recording().await;
    (Builder::app(&[&origin]).start().await, origin, requests)
}
