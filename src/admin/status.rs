//! What people, dashboards and pipelines want to know about a running proxy: `GET /v1/status` and one service of it.
//!
//! The types are the JSON of the API; whoever reads it in Rust may use them, too. A view is taken from one snapshot,
//! which is let go before anything is written.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admin::app::{App, blocking};
use crate::admin::extract::Segment;
use crate::admin::problem::Problem;
use crate::admin::view::{Seen, see};
use crate::config::{Certificate, Color, date};
use crate::drain::{DrainReport, KindReport, rfc3339};
use crate::service::ByKind;
use crate::state::{Readiness, State};
use crate::store::Stored;
use crate::upstream::{Endpoint, Health, Pool};

/// The whole proxy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub commit: String,
    /// RFC 3339.
    pub started_at: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Whether the balancer in front should send traffic here, as the listener with the strictest `ready_when` says.
    pub ready: bool,
    /// `ready`, or why not: `draining`, `stuck`, `no healthy service`.
    pub readiness: String,
    pub config: ConfigStatus,
    pub listeners: Vec<ListenerStatus>,
    /// By name.
    pub services: Vec<ServiceStatus>,
}

/// What the config file asks for and does not get.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfigStatus {
    /// Why the last reload was refused; empty when the file is in effect.
    pub problems: Vec<ConfigProblem>,
    /// Switches that the file asks for and that were refused.
    pub refused: Vec<RefusedSwitch>,
}

/// Where a config file is wrong, and how.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfigProblem {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
}

/// A switch that the config file asks for and that was refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RefusedSwitch {
    pub service: String,
    pub reason: String,
}

/// One listener, open or closed since.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ListenerStatus {
    pub address: String,
    /// Open now.
    pub connections: u64,
    /// That it ends TLS with, the default first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateStatus>,
}

/// A certificate in use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CertificateStatus {
    /// The file that it is in.
    pub cert: String,
    /// The hosts that it is for.
    pub names: Vec<String>,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// It has expired, expires within 14 days or is not valid yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// One service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    pub name: String,
    pub active: Color,
    /// The number of the active color's tenure; only ever grows.
    pub generation: u64,
    /// What made the active color active: `config`, `api` or `cli`. Absent when the state directory cannot be read.
    pub set_by: Option<String>,
    /// When it became active; RFC 3339. Absent when the state directory cannot be read.
    pub since: Option<String>,
    /// The color that a rollback would go back to.
    pub previous: Option<Color>,
    /// Whether a switch with a fence is under way: new requests wait until those of the active color have ended.
    #[serde(default)]
    pub fenced: bool,
    pub pools: Pools,
    /// That it shows to its endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// The newest drain that is still under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
}

/// The two colors of a service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Pools {
    pub blue: PoolStatus,
    pub green: PoolStatus,
}

impl std::ops::Index<Color> for Pools {
    type Output = PoolStatus;

    fn index(&self, color: Color) -> &PoolStatus {
        match color {
            Color::Blue => &self.blue,
            Color::Green => &self.green,
        }
    }
}

/// The endpoints of one color, and what is open there.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// Endpoints whose probes say that they are well.
    pub healthy: usize,
    /// Healthy endpoints that a switch to this color needs.
    pub needed: usize,
    pub endpoints: Vec<EndpointStatus>,
    /// Names of the config file that have no address.
    pub unresolved: Vec<String>,
    pub open: Open,
}

/// Exchanges under way, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Open {
    pub http: u64,
    pub sse: u64,
    pub websocket: u64,
}

/// One endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct EndpointStatus {
    pub name: String,
    /// `healthy`, `unhealthy`, or `unknown` before the first probe.
    pub health: String,
    /// Out of balancing for a while, because requests to it failed.
    pub ejected: bool,
    pub in_flight: usize,
    /// Sent to it so far.
    pub requests: u64,
    pub last_probe: Option<ProbeStatus>,
}

/// What the last probe said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProbeStatus {
    /// RFC 3339.
    pub at: String,
    /// Absent when it was good.
    pub error: Option<String>,
}

/// A drain that is under way, as far as one service is concerned.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DrainStatus {
    /// The id of the switch that began it.
    pub receipt: String,
    /// The color that drains.
    pub color: Color,
    /// When what is left is cut; RFC 3339.
    pub deadline: String,
    /// When the last stream is told goodbye, unless the new color is slow to take them; RFC 3339. Absent if none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_goodbye: Option<String>,
    pub http: KindReport,
    pub sse: KindReport,
    pub websocket: KindReport,
}

#[utoipa::path(
    get, path = "/v1/status", operation_id = "status", tag = "status", summary = "The whole proxy",
    params(("if-none-match" = Option<String>, Header, description = "An ETag that was seen before")),
    responses(
        (status = 200, body = Status, description = "How it is now",
            headers(("etag", description = "Changes when any service changes color"))),
        (status = 304, description = "No service has changed color since that ETag"),
    )
)]
pub(super) async fn whole(extract::State(app): extract::State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let tag = tag_of_all(&see(&app.state));
    if is_known(&headers, &tag) {
        return Ok(not_modified(tag));
    }
    let stored = stored(&app).await;
    tagged(tag, move || status(&app, &stored)).await
}

#[utoipa::path(
    get, path = "/v1/services/{service}", operation_id = "service", tag = "status", summary = "One service",
    params(
        ("service" = String, Path, description = "Its name"),
        ("if-none-match" = Option<String>, Header, description = "An ETag that was seen before"),
    ),
    responses(
        (status = 200, body = ServiceStatus, description = "How it is now",
            headers(("etag", description = "The generation"))),
        (status = 304, description = "The generation is still that of the ETag"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "Unknown service"),
    )
)]
pub(super) async fn one(
    extract::State(app): extract::State<App>,
    Segment(name): Segment,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let seen = app.service(&name)?;
    let tag = quoted(seen.number);
    if is_known(&headers, &tag) {
        return Ok(not_modified(tag));
    }
    let stored = stored(&app).await;
    tagged(tag, move || service(&seen, &stored, &drains(&app.state))).await
}

/// What only the store knows; nothing when it cannot be read, since a status is wanted most when something is wrong.
async fn stored(app: &App) -> BTreeMap<String, Stored> {
    app.read_store(|store| store.services()).await.unwrap_or_default()
}

fn status(app: &App, stored: &BTreeMap<String, Stored>) -> Status {
    let state = &app.state;
    let drains = drains(state);
    let readiness = state.overall_readiness();
    Status {
        version: super::VERSION.to_owned(),
        commit: super::COMMIT.to_owned(),
        started_at: rfc3339(app.started_at),
        uptime_s: app.started.elapsed().as_secs(),
        ready: readiness == Readiness::Ready,
        readiness: readiness.as_str().to_owned(),
        config: config(state),
        listeners: state.listeners().into_iter().map(listener).collect(),
        services: see(state).iter().map(|seen| service(seen, stored, &drains)).collect(),
    }
}

fn config(state: &State) -> ConfigStatus {
    let problem = |problem: crate::config::Problem| ConfigProblem {
        file: problem.file.display().to_string(),
        line: problem.line,
        column: problem.column,
        message: problem.message,
    };
    let refused = |(service, reason): (Arc<str>, String)| RefusedSwitch { service: service.to_string(), reason };
    ConfigStatus {
        problems: state.problems().into_iter().flat_map(|problems| problems.0).map(problem).collect(),
        refused: state.refused().into_iter().map(refused).collect(),
    }
}

fn listener((address, stats): (String, Arc<crate::metrics::ListenerStats>)) -> ListenerStatus {
    let tls = stats.tls.load_full();
    ListenerStatus {
        address,
        connections: at_least_zero(stats.connections.load(Ordering::Relaxed)),
        certificates: tls.iter().flat_map(|tls| &tls.certificates).map(certificate).collect(),
    }
}

fn certificate(certificate: &Certificate) -> CertificateStatus {
    CertificateStatus {
        cert: certificate.cert.display().to_string(),
        names: certificate.facts.names.iter().map(ToString::to_string).collect(),
        not_before: date(certificate.facts.not_before),
        not_after: date(certificate.facts.not_after),
        warning: certificate.warning(SystemTime::now()),
    }
}

fn service(seen: &Seen, stored: &BTreeMap<String, Stored>, drains: &HashMap<Arc<str>, DrainStatus>) -> ServiceStatus {
    // The store learns of a switch a moment before the snapshot does.
    let stored = stored.get(seen.name()).filter(|stored| stored.generation == seen.number);
    ServiceStatus {
        name: seen.name().to_owned(),
        active: seen.active,
        generation: seen.number,
        set_by: stored.map(|stored| stored.set_by.clone()),
        since: stored.map(|stored| rfc3339(at(stored.changed_at_ms))),
        previous: stored.and_then(|stored| stored.previous),
        fenced: seen.is_held,
        pools: Pools { blue: pool(seen, Color::Blue), green: pool(seen, Color::Green) },
        certificate: seen.config.own_certificate().map(certificate),
        drain: drains.get(seen.name()).cloned(),
    }
}

fn pool(seen: &Seen, color: Color) -> PoolStatus {
    let pool: &Pool = &seen.pools[color];
    PoolStatus {
        healthy: pool.healthy(),
        needed: seen.config.switch.min_healthy.of(pool.endpoints().len() + pool.unresolved().len()),
        endpoints: pool.endpoints().iter().map(|endpoint| self::endpoint(endpoint)).collect(),
        unresolved: pool.unresolved().iter().map(ToString::to_string).collect(),
        open: open(seen.in_flight(color)),
    }
}

fn open(by_kind: ByKind<u64>) -> Open {
    let [http, sse, websocket] = by_kind;
    Open { http, sse, websocket }
}

fn endpoint(endpoint: &Endpoint) -> EndpointStatus {
    let health = match endpoint.health() {
        Health::Unknown => "unknown",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    };
    EndpointStatus {
        name: endpoint.name().to_string(),
        health: health.to_owned(),
        ejected: endpoint.is_ejected(),
        in_flight: endpoint.in_flight(),
        requests: endpoint.requests(),
        last_probe: endpoint.last_probe().map(|probe| ProbeStatus { at: rfc3339(probe.at), error: probe.error }),
    }
}

fn at(ms: u64) -> SystemTime {
    // The last moment that RFC 3339 can write; a state file may say anything.
    const END_OF_9999: u64 = 253_402_300_799_999;
    UNIX_EPOCH + Duration::from_millis(ms.min(END_OF_9999))
}

/// The newest drain of each service that has one under way.
fn drains(state: &State) -> HashMap<Arc<str>, DrainStatus> {
    let mut drains = HashMap::new();
    for record in state.recent() {
        let Some(drain) = record.drain().filter(|drain| !drain.is_over()) else { continue };
        let DrainReport { deadline, last_goodbye, .. } = drain.report();
        for leaving in drain.leaving().iter().filter(|leaving| !leaving.is_over()) {
            let [http, sse, websocket] = leaving.report();
            let status = DrainStatus {
                receipt: record.id().to_owned(),
                color: leaving.color,
                deadline: deadline.clone(),
                last_goodbye: last_goodbye.clone(),
                http,
                sse,
                websocket,
            };
            drains.entry(leaving.service.clone()).or_insert(status);
        }
    }
    drains
}

fn tag_of_all(services: &[Seen]) -> HeaderValue {
    let mut hasher = DefaultHasher::new();
    services.iter().for_each(|seen| (seen.name(), seen.number).hash(&mut hasher));
    quoted(format_args!("{:016x}", hasher.finish()))
}

fn quoted(tag: impl std::fmt::Display) -> HeaderValue {
    HeaderValue::try_from(format!("\"{tag}\"")).expect("numbers are visible ASCII")
}

/// Whether the client has seen this tag; the weak comparison of RFC 9110 section 8.8.3.2.
fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let mut tags =
        headers.get_all(IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(|octet| *octet == b','));
    tags.any(|known| {
        let known = known.trim_ascii();
        known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes()
    })
}

fn not_modified(tag: HeaderValue) -> Response {
    (StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response()
}

/// The JSON of `make`, which may be long and is made where nobody else has to wait for it.
async fn tagged<T: Serialize>(
    tag: HeaderValue,
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<Response, Problem> {
    let json = blocking(move || serde_json::to_vec(&make()).expect("a status has string keys only")).await?;
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("application/json")), (ETAG, tag)], json).into_response())
}

fn at_least_zero(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}
