//! Who is let in, and how often: limits on requests per client, and lists of networks.

mod support;

use std::path::Path;
use std::sync::atomic::Ordering;

use support::client::{Answer, Client, get};
use support::origin::Origin;
use support::proxy::{Builder, Teal};
use support::{eventually, scratch, soon};
use teal::config;
use teal::metrics::Rejection;
use teal::run::Proxy;

/// A rate that no test outlives.
const ONCE: &str = "requests_per_second = 1\nburst = 3";

async fn start(listener: &str, routes: &str) -> (Teal, Origin) {
    let origin = Origin::saying("hello").await;
    let service = format!("[[routes]]\npath = \"/other\"\nservice = \"app\"\n{routes}");
    let teal = Builder::app(&[&origin]).listener(listener).service(&service).start().await;
    (teal, origin)
}

async fn from(teal: &Teal, client: &str, path: &str) -> Answer {
    let mut connection = Client::connect(teal.address).await;
    connection.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n\r\n")).await;
    soon("an answer", connection.answer()).await
}

async fn statuses(teal: &Teal, client: &str, path: &str, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(from(teal, client, path).await.status);
    }
    statuses
}

fn rejected(teal: &Teal, why: Rejection) -> u64 {
    teal.state().listeners().iter().map(|(_, stats)| stats.rejected(why)).sum()
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_when_to_come_again() {
    let (teal, _origin) = start(ONCE, "").await;
    // A slow machine may give a fourth one in between.
    let statuses: Vec<u16> = {
        let mut client = Client::connect(teal.address).await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let answer = client.answer().await;
            if answer.status == 429 {
                assert_eq!(answer.field("retry-after"), Some("1"));
            }
            statuses.push(answer.status);
        }
        statuses
    };
    assert_eq!(statuses[..3], [200; 3], "a burst of three is allowed");
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert!(refused > 0 && refused as u64 == rejected(&teal, Rejection::RateLimited), "{statuses:?}");
}

#[tokio::test]
async fn the_client_is_whom_a_trusted_proxy_names() {
    let (teal, _origin) = start(&format!("trusted_proxies = [\"127.0.0.1\"]\n{ONCE}"), "").await;
    assert_eq!(statuses(&teal, "192.0.2.1", "/", 3).await, [200; 3]);
    assert!(statuses(&teal, "192.0.2.1", "/", 10).await.contains(&429));
    assert_eq!(from(&teal, "192.0.2.2", "/").await.status, 200, "another client is not affected");

    let (teal, _origin) = start(ONCE, "").await;
    let mut all = Vec::new();
    for n in 0..10 {
        all.push(from(&teal, &format!("192.0.2.{n}"), "/").await.status);
    }
    assert!(all.contains(&429), "who is not trusted cannot be somebody else: {all:?}");
}

#[tokio::test]
async fn a_route_has_a_limit_of_its_own() {
    let (teal, _origin) = start("", ONCE).await;
    assert!(statuses(&teal, "", "/other", 10).await.contains(&429));
    assert_eq!(statuses(&teal, "", "/", 10).await, [200; 10]);
    assert_eq!(get(teal.address, "/.well-known/teal/ready").await.status, 200);
}

#[tokio::test]
async fn every_request_of_a_listener_counts_whatever_becomes_of_it() {
    let origin = Origin::saying("hello").await;
    let service = format!(
        "[[routes]]\nhost = \"routed\"\npath = \"/\"\nservice = \"app\"\n[services.app]\nblue = [{}]",
        origin.toml()
    );
    let ends = [
        ("", "GET / HTTP/1.1\r\nHost: nobody\r\n\r\n", 404),
        ("redirect_to_https = true", "GET / HTTP/1.1\r\nHost: routed\r\n\r\n", 308),
        ("request_body = \"1\"", "POST / HTTP/1.1\r\nHost: routed\r\nContent-Length: 2\r\n\r\n", 413),
    ];
    for (key, request, status) in ends {
        let teal = Builder::new(&service).listener(&format!("{ONCE}\n{key}")).start().await;
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(Client::connect(teal.address).await.ask(request).await.status);
        }
        assert_eq!(statuses[..3], [status; 3], "{key}: a burst of three is allowed");
        assert!(statuses.contains(&429), "{key}: {statuses:?}");
        assert_eq!(get(teal.address, "/.well-known/teal/ready").await.status, 200, "{key}: the balancer asks on");
    }
}

#[tokio::test]
async fn a_limit_that_did_not_change_goes_on_counting_over_a_reload() {
    let origin = Origin::saying("hello").await;
    let builder = |more: &str| Builder::app(&[&origin]).listener("requests_per_second = 1\nburst = 100").service(more);
    let teal = builder("").start_watching().await;
    for _ in 0..100 {
        get(teal.address, "/").await;
    }
    let applied = || teal.state().stats.reloads_applied.load(Ordering::SeqCst);
    let before = applied();
    builder("queue_timeout = \"1s\"").write(teal.dir());
    teal.proxy().reload();
    eventually("the file is read", || applied() > before).await;
    let mut client = Client::connect(teal.address).await;
    let mut refused = 0;
    for _ in 0..100 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        refused += u32::from(client.answer().await.status == 429);
    }
    assert!(refused > 0, "a new limit would have let all of them in");
}

#[tokio::test]
async fn a_route_is_open_to_whom_its_lists_name() {
    let trusting = "trusted_proxies = [\"127.0.0.1\"]";
    let lists = "allow = [\"10.0.0.0/8\", \"2001:db8::/32\"]\ndeny = [\"10.9.0.0/16\"]";
    let (teal, _origin) = start(trusting, lists).await;
    let cases = [
        ("10.1.2.3", 200),
        ("10.9.2.3", 403),
        ("192.0.2.1", 403),
        ("2001:db8::1", 200),
        ("2001:db9::1", 403),
        ("::ffff:10.1.2.3", 200),
        ("::ffff:10.9.2.3", 403),
        ("nonsense", 403),
    ];
    for (client, status) in cases {
        assert_eq!(from(&teal, client, "/other").await.status, status, "{client}");
        assert_eq!(from(&teal, client, "/").await.status, 200, "{client}");
    }
    assert_eq!(rejected(&teal, Rejection::Forbidden), 5);
    let (teal, _origin) = start("", "allow = [\"10.0.0.0/8\"]").await;
    assert_eq!(from(&teal, "10.1.2.3", "/other").await.status, 403, "nobody vouches for that");
}

#[tokio::test]
async fn the_admin_api_hangs_up_on_whom_its_lists_refuse() {
    let origin = Origin::saying("hello").await;
    for (lists, is_open) in [("allow = [\"10.0.0.0/8\"]", false), ("deny = [\"127.0.0.0/8\"]", false), ("", true)] {
        let dir = scratch();
        let text = Builder::app(&[&origin]).toml(&dir.path().join("state"));
        let text = text.replacen("[admin]\n", &format!("[admin]\n{lists}\n"), 1);
        let config = config::parse(&text, Path::new("test.toml")).expect("a valid config");
        let teal = Teal::of(Proxy::start(config).expect("the proxy starts"), dir);
        let mut client = Client::connect(teal.admin).await;
        client.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let answer = soon("an answer or the end", client.head()).await;
        assert_eq!(answer.is_some(), is_open, "{lists}: {answer:?}");
    }
}
