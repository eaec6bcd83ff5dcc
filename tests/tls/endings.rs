//! How connections inside TLS end: whoever has said everything says so, and whoever has not does not.

use std::time::Duration;

use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::by_hand::by_hand;
use crate::support::client::Client;
use crate::support::proxy::Builder;
use crate::support::tls::{Authority, BOTH_VERSIONS, client_config, connect};
use crate::support::{eventually, scratch, soon};
use crate::{GET, Site};

/// The end of such an answer is the end of the connection, and an attacker could make that up: only `close_notify` says
/// that the answer is whole (RFC 9112 §9.8).
#[tokio::test]
async fn an_answer_that_only_the_close_ends_is_whole_when_tls_says_so() {
    let (dir, authority, (origin, mut calls)) = (scratch(), Authority::new(), by_hand().await);
    let pair = authority.issue(&["a.test"]).write(dir.path(), "a");
    let teal = Builder::app(&[&origin]).listener(&format!("tls = {{ certificates = [{pair}] }}\n")).start().await;
    let config = std::sync::Arc::new(client_config(authority.roots(), BOTH_VERSIONS, None));
    let until_close = "HTTP/1.1 200 OK\r\n\r\nhalf";
    let with_length = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf";
    for (answer, breaks, is_whole) in [
        (until_close, false, true),
        (until_close, true, false),
        (with_length, false, false),
        (with_length, true, false),
    ] {
        let mut client = connect(teal.address, "a.test", &config).await.expect("a handshake");
        client.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
        let mut call = calls.next().await;
        call.send(answer).await;
        soon("the beginning", async { while !client.buffer.ends_with(b"half") && client.more().await.is_some() {} })
            .await;
        if breaks {
            SockRef::from(&call.wire.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
        }
        drop(call);
        let (bytes, in_order) = client.rest().await;
        assert!(bytes.ends_with(b"half"), "{}", bytes.escape_ascii());
        assert_eq!(in_order, is_whole, "{answer:?}, {breaks}");
    }
}

#[tokio::test]
async fn an_idle_connection_ends_in_order_from_either_side() {
    let site = Site::new(" }\nidle_timeout = \"300ms\"\n#").await;
    let mut client = site.connect("a.test", &site.client()).await;
    assert_eq!(client.ask(GET).await.text(), "ok");
    assert_eq!(client.rest().await, (Vec::new(), true), "the idle timeout");
    let mut client = site.connect("a.test", &site.client()).await;
    assert_eq!(client.ask(GET).await.text(), "ok");
    client.stream.shutdown().await.expect("it is open");
    assert_eq!(client.rest().await, (Vec::new(), true), "the client's end");
    eventually("all are gone", || site.connections() == 0).await;
}

/// Who has connected has been let in, also when the handshake has not begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_from_before_the_stop_is_finished_and_the_request_served() {
    for n in 0..20 {
        let site = Site::new("").await;
        let mut sockets = Vec::new();
        for _ in 0..[1, 20][n % 2] {
            sockets.push(TcpStream::connect(site.teal.listener).await.expect("the proxy accepts"));
        }
        site.teal.proxy().begin_stop();
        let config = site.client();
        // All at once: each has a second to begin.
        let served = sockets.into_iter().map(|socket| {
            let connector = TlsConnector::from(config.clone());
            tokio::spawn(async move {
                let name = "a.test".try_into().expect("a name");
                let stream = connector.connect(name, socket).await.expect("a handshake");
                assert_eq!(Client::on(stream).ask(GET).await.text(), "ok");
            })
        });
        for served in served.collect::<Vec<_>>() {
            served.await.expect("it is served");
        }
        eventually("it has stopped", || site.teal.proxy().is_stopped()).await;
    }
}

/// Who says nothing, or half a word, must not hold the stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_handshake_does_not_hold_the_stop() {
    let site = Site::with(Authority::new(), |authority, dir| {
        let pair = authority.issue(&["a.test"]).write(dir.path(), "a");
        format!("header_timeout = \"1h\"\ntls = {{ certificates = [{pair}] }}\n")
    })
    .await;
    let mut silent = Client::connect(site.teal.listener).await;
    let mut half = Client::connect(site.teal.listener).await;
    half.send([22, 3, 1, 1, 0, 1]).await;
    eventually("both are there", || site.connections() == 2).await;
    site.teal.proxy().begin_stop();
    eventually("it has stopped", || site.teal.proxy().is_stopped()).await;
    assert!(silent.rest().await.0.is_empty() && half.rest().await.0.is_empty());
}
