//! Header fields: what goes on as it is, what is dropped, what is set.

use crate::support::client::{Client, get};
use crate::support::origin::{Origin, Request, Requests};
use crate::support::proxy::{Builder, Teal};

const TRUSTED: &str = "trusted_proxies = [\"127.0.0.0/8\"]";

/// What the origin gets of one request to a proxy with these settings, and where that proxy listens.
async fn sent_on(builder: impl FnOnce(Builder) -> Builder, request: &str) -> (Request, Teal) {
    let (origin, requests): (Origin, Requests) = Origin::recording().await;
    let teal = builder(Builder::app(&[&origin])).start().await;
    let answer = Client::connect(teal.address).await.ask(request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let request = requests.lock().pop().expect("a request");
    (request, teal)
}

#[tokio::test]
async fn spelling_order_and_repetition_survive_both_ways() {
    let fields = "x-lower: 1\r\nX-UPPER: 2\r\nAccept: a/b\r\nx-lower: 3\r\nCookie: a=b;  c=\"d\"\r\nX-Empty: \r\n\
                  X-Latin: caf\u{e9}\r\nDate: now\r\n";
    let origin = Origin::http(move |request| async move {
        let seen = request.head.contains(fields.trim_end());
        format!("HTTP/1.1 299 Very Own Reason\r\n{fields}Server: x\r\nContent-Length: 4\r\n\r\n{seen}").into_bytes()
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let answer = Client::connect(teal.address).await.ask(request).await;
    assert_eq!(answer.text(), "true", "the request's fields go on as they are");
    let head = format!("HTTP/1.1 299 Very Own Reason\r\n{fields}Server: x\r\nContent-Length: 4");
    assert_eq!(answer.head, head, "and nothing is added to the answer");
}

#[tokio::test]
async fn fields_of_one_hop_stay_on_it() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Private\r\nKeep-Alive: timeout=5\r\n\
                   X-Private: 1\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: h2c\r\nX-Public: 2\r\n\r\n";
    let (request, _) = sent_on(|builder| builder, request).await;
    for name in ["connection", "keep-alive", "x-private", "proxy-connection", "te", "upgrade"] {
        assert_eq!(request.field(name), None, "{name}");
    }
    assert_eq!(request.field("x-public"), Some("2"));

    let origin = Origin::http(|_| async {
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nKeep-Alive: timeout=5\r\nX-Private: 1\r\n\
          Proxy-Connection: close\r\nUpgrade: h2c\r\nX-Public: 2\r\nContent-Length: 0\r\n\r\n"
            .to_vec()
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    assert_eq!(get(teal.address, "/").await.head, "HTTP/1.1 200 OK\r\nX-Public: 2\r\nContent-Length: 0");
}

#[tokio::test]
async fn a_client_that_takes_trailers_is_announced_to_the_origin() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: deflate, trailers\r\n\r\n";
    let (request, _) = sent_on(|builder| builder, request).await;
    assert_eq!((request.field("te"), request.field("connection")), (Some("trailers"), Some("TE")));
}

const FORWARDED: &str = "GET / HTTP/1.1\r\nHost: shop.test:81\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n\
                         x-forwarded-proto: https\r\nX-Forwarded-Host: other.test\r\nX-Forwarded-Port: 443\r\n\
                         Forwarded: for=1.2.3.4\r\nX-Request-Id: abc-123\r\n\r\n";

#[tokio::test]
async fn an_untrusted_peer_cannot_say_who_it_forwards_for() {
    let (request, teal) = sent_on(|builder| builder, FORWARDED).await;
    assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.field("x-forwarded-proto"), Some(teal.proto));
    assert_eq!(request.field("x-forwarded-host"), Some("shop.test:81"));
    assert_eq!(request.field("x-forwarded-port"), Some(&*teal.listener.port().to_string()));
    assert_eq!(request.field("forwarded"), None);
    let id = request.field("x-request-id").expect("an id");
    assert!(id.len() == 32 && id != "abc-123", "{id}");
}

#[tokio::test]
async fn a_trusted_peer_is_believed_and_appended_to() {
    let (request, _) = sent_on(|builder| builder.listener(TRUSTED), FORWARDED).await;
    assert_eq!(request.field("x-forwarded-for"), Some("1.2.3.4, 5.6.7.8, 127.0.0.1"));
    assert_eq!(request.field("x-forwarded-proto"), Some("https"));
    assert_eq!(request.field("x-forwarded-host"), Some("other.test"));
    assert_eq!(request.field("x-forwarded-port"), Some("443"));
    assert_eq!(request.field("forwarded"), Some("for=1.2.3.4"));
    assert_eq!(request.field("x-request-id"), Some("abc-123"));
}

#[tokio::test]
async fn a_trusted_peer_that_says_nothing_gets_the_usual_fields() {
    let (request, teal) = sent_on(|b| b.listener(TRUSTED), "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: \r\n\r\n").await;
    assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.field("x-forwarded-proto"), Some(teal.proto));
    assert_eq!(request.field("x-forwarded-host"), Some("a"));
    assert_eq!(request.field("x-forwarded-port"), Some(&*teal.listener.port().to_string()));
    assert_eq!(request.field("x-request-id").map(str::len), Some(32));
}

#[tokio::test]
async fn every_request_has_an_id_of_its_own() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    for _ in 0..3 {
        client.get("/").await;
    }
    let ids: Vec<_> = requests.lock().iter().map(|request| request.field("x-request-id").unwrap().to_owned()).collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
}

#[tokio::test]
async fn the_host_is_preserved_replaced_or_fixed() {
    let request = "GET / HTTP/1.1\r\nHost: shop.test:81\r\n\r\n";
    let (preserved, _) = sent_on(|builder| builder, request).await;
    assert_eq!(preserved.field("host"), Some("shop.test:81"));

    let (fixed, _) = sent_on(|builder| builder.service("host = \"api.internal:8080\""), request).await;
    assert_eq!(fixed.field("host"), Some("api.internal:8080"));
    assert_eq!(fixed.field("x-forwarded-host"), Some("shop.test:81"));

    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).service("host = \"upstream\"").start().await;
    Client::connect(teal.address).await.ask(request).await;
    assert_eq!(requests.lock()[0].field("host"), Some(&*origin.address.to_string()));
}

#[tokio::test]
async fn an_absolute_target_names_the_host_and_is_sent_on_as_a_path() {
    for (target, path) in [("http://shop.test/a?b=c", "/a?b=c"), ("HTTPS://shop.test", "/")] {
        let (request, _) =
            sent_on(|builder| builder, &format!("GET {target} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).await;
        assert_eq!(request.line(), format!("GET {path} HTTP/1.1"));
        assert_eq!(request.field("host"), Some("shop.test"));
    }
}

#[tokio::test]
async fn the_color_shows_only_when_asked_for() {
    let origin = Origin::saying("hello").await;
    let teal = Builder::app(&[&origin]).start().await;
    let answer = get(teal.address, "/").await;
    assert_eq!((answer.field("x-teal-color"), answer.field("x-teal-generation")), (None, None));

    let teal = Builder::app(&[&origin]).service("expose_color = true").start().await;
    let answer = get(teal.address, "/").await;
    assert_eq!((answer.field("x-teal-color"), answer.field("x-teal-generation")), (Some("blue"), Some("1")));
}
