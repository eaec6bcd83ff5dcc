//! teal in front of an origin that keeps every byte, and the check of a row.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::row::{NEXT, Row};
use crate::support::client::Client;
use crate::support::origin::{Origin, ok};
use crate::support::proxy::{Builder, Teal};
use crate::support::{PATIENCE, eventually};

/// An origin that keeps what it gets, byte by byte.
pub(crate) struct Recorder {
    pub(crate) origin: Origin,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    /// Of all connections, as they came.
    bytes: Vec<u8>,
    seen: usize,
    /// Requests that were whole, and were answered.
    requests: Vec<Vec<u8>>,
    open: usize,
    /// To the next request, instead of the usual answer.
    answer: Option<&'static str>,
}

impl Recorder {
    pub(crate) async fn start() -> Recorder {
        let log = Arc::<Mutex<Log>>::default();
        let kept = log.clone();
        let origin = Origin::raw(move |stream| {
            let log = kept.clone();
            log.lock().open += 1;
            async move {
                record(stream, &log).await;
                log.lock().open -= 1;
            }
        });
        Recorder { origin: origin.await, log }
    }

    /// What has come since the last [`Recorder::forget`].
    pub(crate) fn news(&self) -> Vec<u8> {
        let log = self.log.lock();
        log.bytes[log.seen..].to_vec()
    }

    /// The whole requests that have come since then.
    pub(crate) fn requests(&self) -> Vec<Vec<u8>> {
        self.log.lock().requests.clone()
    }

    pub(crate) fn forget(&self) {
        let mut log = self.log.lock();
        log.seen = log.bytes.len();
        log.requests.clear();
    }

    pub(crate) fn answer_next(&self, answer: Option<&'static str>) {
        self.log.lock().answer = answer;
    }

    fn is_alone(&self) -> bool {
        self.log.lock().open == 0
    }
}

async fn record(mut stream: TcpStream, log: &Mutex<Log>) {
    let mut buffer = Vec::new();
    loop {
        let before = buffer.len();
        if !stream.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
            return;
        }
        log.lock().bytes.extend_from_slice(&buffer[before..]);
        while let Some(length) = whole(&buffer) {
            let request = buffer.drain(..length).collect();
            let answer = {
                let mut log = log.lock();
                log.requests.push(request);
                log.answer.take().map_or_else(|| ok("ok"), |answer| answer.as_bytes().to_vec())
            };
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}

/// The length of the request at the front of `bytes`, if it is whole.
fn whole(bytes: &[u8]) -> Option<usize> {
    let start = find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..start]).to_ascii_lowercase();
    let field = |name: &str| {
        head.lines().find_map(|line| line.split_once(':').filter(|(found, _)| *found == name)).map(|(_, value)| value)
    };
    if field("transfer-encoding").is_some() {
        return Some(start + whole_chunks(&bytes[start..])?);
    }
    let length = field("content-length").map_or(Some(0), |length| length.trim().parse().ok())?;
    (bytes.len() - start >= length).then_some(start + length)
}

fn whole_chunks(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let text = std::str::from_utf8(&bytes[at..at + line]).ok()?;
        let size = usize::from_str_radix(text.split(';').next()?.trim(), 16).ok()?;
        at += line + 2;
        if size > 0 {
            at = at.saturating_add(size).saturating_add(2);
        } else if bytes[at..].starts_with(b"\r\n") {
            return Some(at + 2);
        } else {
            return Some(at + find(&bytes[at..], b"\r\n\r\n")? + 4);
        }
        if at > bytes.len() {
            return None;
        }
    }
}

pub(crate) fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// teal with three routes to one origin. A request that goes to `/admin` can be told by its host, and one that goes to
/// `/strip` by its path.
pub(crate) struct Stage {
    teal: Teal,
    recorder: Recorder,
}

impl Stage {
    pub(crate) async fn new() -> Stage {
        let recorder = Recorder::start().await;
        let origin = recorder.origin.toml();
        let services = format!(
            "[[routes]]\npath = \"/\"\nservice = \"app\"\n\
             [[routes]]\npath = \"/strip\"\nservice = \"app\"\nstrip_prefix = true\n\
             [[routes]]\npath = \"/admin\"\nservice = \"admin\"\n\
             [services.app]\nhealth = {{ interval = \"1h\" }}\nblue = [{origin}]\n\
             [services.admin]\nhost = \"admin.internal\"\nhealth = {{ interval = \"1h\" }}\nblue = [{origin}]\n"
        );
        // Of HTTP/2 the preface alone would be a beginning.
        let limits = "http2 = false\nrequest_head = \"32KiB\"\nrequest_headers = 100\nrequest_body = \"64KiB\"\n";
        // With one worker there is one pool of connections to the origin, and so one order of what it gets.
        let teal = Builder::new(&services).listener(limits).workers(1).start().await;
        Stage { teal, recorder }
    }

    /// What is wrong with what became of a row that was sent in pieces of this many octets.
    pub(crate) async fn check(&self, row: &Row, piece: usize) -> Result<(), String> {
        self.recorder.forget();
        self.recorder.answer_next(row.answer.map(|(given, _)| given));
        let mut client = Client::connect(self.teal.address).await;
        let (begun, rest) = row.sent.split_at(row.pause.unwrap_or(0));
        if row.pause.is_some() {
            client.send(begun).await;
            let what = format!("the origin has the beginning of {:?}", row.name);
            eventually(&what, || self.received() == row.expected.received).await;
        }
        for piece in [rest, NEXT.as_bytes()].concat().chunks(piece) {
            client.send(piece).await;
        }
        let Ok((bytes, in_order)) = timeout(PATIENCE, client.rest()).await else {
            return Err(format!("the connection does not end; the origin got {}", self.received().escape_ascii()));
        };
        let answers = answers(&bytes)?;
        self.check_answers(row, &answers, in_order)?;
        let (received, expected) = (self.received(), row.expected.received_in_all());
        if received != expected {
            return Err(format!(
                "the origin got\n      {}\n  not {}",
                received.escape_ascii(),
                expected.escape_ascii()
            ));
        }
        Ok(())
    }

    fn check_answers(&self, row: &Row, answers: &[&[u8]], in_order: bool) -> Result<(), String> {
        let expected: Vec<u16> =
            row.expected.statuses.iter().copied().chain(row.expected.goes_on.then_some(200)).collect();
        let statuses: Vec<u16> = answers.iter().map(|answer| status(answer)).collect();
        if statuses != expected {
            let received = self.received();
            return Err(format!("{statuses:?}, not {expected:?}; the origin got {}", received.escape_ascii()));
        }
        if !in_order {
            return Err("the connection was reset".to_owned());
        }
        if answers.last().is_none_or(|answer| find(answer, b"\r\nConnection: close\r\n").is_none()) {
            return Err("the last answer does not say that it is the last".to_owned());
        }
        match row.answer {
            Some((_, returned)) if answers[0] != returned.as_bytes() => {
                Err(format!("the client got {}, not {returned:?}", answers[0].escape_ascii()))
            }
            _ => Ok(()),
        }
    }

    /// Stops the proxy and makes sure that nothing has reached the origin after the last look.
    pub(crate) async fn end(self) {
        self.recorder.forget();
        self.teal.stop().await;
        eventually("all connections to the origin have ended", || self.recorder.is_alone()).await;
        let late = self.recorder.news();
        assert!(late.is_empty(), "came late: {}", late.escape_ascii());
    }

    fn received(&self) -> Vec<u8> {
        normalised(&self.recorder.news(), &self.teal)
    }
}

/// The answers in `bytes`, which must hold nothing else.
fn answers(bytes: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = answer_length(rest).ok_or_else(|| format!("no whole answer: {}", rest.escape_ascii()))?;
        let (answer, after) = rest.split_at(length);
        found.push(answer);
        rest = after;
    }
    Ok(found)
}

/// Every answer here has a length or chunks.
fn answer_length(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let has_body = find(&bytes[..head], b"\r\nContent-Length: ").or(find(&bytes[..head], b"\r\nTransfer-Encoding: "));
    has_body.and(whole(bytes))
}

fn status(answer: &[u8]) -> u16 {
    answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}

/// Puts `@` and the forwarded host in the place of the lines that teal adds, where they are as they have to be.
fn normalised(bytes: &[u8], teal: &Teal) -> Vec<u8> {
    let proto = teal.proto;
    let start = format!("X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: {proto}\r\nX-Forwarded-Host: ");
    let (start, port) = (start.as_bytes(), teal.listener.port());
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(at) = find(rest, start) {
        let (before, from) = rest.split_at(at);
        out.extend_from_slice(before);
        let Some((host, length)) = own_lines(&from[start.len()..], port) else {
            out.extend_from_slice(start);
            rest = &from[start.len()..];
            continue;
        };
        out.extend_from_slice(&[b"@", host].concat());
        rest = &from[start.len() + length..];
    }
    [&out[..], rest].concat()
}

/// The forwarded host, and the length of the lines from it to the value of `X-Request-Id`.
fn own_lines(bytes: &[u8], port: u16) -> Option<(&[u8], usize)> {
    const ID: usize = 32;
    let host = find(bytes, b"\r\n")?;
    let port = format!("\r\nX-Forwarded-Port: {port}\r\nX-Request-Id: ");
    let after = bytes[host..].strip_prefix(port.as_bytes())?;
    let is_id = after.get(..ID)?.iter().all(u8::is_ascii_hexdigit) && after[ID..].starts_with(b"\r\n");
    is_id.then_some((&bytes[..host], host + port.len() + ID))
}
