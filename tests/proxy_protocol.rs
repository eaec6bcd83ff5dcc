//! A balancer in front says by the PROXY protocol whose connection it passes on, and nobody else can.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use support::client::{Answer, Client};
use support::origin::{Origin, Requests, read_head};
use support::proxy::{Builder, Teal};
use support::{eventually, scratch, soon};
use teal::metrics::Rejection;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::yield_now;
use tokio::time::Instant;

const REQUIRE: &str = "proxy_protocol = \"require\"\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n";
const ACCEPT: &str = "proxy_protocol = \"accept\"\ntrusted_proxies = [\"127.0.0.0/8\"]\n";
/// The balancer is somebody else.
const ACCEPT_FROM_OTHERS: &str = "proxy_protocol = \"accept\"\ntrusted_proxies = [\"10.0.0.0/8\"]\n";
const REQUIRE_FROM_OTHERS: &str = "proxy_protocol = \"require\"\ntrusted_proxies = [\"10.0.0.0/8\"]\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const V1: &str = "PROXY TCP4 192.0.2.1 192.0.2.2 51234 443\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: [u8; 4] = [0x20, 0, 0, 0];

async fn start(listener: &str) -> (Teal, Origin, Requests) {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener(listener).start().await;
    (teal, origin, requests)
}

/// A header of version 2 for a TCP connection, with additional fields of so many octets.
fn v2(from: &str, to: &str, fields: usize) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().expect("an address"), to.parse().expect("an address"));
    let octets = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let content = [octets(from.ip()), octets(to.ip()), ports, vec![0xea; fields]].concat();
    let length = u16::try_from(content.len()).expect("a short content").to_be_bytes();
    let family = if from.is_ipv4() { 0x11 } else { 0x21 };
    [SIGNATURE, &[0x21, family], &length, &content].concat()
}

fn rejected(teal: &Teal) -> u64 {
    teal.state().listeners().iter().map(|(_, stats)| stats.rejected(Rejection::ProxyProtocol)).sum()
}

/// What follows a header on a new connection.
async fn ask_after(teal: &Teal, header: impl AsRef<[u8]>) -> Answer {
    Client::connect(teal.address).await.ask([header.as_ref(), GET.as_bytes()].concat()).await
}

/// Whose request the origin has got, and the port that they asked at.
fn named(requests: &Requests) -> (String, String) {
    let request = requests.lock().pop().expect("a request");
    let field = |name| request.field(name).unwrap_or_default().to_owned();
    (field("x-forwarded-for"), field("x-forwarded-port"))
}

/// Connects and says this; it is hung up on, without a word.
async fn hangs_up(teal: &Teal, octets: impl AsRef<[u8]>) {
    let mut client = Client::connect(teal.address).await;
    // It may be gone before it has all.
    let _ = client.stream.write_all(octets.as_ref()).await;
    let (answer, _) = client.rest().await;
    assert!(answer.is_empty(), "{:?}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn the_client_is_whom_the_header_names() {
    for listener in [REQUIRE, ACCEPT] {
        let (teal, _origin, requests) = start(listener).await;
        let headers = [
            (V1.as_bytes().to_vec(), "192.0.2.1", "443"),
            (b"PROXY TCP6 2001:DB8:0::1 2001:db8::2 51234 8443\r\n".to_vec(), "2001:db8::1", "8443"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 0 65535\r\n".to_vec(), "192.0.2.1", "65535"),
            (v2("192.0.2.1:51234", "192.0.2.2:443", 0), "192.0.2.1", "443"),
            (v2("192.0.2.1:51234", "192.0.2.2:443", 300), "192.0.2.1", "443"),
            (v2("192.0.2.1:51234", "192.0.2.2:443", 4096 - 16 - 12), "192.0.2.1", "443"),
            (v2("[2001:db8::1]:51234", "[2001:db8::2]:80", 0), "2001:db8::1", "80"),
            (v2("[::ffff:192.0.2.1]:51234", "[::ffff:192.0.2.2]:80", 7), "192.0.2.1", "80"),
        ];
        for (header, client, port) in headers {
            assert_eq!(ask_after(&teal, &header).await.status, 200, "{header:?}");
            assert_eq!(named(&requests), (client.to_owned(), port.to_owned()), "{header:?}");
        }
        assert_eq!(rejected(&teal), 0);
    }
}

/// LOCAL, UNKNOWN, and what no TCP client can be behind.
#[tokio::test]
async fn a_header_without_a_client_leaves_the_connection_its_own() {
    let (teal, _origin, requests) = start(REQUIRE).await;
    let own = ("127.0.0.1".to_owned(), teal.address.port().to_string());
    let local = |rest: &[u8]| [SIGNATURE, rest].concat();
    let unix = [&[0x21, 0x31, 0, 216][..], &[b'/'; 216]].concat();
    let headers = [
        local(&LOCAL),
        local(&[0x20, 0x11, 0, 12, 192, 0, 2, 1, 192, 0, 2, 2, 1, 1, 1, 1]),
        local(&[0x20, 0xff, 0, 1, 7]),
        local(&[0x21, 0, 0, 0]),
        local(&[0x21, 0x12, 0, 12, 192, 0, 2, 1, 192, 0, 2, 2, 1, 1, 1, 1]),
        local(&unix),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
    ];
    for header in headers {
        assert_eq!(ask_after(&teal, &header).await.status, 200, "{header:?}");
        assert_eq!(named(&requests), own, "{header:?}");
    }
}

#[tokio::test]
async fn a_header_may_come_in_any_pieces() {
    let (teal, _origin, requests) = start(REQUIRE).await;
    let local = [SIGNATURE, &LOCAL].concat();
    for (header, client) in [
        (V1.as_bytes().to_vec(), "192.0.2.1"),
        (v2("192.0.2.1:51234", "192.0.2.2:443", 5), "192.0.2.1"),
        (v2("[2001:db8::1]:51234", "[2001:db8::2]:443", 0), "2001:db8::1"),
        (local, "127.0.0.1"),
    ] {
        let whole = [&header, GET.as_bytes()].concat();
        for cut in 1..=header.len() {
            let mut balancer = Client::connect(teal.address).await;
            balancer.send(&whole[..cut]).await;
            // The proxy may look in between.
            yield_now().await;
            assert_eq!(balancer.ask(&whole[cut..]).await.status, 200, "{header:?} cut after {cut}");
            assert_eq!(named(&requests).0, client, "{header:?} cut after {cut}");
        }
        let mut balancer = Client::connect(teal.address).await;
        for octet in &whole {
            balancer.send([*octet]).await;
            yield_now().await;
        }
        assert_eq!((balancer.answer().await.status, named(&requests).0), (200, client.to_owned()), "octet by octet");
    }
}

#[tokio::test]
async fn what_follows_a_header_in_its_packet_is_read_and_the_client_stays_for_all_requests() {
    let (teal, _origin, requests) = start(REQUIRE).await;
    for header in [V1.as_bytes().to_vec(), v2("192.0.2.1:51234", "192.0.2.2:443", 9)] {
        let mut balancer = Client::connect(teal.address).await;
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        balancer.send([&header, post.as_bytes(), GET.as_bytes()].concat()).await;
        assert_eq!((balancer.answer().await.status, balancer.answer().await.status), (200, 200));
        assert_eq!(balancer.ask(GET).await.status, 200);
        assert_eq!(requests.lock()[0].body, b"hello");
        for _ in 0..3 {
            assert_eq!(named(&requests).0, "192.0.2.1");
        }
    }
    // One header a connection: the second would be the client's own words.
    let mut balancer = Client::connect(teal.address).await;
    let answer = balancer.ask([V1, "PROXY TCP4 9.9.9.9 192.0.2.2 1 2\r\n", GET].concat()).await;
    assert_eq!(answer.status, 505, "a line of no version of HTTP");
    assert!(requests.lock().is_empty());
}

#[tokio::test]
async fn a_broken_header_is_refused() {
    let short = [SIGNATURE, &[0x21, 0x11, 0, 11], &[1; 11]].concat();
    let too_long = [SIGNATURE, &[0x21, 0x11, 0x0f, 0xf1]].concat();
    let huge = [SIGNATURE, &[0x20, 0x00, 0xff, 0xff], &[0; 65535]].concat();
    let broken: [&[u8]; 10] = [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 51234\r\n",
        b"PROXY TCP4 nonsense 192.0.2.2 51234 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 51234 443\n",
        b"PROXY / HTTP/1.1\r\n",
        &[b"PROXY TCP4 ".as_slice(), &[b' '; 97]].concat(),
        &[SIGNATURE, &[0x11, 0x11, 0, 12], &[1; 12]].concat(),
        &[SIGNATURE, &[0x21, 0x44, 0, 12], &[1; 12]].concat(),
        &short,
        &too_long,
        &huge,
    ];
    for listener in [REQUIRE, ACCEPT] {
        let (teal, _origin, requests) = start(listener).await;
        for (place, octets) in broken.iter().enumerate() {
            hangs_up(&teal, &[octets, GET.as_bytes()].concat()).await;
            assert_eq!(rejected(&teal), place as u64 + 1, "{}", String::from_utf8_lossy(octets));
        }
        assert!(requests.lock().is_empty());
        assert_eq!(ask_after(&teal, V1).await.status, 200, "the next is served");
    }
}

#[tokio::test]
async fn who_is_not_trusted_cannot_be_somebody_else() {
    let headers = [V1.as_bytes().to_vec(), v2("192.0.2.1:51234", "192.0.2.2:443", 0), [SIGNATURE, &LOCAL].concat()];
    let (teal, _origin, requests) = start(REQUIRE_FROM_OTHERS).await;
    for header in &headers {
        hangs_up(&teal, [header, GET.as_bytes()].concat()).await;
    }
    hangs_up(&teal, GET).await;
    hangs_up(&teal, "").await;
    assert_eq!(rejected(&teal), headers.len() as u64 + 2);

    let (teal, _origin, more) = start(ACCEPT_FROM_OTHERS).await;
    for (header, status) in headers.iter().zip([505, 400, 400]) {
        assert_eq!(ask_after(&teal, header).await.status, status, "{header:?} is no request");
    }
    assert!(requests.lock().is_empty() && more.lock().is_empty());
    assert_eq!(ask_after(&teal, "").await.status, 200);
    assert_eq!(named(&more).0, "127.0.0.1");
    assert_eq!(rejected(&teal), 0);
}

#[tokio::test]
async fn a_header_is_needed_where_it_is_required() {
    let (teal, _origin, requests) = start(REQUIRE).await;
    for octets in [GET, "\r\n", "\n", "P ", "PUT / HTTP/1.1\r\n", "\x16\x03\x01\x02\x00", "proxy tcp4 "] {
        hangs_up(&teal, [octets, GET].concat()).await;
    }
    assert_eq!(rejected(&teal), 7);
    assert!(requests.lock().is_empty());
}

/// Methods and empty lines begin as headers do.
#[tokio::test]
async fn a_header_is_not_needed_where_it_is_accepted() {
    let (teal, _origin, requests) = start(ACCEPT).await;
    for beginning in ["GET", "P", "PUT", "PRO", "PROPFIND", "\r", "\r\n"] {
        let rest = match beginning {
            "P" => "OST",
            "PRO" => "PPATCH",
            "\r" => "\nGET",
            "\r\n" => "GET",
            _ => "",
        };
        let mut client = Client::connect(teal.address).await;
        client.send(beginning).await;
        yield_now().await;
        let answer = client.ask(format!("{rest} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(answer.status, 200, "{beginning:?}");
        assert_eq!(named(&requests).0, "127.0.0.1", "{beginning:?}");
    }
    assert_eq!(rejected(&teal), 0);
}

#[tokio::test]
async fn a_header_that_does_not_arrive_in_time_is_refused() {
    let limits = "header_timeout = \"1s\"\nidle_timeout = \"1h\"\n";
    let v2 = v2("192.0.2.1:51234", "192.0.2.2:443", 0);
    for listener in [REQUIRE, ACCEPT] {
        let (teal, _origin, requests) = start(&format!("{listener}{limits}")).await;
        let silent: [&[u8]; 6] =
            [b"", b"P", &V1.as_bytes()[..V1.len() - 1], b"\r\n\r\n", &v2[..15], &v2[..v2.len() - 1]];
        let hung_up_on = silent.map(async |octets| {
            let begun = Instant::now();
            hangs_up(&teal, octets).await;
            assert!(begun.elapsed() >= Duration::from_secs(1), "{octets:?} had its time");
        });
        join_all(hung_up_on).await;
        assert_eq!(rejected(&teal), 6);
        assert!(requests.lock().is_empty());
        let mut late = Client::connect(teal.address).await;
        assert_eq!(late.ask([V1, "GET / HT"].concat()).await.status, 408, "the request has a time of its own");
    }
}

/// Half a header and the end is no reason to wait; neither is a probe by a balancer a reason to count anything.
#[tokio::test]
async fn who_goes_in_the_middle_is_not_waited_for() {
    let (teal, _origin, _) = start(&format!("{REQUIRE}header_timeout = \"1h\"\n")).await;
    let stats = teal.state().listeners()[0].1.clone();
    let open = || stats.connections.load(std::sync::atomic::Ordering::SeqCst);
    for (octets, count) in [("", 0), ("PROXY TCP4 ", 1), ("\r\n\r\n\0", 2)] {
        let mut client = Client::connect(teal.address).await;
        client.send(octets).await;
        client.stream.shutdown().await.expect("it is open");
        assert!(client.rest().await.0.is_empty());
        eventually("its place is free", || open() == 0).await;
        assert_eq!(rejected(&teal), count, "{octets:?}");
    }
}

/// The balancer's client may itself be a proxy that is trusted; if it is not, what it says is replaced.
#[tokio::test]
async fn forwarding_headers_are_believed_of_the_client_that_the_header_names() {
    let (teal, _origin, requests) = start(REQUIRE).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.51.100.7\r\nForwarded: for=198.51.100.7\r\n\
                   X-Forwarded-Proto: https\r\n\r\n";
    for (client, forwarded_for, forwarded, proto) in [
        ("192.0.2.1", "192.0.2.1", None, "http"),
        ("10.1.2.3", "198.51.100.7, 10.1.2.3", Some("for=198.51.100.7"), "https"),
    ] {
        let header = v2(&format!("{client}:51234"), "192.0.2.2:443", 0);
        let answer = Client::connect(teal.address).await.ask([&header, request.as_bytes()].concat()).await;
        assert_eq!(answer.status, 200);
        let request = requests.lock().pop().expect("a request");
        assert_eq!(request.field("x-forwarded-for"), Some(forwarded_for));
        assert_eq!(request.field("forwarded"), forwarded);
        assert_eq!(request.field("x-forwarded-proto"), Some(proto));
    }
}

fn from(client: &str) -> Vec<u8> {
    v2(&format!("{client}:51234"), "192.0.2.2:443", 0)
}

#[tokio::test]
async fn connections_are_counted_for_the_client_and_not_for_the_balancer() {
    let (teal, _origin, _) = start(&format!("{REQUIRE}connections_per_ip = 2\n")).await;
    let mut kept = Vec::new();
    for client in ["192.0.2.1", "192.0.2.1", "192.0.2.3", "192.0.2.3"] {
        let mut balancer = Client::connect(teal.address).await;
        assert_eq!(balancer.ask([&from(client), GET.as_bytes()].concat()).await.status, 200, "{client}");
        kept.push(balancer);
    }
    hangs_up(&teal, [&from("192.0.2.1"), GET.as_bytes()].concat()).await;
    let stats = teal.state().listeners()[0].1.clone();
    assert_eq!((stats.rejected(Rejection::ConnectionsPerIp), rejected(&teal)), (1, 0));
    drop(kept.remove(0));
    eventually("the place is free again", || stats.connections.load(std::sync::atomic::Ordering::SeqCst) == 3).await;
    assert_eq!(ask_after(&teal, from("192.0.2.1")).await.status, 200);
}

#[tokio::test]
async fn rates_lists_and_the_access_log_know_the_client() {
    let origin = Origin::saying("ok").await;
    let dir = scratch();
    let log = dir.path().join("access.log");
    let teal = Builder::app(&[&origin])
        .listener(&format!("{REQUIRE}requests_per_second = 1\nburst = 1\n"))
        .service("[[routes]]\npath = \"/closed\"\nservice = \"app\"\ndeny = [\"192.0.2.9\"]")
        .service(&format!("[log]\naccess = {log:?}"))
        .start()
        .await;
    let mut balancer = Client::connect(teal.address).await;
    let mut statuses = vec![balancer.ask([&from("192.0.2.1"), GET.as_bytes()].concat()).await.status];
    for _ in 0..10 {
        statuses.push(balancer.ask(GET).await.status);
    }
    assert!(statuses[0] == 200 && statuses.contains(&429), "{statuses:?}");
    assert_eq!(ask_after(&teal, from("192.0.2.2")).await.status, 200, "another client is not affected");
    let closed = "GET /closed HTTP/1.1\r\nHost: a\r\n\r\n";
    for (client, status) in [("192.0.2.9", 403), ("192.0.2.8", 200)] {
        let mut balancer = Client::connect(teal.address).await;
        assert_eq!(balancer.ask([&from(client), closed.as_bytes()].concat()).await.status, status, "{client}");
    }
    let has_all = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        ["192.0.2.1", "192.0.2.2", "192.0.2.8", "192.0.2.9"]
            .iter()
            .all(|client| text.contains(&format!("\"client\":\"{client}\"")))
    };
    eventually("all clients are in the log", has_all).await;
}

#[tokio::test]
async fn one_client_goes_to_one_endpoint_whichever_balancer_it_comes_by() {
    let origins = [Origin::recording().await, Origin::recording().await];
    let teal =
        Builder::app(&[&origins[0].0, &origins[1].0]).listener(REQUIRE).service("balance = \"hash:ip\"").start().await;
    for client in 0..32 {
        for _ in 0..3 {
            assert_eq!(ask_after(&teal, from(&format!("192.0.2.{client}"))).await.status, 200);
        }
    }
    let got = origins.each_ref().map(|(_, requests)| requests.lock().len());
    assert!(got[0] > 0 && got[1] > 0, "all went to one: {got:?}");
    assert!(got.iter().all(|count| count % 3 == 0), "a client went to both: {got:?}");
}

/// Whoever may open the file may say whose connection it passes on.
#[tokio::test]
async fn a_unix_socket_needs_no_trusted_proxies() {
    let (origin, requests) = Origin::recording().await;
    let dir = scratch();
    let socket = dir.path().join("front.sock");
    let listener = format!("[[listeners]]\nlisten = \"unix:{}\"\nproxy_protocol = \"require\"", socket.display());
    let teal = Builder::app(&[&origin]).service(&listener).start().await;
    for header in [V1.as_bytes().to_vec(), from("192.0.2.1")] {
        let mut balancer = UnixStream::connect(&socket).await.expect("the proxy accepts");
        let (first, second) = header.split_at(header.len() / 2);
        balancer.write_all(first).await.expect("the proxy reads");
        yield_now().await;
        balancer.write_all(&[second, GET.as_bytes()].concat()).await.expect("the proxy reads");
        let answer = soon("an answer", read_head(&mut balancer, &mut Vec::new())).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(named(&requests), ("192.0.2.1".to_owned(), "443".to_owned()));
    }
    let mut stranger = UnixStream::connect(&socket).await.expect("the proxy accepts");
    let _ = stranger.write_all(GET.as_bytes()).await;
    assert_eq!(soon("the end", read_head(&mut stranger, &mut Vec::new())).await, None);
    assert_eq!(rejected(&teal), 1);
}

/// A connection that has been let in and says at once whose it is is served; a silent one does not hold the stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_hears_those_out_who_speak() {
    let (teal, _origin, requests) = start(&format!("{REQUIRE}header_timeout = \"1h\"\n")).await;
    let (mut silent, mut half) = (Client::connect(teal.address).await, Client::connect(teal.address).await);
    half.send(&V1[..10]).await;
    teal.proxy().begin_stop();
    assert_eq!(half.ask([&V1[10..], GET].concat()).await.status, 200);
    assert_eq!(named(&requests).0, "192.0.2.1");
    assert!(silent.rest().await.0.is_empty());
    eventually("it has stopped", || teal.proxy().is_stopped()).await;
    assert_eq!(rejected(&teal), 0);
}
