//! Which service a request reaches, what is answered without one, and what is written about it.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::support::client::{Client, get};
use crate::support::eventually;
use crate::support::origin::{Origin, ok};
use crate::support::proxy::Builder;

fn route(path: &str, keys: &str) -> String {
    format!("[[routes]]\npath = \"{path}\"\nservice = \"a\"\n{keys}\n")
}

fn service(origin: &Origin) -> String {
    format!("[services.a]\nblue = [{}]\n", origin.toml())
}

#[tokio::test]
async fn the_path_goes_on_as_it_was_sent() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).start().await;
    let targets =
        ["/", "/a?b=c&d", "/%2e%2e/%2F?%00", "/a/../b/./c//d", "/?", "/a;b=c", "/a?x=http://y/", "/\u{e4}?\u{20ac}"];
    for target in targets {
        assert_eq!(get(teal.address, target).await.status, 200);
        assert_eq!(requests.lock().pop().unwrap().line(), format!("GET {target} HTTP/1.1"));
    }
}

#[tokio::test]
async fn a_prefix_is_stripped_where_the_route_says_so() {
    let (origin, requests) = Origin::recording().await;
    let routes = route("/api", "strip_prefix = true") + &route("/keep", "");
    let teal = Builder::new(&(service(&origin) + &routes)).start().await;
    let targets = [
        ("/api/x", "/x"),
        ("/api", "/"),
        ("/api/", "/"),
        ("/api?q=1", "/?q=1"),
        ("/api/x?q=/api/", "/x?q=/api/"),
        ("/api//x", "//x"),
        ("/keep/x", "/keep/x"),
    ];
    for (target, sent) in targets {
        assert_eq!(get(teal.address, target).await.status, 200);
        assert_eq!(requests.lock().pop().unwrap().line(), format!("GET {sent} HTTP/1.1"));
    }
}

#[tokio::test]
async fn options_of_the_server_itself_has_no_route() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).start().await;
    let answer = Client::connect(teal.address).await.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(answer.status, 404, "no route begins with a star: {answer:?}");
    assert!(requests.lock().is_empty());
}

#[tokio::test]
async fn ten_thousand_routes_are_all_reached() {
    let origin = Origin::http(|request| async move { ok(request.field("host").unwrap()) }).await;
    let services: String =
        (0..100).map(|n| format!("[services.s{n}]\nhost = \"s{n}\"\nblue = [{}]\n", origin.toml())).collect();
    let routes: String = (0..10_000)
        .map(|n| format!("[[routes]]\nhost = \"h{}.test\"\npath = \"/p{n}\"\nservice = \"s{}\"\n", n % 7, n % 100))
        .collect();
    let teal = Builder::new(&(services + &routes)).start().await;
    let mut client = Client::connect(teal.address).await;
    for n in 0..10_000 {
        client.send(format!("GET /p{n}/x HTTP/1.1\r\nHost: H{}.Test:80\r\n\r\n", n % 7)).await;
        assert_eq!(client.answer().await.text(), format!("s{}", n % 100));
    }
}

#[tokio::test]
async fn what_no_route_matches_is_404_and_the_connection_goes_on() {
    let origin = Origin::saying("here").await;
    let teal = Builder::new(&(service(&origin) + &route("/api", ""))).start().await;
    let mut client = Client::connect(teal.address).await;
    let answer = client.get("/apix").await;
    assert_eq!((answer.status, answer.text()), (404, "404 no service for this host and path\n"));
    assert_eq!(answer.field("x-request-id").map(str::len), Some(32));
    assert_eq!(client.get("/api/x").await.text(), "here");
    client.send("HEAD /nothing HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.answer_to_head().await.status, 404);
    assert_eq!(client.get("/api").await.text(), "here");
}

#[tokio::test]
async fn problems_are_json_for_those_who_prefer_it() {
    let origin = Origin::saying("here").await;
    let teal = Builder::new(&(service(&origin) + &route("/api", ""))).start().await;
    let mut client = Client::connect(teal.address).await;
    let accepts = [
        ("application/json", true),
        ("application/problem+json, */*", true),
        ("text/html, application/json", false),
        ("*/*", false),
    ];
    for (accept, is_json) in accepts {
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n")).await;
        assert_eq!(answer.field("content-type") == Some("application/problem+json"), is_json, "{accept}");
        if is_json {
            let problem: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!((&problem["status"], &problem["title"]), (&404.into(), &"Not Found".into()));
        }
    }
}

#[tokio::test]
async fn plain_text_is_redirected_to_https() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener("redirect_to_https = true\n").start().await;
    let mut client = Client::connect(teal.address).await;
    let answer = client.ask("GET /a?b HTTP/1.1\r\nHost: shop.test:8080\r\n\r\n").await;
    assert_eq!((answer.status, answer.field("location")), (308, Some("https://shop.test/a?b")));
    let answer = client.ask("GET http://[::1]:80/ HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").await;
    assert_eq!(answer.field("location"), Some("https://[::1]/"));
    assert_eq!(client.get("/.well-known/teal/ready").await.status, 200, "the balancer asks in plain text");
    let answer = client.ask("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!((answer.status, answer.field("location")), (400, None), "without a host there is nowhere to go");
    assert!(requests.lock().is_empty());
}

/// Nothing of a request but a valid host decides where the redirect goes.
#[tokio::test]
async fn a_redirect_leads_to_the_same_host() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener("redirect_to_https = true\n").start().await;
    let targets = [
        ("GET //evil.test/", "https://shop.test//evil.test/"),
        ("GET /\\evil.test", "https://shop.test/\\evil.test"),
        ("GET /@evil.test", "https://shop.test/@evil.test"),
        ("GET http://shop.test", "https://shop.test/"),
        ("DELETE /a%0d%0aX:%20y", "https://shop.test/a%0d%0aX:%20y"),
        ("OPTIONS *", "https://shop.test"),
    ];
    for (line, location) in targets {
        let answer =
            Client::connect(teal.address).await.ask(format!("{line} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).await;
        assert_eq!((answer.status, answer.field("location")), (308, Some(location)), "{line}");
    }
    for host in ["shop.test@evil.test", "shop.test/", "shop.test?", "shop.test#", "a b", "evil.test\\.shop.test", ""] {
        let answer = Client::connect(teal.address).await.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!((answer.status, answer.field("location")), (400, None), "{host:?}");
    }
    let post = "POST /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1000\r\n\r\n";
    let answer = Client::connect(teal.address).await.ask(post).await;
    assert_eq!((answer.status, answer.field("connection")), (308, Some("close")), "its body is not waited for");
    assert!(requests.lock().is_empty());
}

/// The loop of a balancer that ends TLS in front of a proxy that redirects.
#[tokio::test]
async fn who_came_over_tls_to_a_trusted_balancer_is_not_redirected() {
    let (origin, requests) = Origin::recording().await;
    let start = |trusted: &str| {
        Builder::app(&[&origin]).listener(&format!("redirect_to_https = true\ntrusted_proxies = [{trusted}]\n")).start()
    };
    let (trusting, other) = (start("\"127.0.0.1\"").await, start("\"10.0.0.1\"").await);
    for (proto, status) in [
        ("X-Forwarded-Proto: https\r\n", 200),
        ("x-forwarded-proto: HTTPS\r\n", 200),
        ("X-Forwarded-Proto: https, http\r\n", 200),
        ("X-Forwarded-Proto: wss\r\n", 200),
        ("X-Forwarded-Proto: http\r\n", 308),
        ("X-Forwarded-Proto: http, https\r\n", 308),
        ("X-Forwarded-Proto: httpss\r\n", 308),
        ("X-Forwarded-Proto: \r\n", 308),
        ("", 308),
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{proto}\r\n");
        assert_eq!(Client::connect(trusting.address).await.ask(&request).await.status, status, "{proto}");
        assert_eq!(Client::connect(other.address).await.ask(&request).await.status, 308, "{proto} of anybody");
    }
    assert_eq!(requests.lock().len(), 4);
}

#[tokio::test]
async fn a_certificate_can_be_had_where_everything_is_redirected() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener("redirect_to_https = true\n").start().await;
    for (path, status) in [
        ("/.well-known/acme-challenge/evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA", 200),
        ("/.well-known/acme-challenge/x", 200),
        ("/.well-known/acme-challenge/", 308),
        ("/.well-known/acme-challenge", 308),
        ("/.well-known/acme-challenge/x/y", 308),
        ("/.well-known/acme-challenge/..", 308),
        ("/.well-known/acme-challenge/%2e%2e", 308),
        ("/.well-known/acme-challenge/x.html", 308),
        ("/a/.well-known/acme-challenge/x", 308),
    ] {
        let answer = Client::connect(teal.address).await.get(path).await;
        assert_eq!(answer.status, status, "{path}");
    }
    assert_eq!(requests.lock().len(), 2);
}

#[tokio::test]
async fn ready_says_whether_the_balancer_should_send_traffic_and_is_never_routed() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener("ready_path = \"/up\"\n").start().await;
    let mut client = Client::connect(teal.address).await;
    assert_eq!(client.get("/up?x").await.text(), "200 ready\n");
    teal.state().begin_shutdown();
    assert_eq!(client.get("/up").await.status, 503);
    assert!(requests.lock().is_empty());
    assert_eq!(client.get("/up/x").await.status, 200, "only the path itself");
}

#[tokio::test]
async fn connect_and_trace_are_not_passed_on() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).start().await;
    for request in ["CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let answer = Client::connect(teal.address).await.ask(request).await;
        assert_eq!(answer.status, 405);
        assert!(answer.field("allow").is_some_and(|allow| allow.contains("GET") && !allow.contains("TRACE")));
    }
    assert!(requests.lock().is_empty());
}

#[tokio::test]
async fn unix_sockets_serve_on_both_sides() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (front, back) = (dir.path().join("front.sock"), dir.path().join("back.sock"));
    let origin = UnixListener::bind(&back).expect("a socket");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = origin.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let _ = stream.write_all(&ok(&String::from_utf8_lossy(&head))).await;
            });
        }
    });
    let services = format!(
        "[[listeners]]\nlisten = \"unix:{}\"\n[[routes]]\npath = \"/\"\nservice = \"a\"\n\
         [services.a]\nhost = \"upstream\"\nblue = [\"unix:{}\"]\n",
        front.display(),
        back.display()
    );
    let _teal = Builder::new(&services).start().await;
    let mut client = UnixStream::connect(&front).await.expect("the proxy accepts");
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\r\nHost: localhost\r\n"), "the path of a socket is no host: {answer}");
    assert!(answer.contains("\r\nX-Forwarded-For: unknown\r\n"), "{answer}");
}

async fn lines(file: &Path, count: usize) -> Vec<serde_json::Value> {
    let read = || std::fs::read_to_string(file).unwrap_or_default();
    eventually("the access log is written", || read().lines().count() >= count && read().ends_with('\n')).await;
    read().lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

#[tokio::test]
async fn the_access_log_has_a_line_for_every_request() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("access.log");
    let origin = Origin::saying("hello").await;
    let log = format!("[log]\naccess = {:?}\n", file);
    let teal = Builder::new(&(service(&origin) + &route("/api", "") + &log)).start().await;
    let mut client = Client::connect(teal.address).await;
    let answered = client.get("/api/x?y=z").await;
    let missing = client.get("/nothing").await;
    assert_eq!(client.ask("BAD\r\n\r\n").await.status, 400);

    let lines = lines(&file, 3).await;
    assert_eq!(lines.len(), 3);
    let expected = serde_json::json!({
        "client": "127.0.0.1", "method": "GET", "host": "test", "target": "/api/x?y=z", "status": 200, "bytes": 5,
        "service": "a", "color": "blue", "endpoint": origin.address.to_string(), "error": null,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&lines[0][key], value, "{key}");
    }
    assert!(lines[0]["request_id"].as_str().is_some_and(|id| id.len() == 32));
    assert_eq!(answered.status, 200);
    assert_eq!(
        (&lines[1]["status"], &lines[1]["target"], &lines[1]["service"]),
        (&404.into(), &"/nothing".into(), &serde_json::Value::Null)
    );
    assert_eq!(lines[1]["request_id"].as_str(), missing.field("x-request-id"));
    assert_eq!((&lines[2]["status"], &lines[2]["error"]), (&400.into(), &"invalid request line".into()));
}
