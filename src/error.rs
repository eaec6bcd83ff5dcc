//! Why a request could not be answered by its origin.

use std::io;
use std::time::Duration;

/// What went wrong, by whose fault: the client's, the origin's, or ours. `http::reply` turns it into a status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    // The client's.
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("request line longer than 16 KiB")]
    UriTooLong,
    #[error("request head too large")]
    HeadTooLarge,
    #[error("request head did not arrive in time")]
    HeadTimeout,
    #[error("request body larger than the limit")]
    BodyTooLarge,
    #[error("request body stalled")]
    BodyTimeout,
    #[error("method {0} is not passed on")]
    Method(&'static str),
    #[error("HTTP version not supported")]
    Version,
    #[error("too many requests")]
    TooMany(Duration),
    #[error("shed: the worker has more to do than it can")]
    Overload,
    #[error("not admitted to this route")]
    Forbidden,
    #[error("another certificate is for this host")]
    Misdirected,
    #[error("client has gone")]
    ClientGone(#[source] Option<io::Error>),
    #[error("client does not take the answer")]
    ClientStalled,
    #[error("no route for this host and path")]
    NoRoute,
    #[error("the endpoint takes no WebSocket over HTTP/2")]
    NoWebSocket,

    // The origin's.
    #[error("cannot connect to the origin")]
    Connect(#[source] io::Error),
    #[error("no connection to the origin in time")]
    ConnectTimeout,
    #[error("origin broke the connection")]
    Broken(#[source] Option<io::Error>),
    #[error("origin answered nonsense: {0}")]
    BadAnswer(&'static str),
    #[error("no answer from the origin in time")]
    AnswerTimeout,
    #[error("answer of the origin stalled")]
    AnswerStalled,

    // Ours.
    #[error("cannot connect for want of descriptors, memory or ports")]
    Exhausted(#[source] io::Error),
    #[error("no healthy endpoint was free in time")]
    NoEndpoint,
    #[error("the drain of the old color was over")]
    Cut,
}

/// Whose fault a [`Failure`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Client,
    Origin,
    Us,
}

impl Failure {
    pub fn side(&self) -> Side {
        match self {
            Failure::BadRequest(_)
            | Failure::UriTooLong
            | Failure::HeadTooLarge
            | Failure::HeadTimeout
            | Failure::BodyTooLarge
            | Failure::BodyTimeout
            | Failure::Method(_)
            | Failure::Version
            | Failure::ClientGone(_)
            | Failure::ClientStalled
            | Failure::NoRoute
            | Failure::NoWebSocket
            | Failure::TooMany(_)
            | Failure::Overload
            | Failure::Misdirected
            | Failure::Forbidden => Side::Client,
            Failure::Connect(_)
            | Failure::ConnectTimeout
            | Failure::Broken(_)
            | Failure::BadAnswer(_)
            | Failure::AnswerTimeout
            | Failure::AnswerStalled => Side::Origin,
            Failure::Exhausted(_) | Failure::NoEndpoint | Failure::Cut => Side::Us,
        }
    }

    /// Whether the origin cannot have seen anything of the request.
    pub fn was_never_sent(&self) -> bool {
        matches!(self, Failure::Connect(_) | Failure::ConnectTimeout | Failure::Exhausted(_))
    }
}
