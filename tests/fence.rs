//! A switch with a fence: no two colors run requests of a service at the same time, nothing is lost, and a fence that
//! cannot be passed leaves everything as it was.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::future::poll_fn;
use std::pin::pin;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use teal::config::{Color, Mode};
use teal::drain::{DrainState, KindReport};
use teal::service::Kind;
use teal::state::{Aim, Record, Refusal, SwitchRequest};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use support::binary::call;
use support::by_hand::by_hand;
use support::checker::{Checker, Seen};
use support::client::{Answer, Client, get};
use support::exchange::{Exchange, Stage};
use support::origin::ok;
use support::proxy::{Builder, Teal, to_color};
use support::{eventually, replace, soon};

const SWITCHES: u64 = 500;
const CLIENTS: u64 = 8;
/// Long enough for whatever must not happen to happen, as a rule.
const A_WHILE: Duration = Duration::from_millis(200);
const FENCED: &str = "switch = { mode = \"fence\", fence_timeout = \"1h\" }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_colors_run_requests_at_the_same_time_and_none_is_lost() {
    let (seen, requests) = under_load(Mode::Fence, SWITCHES).await;
    assert_eq!(seen.overlaps, 0, "{seen:?}");
    assert_eq!(seen.begun, requests, "each request ran once");
    assert!(requests > SWITCHES && seen.most > 1, "the load was no load: {seen:?}");
}

/// The counterproof: the checker of the test above does see colors that overlap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_fence_colors_overlap_and_the_checker_sees_it() {
    let (seen, _) = under_load(Mode::Instant, SWITCHES / 10).await;
    assert!(seen.overlaps > 0, "{seen:?}");
}

/// Switches to and fro under load; gives what the origins have seen and how many requests the clients made.
async fn under_load(mode: Mode, switches: u64) -> (Seen, u64) {
    let checker = Arc::new(Checker::default());
    let (blue, green) = (checker.origin(Color::Blue).await, checker.origin(Color::Green).await);
    let teal = Builder::app(&[&blue]).service(&format!("green = [{}]", green.toml())).workers(2).start().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS).map(|n| tokio::spawn(keep_asking(teal.address, n, is_over.clone()))).collect();
    for n in 0..switches {
        let to = if n % 2 == 0 { Color::Green } else { Color::Blue };
        let request = SwitchRequest { mode: Some(mode), ..to_color(&[("app", to)]) };
        let record = soon("a switch", teal.state().switch(request)).await.expect("a switch");
        assert_eq!(record.receipt().mode, mode);
        if mode == Mode::Fence {
            assert_eq!(record.receipt().drain.expect("a drain").http.open, 0, "a request was left behind");
        }
        let begun = checker.seen().begun;
        // Without work for the new color there is no load on the next switch.
        eventually("the new color works", || checker.seen().begun > begun + CLIENTS / 2).await;
    }
    is_over.store(true, Ordering::SeqCst);
    let mut requests = 0;
    for client in clients {
        requests += soon("a client", client).await.expect("no assertion of a client failed");
    }
    (checker.seen(), requests)
}

/// One request after the other, some slow, some with a body, some on a new connection; none may fail.
async fn keep_asking(address: std::net::SocketAddr, client: u64, is_over: Arc<AtomicBool>) -> u64 {
    let mut random = fastrand::Rng::with_seed(client);
    let mut connection = Client::connect(address).await;
    let mut requests = 0;
    while !is_over.load(Ordering::SeqCst) {
        if random.u8(..) < 16 {
            connection = Client::connect(address).await;
        }
        let millis = [0, 1, 2, 20][random.usize(..4)];
        let body = if random.u8(..) < 64 { "x".repeat(random.usize(1..5_000)) } else { String::new() };
        let (method, length) = (if body.is_empty() { "GET" } else { "POST" }, body.len());
        let head = format!("{method} /{millis} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
        let answer = connection.ask(head + &body).await;
        assert_eq!(answer.status, 200, "a request failed: {answer:?}");
        assert!([format!("blue{body}"), format!("green{body}")].contains(&answer.text().to_owned()), "{answer:?}");
        requests += 1;
    }
    requests
}

/// The service `a` with these keys, and a slow request to its blue color.
async fn busy(keys: &str) -> (Stage, Teal, Exchange) {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", keys)).start().await;
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    (stage, teal, slow)
}

type Switching = JoinHandle<Result<Arc<Record>, Refusal>>;

/// Begins a switch and waits until its fence is up.
async fn raise(teal: &Teal, request: SwitchRequest) -> Switching {
    let name = request.aims.keys().next().expect("a service").clone();
    let state = teal.state().clone();
    let switching = tokio::spawn(async move { state.switch(request).await });
    eventually("the fence is up", || is_held(teal, &name)).await;
    switching
}

fn is_held(teal: &Teal, service: &str) -> bool {
    teal.state().load().service(service).expect("a known service").is_held()
}

fn fenced(aims: &[(&str, Color)]) -> SwitchRequest {
    SwitchRequest { mode: Some(Mode::Fence), ..to_color(aims) }
}

/// A request that has been held: it has reached the proxy, and nobody has answered.
async fn held(teal: &Teal, path: &str) -> Client {
    let before = in_flight(teal);
    let mut client = Client::connect(teal.address).await;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
    eventually("the request has come in", || in_flight(teal) > before).await;
    client
}

/// Plain requests of all services, those that are held included.
fn in_flight(teal: &Teal) -> i64 {
    let snapshot = teal.state().load();
    let of_color = |service: &teal::service::Service, color| -> i64 {
        service.stats.shards(color).map(|shard| shard.in_flight[Kind::Http as usize].load(Ordering::SeqCst)).sum()
    };
    snapshot.services.iter().flat_map(|service| Color::BOTH.map(|color| of_color(service, color))).sum()
}

async fn ended(switching: Switching) -> Result<Arc<Record>, Refusal> {
    soon("the switch", switching).await.expect("it does not panic")
}

#[tokio::test]
async fn the_file_says_fence_and_a_switch_may_say_otherwise() {
    let (_stage, teal, slow) = busy(FENCED).await;
    let instant = SwitchRequest { mode: Some(Mode::Instant), ..to_color(&[("a", Color::Green)]) };
    let receipt = soon("no fence", teal.state().switch(instant)).await.expect("a switch").receipt();
    assert_eq!((receipt.mode, receipt.drain.expect("a drain").http.open), (Mode::Instant, 1));
    // Back on blue its slow request counts again.
    teal.switch("a", Color::Blue).await.expect("nothing runs on green");
    let switching = raise(&teal, to_color(&[("a", Color::Green)])).await;
    let mut waiting = held(&teal, "/a/quick").await;
    assert!(timeout(A_WHILE, waiting.more()).await.is_err(), "it is not held");
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    let receipt = ended(switching).await.expect("a switch").receipt();
    assert_eq!((receipt.mode, receipt.services[0].generation), (Mode::Fence, 4));
    assert_eq!(waiting.answer().await.text(), "green");
}

#[tokio::test]
async fn a_switch_may_ask_for_a_fence_that_the_file_does_not() {
    let (_stage, teal, slow) = busy("").await;
    let switching = raise(&teal, fenced(&[("a", Color::Green)])).await;
    let mut waiting = held(&teal, "/a/quick").await;
    slow.release();
    assert_eq!(ended(switching).await.expect("a switch").receipt().mode, Mode::Fence);
    assert_eq!(waiting.answer().await.text(), "green");
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
}

#[tokio::test]
async fn a_fence_that_takes_too_long_is_given_up_and_nothing_has_changed() {
    let (_stage, teal, slow) = busy("switch.fence_timeout = \"3s\"").await;
    let (stored, tenure) = (stored(&teal), tenure(&teal));
    let switching = raise(&teal, fenced(&[("a", Color::Green)])).await;
    let mut waiting = held(&teal, "/a/quick").await;
    let refusal = ended(switching).await.expect_err("the slow request runs on");
    let Refusal::FenceTimeout { running } = &refusal else { panic!("{refusal}") };
    assert_eq!((running.len(), &*running[0].service, running[0].color, running[0].requests), (1, "a", Color::Blue, 1));
    assert!(refusal.to_string().contains("a: 1 still running on blue"), "{refusal}");
    assert_eq!(waiting.answer().await.text(), "blue");
    assert_eq!((self::stored(&teal), self::tenure(&teal)), (stored, tenure));
    assert!(teal.state().recent().is_empty(), "no receipt");
    assert_eq!(get(teal.address, "/a/quick").await.text(), "blue");

    // The next fence waits for the same request.
    eventually("only the slow one runs", || in_flight(&teal) == 1).await;
    let switching = raise(&teal, fenced(&[("a", Color::Green)])).await;
    let mut waiting = held(&teal, "/a/quick").await;
    assert!(!switching.is_finished());
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    assert_eq!(ended(switching).await.expect("a switch").receipt().services[0].generation, 2);
    assert_eq!(waiting.answer().await.text(), "green");
}

/// What the store says of the service `a`.
fn stored(teal: &Teal) -> String {
    format!("{:?}", teal.state().store().services().expect("the store can be read").get("a"))
}

/// Color, number and generation of the service `a`.
fn tenure(teal: &Teal) -> (Color, u64, u64, bool) {
    let snapshot = teal.state().load();
    let service = snapshot.service("a").expect("a known service");
    (service.active, service.number, service.generation.tally().id(), service.is_held())
}

async fn admin(teal: &Teal, method: &str, path: &str, body: &str) -> Answer {
    Client::connect(teal.admin).await.ask(call(teal.admin, method, path, body)).await
}

fn json(answer: &Answer) -> serde_json::Value {
    serde_json::from_slice(&answer.body).expect("JSON")
}

#[tokio::test]
async fn the_api_says_what_still_ran() {
    let (_stage, teal, slow) = busy("switch.fence_timeout = \"50ms\"").await;
    let before = json(&admin(&teal, "GET", "/v1/services/a", "").await);
    let body = r#"{"services":{"a":"green"},"mode":"fence"}"#;
    let answer = admin(&teal, "POST", "/v1/switch", body).await;
    assert_eq!((answer.status, answer.field("content-type")), (409, Some("application/problem+json")));
    let problem = json(&answer);
    assert_eq!(problem["type"], "urn:teal:fence-timeout");
    assert_eq!(problem["running"], serde_json::json!([{ "service": "a", "color": "blue", "requests": 1 }]));
    let after = json(&admin(&teal, "GET", "/v1/services/a", "").await);
    assert_eq!((&after["active"], &after["generation"]), (&before["active"], &before["generation"]));
    let metrics = admin(&teal, "GET", "/metrics", "").await;
    let counted = "teal_switches_total{service=\"a\",to=\"green\",trigger=\"api\",outcome=\"refused\"} 1";
    assert!(metrics.text().contains(counted), "{}", metrics.text());
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    eventually("nothing runs", || in_flight(&teal) == 0).await;
    let answer = admin(&teal, "POST", "/v1/switch", body).await;
    assert_eq!((answer.status, &json(&answer)["mode"]), (200, &serde_json::json!("fence")));
}

#[tokio::test]
async fn pipelines_get_exit_codes() {
    let (_stage, teal, slow) = busy("switch.fence_timeout = \"50ms\"").await;
    let refused = cli(&teal, &["switch", "a", "green", "--mode", "fence"]).await;
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("still running on blue"), "{refused:?}");
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    eventually("nothing runs", || in_flight(&teal) == 0).await;
    let done = cli(&teal, &["switch", "a", "green", "--mode", "fence"]).await;
    assert_eq!((done.status.code(), teal.active("a")), (Some(0), Color::Green), "{done:?}");
    let back = cli(&teal, &["rollback", "a", "--mode", "fence", "--wait", "drained"]).await;
    assert_eq!((back.status.code(), teal.active("a")), (Some(0), Color::Blue), "{back:?}");
    let modes: Vec<Mode> = teal.state().recent().iter().map(|record| record.receipt().mode).collect();
    assert_eq!(modes, [Mode::Fence; 2]);
}

async fn cli(teal: &Teal, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_teal"));
    command.args(args).env("TEAL_ADMIN", teal.admin.to_string()).kill_on_drop(true);
    soon("the command", command.output()).await.expect("it can be started")
}

#[tokio::test]
async fn streams_do_not_hold_a_fence_up_and_are_drained_after_it() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", &format!("{FENCED}\ndrain.timeout = \"1h\""))).start().await;
    let open = async |kind| stage.open(teal.address, "a", kind).await;
    let (events, chat) = (open(Kind::Sse).await, open(Kind::WebSocket).await);
    let record = soon("the switch", teal.switch("a", Color::Green)).await.expect("a switch");
    let drain = || record.receipt().drain.expect("a drain");
    let one = KindReport { open: 1, at_switch: 1, finished: 0, kept: 0, cut: 0 };
    assert_eq!((drain().state, drain().sse, drain().websocket), (DrainState::Draining, one, one));
    for stream in [events, chat] {
        stream.release();
        assert_eq!(stream.ending().await.as_deref(), Some("blue"));
    }
    soon("the drain", record.drain().expect("a drain").over()).await;
    let finished = KindReport { open: 0, finished: 1, ..one };
    assert_eq!((drain().sse, drain().websocket), (finished, finished));
}

#[tokio::test]
async fn services_fence_together_and_one_slow_service_abandons_all() {
    let stage = Stage::new().await;
    let keys = "switch.fence_timeout = \"3s\"";
    let teal = Builder::new(&(stage.service("a", keys) + &stage.service("b", keys))).start().await;
    let slow = stage.open(teal.address, "b", Kind::Http).await;
    let both = || fenced(&[("a", Color::Green), ("b", Color::Green)]);
    let switching = raise(&teal, both()).await;
    assert!(is_held(&teal, "b"));
    let (mut at_a, mut at_b) = (held(&teal, "/a/quick").await, held(&teal, "/b/quick").await);
    let refusal = ended(switching).await.expect_err("b is slow");
    let Refusal::FenceTimeout { running } = &refusal else { panic!("{refusal}") };
    assert_eq!(running.iter().map(|still| &*still.service).collect::<Vec<_>>(), ["b"]);
    assert_eq!((at_a.answer().await.text(), at_b.answer().await.text()), ("blue", "blue"));
    assert_eq!((teal.active("a"), teal.active("b")), (Color::Blue, Color::Blue));

    eventually("only the slow one runs", || in_flight(&teal) == 1).await;
    let switching = raise(&teal, both()).await;
    let (mut at_a, mut at_b) = (held(&teal, "/a/quick").await, held(&teal, "/b/quick").await);
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    assert_eq!(ended(switching).await.expect("a switch").receipt().services.len(), 2);
    assert_eq!((at_a.answer().await.text(), at_b.answer().await.text()), ("green", "green"));
}

#[tokio::test]
async fn while_a_service_is_fenced_only_it_refuses_other_switches() {
    let stage = Stage::new().await;
    let teal = Builder::new(&(stage.service("a", FENCED) + &stage.service("b", FENCED))).start().await;
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    let switching = raise(&teal, to_color(&[("a", Color::Green)])).await;
    for aims in [vec![("a", Color::Green)], vec![("a", Color::Blue)], vec![("a", Color::Green), ("b", Color::Green)]] {
        let refusal = teal.state().switch(to_color(&aims)).await.expect_err("a is fenced");
        assert!(matches!(&refusal, Refusal::InProgress { service } if service == "a"), "{refusal}");
    }
    let answer = admin(&teal, "POST", "/v1/services/a/rollback", "{}").await;
    assert_eq!((answer.status, &json(&answer)["type"]), (409, &serde_json::json!("urn:teal:in-progress")));
    for to in [Color::Green, Color::Blue, Color::Green] {
        soon("another service's fence", teal.switch("b", to)).await.expect("b is free");
        assert_eq!(get(teal.address, "/b").await.text(), to.to_string());
    }
    assert!(!switching.is_finished());
    slow.release();
    ended(switching).await.expect("a switch");
    assert_eq!((teal.active("a"), teal.active("b")), (Color::Green, Color::Green));
}

#[tokio::test]
async fn the_same_key_during_the_fence_gets_the_same_receipt() {
    let (_stage, teal, slow) = busy(FENCED).await;
    let request = || SwitchRequest { key: Some("build-7".to_owned()), ..to_color(&[("a", Color::Green)]) };
    let first = raise(&teal, request()).await;
    let mut again = pin!(teal.state().switch(request()));
    assert!(poll_fn(|cx| Poll::Ready(again.as_mut().poll(cx).is_pending())).await, "it has to wait");
    // Commands are taken in order: once this one has its answer, the repetition has been taken.
    let other = SwitchRequest { key: Some("build-8".to_owned()), ..to_color(&[("a", Color::Green)]) };
    assert!(matches!(teal.state().switch(other).await, Err(Refusal::InProgress { .. })));
    slow.release();
    let (first, again) = (ended(first).await.expect("a switch"), soon("it", again).await.expect("the same"));
    assert_eq!(first.id(), again.id());
    let late = SwitchRequest { key: Some("build-7".to_owned()), ..to_color(&[("a", Color::Green)]) };
    assert_eq!(teal.state().switch(late).await.expect("the same").id(), first.id());
    assert_eq!(teal.state().recent().len(), 1);
}

#[tokio::test]
async fn a_reload_neither_lifts_nor_breaks_a_fence() {
    let (_stage, teal, slow) = watched(FENCED).await;
    let switching = raise(&teal, to_color(&[("a", Color::Green)])).await;
    let mut waiting = held(&teal, "/a/quick").await;
    edit(&teal, |text| text.replace("[services.a]", "[services.a]\nqueue_timeout = \"50ms\"")).await;
    assert!(is_held(&teal, "a") && !switching.is_finished());
    let mut later = held(&teal, "/a/quick").await;
    assert!(timeout(A_WHILE, later.more()).await.is_err(), "it is not held");
    slow.release();
    assert_eq!(ended(switching).await.expect("a switch").receipt().services[0].generation, 2);
    assert_eq!((waiting.answer().await.text(), later.answer().await.text()), ("green", "green"));
    let queue_timeout = teal.state().load().service("a").expect("a known service").config.queue_timeout;
    assert_eq!(queue_timeout, Duration::from_millis(50), "the new settings are in effect");
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
}

/// As [`busy`], and the proxy follows its file.
async fn watched(keys: &str) -> (Stage, Teal, Exchange) {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", keys)).start_watching().await;
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    (stage, teal, slow)
}

/// Changes the file and waits until the change is in effect.
async fn edit(teal: &Teal, change: impl FnOnce(&str) -> String) {
    let applied = || teal.state().stats.reloads_applied.load(Ordering::SeqCst);
    let before = applied();
    replace(&teal.file(), change(&fs::read_to_string(teal.file()).expect("a file")));
    eventually("the change is in effect", || applied() > before).await;
}
/// A request that is held then has nowhere to go; what ran is drained as that of every service that is removed.
#[tokio::test]
async fn a_service_may_be_removed_while_it_is_fenced() {
    let keys = "switch = { mode = \"fence\", fence_timeout = \"3s\" }\ndrain.timeout = \"300ms\"";
    let (stage, teal, slow) = watched(keys).await;
    let events = stage.open(teal.address, "a", Kind::Sse).await;
    let switching = raise(&teal, to_color(&[("a", Color::Green)])).await;
    let mut waiting = held(&teal, "/a/quick").await;
    edit(&teal, |text| text.split("[[routes]]").next().unwrap_or_default().to_owned()).await;
    let cut = soon("the drain of what was removed", async { tokio::join!(slow.ending(), events.ending()) }).await;
    assert_eq!(cut, (None, None), "what had begun is cut at the deadline");
    let outcome = ended(switching).await;
    assert!(matches!(&outcome, Err(Refusal::UnknownService { .. })), "{outcome:?}");
    assert_eq!(waiting.answer().await.status, 503);
    assert_eq!(get(teal.address, "/a/quick").await.status, 404);
}

#[tokio::test]
async fn a_target_that_becomes_unhealthy_during_the_fence_is_not_switched_to() {
    let (_stage, teal, slow) = busy(FENCED).await;
    let (stored, tenure) = (stored(&teal), tenure(&teal));
    let switching = raise(&teal, to_color(&[("a", Color::Green)])).await;
    let mut waiting = held(&teal, "/a/quick").await;
    let green = teal.state().load().service("a").expect("a known service").pools.green.clone();
    green.endpoints()[0].probed(Err("down".to_owned()), 1, 1);
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    let refusal = ended(switching).await.expect_err("green is down");
    assert!(matches!(&refusal, Refusal::NotHealthy { service, .. } if service == "a"), "{refusal}");
    assert_eq!(waiting.answer().await.text(), "blue");
    assert_eq!((self::stored(&teal), self::tenure(&teal)), (stored, tenure));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_is_held_reaches_nobody() {
    let (blue, mut at_blue) = by_hand().await;
    let (green, mut at_green) = by_hand().await;
    let teal = Builder::app(&[&blue]).service(&format!("green = [{}]\n{FENCED}", green.toml())).start().await;
    let slow = tokio::spawn(get(teal.address, "/slow"));
    let mut call = at_blue.next().await;
    let switching = raise(&teal, to_color(&[("app", Color::Green)])).await;
    let leaving = held(&teal, "/leaving").await;
    let mut staying = held(&teal, "/staying").await;
    drop(leaving);
    eventually("it has left", || in_flight(&teal) == 2).await;
    call.send(ok("blue")).await;
    assert_eq!(soon("the slow answer", slow).await.expect("no panic").text(), "blue");
    ended(switching).await.expect("a switch");
    let mut call = at_green.next().await;
    assert!(call.head.starts_with("GET /staying "), "{}", call.head);
    call.send(ok("green")).await;
    assert_eq!(staying.answer().await.text(), "green");
    assert!(at_green.is_empty() && at_blue.is_empty());
}

/// The fence's own limit rules, not those for an idle client, a slow one, or a busy origin.
#[tokio::test]
async fn a_request_may_be_held_longer_than_every_other_timeout() {
    let stage = Stage::new().await;
    let limits = "header_timeout = \"1s\"\nidle_timeout = \"1s\"\nbody_timeout = \"1s\"";
    let keys = format!("{FENCED}\nqueue_timeout = \"1s\"\nconnect_timeout = \"1s\"");
    let teal = Builder::new(&stage.service("a", &keys)).listener(limits).start().await;
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    let switching = raise(&teal, to_color(&[("a", Color::Green)])).await;
    let mut waiting = held(&teal, "/a/quick").await;
    let mut posting = Client::connect(teal.address).await;
    posting.send("POST /a/quick HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi").await;
    assert!(timeout(Duration::from_millis(2_500), waiting.more()).await.is_err(), "it is not held");
    slow.release();
    ended(switching).await.expect("a switch");
    assert_eq!(waiting.answer().await.text(), "green");
    assert_eq!(posting.try_answer(false).await.expect("an answer").status, 200);
}

#[tokio::test]
async fn a_dry_run_raises_no_fence() {
    let (_stage, teal, _slow) = busy(FENCED).await;
    let request = SwitchRequest { dry_run: true, ..to_color(&[("a", Color::Green)]) };
    let before = tenure(&teal);
    let receipt = soon("at once", teal.state().switch(request)).await.expect("it would switch").receipt();
    assert_eq!((receipt.dry_run, receipt.mode, receipt.services.len()), (true, Mode::Fence, 1));
    assert_eq!(tenure(&teal), before);
    assert_eq!(get(teal.address, "/a/quick").await.text(), "blue");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_stops_during_a_fence_serves_what_was_held() {
    let (_stage, teal, slow) = busy(FENCED).await;
    let switching = raise(&teal, to_color(&[("a", Color::Green)])).await;
    let mut waiting = held(&teal, "/a/quick").await;
    let (address, stopping) = (teal.listener, tokio::spawn(teal.stop()));
    eventually("the doors are closed", || std::net::TcpStream::connect(address).is_err()).await;
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    ended(switching).await.expect("a switch");
    let answer = waiting.answer().await;
    assert_eq!((answer.text(), answer.field("connection")), ("green", Some("close")));
    soon("the end", stopping).await.expect("it stops");
}
/// The streams of a service that is fenced when the proxy stops are told goodbye like all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_stops_during_a_fence_tells_the_streams() {
    let ((blue, mut calls), (green, _)) = (by_hand().await, by_hand().await);
    let keys = format!("green = [{}]\n{FENCED}\ndrain.sse = {{ spread = \"0s\" }}", green.toml());
    let teal = Builder::app(&[&blue]).service(&keys).top("shutdown_timeout = \"10s\"").start().await;
    let slow = tokio::spawn(get(teal.address, "/slow"));
    let mut slow_call = calls.next().await;
    let mut events = Client::connect(teal.address).await;
    events.send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let mut call = calls.next().await;
    call.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await;
    assert!(events.head().await.is_some());
    let _switching = raise(&teal, to_color(&[("app", Color::Green)])).await;
    let stopping = tokio::spawn(teal.stop());
    let (seen, _) = events.rest().await;
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("data: 1\n\n") && seen.contains("retry: "), "{seen}");
    slow_call.send(ok("blue")).await;
    assert_eq!(slow.await.expect("no panic").text(), "blue");
    soon("the end", stopping).await.expect("it stops");
}

#[tokio::test]
async fn a_retry_during_the_fence_stays_on_the_old_color() {
    let ((one, mut at_one), (other, mut at_other)) = (by_hand().await, by_hand().await);
    let (green, at_green) = by_hand().await;
    let teal = Builder::app(&[&one, &other]).service(&format!("green = [{}]\n{FENCED}", green.toml())).start().await;
    let request = tokio::spawn(get(teal.address, "/"));
    let (first, second) = tokio::select! {
        call = at_one.next() => (call, &mut at_other),
        call = at_other.next() => (call, &mut at_one),
    };
    let switching = raise(&teal, to_color(&[("app", Color::Green)])).await;
    drop(first);
    let mut retry = second.next().await;
    assert!(!switching.is_finished() && is_held(&teal, "app"), "the fence waits for the retry");
    retry.send(ok("blue")).await;
    assert_eq!(request.await.expect("no panic").text(), "blue");
    ended(switching).await.expect("a switch");
    assert!(at_green.is_empty());
}

#[tokio::test]
async fn a_stream_that_begins_during_the_fence_begins_on_the_new_color() {
    let (stage, teal, slow) = busy(FENCED).await;
    let switching = raise(&teal, to_color(&[("a", Color::Green)])).await;
    for kind in [Kind::Sse, Kind::WebSocket] {
        let too_early = timeout(A_WHILE, stage.open(teal.address, "a", kind)).await;
        assert!(too_early.is_err(), "{kind:?} is not held");
    }
    let events = stage.open(teal.address, "a", Kind::Sse);
    let chat = stage.open(teal.address, "a", Kind::WebSocket);
    let release = async {
        slow.release();
        ended(switching).await.expect("a switch");
    };
    let (events, chat, ()) = tokio::join!(events, chat, release);
    for stream in [events, chat] {
        stream.release();
        assert_eq!(stream.ending().await.as_deref(), Some("green"));
    }
}

#[tokio::test]
async fn an_answer_that_is_under_way_holds_the_fence_up() {
    let ((blue, mut calls), (green, _)) = (by_hand().await, by_hand().await);
    let teal = Builder::app(&[&blue]).service(&format!("green = [{}]\n{FENCED}", green.toml())).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let mut call = calls.next().await;
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ").await;
    eventually("half of it is here", || client.stream.try_read_buf(&mut client.buffer).is_ok()).await;
    let mut switching = raise(&teal, to_color(&[("app", Color::Green)])).await;
    assert!(timeout(A_WHILE, &mut switching).await.is_err(), "it did not wait");
    call.send("whole").await;
    assert_eq!(client.answer().await.text(), "half whole");
    ended(switching).await.expect("a switch");
}

/// Whoever waits for a free endpoint runs nowhere yet: the fence does not wait for it, and it goes to the new color.
#[tokio::test]
async fn a_request_that_has_no_endpoint_yet_goes_to_the_new_color() {
    let (_stage, teal, slow) = busy(&format!("{FENCED}\nmax_in_flight = 1\nqueue_timeout = \"1h\"")).await;
    let (mut first, mut second) = (held(&teal, "/a/quick").await, held(&teal, "/a/quick").await);
    let switching = raise(&teal, to_color(&[("a", Color::Green)])).await;
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    ended(switching).await.expect("a switch");
    assert_eq!((first.answer().await.text(), second.answer().await.text()), ("green", "green"));
}

#[tokio::test]
async fn a_rollback_may_have_a_fence() {
    let (stage, teal, slow) = busy("").await;
    teal.switch("a", Color::Green).await.expect("a switch without a fence");
    let other = stage.open(teal.address, "a", Kind::Http).await;
    let back = || SwitchRequest {
        aims: BTreeMap::from([("a".to_owned(), Aim::Back)]),
        mode: Some(Mode::Fence),
        ..to_color(&[])
    };
    let switching = raise(&teal, back()).await;
    let mut waiting = held(&teal, "/a/quick").await;
    // Who still runs on blue, where the service goes, need not be waited for.
    other.release();
    assert_eq!(other.ending().await.as_deref(), Some("green"));
    let receipt = ended(switching).await.expect("a rollback").receipt();
    assert_eq!((receipt.services[0].from, receipt.services[0].to), (Color::Green, Color::Blue));
    assert_eq!(waiting.answer().await.text(), "blue");
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
}
