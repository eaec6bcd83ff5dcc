//! Heads of answers.

use std::mem::MaybeUninit;

use httparse::{Header, Status};

use crate::error::Failure;
use crate::http::head::{Facts, Framing, Known, check_line_ends};

/// Header fields of an answer.
const MAX_ANSWER_HEADERS: usize = 256;

/// A valid head of an answer.
#[derive(Debug)]
pub(crate) struct AnswerHead<'b> {
    pub(crate) status: u16,
    pub(crate) reason: &'b str,
    pub(crate) headers: &'b [Header<'b>],
    pub(crate) framing: Framing,
    /// Whether the connection can be used again after the body.
    pub(crate) keep_alive: bool,
    pub(crate) is_event_stream: bool,
    /// An event stream with a `Content-Encoding`: where an event ends cannot be seen.
    pub(crate) is_encoded: bool,
    /// A 101 that says `Upgrade: websocket` and `Connection: upgrade`.
    pub(crate) upgrades_to_websocket: bool,
    pub(crate) websocket_accept: Option<&'b [u8]>,
    pub(crate) named_by_connection: Vec<&'b [u8]>,
}

/// Parses the head of an answer at the front of `bytes`, as [`parse_request`] does. `to_head`: the request was a HEAD.
///
/// # Errors
/// [`Failure::BadAnswer`] when it is invalid, ambiguous, or larger than `max` octets.
pub(crate) fn parse_answer<T>(
    bytes: &[u8],
    to_head: bool,
    max: usize,
    then: impl FnOnce(&AnswerHead<'_>, usize) -> T,
) -> Result<Option<T>, Failure> {
    // The parser skips empty lines, which RFC 9112 §2.2 lets a server do, and nobody else.
    if let [b'\r' | b'\n', ..] = bytes {
        return Err(Failure::BadAnswer("empty line before the status line"));
    }
    let mut space = [const { MaybeUninit::uninit() }; MAX_ANSWER_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut space);
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() < max => return Ok(None),
        Ok(Status::Partial) => return Err(Failure::BadAnswer("head too large")),
        Err(httparse::Error::TooManyHeaders) => return Err(Failure::BadAnswer("too many header fields")),
        Err(_) => return Err(Failure::BadAnswer("invalid head")),
    };
    check_line_ends(&bytes[..length]).map_err(|_| Failure::BadAnswer("line feed without carriage return"))?;
    let head = understand_answer(response, to_head)?;
    Ok(Some(then(&head, length)))
}

fn understand_answer<'b>(response: httparse::Response<'b, 'b>, to_head: bool) -> Result<AnswerHead<'b>, Failure> {
    let headers: &'b [Header<'b>] = response.headers;
    let (Some(status), Some(version)) = (response.code, response.version) else {
        return Err(Failure::BadAnswer("invalid status line"));
    };
    if !(100..=999).contains(&status) {
        return Err(Failure::BadAnswer("invalid status"));
    }
    let is_http_10 = version == 0;
    let facts = Facts::read(headers, is_http_10).map_err(|failure| match failure {
        Failure::BadRequest(what) => Failure::BadAnswer(what),
        other => other,
    })?;
    let has_body = !to_head && status >= 200 && status != 204 && status != 304;
    let framing = match (has_body, facts.is_chunked, facts.length) {
        (false, _, _) | (true, false, Some(0)) => Framing::Empty,
        (true, true, _) => Framing::Chunked,
        (true, false, Some(length)) => Framing::Length(length),
        (true, false, None) => Framing::UntilClose,
    };
    let find = |known: Known| headers.iter().find(|header| Known::of(header.name) == known).map(|header| header.value);
    let keep_alive = if is_http_10 { facts.keeps_alive && !facts.closes } else { !facts.closes };
    // HTTP/1.0 cannot switch (RFC 9110 §7.8), and who accepts twice accepts nothing (RFC 6455 §11.3.3).
    let accepts = || headers.iter().filter(|header| Known::of(header.name) == Known::SecWebSocketAccept).count();
    let is_upgrade = status == 101 && !is_http_10 && accepts() == 1;
    let is_event_stream = has_body && find(Known::ContentType).is_some_and(is_event_stream);
    Ok(AnswerHead {
        status,
        reason: response.reason.unwrap_or(""),
        headers,
        framing,
        keep_alive: keep_alive && framing != Framing::UntilClose,
        is_event_stream,
        is_encoded: is_event_stream && headers.iter().any(is_encoding),
        upgrades_to_websocket: is_upgrade && facts.upgrades && facts.to_websocket,
        websocket_accept: if is_upgrade { find(Known::SecWebSocketAccept) } else { None },
        named_by_connection: facts.named,
    })
}

fn is_encoding(header: &Header<'_>) -> bool {
    header.name.eq_ignore_ascii_case("content-encoding") && !header.value.eq_ignore_ascii_case(b"identity")
}

fn is_event_stream(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer<T>(head: &str, to_head: bool, look: impl FnOnce(&AnswerHead<'_>) -> T) -> T {
        let head = format!("{head}\r\n\r\n");
        parse_answer(head.as_bytes(), to_head, 1000, |head, _| look(head)).expect("valid").expect("whole")
    }

    #[test]
    fn the_body_of_an_answer_is_framed_as_rfc_9112_says() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", false, Framing::Length(5)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0", false, Framing::Empty),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", false, Framing::Chunked),
            ("HTTP/1.1 200 OK", false, Framing::UntilClose),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", true, Framing::Empty),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", true, Framing::Empty),
            ("HTTP/1.1 103 Early Hints\r\nContent-Length: 5", false, Framing::Empty),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 5", false, Framing::Empty),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5", false, Framing::Empty),
        ];
        for (head, to_head, framing) in cases {
            assert_eq!(answer(head, to_head, |head| head.framing), framing, "{head}");
        }
    }

    #[test]
    fn a_connection_is_kept_only_where_both_know_it() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Close", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive, close", false),
            ("HTTP/1.1 200 OK", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive", true),
        ];
        for (head, is_kept) in cases {
            assert_eq!(answer(head, false, |head| head.keep_alive), is_kept, "{head}");
        }
    }

    #[test]
    fn an_event_stream_is_known_by_its_media_type() {
        let cases = [
            ("text/event-stream", true),
            ("Text/Event-Stream ; charset=utf-8", true),
            ("text/event-streams", false),
            ("text/plain, text/event-stream", false),
        ];
        for (content_type, is_event_stream) in cases {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}");
            assert_eq!(answer(&head, false, |head| head.is_event_stream), is_event_stream, "{content_type}");
        }
    }
}
