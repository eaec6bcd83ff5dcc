//! The calls that change the active color, and what comes of them: switch, rollback, drain, receipt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use http::header::USER_AGENT;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use utoipa::{IntoParams, ToSchema};

use crate::admin::app::App;
use crate::admin::extract::{JsonBody, Params, Segment, idempotency_key, wait};
use crate::admin::problem::Problem;
use crate::config::{Color, Mode};
use crate::state::{Aim, Receipt, Record, SwitchRequest, Trigger};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Which services to switch to which color, all or none, and how.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SwitchBody {
    /// Service to color.
    #[serde(deserialize_with = "colors")]
    #[schema(example = json!({"api": "green"}))]
    services: BTreeMap<String, Color>,
    /// Colors that must be active now, or nothing is done.
    #[serde(default, deserialize_with = "colors")]
    #[schema(example = json!({"api": "blue"}))]
    expect: BTreeMap<String, Color>,
    /// Absent: as each service is configured.
    mode: Option<Mode>,
    /// Switch although the target has too few healthy endpoints.
    #[serde(default)]
    force: bool,
    /// Decide, answer, and change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Why; kept in the receipt.
    reason: Option<String>,
    /// Who; kept in the receipt.
    actor: Option<String>,
}

/// How to switch back; the path says which service.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackBody {
    /// Colors that must be active now, or nothing is done.
    #[serde(default, deserialize_with = "colors")]
    #[schema(example = json!({"api": "green"}))]
    expect: BTreeMap<String, Color>,
    /// Absent: as each service is configured.
    mode: Option<Mode>,
    /// Switch although the target has too few healthy endpoints.
    #[serde(default)]
    force: bool,
    /// Decide, answer, and change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Why; kept in the receipt.
    reason: Option<String>,
    /// Who; kept in the receipt.
    actor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SwitchParams {
    /// What the answer waits for.
    #[serde(default)]
    #[param(inline)]
    wait: Until,
    /// How long it waits for `drained`, such as `60s`, which is the default; at most `10m`. A drain that takes longer
    /// goes on, and the answer says `"state": "draining"`.
    timeout: Option<String>,
}

/// What an answer waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Until {
    /// The new color is in effect.
    #[default]
    Switched,
    /// Nobody works for the old color any more.
    Drained,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DrainParams {
    /// How long to wait for its end, such as `30s`; at most `10m`. Absent: not at all.
    wait: Option<String>,
}

#[utoipa::path(
    post, path = "/v1/switch", tag = "switch", summary = "Make another color active, in one or more services",
    description = "Answers after the new color is in effect: a request that starts after the answer can only reach it.",
    params(SwitchParams, ("idempotency-key" = Option<String>, Header,
        description = "A request with a key that was used before changes nothing and gets the first one's receipt")),
    request_body = SwitchBody,
    responses(
        (status = 200, body = Receipt, description = "The receipt"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "Not JSON"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "Unknown service"),
        (status = 409, body = Problem, content_type = "application/problem+json",
         description = "Another color than the expected one is active, another switch is in progress, or requests did \
             not end before `fence_timeout`; `running` says which"),
        (status = 412, body = Problem, content_type = "application/problem+json",
         description = "Too few healthy endpoints; `endpoints` says which and why"),
        (status = 422, body = Problem, content_type = "application/problem+json",
         description = "Unknown field or color, or a reused key"),
        (status = 503, body = Problem, content_type = "application/problem+json",
         description = "It cannot be recorded, or too much is going on"),
    )
)]
pub(super) async fn switch(
    State(app): State<App>,
    headers: HeaderMap,
    Params(params): Params<SwitchParams>,
    JsonBody(body): JsonBody<SwitchBody>,
) -> Result<Json<Receipt>, Problem> {
    let SwitchBody { services, expect, mode, force, dry_run, reason, actor } = body;
    let aims = services.into_iter().map(|(name, color)| (name, Aim::To(color))).collect();
    let how = RollbackBody { expect, mode, force, dry_run, reason, actor };
    act(&app, request(aims, how, &headers)?, &params).await
}

#[utoipa::path(
    post, path = "/v1/services/{service}/rollback", tag = "switch",
    summary = "Back to the color before the last switch",
    params(SwitchParams, ("service" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "As for a switch")),
    request_body = Option<RollbackBody>,
    responses(
        (status = 200, body = Receipt, description = "The receipt"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "Unknown service"),
        (status = 409, body = Problem, content_type = "application/problem+json",
         description = "There has been no switch, or as for a switch"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "As for a switch"),
        (status = 422, body = Problem, content_type = "application/problem+json", description = "As for a switch"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "As for a switch"),
    )
)]
pub(super) async fn rollback(
    State(app): State<App>,
    Segment(service): Segment,
    headers: HeaderMap,
    Params(params): Params<SwitchParams>,
    JsonBody(how): JsonBody<RollbackBody>,
) -> Result<Json<Receipt>, Problem> {
    act(&app, request(BTreeMap::from([(service, Aim::Back)]), how, &headers)?, &params).await
}

#[utoipa::path(
    get, path = "/v1/services/{service}/drain", tag = "switch", summary = "The newest drain of a service",
    description = "The receipt of the switch that began it. Answers early when the drain ends.",
    params(DrainParams, ("service" = String, Path, description = "Its name")),
    responses(
        (status = 200, body = Receipt, description = "The receipt"),
        (status = 404, body = Problem, content_type = "application/problem+json",
         description = "No such service, or no drain since the start of the process"),
        (status = 422, body = Problem, content_type = "application/problem+json",
         description = "`wait` is no duration"),
    )
)]
pub(super) async fn drain(
    State(app): State<App>,
    Segment(service): Segment,
    Params(params): Params<DrainParams>,
) -> Result<Json<Receipt>, Problem> {
    let limit = params.wait.map(|text| wait("wait", &text)).transpose()?;
    let record = match app.state.newest_drain(&service) {
        Some(record) => record,
        None => return Err(app.service(&service).err().unwrap_or_else(|| Problem::no_drain(&service))),
    };
    if let Some(limit) = limit {
        app.patience(limit)?.wait_for(&record).await;
    }
    Ok(Json(record.receipt()))
}

#[utoipa::path(
    get, path = "/v1/receipts/{id}", tag = "switch", summary = "What a switch did",
    params(("id" = String, Path, description = "The id of its receipt")),
    responses(
        (status = 200, body = Receipt, description = "The receipt"),
        (status = 404, body = Problem, content_type = "application/problem+json",
         description = "Not one of the newest 1000"),
        (status = 503, body = Problem, content_type = "application/problem+json",
         description = "The state directory cannot be read"),
    )
)]
pub(super) async fn receipt(State(app): State<App>, Segment(id): Segment) -> Result<Json<Receipt>, Problem> {
    if let Some(record) = app.state.record(&id) {
        return Ok(Json(record.receipt()));
    }
    let wanted = id.clone();
    let json = app.read_store(move |store| store.receipt(&wanted)).await?;
    // One that this version cannot read was written by another one, and is as good as not there.
    let receipt = json.and_then(|json| serde_json::from_str(&json).ok());
    receipt.map(Json).ok_or_else(|| Problem::unknown_receipt(&id))
}

fn request(aims: BTreeMap<String, Aim>, how: RollbackBody, headers: &HeaderMap) -> Result<SwitchRequest, Problem> {
    Ok(SwitchRequest {
        aims,
        expect: how.expect,
        mode: how.mode,
        force: how.force,
        dry_run: how.dry_run,
        reason: how.reason,
        actor: how.actor,
        trigger: trigger(headers),
        key: idempotency_key(headers)?,
    })
}

async fn act(app: &App, request: SwitchRequest, params: &SwitchParams) -> Result<Json<Receipt>, Problem> {
    let limit = params.timeout.as_deref().map_or(Ok(DEFAULT_TIMEOUT), |text| wait("timeout", text))?;
    // The right to wait comes first: a refusal must mean that nothing was done.
    let patience = match params.wait {
        Until::Switched => None,
        Until::Drained => Some(app.patience(limit)?),
    };
    let record: Arc<Record> = app.state.switch(request).await?;
    if let Some(patience) = patience {
        patience.wait_for(&record).await;
    }
    Ok(Json(record.receipt()))
}

fn trigger(headers: &HeaderMap) -> Trigger {
    let is_cli = headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"teal-cli/"));
    if is_cli { Trigger::Cli } else { Trigger::Api }
}

/// Says which service has the unknown color.
fn colors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Color>, D::Error> {
    let written = BTreeMap::<String, String>::deserialize(deserializer)?;
    let color = |(service, color): (String, String)| match color.parse() {
        Ok(color) => Ok((service, color)),
        Err(unknown) => Err(D::Error::custom(format!("{service}: {unknown}"))),
    };
    written.into_iter().map(color).collect()
}
