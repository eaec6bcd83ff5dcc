//! Heads and bodies of HTTP/1.1, read and written as a bridge needs them.

use bytes::{Buf, Bytes, BytesMut};
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri, response};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const MOST_FIELDS: usize = 128;

/// A request as it was written.
pub(super) struct Asked {
    pub(super) request: Request<()>,
    pub(super) framing: Framing,
    /// The connection ends behind the answer.
    pub(super) closes: bool,
    is_head: bool,
    /// Of HTTP/1.0, which knows no chunks.
    is_old: bool,
    /// `Sec-WebSocket-Key`.
    key: Option<Vec<u8>>,
}

/// What of a request's body is still to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    Nothing,
    Length(u64),
    /// So much of a chunk, its line end included.
    Chunk(u64),
    Tunnel,
}

pub(super) enum Piece {
    Data(Bytes),
    End(Option<HeaderMap>),
}

/// Reads a head. `None`: HTTP/2 cannot say it.
pub(super) fn asked(head: &[u8]) -> Option<Asked> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(_)) = parsed.parse(head) else { return None };
    let is_old = parsed.version? == 0;
    let (mut framing, mut closes, mut is_upgrade, mut key) = (Framing::Nothing, is_old, false, None);
    // Who speaks HTTP/1.0 may leave it out.
    let mut host = "test";
    let mut headers = HeaderMap::new();
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let says = |text: &str| field.value.eq_ignore_ascii_case(text.as_bytes());
        match name {
            header::HOST => host = std::str::from_utf8(field.value).ok()?,
            header::CONNECTION => closes |= says("close"),
            header::UPGRADE => is_upgrade = says("websocket"),
            header::TRANSFER_ENCODING => framing = Framing::Chunk(0),
            header::SEC_WEBSOCKET_KEY => key = Some(field.value.to_vec()),
            _ => {
                if name == header::CONTENT_LENGTH {
                    framing = Framing::Length(std::str::from_utf8(field.value).ok()?.parse().ok()?);
                }
                headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
            }
        }
    }
    let key = key.filter(|_| is_upgrade);
    let mut method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    let is_head = method == Method::HEAD;
    let mut request = Request::new(());
    if key.is_some() {
        (method, framing) = (Method::CONNECT, Framing::Tunnel);
        request.extensions_mut().insert(Protocol::from_static("websocket"));
    }
    *request.method_mut() = method;
    *request.uri_mut() = Uri::builder().scheme("http").authority(host).path_and_query(parsed.path?).build().ok()?;
    *request.headers_mut() = headers;
    let framing = if framing == Framing::Length(0) { Framing::Nothing } else { framing };
    Some(Asked { request, framing, closes, is_head, is_old, key })
}

/// The head of an answer.
pub(super) struct Head {
    pub(super) text: Vec<u8>,
    pub(super) is_chunked: bool,
}

pub(super) fn answer(parts: &response::Parts, asked: &Asked, is_whole: bool, closes: bool) -> Head {
    let is_empty = asked.is_head || matches!(parts.status.as_u16(), 204 | 304);
    let has_length = parts.headers.contains_key(header::CONTENT_LENGTH);
    let is_chunked = !is_empty && !has_length && !is_whole && !asked.is_old;
    let mut text = begin(parts);
    if closes {
        text += "connection: close\r\n";
    }
    if is_chunked {
        text += "transfer-encoding: chunked\r\n";
    } else if is_whole && !is_empty && !has_length {
        text += "content-length: 0\r\n";
    }
    Head { text: (text + "\r\n").into_bytes(), is_chunked }
}

pub(super) fn interim(parts: &response::Parts) -> Vec<u8> {
    (begin(parts) + "\r\n").into_bytes()
}

/// The head of an answer that accepts a WebSocket.
pub(super) fn accepted(parts: &response::Parts, asked: &Asked) -> Vec<u8> {
    let accept = derive_accept_key(asked.key.as_deref().unwrap_or_default());
    let fields = fields(&parts.headers);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\n{fields}\r\n"
    )
    .into_bytes()
}

fn begin(parts: &response::Parts) -> String {
    let reason = parts.status.canonical_reason().unwrap_or_default();
    format!("HTTP/1.1 {} {reason}\r\n{}", parts.status.as_str(), fields(&parts.headers))
}

/// No test that runs over HTTP/2 sends anything but text in fields.
fn fields(fields: &HeaderMap) -> String {
    fields.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().expect("a text"))).collect()
}

pub(super) fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

pub(super) fn last_chunk(trailers: Option<&HeaderMap>) -> Vec<u8> {
    format!("0\r\n{}\r\n", trailers.map(fields).unwrap_or_default()).into_bytes()
}

/// Takes the next piece of a body from `buffer`: `Some(None)`, there is not enough; `None`, it makes no sense.
pub(super) fn piece(buffer: &mut BytesMut, framing: &mut Framing) -> Option<Option<Piece>> {
    match framing {
        Framing::Nothing | Framing::Tunnel => None,
        Framing::Length(0) => Some(Some(end(framing, None))),
        Framing::Length(left) => Some(take(buffer, left).map(Piece::Data)),
        Framing::Chunk(0) => chunk_begins(buffer, framing),
        Framing::Chunk(left @ 1..=2) => {
            if buffer.len() < 2 {
                return Some(None);
            }
            *left = 0;
            buffer.advance(2);
            chunk_begins(buffer, framing)
        }
        Framing::Chunk(left) => {
            let mut data = *left - 2;
            let piece = take(buffer, &mut data);
            *left = data + 2;
            Some(piece.map(Piece::Data))
        }
    }
}

fn take(buffer: &mut BytesMut, left: &mut u64) -> Option<Bytes> {
    let count = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= count as u64;
    (count > 0).then(|| buffer.split_to(count).freeze())
}

fn end(framing: &mut Framing, trailers: Option<HeaderMap>) -> Piece {
    *framing = Framing::Nothing;
    Piece::End(trailers)
}

fn chunk_begins(buffer: &mut BytesMut, framing: &mut Framing) -> Option<Option<Piece>> {
    let Some(line) = find(buffer, b"\r\n") else { return Some(None) };
    let size = std::str::from_utf8(&buffer[..line]).ok()?.split(';').next()?;
    let size = u64::from_str_radix(size.trim(), 16).ok()?;
    if size > 0 {
        buffer.advance(line + 2);
        *framing = Framing::Chunk(size + 2);
        return piece(buffer, framing);
    }
    if buffer[line..].starts_with(b"\r\n\r\n") {
        buffer.advance(line + 4);
        return Some(Some(end(framing, None)));
    }
    let Some(length) = find(&buffer[line..], b"\r\n\r\n") else { return Some(None) };
    let section = buffer.split_to(line + length + 4);
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&section[line + 2..], &mut fields) else {
        return None;
    };
    let mut trailers = HeaderMap::new();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        trailers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(Some(end(framing, Some(trailers))))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
