//! The access log: one JSON line per request, written by a thread of its own.
//!
//! A request hands its line to a bounded queue and never waits: when the disk cannot keep up, lines are lost and counted.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::config;

/// Lines that may wait for the disk.
const QUEUE: usize = 8192;
const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// One request, as it is logged.
#[derive(Debug, Serialize)]
pub struct Line {
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    pub client: String,
    pub method: String,
    pub host: String,
    pub target: String,
    /// 0 when there was no answer.
    pub status: u16,
    /// Octets of the answer's body.
    pub bytes: u64,
    pub took_us: u64,
    pub service: Option<String>,
    pub color: Option<&'static str>,
    pub endpoint: Option<String>,
    pub request_id: Option<String>,
    /// What went wrong, if anything.
    pub error: Option<String>,
}

/// The way to the log's thread.
#[derive(Debug)]
pub struct AccessLog {
    queue: SyncSender<Line>,
    lost: AtomicU64,
}

impl AccessLog {
    /// Opens the log; `None` when it is off.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread cannot be started.
    pub fn open(log: &config::AccessLog) -> io::Result<Option<AccessLog>> {
        let out: Box<dyn Write + Send> = match log {
            config::AccessLog::Off => return Ok(None),
            config::AccessLog::Stdout => Box::new(io::stdout()),
            config::AccessLog::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (queue, lines) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write(BufWriter::new(out), &lines))?;
        Ok(Some(AccessLog { queue, lost: AtomicU64::new(0) }))
    }

    pub fn log(&self, line: Line) {
        if self.queue.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that could not be written in time.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Writes until the last handle is gone.
fn write(mut out: impl Write, lines: &Receiver<Line>) {
    let mut is_failing = false;
    loop {
        let result = match lines.recv_timeout(FLUSH_AFTER) {
            Ok(line) => {
                serde_json::to_writer(&mut out, &line).map_err(io::Error::from).and_then(|()| out.write_all(b"\n"))
            }
            Err(RecvTimeoutError::Timeout) => out.flush(),
            Err(RecvTimeoutError::Disconnected) => {
                let _ = out.flush();
                return;
            }
        };
        if let Err(error) = &result
            && !is_failing
        {
            tracing::error!(%error, "access log cannot be written");
        }
        is_failing = result.is_err();
    }
}

fn rfc3339<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*at))
}
