//! The admin API: what it answers, whom it lets in, and that nobody can keep it from answering the others.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use teal::admin::status::{ServiceStatus, Status};
use teal::admin::{Admin, BindError};
use teal::config::{self, Address, Color, Secret};
use teal::drain::DrainState;
use teal::state::{Receipt, State, Trigger};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use support::client::{Answer, Client, get};
use support::origin::{Origin, ok};
use support::proxy::{Builder, Teal};
use support::{eventually, soon};

const RACES: usize = 200;

// What it answers.

#[tokio::test]
async fn a_switch_answers_with_its_receipt_when_it_is_in_effect() {
    let (teal, _origins) = shop().await;
    let body = json!({"services": {"api": "green"}, "expect": {"api": "blue"}, "mode": "instant",
        "reason": "build 214", "actor": "jenkins"});
    let receipt: Receipt = read(&post(&teal, "/v1/switch", &body).await, 200);
    assert_eq!(teal.active("api"), Color::Green);
    assert_eq!((receipt.reason.as_deref(), receipt.actor.as_deref()), (Some("build 214"), Some("jenkins")));
    assert_eq!((receipt.trigger, receipt.services.len()), (Trigger::Api, 1));
    let step = &receipt.services[0];
    assert_eq!((&*step.service, step.from, step.to, step.generation), ("api", Color::Blue, Color::Green, 2));
    assert_eq!(get(teal.address, "/api").await.text(), "green");

    let again: Receipt = read(&ask(&teal, &format!("/v1/receipts/{}", receipt.id)).await, 200);
    assert_eq!((&again.id, again.took_us), (&receipt.id, receipt.took_us));
}

#[tokio::test]
async fn a_rollback_goes_back_once() {
    let (teal, _origins) = shop().await;
    assert_problem(&call(&teal, "POST", "/v1/services/api/rollback", "", "").await, 409, "nothing-to-roll-back");
    post(&teal, "/v1/switch", &to("green")).await;
    let receipt: Receipt = read(&call(&teal, "POST", "/v1/services/api/rollback", "", "").await, 200);
    assert_eq!((receipt.services[0].from, receipt.services[0].to), (Color::Green, Color::Blue));
    let options = json!({"expect": {"api": "green"}, "reason": "again"});
    assert_problem(&post(&teal, "/v1/services/api/rollback", &options).await, 409, "conflict");
    assert_problem(&post(&teal, "/v1/services/api/rollback", &to("green")).await, 422, "invalid");
    assert_problem(&call(&teal, "POST", "/v1/services/none/rollback", "", "").await, 404, "unknown-service");
    assert_eq!(teal.active("api"), Color::Blue);
}

#[tokio::test]
async fn a_dry_run_decides_and_changes_nothing() {
    let (teal, _origins) = shop().await;
    let mut body = to("green");
    body["dry_run"] = json!(true);
    let receipt: Receipt = read(&post(&teal, "/v1/switch", &body).await, 200);
    assert!(receipt.dry_run && receipt.drain.is_none());
    assert_eq!(teal.active("api"), Color::Blue);
    assert_problem(&ask(&teal, &format!("/v1/receipts/{}", receipt.id)).await, 404, "unknown-receipt");
}

#[tokio::test]
async fn every_refusal_has_its_status_its_type_and_its_facts_and_changes_nothing() {
    let (teal, _origins) = shop().await;
    let conflict = json!({"services": {"api": "green"}, "expect": {"api": "green"}});
    let rows = [
        (json!({"services": {"nope": "green"}}), 404, "unknown-service", json!({"known": ["api", "bare", "sick"]})),
        (conflict, 409, "conflict", json!({"service": "api", "expected": "green", "active": "blue"})),
        (json!({"services": {"bare": "green"}}), 412, "empty", json!({"color": "green", "endpoints": []})),
        (json!({"services": {"sick": "green"}}), 412, "not-healthy", json!({"healthy": 0, "needed": 1, "total": 1})),
        (json!({"services": {"api": "red"}}), 422, "invalid", json!({})),
        (json!({"services": ["api"]}), 422, "invalid", json!({})),
        (json!({"services": {"api": "green"}, "forse": true}), 422, "invalid", json!({})),
        (json!({"expect": {"api": "blue"}}), 422, "invalid", json!({})),
        (json!({"services": {}}), 422, "nothing", json!({})),
        (json!({"services": {"api": "green", "sick": "green"}}), 412, "not-healthy", json!({"service": "sick"})),
    ];
    for (body, status, kind, facts) in rows {
        let problem = assert_problem(&post(&teal, "/v1/switch", &body).await, status, kind);
        for (name, value) in facts.as_object().expect("facts are an object") {
            assert_eq!(problem[name], *value, "{problem:#}");
        }
    }
    for name in ["api", "bare", "sick"] {
        assert_eq!(service(&teal, name).await.generation, 1, "{name}");
    }
}

#[tokio::test]
async fn refusals_say_what_to_do_about_them() {
    let (teal, origins) = shop().await;
    let detail = async |body: Value| {
        let answer = post(&teal, "/v1/switch", &body).await;
        serde_json::from_slice::<Value>(&answer.body).expect("JSON")["detail"].as_str().expect("a text").to_owned()
    };
    let unknown_field = detail(json!({"services": {"api": "green"}, "forse": true})).await;
    assert!(unknown_field.contains("unknown field `forse`") && unknown_field.contains("`force`"), "{unknown_field}");
    let color = detail(json!({"services": {"api": "red"}})).await;
    assert!(color.contains(r#"api: unknown color "red", expected blue or green"#), "{color}");
    let sick = post(&teal, "/v1/switch", &json!({"services": {"sick": "green"}})).await;
    let sick: Value = serde_json::from_slice(&sick.body).expect("JSON");
    assert_eq!(sick["endpoints"][0]["health"], "unhealthy", "{sick:#}");
    assert!(sick["endpoints"][0]["error"].as_str().is_some_and(|error| !error.is_empty()), "{sick:#}");
    assert_ne!(sick["endpoints"][0]["endpoint"], origins[0].address.to_string());
}

#[tokio::test]
async fn a_forced_switch_takes_what_there_is() {
    let (teal, _origins) = shop().await;
    let body = json!({"services": {"sick": "green"}, "force": true});
    assert_eq!(post(&teal, "/v1/switch", &body).await.status, 200);
    assert_eq!(teal.active("sick"), Color::Green);
}

#[tokio::test]
async fn what_cannot_be_read_is_refused() {
    let (teal, _origins) = shop().await;
    let good = to("green").to_string();
    let json = "Content-Type: application/json\r\n";
    for (path, headers, body, status, kind) in [
        ("/v1/switch", json, "{", 400, "malformed"),
        ("/v1/switch", json, "\u{1}", 400, "malformed"),
        ("/v1/switch", "", &*good, 415, "not-json"),
        ("/v1/switch", "Content-Type: text/plain\r\n", &good, 415, "not-json"),
        ("/v1/switch", "", "", 422, "nothing"),
        ("/v1/switch?wait=never", json, &good, 422, "invalid"),
        ("/v1/switch?wait=drained&timeout=soon", json, &good, 422, "invalid"),
        ("/v1/switch?wait=drained&timeout=11m", json, &good, 422, "invalid"),
        ("/v1/switch?wiat=drained", json, &good, 422, "invalid"),
        ("/v1/switch", "Content-Type: application/json\r\nIdempotency-Key: \r\n", &good, 422, "invalid"),
        (
            "/v1/switch",
            "Content-Type: application/json\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n",
            &good,
            422,
            "invalid",
        ),
        ("/v1/services/%ff/rollback", "", "", 400, "malformed"),
    ] {
        let answer = call(&teal, "POST", path, headers, body).await;
        assert_problem(&answer, status, kind);
    }
    assert_problem(&ask(&teal, "/v1/services/api/drain?wait=x").await, 422, "invalid");
    assert_problem(&ask(&teal, "/v1/nothing").await, 404, "not-found");
    assert_eq!(teal.active("api"), Color::Blue);
}

#[tokio::test]
async fn a_path_that_does_not_know_the_method_says_which_it_knows() {
    let (teal, _origins) = shop().await;
    for (method, path, allow) in [
        ("GET", "/v1/switch", "POST"),
        ("HEAD", "/v1/services/api/rollback", "POST"),
        ("DELETE", "/v1/services/api", "GET,HEAD"),
        ("POST", "/v1/status", "GET,HEAD"),
        ("OPTIONS", "/v1/status", "GET,HEAD"),
        ("BREW", "/metrics", "GET,HEAD"),
    ] {
        let mut client = Client::connect(teal.admin).await;
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n\r\n", teal.admin)).await;
        let answer = client.try_answer(method == "HEAD").await.expect("an answer");
        assert_eq!((answer.status, answer.field("allow")), (405, Some(allow)), "{method} {path}");
        if method != "HEAD" {
            assert_problem(&answer, 405, "method-not-allowed");
        }
    }
    let mut client = Client::connect(teal.admin).await;
    client.send(format!("HEAD /v1/status HTTP/1.1\r\nHost: {}\r\n\r\n", teal.admin)).await;
    assert_eq!(client.answer_to_head().await.status, 200);
}

#[tokio::test]
async fn a_key_is_done_once() {
    let (teal, _origins) = shop().await;
    let keyed = |body: Value| {
        let headers = "Content-Type: application/json\r\nIdempotency-Key: build-214\r\n";
        let body = body.to_string();
        let teal = &teal;
        async move { call(teal, "POST", "/v1/switch", headers, &body).await }
    };
    let first: Receipt = read(&keyed(to("green")).await, 200);
    let second: Receipt = read(&keyed(to("green")).await, 200);
    assert_eq!(first.id, second.id);
    assert_problem(&keyed(to("blue")).await, 422, "key-reused");
    assert_eq!(service(&teal, "api").await.generation, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_race_one_wins() {
    let (teal, _origins) = shop().await;
    let mut clients = [Client::connect(teal.admin).await, Client::connect(teal.admin).await];
    for race in 0..RACES {
        let (from, to) = if race % 2 == 0 { ("blue", "green") } else { ("green", "blue") };
        let body = json!({"services": {"api": to}, "expect": {"api": from}}).to_string();
        let text = request(teal.admin, "POST", "/v1/switch", "Content-Type: application/json\r\n", &body);
        let [one, two] = &mut clients;
        let (one, two) = tokio::join!(exchange(one, &text), exchange(two, &text));
        let statuses = BTreeSet::from([one.status, two.status]);
        assert_eq!(statuses, BTreeSet::from([200, 409]), "race {race}");
    }
    assert_eq!(service(&teal, "api").await.generation, 1 + RACES as u64);
}

#[tokio::test]
async fn an_answer_waits_for_the_drain_if_it_is_asked_to() {
    let (teal, gate, _origins) = gated().await;
    let mut client = Client::connect(teal.address).await;
    client.send("GET /api HTTP/1.1\r\nHost: test\r\n\r\n").await;
    eventually("the request is in flight", || in_flight(&teal) == 1).await;

    let receipt: Receipt = read(&post(&teal, "/v1/switch?wait=drained&timeout=10ms", &to("green")).await, 200);
    let drain = receipt.drain.expect("a drain");
    assert_eq!((drain.state, drain.http.at_switch, drain.http.open), (DrainState::Draining, 1, 1));
    let status = service(&teal, "api").await;
    let under_way = status.drain.expect("a drain under way");
    assert_eq!((&*under_way.receipt, under_way.color, under_way.http.open), (&*receipt.id, Color::Blue, 1));
    assert_eq!((status.pools.blue.open.http, status.pools.green.open.http), (1, 0));

    // One that waits longer than anybody has patience is answered when the drain ends.
    let mut waiting = Client::connect(teal.admin).await;
    waiting.send(request(teal.admin, "GET", "/v1/services/api/drain?wait=10m", "", "")).await;
    let at_once: Receipt = read(&ask(&teal, "/v1/services/api/drain").await, 200);
    assert_eq!(at_once.drain.expect("a drain").state, DrainState::Draining);
    gate.add_permits(1);
    assert_eq!(client.answer().await.status, 200);
    let waited: Receipt = read(&waiting.answer().await, 200);
    let drain = waited.drain.expect("a drain");
    assert_eq!(waited.id, receipt.id);
    assert_eq!((drain.state, drain.http.at_switch, drain.http.finished), (DrainState::Drained, 1, 1));
    assert!(drain.ended_at.is_some());
    assert!(service(&teal, "api").await.drain.is_none());

    let waited: Receipt = read(&post(&teal, "/v1/switch?wait=drained", &to("blue")).await, 200);
    assert_eq!(waited.drain.expect("a drain").state, DrainState::Drained);
}

#[tokio::test]
async fn a_service_that_was_never_switched_has_no_drain() {
    let (teal, _origins) = shop().await;
    assert_problem(&ask(&teal, "/v1/services/api/drain").await, 404, "no-drain");
    assert_problem(&ask(&teal, "/v1/services/none/drain").await, 404, "unknown-service");
    assert_problem(&ask(&teal, "/v1/services/none").await, 404, "unknown-service");
    assert_problem(&ask(&teal, "/v1/receipts/none").await, 404, "unknown-receipt");
}

#[tokio::test]
async fn a_receipt_outlives_the_process() {
    let (teal, origins) = shop().await;
    let receipt: Receipt = read(&post(&teal, "/v1/switch?wait=drained", &to("green")).await, 200);
    let dir = teal.stop().await;
    let teal = Builder::new(&services(&origins[0].toml(), &origins[1].toml())).start_unprobed(dir);
    let kept: Receipt = read(&ask(&teal, &format!("/v1/receipts/{}", receipt.id)).await, 200);
    assert_eq!((&kept.id, &kept.at, &kept.services), (&receipt.id, &receipt.at, &receipt.services));
    let api = service(&teal, "api").await;
    assert_eq!((api.active, api.generation, api.set_by.as_deref()), (Color::Green, 2, Some("api")));
}

#[tokio::test]
async fn status_tells_how_everything_is() {
    let (teal, origins) = shop().await;
    assert_eq!(get(teal.address, "/api").await.status, 200);
    let open = || {
        let snapshot = teal.state().load();
        snapshot.service("api").expect("a known service").generation.tally().counts()[0].open()
    };
    eventually("nobody is on its way", || open() == 0).await;
    let cli = "User-Agent: teal-cli/0.1.0\r\nContent-Type: application/json\r\n";
    let switched: Receipt = read(&call(&teal, "POST", "/v1/switch", cli, &to("green").to_string()).await, 200);
    assert_eq!(switched.trigger, Trigger::Cli);
    let status: Status = read(&ask(&teal, "/v1/status").await, 200);

    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert!(status.ready && status.config.problems.is_empty() && status.config.refused.is_empty());
    assert!(humantime::parse_rfc3339(&status.started_at).is_ok(), "{}", status.started_at);
    assert_eq!(status.listeners[0].address, teal.address.to_string());
    let names: Vec<&str> = status.services.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["api", "bare", "sick"]);
    let [api, bare, sick] = &status.services[..] else { panic!("three services") };
    assert_eq!((api.active, api.generation, api.previous), (Color::Green, 2, Some(Color::Blue)));
    assert_eq!((api.set_by.as_deref(), bare.set_by.as_deref()), (Some("cli"), Some("config")));
    assert!(api.since > bare.since, "{:?} {:?}", api.since, bare.since);
    let blue = &api.pools.blue;
    assert_eq!((blue.healthy, blue.needed, blue.endpoints.len()), (1, 1, 1));
    assert_eq!(blue.endpoints[0].name, origins[0].address.to_string());
    assert_eq!((&*blue.endpoints[0].health, blue.endpoints[0].requests), ("healthy", 1));
    let probe = sick.pools.green.endpoints[0].last_probe.as_ref().expect("it was probed");
    assert!(probe.error.is_some() && sick.pools.green.endpoints[0].health == "unhealthy");
    assert_eq!(*api, service(&teal, "api").await);
}

#[tokio::test]
async fn status_tells_what_the_file_asks_for_in_vain() {
    let (teal, _origins) = shop().await;
    let problem = config::Problem { file: "teal.toml".into(), line: 3, column: 1, message: "unknown key".to_owned() };
    teal.state().set_problems(Some(config::Problems(vec![problem])));
    teal.state().set_refused("sick", Some("0 of 1 endpoints are healthy".to_owned()));
    let status: Status = read(&ask(&teal, "/v1/status").await, 200);
    assert_eq!((status.config.problems[0].line, &*status.config.problems[0].file), (3, "teal.toml"));
    assert_eq!(&*status.config.refused[0].service, "sick");
}

#[tokio::test]
async fn what_was_seen_before_is_not_sent_again() {
    let (teal, _origins) = shop().await;
    for (path, tag) in [("/v1/services/api", Some("\"1\"")), ("/v1/status", None)] {
        let answer = ask(&teal, path).await;
        let seen = answer.field("etag").expect("an ETag").to_owned();
        assert_eq!(tag.unwrap_or(&seen), seen);
        for known in [&*seen, &format!("W/{seen}"), &format!("\"x\", {seen}"), "*"] {
            let again = call(&teal, "GET", path, &format!("If-None-Match: {known}\r\n"), "").await;
            assert_eq!((again.status, again.field("etag"), again.body.len()), (304, Some(&*seen), 0), "{known}");
        }
        post(&teal, "/v1/switch", &to("green")).await;
        let changed = call(&teal, "GET", path, &format!("If-None-Match: {seen}\r\n"), "").await;
        assert_eq!(changed.status, 200);
        assert_ne!(changed.field("etag"), Some(&*seen));
        post(&teal, "/v1/switch", &to("blue")).await;
    }
}

#[tokio::test]
async fn a_process_that_drains_lives_and_is_not_ready() {
    let (teal, _origins) = shop().await;
    assert_eq!(ask(&teal, "/readyz").await.status, 200);
    teal.state().begin_shutdown();
    assert_problem(&ask(&teal, "/readyz").await, 503, "not-ready");
    assert_eq!(ask(&teal, "/livez").await.status, 200);
    let status: Status = read(&ask(&teal, "/v1/status").await, 200);
    assert!(!status.ready);
}

#[tokio::test]
async fn the_description_tells_of_every_call() {
    let (teal, _origins) = shop().await;
    let answer = ask(&teal, "/v1/openapi.json").await;
    let document: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    let calls = [
        ("/livez", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
        ("/v1/status", "get"),
        ("/v1/switch", "post"),
        ("/v1/services/{service}", "get"),
        ("/v1/services/{service}/rollback", "post"),
        ("/v1/services/{service}/drain", "get"),
        ("/v1/receipts/{id}", "get"),
        ("/v1/openapi.json", "get"),
    ];
    for (path, method) in calls {
        assert!(document["paths"][path][method].is_object(), "{method} {path}");
    }
    assert_eq!(document["paths"].as_object().map(serde_json::Map::len), Some(calls.len()));
    let mut missing = BTreeSet::new();
    references(&document, &mut |name| {
        if document.pointer(name.trim_start_matches('#')).is_none() {
            missing.insert(name.to_owned());
        }
    });
    assert!(missing.is_empty(), "named and not described: {missing:?}");
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    let (teal, origins) = shop().await;
    for _ in 0..3 {
        assert_eq!(get(teal.address, "/api").await.status, 200);
    }
    assert_eq!(get(teal.address, "/nowhere").await.status, 404);
    assert_eq!(post(&teal, "/v1/switch?wait=drained", &to("green")).await.status, 200);
    assert_eq!(post(&teal, "/v1/switch", &json!({"services": {"sick": "green"}})).await.status, 412);
    teal.state().stats.reloads_rejected.fetch_add(1, std::sync::atomic::Ordering::Relaxed);

    // A request is counted when its last octet is gone, which may be a moment after the client has it.
    let requests = r#"teal_requests_total{service="api",color="blue",class="2xx"}"#;
    let metrics = loop {
        let metrics = scrape(&teal).await;
        if metrics[requests] == 3.0 {
            break metrics;
        }
        tokio::task::yield_now().await;
    };
    let (blue, listener) = (origins[0].address, teal.address);
    for (row, value) in [
        (r#"teal_requests_total{service="api",color="green",class="5xx"}"#, 0.0),
        (r#"teal_request_seconds_count{service="api",color="blue"}"#, 3.0),
        (r#"teal_request_seconds_bucket{service="api",color="blue",le="+Inf"}"#, 3.0),
        (r#"teal_in_flight{service="api",color="blue",kind="websocket"}"#, 0.0),
        (r#"teal_retries_total{service="api"}"#, 0.0),
        (r#"teal_active{service="api",color="green"}"#, 1.0),
        (r#"teal_active{service="api",color="blue"}"#, 0.0),
        (r#"teal_generation{service="api"}"#, 2.0),
        (&format!(r#"teal_endpoint_healthy{{service="api",color="blue",endpoint="{blue}"}}"#), 1.0),
        (&format!(r#"teal_endpoint_requests_total{{service="api",color="blue",endpoint="{blue}"}}"#), 3.0),
        (r#"teal_upstream_connects_total{service="api",color="green",outcome="failed"}"#, 0.0),
        (r#"teal_switches_total{service="api",to="green",trigger="api",outcome="done"}"#, 1.0),
        (r#"teal_switches_total{service="sick",to="green",trigger="api",outcome="refused"}"#, 1.0),
        ("teal_switch_seconds_count", 1.0),
        (r#"teal_drain_streams_total{service="api",kind="http",outcome="cut"}"#, 0.0),
        (&format!(r#"teal_rejected_total{{listener="{listener}",reason="no_route"}}"#), 1.0),
        (r#"teal_config_reloads_total{outcome="rejected"}"#, 1.0),
        (r#"teal_config_reloads_total{outcome="applied"}"#, 0.0),
    ] {
        assert_eq!(metrics.get(row), Some(&value), "{row}");
    }
    assert!(metrics[r#"teal_upstream_connects_total{service="api",color="blue",outcome="ok"}"#] >= 1.0);
    assert!(metrics.contains_key(&format!(r#"teal_connections{{listener="{listener}"}}"#)));
    assert!(metrics.contains_key("process_resident_memory_bytes"));
    let build = format!(r#"teal_build_info{{version="{}","#, env!("CARGO_PKG_VERSION"));
    assert!(metrics.keys().any(|row| row.starts_with(&build)));
}

// Whom it lets in.

#[tokio::test]
async fn a_token_opens_all_but_the_probes() {
    let (teal, _origins) = shop().await;
    let guarded = Guarded::start(&teal, "127.0.0.1:0", |admin| admin.token = Some(Secret("s3cret".into())));
    for path in ["/livez", "/readyz"] {
        assert_eq!(guarded.call("GET", path, "", "").await.status, 200, "{path}");
    }
    let paths = ["/metrics", "/v1/status", "/v1/services/api", "/v1/openapi.json", "/v1/nothing", "/v1/receipts/x"];
    for path in paths {
        for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic czNjcmV0\r\n"] {
            let answer = guarded.call("GET", path, headers, "").await;
            assert_problem(&answer, 401, "unauthorized");
            assert!(answer.field("www-authenticate").is_some_and(|challenge| challenge.starts_with("Bearer")));
        }
    }
    let json = "Content-Type: application/json\r\n";
    assert_eq!(guarded.call("POST", "/v1/switch", json, &to("green").to_string()).await.status, 401);
    assert_eq!(teal.active("api"), Color::Blue);
    let with_token = "Content-Type: application/json\r\nAuthorization: Bearer s3cret\r\n";
    assert_eq!(guarded.call("POST", "/v1/switch", with_token, &to("green").to_string()).await.status, 200);
    assert_eq!(teal.active("api"), Color::Green);
}

#[tokio::test]
async fn a_name_that_was_pointed_here_does_not_get_in() {
    let (teal, _origins) = shop().await;
    let guarded =
        Guarded::start(&teal, "127.0.0.1:0", |admin| admin.allowed_hosts = vec!["edge.example.com".to_owned()]);
    let port = guarded.tcp().port();
    let ask = async |host: &str| {
        let mut client = Client::connect(guarded.tcp()).await;
        client.send(format!("GET /v1/status HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        client.answer().await
    };
    for host in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), "edge.example.com".to_owned()] {
        assert_eq!(ask(&host).await.status, 200, "{host}");
    }
    for host in [format!("evil.example:{port}"), "localhost".to_owned(), format!("127.0.0.1:{}", port ^ 1)] {
        assert_problem(&ask(&host).await, 421, "misdirected");
    }
    let mut nameless = Client::connect(guarded.tcp()).await;
    nameless.send("GET /livez HTTP/1.1\r\n\r\n").await;
    assert_eq!(nameless.answer().await.status, 400);
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let (teal, _origins) = shop().await;
    let body = to("green").to_string();
    for headers in ["Origin: https://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
        let headers = format!("Content-Type: application/json\r\n{headers}");
        assert_problem(&call(&teal, "POST", "/v1/switch", &headers, &body).await, 403, "cross-site");
    }
    assert_problem(&call(&teal, "GET", "/v1/status", "Origin: https://evil.example\r\n", "").await, 403, "cross-site");
    assert_eq!(teal.active("api"), Color::Blue);

    let own =
        format!("Content-Type: application/json\r\nOrigin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", teal.admin);
    let answer = call(&teal, "POST", "/v1/switch", &own, &body).await;
    assert_eq!(answer.status, 200);
    assert!(answer.field("access-control-allow-origin").is_none());
    assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
}

// Where it listens.

#[tokio::test]
async fn a_unix_socket_is_for_its_group_and_leaves_nothing_behind() {
    let (teal, _origins) = shop().await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("admin.sock");
    drop(StdUnixListener::bind(&path).expect("a socket that is left over"));
    let guarded = Guarded::start(&teal, &format!("unix:{}", path.display()), |_| {});
    assert_eq!(fs::metadata(&path).expect("a socket file").permissions().mode() & 0o777, 0o660);
    assert!(unix_get(&path, "/v1/status").await.starts_with("HTTP/1.1 200"));

    let error = Admin::bind(&admin_config(&format!("unix:{}", path.display()))).expect_err("it is in use");
    let pid = format!("(pid {})", std::process::id());
    assert!(matches!(&error, BindError::InUse { .. }) && error.to_string().contains(&pid), "{error}");
    assert!(unix_get(&path, "/livez").await.starts_with("HTTP/1.1 200"), "the failed bind broke the first socket");

    guarded.stop().await;
    assert!(!path.exists());

    let dropped = Guarded::start(&teal, &format!("unix:{}", path.display()), |_| {});
    assert!(unix_get(&path, "/livez").await.starts_with("HTTP/1.1 200"));
    dropped.task.abort();
    assert!(dropped.task.await.is_err_and(|error| error.is_cancelled()));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("precious");
    fs::write(&path, "data").expect("a file");
    Admin::bind(&admin_config(&format!("unix:{}", path.display()))).expect_err("something else is there");
    assert_eq!(fs::read_to_string(&path).expect("the file"), "data");
}

#[tokio::test]
async fn a_port_in_use_names_the_process_that_has_it() {
    let other = StdTcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("a bound address");
    let error = Admin::bind(&admin_config(&address.to_string())).expect_err("the port is in use");
    let message = error.to_string();
    assert!(message.contains(&address.to_string()), "{message}");
    assert!(message.contains(&format!("(pid {})", std::process::id())), "{message}");
}

// What it bears.

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let (teal, _origins) = shop().await;
    let json = "Content-Type: application/json\r\n";
    let body = format!(r#"{{"services":{{"api":"green"}},"reason":"{}"}}"#, "x".repeat(10_000_000));
    assert_problem(&call(&teal, "POST", "/v1/switch", json, &body).await, 413, "too-large");
    let mut client = Client::connect(teal.admin).await;
    let chunk = format!("{:x}\r\n{}\r\n", 100_000, "x".repeat(100_000));
    let head = request(
        teal.admin,
        "POST",
        "/v1/switch",
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n",
        "",
    );
    client.send(format!("{head}{chunk}0\r\n\r\n")).await;
    assert_problem(&client.answer().await, 413, "too-large");
    assert_eq!(teal.active("api"), Color::Blue);
    let long_name = format!("X-Long: {}\r\n", "x".repeat(100_000));
    assert_eq!(call(&teal, "GET", "/livez", &long_name, "").await.status, 431);
}

#[tokio::test]
async fn slow_clients_keep_nobody_from_the_answer() {
    let (teal, _origins) = shop().await;
    let mut slow = Vec::new();
    for place in 0..150 {
        let mut client = Client::connect(teal.admin).await;
        let body = to("green").to_string();
        let whole = request(teal.admin, "POST", "/v1/switch", "Content-Type: application/json\r\n", &body);
        // Nothing at all, half a head, half a body.
        let said = [0, 20, whole.len() - 5][place % 3];
        client.send(&whole[..said]).await;
        slow.push(client);
    }
    assert_eq!(ask(&teal, "/v1/status").await.status, 200);
    assert_eq!(post(&teal, "/v1/switch", &to("green")).await.status, 200);
    assert_eq!(get(teal.address, "/api").await.text(), "green");
    assert_eq!(service(&teal, "api").await.generation, 2, "half a request did something");
}

#[tokio::test]
async fn those_who_wait_leave_room_for_the_others() {
    let (teal, gate, _origins) = gated().await;
    let mut client = Client::connect(teal.address).await;
    client.send("GET /api HTTP/1.1\r\nHost: test\r\n\r\n").await;
    eventually("the request is in flight", || in_flight(&teal) == 1).await;
    assert_eq!(post(&teal, "/v1/switch", &to("green")).await.status, 200);

    let wait = request(teal.admin, "GET", "/v1/services/api/drain?wait=10m", "", "");
    let mut waiting = Vec::new();
    let refused = loop {
        assert!(waiting.len() < 200, "nobody is ever refused");
        let mut client = Client::connect(teal.admin).await;
        client.send(&wait).await;
        // Requests of other connections are taken up before this one is answered: a head that has come is read.
        let asked = ask(&teal, "/v1/services/api/drain?wait=0s").await;
        waiting.push(client);
        if asked.status != 200 {
            break asked;
        }
    };
    assert_problem(&refused, 503, "busy");
    assert_eq!(refused.field("retry-after"), Some("1"));
    let back = post(&teal, "/v1/switch?wait=drained", &to("blue")).await;
    assert_problem(&back, 503, "busy");
    assert_eq!(teal.active("api"), Color::Green, "a refusal did something");
    assert_eq!(ask(&teal, "/v1/status").await.status, 200);
    assert_eq!(post(&teal, "/v1/switch", &to("blue")).await.status, 200);
    gate.add_permits(1);
    for mut client in waiting {
        assert!([200, 503].contains(&client.answer().await.status));
    }
}

#[tokio::test]
async fn stopping_answers_those_who_wait() {
    let (teal, gate, _origins) = gated().await;
    let guarded = Guarded::start(&teal, "127.0.0.1:0", |_| {});
    let mut client = Client::connect(teal.address).await;
    client.send("GET /api HTTP/1.1\r\nHost: test\r\n\r\n").await;
    eventually("the request is in flight", || in_flight(&teal) == 1).await;
    assert_eq!(post(&teal, "/v1/switch", &to("green")).await.status, 200);

    let address = guarded.tcp();
    let mut waiting = Client::connect(address).await;
    waiting.send(request(address, "GET", "/v1/services/api/drain?wait=10m", "", "")).await;
    // Answered after the one before it was read, since both came in on the same thread in this order.
    assert_eq!(guarded.call("GET", "/livez", "", "").await.status, 200);
    guarded.stop().await;
    let receipt: Receipt = read(&waiting.answer().await, 200);
    assert_eq!(receipt.drain.expect("a drain").state, DrainState::Draining);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    gate.add_permits(1);
}

// Helpers.

/// `api` is well; `sick` has an endpoint of green where nobody listens; `bare` has none there.
async fn shop() -> (Teal, [Origin; 2]) {
    let origins = [Origin::saying("blue").await, Origin::saying("green").await];
    let teal = Builder::new(&services(&origins[0].toml(), &origins[1].toml())).start().await;
    (teal, origins)
}

fn services(blue: &str, green: &str) -> String {
    format!(
        "[services.api]\nactive = \"blue\"\nblue = [{blue}]\ngreen = [{green}]\nhealth = {{ interval = \"1h\" }}\n\
         [services.bare]\nactive = \"blue\"\nblue = [{blue}]\ngreen = []\n\
         [services.sick]\nactive = \"blue\"\nblue = [{blue}]\ngreen = [\"127.0.0.1:1\"]\n\
         [[routes]]\npath = \"/api\"\nservice = \"api\"\n"
    )
}

/// `api`, whose origins answer when the gate lets them.
async fn gated() -> (Teal, Arc<Semaphore>, Vec<Origin>) {
    let gate = Arc::new(Semaphore::new(0));
    let mut origins = Vec::new();
    for _ in Color::BOTH {
        let gate = gate.clone();
        let answer = move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.expect("the gate is never closed").forget();
                ok("done")
            }
        };
        origins.push(Origin::http(answer).await);
    }
    let teal = Builder::new(&services(&origins[0].toml(), &origins[1].toml())).start().await;
    (teal, gate, origins)
}

/// A second admin API of the same proxy, with settings of its own.
struct Guarded {
    address: Address,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Guarded {
    fn start(teal: &Teal, listen: &str, settle: impl FnOnce(&mut config::Admin)) -> Guarded {
        let mut config = admin_config(listen);
        settle(&mut config);
        let admin = Admin::bind(&config).expect("the address is free");
        let (stop, stopped) = oneshot::channel();
        let address = admin.address().clone();
        let state: Arc<State> = teal.state().clone();
        let task = tokio::spawn(admin.serve(state, async move {
            let _ = stopped.await;
        }));
        Guarded { address, stop, task }
    }

    fn tcp(&self) -> SocketAddr {
        let Address::Tcp(address) = self.address else { panic!("a TCP address") };
        address
    }

    async fn call(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut client = Client::connect(self.tcp()).await;
        exchange(&mut client, &request(self.tcp(), method, path, headers, body)).await
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        soon("the API stops", self.task).await.expect("it does not panic");
    }
}

fn admin_config(listen: &str) -> config::Admin {
    let listen = listen.parse().unwrap_or_else(|expected| panic!("{expected}"));
    config::Admin { listen, token: None, allowed_hosts: Vec::new(), access: config::Access::default() }
}

/// `headers` end with CRLF each.
fn request(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = if headers.contains("Transfer-Encoding") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{length}{headers}\r\n{body}")
}

async fn exchange(client: &mut Client, request: &str) -> Answer {
    client.send(request).await;
    client.answer().await
}

async fn call(teal: &Teal, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut client = Client::connect(teal.admin).await;
    exchange(&mut client, &request(teal.admin, method, path, headers, body)).await
}

async fn ask(teal: &Teal, path: &str) -> Answer {
    call(teal, "GET", path, "", "").await
}

async fn post(teal: &Teal, path: &str, body: &Value) -> Answer {
    call(teal, "POST", path, "Content-Type: application/json\r\n", &body.to_string()).await
}

fn to(color: &str) -> Value {
    json!({"services": {"api": color}})
}

async fn service(teal: &Teal, name: &str) -> ServiceStatus {
    read(&ask(teal, &format!("/v1/services/{name}")).await, 200)
}

fn in_flight(teal: &Teal) -> usize {
    let snapshot = teal.state().load();
    let pool = snapshot.service("api").expect("a known service").active_pool().clone();
    pool.endpoints().iter().map(|endpoint| endpoint.in_flight()).sum()
}

fn read<T: serde::de::DeserializeOwned>(answer: &Answer, status: u16) -> T {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.field("content-type"), Some("application/json"));
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.text()))
}

fn assert_problem(answer: &Answer, status: u16, kind: &str) -> Value {
    assert_eq!(answer.status, status, "{kind}: {}", answer.text());
    assert_eq!(answer.field("content-type"), Some("application/problem+json"));
    let problem: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(problem["type"], format!("urn:teal:{kind}"), "{problem:#}");
    assert_eq!(problem["status"], status);
    for member in ["title", "detail"] {
        assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{problem:#}");
    }
    problem
}

async fn unix_get(path: &Path, target: &str) -> String {
    let mut stream = UnixStream::connect(path).await.expect("somebody listens");
    let request = format!("GET {target} HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.expect("a text");
    answer
}

/// Calls `see` with every `$ref` of a JSON document.
fn references(value: &Value, see: &mut impl FnMut(&str)) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| match value {
            Value::String(target) if name == "$ref" => see(target),
            value => references(value, see),
        }),
        Value::Array(items) => items.iter().for_each(|item| references(item, see)),
        _ => {}
    }
}

/// The samples of `/metrics` by name and labels. Fails the test where the text is not as Prometheus wants it.
async fn scrape(teal: &Teal) -> BTreeMap<String, f64> {
    let answer = ask(teal, "/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.field("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")));
    let (mut samples, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    for line in answer.text().lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name, rest) = (words.next(), words.next().expect("a name"), words.next().expect("a text"));
            match what {
                Some("HELP") => assert!(rest.ends_with('.'), "{line}"),
                Some("TYPE") => assert!(kinds.insert(name.to_owned(), rest.to_owned()).is_none(), "twice: {line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (row, value) = line.rsplit_once(' ').expect("a value");
        let name = row.split('{').next().expect("a name");
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let kind = kinds.get(name).or_else(|| kinds.get(base)).unwrap_or_else(|| panic!("no TYPE before {line}"));
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        assert!(samples.insert(row.to_owned(), value.parse().expect("a number")).is_none(), "twice: {line}");
    }
    samples
}
