//! What `teal status` and the admin API show of a service while something happens to it.

mod support;

use teal::config::{Color, Mode};
use teal::service::Kind;
use teal::state::SwitchRequest;
use tokio::process::Command;

use support::binary::call;
use support::client::Client;
use support::exchange::Stage;
use support::proxy::{Builder, Teal, to_color};
use support::{eventually, soon};

/// The table of `teal status`, and what the API says.
async fn shown(teal: &Teal) -> (String, serde_json::Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_teal"));
    command.args(["status", "--admin", &teal.admin.to_string()]).env_remove("TEAL_ADMIN").env_remove("TEAL_TOKEN");
    let output = soon("the table", command.output()).await.expect("it runs");
    let answer = Client::connect(teal.admin).await.ask(call(teal.admin, "GET", "/v1/services/a", "")).await;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    (table, serde_json::from_slice(&answer.body).expect("JSON"))
}

#[tokio::test]
async fn a_service_is_shown_as_fenced_as_long_as_its_requests_wait() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "switch.fence_timeout = \"1h\"")).start().await;
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    let request = SwitchRequest { mode: Some(Mode::Fence), ..to_color(&[("a", Color::Green)]) };
    let state = teal.state().clone();
    let switching = tokio::spawn(async move { state.switch(request).await });
    eventually("the fence is up", || teal.state().load().service("a").expect("a service").is_held()).await;
    let (table, service) = shown(&teal).await;
    assert!(table.contains("fenced, new requests wait") && service["fenced"] == true, "{table}\n{service}");
    slow.release();
    soon("the switch", switching).await.expect("no panic").expect("a switch");
    let (table, service) = shown(&teal).await;
    assert!(table.contains("SERVICE") && !table.contains("fenced") && service["fenced"] == false, "{table}\n{service}");
}
