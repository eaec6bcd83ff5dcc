//! TLS and HTTP/2 to the endpoints: who is believed, what is spoken, and what may be sent elsewhere.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::{Builder as H2Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Response;
use teal::config::{self, Color};
use teal::upstream::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use support::by_hand::{Calls, by_hand};
use support::client::{Client, get};
use support::frames::{self, Frame};
use support::origin::Origin;
use support::proxy::{Builder, Teal};
use support::tls::{Authority, Pair};
use support::{eventually, scratch, soon};

/// A proxy that ends TLS with `pair`, as an origin.
async fn secure_origin(origin: &Origin, pair: &Pair, keys: &str) -> Teal {
    let dir = scratch();
    let tls = format!("tls = {{ certificates = [{}]{keys} }}\n", pair.write(dir.path(), "origin"));
    let teal = Builder::app(&[origin]).listener(&tls).start_unprobed(dir);
    teal.probed().await;
    teal
}

/// A proxy whose one endpoint is reached as `keys` of its service say.
async fn proxy(endpoint: SocketAddr, keys: &str) -> Teal {
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nblue = [\"{endpoint}\"]\n\
         health = {{ path = \"/health\", interval = \"1h\", timeout = \"15s\" }}\nqueue_timeout = \"0s\"\n{keys}\n"
    );
    Builder::new(&services).start().await
}

fn health(teal: &Teal) -> (Health, String) {
    let snapshot = teal.state().load();
    let endpoint = &snapshot.services[0].pools[Color::Blue].endpoints()[0];
    (endpoint.health(), endpoint.last_probe().and_then(|probe| probe.error).unwrap_or_default())
}

/// Writes `text` where a config can name it.
fn file(dir: &std::path::Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("the test can write");
    format!("{path:?}")
}

#[tokio::test]
async fn an_endpoint_must_be_who_the_configuration_says() {
    let (ours, other) = (Authority::new(), Authority::new());
    let origin = Origin::saying("secret").await;
    let by_name = secure_origin(&origin, &ours.issue(&["api.internal"]), "").await;
    let by_address = secure_origin(&origin, &ours.issue(&["127.0.0.1"]), "").await;
    let dir = scratch();
    let (good, bad) = (file(dir.path(), "good.pem", &ours.pem()), file(dir.path(), "bad.pem", &other.pem()));
    let named = by_name.address;
    for (endpoint, keys, is_believed) in [
        (named, format!("{{ ca = {good}, server_name = \"api.internal\" }}"), true),
        (named, format!("{{ ca = {good}, server_name = \"other.internal\" }}"), false),
        (named, format!("{{ ca = {good} }}"), false),
        (named, format!("{{ ca = {bad}, server_name = \"api.internal\" }}"), false),
        (named, "{ insecure = true }".to_owned(), true),
        (by_address.address, format!("{{ ca = {good} }}"), true),
    ] {
        for protocol in ["http1", "h2"] {
            let teal = proxy(endpoint, &format!("protocol = \"{protocol}\"\nupstream_tls = {keys}")).await;
            let answer = get(teal.address, "/").await;
            let (health, error) = health(&teal);
            if is_believed {
                assert_eq!((answer.status, answer.text()), (200, "secret"), "{keys} {protocol}");
                assert_eq!(health, Health::Healthy, "{keys} {protocol}: {error}");
            } else {
                assert_eq!(answer.status, 503, "{keys} {protocol}");
                assert!(health == Health::Unhealthy && error.contains("certificate"), "{keys} {protocol}: {error}");
            }
        }
    }
}

#[test]
fn each_authority_of_endpoints_must_be_one() {
    let dir = scratch();
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let problems = |pem: &str| {
        let text = format!(
            "[[listeners]]\nlisten = \"127.0.0.1:0\"\n[services.a]\nblue = [\"127.0.0.1:1\"]\n\
             upstream_tls = {{ ca = {} }}\n",
            file(dir.path(), "ca.pem", pem)
        );
        config::parse(&text, std::path::Path::new("t.toml")).err().map(|problems| problems.to_string())
    };
    let good = Authority::new().pem();
    assert_eq!(problems(&good), None);
    assert!(problems(&(good + garbage)).is_some_and(|problems| problems.contains("ca.pem")));
}

#[test]
fn what_we_show_must_be_a_certificate_and_its_key() {
    let (authority, dir) = (Authority::new(), scratch());
    let [own, other] = [(); 2].map(|()| authority.issue(&["teal"]));
    let problems = |cert: &str, key: &str| {
        let (cert, key) = (file(dir.path(), "own.pem", cert), file(dir.path(), "own.key", key));
        let text = format!(
            "[[listeners]]\nlisten = \"127.0.0.1:0\"\n[services.a]\nblue = [\"127.0.0.1:1\"]\n\
             upstream_tls = {{ insecure = true, cert = {cert}, key = {key} }}\n"
        );
        config::parse(&text, std::path::Path::new("t.toml")).err().map(|problems| problems.to_string())
    };
    assert_eq!(problems(&own.cert, &own.key), None);
    let cases = [
        (&*own.cert, &*other.key, "expected the key of the certificate in"),
        ("nothing", &own.key, "own.pem (no certificate in it)"),
        (&own.cert, "nothing", "own.key (no private key in it that can be read)"),
    ];
    for (cert, key, expected) in cases {
        let found = problems(cert, key).expect("a problem");
        assert!(found.contains(expected), "{found}");
    }
}

#[tokio::test]
async fn an_endpoint_may_ask_who_we_are() {
    let authority = Authority::new();
    let dir = scratch();
    let ca = file(dir.path(), "ca.pem", &authority.pem());
    let origin = Origin::saying("for members").await;
    let keys = format!(", client_ca = {ca}");
    let secure = secure_origin(&origin, &authority.issue(&["127.0.0.1"]), &keys).await;
    let own = authority.issue(&["teal"]);
    let (cert, key) = (file(dir.path(), "own.pem", &own.cert), file(dir.path(), "own.key", &own.key));
    let known = proxy(secure.address, &format!("upstream_tls = {{ ca = {ca}, cert = {cert}, key = {key} }}")).await;
    assert_eq!(get(known.address, "/").await.text(), "for members");
    let unknown = proxy(secure.address, &format!("upstream_tls = {{ ca = {ca} }}")).await;
    assert_eq!(get(unknown.address, "/").await.status, 503);
}

/// An endpoint that speaks HTTP/2 as `serve` says, on one connection after the other.
async fn http2<F, Fut>(streams: u32, serve: F) -> SocketAddr
where
    F: Fn(usize, Connection<TcpStream, Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            let handshake = H2Builder::new().max_concurrent_streams(streams).handshake(stream);
            // A probe by TCP says nothing, and is no such connection.
            if let Ok(connection) = handshake.await {
                tokio::spawn(serve(number, connection));
                number += 1;
            }
        }
    });
    address
}

fn answer(mut respond: SendResponse<Bytes>, text: &'static str) {
    let mut body = respond.send_response(Response::new(()), false).expect("an open stream");
    body.send_data(Bytes::from_static(text.as_bytes()), true).expect("an open stream");
}

/// Two proxies in a row with HTTP/2 between them, before an origin whose octets the test decides.
async fn chain() -> (Teal, (Teal, Origin), Calls) {
    let (origin, calls) = by_hand().await;
    let last = Builder::app(&[&origin]).start().await;
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n\
         [services.app]\nprotocol = \"h2c\"\nblue = [\"{}\"]\nhealth = {{ interval = \"1h\" }}\n",
        last.address
    );
    (Builder::new(&services).start().await, (last, origin), calls)
}

#[tokio::test]
async fn bodies_trailers_and_statuses_pass_both_ways() {
    let (teal, _last, mut calls) = chain().await;
    let mut client = Client::connect(teal.address).await;
    client.send("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    client.send("0\r\nx-sum: 1\r\n\r\n").await;
    let mut call = calls.next().await;
    assert_eq!(call.field("transfer-encoding"), Some("chunked"));
    call.expect("5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n").await;
    call.send("HTTP/1.1 201 Created\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n3\r\nbye\r\n0\r\nx-end: 2\r\n\r\n")
        .await;
    let head = soon("the head", client.head()).await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 201 ") && head.contains("x-a: b"), "{head}");
    client.expect("3\r\nbye\r\n0\r\nx-end: 2\r\n\r\n").await;
    for (request, answer, status, body) in [
        ("HEAD /", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n", 200, ""),
        ("GET /", "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", 204, ""),
        ("GET /", "HTTP/1.1 304 Not Modified\r\nConnection: close\r\nETag: \"x\"\r\n\r\n", 304, ""),
        ("GET /", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 200, ""),
        ("GET /", "HTTP/1.1 500 Oh\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno", 500, "no"),
    ] {
        client.send(format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        calls.next().await.send(answer).await;
        let is_head = request.starts_with("HEAD");
        let answer = if is_head { client.answer_to_head().await } else { client.answer().await };
        assert_eq!((answer.status, answer.text()), (status, body), "{request}");
    }
}

#[tokio::test]
async fn half_an_answer_never_looks_whole() {
    let (teal, _last, mut calls) = chain().await;
    for answer in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbye\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbye",
    ] {
        let mut client = Client::connect(teal.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut call = calls.next().await;
        call.send(answer).await;
        soon("the head", client.head()).await.expect("a head");
        drop(call);
        let (rest, _) = soon("the end", client.rest()).await;
        assert!(!rest.ends_with(b"0\r\n\r\n") && rest.len() < 10, "{:?}", String::from_utf8_lossy(&rest));
    }
}

#[tokio::test]
async fn a_websocket_passes_http2_to_the_endpoint() {
    let (teal, _last, mut calls) = chain().await;
    let mut client = Client::connect(teal.address).await;
    client.send(frames::REQUEST).await;
    let mut call = calls.next().await;
    let key = call.field("sec-websocket-key").expect("a key").to_owned();
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    call.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ))
    .await;
    let head = soon("the head", client.head()).await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client.send(Frame::text("ping").masked().by_client()).await;
    let said = soon("a message", frames::read(&mut call.wire)).await;
    assert_eq!(said.payload, b"ping");
    call.send(Frame::text("pong").by_server()).await;
    let said = soon("a message", frames::read(&mut client)).await;
    assert_eq!(said.payload, b"pong");
}

/// Requests through a proxy of one worker that has not spoken to the endpoint before; each is answered with `text`.
async fn ask_at_once(endpoint: &impl std::fmt::Display, requests: usize, text: &str) {
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nprotocol = \"h2c\"\n\
         connect_timeout = \"1h\"\nblue = [\"{endpoint}\"]\nhealth = {{ interval = \"1h\" }}\n"
    );
    let teal = Builder::new(&services).workers(1).start().await;
    let asking = (0..requests).map(|_| tokio::spawn(get(teal.address, "/")));
    for asked in asking.collect::<Vec<_>>() {
        assert_eq!(soon("an answer", asked).await.expect("no panic").text(), text);
    }
}

#[tokio::test]
async fn requests_share_connections_up_to_what_the_endpoint_takes() {
    const REQUESTS: usize = 12;
    const STREAMS: u32 = 4;
    let connections = Arc::new(AtomicUsize::new(0));
    let (all_here, here) = (Arc::new(tokio::sync::Barrier::new(REQUESTS)), connections.clone());
    let endpoint = http2(STREAMS, move |_, mut connection| {
        let (all_here, here) = (all_here.clone(), here.clone());
        async move {
            here.fetch_add(1, Ordering::SeqCst);
            while let Some(Ok((_, respond))) = connection.accept().await {
                let all_here = all_here.clone();
                tokio::spawn(async move {
                    all_here.wait().await;
                    answer(respond, "all here");
                });
            }
        }
    })
    .await;
    ask_at_once(&endpoint, REQUESTS, "all here").await;
    // The probe by TCP never speaks.
    let used = connections.load(Ordering::SeqCst);
    let needed = REQUESTS / STREAMS as usize;
    assert!((needed..needed + 4).contains(&used), "{used} connections");
}

/// As behind every switch: nobody has spoken to the endpoint before.
#[tokio::test]
async fn a_burst_at_a_cold_endpoint_opens_few_connections() {
    const REQUESTS: usize = 200;
    let connections = Arc::new(AtomicUsize::new(0));
    let here = connections.clone();
    let endpoint = http2(100, move |_, mut connection| {
        here.fetch_add(1, Ordering::SeqCst);
        async move {
            while let Some(Ok((_, respond))) = connection.accept().await {
                answer(respond, "here");
            }
        }
    })
    .await;
    ask_at_once(&endpoint, REQUESTS, "here").await;
    let used = connections.load(Ordering::SeqCst);
    assert!(used <= REQUESTS / 10, "{used} connections");
}

/// RFC 9113 §8.7: what was refused unseen may be sent elsewhere, even what must not be done twice.
#[tokio::test]
async fn what_is_refused_unseen_is_sent_again() {
    let refusals = Arc::new(AtomicUsize::new(0));
    let counted = refusals.clone();
    let endpoint = http2(100, move |_, mut connection| {
        let refusals = counted.clone();
        async move {
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if refusals.fetch_add(1, Ordering::SeqCst) == 0 {
                    respond.send_reset(Reason::REFUSED_STREAM);
                } else {
                    answer(respond, "second");
                }
            }
        }
    })
    .await;
    let second = http2(100, |_, mut connection| async move {
        while let Some(Ok((_, respond))) = connection.accept().await {
            answer(respond, "second");
        }
    })
    .await;
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nprotocol = \"h2c\"\n\
         balance = \"round_robin\"\nblue = [\"{endpoint}\", \"{second}\"]\nhealth = {{ interval = \"1h\" }}\n"
    );
    let teal = Builder::new(&services).workers(1).start().await;
    let mut client = Client::connect(teal.address).await;
    for _ in 0..4 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!((answer.status, answer.text()), (200, "second"));
    }
    assert!(refusals.load(Ordering::SeqCst) > 0);
}

/// Says what it was sent, trailers and all; or refuses the request when so many octets of its body have come.
async fn echo(mut body: RecvStream, mut respond: SendResponse<Bytes>, refused_at: Option<usize>) {
    let mut seen = Vec::new();
    while refused_at.is_none_or(|octets| seen.len() < octets) {
        let Some(Ok(data)) = body.data().await else { break };
        let _ = body.flow_control().release_capacity(data.len());
        seen.extend_from_slice(&data);
    }
    if refused_at.is_some() {
        return respond.send_reset(Reason::REFUSED_STREAM);
    }
    let trailers = body.trailers().await.expect("a whole request").unwrap_or_default();
    trailers.values().for_each(|value| seen.extend_from_slice(value.as_bytes()));
    let mut body = respond.send_response(Response::new(()), false).expect("an open stream");
    body.send_data(seen.into(), true).expect("an open stream");
}

/// A proxy with two endpoints, of whose requests every other one is refused when so many octets of its body have come,
/// and the count of those requests.
async fn refusing(octets: usize) -> (Teal, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let endpoint = || {
        let asked = asked.clone();
        http2(100, move |_, mut connection| {
            let asked = asked.clone();
            async move {
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let is_refused = asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
                    tokio::spawn(echo(request.into_body(), respond, is_refused.then_some(octets)));
                }
            }
        })
    };
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nprotocol = \"h2c\"\n\
         host = \"upstream\"\nblue = [\"{}\", \"{}\"]\nhealth = {{ interval = \"1h\" }}\n",
        endpoint().await,
        endpoint().await
    );
    (Builder::new(&services).workers(1).start().await, asked)
}

#[tokio::test]
async fn an_upload_that_is_refused_before_its_body_goes_is_sent_again() {
    let (teal, asked) = refusing(0).await;
    let mut client = Client::connect(teal.address).await;
    let length = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (head, body, seen) in [
        (length, "hello", "hello"),
        (chunked, "5\r\nhello\r\n0\r\n\r\n", "hello"),
        (chunked, "2\r\nhe\r\n3\r\nllo\r\n0\r\nx-sum: 1\r\n\r\n", "hello1"),
        (chunked, "0\r\n\r\n", ""),
    ] {
        for comes_at_once in [true, false] {
            let before = asked.load(Ordering::SeqCst);
            client.send(head).await;
            if !comes_at_once {
                // Refused, and sent elsewhere, all without a body.
                eventually("it is sent again", || asked.load(Ordering::SeqCst) == before + 2).await;
            }
            client.send(body).await;
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.text()), (200, seen), "{body}, {comes_at_once}");
            assert_eq!(asked.load(Ordering::SeqCst), before + 2);
        }
    }
}

#[tokio::test]
async fn an_upload_that_has_gone_with_its_head_is_still_there_to_be_sent_again() {
    let (teal, asked) = refusing(5).await;
    let mut client = Client::connect(teal.address).await;
    for _ in 0..4 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
        assert_eq!((answer.status, answer.text()), (200, "hello"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn an_upload_of_which_something_is_gone_is_not_sent_again() {
    let (teal, asked) = refusing(100_000).await;
    for method in ["POST", "PUT"] {
        asked.store(0, Ordering::SeqCst);
        let mut client = Client::connect(teal.address).await;
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n")).await;
        client.send(vec![b'x'; 150_000]).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, asked.load(Ordering::SeqCst)), (502, 1), "{method}");
    }
}

/// An endpoint that leaves at each request, and says that it has looked at none (RFC 9113 §6.8); and how often it did.
async fn leaving() -> (SocketAddr, Arc<AtomicUsize>) {
    const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let left = Arc::new(AtomicUsize::new(0));
    let count = left.clone();
    let serve = |mut stream: TcpStream, count: Arc<AtomicUsize>| async move {
        stream.read_exact(&mut [0; 24]).await?;
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let [a, b, c, kind, flags, ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            stream.read_exact(&mut payload).await?;
            match (kind, flags & 1) {
                (1, _) => {
                    count.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(&GOAWAY).await?;
                }
                // SETTINGS and PING are acknowledged.
                (4, 0) => stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await?,
                (6, 0) => stream.write_all(&[&[0, 0, 8, 6, 1, 0, 0, 0, 0], &payload[..]].concat()).await?,
                _ => {}
            }
        }
        #[expect(unreachable_code, reason = "names the error")]
        std::io::Result::Ok(())
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, count.clone()));
        }
    });
    (address, left)
}

#[tokio::test]
async fn what_an_endpoint_leaves_without_looking_at_is_sent_elsewhere() {
    let (leaving, left) = leaving().await;
    let staying = http2(100, |_, mut connection| async move {
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(echo(request.into_body(), respond, None));
        }
    })
    .await;
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nprotocol = \"h2c\"\n\
         balance = \"round_robin\"\nblue = [\"{leaving}\", \"{staying}\"]\nhealth = {{ interval = \"1h\" }}\n"
    );
    let teal = Builder::new(&services).workers(1).start().await;
    let mut client = Client::connect(teal.address).await;
    for _ in 0..4 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
        assert_eq!((answer.status, answer.text()), (200, "hello"));
    }
    assert!(left.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn an_endpoint_that_says_goodbye_gets_no_further_request_on_that_connection() {
    let endpoint = http2(100, |number, mut connection| async move {
        let mut served = 0;
        while let Some(Ok((_, respond))) = connection.accept().await {
            served += 1;
            answer(respond, if number == 0 { "first" } else { "later" });
            if number == 0 && served == 3 {
                connection.graceful_shutdown();
            }
        }
    })
    .await;
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nprotocol = \"h2c\"\n\
         blue = [\"{endpoint}\"]\nhealth = {{ interval = \"1h\" }}\n"
    );
    let teal = Builder::new(&services).workers(1).start().await;
    let mut client = Client::connect(teal.address).await;
    let mut seen = Vec::new();
    for _ in 0..20 {
        let answer = client.get("/").await;
        assert_eq!(answer.status, 200, "after {seen:?}");
        seen.push(answer.text().to_owned());
    }
    assert_eq!(seen.last().map(String::as_str), Some("later"), "{seen:?}");
}

#[tokio::test]
async fn an_endpoint_that_resets_its_answer_breaks_it() {
    let endpoint = http2(100, |_, mut connection| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(Response::new(()), false).expect("an open stream");
            body.send_data(Bytes::from_static(b"half"), false).expect("an open stream");
            tokio::spawn(async move {
                // Kept until the proxy has had time for the data: a reset overtakes what waits.
                futures_util::future::poll_fn(|cx| {
                    body.reserve_capacity(1);
                    body.poll_capacity(cx)
                })
                .await;
                body.send_reset(Reason::INTERNAL_ERROR);
            });
        }
    })
    .await;
    let teal = proxy_unprobed(endpoint).await;
    let mut client = Client::connect(teal.address).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (rest, _) = soon("the end", client.rest()).await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
}

/// How an endpoint is spoken to is part of what it is: nothing of it is used on when that changes.
#[tokio::test]
async fn a_reload_that_turns_tls_on_uses_no_plain_connection_any_more() {
    let authority = Authority::new();
    let origin = Origin::saying("origin").await;
    let secure = secure_origin(&origin, &authority.issue(&["127.0.0.1"]), "").await;
    let dir = scratch();
    let ca = file(dir.path(), "ca.pem", &authority.pem());
    let app = |keys: &str| {
        Builder::new(&format!(
            "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nblue = [\"{}\"]\n\
             health = {{ interval = \"1h\", timeout = \"15s\" }}\nretries = 0\n{keys}\n",
            secure.address
        ))
    };
    let teal = app("").start_watching().await;
    assert_eq!(get(teal.address, "/").await.status, 400, "plain text on a TLS port");
    let secured = app(&format!("upstream_tls = {{ ca = {ca} }}"));
    secured.write(teal.dir());
    eventually("the reload is applied", || teal.state().load().services[0].config.upstream_tls.is_some()).await;
    teal.probed().await;
    assert_eq!(get(teal.address, "/").await.text(), "origin");
}

#[test]
fn a_protocol_needs_the_transport_that_it_runs_on() {
    let problems = |keys: &str| {
        let text = format!("[[listeners]]\nlisten = \"127.0.0.1:0\"\n[services.a]\nblue = [\"127.0.0.1:1\"]\n{keys}\n");
        config::parse(&text, std::path::Path::new("t.toml")).err().map(|problems| problems.to_string())
    };
    assert!(problems("protocol = \"h2\"").is_some_and(|problem| problem.contains("without upstream_tls")));
    let both = problems("protocol = \"h2c\"\nupstream_tls = { insecure = true }");
    assert!(both.is_some_and(|problem| problem.contains("beside upstream_tls")));
    assert_eq!(problems("protocol = \"h2c\""), None);
    assert_eq!(problems("protocol = \"h2\"\nupstream_tls = { insecure = true }"), None);
}

/// What a client asks for must neither wait for what never comes nor make an endpoint look ill.
#[tokio::test]
async fn what_http2_cannot_say_is_refused_at_once_and_no_endpoint_is_blamed() {
    let serve = |_, mut connection: Connection<TcpStream, Bytes>| async move {
        while let Some(Ok((_, respond))) = connection.accept().await {
            answer(respond, "ok");
        }
    };
    let (first, second) = (http2(100, serve).await, http2(100, serve).await);
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nprotocol = \"h2c\"\n\
         blue = [\"{first}\", \"{second}\"]\nhealth = {{ interval = \"1h\" }}\n\
         outlier = {{ consecutive_errors = 1, eject = \"5m\" }}\n"
    );
    let teal = Builder::new(&services).start().await;
    let ask = |request: Vec<u8>| async move {
        let mut client = Client::connect(teal.address).await;
        client.send(request).await;
        soon("an answer", client.answer()).await.status
    };
    for host in ["", "a%20b", "a%"] {
        let status = ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into()).await;
        assert_eq!(status, 400, "host {host:?}");
    }
    assert_eq!(ask(b"GET / HTTP/1.0\r\n\r\n".to_vec()).await, 400);
    assert_eq!(ask(frames::REQUEST.into()).await, 501, "the endpoint takes no extended CONNECT");
    for octet in 0x21..=0xff_u8 {
        for start in ["/", "/?"] {
            let request = [b"GET ", start.as_bytes(), &[octet], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
            let status = ask(request).await;
            assert!(status == 200 || status == 400, "{status} for {octet:#x} behind {start}");
        }
        if octet.is_ascii_punctuation() {
            let host = [b"GET / HTTP/1.1\r\nHost: a", &[octet][..], b"b\r\n\r\n"].concat();
            let status = ask(host).await;
            assert!(status == 200 || status == 400, "{status} for a host with {octet:#x}");
        }
    }
    let snapshot = teal.state().load();
    let endpoints = snapshot.services[0].pools[Color::Blue].endpoints();
    assert!(endpoints.iter().all(|endpoint| !endpoint.is_ejected()));
}

#[tokio::test]
async fn connections_to_an_endpoint_that_takes_no_request_are_not_kept() {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = open.clone();
    let endpoint = http2(0, move |_, mut connection| {
        let open = counted.clone();
        async move {
            open.fetch_add(1, Ordering::SeqCst);
            while connection.accept().await.is_some() {}
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let teal = proxy_unprobed(endpoint).await;
    for _ in 0..10 {
        assert_eq!(get(teal.address, "/").await.status, 502);
    }
    eventually("all are closed", || open.load(Ordering::SeqCst) == 0).await;
}

/// A peer that is gone without a word, and the connection looks as if it stood.
#[tokio::test]
async fn a_connection_on_which_nothing_comes_any_more_gets_no_further_request() {
    let endpoint = http2(100, |number, mut connection| async move {
        let mut asked = 0;
        while let Some(Ok((_, respond))) = connection.accept().await {
            asked += 1;
            if number == 0 && asked == 2 {
                // From now on nothing is read or said.
                std::future::pending::<()>().await;
            }
            answer(respond, if number == 0 { "first" } else { "later" });
        }
    })
    .await;
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nprotocol = \"h2c\"\nresponse_timeout = \"3s\"\n\
         blue = [\"{endpoint}\"]\nhealth = {{ interval = \"1h\" }}\nretries = 0\n"
    );
    let teal = Builder::new(&services).workers(1).start().await;
    let mut client = Client::connect(teal.address).await;
    assert_eq!(client.get("/").await.text(), "first");
    let later = async {
        loop {
            let answer = client.get("/").await;
            if answer.text() == "later" {
                return;
            }
            assert_eq!(answer.status, 504);
        }
    };
    soon("another connection", later).await;
}

/// RFC 9113 §6.8: what the last stream of a GOAWAY covers may have been done.
#[tokio::test]
async fn what_may_have_been_done_before_a_goodbye_is_not_done_again() {
    let done = Arc::new(AtomicUsize::new(0));
    let serve = |done: Arc<AtomicUsize>| {
        move |_, mut connection: Connection<TcpStream, Bytes>| {
            let done = done.clone();
            async move {
                if let Some(Ok(_unanswered)) = connection.accept().await {
                    done.fetch_add(1, Ordering::SeqCst);
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                    let _ = futures_util::future::poll_fn(|cx| connection.poll_closed(cx)).await;
                }
            }
        }
    };
    let (first, second) = (http2(100, serve(done.clone())).await, http2(100, serve(done.clone())).await);
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nprotocol = \"h2c\"\nretries = 3\n\
         blue = [\"{first}\", \"{second}\"]\nhealth = {{ interval = \"1h\" }}\noutlier = {{ consecutive_errors = 0 }}\n"
    );
    let teal = Builder::new(&services).start().await;
    for times in 1..=3 {
        let mut client = Client::connect(teal.address).await;
        let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!((answer.status, done.load(Ordering::SeqCst)), (502, times));
    }
}

#[tokio::test]
async fn interim_answers_of_an_endpoint_come_before_the_final_one_and_are_not_endless() {
    let endpoint = http2(100, |_, mut connection| async move {
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let count = if request.uri().path() == "/endless" { 100 } else { 2 };
            for number in 0..count {
                let early = Response::builder().status(103).header("x-number", number).body(()).expect("a head");
                respond.send_informational(early).expect("an open stream");
            }
            answer(respond, "final");
        }
    })
    .await;
    let teal = proxy_unprobed(endpoint).await;
    let mut client = Client::connect(teal.address).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    for number in ["x-number: 0", "x-number: 1"] {
        let head = soon("an early head", client.head()).await.expect("a head");
        assert!(head.starts_with("HTTP/1.1 103 ") && head.contains(number), "{head}");
    }
    assert_eq!(soon("the answer", client.answer()).await.text(), "final");
    let mut client = Client::connect(teal.address).await;
    client.send("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (all, _) = soon("the end", client.rest()).await;
    assert!(!String::from_utf8_lossy(&all).contains("final"), "{}", String::from_utf8_lossy(&all));
}

async fn proxy_unprobed(endpoint: SocketAddr) -> Teal {
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nprotocol = \"h2c\"\n\
         blue = [\"{endpoint}\"]\nhealth = {{ interval = \"1h\" }}\nretries = 0\n"
    );
    Builder::new(&services).start().await
}
