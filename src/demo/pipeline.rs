//! What a deployment pipeline does: calls the admin API over HTTP, waits for the acknowledgement, asks how the drain
//! ended. It knows the API as its documentation tells it, and nothing of the proxy's insides.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::config::Color;
use crate::state::Receipt;

use super::client::{self, NoAnswer};
use super::load::Course;

/// The services of the shop, switched together.
pub(super) const SERVICES: [&str; 2] = ["web", "api"];

/// How long the idle color may take to become healthy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Calls the admin API at an address.
pub(super) struct Pipeline {
    pub(super) admin: SocketAddr,
}

/// A switch that was acknowledged.
#[derive(serde::Serialize, Clone, Debug)]
pub struct Switched {
    pub to: Color,
    /// From the call to the acknowledgement, as the pipeline saw it, in microseconds.
    pub call_us: u64,
    /// As it reads when the drain is over.
    pub receipt: Receipt,
}

/// Why the admin API did not do what the demo needs.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the admin API gave no answer: {0}")]
    NoAnswer(Box<dyn std::error::Error + Send + Sync>),
    #[error("the admin API answered {status}: {detail}")]
    Status { status: StatusCode, detail: String },
    #[error("the answer of the admin API is not what its documentation says")]
    Answer(#[from] serde_json::Error),
}

impl From<NoAnswer> for Refused {
    fn from(error: NoAnswer) -> Refused {
        Refused::NoAnswer(Box::new(error))
    }
}

impl Pipeline {
    /// Rehearses the switch until the target is healthy enough for it.
    pub(super) async fn rehearse(&self, to: Color) -> Result<(), Refused> {
        let deadline = Instant::now() + PATIENCE;
        let call = json!({ "services": every_service(to), "dry_run": true, "actor": "teal demo" });
        loop {
            match self.call(Method::POST, "/v1/switch", Some(&call)).await {
                Err(Refused::Status { status: StatusCode::PRECONDITION_FAILED, .. }) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(20)).await;
                }
                answer => return answer.map(drop),
            }
        }
    }

    /// Makes `to` active in every service by one call, and keeps `course` true while it does. The drain goes on when
    /// this returns.
    pub(super) async fn switch(&self, course: &Course, to: Color, reason: &str) -> Result<Switched, Refused> {
        let call = json!({
            "services": every_service(to),
            "expect": every_service(to.other()),
            "reason": reason,
            "actor": "teal demo",
        });
        course.depart();
        let called = Instant::now();
        let answer = self.call(Method::POST, "/v1/switch", Some(&call)).await;
        let call_us = u64::try_from(called.elapsed().as_micros()).unwrap_or(u64::MAX);
        course.arrive(if answer.is_ok() { to } else { to.other() });
        Ok(Switched { to, call_us, receipt: serde_json::from_value(answer?)? })
    }

    /// The receipt of the last switch when its drain is over, or after `patience`.
    pub(super) async fn drained(&self, patience: Duration) -> Result<Receipt, Refused> {
        let target = format!("/v1/services/{}/drain?wait={}ms", SERVICES[0], patience.as_millis());
        Ok(serde_json::from_value(self.call(Method::GET, &target, None).await?)?)
    }

    async fn call(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Value, Refused> {
        let mut connection = client::connect(self.admin).await?;
        let request = client::request(method, self.admin, target, body.map(Value::to_string));
        let answer = client::exchange(&mut connection, request).await?;
        if answer.status().is_success() {
            return Ok(serde_json::from_slice(answer.body())?);
        }
        let detail = String::from_utf8_lossy(answer.body()).into_owned();
        Err(Refused::Status { status: answer.status(), detail })
    }
}

fn every_service(color: Color) -> Value {
    SERVICES.iter().map(|service| ((*service).to_owned(), json!(color))).collect::<serde_json::Map<_, _>>().into()
}
