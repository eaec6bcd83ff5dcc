//! What the API says when it refuses: RFC 9457 problem documents, and the only map from a refusal to a status.
//!
//! `type` and `status` are for programs and never change; `detail` is for people. Members beyond those of the RFC carry
//! the facts of the refusal, so that nobody has to take the text apart.

use std::borrow::Cow;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::state::{Busy, Readiness, Refusal};
use crate::store::StoreError;

/// A problem document (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// A URN that names the kind of problem, such as `urn:teal:conflict`.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: Cow<'static, str>,
    /// Facts of this kind of problem.
    #[serde(flatten)]
    facts: Map<String, Value>,
    #[serde(skip)]
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn not_found() -> Problem {
        let detail = "there is nothing at this path; /v1/openapi.json lists what there is";
        Problem::new(StatusCode::NOT_FOUND, "urn:teal:not-found", "Not found", detail)
    }

    pub(super) fn unknown_service(name: &str, known: &[String]) -> Problem {
        let detail = format!("unknown service {name:?}, known are: {}", known.join(", "));
        Problem::new(StatusCode::NOT_FOUND, "urn:teal:unknown-service", "Unknown service", detail).with("known", known)
    }

    pub(super) fn unknown_receipt(id: &str) -> Problem {
        let detail = format!("there is no receipt {id:?}; those of dry runs are not kept, and old ones go");
        Problem::new(StatusCode::NOT_FOUND, "urn:teal:unknown-receipt", "Unknown receipt", detail)
    }

    pub(super) fn no_drain(service: &str) -> Problem {
        let detail = format!("{service} has not been switched since this process began");
        Problem::new(StatusCode::NOT_FOUND, "urn:teal:no-drain", "No drain", detail)
    }

    /// Whoever gives the answer adds `Allow`.
    pub(super) fn method_not_allowed() -> Problem {
        let detail = "this path does not know the method; Allow has those that it knows";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "urn:teal:method-not-allowed", "Method not allowed", detail)
    }

    pub(super) fn unauthorized() -> Problem {
        let detail = "a bearer token is needed: the one of admin.token_file or admin.token_env";
        Problem::new(StatusCode::UNAUTHORIZED, "urn:teal:unauthorized", "Unauthorized", detail)
            .header(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="teal""#))
    }

    pub(super) fn misdirected(detail: String) -> Problem {
        Problem::new(StatusCode::MISDIRECTED_REQUEST, "urn:teal:misdirected", "Misdirected request", detail)
    }

    pub(super) fn cross_site(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::FORBIDDEN, "urn:teal:cross-site", "Forbidden to other sites", detail)
    }

    /// The request is not what its protocol or its format says.
    pub(super) fn malformed(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "urn:teal:malformed", "Malformed request", detail)
    }

    /// The request can be read, and asks for something that makes no sense.
    pub(super) fn invalid(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "urn:teal:invalid", "Invalid request", detail)
    }

    pub(super) fn not_json() -> Problem {
        let detail = "the body must be JSON, and Content-Type must say so: application/json";
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "urn:teal:not-json", "Unsupported media type", detail)
    }

    pub(super) fn too_large(limit: usize) -> Problem {
        let detail = format!("a body has at most {limit} octets");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "urn:teal:too-large", "Body too large", detail)
    }

    pub(super) fn too_slow() -> Problem {
        let detail = "the body did not arrive in time";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "urn:teal:too-slow", "Request timeout", detail)
    }

    pub(super) fn not_ready(readiness: Readiness) -> Problem {
        let detail = match readiness {
            Readiness::Ready | Readiness::Draining => {
                "draining: this process is about to stop and wants no new traffic"
            }
            Readiness::Stuck => "stuck: a worker has done nothing for seconds",
            Readiness::Unhealthy => {
                "no healthy service: the active colors have too few healthy endpoints for ready_when"
            }
        };
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "urn:teal:not-ready", "Not ready", detail)
    }

    pub(super) fn busy(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "urn:teal:busy", "Busy", detail)
            .header(RETRY_AFTER, HeaderValue::from_static("1"))
    }

    fn conflict(kind: &'static str, title: &'static str, refusal: &Refusal) -> Problem {
        Problem::new(StatusCode::CONFLICT, kind, title, refusal.to_string())
    }

    fn unwell(kind: &'static str, title: &'static str, refusal: &Refusal) -> Problem {
        Problem::new(StatusCode::PRECONDITION_FAILED, kind, title, refusal.to_string())
    }

    fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Problem {
        Problem { kind, title, status: status.as_u16(), detail: detail.into(), facts: Map::new(), headers: Vec::new() }
    }

    fn with(mut self, name: &str, value: impl Serialize) -> Problem {
        self.facts.insert(name.to_owned(), json!(value));
        self
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Problem {
        self.headers.push((name, value));
        self
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match &refusal {
            Refusal::Nothing | Refusal::KeyReused(_) => Problem::from_misuse(&refusal),
            Refusal::UnknownService { name, known } => Problem::unknown_service(name, known),
            Refusal::Unexpected { service, expected, active } => {
                Problem::conflict("urn:teal:conflict", "Conflict", &refusal)
                    .with("service", service)
                    .with("expected", expected)
                    .with("active", active)
            }
            Refusal::InProgress { service } => {
                Problem::conflict("urn:teal:in-progress", "Another switch is in progress", &refusal)
                    .with("service", service)
            }
            Refusal::Replaced { service } => {
                Problem::conflict("urn:teal:replaced", "The service was replaced", &refusal).with("service", service)
            }
            Refusal::FenceTimeout { running } => {
                Problem::conflict("urn:teal:fence-timeout", "Requests did not end in time", &refusal)
                    .with("running", running)
            }
            Refusal::NothingToRollBack { service } => {
                Problem::conflict("urn:teal:nothing-to-roll-back", "Nothing to roll back", &refusal)
                    .with("service", service)
            }
            Refusal::Empty { service, color } => Problem::unwell("urn:teal:empty", "Nothing deployed", &refusal)
                .with("service", service)
                .with("color", color)
                .with("endpoints", Value::Array(Vec::new())),
            Refusal::NotHealthy { service, color, healthy, needed, total, endpoints } => {
                Problem::unwell("urn:teal:not-healthy", "Not healthy enough", &refusal)
                    .with("service", service)
                    .with("color", color)
                    .with("healthy", healthy)
                    .with("needed", needed)
                    .with("total", total)
                    .with("endpoints", endpoints)
            }
            Refusal::Store(error) => Problem::not_recorded(&format!("{refusal}: {error}")),
            Refusal::Busy(busy) => Problem::from(*busy),
        }
    }
}

impl Problem {
    fn from_misuse(refusal: &Refusal) -> Problem {
        let (kind, title) = match refusal {
            Refusal::KeyReused(_) => ("urn:teal:key-reused", "Idempotency key reused"),
            _ => ("urn:teal:nothing", "No service named"),
        };
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, kind, title, refusal.to_string())
    }

    fn not_recorded(detail: &str) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "urn:teal:store", "State directory in trouble", detail.to_owned())
    }
}

impl From<Busy> for Problem {
    fn from(busy: Busy) -> Problem {
        Problem::busy(busy.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        Problem::not_recorded(&error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).expect("made from a status code");
        let mut response = (status, Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.extend(self.headers);
        response
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_disk_in_trouble_is_named() {
        let reason = io::Error::from(io::ErrorKind::StorageFull);
        let error = StoreError::Io { doing: "write", path: PathBuf::from("/var/lib/teal/state.redb"), reason };
        let problem = Problem::from(Refusal::Store(error));
        assert_eq!((problem.status, problem.kind), (503, "urn:teal:store"));
        for part in ["was not done", "/var/lib/teal/state.redb", "no storage space"] {
            assert!(problem.detail.contains(part), "{}", problem.detail);
        }
    }

    #[test]
    fn who_comes_at_a_bad_moment_is_told_to_come_again() {
        let response = Problem::from(Refusal::Busy(Busy)).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    }
}
