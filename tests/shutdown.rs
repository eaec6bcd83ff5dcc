//! A proxy that stops tells the balancer first, lets everybody finish who can, and cuts the rest at the deadline.

mod support;

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::time::Duration;

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;
use teal::config::Color;
use teal::drain::{DrainState, KindReport};
use teal::service::Kind;
use teal::state::Receipt;
use teal::store::Store;
use tokio::time::{Instant, timeout};

use support::binary::{Binary, call, teal_run};
use support::client::{Client, get};
use support::exchange::Stage;
use support::over;
use support::proxy::{Builder, Teal};
use support::{eventually, scratch, soon};

const READY: &str = "/.well-known/teal/ready";

/// A proxy before the service `a`, with these keys at the top of its file.
async fn start(keys: &str) -> (Stage, Teal) {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "")).top(keys).start().await;
    (stage, teal)
}

async fn closed(address: SocketAddr) {
    eventually("nobody listens", || StdTcpStream::connect(address).is_err()).await;
}

/// The balancer must leave before the doors close.
#[tokio::test]
async fn while_the_balancer_leaves_everybody_is_served() {
    let (_stage, teal) = start("shutdown_delay = \"1h\"").await;
    let mut before = Client::connect(teal.address).await;
    assert_eq!(before.get(READY).await.status, 200);
    teal.proxy().begin_stop();
    eventually("it is not ready", || teal.state().is_draining()).await;
    assert_eq!(get(teal.address, READY).await.status, 503);
    for _ in 0..20 {
        assert_eq!(get(teal.address, "/a").await.text(), "blue");
        let answer = before.get("/a").await;
        assert_eq!((answer.text(), answer.field("connection")), ("blue", None));
    }
    assert_eq!(before.get(READY).await.status, 503);
    teal.switch("a", Color::Green).await.expect("it still switches");
    assert_eq!(before.get("/a").await.text(), "green");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_request_gets_its_whole_answer_and_idle_connections_end() {
    let (stage, teal) = start("shutdown_timeout = \"1h\"").await;
    let mut slow = stage.open(teal.address, "a", Kind::Http).await;
    let mut idle = Client::connect(teal.address).await;
    assert_eq!(idle.get("/a").await.status, 200);
    teal.proxy().begin_stop();
    assert_eq!(idle.rest().await, (Vec::new(), true));
    closed(teal.listener).await;
    assert!(!teal.proxy().is_stopped());
    slow.release();
    let answer = slow.client.answer().await;
    assert_eq!((answer.text(), answer.field("connection")), ("blue", Some("close")));
    assert_eq!(slow.client.rest().await, (Vec::new(), true));
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
    drop(StdTcpListener::bind(teal.listener).expect("the address is free"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_has_begun_to_come_is_served_and_who_says_nothing_is_not_waited_for() {
    if over::is_passed_over("half a head") {
        return;
    }
    let (_stage, teal) = start("shutdown_timeout = \"1h\"").await;
    let mut half = Client::connect(teal.address).await;
    half.send("GET /a HTTP/1.1\r\n").await;
    let mut silent = Client::connect(teal.address).await;
    teal.proxy().begin_stop();
    assert_eq!(silent.rest().await, (Vec::new(), true));
    closed(teal.listener).await;
    assert!(!teal.proxy().is_stopped());
    half.send("Host: test\r\n\r\n").await;
    let answer = half.answer().await;
    assert_eq!((answer.text(), answer.field("connection")), ("blue", Some("close")));
    assert_eq!(half.rest().await, (Vec::new(), true));
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_run_on_until_the_deadline() {
    let (stage, teal) = start("shutdown_timeout = \"4s\"").await;
    let mut kept = Vec::new();
    for kind in Kind::ALL {
        kept.push(stage.open(teal.address, "a", kind).await);
    }
    let (sse, websocket) =
        (stage.open(teal.address, "a", Kind::Sse).await, stage.open(teal.address, "a", Kind::WebSocket).await);
    let begun = Instant::now();
    teal.proxy().begin_stop();
    closed(teal.listener).await;
    for stream in [sse, websocket] {
        stream.release();
        assert_eq!(stream.ending().await.as_deref(), Some("blue"));
    }
    for exchange in kept {
        assert_eq!(exchange.ending().await, None);
        assert!(begun.elapsed() >= Duration::from_secs(4), "cut before the deadline");
    }
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
}

/// Who has connected has been let in, even if nobody has looked at the connection yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_to_be_accepted_are_served() {
    if over::is_passed_over("the number of connections") {
        return;
    }
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "")).listener("connections = 2").start().await;
    let mut idle = Client::connect(teal.address).await;
    assert_eq!(idle.get("/a").await.text(), "blue");
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut client = Client::connect(teal.address).await;
        client.send("GET /a HTTP/1.1\r\nHost: test\r\n\r\n").await;
        waiting.push(client);
    }
    assert!(timeout(Duration::from_millis(100), waiting[0].more()).await.is_err(), "the limit is not kept");
    teal.proxy().begin_stop();
    // From now on the doors are closed.
    assert_eq!(idle.rest().await, (Vec::new(), true));
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    for mut client in waiting {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    }
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
}

/// Many connect just as the doors close: whoever is let in is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_from_before_the_stop_is_served() {
    if over::is_passed_over("a connection on which nothing was asked yet") {
        return;
    }
    for n in 0..20 {
        let (_stage, teal) = start("").await;
        let mut clients = Vec::new();
        for _ in 0..[1, 50][n % 2] {
            clients.push(Client::connect(teal.address).await);
        }
        teal.proxy().begin_stop();
        for client in &mut clients {
            client.send("GET /a HTTP/1.1\r\nHost: test\r\n\r\n").await;
        }
        for mut client in clients {
            assert_eq!(client.answer().await.text(), "blue");
        }
        eventually("it has stopped", || teal.proxy().is_stopped()).await;
    }
}

/// The accounts of the drains that the stop ends, many at once, are not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drains_that_the_stop_ends_are_recorded() {
    let stage = Stage::new().await;
    // On a real disk, which takes its time.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let names: Vec<String> = (0..30).map(|n| format!("a{n}")).collect();
    let services: String = names.iter().map(|name| stage.service(name, "")).collect();
    let teal = Builder::new(&services).top("shutdown_timeout = \"500ms\"").start_unprobed(dir);
    teal.probed().await;
    let (mut streams, mut ids) = (Vec::new(), Vec::new());
    for name in &names {
        let slow = stage.open(teal.address, name, Kind::Http).await;
        streams.push(stage.open(teal.address, name, Kind::Sse).await);
        ids.push(teal.switch(name, Color::Green).await.expect("a switch").id().to_owned());
        slow.release();
        assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    }
    let dir = teal.stop().await;
    for stream in streams {
        assert_eq!(stream.ending().await, None);
    }
    let store = Store::open(&dir.path().join("state")).expect("the state is free");
    for id in ids {
        let json = store.receipt(&id).expect("it can be read").expect("it is there");
        let drain = serde_json::from_str::<Receipt>(&json).expect("a receipt").drain.expect("a drain");
        assert_eq!(drain.state, DrainState::Drained);
        assert_eq!(drain.http, KindReport { open: 0, at_switch: 1, finished: 1, kept: 0, cut: 0 });
        assert_eq!(drain.sse, KindReport { open: 0, at_switch: 1, finished: 0, kept: 0, cut: 1 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_drain_is_told_how_the_stop_ended_it() {
    let (stage, teal) = start("shutdown_timeout = \"500ms\"").await;
    let stream = stage.open(teal.address, "a", Kind::Sse).await;
    let mut waiting = Client::connect(teal.admin).await;
    let path = "/v1/switch?wait=drained&timeout=10m";
    waiting.send(call(teal.admin, "POST", path, "{\"services\": {\"a\": \"green\"}}")).await;
    eventually("it has switched", || teal.active("a") == Color::Green).await;
    teal.proxy().begin_stop();
    assert_eq!(stream.ending().await, None);
    let answer = waiting.answer().await;
    let drain = serde_json::from_str::<Receipt>(answer.text()).expect("a receipt").drain.expect("a drain");
    assert_eq!((drain.state, drain.sse.cut), (DrainState::Drained, 1));
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
}

/// The admin API is the last to go, and it does not go in the middle of an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_admin_api_has_begun_it_finishes() {
    let (stage, teal) = start("shutdown_timeout = \"1h\"").await;
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    let mut half = Client::connect(teal.admin).await;
    let request = call(teal.admin, "POST", "/v1/switch", "{\"services\": {\"a\": \"blue\"}}");
    let (begin, end) = request.split_at(request.len() - 1);
    half.send(begin).await;
    teal.proxy().begin_stop();
    closed(teal.listener).await;
    let livez = call(teal.admin, "GET", "/livez", "");
    assert_eq!(Client::connect(teal.admin).await.ask(livez).await.status, 200);
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    closed(teal.admin).await;
    half.send(end).await;
    assert_eq!(half.answer().await.status, 200);
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_is_gentle_and_exits_with_0() {
    let (stage, dir) = (Stage::new().await, scratch());
    let config = Builder::new(&stage.service("a", "")).top("shutdown_timeout = \"1h\"").write(dir.path());
    let mut teal = Binary::start(teal_run(&config)).await;
    let mut idle = Client::connect(teal.address).await;
    assert_eq!(idle.get("/a").await.text(), "blue");
    let mut slow = stage.open(teal.address, "a", Kind::Http).await;
    teal.signal(Signal::TERM);
    assert_eq!(idle.rest().await, (Vec::new(), true));
    closed(teal.address).await;
    slow.release();
    let answer = slow.client.answer().await;
    assert_eq!((answer.text(), answer.field("connection")), ("blue", Some("close")));
    assert_eq!(teal.ended().await.code(), Some(0));
    drop(StdTcpListener::bind(teal.address).expect("the address is free"));
    drop(StdTcpListener::bind(teal.admin).expect("the address is free"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_cut_at_the_deadline_are_no_failure() {
    let (stage, dir) = (Stage::new().await, scratch());
    let config = Builder::new(&stage.service("a", "")).top("shutdown_timeout = \"500ms\"").write(dir.path());
    let mut teal = Binary::start(teal_run(&config)).await;
    let stream = stage.open(teal.address, "a", Kind::WebSocket).await;
    teal.signal(Signal::INT);
    assert_eq!(stream.ending().await, None);
    assert_eq!(teal.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once() {
    let (stage, dir) = (Stage::new().await, scratch());
    let config = Builder::new(&stage.service("a", "")).top("shutdown_timeout = \"1h\"").write(dir.path());
    let mut teal = Binary::start(teal_run(&config)).await;
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    teal.signal(Signal::TERM);
    closed(teal.address).await;
    teal.signal(Signal::TERM);
    assert_eq!(teal.ended().await.code(), Some(143));
    assert_eq!(soon("the end", slow.ending()).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once_also_while_the_balancer_leaves() {
    let (stage, dir) = (Stage::new().await, scratch());
    let config = Builder::new(&stage.service("a", "")).top("shutdown_delay = \"1h\"").write(dir.path());
    let mut teal = Binary::start(teal_run(&config)).await;
    let mut balancer = Client::connect(teal.address).await;
    teal.signal(Signal::TERM);
    let leaving = async {
        while balancer.get(READY).await.text() != "503 draining\n" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the balancer to be told", leaving).await;
    assert_eq!(get(teal.address, "/a").await.text(), "blue");
    teal.signal(Signal::TERM);
    assert_eq!(teal.ended().await.code(), Some(143));
}

/// The doors close while the file is being read: it is a pipe, so that the test decides when.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_is_overtaken_by_a_stop_opens_nothing() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "")).top("shutdown_timeout = \"1h\"").start_watching().await;
    let (pipe, socket) = (teal.dir().join("pipe"), teal.dir().join("late.sock"));
    let text = std::fs::read_to_string(teal.file()).expect("it was written");
    let more = format!("{text}\n[[listeners]]\nlisten = \"unix:{}\"\n", socket.display());
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("the test can make a pipe");
    std::fs::rename(&pipe, teal.file()).expect("the test can rename");
    teal.proxy().reload();
    let file = teal.file();
    // Opened as soon as somebody reads.
    let opened = tokio::task::spawn_blocking(move || OpenOptions::new().write(true).open(file));
    let mut writer = soon("a reader", opened).await.expect("no panic").expect("a pipe");
    teal.proxy().begin_stop();
    closed(teal.listener).await;
    writer.write_all(more.as_bytes()).expect("it is read");
    drop(writer);
    let applied = async {
        loop {
            let metrics = Client::connect(teal.admin).await.ask(call(teal.admin, "GET", "/metrics", "")).await;
            if metrics.text().contains("teal_config_reloads_total{outcome=\"applied\"} 1\n") {
                return;
            }
        }
    };
    soon("the end of the reload", applied).await;
    assert!(!socket.exists(), "a listener was opened behind closed doors");
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
}
