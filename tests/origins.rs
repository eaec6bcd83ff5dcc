//! Origins that refuse, stall, lie or die: the client gets a clear answer, no request is executed twice, and nobody else
//! is harmed.

#![allow(clippy::unit_arg, reason = "a connection that is dropped in a table is a row like the others")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use support::by_hand::{Call, by_hand};
use support::client::{Client, get};
use support::origin::{Origin, ok, read_head, read_request};
use support::proxy::{Builder, Teal};
use support::{eventually, soon};

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// An origin that reads one request and then does this.
async fn after_request<F, Fut>(then: F) -> Origin
where
    F: Fn(TcpStream) -> Fut + Send + Sync + Copy + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    Origin::raw(move |mut stream| async move {
        if read_request(&mut stream, &mut Vec::new()).await.is_some() {
            then(stream).await;
        }
    })
    .await
}

fn reset(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
}

/// A proxy whose endpoints count as healthy, whatever the first probe has said.
async fn start(builder: Builder) -> Teal {
    let teal = builder.start().await;
    let count = teal.state().load().services[0].active_pool().endpoints().len();
    (0..count).for_each(|place| teal.set_health(place, true));
    teal
}

async fn ask(teal: &Teal, request: &str) -> u16 {
    Client::connect(teal.address).await.ask(request).await.status
}

async fn ask_text(teal: &Teal, request: impl AsRef<[u8]>) -> String {
    Client::connect(teal.address).await.ask(request).await.text().to_owned()
}

#[tokio::test]
async fn a_refused_connection_is_502_or_goes_to_another_endpoint() {
    let (refusing, good) = (Origin::refusing(), Origin::http(|request| async move { ok(request.line()) }).await);
    let alone = start(Builder::app(&[&refusing])).await;
    assert_eq!((ask(&alone, GET).await, ask(&alone, POST).await), (502, 502));

    let service = "balance = \"round_robin\"\noutlier = { consecutive_errors = 0 }";
    let both = start(Builder::app(&[&refusing, &good]).service(service)).await;
    for request in [GET, POST, "PATCH / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"]
    {
        for _ in 0..4 {
            let answer = Client::connect(both.address).await.ask(request).await;
            assert_eq!(answer.text(), request.lines().next().unwrap(), "what was never sent may be sent elsewhere");
        }
    }
    assert!(both.state().load().services[0].stats.retries.load(Ordering::Relaxed) >= 6, "retries are counted");

    let once = start(Builder::app(&[&refusing, &good]).service(&format!("{service}\nretries = 0"))).await;
    let mut statuses = [ask(&once, GET).await, ask(&once, GET).await];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 502], "retries = 0");
}

#[tokio::test]
async fn every_retry_goes_to_an_endpoint_that_has_not_failed_yet() {
    let refusing = [Origin::refusing(), Origin::refusing(), Origin::refusing()];
    let good = Origin::saying("good").await;
    let origins = [&refusing[0], &refusing[1], &refusing[2], &good];
    for balance in ["least_request", "round_robin", "random", "hash:ip"] {
        let service = format!("retries = 3\nbalance = \"{balance}\"\noutlier = {{ consecutive_errors = 0 }}");
        let teal = start(Builder::app(&origins).service(&service)).await;
        for _ in 0..20 {
            assert_eq!(ask(&teal, POST).await, 200, "{balance}");
        }
    }
}

#[tokio::test]
async fn without_any_endpoint_the_answer_is_503() {
    let (one, two) = (Origin::refusing(), Origin::refusing());
    let teal = Builder::app(&[&one, &two]).service("queue_timeout = \"50ms\"").start().await;
    let answer = get(teal.address, "/").await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "both are known to be down");
    let teal = start(Builder::app(&[&one, &two])).await;
    assert_eq!(get(teal.address, "/").await.status, 502, "both turn out to be down");
}

#[tokio::test]
async fn an_origin_that_never_answers_is_504_and_not_asked_again() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).service("response_timeout = \"100ms\"").start().await;
    for request in [GET, POST] {
        let mut client = Client::connect(teal.address).await;
        client.send(request).await;
        let mut call = calls.next().await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text()), (504, "504 the service did not answer in time\n"));
        call.gone().await;
        assert!(calls.is_empty());
    }
}

#[tokio::test]
async fn an_origin_that_does_not_accept_is_504() {
    // A full backlog: the connection is neither accepted nor refused.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket.listen(0).expect("a backlog");
    let address = socket.local_addr().expect("an address").as_socket().expect("an IP address");
    let _filling: Vec<_> = (0..4)
        .map(|_| {
            let filling = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            filling.set_nonblocking(true).expect("a socket");
            let _ = filling.connect(&address.into());
            filling
        })
        .collect();
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"a\"\n[services.a]\nblue = [\"{address}\"]\n\
         connect_timeout = \"100ms\"\nhealth = {{ interval = \"1h\" }}"
    );
    let teal = Builder::new(&services).start_unprobed(tempfile::tempdir().expect("a temporary directory"));
    teal.set_health(0, true);
    assert_eq!(ask(&teal, POST).await, 504);
}

/// What is not a valid answer, or could be understood in two ways.
#[tokio::test]
async fn nonsense_is_502() {
    let answers: Vec<Vec<u8>> = [
        "garbage\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{0}\u{5}hello",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into_iter()
    .chain([
        b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100),
        [b"HTTP/1.1 200 OK\r\n", &b"X: y\r\n".repeat(1000)[..], b"\r\n"].concat(),
        [b"HTTP/1.1 200 OK\r\nX: ", &vec![b'x'; 300_000][..], b"\r\n\r\n"].concat(),
        [b"HTTP/1.1 200 ", &vec![b'x'; 300_000][..]].concat(),
    ])
    .collect();
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    for answer in answers {
        let mut client = Client::connect(teal.address).await;
        client.send("GET / HTTP/1.0\r\n\r\n").await;
        let mut call = calls.next().await;
        // The proxy may have had enough before all of it is written.
        let _ = call.wire.stream.write_all(&answer).await;
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(100)]).into_owned();
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text()), (502, "502 the service gave an invalid answer\n"), "{shown}");
        call.gone().await;
        assert!(calls.is_empty(), "asked again after {shown}");
    }
}

#[tokio::test]
async fn a_large_head_passes() {
    let value = "x".repeat(100_000);
    let head = format!("HTTP/1.1 200 OK\r\nX-Large: {value}\r\nContent-Length: 0\r\n\r\n");
    let origin = Origin::http(move |_| std::future::ready(head.clone().into_bytes())).await;
    let teal = Builder::app(&[&origin]).start().await;
    assert_eq!(get(teal.address, "/").await.field("x-large"), Some(&*value));
}

/// How an origin may break off after it has read a request.
const BREAKS: [(&str, fn(TcpStream)); 2] = [("close", drop), ("reset", |stream| reset(&stream))];

#[tokio::test]
async fn a_request_that_may_have_been_executed_is_not_repeated() {
    let requests = [
        POST,
        "PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\n\r\n",
        // Repeatable by its method, but its body is gone.
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        // Nobody knows what it means.
        "MOVE / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for (kind, then) in BREAKS {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let origin = Origin::raw(move |mut stream| {
            let count = count.clone();
            async move {
                if read_request(&mut stream, &mut Vec::new()).await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    then(stream);
                }
            }
        });
        let origin = origin.await;
        let teal = Builder::app(&[&origin]).service("retries = 5").start().await;
        for (place, request) in requests.iter().enumerate() {
            assert_eq!(ask(&teal, request).await, 502, "{kind}: {request}");
            assert_eq!(seen.load(Ordering::SeqCst), place + 1, "{kind}: {request}");
        }
    }
}

#[tokio::test]
async fn what_can_be_repeated_is_answered_by_another_endpoint() {
    let methods = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"];
    for (kind, then) in BREAKS {
        let bad = after_request(move |stream| std::future::ready(then(stream))).await;
        let good = Origin::http(|_| async { b"HTTP/1.1 204 No Content\r\n\r\n".to_vec() }).await;
        let service = "balance = \"round_robin\"\noutlier = { consecutive_errors = 0 }";
        let teal = Builder::app(&[&bad, &good]).service(service).start().await;
        for method in methods.repeat(2) {
            let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(ask(&teal, &request).await, 204, "{kind} of {method}");
        }
    }
}

#[tokio::test]
async fn nothing_is_repeated_once_a_byte_of_an_answer_was_seen() {
    let beginnings = ["H", "HTTP/1.1 200 OK\r\nContent-", "HTTP/1.1 103 Early Hints\r\n\r\n"];
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).service("retries = 5").start().await;
    for beginning in beginnings {
        for (kind, then) in BREAKS {
            let mut client = Client::connect(teal.address).await;
            client.send(GET).await;
            let mut call = calls.next().await;
            call.send(beginning).await;
            then(call.wire.stream);
            let mut answer = client.answer().await;
            if answer.status == 103 {
                answer = client.answer().await;
            }
            assert_eq!(answer.status, 502, "{kind} after {beginning:?}");
            assert!(calls.is_empty(), "{kind} after {beginning:?}");
        }
    }
}

/// The origin keeps connections and drops them whenever it likes: before, while and after it reads the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_on_a_reused_connection_reaches_an_origin_at_most_once() {
    const ROUNDS: usize = 400;
    let executed: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let next = Arc::new(AtomicUsize::new(0));
    let serve = |executed: Arc<Mutex<BTreeMap<String, usize>>>| {
        let next = next.clone();
        Origin::raw(move |mut stream| {
            let (executed, next) = (executed.clone(), next.clone());
            async move {
                let mut buffer = Vec::new();
                while let Some(request) = read_request(&mut stream, &mut buffer).await {
                    *executed.lock().entry(request.field("x-round").expect("a round").to_owned()).or_default() += 1;
                    match next.fetch_add(1, Ordering::SeqCst) % 5 {
                        // It was executed, and nobody will ever hear of it.
                        0 => return,
                        1 => return reset(&stream),
                        // Answered, and closed at once without a word: the next request finds a dead connection.
                        2 => return drop(stream.write_all(&ok("done")).await),
                        _ if stream.write_all(&ok("done")).await.is_err() => return,
                        _ => {}
                    }
                }
            }
        })
    };
    let origins = [serve(executed.clone()).await, serve(executed.clone()).await];
    let service = "retries = 3\noutlier = { consecutive_errors = 0 }";
    let teal = Builder::app(&[&origins[0], &origins[1]]).service(service).start().await;
    let mut answered = 0;
    for method in ["POST", "GET"] {
        let mut client = Client::connect(teal.address).await;
        for round in 0..ROUNDS {
            let round = format!("{method}-{round}");
            let body = if method == "POST" { "Content-Length: 2\r\n\r\nhi" } else { "\r\n" };
            client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nX-Round: {round}\r\n{body}")).await;
            let answer = client.answer().await;
            let times = executed.lock().get(&round).copied().unwrap_or(0);
            match (method, answer.status) {
                ("POST", 200) => assert_eq!(times, 1, "{round}"),
                ("POST", 502) => assert!(times <= 1, "{round} was executed {times} times"),
                ("GET", 200) => assert!(times >= 1, "{round}"),
                (_, status) => panic!("{round}: {status}"),
            }
            answered += usize::from(answer.status == 200);
            if answer.field("connection") == Some("close") {
                client = Client::connect(teal.address).await;
            }
        }
    }
    assert!(answered > ROUNDS, "{answered}");
}

#[tokio::test]
async fn a_connection_that_the_origin_has_closed_is_not_used() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    for _ in 0..20 {
        client.send(POST).await;
        let mut call = calls.next().await;
        call.expect("hi").await;
        call.send(ok("done")).await;
        assert_eq!(client.answer().await.text(), "done");
        drop(call);
    }
}

/// What follows an answer must never become the answer to somebody else.
#[tokio::test]
async fn bytes_after_the_end_of_an_answer_reach_nobody() {
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    let answers = [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine"),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\n"),
    ];
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).workers(1).start().await;
    for is_late in [false, true] {
        for (method, answer) in answers {
            let mut client = Client::connect(teal.address).await;
            client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            let mut call = calls.next().await;
            call.send(if is_late { answer.to_owned() } else { format!("{answer}{smuggled}") }).await;
            let got = if method == "HEAD" { client.answer_to_head().await } else { client.answer().await };
            assert!(matches!(got.text(), "" | "mine"), "{answer:?}: {got:?}");
            if is_late {
                call.send(smuggled).await;
            }
            client.send(GET).await;
            let mut second = calls.next().await;
            second.send(ok("fresh")).await;
            assert_eq!(client.answer().await.text(), "fresh", "after {answer:?}, late: {is_late}");
            // Not one that the next case could find idle.
            drop((call, second));
        }
    }
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_harms_nobody() {
    let origin = Origin::raw(|mut stream| async move {
        let _ = stream.write_all(&ok("too early")).await;
        while read_head(&mut stream, &mut Vec::new()).await.is_some() {
            let _ = stream.write_all(&ok("in time")).await;
        }
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    for _ in 0..20 {
        let answer = client.ask(POST).await;
        assert!([200, 502].contains(&answer.status), "{answer:?}");
        if answer.field("connection") == Some("close") {
            client = Client::connect(teal.address).await;
        }
    }
}

#[tokio::test]
async fn an_origin_that_dies_while_it_reads_is_502_and_the_client_sees_it() {
    const LENGTH: usize = 32 * 1024 * 1024;
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let client = Client::connect(teal.address).await;
    let (reader, mut writer) = client.stream.into_split();
    let sending = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n");
        writer.write_all(head.as_bytes()).await.expect("the proxy reads the head");
        support::body::write(&mut writer, LENGTH).await
    });
    let call = calls.next().await;
    reset(&call.wire.stream);
    drop(call);
    let mut answer = Vec::new();
    let mut reader = reader;
    while !answer.ends_with(b"502 the service cannot be reached\n") {
        let read = tokio::io::AsyncReadExt::read_buf(&mut reader, &mut answer);
        assert!(soon("the answer", read).await.expect("no reset before its end") > 0, "the answer is cut");
    }
    soon("the end of sending", sending).await.expect("no panic");
}

/// How often each of two endpoints has been asked.
fn asked(teal: &Teal) -> [u64; 2] {
    let snapshot = teal.state().load();
    let endpoints = snapshot.services[0].active_pool().endpoints();
    [endpoints[0].requests(), endpoints[1].requests()]
}

#[tokio::test]
async fn five_failures_in_a_row_eject_an_endpoint() {
    let failing: [(&str, Origin); 4] = [
        ("refuses", Origin::refusing()),
        ("resets", after_request(|stream| std::future::ready(reset(&stream))).await),
        ("lies", after_request(|mut stream| async move { drop(stream.write_all(b"garbage\r\n\r\n").await) }).await),
        ("says 503", Origin::http(|_| async { b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_vec() }).await),
    ];
    for (kind, bad) in failing {
        let good = Origin::saying("good").await;
        let service = "balance = \"round_robin\"\noutlier = { eject = \"5m\" }";
        // One worker has judged an answer before it looks at who comes next.
        let teal = start(Builder::app(&[&bad, &good]).service(service).workers(1)).await;
        for _ in 0..40 {
            get(teal.address, "/").await;
        }
        assert_eq!(asked(&teal)[0], 5, "{kind}");
        assert_eq!(get(teal.address, "/").await.text(), "good", "{kind}");
    }
}

#[tokio::test]
async fn an_answer_in_between_forgives() {
    let turn = AtomicUsize::new(0);
    let flaky = Origin::http(move |_| {
        let is_bad = turn.fetch_add(1, Ordering::SeqCst) % 5 != 4;
        async move { if is_bad { b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n".to_vec() } else { ok("good") } }
    });
    // An error of the application itself says nothing about the endpoint.
    let failing = Origin::http(|_| async { b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec() });
    let (flaky, failing) = (flaky.await, failing.await);
    let teal = Builder::app(&[&flaky, &failing]).service("balance = \"round_robin\"").workers(1).start().await;
    for _ in 0..40 {
        get(teal.address, "/").await;
    }
    assert_eq!(asked(&teal), [20, 20]);
}

#[tokio::test]
async fn the_last_endpoint_is_never_ejected() {
    let origins = [Origin::refusing(), Origin::refusing()];
    let teal = start(Builder::app(&[&origins[0], &origins[1]])).await;
    for _ in 0..40 {
        assert_eq!(get(teal.address, "/").await.status, 502, "asked to the end");
    }
}

#[tokio::test]
async fn an_ejected_endpoint_is_taken_back() {
    let (bad, good) = (Origin::refusing(), Origin::saying("good").await);
    let service = "balance = \"round_robin\"\noutlier = { consecutive_errors = 1, eject = \"50ms\" }";
    let teal = start(Builder::app(&[&bad, &good]).service(service)).await;
    while asked(&teal)[0] == 0 {
        assert_eq!(get(teal.address, "/").await.status, 200);
    }
    let is_ejected = || teal.state().load().services[0].active_pool().endpoints()[0].is_ejected();
    eventually("the endpoint is taken back", || !is_ejected()).await;
    while asked(&teal)[0] == 1 {
        assert_eq!(get(teal.address, "/").await.status, 200);
    }
}

/// Whatever a client does or does not do, the endpoint that it was sent to does not look ill for it.
#[tokio::test]
async fn clients_cannot_eject_an_endpoint() {
    let origin = Origin::raw(|mut stream| async move {
        let mut buffer = Vec::new();
        while let Some(head) = read_head(&mut stream, &mut buffer).await {
            let answer = match head.split(' ').nth(1) {
                Some("/who") => ok("it"),
                Some("/endless") => b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
                Some("/early") => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
                _ => Vec::new(),
            };
            let _ = stream.write_all(&answer).await;
            if head.starts_with("GET /endless") {
                support::body::write(&mut stream, usize::MAX).await;
            }
        }
    });
    let (origin, other) = (origin.await, Origin::saying("another").await);
    let service = "balance = \"hash:header:x-key\"\noutlier = { consecutive_errors = 2 }";
    let teal = Builder::app(&[&origin, &other]).listener("body_timeout = \"500ms\"").service(service).start().await;
    let mut key = 0;
    let ask_who = async |key| ask_text(&teal, format!("GET /who HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\n\r\n")).await;
    while ask_who(key).await != "it" {
        key += 1;
    }
    let clients = [
        ("reads nothing", "GET /endless", "", true),
        ("leaves a download", "GET /endless", "", false),
        ("leaves a silence", "GET /silence", "", false),
        ("sends half a body", "POST /silence", "Content-Length: 4\r\n\r\nhi", true),
        ("leaves in its body", "POST /silence", "Content-Length: 4\r\n\r\nhi", false),
        ("sends half a body to an early answer", "GET /early", "Content-Length: 4\r\n\r\nhi", true),
        ("sends a broken body", "POST /silence", "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nx", true),
    ];
    for (what, line, rest, stays) in clients {
        for _ in 0..4 {
            let before = asked(&teal)[0];
            let mut client = Client::connect(teal.address).await;
            let end = if rest.is_empty() { "\r\n" } else { "" };
            client.send(format!("{line} HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\n{rest}{end}")).await;
            eventually("the request has arrived", || asked(&teal)[0] > before).await;
            let client = stays.then_some(client);
            eventually("the request is over", || in_flight(&teal) == 0).await;
            drop(client);
        }
        let is_ejected = teal.state().load().services[0].active_pool().endpoints()[0].is_ejected();
        assert!(!is_ejected, "a client that {what} has ejected its endpoint");
    }
}

fn in_flight(teal: &Teal) -> usize {
    teal.state().load().services[0].active_pool().endpoints()[0].in_flight()
}

/// One that does not keep connections is not asked to.
#[tokio::test]
async fn an_origin_that_closes_gets_a_new_connection_each_time() {
    let heads = ["HTTP/1.1 200 OK\r\nConnection: close", "HTTP/1.0 200 OK"];
    for head in heads {
        let (origin, mut calls) = by_hand().await;
        let teal = Builder::app(&[&origin]).start().await;
        let mut client = Client::connect(teal.address).await;
        let mut open: Vec<Call> = Vec::new();
        for _ in 0..3 {
            client.send(GET).await;
            let mut call = calls.next().await;
            call.send(format!("{head}\r\nContent-Length: 2\r\n\r\nok")).await;
            assert_eq!(client.answer().await.text(), "ok");
            open.push(call);
        }
        for mut call in open {
            assert!(call.gone().await.is_empty(), "the proxy closes it");
        }
    }
}
