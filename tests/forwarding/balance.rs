//! Which endpoint a request goes to, and how it waits for one.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::by_hand::by_hand;
use crate::support::client::{Client, get};
use crate::support::origin::{Origin, ok};
use crate::support::proxy::{Builder, Teal};
use crate::support::soon;

async fn named(names: &[&'static str]) -> Vec<Origin> {
    let mut origins = Vec::new();
    for name in names {
        origins.push(Origin::saying(name).await);
    }
    origins
}

async fn start(origins: &[Origin], service: &str) -> Teal {
    Builder::app(&origins.iter().collect::<Vec<_>>()).service(service).start().await
}

/// Who answered how many of `count` requests, each on a connection of its own.
async fn tally(teal: &Teal, count: usize) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for _ in 0..count {
        *tally.entry(get(teal.address, "/").await.text().to_owned()).or_default() += 1;
    }
    tally
}

#[tokio::test]
async fn round_robin_is_even() {
    let origins = named(&["a", "b", "c"]).await;
    let teal = start(&origins, "balance = \"round_robin\"").await;
    assert_eq!(tally(&teal, 30).await.into_values().collect::<Vec<_>>(), [10, 10, 10]);
}

#[tokio::test]
async fn least_request_prefers_the_idle() {
    let (busy, mut calls) = by_hand().await;
    let idle = Origin::saying("idle").await;
    // One worker: with more, a request may come in before the end of the one before has been counted.
    let teal = Builder::app(&[&busy, &idle]).workers(1).start().await;
    // Both are idle now: sooner or later the other one gets a request, and keeps it.
    let waiting = loop {
        let mut client = Client::connect(teal.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::select! {
            call = calls.next() => break (client, call),
            _ = client.more() => {}
        }
    };
    assert_eq!(tally(&teal, 50).await, BTreeMap::from([("idle".to_owned(), 50)]));
    drop(waiting);
}

#[tokio::test]
async fn every_algorithm_reaches_every_endpoint_and_avoids_the_unhealthy() {
    let origins = named(&["a", "b", "c"]).await;
    for balance in ["least_request", "round_robin", "random", "hash:cookie:none", "hash:header:none"] {
        let teal = start(&origins, &format!("balance = \"{balance}\"")).await;
        assert_eq!(tally(&teal, 100).await.len(), 3, "{balance}");
        teal.set_health(1, false);
        assert_eq!(tally(&teal, 50).await.into_keys().collect::<Vec<_>>(), ["a", "c"], "{balance}");
    }
}

#[tokio::test]
async fn a_hash_is_sticky_and_stable_when_another_endpoint_leaves() {
    const USERS: usize = 60;
    let field: [(&str, fn(usize) -> String); 3] = [
        ("hash:ip", |user| format!("X-Forwarded-For: 10.0.0.{user}")),
        ("hash:cookie:sid", |user| format!("Cookie: a=b; sid={user}; c=d")),
        ("hash:header:X-User", |user| format!("x-user: {user}")),
    ];
    let origins = named(&["a", "b", "c"]).await;
    for (balance, field) in field {
        let blue = origins.iter().collect::<Vec<_>>();
        let teal = Builder::app(&blue).listener("trusted_proxies = [\"127.0.0.1\"]");
        let teal = teal.service(&format!("balance = \"{balance}\"")).start().await;
        let homes = async || {
            let mut homes = Vec::new();
            for user in 0..USERS {
                let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", field(user));
                homes.push(Client::connect(teal.address).await.ask(request).await.text().to_owned());
            }
            homes
        };
        let before = homes().await;
        assert_eq!(homes().await, before, "{balance} is sticky");
        assert!(["a", "b", "c"].iter().all(|name| before.iter().any(|home| home == name)), "{balance} spreads");
        teal.set_health(0, false);
        for (user, (was, is)) in before.iter().zip(homes().await).enumerate() {
            assert!(if was == "a" { is != "a" } else { *was == is }, "{balance} moved user {user} from {was} to {is}");
        }
        teal.set_health(0, true);
        assert_eq!(homes().await, before, "{balance} comes back");
    }
}

#[tokio::test]
async fn requests_beyond_max_in_flight_wait_and_then_go() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).service("max_in_flight = 2\nqueue_timeout = \"20s\"").start().await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = Client::connect(teal.address).await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi").await;
        clients.push(client);
    }
    let mut open = vec![calls.next().await, calls.next().await];
    for _ in 0..4 {
        assert!(calls.is_empty(), "more than two are in flight");
        let mut call = open.remove(0);
        call.expect("hi").await;
        call.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone").await;
        open.push(calls.next().await);
    }
    for mut call in open {
        call.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone").await;
    }
    for mut client in clients {
        assert_eq!(client.answer().await.text(), "done");
    }
}

#[tokio::test]
async fn who_waits_longer_than_queue_timeout_gets_503() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).service("max_in_flight = 1\nqueue_timeout = \"100ms\"");
    // One worker: the connection to the origin is then known to be used again.
    let teal = teal.workers(1).start().await;
    let mut first = Client::connect(teal.address).await;
    first.send("GET /first HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut call = calls.next().await;
    let asked = Instant::now();
    let mut second = Client::connect(teal.address).await;
    let answer = second.get("/second").await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
    assert!(asked.elapsed() >= Duration::from_millis(100));
    call.send(ok("done")).await;
    assert_eq!(first.answer().await.text(), "done");
    // The refused one is still connected, and there is room now.
    second.send("GET /third HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(call.wire.head().await.expect("a head").starts_with("GET /third "));
}

#[tokio::test]
async fn who_leaves_the_queue_takes_nobodys_place() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).service("max_in_flight = 1\nqueue_timeout = \"20s\"").start().await;
    let mut clients = Vec::new();
    for path in ["/first", "/leaves", "/third"] {
        let mut client = Client::connect(teal.address).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        if path == "/first" {
            clients.push((client, Some(calls.next().await)));
        } else {
            clients.push((client, None));
        }
    }
    let (mut third, _) = clients.pop().expect("three clients");
    drop(clients.pop());
    let (mut first, call) = clients.pop().expect("the first one");
    let mut call = call.expect("its call");
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone").await;
    assert_eq!(first.answer().await.text(), "done");
    loop {
        // The one that left may still have gone first, if the proxy saw the room before it saw the end.
        let mut call = calls.next().await;
        let is_third = call.head.starts_with("GET /third ");
        if is_third {
            call.send(ok("at last")).await;
            break;
        }
        call.gone().await;
    }
    assert_eq!(third.answer().await.text(), "at last");
}

#[tokio::test]
async fn a_request_waits_until_an_endpoint_is_healthy() {
    let origins = named(&["well again"]).await;
    let teal = start(&origins, "queue_timeout = \"20s\"").await;
    teal.set_health(0, false);
    let mut client = Client::connect(teal.address).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(tokio::time::timeout(Duration::from_millis(100), client.more()).await.is_err(), "it waits");
    teal.set_health(0, true);
    assert_eq!(client.answer().await.text(), "well again");
}

/// Twice as many busy clients as places: everybody gets a turn, nobody is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_starves_in_the_queue() {
    let origins = named(&["ok"]).await;
    let teal = start(&origins, "max_in_flight = 4\nqueue_timeout = \"10s\"").await;
    let address = teal.address;
    let client = |_| {
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            for n in 0..250 {
                let answer = client.get("/").await;
                assert_eq!(answer.status, 200, "request {n}");
            }
        })
    };
    for client in (0..16).map(client).collect::<Vec<_>>() {
        soon("all requests", client).await.expect("no request fails");
    }
}
