//! The bridge by which other tests run over HTTP/2: that it does what it says, so that they show what they say.

use std::sync::atomic::Ordering;

use crate::support::bridge::Bridge;
use crate::support::by_hand::by_hand;
use crate::support::client::Client;
use crate::support::origin::{ok, read_chunked};
use crate::support::proxy::Builder;
use crate::support::{over, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

#[tokio::test]
async fn clients_of_a_bridge_share_connections() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let bridge = Bridge::start(teal.listener, over::runtime());
    let (mut clients, mut open) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let mut client = Client::connect(bridge.address).await;
        client.send(GET).await;
        clients.push(client);
        open.push(calls.next().await);
    }
    assert_eq!(teal.state().listeners()[0].1.connections.load(Ordering::SeqCst), 2);
    for (call, client) in open.iter_mut().zip(&mut clients) {
        call.send(ok("shared")).await;
        assert_eq!(client.answer().await.text(), "shared");
    }
}

#[tokio::test]
async fn what_is_broken_is_reset_by_a_bridge_in_both_directions() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let bridge = Bridge::start(teal.listener, over::runtime());
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked", "Connection: close"] {
        let mut client = Client::connect(bridge.address).await;
        client.send(GET).await;
        let mut call = calls.next().await;
        call.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nhalf\r\n")).await;
        client.head().await.expect("a head");
        socket2::SockRef::from(&call.wire.stream).set_linger(Some(std::time::Duration::ZERO)).expect("a TCP socket");
        drop(call);
        assert!(!client.rest().await.1, "{head}");
    }
    let mut client = Client::connect(bridge.address).await;
    client.send(GET).await;
    let mut call = calls.next().await;
    drop(client);
    call.gone().await;
}

#[tokio::test]
async fn a_bridge_carries_chunks_trailers_and_interim_answers() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let bridge = Bridge::start(teal.listener, over::runtime());
    let mut client = Client::connect(bridge.address).await;
    // Twice: what stands behind a message is the next one.
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let mut call = calls.next().await;
        for octet in b"5;x=y\r\nhello\r\n0\r\nx-sum: 5d41\r\n\r\n" {
            client.send([*octet]).await;
        }
        let request = soon("the request", read_chunked(&mut call.wire.stream, &mut call.wire.buffer)).await;
        assert_eq!(request.as_deref(), Some(&b"hello"[..]));
        call.send("HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n").await;
        assert_eq!(client.head().await.as_deref(), Some("HTTP/1.1 103 Early Hints\r\nlink: <a>"));
        let answer = "2\r\nho\r\n0\r\nx-sum: 98ed\r\n\r\n";
        call.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{answer}")).await;
        assert!(client.head().await.expect("a head").starts_with("HTTP/1.1 200 OK\r\n"));
        client.expect(answer).await;
        drop(call);
    }
}
