//! Which certificate a client gets.

use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::version::{TLS12, TLS13};

use crate::support::tls::{Authority, BOTH_VERSIONS, Pair, RSA, believing, client_config};
use crate::{GET, Site};

const ANY: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];

/// Writes the pairs, and gives the key `tls` that names them in this order.
fn tls_of(dir: &tempfile::TempDir, pairs: &[(&str, &Pair)]) -> String {
    let entries: Vec<_> = pairs.iter().map(|(name, pair)| pair.write(dir.path(), name)).collect();
    format!("tls = {{ certificates = [{}] }}\n", entries.join(", "))
}

#[tokio::test]
async fn the_name_that_a_client_asks_for_chooses_the_certificate() {
    let authority = Authority::new();
    let first = authority.issue(&["first.test"]);
    let exact = authority.issue(&["exact.test", "one.wild.test"]);
    let wild = authority.issue(&["*.wild.test"]);
    let pairs = [("first", &first), ("wild", &wild), ("exact", &exact)];
    let site = Site::with(authority, |_, dir| tls_of(dir, &pairs)).await;
    let cases = [
        ("first.test", &first, "its own"),
        ("exact.test", &exact, "its own"),
        ("EXACT.Test", &exact, "names have no case"),
        ("two.wild.test", &wild, "a wildcard"),
        ("one.wild.test", &exact, "an exact name goes before a wildcard"),
        ("wild.test", &first, "a wildcard is for names below"),
        ("a.b.wild.test", &first, "a wildcard is for one label"),
        ("other.test", &first, "nobody's name"),
        ("127.0.0.1", &first, "no name at all"),
    ];
    for version in BOTH_VERSIONS {
        let config = Arc::new(believing(&ANY, &[*version]));
        for (name, pair, why) in cases {
            let mut client = site.connect(name, &config).await;
            let shown = client.stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
            assert_eq!(shown, Some(pair.chain()), "{name} ({why}) by {version:?}");
            assert_eq!(client.ask(GET).await.text(), "ok", "{name} by {version:?}");
        }
    }
}

#[tokio::test]
async fn of_two_certificates_for_a_name_a_client_gets_one_that_it_understands() {
    let authority = Authority::new();
    let ecdsa = authority.issue(&["a.test"]);
    let rsa = authority.issue_with(&["a.test"], RSA, |_| {});
    let pairs = [("ecdsa", &ecdsa), ("rsa", &rsa)];
    let site = Site::with(authority, |_, dir| tls_of(dir, &pairs)).await;
    for (schemes, pair) in [(&ANY[..1], &ecdsa), (&ANY[1..], &rsa), (&ANY[..], &ecdsa)] {
        for version in BOTH_VERSIONS {
            let client = site.connect("a.test", &Arc::new(believing(schemes, &[*version]))).await;
            let shown = client.stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
            assert_eq!(shown, Some(pair.chain()), "{schemes:?} by {version:?}");
        }
    }
}

#[tokio::test]
async fn clients_of_both_versions_are_served_unless_one_is_too_old() {
    let (any, new) = (Site::new("").await, Site::new(", min_version = \"1.3\"").await);
    for (site, version, is_served) in
        [(&any, &TLS12, true), (&any, &TLS13, true), (&new, &TLS12, false), (&new, &TLS13, true)]
    {
        let config = Arc::new(client_config(site.authority.roots(), &[version], None));
        assert_eq!(site.serves(&config).await.is_some(), is_served, "{version:?}");
    }
}

/// RFC 9110 §7.4: the client has not seen that this server may answer for the other name.
#[tokio::test]
async fn a_request_for_a_host_of_another_certificate_is_misdirected() {
    let authority = Authority::new();
    let (a, b, wild) = (authority.issue(&["a.test"]), authority.issue(&["b.test"]), authority.issue(&["*.c.test"]));
    let site = Site::with(authority, |_, dir| tls_of(dir, &[("a", &a), ("b", &b), ("c", &wild)])).await;
    let mut client = site.connect("a.test", &site.client()).await;
    let asked = [("a.test", 200), ("b.test", 421), ("A.TEST:8443", 200), ("x.c.test", 421), ("nobody.test", 200)];
    for (host, status) in asked.repeat(2) {
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!((answer.status, answer.field("connection")), (status, None), "{host}");
    }
    let mut absolute = site.connect("a.test", &site.client()).await;
    assert_eq!(absolute.ask("GET https://b.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n").await.status, 421);
    let reached = site.requests.lock().iter().filter(|request| request.field("host") == Some("b.test")).count();
    assert_eq!(reached, 0);
}

/// Another certificate would have been chosen, but the client has seen that this one is good for the host, too.
#[tokio::test]
async fn a_request_for_a_host_that_the_wildcard_of_its_connection_is_for_is_served() {
    let authority = Authority::new();
    let (exact, wild) = (authority.issue(&["a.c.test"]), authority.issue(&["*.c.test"]));
    let site = Site::with(authority, |_, dir| tls_of(dir, &[("exact", &exact), ("wild", &wild)])).await;
    for (name, host, status) in [("b.c.test", "a.c.test", 200), ("a.c.test", "b.c.test", 421)] {
        let mut client = site.connect(name, &site.client()).await;
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{host} on a connection for {name}");
    }
}

#[tokio::test]
async fn an_origin_is_told_that_the_client_came_over_tls() {
    let site = Site::new("").await;
    let mut client = site.connect("a.test", &site.client()).await;
    let lie = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: 80\r\n\r\n";
    assert_eq!(client.ask(lie).await.text(), "ok");
    let request = site.requests.lock().pop().expect("a request");
    assert_eq!(request.field("x-forwarded-proto"), Some("https"));
    assert_eq!(request.field("x-forwarded-port"), Some(&*site.teal.listener.port().to_string()));
}
