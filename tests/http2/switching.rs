//! The promises of a switch, a drain, a fence and a stop, to requests that share their connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use teal::config::Color;
use teal::drain::{DrainState, KindReport};
use tokio::sync::watch;

use crate::good::{Good, get, head, piece, post, whole};
use crate::raw::{self, GOAWAY, HEADERS, NO_ERROR, Outcome, PING, RST_STREAM, Raw, frame};
use crate::support::by_hand::by_hand;
use crate::support::checker::Checker;
use crate::support::client::Client;
use crate::support::frames::Colors;
use crate::support::origin::{Origin, ok};
use crate::support::proxy::Builder;
use crate::support::{eventually, soon};

const SWITCHES: u64 = 300;
const CONNECTIONS: usize = 4;
const STREAMS: usize = 8;
/// Requests of each stream from one switch to the next; it waits then, so as not to starve it of the CPU.
const AHEAD: u64 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switches_under_load_lose_nothing_and_their_acknowledgement_means_done() {
    let (blue, green) = (Origin::saying("blue").await, Origin::saying("green").await);
    let keys = format!("green = [{}]\nexpose_color = true", green.toml());
    let teal = Builder::app(&[&blue]).service(&keys).start().await;
    let acked = watch::Sender::new(1_u64);
    let (mut load, asked) = (Vec::new(), Arc::new(AtomicU64::new(0)));
    for _ in 0..CONNECTIONS {
        let send = Good::connect(teal.address).await.send;
        for _ in 0..STREAMS {
            load.push(tokio::spawn(keep_asking(send.clone(), acked.subscribe(), asked.clone())));
        }
    }
    let mut kept_up = 0;
    for n in 0..SWITCHES {
        let to = if n % 2 == 0 { Color::Green } else { Color::Blue };
        teal.switch("app", to).await.expect("a switch");
        acked.send_replace(n + 2);
        // Each stream has at least one request for the newest of them.
        if n % 5 == 4 {
            eventually("requests go on", || asked.load(Ordering::SeqCst) >= kept_up + load.len() as u64).await;
            kept_up = asked.load(Ordering::SeqCst);
        }
    }
    drop(acked);
    let mut requests = 0;
    for stream in load {
        requests += soon("the load", stream).await.expect("nothing fails");
    }
    assert!(requests > 1_000, "the load was no load: {requests}");
}

/// Asks again and again; each answer is whole, of one color, and of no generation older than what was acknowledged before.
async fn keep_asking(
    send: h2::client::SendRequest<bytes::Bytes>,
    mut acked: watch::Receiver<u64>,
    asked: Arc<AtomicU64>,
) -> u64 {
    let mut client = Good { send, connection: tokio::spawn(async { Ok(()) }) };
    let mut requests = 0;
    // An error means that there are no more switches.
    while requests % AHEAD > 0 || acked.changed().await.is_ok() {
        let newest = *acked.borrow_and_update();
        let answer = client.get("/").await;
        let generation: u64 = answer.field("x-teal-generation").expect("expose_color").parse().expect("a number");
        assert!(generation >= newest, "generation {generation} after {newest} was acknowledged");
        let color = if generation % 2 == 1 { "blue" } else { "green" };
        assert_eq!((answer.status, answer.text()), (200, color));
        asked.fetch_add(1, Ordering::SeqCst);
        requests += 1;
    }
    requests
}

/// Each request of a connection is one of those that a drain waits for.
#[tokio::test]
async fn a_drain_counts_each_request_of_a_connection_once() {
    let mut colors = Colors::new("").await;
    let mut client = Good::connect(colors.teal.address).await;
    let (mut waiting, mut old) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        waiting.push(client.begin(get("/old"), false).await.0);
        old.push(colors.blue.next().await);
    }
    let record = colors.switch().await;
    // New ones go to the new color, on the same connection.
    let (new, _) = client.begin(get("/new"), false).await;
    colors.green.next().await.send(ok("green")).await;
    assert_eq!(whole(new).await.expect("an answer").text(), "green");
    let drain = record.drain().expect("something was switched");
    assert_eq!((drain.report().http.at_switch, drain.report().http.open), (30, 30));
    // One is given up by its client.
    drop(waiting.pop());
    old.pop().expect("thirty").gone().await;
    for call in &mut old {
        call.send(ok("blue")).await;
    }
    for answer in waiting {
        assert_eq!(whole(answer).await.expect("an answer").text(), "blue");
    }
    soon("the end of the drain", drain.over()).await;
    assert_eq!(drain.report().state, DrainState::Drained);
    assert_eq!(drain.report().http, KindReport { at_switch: 30, finished: 30, ..KindReport::default() });
    assert!(colors.blue.is_empty());
}

/// A drain that is over cuts the requests of its generation, and neither others nor the connection.
#[tokio::test]
async fn what_a_drain_cuts_is_reset_and_the_connection_goes_on() {
    let mut colors = Colors::new("drain = { timeout = \"300ms\" }").await;
    let mut client = Good::connect(colors.teal.address).await;
    let (begun, _) = client.begin(get("/begun"), false).await;
    let mut first = colors.blue.next().await;
    first.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    let mut half = head(begun).await.expect("a head").into_body();
    assert_eq!(piece(&mut half).await.expect("a piece").expect("a connection"), "half");
    let (waiting, _) = client.begin(get("/waiting"), false).await;
    let _second = colors.blue.next().await;
    let record = colors.switch().await;
    let (new, _) = client.begin(get("/new"), false).await;
    let mut call = colors.green.next().await;
    let drain = record.drain().expect("something was switched");
    soon("the end of the drain", drain.over()).await;
    assert_eq!(drain.report().http, KindReport { at_switch: 2, cut: 2, ..KindReport::default() });
    assert!(piece(&mut half).await.expect("no end in order").is_err());
    assert_eq!(whole(waiting).await.expect("an answer of ours").status, 503);
    call.send(ok("green")).await;
    assert_eq!(whole(new).await.expect("an answer").text(), "green");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_lets_no_two_colors_run_requests_of_a_connection_at_once() {
    let checker = Arc::new(Checker::default());
    let (blue, green) = (checker.origin(Color::Blue).await, checker.origin(Color::Green).await);
    let keys = format!("green = [{}]\nswitch = {{ mode = \"fence\", fence_timeout = \"1h\" }}", green.toml());
    let teal = Builder::app(&[&blue]).service(&keys).start().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut load = Vec::new();
    for _ in 0..2 {
        let send = Good::connect(teal.address).await.send;
        for n in 0..4 {
            let (send, is_over) = (send.clone(), is_over.clone());
            load.push(tokio::spawn(async move {
                let mut client = Good { send, connection: tokio::spawn(async { Ok(()) }) };
                let mut requests = 0_u64;
                while !is_over.load(Ordering::SeqCst) {
                    let answer = client.ask(post(&format!("/{}", n % 3)), b"!").await;
                    assert!(["blue!", "green!"].contains(&answer.text()), "{answer:?}");
                    requests += 1;
                }
                requests
            }));
        }
    }
    for n in 0..100 {
        let to = if n % 2 == 0 { Color::Green } else { Color::Blue };
        teal.switch("app", to).await.expect("a switch");
        let begun = checker.seen().begun;
        eventually("requests go on", || checker.seen().begun > begun + 4).await;
    }
    is_over.store(true, Ordering::SeqCst);
    let mut requests = 0;
    for stream in load {
        requests += soon("the load", stream).await.expect("nothing fails");
    }
    let seen = checker.seen();
    assert_eq!((seen.overlaps, seen.begun), (0, requests), "{seen:?}");
    assert!(seen.most > 1, "the load was no load: {seen:?}");
}

/// RFC 9113 §6.8: the first goodbye names no stream, so that nothing that is on its way is lost; the second one does.
#[tokio::test]
async fn a_stop_says_goodbye_twice_and_serves_what_is_on_its_way() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).top("shutdown_timeout = \"1h\"").start().await;
    let mut client = Raw::connect(teal.address).await;
    client.send(raw::get(1, "/early")).await;
    let mut early = calls.next().await;
    teal.proxy().begin_stop();
    let first = client.expect(GOAWAY, 0).await;
    assert_eq!((first.code(), &first.payload[..4]), (NO_ERROR, &[0x7f, 0xff, 0xff, 0xff][..]));
    // On its way: the client has not seen the goodbye yet.
    client.send(raw::get(3, "/late")).await;
    let mut late = calls.next().await;
    let ping = client.expect(PING, 0).await;
    client.send(frame(PING, raw::ACK, 0, &ping.payload)).await;
    let second = client.expect(GOAWAY, 0).await;
    assert_eq!((second.code(), &second.payload[..4]), (NO_ERROR, &[0, 0, 0, 3][..]));
    // Too late.
    client.send(raw::get(5, "/too-late")).await;
    assert!(!teal.proxy().is_stopped());
    early.send(ok("early")).await;
    assert_eq!(client.outcome(1).await, Outcome::Answer { status: 200, body: b"early".to_vec() });
    late.send(ok("late")).await;
    assert_eq!(client.outcome(3).await, Outcome::Answer { status: 200, body: b"late".to_vec() });
    assert!(client.rest().await.iter().all(|frame| !matches!(frame.kind, HEADERS | RST_STREAM)));
    assert!(calls.is_empty());
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
}

/// Whoever has connected has been let in, even if it says only now that it speaks HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_from_before_the_stop_may_still_ask() {
    for n in 0..10 {
        let origin = Origin::saying("blue").await;
        let teal = Builder::app(&[&origin]).start().await;
        let mut clients = Vec::new();
        for _ in 0..[1, 50][n % 2] {
            clients.push(Raw { wire: Client::connect(teal.listener).await });
        }
        teal.proxy().begin_stop();
        for client in &mut clients {
            client
                .send([raw::PREFACE, &frame(raw::SETTINGS, 0, 0, raw::setting(1, 0)), &raw::get(1, "/")].concat())
                .await;
        }
        for mut client in clients {
            assert_eq!(client.outcome(1).await, Outcome::Answer { status: 200, body: b"blue".to_vec() });
        }
        eventually("it has stopped", || teal.proxy().is_stopped()).await;
    }
}

/// Neither an idle client nor one that does not answer a goodbye keeps a proxy from stopping.
#[tokio::test]
async fn a_client_that_does_not_answer_the_goodbye_does_not_hold_the_stop() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).top("shutdown_timeout = \"1h\"").start().await;
    let good = Good::connect(teal.address).await;
    let mut silent = Raw::connect(teal.address).await;
    silent.settle().await;
    let mut busy = Raw::connect(teal.address).await;
    busy.send(raw::get(1, "/")).await;
    let mut call = calls.next().await;
    teal.proxy().begin_stop();
    soon("the end of an idle connection", good.connection).await.expect("no panic").expect("an end in order");
    call.send(ok("done")).await;
    assert_eq!(busy.outcome(1).await, Outcome::Answer { status: 200, body: b"done".to_vec() });
    busy.rest().await;
    silent.rest().await;
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
}

/// A stop that is over cuts what is left, and it does not look whole.
#[tokio::test]
async fn a_stop_that_is_over_cuts_every_stream() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).top("shutdown_timeout = \"300ms\"").start().await;
    let mut client = Good::connect(teal.address).await;
    let (waiting, _) = client.begin(get("/"), false).await;
    let mut call = calls.next().await;
    call.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    let mut body = head(waiting).await.expect("a head").into_body();
    assert_eq!(piece(&mut body).await.expect("a piece").expect("a connection"), "half");
    teal.proxy().begin_stop();
    assert!(piece(&mut body).await.expect("no end in order").is_err());
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
}

/// A connection is idle while none of its requests is under way, however long they take together.
#[tokio::test]
async fn a_busy_connection_is_not_idle() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).listener("idle_timeout = \"1s\"\n").start().await;
    let mut client = Good::connect(teal.address).await;
    let (waiting, _) = client.begin(get("/"), false).await;
    let mut call = calls.next().await;
    let mut other = Good::connect(teal.address).await;
    // The other one is idle, and ends.
    let ended = soon("the end of an idle connection", &mut other.connection).await;
    ended.expect("no panic").expect("an end in order");
    assert!(!client.connection.is_finished());
    call.send(ok("still here")).await;
    assert_eq!(whole(waiting).await.expect("an answer").text(), "still here");
}
