//! Whether the process lives, and whether it wants traffic. These two paths need no token.

use axum::extract::State;

use crate::admin::app::App;
use crate::admin::problem::Problem;
use crate::state::Readiness;

#[utoipa::path(
    get, path = "/livez", tag = "process", summary = "Whether the process lives", security(()),
    responses((status = 200, body = String, content_type = "text/plain", description = "It does"))
)]
pub(super) async fn livez() -> &'static str {
    "alive\n"
}

#[utoipa::path(
    get, path = "/readyz", tag = "process", summary = "Whether the balancer in front should send traffic here",
    security(()),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "It should"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "The process drains, a worker is stuck, or too few services are healthy for the strictest `ready_when`"),
    )
)]
pub(super) async fn readyz(State(app): State<App>) -> Result<&'static str, Problem> {
    match app.state.overall_readiness() {
        Readiness::Ready => Ok("ready\n"),
        readiness => Err(Problem::not_ready(readiness)),
    }
}
