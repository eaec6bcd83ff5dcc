//! After any mess that clients and origins make together, nothing is left behind: no place taken, no request counted as
//! running, no worker harmed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::client::Client;
use crate::support::origin::{Origin, ok, read_head};
use crate::support::proxy::{Builder, Teal};
use crate::support::{eventually, soon};

const CLIENTS: u64 = 400;
const AT_ONCE: u64 = 20;
/// Set it to the seed of a failure, and clients and origins do the same again.
const SEED: &str = "CHAOS_SEED";

const REQUESTS: [&str; 8] = [
    "GET /# HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /# HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "HEAD /# HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /# HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789",
    "PUT /# HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "POST /# HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    "GET /# HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "DELETE /# HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
];

const ANSWERS: [&str; 9] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\n\r\nuntil close",
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nframes",
    "",
];

/// One of these, often damaged: an octet replaced, or the end missing. A `#` in it becomes a number, by which an origin
/// tells requests apart.
fn mess(of: &[&str], random: &mut Rng) -> Vec<u8> {
    let number = random.u32(..).to_string();
    let mut bytes = of[random.usize(..of.len())].replace('#', &number).into_bytes();
    if !bytes.is_empty() && random.u8(..4) == 0 {
        let at = random.usize(..bytes.len());
        bytes[at] = random.choice(b"\r\n :,;0aA\0\xff".iter().copied()).unwrap_or(b'x');
    }
    if random.u8(..4) == 0 {
        bytes.truncate(random.usize(..=bytes.len()));
    }
    bytes
}

/// Ends a connection in one of the ways there are, or lets it be for a moment.
async fn end(mut stream: TcpStream, random: &mut Rng) {
    match random.u8(..4) {
        0 => SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket"),
        1 => drop(stream.shutdown().await),
        2 => {
            let for_a_moment = Duration::from_millis(random.u64(..300));
            let _ = timeout(for_a_moment, stream.read_to_end(&mut Vec::new())).await;
        }
        _ => {}
    }
}

/// What it does depends on the seed and on the request line alone, not on the order in which requests come.
async fn unreliable(seed: u64) -> Origin {
    Origin::raw(move |mut stream| async move {
        let mut buffer = Vec::new();
        while let Some(head) = read_head(&mut stream, &mut buffer).await {
            // Not at its start: a body, which this origin takes for a head, may have come before on the connection.
            let is_good = head.contains("GET /good ");
            let mut random = random_for(seed, head.lines().next());
            let answer = if is_good { ok("good") } else { mess(&ANSWERS, &mut random) };
            if stream.write_all(&answer).await.is_err() || random.u8(..3) == 0 && !is_good {
                return end(stream, &mut random).await;
            }
        }
    })
    .await
}

fn random_for(seed: u64, what: impl Hash) -> Rng {
    let mut hasher = DefaultHasher::new();
    (seed, what).hash(&mut hasher);
    Rng::with_seed(hasher.finish())
}

async fn unreliable_client(teal: Arc<Teal>, mut random: Rng) {
    let Ok(mut stream) = TcpStream::connect(teal.address).await else { return };
    for _ in 0..random.u8(1..4) {
        if stream.write_all(&mess(&REQUESTS, &mut random)).await.is_err() {
            return;
        }
        let for_a_moment = Duration::from_millis(random.u64(..50));
        let _ = timeout(for_a_moment, stream.read_buf(&mut Vec::with_capacity(4096))).await;
    }
    end(stream, &mut random).await;
}

/// Whether a request is answered as it should be. An answer may be broken, or never end: what an origin has said too
/// much on a connection comes before the answer.
async fn is_served(teal: &Teal) -> bool {
    let mut client = Client::connect(teal.address).await;
    client.send("GET /good HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let answer = timeout(Duration::from_secs(1), client.try_answer(false)).await;
    answer.is_ok_and(|answer| answer.is_some_and(|answer| answer.body == b"good"))
}

/// What the proxy counts as going on.
fn busy(teal: &Teal) -> (i64, i64, usize) {
    let snapshot = teal.state().load();
    let service = &snapshot.services[0];
    let shards = service.stats.shards(service.active);
    let requests = shards.flat_map(|shard| &shard.in_flight).map(|count| count.load(Ordering::SeqCst)).sum();
    let connections = teal.state().listeners().iter().map(|(_, stats)| stats.connections.load(Ordering::SeqCst)).sum();
    (connections, requests, service.active_pool().endpoints().iter().map(|endpoint| endpoint.in_flight()).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_behind() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name().is_some_and(|name| name.starts_with("worker-")) {
            PANICS.fetch_add(1, Ordering::SeqCst);
        }
        hook(info);
    }));
    let seed = std::env::var(SEED).map_or_else(|_| Rng::new().u64(..), |seed| seed.parse().expect("a number"));
    // Shown when the test fails.
    println!("{SEED}={seed}");
    let origins = [unreliable(seed).await, unreliable(seed.wrapping_add(1)).await];
    let limits = "header_timeout = \"100ms\"\nbody_timeout = \"100ms\"\nidle_timeout = \"100ms\"";
    let service = "response_timeout = \"100ms\"\nqueue_timeout = \"50ms\"\nmax_in_flight = 6\nretries = 2";
    let teal = Arc::new(Builder::app(&[&origins[0], &origins[1]]).listener(limits).service(service).start().await);
    for round in 0..CLIENTS / AT_ONCE {
        let client = |number| unreliable_client(teal.clone(), random_for(seed, round * AT_ONCE + number));
        let clients: Vec<_> = (0..AT_ONCE).map(|number| tokio::spawn(client(number))).collect();
        for client in clients {
            client.await.expect("a client");
        }
    }
    eventually("nothing goes on any more", || busy(&teal) == (0, 0, 0)).await;
    let asking = async { while !is_served(&teal).await {} };
    soon("a good answer", asking).await;
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a worker has panicked");
}
