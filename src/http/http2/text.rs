//! Heads of HTTP/2 as heads of HTTP/1.1, and back (RFC 9113 §8).
//!
//! `h2` has seen to it by then that pseudo-header fields are complete, that names are lower-case tokens and values hold no
//! line break, and that no field belongs to the connection. The strict reader of HTTP/1.1 heads judges the result again.

use std::borrow::Cow;
use std::io;
use std::mem::MaybeUninit;
use std::sync::LazyLock;

use h2::RecvStream;
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use memchr::memmem::Finder;

use crate::http::body::{MAX_TRAILER_FIELDS, push_field};
use crate::http::head::Framing;

/// Header fields of an answer of ours.
const MAX_FIELDS: usize = 300;
/// Header fields of a request of ours: as many as a configuration may allow, and our own.
const MAX_REQUEST_FIELDS: usize = 1024;

/// A head of HTTP/1.1 that comes in pieces.
#[derive(Debug, Default)]
pub(super) struct HeadText(Vec<u8>);

/// How a head ends. Prepared once: making a search costs as much as many searches.
static END: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));

impl HeadText {
    /// Takes octets up to the end of the head; says how many, and gives the head if it is whole.
    ///
    /// # Errors
    /// It grows beyond `most` octets.
    pub(super) fn take<'b>(&mut self, bytes: &'b [u8], most: usize) -> io::Result<(usize, Option<Cow<'b, [u8]>>)> {
        let known = self.0.len();
        if known == 0
            && let Some(end) = END.find(bytes)
        {
            let length = end + 4;
            return Ok((length, Some(Cow::Borrowed(&bytes[..length]))));
        }
        self.0.extend_from_slice(bytes);
        let from = known.saturating_sub(3);
        match END.find(&self.0[from..]) {
            Some(end) => {
                self.0.truncate(from + end + 4);
                Ok((self.0.len() - known, Some(Cow::Owned(std::mem::take(&mut self.0)))))
            }
            None if self.0.len() > most => Err(io::ErrorKind::InvalidData.into()),
            None => Ok((bytes.len(), None)),
        }
    }
}

/// The head of a request.
#[derive(Debug)]
pub(super) struct RequestText {
    pub(super) text: Vec<u8>,
    /// Only its end tells how long the body is.
    pub(super) is_chunked: bool,
}

/// The text of a request's head. `None`: there is no request that it could mean.
pub(super) fn request_head(parts: &Parts, body: &RecvStream) -> Option<RequestText> {
    let protocol = parts.extensions.get::<Protocol>().map(Protocol::as_str);
    // Any other protocol stays a CONNECT, which the reader refuses as such.
    let is_websocket = protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"));
    let mut out = Vec::with_capacity(512);
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    out.extend_from_slice(if is_websocket { b"GET" } else { parts.method.as_str().as_bytes() });
    out.push(b' ');
    // An ordinary CONNECT has no path; the reader refuses it by its method.
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    push_host(&mut out, parts);
    push_fields(&mut out, &parts.headers, is_websocket)?;
    let is_chunked = !is_websocket && push_framing(&mut out, parts, body);
    if is_websocket {
        push_handshake(&mut out);
    }
    out.extend_from_slice(b"\r\n");
    Some(RequestText { text: out, is_chunked })
}

/// `:authority` is the host. A `Host` field that says the same is dropped; of one that says something else the reader sees
/// two (RFC 9113 §8.3.1).
fn push_host(out: &mut Vec<u8>, parts: &Parts) {
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let Some(authority) = authority {
        push_field(out, "Host", authority);
    }
    if !has(&parts.headers, &header::HOST) {
        return;
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let says_the_same =
        |host: &HeaderValue| authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_bytes()));
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if says_the_same(host) => {}
        _ => parts.headers.get_all(header::HOST).iter().for_each(|host| push_field(out, "Host", host.as_bytes())),
    }
}

fn push_fields(out: &mut Vec<u8>, fields: &HeaderMap, is_websocket: bool) -> Option<()> {
    let mut cookies: Vec<&[u8]> = Vec::new();
    for (name, value) in fields {
        match *name {
            header::HOST => {}
            // Crumbs make one field again (RFC 9113 §8.2.3).
            header::COOKIE => cookies.push(value.as_bytes()),
            header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => return None,
            header::SEC_WEBSOCKET_KEY | header::CONTENT_LENGTH if is_websocket => {}
            _ => push_field(out, name.as_str(), value.as_bytes()),
        }
    }
    if !cookies.is_empty() {
        push_field(out, "cookie", &cookies.join(&b"; "[..]));
    }
    Some(())
}

/// What a WebSocket over HTTP/2 says by being one (RFC 8441 §5).
fn push_handshake(out: &mut Vec<u8>) {
    // 16 octets in base64, as tungstenite makes them.
    let key = tokio_tungstenite::tungstenite::handshake::client::generate_key();
    push_field(out, "Sec-WebSocket-Key", key.as_bytes());
    out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
}

/// How the body goes on: `h2` holds it against a `Content-Length`; without one only its end tells, which is returned.
fn push_framing(out: &mut Vec<u8>, parts: &Parts, body: &RecvStream) -> bool {
    if has(&parts.headers, &header::CONTENT_LENGTH) {
        return false;
    }
    if !body.is_end_stream() {
        push_field(out, "Transfer-Encoding", b"chunked");
        return true;
    }
    if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
        push_field(out, "Content-Length", b"0");
    }
    false
}

/// Whether there is such a field. Heads are short: looking at all names takes less than hashing one.
fn has(fields: &HeaderMap, wanted: &HeaderName) -> bool {
    fields.keys().any(|name| name == wanted)
}

/// A name, without looking for those that every request of ours has, in our spelling.
fn name_of(text: &str) -> Option<HeaderName> {
    const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
    match text {
        "X-Request-Id" => Some(REQUEST_ID),
        "X-Forwarded-For" => Some(FORWARDED_FOR),
        "X-Forwarded-Proto" => Some(FORWARDED_PROTO),
        "X-Forwarded-Host" => Some(FORWARDED_HOST),
        "X-Forwarded-Port" => Some(FORWARDED_PORT),
        _ => HeaderName::from_bytes(text.as_bytes()).ok(),
    }
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The value of a field. That of an id never comes twice: `h2` is told not to remember it, for it looks at all values of a
/// name that it remembers whenever it sends another.
fn value_of(name: &HeaderName, octets: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(octets).ok()?;
    value.set_sensitive(*name == REQUEST_ID);
    Some(value)
}

/// The end of a chunked body: its trailer fields, and the empty line behind them.
pub(super) fn push_end(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    let fields = trailers.into_iter().flatten();
    fields.for_each(|(name, value)| push_field(out, name.as_str(), value.as_bytes()));
    out.extend_from_slice(b"\r\n");
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct AnswerHead {
    pub(super) response: Response<()>,
    pub(super) length: Option<u64>,
    pub(super) is_chunked: bool,
}

/// Reads the head of an answer, which ends with an empty line. `None`: it is none.
pub(super) fn answer_head(text: &[u8]) -> Option<AnswerHead> {
    let mut space = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let read = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, text, &mut space);
    let Ok(httparse::Status::Complete(_)) = read else { return None };
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(parsed.code?).ok()?;
    *response.headers_mut() = HeaderMap::with_capacity(parsed.headers.len());
    let mut head = AnswerHead { response, length: None, is_chunked: false };
    for field in parsed.headers.iter() {
        let name = name_of(field.name)?;
        match name {
            header::CONNECTION | header::UPGRADE => continue,
            header::TRANSFER_ENCODING => {
                head.is_chunked = true;
                continue;
            }
            header::CONTENT_LENGTH => head.length = std::str::from_utf8(field.value).ok()?.parse().ok(),
            _ => {}
        }
        match name.as_str() {
            "keep-alive" | "proxy-connection" | "sec-websocket-accept" => {}
            _ => {
                let value = value_of(&name, field.value)?;
                head.response.headers_mut().append(name, value);
            }
        }
    }
    if head.response.status() == StatusCode::SWITCHING_PROTOCOLS {
        *head.response.status_mut() = StatusCode::OK;
    }
    Some(head)
}

/// The head of a request for an endpoint.
#[derive(Debug)]
pub(super) struct OriginHead {
    pub(super) request: Request<()>,
    pub(super) framing: Framing,
    pub(super) expects_continue: bool,
    /// `Sec-WebSocket-Key` of a request for a WebSocket.
    pub(super) key: Option<Vec<u8>>,
}

/// Reads the head of a request of ours. `None`: HTTP/2 cannot say it.
pub(super) fn origin_head(text: &[u8], is_secure: bool) -> Option<OriginHead> {
    let mut space = [const { MaybeUninit::uninit() }; MAX_REQUEST_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let Ok(httparse::Status::Complete(_)) = parsed.parse_with_uninit_headers(text, &mut space) else { return None };
    let (mut framing, mut expects_continue, mut key) = (Framing::Empty, false, None);
    let (mut host, mut is_upgrade) = ("", false);
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name = name_of(field.name)?;
        match name {
            header::HOST => host = std::str::from_utf8(field.value).ok()?,
            header::CONNECTION => {}
            header::UPGRADE => is_upgrade = true,
            header::TRANSFER_ENCODING => framing = Framing::Chunked,
            header::EXPECT => expects_continue = true,
            header::SEC_WEBSOCKET_KEY => key = Some(field.value.to_vec()),
            _ => {
                if name == header::CONTENT_LENGTH {
                    framing = match std::str::from_utf8(field.value).ok()?.parse().ok()? {
                        0 => Framing::Empty,
                        length => Framing::Length(length),
                    };
                }
                let value = value_of(&name, field.value)?;
                headers.append(name, value);
            }
        }
    }
    let key = key.filter(|_| is_upgrade);
    let uri = Uri::builder().scheme(if is_secure { "https" } else { "http" }).authority(host);
    let mut request = Request::new(());
    *request.method_mut() =
        if key.is_some() { Method::CONNECT } else { Method::from_bytes(parsed.method?.as_bytes()).ok()? };
    *request.uri_mut() = uri.path_and_query(parsed.path?).build().ok()?;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = headers;
    if key.is_some() {
        request.extensions_mut().insert(Protocol::from_static("websocket"));
    }
    Some(OriginHead { request, framing, expects_continue, key })
}

/// The text of an interim answer.
pub(super) fn interim_text(parts: &http::response::Parts) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    push_status(&mut out, parts.status);
    parts.headers.iter().for_each(|(name, value)| push_field(&mut out, name.as_str(), value.as_bytes()));
    out.extend_from_slice(b"\r\n");
    out
}

fn push_status(out: &mut Vec<u8>, status: StatusCode) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The text of an answer's head, and whether its body follows in chunks. `accept` turns it into that of a WebSocket.
pub(super) fn answer_text(
    parts: &http::response::Parts,
    has_body: bool,
    accept: Option<&str>,
    is_head: bool,
) -> (Vec<u8>, bool) {
    let mut out = Vec::with_capacity(512);
    let status = if accept.is_some() { StatusCode::SWITCHING_PROTOCOLS } else { parts.status };
    push_status(&mut out, status);
    parts.headers.iter().for_each(|(name, value)| push_field(&mut out, name.as_str(), value.as_bytes()));
    if let Some(accept) = accept {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        push_field(&mut out, "Sec-WebSocket-Accept", accept.as_bytes());
    }
    let has_length = has(&parts.headers, &header::CONTENT_LENGTH);
    let is_chunked = has_body && !has_length && accept.is_none();
    let is_bodiless = is_head || accept.is_some() || matches!(status.as_u16(), 204 | 304);
    match (has_length, is_chunked) {
        (false, true) => push_field(&mut out, "Transfer-Encoding", b"chunked"),
        (false, false) if !is_bodiless => push_field(&mut out, "Content-Length", b"0"),
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
    (out, is_chunked)
}

/// Reads a trailer section of ours.
pub(super) fn trailer_fields(section: &[u8]) -> Option<HeaderMap> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(section, &mut fields) else {
        return None;
    };
    let mut map = HeaderMap::new();
    for field in fields {
        map.append(HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_comes_in_pieces_is_the_head_that_comes_at_once() {
        let head = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n";
        let sent = [&head[..], b"body"].concat();
        for cut in 0..=sent.len() {
            let mut text = HeadText::default();
            let (mut whole, mut taken) = (None, 0);
            for piece in [&sent[..cut], &sent[cut..]] {
                if whole.is_none() {
                    let (count, head) = text.take(piece, 100).expect("a short head");
                    (whole, taken) = (head.map(Cow::into_owned), taken + count);
                }
            }
            assert_eq!((whole.as_deref(), taken), (Some(&head[..]), head.len()), "cut at {cut}");
        }
        assert!(HeadText::default().take(&[b'a'; 101], 100).is_err());
    }

    /// Whoever remembers it forgets something useful for it.
    #[test]
    fn an_id_is_not_to_be_remembered() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: 1\r\nX-Forwarded-For: ::1\r\nX_Request_Id: 2\r\n\r\n";
        let head = origin_head(text, false).expect("a request");
        let told = |name: &str| head.request.headers().get(name).map(|value| (value.as_bytes(), value.is_sensitive()));
        assert_eq!(told("x-request-id"), Some((&b"1"[..], true)));
        assert_eq!(told("x-forwarded-for"), Some((&b"::1"[..], false)));
        assert_eq!(told("x_request_id"), Some((&b"2"[..], false)));
    }
}
