//! Calls the admin API: one connection for each call, over TCP or a unix socket.
//!
//! Every call ends: connecting and answering have their time, and an answer its size. What the API refuses comes back as
//! the problem document that it sent; an answer that teal would not give is called that.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::cli::place::{Access, Place};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Octets of the longest answer that is read.
const LONGEST_ANSWER: usize = 32 << 20;

/// A way to the admin API of one proxy.
#[derive(Debug)]
pub(super) struct Client {
    access: Access,
    /// How long an answer may take.
    patience: Duration,
}

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot reach the proxy at {place}: {reason}")]
    Connect { place: Place, reason: String },
    #[error("the proxy at {place} gave no answer: {reason}")]
    NoAnswer { place: Place, reason: String },
    #[error("what listens at {place} is not the admin API of teal: {reason}")]
    NotTeal { place: Place, reason: String },
    #[error("{0}")]
    Refused(Problem),
}

/// What the API says when it refuses (RFC 9457).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Problem {
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub(super) kind: String,
    pub(super) status: u16,
    pub(super) title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
    #[serde(flatten)]
    more: serde_json::Map<String, serde_json::Value>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.detail.as_ref().unwrap_or(&self.title))
    }
}

impl Client {
    pub(super) fn new(access: Access, patience: Duration) -> Client {
        Client { access, patience }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        self.call(self.request(Method::GET, target).body(Full::default())).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
        key: Option<&HeaderValue>,
    ) -> Result<T, ClientError> {
        let json = serde_json::to_vec(body).expect("the bodies of this module's users have string keys only");
        let mut request = self.request(Method::POST, target).header(CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.call(request.body(Full::from(json))).await.map_err(|error| match error {
            ClientError::NoAnswer { place, reason } => {
                let reason = format!("{reason}; it may have done what was asked, `teal status` tells");
                ClientError::NoAnswer { place, reason }
            }
            error => error,
        })
    }

    fn request(&self, method: Method, target: &str) -> http::request::Builder {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, self.access.place.host())
            .header(USER_AGENT, concat!("teal-cli/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.access.token {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.0)).expect("a token is visible ASCII");
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request
    }

    async fn call<T: DeserializeOwned>(&self, request: http::Result<Request<Full<Bytes>>>) -> Result<T, ClientError> {
        let request = request.expect("hosts are checked, targets are literals or escaped");
        let mut connection = self.connect().await?;
        let (status, body) = match timeout(self.patience, exchange(&mut connection, request)).await {
            Ok(answer) => answer.map_err(|error| self.broken(&*error))?,
            Err(_) => return Err(self.no_answer(format!("none within {:?}", self.patience))),
        };
        self.understand(status, &body)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let connecting = async {
            match &self.access.place {
                Place::Tcp(address) => handshake(TcpStream::connect(address).await?).await,
                Place::Unix(path) => handshake(UnixStream::connect(path).await?).await,
            }
        };
        let connected = timeout(CONNECT_TIMEOUT, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|error| ClientError::Connect { place: self.place(), reason: error.to_string() })
    }

    fn understand<T: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<T, ClientError> {
        if status.is_success() {
            let reason = |error| format!("it answered {status} with something else ({error})");
            return serde_json::from_slice(body).map_err(|error| self.not_teal(reason(error)));
        }
        match serde_json::from_slice(body) {
            Ok(problem) => Err(ClientError::Refused(problem)),
            Err(_) => Err(self.not_teal(format!("it answered {status}"))),
        }
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        match error.downcast_ref::<hyper::Error>() {
            Some(error) if !is_lost(error) => self.not_teal("it does not speak HTTP".to_owned()),
            _ => self.no_answer(innermost(error)),
        }
    }

    fn no_answer(&self, reason: String) -> ClientError {
        ClientError::NoAnswer { place: self.place(), reason }
    }

    fn not_teal(&self, reason: String) -> ClientError {
        ClientError::NotTeal { place: self.place(), reason }
    }

    fn place(&self) -> Place {
        self.access.place.clone()
    }
}

/// One segment of a path, whatever is in it.
pub(super) fn segment(text: &str) -> String {
    let mut escaped = String::new();
    for octet in text.bytes() {
        match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(char::from(octet)),
            // Dots too: a segment that is nothing but dots means another place.
            _ => write!(escaped, "%{octet:02X}").expect("a string takes everything"),
        }
    }
    escaped
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> io::Result<SendRequest<Full<Bytes>>> {
    let (connection, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        // What goes wrong here also reaches the exchange that waits for it.
        let _ = driver.await;
    });
    Ok(connection)
}

async fn exchange(
    connection: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Failed> {
    let (head, body) = connection.send_request(request).await?.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await?;
    Ok((head.status, body.to_bytes()))
}

/// Whether the connection ended, rather than that something strange came over it.
fn is_lost(error: &hyper::Error) -> bool {
    match std::error::Error::source(error) {
        Some(cause) if cause.is::<io::Error>() => true,
        Some(cause) => cause.downcast_ref().is_some_and(is_lost),
        None => error.is_incomplete_message() || error.is_closed() || error.is_canceled(),
    }
}

/// The cause that a person can act on; the levels above it say little on one line.
fn innermost(mut error: &(dyn std::error::Error + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_segment() {
        assert_eq!(segment("api-2_x"), "api-2_x");
        assert_eq!(segment("../a b?ü"), "%2E%2E%2Fa%20b%3F%C3%BC");
    }

    #[test]
    fn problem_documents_keep_what_this_version_does_not_know() {
        let json = r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"no","active":"green"}"#;
        let problem: Problem = serde_json::from_str(json).unwrap();
        assert_eq!(problem.to_string(), "no");
        let again = serde_json::to_value(&problem).unwrap();
        assert_eq!((&again["active"], &again["type"]), (&"green".into(), &"about:blank".into()));
    }
}
