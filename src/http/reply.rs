//! Answers that teal makes itself, and the only map from a failure to a status.

use std::time::Duration;

use crate::error::Failure;
use crate::http::body::push_field;
use crate::http::headers::{RequestId, push_status_line};
use crate::state::Readiness;

/// An answer made here: short, without a word about our insides.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    detail: &'static str,
    /// Instead of the detail, an event stream without events.
    retry: Option<Duration>,
    fields: Vec<(&'static str, Vec<u8>)>,
}

/// What the client of a reply understands and wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) is_head: bool,
    /// `Accept` prefers `application/problem+json`.
    pub(crate) problem_json: bool,
    pub(crate) closes: bool,
    pub(crate) to_http_10: bool,
    pub(crate) id: RequestId,
}

impl Reply {
    pub(crate) fn ready(readiness: Readiness) -> Reply {
        let status = if readiness == Readiness::Ready { 200 } else { 503 };
        Reply::new(status, readiness.as_str())
    }

    /// 308 keeps method and body. Without a slash a target without one would become part of the host.
    pub(crate) fn redirect(host: &[u8], target: &str) -> Reply {
        let path = match target {
            "*" => "",
            target if target.starts_with('/') => target,
            target => &format!("/{target}"),
        };
        let mut reply = Reply::new(308, "this is served over https");
        reply.fields.push(("Location", [b"https://", host, path.as_bytes()].concat()));
        reply
    }

    /// For the client of an event stream, to come back after `pause`. Clients give up for good at any other status (WHATWG
    /// HTML §9.2.3), and a balancer in between would make a 502 of a connection that is just closed.
    pub(crate) fn come_back(pause: Duration) -> Reply {
        let fields = vec![("Cache-Control", b"no-store".to_vec())];
        Reply { retry: Some(pause), fields, ..Reply::new(200, "") }
    }

    /// `None`: there is nobody to answer.
    pub(crate) fn to(failure: &Failure) -> Option<Reply> {
        let reply = match failure {
            Failure::BadRequest(what) => Reply::new(400, what),
            Failure::UriTooLong => Reply::new(414, "the request line is too long"),
            Failure::HeadTooLarge => Reply::new(431, "the request head is too large"),
            Failure::HeadTimeout => Reply::new(408, "the request head did not arrive in time"),
            Failure::BodyTimeout => Reply::new(408, "the request body did not arrive in time"),
            Failure::BodyTooLarge => Reply::new(413, "the request body is too large"),
            Failure::Method(_) => {
                let mut reply = Reply::new(405, "this method is not passed on");
                reply.fields.push(("Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".to_vec()));
                reply
            }
            Failure::Version => Reply::new(505, "this port speaks HTTP/1.1"),
            Failure::TooMany(wait) => {
                let mut reply = Reply::new(429, "too many requests from this address");
                let seconds = wait.as_secs_f64().ceil().max(1.0);
                reply.fields.push(("Retry-After", seconds.to_string().into_bytes()));
                reply
            }
            Failure::Misdirected => Reply::new(421, "this connection's certificate is not for this host"),
            Failure::Forbidden => Reply::new(403, "not open to this address"),
            Failure::NoRoute => Reply::new(404, "no service for this host and path"),
            Failure::NoWebSocket => Reply::new(501, "the service takes no WebSockets"),
            Failure::Connect(_) | Failure::Broken(_) => Reply::new(502, "the service cannot be reached"),
            Failure::BadAnswer(_) => Reply::new(502, "the service gave an invalid answer"),
            Failure::ConnectTimeout | Failure::AnswerTimeout | Failure::AnswerStalled => {
                Reply::new(504, "the service did not answer in time")
            }
            Failure::NoEndpoint | Failure::Cut | Failure::Overload | Failure::Exhausted(_) => {
                let mut reply = Reply::new(503, "the service is not available now");
                reply.fields.push(("Retry-After", b"1".to_vec()));
                reply
            }
            Failure::ClientGone(_) | Failure::ClientStalled => return None,
        };
        Some(reply)
    }

    /// The status that says what became of the request: who is asked to come back was not served.
    pub(crate) fn counts_as(&self) -> u16 {
        if self.retry.is_some() { 503 } else { self.status }
    }

    /// Size of the body as it is sent.
    pub(crate) fn octets(&self, wish: &Wish) -> u64 {
        if wish.is_head { 0 } else { self.body(wish).1.len() as u64 }
    }

    fn new(status: u16, detail: &'static str) -> Reply {
        Reply { status, detail, retry: None, fields: Vec::new() }
    }

    pub(crate) fn bytes(&self, wish: &Wish) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        push_status_line(&mut out, self.status, reason(self.status));
        let (content_type, body) = self.body(wish);
        push_field(&mut out, "Content-Type", content_type.as_bytes());
        push_field(&mut out, "Content-Length", itoa::Buffer::new().format(body.len()).as_bytes());
        for (name, value) in &self.fields {
            push_field(&mut out, name, value);
        }
        push_field(&mut out, "X-Request-Id", wish.id.as_bytes());
        if wish.closes {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if wish.to_http_10 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !wish.is_head {
            out.extend_from_slice(body.as_bytes());
        }
        out
    }

    fn body(&self, wish: &Wish) -> (&'static str, String) {
        if let Some(pause) = self.retry {
            return ("text/event-stream", format!("retry: {}\n\n", pause.as_millis()));
        }
        if wish.problem_json && self.status >= 400 {
            let problem = serde_json::json!({
                "type": "about:blank", "title": reason(self.status), "status": self.status, "detail": self.detail,
            });
            return ("application/problem+json", problem.to_string());
        }
        ("text/plain; charset=utf-8", format!("{} {}\n", self.status, self.detail))
    }
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("")
}

/// Whether an `Accept` field asks for problem details or JSON before text.
pub(crate) fn prefers_problem_json(accept: &[u8]) -> bool {
    if accept == b"*/*" || accept.starts_with(b"text/") {
        return false;
    }
    let is_in = |media_type: &[u8]| memchr::memmem::find(accept, media_type);
    let json = [is_in(b"application/problem+json"), is_in(b"application/json")].into_iter().flatten().min();
    match (json, is_in(b"text/")) {
        (Some(json), Some(text)) => json < text,
        (json, None) => json.is_some(),
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::http::headers::RequestId;

    use super::*;

    fn wish() -> Wish {
        let id = RequestId::Given(b"id".as_slice().into());
        Wish { is_head: false, problem_json: false, closes: false, to_http_10: false, id }
    }

    fn text(reply: &Reply, wish: &Wish) -> String {
        String::from_utf8(reply.bytes(wish)).expect("a text")
    }

    #[test]
    fn a_reply_is_a_short_text() {
        let reply = Reply::to(&Failure::NoRoute).expect("somebody to answer");
        let head = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 38\r\n\
                    X-Request-Id: id\r\n";
        let body = "404 no service for this host and path\n";
        assert_eq!(text(&reply, &wish()), format!("{head}\r\n{body}"));
        assert_eq!(text(&reply, &Wish { is_head: true, ..wish() }), format!("{head}\r\n"));
        let closes = Wish { closes: true, to_http_10: true, ..wish() };
        assert_eq!(text(&reply, &closes), format!("{head}Connection: close\r\n\r\n{body}"));
        let old = Wish { to_http_10: true, ..wish() };
        assert_eq!(text(&reply, &old), format!("{head}Connection: keep-alive\r\n\r\n{body}"));
        assert_eq!((reply.octets(&wish()), reply.octets(&Wish { is_head: true, ..wish() })), (38, 0));
    }

    #[test]
    fn nobody_is_answered_who_has_gone() {
        assert!(Reply::to(&Failure::ClientGone(None)).is_none());
        assert!(Reply::to(&Failure::ClientStalled).is_none());
    }

    #[test]
    fn json_is_preferred_where_it_stands_before_text() {
        let cases = [
            ("application/json", true),
            ("application/problem+json;q=0.9, text/plain", true),
            ("text/html, application/xhtml+xml, */*", false),
            ("text/plain, application/json", false),
            ("application/xml, application/json, text/plain", true),
            ("*/*", false),
            ("", false),
        ];
        for (accept, is_preferred) in cases {
            assert_eq!(prefers_problem_json(accept.as_bytes()), is_preferred, "{accept:?}");
        }
    }
}
