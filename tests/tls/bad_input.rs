//! Those who do not speak TLS well: they are told, or dropped, and a good client is served all the same.

use teal::metrics::{Handshake, Rejection};

use crate::support::client::Client;
use crate::support::origin::Origin;
use crate::support::proxy::Builder;
use crate::support::tls::{Authority, BOTH_VERSIONS, client_config, connect};
use crate::support::{eventually, scratch, soon};
use crate::{GET, Site};

/// The first record of a handshake, up to its version.
const HALF: [u8; 6] = [22, 3, 1, 1, 0, 1];

#[tokio::test]
async fn plain_http_on_a_tls_port_is_told_so() {
    let site = Site::new("").await;
    let long = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(100_000));
    for request in [GET, "G", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &long] {
        let mut client = Client::connect(site.teal.listener).await;
        client.send(request).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("https://"), "{}", answer.text());
        assert_eq!(client.rest().await.0, b"");
    }
    assert_eq!(site.handshakes(Handshake::Failed), 4);
    assert!(site.requests.lock().is_empty());
    assert!(site.serves(&site.client()).await.is_some());
}

#[tokio::test]
async fn tls_on_a_plain_port_is_told_so() {
    let (origin, dir) = (Origin::saying("ok").await, scratch());
    let log = dir.path().join("access.log");
    let teal = Builder::app(&[&origin]).top(&format!("log.access = {log:?}\n")).start().await;
    // Of the listener itself: the answer is in plain text, which no client of TLS can show.
    let config = client_config(Authority::new().roots(), BOTH_VERSIONS, None).into();
    if teal.proto == "http" {
        let refused = soon("the end", connect(teal.listener, "a.test", &config)).await;
        assert!(refused.is_err());
        let mut client = Client::connect(teal.listener).await;
        client.send(HALF).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text()), (400, "400 TLS on a port for plain HTTP: begin with http://\n"));
        let rejected = || teal.state().listeners()[0].1.rejected(Rejection::BadRequest);
        assert_eq!(rejected(), 2);
        let said =
            || std::fs::read_to_string(&log).is_ok_and(|text| text.matches("TLS on a port for plain").count() == 2);
        eventually("the log says so", said).await;
    }
}

#[tokio::test]
async fn garbage_ends_the_connection_and_nothing_else() {
    let site = Site::new("").await;
    let mut garbage = vec![0; 20_000];
    fastrand::Rng::with_seed(7).fill(&mut garbage);
    let too_long = [&[22, 3, 1, 0xff, 0xff][..], &[1; 70_000]].concat();
    let empty = [22, 3, 1, 0, 0].repeat(100);
    let alert = [21, 3, 1, 0, 2, 2, 40].to_vec();
    let all = [
        [&[22][..], &garbage].concat(),
        [&HALF[..], &garbage].concat(),
        too_long,
        empty,
        [&[22, 3, 3, 0, 4][..], &[1, 0, 0, 0]].concat(),
        alert,
    ];
    for (n, bytes) in all.iter().enumerate() {
        let mut client = Client::connect(site.teal.listener).await;
        // It may end before everything is sent.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, bytes).await;
        let (answer, _) = client.rest().await;
        let is_told = answer.is_empty() || answer[0] == 21 || answer.starts_with(b"HTTP/1.1 400");
        assert!(is_told, "{n}: {}", answer.escape_ascii());
        assert!(site.serves(&site.client()).await.is_some(), "{n}");
    }
    eventually("all are counted", || site.handshakes(Handshake::Failed) == all.len() as u64).await;
    eventually("all are gone", || site.connections() == 0).await;
}

#[tokio::test]
async fn who_is_too_slow_with_the_handshake_is_dropped() {
    let site = Site::new(" }\nheader_timeout = \"1s\"\n#").await;
    let mut half = Client::connect(site.teal.listener).await;
    half.send(HALF).await;
    let mut silent = Client::connect(site.teal.listener).await;
    assert_eq!((half.rest().await.0, silent.rest().await.0), (Vec::new(), Vec::new()));
    eventually("both are counted", || site.handshakes(Handshake::Timeout) == 2).await;
    assert!(site.serves(&site.client()).await.is_some());
}

/// More than have a place: those that came first make room.
#[tokio::test]
async fn half_handshakes_by_the_thousand_keep_nobody_out() {
    const MOST: usize = 2000;
    const MORE: usize = 100;
    let (dir, authority) = (scratch(), Authority::new());
    let pair = authority.issue(&["a.test"]).write(dir.path(), "a");
    let origin = Origin::saying("ok").await;
    let keys = format!("header_timeout = \"1h\"\ntls = {{ certificates = [{pair}] }}\n");
    let teal = Builder::app(&[&origin]).listener(&keys).workers(1).start().await;
    let config = std::sync::Arc::new(client_config(authority.roots(), BOTH_VERSIONS, None));
    let mut halves = Vec::new();
    for _ in 0..MOST + MORE {
        let mut client = Client::connect(teal.listener).await;
        client.send(HALF).await;
        halves.push(client);
    }
    let stats = teal.state().listeners()[0].1.clone();
    eventually("the oldest have made room", || stats.handshakes(Handshake::Dropped) == MORE as u64).await;
    for _ in 0..10 {
        let mut client = connect(teal.listener, "a.test", &config).await.expect("a handshake");
        assert_eq!(client.ask(GET).await.text(), "ok");
    }
    assert_eq!(stats.handshakes(Handshake::Dropped), MORE as u64 + 1, "who is done leaves a place behind");
    for half in &mut halves[..=MORE] {
        assert_eq!(half.rest().await.0, b"", "the oldest went");
    }
}
