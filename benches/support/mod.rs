//! What the benches share: processes pinned to cores and the CPU time they take, a cheap origin, clients that check
//! every answer, the contestants with their configs, and the report with its chart.
//!
//! Everything runs on loopback, and every process started here ends with the bench that started it.
#![allow(dead_code, reason = "each bench uses a part of this")]

pub(crate) mod busy;
pub(crate) mod chart;
pub(crate) mod client;
pub(crate) mod contestant;
pub(crate) mod crowd;
pub(crate) mod document;
pub(crate) mod http2;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod origin;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod report;
pub(crate) mod rounds;
pub(crate) mod stats;
pub(crate) mod switchable;
pub(crate) mod tls;

/// Whether `cargo bench` started this: `cargo test --benches` runs the same executables, and must not start a load.
pub(crate) fn is_bench() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}
