//! What teal itself answers over HTTP/2: refusals, limits, and what TLS adds.

use std::sync::Arc;

use http::Request;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::good::{self, Good, request};
use crate::raw::{self, END_HEADERS, END_STREAM, HEADERS, NO_ERROR, Outcome, Raw, block, frame, pseudo};
use crate::support::by_hand::by_hand;
use crate::support::origin::Origin;
use crate::support::proxy::{Builder, Teal};
use crate::support::{eventually, soon};

#[tokio::test]
async fn replies_of_our_own_are_whole_and_say_their_id() {
    let (origin, refusing) = (Origin::saying("ok").await, Origin::refusing());
    let services = format!(
        "[[routes]]\npath = \"/a\"\nservice = \"a\"\n[services.a]\nblue = [{}]\n\
         [[routes]]\npath = \"/down\"\nservice = \"down\"\n[services.down]\nqueue_timeout = \"10ms\"\nblue = [{}]\n",
        origin.toml(),
        refusing.toml()
    );
    let teal = Builder::new(&services).start().await;
    let mut client = Good::connect(teal.address).await;
    for (path, status) in
        [("/a", 200), ("/nowhere", 404), ("/down", 503), ("/.well-known/teal/ready", 200), ("/a", 200)]
    {
        let answer = client.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        if status >= 400 {
            assert!(answer.field("x-request-id").is_some() && answer.text().starts_with(&status.to_string()));
            assert_eq!(answer.field("connection"), None);
        }
    }
    // In the form that is asked for, and without a body where there is none.
    let asked = request("GET", "/nowhere").header("accept", "application/json").body(()).expect("a request");
    let answer = client.ask(asked, b"").await;
    assert_eq!(answer.field("content-type"), Some("application/problem+json"));
    let answer = client.ask(request("HEAD", "/nowhere").body(()).expect("a request"), b"").await;
    assert_eq!((answer.status, answer.body.len()), (404, 0));
    assert_ne!(answer.field("content-length"), Some("0"));
}

/// RFC 9113 §8.1: it need not take the rest of a body, and says so.
#[tokio::test]
async fn a_refused_body_is_answered_before_it_has_come() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener("request_body = \"1KiB\"\n").start().await;
    let mut client = Raw::connect(teal.address).await;
    let announced = [pseudo("POST", "/"), block(&[("content-length", "1025")])].concat();
    let (data, last) = ([b'x'; 600], frame(raw::DATA, END_STREAM, 5, [b'x'; 400]));
    let upload = [raw::post(3, "/"), frame(raw::DATA, 0, 3, data), frame(raw::DATA, 0, 3, data)].concat();
    let small = [raw::post(5, "/"), frame(raw::DATA, 0, 5, data), last].concat();
    client.send([frame(HEADERS, END_HEADERS, 1, announced), upload, small].concat()).await;
    let mut outcomes = std::collections::BTreeMap::new();
    let mut statuses = std::collections::BTreeMap::new();
    while outcomes.len() < 3 {
        let frame = client.next().await.expect("the connection goes on");
        match frame.kind {
            HEADERS => drop(statuses.insert(frame.stream, frame.status())),
            raw::RST_STREAM => drop(outcomes.insert(frame.stream, frame.code())),
            raw::DATA if frame.stream == 5 && frame.flags & END_STREAM != 0 => drop(outcomes.insert(5, NO_ERROR)),
            _ => {}
        }
    }
    assert_eq!(statuses, [(1, 413), (3, 413), (5, 200)].into());
    assert_eq!(outcomes, [(1, NO_ERROR), (3, NO_ERROR), (5, NO_ERROR)].into());
    assert_eq!(requests.lock().len(), 1, "the origin saw no other request to its end");
}

#[tokio::test]
async fn a_head_beyond_the_limits_is_431() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener("request_head = \"4KiB\"\nrequest_headers = 20\n");
    let teal = teal.start().await;
    let mut client = Good::connect(teal.address).await;
    let fields = |count: usize, value: &str| {
        let mut asked = request("GET", "/");
        for n in 0..count {
            asked = asked.header(format!("x-{n}"), value);
        }
        asked.body(()).expect("a request")
    };
    let crumbs = |count: usize| {
        let mut asked = request("GET", "/");
        for _ in 0..count {
            asked = asked.header("cookie", "a");
        }
        asked.body(()).expect("a request")
    };
    for (name, asked, status) in [
        ("few fields", fields(18, "x"), 200),
        ("many fields", fields(21, "x"), 431),
        ("a long field", fields(1, &"x".repeat(3_000)), 200),
        ("too long a field", fields(1, &"x".repeat(4_096)), 431),
        ("long fields", fields(5, &"x".repeat(1_000)), 431),
        ("many crumbs", crumbs(95), 200),
        ("too many crumbs", crumbs(110), 431),
    ] {
        requests.lock().clear();
        let answer = client.ask(asked, b"").await;
        assert_eq!((answer.status, requests.lock().len()), (status, usize::from(status == 200)), "{name}");
    }
    // A request line of more than 16 KiB has a status of its own.
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Good::connect(teal.address).await;
    assert_eq!(client.get(&format!("/{}", "x".repeat(17_000))).await.status, 414);
    assert_eq!(client.get(&format!("/{}", "x".repeat(15_000))).await.status, 200);
}

#[tokio::test]
async fn a_request_that_breaks_off_in_its_body_ends_in_time() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener("body_timeout = \"200ms\"\n").start().await;
    let mut client = Raw::connect(teal.address).await;
    client.send([raw::post(1, "/"), frame(raw::DATA, 0, 1, "half")].concat()).await;
    let outcome = client.outcome(1).await;
    assert_eq!(outcome.status(), 408, "{outcome:?}");
    assert!(client.settle().await, "the connection goes on");
    assert!(requests.lock().is_empty());
}

#[tokio::test]
async fn each_request_counts_against_the_rate() {
    let origin = Origin::saying("ok").await;
    let limits = "requests_per_second = 1\nburst = 3\n";
    let teal = Builder::app(&[&origin]).listener(limits).start().await;
    let mut client = Good::connect(teal.address).await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(client.get("/").await.status);
    }
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!(statuses[..3], [200; 3]);
    assert!(refused > 0, "{statuses:?}");
}

/// What a request takes of the process does not depend on whether it has a connection of its own.
#[tokio::test]
async fn requests_that_share_a_connection_count_as_connections() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).service("[limits]\nconnections = 4").start().await;
    let mut client = Raw::connect(teal.address).await;
    // The first has the place of the connection.
    client.send((0..4).flat_map(|n| raw::get(2 * n + 1, "/")).collect::<Vec<u8>>()).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(calls.next().await);
    }
    client.send(raw::get(9, "/")).await;
    assert_eq!(client.expect(raw::RST_STREAM, 9).await.code(), raw::REFUSED_STREAM);
    for call in &mut open {
        call.send(ANSWER).await;
    }
    for _ in 0..4 {
        client.end_of_any().await;
    }
    for n in 5..9 {
        client.send(raw::get(2 * n + 1, "/")).await;
        calls.next().await.send(ANSWER).await;
        assert_eq!(client.outcome(2 * n + 1).await.status(), 200);
    }
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_request() {
    let origin = Origin::saying("ok").await;
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("access.log");
    let teal = Builder::app(&[&origin]).top(&format!("log.access = {log:?}\n")).start().await;
    let mut client = Good::connect(teal.address).await;
    assert_eq!(client.get("/one?q").await.status, 200);
    assert_eq!(client.ask(Request::get("http://a@b/").body(()).expect("a request"), b"").await.status, 400);
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("both are logged", || lines().lines().count() == 2).await;
    let line: serde_json::Value = serde_json::from_str(lines().lines().next().expect("a line")).expect("JSON");
    for (key, value) in
        [("method", "GET"), ("host", "test"), ("target", "/one?q"), ("client", "127.0.0.1"), ("service", "app")]
    {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!((&line["status"], &line["bytes"]), (&200.into(), &2.into()), "{line}");
}

#[tokio::test]
async fn a_listener_without_http_2_says_so() {
    let origin = Origin::saying("ok").await;
    let teal = Builder::app(&[&origin]).listener("http2 = false\n").start().await;
    let mut client = crate::support::client::Client::connect(teal.address).await;
    client.send(raw::PREFACE).await;
    assert_eq!(client.answer().await.status, 505);
}

/// A proxy with certificates for `one.test` and `two.test`.
struct Secure {
    teal: Teal,
    roots: RootCertStore,
    _dir: TempDir,
    _origin: Origin,
}

impl Secure {
    async fn before(origin: Origin) -> Secure {
        let dir = tempfile::tempdir().expect("a directory");
        let mut roots = RootCertStore::empty();
        let mut pairs = Vec::new();
        for name in ["one.test", "two.test"] {
            let CertifiedKey { cert, signing_key } =
                generate_simple_self_signed([name.to_owned()]).expect("a certificate");
            let (cert_file, key_file) =
                (dir.path().join(format!("{name}.pem")), dir.path().join(format!("{name}.key")));
            std::fs::write(&cert_file, cert.pem()).expect("a file");
            std::fs::write(&key_file, signing_key.serialize_pem()).expect("a file");
            roots.add(cert.der().clone()).expect("a root");
            pairs.push(format!("{{ cert = {cert_file:?}, key = {key_file:?} }}"));
        }
        let listener = format!("tls = {{ certificates = [{}] }}\n", pairs.join(", "));
        let teal = Builder::app(&[&origin]).listener(&listener).start().await;
        Secure { teal, roots, _dir: dir, _origin: origin }
    }

    async fn connect(&self, name: &'static str) -> Good {
        let mut config = ClientConfig::builder().with_root_certificates(self.roots.clone()).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.teal.address).await.expect("the proxy accepts");
        let name = ServerName::try_from(name).expect("a name");
        let stream = soon("a handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
        Good::on(stream.expect("TLS"), &h2::client::Builder::new()).await
    }
}

#[tokio::test]
async fn over_tls_a_host_of_another_certificate_is_misdirected() {
    let secure = Secure::before(Origin::saying("ok").await).await;
    let mut client = secure.connect("one.test").await;
    for (host, status) in [("one.test", 200), ("two.test", 421), ("one.test", 200)] {
        let asked = Request::get(format!("https://{host}/")).body(()).expect("a request");
        assert_eq!(client.ask(asked, b"").await.status, status, "{host}");
    }
}

/// The head of an answer leaves before there is a body, and each piece of a body when it comes: nothing waits in TLS.
#[tokio::test]
async fn over_tls_nothing_waits_for_more() {
    let (origin, mut calls) = by_hand().await;
    let secure = Secure::before(origin).await;
    let mut client = secure.connect("one.test").await;
    let (waiting, _) = client.begin(Request::get("https://one.test/").body(()).expect("a request"), false).await;
    let mut call = calls.next().await;
    call.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut body = good::head(waiting).await.expect("a head").into_body();
    for piece in ["a", "piece", "of it"] {
        call.send(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
        assert_eq!(good::piece(&mut body).await.expect("a piece").expect("a connection"), piece);
    }
    call.send("0\r\n\r\n").await;
    assert!(good::piece(&mut body).await.is_none());
}

#[tokio::test]
async fn plain_text_is_redirected_with_its_path() {
    let origin = Origin::saying("ok").await;
    let teal = Builder::app(&[&origin]).listener("redirect_to_https = true\n").start().await;
    let answer = good::get_once(teal.address, "/a?b").await;
    assert_eq!((answer.status, answer.field("location")), (308, Some("https://test/a?b")));
    let mut client = Raw::connect(teal.address).await;
    client.send(raw::post(1, "/a?b")).await;
    assert!(matches!(client.outcome(1).await, Outcome::Answer { status: 308, .. }));
}
