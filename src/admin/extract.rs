//! The parts of a request as the handlers want them. What does not fit is answered with a problem that says why.

use std::error::Error;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::time::timeout;

use crate::admin::problem::Problem;
use crate::config::parse_duration;

/// Octets of the longest body.
const LIMIT: usize = 64 * 1024;
/// Octets that are thrown away after that: a close with unread input would destroy the answer.
const THROWN_AWAY: usize = 32 * 1024 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const LONGEST_KEY: usize = 255;

/// The one variable segment of a path.
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Segment, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(segment)| Segment(segment)).map_err(|_| Problem::malformed("the path is not UTF-8"))
    }
}

/// The query.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Params<T>, Problem> {
        let query = Query::try_from_uri(&parts.uri);
        query
            .map(|Query(params)| Params(params))
            .map_err(|error| Problem::invalid(format!("query: {}", innermost(&error))))
    }
}

/// A JSON body; none at all is the default.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<JsonBody<T>, Problem> {
        let is_json = request.headers().get(CONTENT_TYPE).is_some_and(is_json);
        let body = request.into_body();
        if body.is_end_stream() {
            return Ok(JsonBody(T::default()));
        }
        let body = whole(body).await?;
        if !is_json {
            return Err(Problem::not_json());
        }
        serde_json::from_slice(&body).map(JsonBody).map_err(|error| match error.classify() {
            Category::Data => Problem::invalid(format!("body: {error}")),
            _ => Problem::malformed(format!("body: {error}")),
        })
    }
}

/// The `Idempotency-Key`.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let (Some(key), more) = (keys.next(), keys.next()) else { return Ok(None) };
    let is_sound = more.is_none() && (1..=LONGEST_KEY).contains(&key.len());
    match key.to_str() {
        Ok(key) if is_sound => Ok(Some(key.to_owned())),
        _ => Err(Problem::invalid(format!(
            "Idempotency-Key: one of 1 to {LONGEST_KEY} visible ASCII characters is expected"
        ))),
    }
}

/// How long to wait, from the query parameter `name`.
pub(super) fn wait(name: &str, text: &str) -> Result<Duration, Problem> {
    match parse_duration(text) {
        Ok(wait) if wait <= LONGEST_WAIT => Ok(wait),
        Ok(_) => Err(Problem::invalid(format!("query: {name}={text} is too long, 10m is the longest"))),
        Err(expected) => Err(Problem::invalid(format!("query: {name}={text}, {expected}"))),
    }
}

/// Takes in what is still coming of a request that is refused.
pub(super) async fn discard(body: Body) {
    let _ = whole(body).await;
}

async fn whole(mut body: Body) -> Result<Bytes, Problem> {
    let mut bytes = BytesMut::new();
    let mut too_much = 0;
    let reading = async {
        while too_much < THROWN_AWAY {
            let Some(frame) = body.frame().await else { break };
            let frame = frame.map_err(|_| Problem::malformed("the body broke off"))?;
            // Trailers mean nothing here.
            let Ok(data) = frame.into_data() else { continue };
            if too_much > 0 || bytes.len() + data.len() > LIMIT {
                too_much += data.len();
            } else {
                bytes.extend_from_slice(&data);
            }
        }
        Ok(())
    };
    timeout(BODY_TIMEOUT, reading).await.unwrap_or_else(|_| Err(Problem::too_slow()))?;
    if too_much > 0 { Err(Problem::too_large(LIMIT)) } else { Ok(bytes.freeze()) }
}

fn is_json(value: &HeaderValue) -> bool {
    let value = value.to_str().unwrap_or_default();
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// The cause that a person can act on.
fn innermost(mut error: &(dyn Error + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
