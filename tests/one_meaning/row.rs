//! One row of a table: the bytes of a client, and the one meaning that they have.

use std::borrow::Cow;

/// Sent right behind the bytes of every row: whether it is answered shows where the proxy saw the end of them.
pub(crate) const NEXT: &str = "GET /next HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n";
/// What the origin gets of it.
const NEXT_RECEIVED: &str = "GET /next HTTP/1.1\r\nHost: next\r\n@next\r\n\r\n";

#[derive(Debug)]
pub(crate) struct Row {
    /// The section or the CVE that it is about.
    pub(crate) reference: &'static str,
    pub(crate) name: Cow<'static, str>,
    pub(crate) sent: Vec<u8>,
    /// So much of it is sent first; the rest when the origin has got what is expected of it.
    pub(crate) pause: Option<usize>,
    pub(crate) expected: Expected,
    /// The origin's answer to the first request, and the same answer as the client has to get it.
    pub(crate) answer: Option<(&'static str, &'static str)>,
    /// A piece of what was sent that the origin must not get.
    pub(crate) gone: Option<&'static str>,
}

/// What becomes of the bytes.
#[derive(Debug)]
pub(crate) struct Expected {
    /// Of the answers that the client gets, without the one to [`NEXT`].
    pub(crate) statuses: Vec<u16>,
    /// By the origin, byte by byte. `@host` stands for the five lines that teal adds, with this `X-Forwarded-Host`.
    pub(crate) received: Vec<u8>,
    /// The connection is used again: [`NEXT`] is answered.
    pub(crate) goes_on: bool,
}

impl Expected {
    /// What the origin gets in all.
    pub(crate) fn received_in_all(&self) -> Vec<u8> {
        let next = if self.goes_on { NEXT_RECEIVED } else { "" };
        [&self.received[..], next.as_bytes()].concat()
    }
}

pub(crate) fn row(
    reference: &'static str,
    name: impl Into<Cow<'static, str>>,
    sent: impl AsRef<[u8]>,
    expected: Expected,
) -> Row {
    let (name, sent) = (name.into(), sent.as_ref().to_vec());
    Row { reference, name, sent, pause: None, expected, answer: None, gone: None }
}

/// A request of which the origin has got a part when its sender breaks the rules: `sent` up to `pause` is that part.
pub(crate) fn cut(
    reference: &'static str,
    name: &'static str,
    (begun, rest): (&str, &str),
    status: u16,
    received: &str,
) -> Row {
    let expected = Expected { received: received.into(), ..refused(status) };
    Row { pause: Some(begun.len()), ..row(reference, name, format!("{begun}{rest}"), expected) }
}

impl Row {
    /// Whether teal refuses something of it. That there is no route is no refusal.
    pub(crate) fn is_refused(&self) -> bool {
        let is_refusal = |status: &u16| *status >= 400 && *status != 404;
        !self.expected.goes_on && self.answer.is_none() && self.expected.statuses.iter().any(is_refusal)
    }

    /// How many whole requests teal passes on.
    pub(crate) fn passed_on(&self) -> usize {
        if self.answer.is_some() { 1 } else { self.expected.statuses.iter().filter(|&&status| status == 200).count() }
    }

    /// Lets the origin answer `given`, of which the client has to get `returned`.
    pub(crate) fn answering(mut self, given: &'static str, returned: &'static str) -> Row {
        self.answer = Some((given, returned));
        self
    }

    /// Names what the origin must not get: other proxies are asked whether they pass it on.
    pub(crate) fn without(mut self, gone: &'static str) -> Row {
        self.gone = Some(gone);
        self
    }
}

/// Refused; the connection ends, and the origin gets nothing.
pub(crate) fn refused(status: u16) -> Expected {
    Expected { statuses: vec![status], received: Vec::new(), goes_on: false }
}

/// Answered by teal itself; the connection goes on.
pub(crate) fn answered(status: u16) -> Expected {
    Expected { statuses: vec![status], received: Vec::new(), goes_on: true }
}

/// Passed on; the connection goes on.
pub(crate) fn forwarded(received: impl AsRef<[u8]>) -> Expected {
    Expected { statuses: vec![200], received: received.as_ref().to_vec(), goes_on: true }
}

/// Passed on as the last request of its connection; `status` is what the origin answers.
pub(crate) fn last(status: u16, received: impl AsRef<[u8]>) -> Expected {
    Expected { statuses: vec![status], received: received.as_ref().to_vec(), goes_on: false }
}

/// A GET with these lines of fields.
pub(crate) fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

/// What the origin gets of a GET with these lines of fields.
pub(crate) fn got(fields: &str) -> String {
    let end = if fields.is_empty() { "" } else { "\r\n" };
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}{end}@a\r\n\r\n")
}

/// A POST with these lines of fields.
pub(crate) fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}")
}

/// A POST with a chunked body.
pub(crate) fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked", body)
}

/// What the origin gets of a POST with a chunked body.
pub(crate) fn got_chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n@a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}
