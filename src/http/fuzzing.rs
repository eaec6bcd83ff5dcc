//! The codec as the fuzz targets see it: what was understood of some bytes, and what would be sent on. Only there in
//! builds with `--cfg fuzzing`.

use std::path::Path;
use std::sync::LazyLock;

use crate::config::{self, Config, Limits};
use crate::http::body::{Encoding, Pump};
use crate::http::connection::is_worth_parsing;
use crate::http::head::{Framing, RequestHead, owned, parse_answer, parse_request};
use crate::http::headers::{Delivery, Origin, RequestId, incoming, outgoing};

/// How the end of a body is found, for the targets to compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
}

/// A request head that teal would forward.
#[derive(PartialEq, Eq, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub host: Vec<u8>,
    pub body: Body,
    pub is_websocket: bool,
    /// Fields that `Connection` takes along.
    pub named: Vec<Vec<u8>>,
    /// Octets of the head.
    pub length: usize,
    /// As the origin gets it.
    pub sent: Vec<u8>,
}

/// The head of an answer that teal would forward.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Body,
    /// Of what the client gets.
    pub delivered: Body,
    pub length: usize,
    pub sent: Vec<u8>,
}

/// Refused, and why.
#[derive(PartialEq, Eq, Debug)]
pub struct Refused(pub String);

/// A chunked body as far as it has come.
#[derive(PartialEq, Eq, Debug)]
pub struct Chunks {
    /// Octets that belong to it.
    pub length: usize,
    pub is_done: bool,
    pub sent: Vec<u8>,
}

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let text = "[[listeners]]\nlisten = \"127.0.0.1:0\"\n[services.a]\nblue = [\"127.0.0.1:1\"]\n\
                [[routes]]\npath = \"/\"\nservice = \"a\"\n";
    config::parse(text, Path::new("fuzz.toml")).expect("a valid config")
});

/// The head at the front of `bytes`; `None`: not whole yet.
pub fn request(bytes: &[u8]) -> Result<Option<Request>, Refused> {
    parse_request(bytes, limits(), forwarded).map_err(|failure| Refused(failure.to_string()))
}

/// What becomes of a first head that arrives in pieces that end at `cuts`, which rise.
pub fn request_in_pieces(bytes: &[u8], cuts: &[usize]) -> Result<Option<Request>, Refused> {
    let mut scanned = 0;
    for &cut in cuts {
        let filled = &bytes[..cut];
        if !filled.is_empty() && is_worth_parsing(filled, scanned, limits().request_head) {
            match request(filled) {
                Ok(None) => {}
                decided => return decided,
            }
        }
        scanned = filled.len();
    }
    Ok(None)
}

/// As `request`, for the answer to a HEAD or to something else, and a client of HTTP/1.0 or 1.1.
pub fn answer(bytes: &[u8], to_head: bool, to_http_10: bool, closes: bool) -> Result<Option<Answer>, Refused> {
    let parsed = parse_answer(bytes, to_head, 256 * 1024, |head, length| {
        let is_delimited = matches!(head.framing, Framing::Empty | Framing::Length(_));
        let encoding = if is_delimited || to_http_10 { Encoding::Plain } else { Encoding::Chunked };
        let delivered = match (head.framing, encoding) {
            (framing @ (Framing::Empty | Framing::Length(_)), _) => body(framing),
            (_, Encoding::Chunked) => Body::Chunked,
            (_, Encoding::Plain) => Body::UntilClose,
        };
        let closes = closes || delivered == Body::UntilClose;
        let sent = incoming(head, Delivery { encoding, closes, to_http_10 }, None);
        Answer { status: head.status, body: body(head.framing), delivered, length, sent }
    });
    parsed.map_err(|failure| Refused(failure.to_string()))
}

/// Forwards a chunked body that comes in these pieces, without the trailers of these names.
pub fn chunks(pieces: &[&[u8]], private: &[&[u8]]) -> Result<Chunks, Refused> {
    let pump = Pump::new(Vec::new(), Framing::Chunked, Encoding::Chunked, None);
    let mut pump = pump.without_trailers(owned(private));
    let mut length = 0;
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() && !pump.is_read() {
            let taken = pump.take(rest).map_err(|error| Refused(format!("{error:?}")))?;
            assert!(taken > 0, "it must get on");
            length += taken;
            rest = &rest[taken..];
        }
    }
    Ok(Chunks { length, is_done: pump.is_read(), sent: pump.taken().to_vec() })
}

fn limits() -> &'static Limits {
    &CONFIG.listeners[0].limits
}

fn forwarded(head: &RequestHead<'_>, length: usize) -> Request {
    let origin = Origin { peer: "192.0.2.1".parse().ok(), is_trusted: false, port: Some(80), proto: "http" };
    let id = RequestId::Given(b"id".as_slice().into());
    let sent = outgoing(head, &CONFIG.services["a"], &origin, 0, &id).take(None).unwrap_or_default();
    Request {
        method: head.method.to_owned(),
        target: head.target.to_owned(),
        host: head.host.to_vec(),
        body: body(head.framing),
        is_websocket: head.websocket_key.is_some(),
        named: head.named_by_connection.iter().map(|name| name.to_vec()).collect(),
        length,
        sent,
    }
}

fn body(framing: Framing) -> Body {
    match framing {
        Framing::Empty => Body::Empty,
        Framing::Length(length) => Body::Length(length),
        Framing::Chunked => Body::Chunked,
        Framing::UntilClose => Body::UntilClose,
    }
}
