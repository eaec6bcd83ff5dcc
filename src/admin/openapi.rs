//! `GET /v1/openapi.json`: the description of the API, made from the handlers and types that it describes.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::admin::problem::Problem;
use crate::admin::{act, metrics, openapi, probe, status};
use crate::state::EndpointHealth;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "teal admin API",
        description = "Switches services of a blue/green edge proxy from color to color, and says how they are.",
        contact(name = "teal"),
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    paths(
        probe::livez,
        probe::readyz,
        metrics::metrics,
        status::whole,
        status::one,
        act::switch,
        act::rollback,
        act::drain,
        act::receipt,
        openapi::document,
    ),
    components(schemas(Problem, EndpointHealth)),
    modifiers(&BearerToken),
    security(("token" = [])),
    tags(
        (name = "status", description = "How the services are"),
        (name = "switch", description = "Switches, and what came of them"),
        (name = "process", description = "How the process is"),
    ),
)]
pub(super) struct Document;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

#[utoipa::path(
    get, path = "/v1/openapi.json", operation_id = "openapi", tag = "process", summary = "This document",
    responses((status = 200, description = "An OpenAPI 3.1 document", content_type = "application/json"))
)]
pub(super) async fn document() -> Response {
    static JSON: LazyLock<String> =
        LazyLock::new(|| Document::openapi().to_json().expect("a description has string keys only"));
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], JSON.as_str()).into_response()
}
