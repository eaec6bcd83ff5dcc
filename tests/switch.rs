//! A switch is atomic, loses nothing, and its acknowledgement means done.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use teal::config::Color;
use teal::state::{Aim, Refusal, SwitchRequest};
use tokio::sync::watch;

use support::client::{Client, get};
use support::origin::{Origin, Request, ok};
use support::proxy::{Builder, Teal, to_color};
use support::{eventually, scratch, soon};

const SWITCHES: usize = 2_000;
const CLIENTS: usize = 8;
/// How many requests a client is ahead of the switches; it waits for the next one so as not to starve it of the CPU.
const AHEAD: usize = 2;

/// Two services, `a` and `b`, whose origins answer with their color.
async fn pair() -> (Teal, Vec<Origin>) {
    let origins = vec![Origin::saying("blue").await, Origin::saying("green").await];
    let service = |name: &str| {
        format!(
            "[services.{name}]\nactive = \"blue\"\nblue = [{}]\ngreen = [{}]\nexpose_color = true\n\
             [[routes]]\npath = \"/{name}\"\nservice = \"{name}\"\n",
            origins[0].toml(),
            origins[1].toml()
        )
    };
    let teal = Builder::new(&(service("a") + &service("b"))).start().await;
    (teal, origins)
}

fn generation(answer: &support::client::Answer) -> u64 {
    answer.field("x-teal-generation").expect("expose_color").parse().expect("a number")
}

/// The color of the body must be that of the generation: odd ones are blue here.
fn check_color(answer: &support::client::Answer) {
    let color = if generation(answer) % 2 == 1 { "blue" } else { "green" };
    assert_eq!(answer.text(), color, "a request changed its color half way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_switches_under_load_lose_nothing() {
    let (teal, _origins) = pair().await;
    let (acked, answered) = (watch::Sender::new(1), Arc::new(AtomicUsize::new(0)));
    let load = |_| {
        let (mut acked, answered, address) = (acked.subscribe(), answered.clone(), teal.address);
        tokio::spawn(async move {
            let (mut requests, mut newest) = (0, 0);
            let mut client = Client::connect(address).await;
            // An error means that there are no more switches.
            while requests % AHEAD > 0 || acked.changed().await.is_ok() {
                let acked = *acked.borrow_and_update();
                let answer = client.get(if requests % 2 == 0 { "/a" } else { "/b" }).await;
                assert_eq!(answer.status, 200, "a request failed: {answer:?}");
                check_color(&answer);
                let generation = generation(&answer);
                assert!(generation >= acked, "started after the ack of {acked}, answered by {generation}");
                assert!(generation >= newest, "saw generation {newest}, then {generation}");
                newest = generation;
                requests += 1;
                answered.fetch_add(1, Ordering::SeqCst);
                if requests % 50 == 0 {
                    client = Client::connect(address).await;
                }
            }
            requests
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(load).collect();

    let mut kept_up = 0;
    for n in 0..SWITCHES {
        let to = if n % 2 == 0 { Color::Green } else { Color::Blue };
        let record = teal.state().switch(to_color(&[("a", to), ("b", to)])).await.expect("a switch");
        let receipt = record.receipt();
        assert_eq!(receipt.services.len(), 2);
        acked.send_replace(receipt.services[0].generation);
        // Each client has at least one request for the newest of them.
        if n % 5 == 4 {
            eventually("the load keeps up", || answered.load(Ordering::SeqCst) >= kept_up + CLIENTS).await;
            kept_up = answered.load(Ordering::SeqCst);
        }
    }
    drop(acked);

    let mut requests = 0;
    for client in clients {
        requests += client.await.expect("no assertion of a client failed");
    }
    assert!(requests > SWITCHES, "the load was no load: {requests} requests");
    let mut at_switch = 0;
    for record in teal.state().recent() {
        soon("the drain", record.drain().expect("a drain").over()).await;
        let http = record.receipt().drain.expect("a drain").http;
        assert_eq!((http.open, http.cut), (0, 0));
        at_switch += http.at_switch;
    }
    assert!(at_switch > 0, "no request was under way at any of the last switches");
}

/// Several services switch in one step: who has seen the new color of one can only see the new color of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_switch_together() {
    let (teal, _origins) = pair().await;
    let (is_over, pairs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (over, counted, address) = (is_over.clone(), pairs.clone(), teal.address);
    let watcher = tokio::spawn(async move {
        let mut client = Client::connect(address).await;
        while !over.load(Ordering::SeqCst) {
            let first = generation(&client.get("/a").await);
            let second = generation(&client.get("/b").await);
            assert!(second >= first, "a at generation {first}, then b at {second}");
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    for n in 0..500 {
        let to = if n % 2 == 0 { Color::Green } else { Color::Blue };
        teal.state().switch(to_color(&[("a", to), ("b", to)])).await.expect("a switch");
        if n % 50 == 0 {
            let before = pairs.load(Ordering::SeqCst);
            eventually("the watcher looks", || pairs.load(Ordering::SeqCst) > before).await;
        }
    }
    is_over.store(true, Ordering::SeqCst);
    watcher.await.expect("no assertion failed");
}

/// Of two that expect the same color, one wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_switches_have_one_winner() {
    let (teal, _origins) = pair().await;
    for n in 0..200 {
        let (from, to) = if n % 2 == 0 { (Color::Blue, Color::Green) } else { (Color::Green, Color::Blue) };
        let request = || SwitchRequest { expect: BTreeMap::from([("a".to_owned(), from)]), ..to_color(&[("a", to)]) };
        let (first, second) = tokio::join!(teal.state().switch(request()), teal.state().switch(request()));
        let lost = [first.as_ref().err(), second.as_ref().err()];
        let is_conflict = |refusal: &&Refusal| matches!(refusal, Refusal::Unexpected { .. });
        assert_eq!(lost.iter().flatten().count(), 1, "{lost:?}");
        assert!(lost.iter().flatten().all(is_conflict), "{lost:?}");
        assert_eq!(teal.active("a"), to);
    }
}

/// What is refused changes nothing: not the color, not the generation, not the history.
#[tokio::test]
async fn a_refused_switch_leaves_no_trace() {
    let (blue, dead) = (Origin::saying("blue").await, Origin::refusing());
    let teal = Builder::new(&format!(
        "[services.a]\nactive = \"blue\"\nblue = [{}]\ngreen = [{}]\nhealth = {{ interval = \"20ms\", fall = 1 }}\n\
         [services.empty]\nactive = \"blue\"\nblue = [{0}]\n",
        blue.toml(),
        dead.toml()
    ))
    .start()
    .await;
    let all = |request: SwitchRequest| async { teal.state().switch(request).await.expect_err("a refusal").to_string() };

    eventually("green is unhealthy", || teal.state().load().service("a").unwrap().pools.green.healthy() == 0).await;
    let refusal = all(to_color(&[("a", Color::Green)])).await;
    assert!(refusal.contains("0 of 1 endpoints of green are healthy, 1 needed"), "{refusal}");
    let refusal = all(to_color(&[("empty", Color::Green)])).await;
    assert!(refusal.contains("green has no endpoints"), "{refusal}");
    let refusal = all(to_color(&[("b", Color::Green)])).await;
    assert!(refusal.contains("unknown service \"b\", known are: a, empty"), "{refusal}");
    let unexpected = SwitchRequest {
        expect: BTreeMap::from([("a".to_owned(), Color::Green)]),
        force: true,
        ..to_color(&[("a", Color::Green)])
    };
    let refusal = all(unexpected).await;
    assert!(refusal.contains("blue is active, expected green"), "{refusal}");
    let back = SwitchRequest { aims: BTreeMap::from([("a".to_owned(), Aim::Back)]), ..to_color(&[]) };
    let refusal = all(back).await;
    assert!(refusal.contains("no switch to go back from"), "{refusal}");
    // One of several is enough.
    all(to_color(&[("a", Color::Blue), ("empty", Color::Green)])).await;

    assert_eq!(teal.active("a"), Color::Blue);
    assert_eq!(teal.state().load().service("a").unwrap().number, 1);
    assert!(teal.state().recent().is_empty());

    let forced = SwitchRequest { force: true, ..to_color(&[("a", Color::Green)]) };
    teal.state().switch(forced).await.expect("force overrides the health");
    assert_eq!(teal.active("a"), Color::Green);
}

#[tokio::test]
async fn a_refusal_says_what_each_endpoint_lacks() {
    let silent = Origin::raw(|stream| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    let teal = Builder::new(&format!(
        "[services.a]\nblue = []\ngreen = [{}]\nhealth = {{ path = \"/\", interval = \"1h\", timeout = \"1h\" }}\n",
        silent.toml()
    ))
    .start_unprobed(scratch());
    let reason = async || {
        let refusal = teal.switch("a", Color::Green).await.expect_err("green is not healthy").to_string();
        refusal.rsplit("; ").next().unwrap_or_default().to_owned()
    };
    let probed = |result| teal.state().load().services[0].pools.green.endpoints()[0].probed(result, 2, 1);

    assert_eq!(reason().await, format!("{}: not probed yet", silent.address));
    probed(Err("status 500".to_owned()));
    assert_eq!(reason().await, format!("{}: status 500", silent.address));
    probed(Ok(()));
    assert_eq!(reason().await, format!("{}: recovering", silent.address));
    probed(Ok(()));
    teal.switch("a", Color::Green).await.expect("a switch");
}

#[tokio::test]
async fn a_dry_run_decides_and_changes_nothing() {
    let (teal, _origins) = pair().await;
    let request = SwitchRequest { dry_run: true, ..to_color(&[("a", Color::Green)]) };
    let receipt = teal.state().switch(request).await.expect("it would be done").receipt();
    assert!(receipt.dry_run);
    assert_eq!(receipt.services[0].to, Color::Green);
    assert_eq!(teal.active("a"), Color::Blue);
    assert!(teal.state().recent().is_empty());
}

#[tokio::test]
async fn a_rollback_goes_to_the_color_before() {
    let (teal, _origins) = pair().await;
    teal.switch("a", Color::Green).await.expect("a switch");
    let back = || SwitchRequest { aims: BTreeMap::from([("a".to_owned(), Aim::Back)]), ..to_color(&[]) };
    teal.state().switch(back()).await.expect("a rollback");
    assert_eq!(teal.active("a"), Color::Blue);
    assert_eq!(get(teal.address, "/a").await.text(), "blue");
    assert_eq!(teal.state().load().service("a").unwrap().number, 3);
}

/// Where it already is, nothing happens, and that is no failure: a pipeline may be run again.
#[tokio::test]
async fn a_switch_to_the_active_color_is_done_already() {
    let (teal, _origins) = pair().await;
    let receipt = teal.switch("a", Color::Blue).await.expect("done already").receipt();
    assert!(receipt.services.is_empty());
    assert_eq!(teal.state().load().service("a").unwrap().number, 1);
}

#[tokio::test]
async fn the_same_key_switches_once() {
    let (teal, _origins) = pair().await;
    let request = |to| SwitchRequest { key: Some("build-7".to_owned()), ..to_color(&[("a", to)]) };
    let first = teal.state().switch(request(Color::Green)).await.expect("a switch");
    teal.switch("a", Color::Blue).await.expect("another switch");
    let again = teal.state().switch(request(Color::Green)).await.expect("the first one's receipt");
    assert_eq!(first.id(), again.id());
    assert_eq!(teal.active("a"), Color::Blue);
    let other = teal.state().switch(request(Color::Blue)).await.expect_err("another request");
    assert!(matches!(other, Refusal::KeyReused(_)), "{other}");
}

/// Also when there was nothing to do the first time: a retry must not do more.
#[tokio::test]
async fn a_key_that_changed_nothing_stays_so() {
    let (teal, _origins) = pair().await;
    let request = || SwitchRequest { key: Some("build-8".to_owned()), ..to_color(&[("a", Color::Blue)]) };
    let first = teal.state().switch(request()).await.expect("done already");
    teal.switch("a", Color::Green).await.expect("a switch");
    let again = teal.state().switch(request()).await.expect("the first one's receipt");
    assert_eq!(first.id(), again.id());
    assert_eq!(teal.active("a"), Color::Green);
}

/// A request that waits for an endpoint has not begun: a switch lets it go to the new color.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_request_follows_the_switch() {
    let dead = Origin::refusing();
    let green = Origin::http(|_: Request| async { ok("green") }).await;
    let teal = Builder::new(&format!(
        "[services.a]\nactive = \"blue\"\nblue = [{}]\ngreen = [{}]\nqueue_timeout = \"20s\"\n\
         health = {{ interval = \"20ms\", fall = 1 }}\n[[routes]]\npath = \"/\"\nservice = \"a\"\n",
        dead.toml(),
        green.toml()
    ))
    .start()
    .await;
    eventually("blue is unhealthy", || teal.state().load().service("a").unwrap().pools.blue.healthy() == 0).await;
    let waiting = tokio::spawn(get(teal.address, "/"));
    eventually("the request waits", || {
        let snapshot = teal.state().load();
        snapshot.service("a").unwrap().generation.tally().counts()[0].open() == 1
    })
    .await;
    let record = teal.switch("a", Color::Green).await.expect("a switch");
    let answer = waiting.await.expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "green"));
    soon("the drain", record.drain().expect("a drain").over()).await;
}
