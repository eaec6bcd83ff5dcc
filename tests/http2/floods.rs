//! Frames that are allowed one by one, and many of them: they end, and cost nobody else anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use teal::metrics::Rejection;

use crate::abuse::{all_is_well, stage};
use crate::good::Good;
use crate::raw::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, NO_ERROR, Outcome, PING,
    PREFACE, PRIORITY, Raw, SETTINGS, block, field, frame, get, post, pseudo, reset, setting, window_update,
};
use crate::support::client::Client;
use crate::support::origin::{Origin, ok};
use crate::support::proxy::Builder;
use crate::support::{eventually, soon};

/// Sends `piece` until the proxy has had enough; says how many it took. Reads what comes back, so that nothing but the
/// proxy's patience ends it.
async fn flood(client: &mut Raw, most: usize, mut piece: impl FnMut(usize) -> Vec<u8>) -> Option<usize> {
    for n in 0..most {
        if !client.send(piece(n)).await {
            return Some(n);
        }
        // Takes what there is, and no more.
        while let Ok(result) = tokio::time::timeout(Duration::ZERO, client.wire.more()).await {
            if result.is_none() {
                return Some(n);
            }
        }
    }
    // It may have been the last piece.
    (!client.settle().await).then_some(most)
}

/// Octets of a flood in one write.
fn many(frame: &[u8]) -> Vec<u8> {
    frame.repeat(1000)
}

#[tokio::test]
async fn floods_of_idle_frames_end_the_connection() {
    let (teal, _origin) = stage("").await;
    let floods: [(&str, Vec<u8>); 10] = [
        ("PING (CVE-2019-9512)", frame(PING, 0, 0, [0; 8])),
        ("PING that is answered nothing", frame(PING, 1, 0, [0; 8])),
        ("SETTINGS (CVE-2019-9515)", frame(SETTINGS, 0, 0, setting(1, 0))),
        ("empty SETTINGS", frame(SETTINGS, 0, 0, "")),
        ("PRIORITY (CVE-2019-9513)", frame(PRIORITY, 0, 3, [0, 0, 0, 1, 7])),
        ("PRIORITY of another stream each", frame(PRIORITY, 0, 0x7fff_ffff, [0, 0, 0, 1, 7])),
        ("WINDOW_UPDATE", window_update(0, 1)),
        ("WINDOW_UPDATE of a stream", window_update(1, 1)),
        ("RST_STREAM of a stream that has ended", reset(1, CANCEL)),
        ("unknown frames", frame(0xee, 0, 0, "")),
    ];
    for (name, frame) in floods {
        let mut client = Raw::connect(teal.address).await;
        client.send(get(1, "/")).await;
        assert_eq!(client.outcome(1).await.status(), 200);
        let frames = flood(&mut client, 100, |_| many(&frame)).await;
        assert!(frames.is_some(), "{name} may go on for ever");
        drop(client);
        all_is_well(&teal, name).await;
    }
}

/// What a good client sends besides requests is no flood, however long it goes on.
#[tokio::test]
async fn pings_and_windows_of_a_busy_connection_are_no_flood() {
    let (teal, _origin) = stage("").await;
    let mut client = Raw::connect(teal.address).await;
    for n in 0..2_000 {
        let stream = 2 * n + 1;
        let beside = [frame(PING, 0, 0, [0; 8]), window_update(0, 1), frame(PRIORITY, 0, stream, [0, 0, 0, 0, 15])];
        client.send([beside.concat(), get(stream, "/"), window_update(stream, 1)].concat()).await;
        assert_eq!(client.outcome(stream).await.status(), 200);
    }
}

/// CVE-2024-27316 and its kin: a head that never ends.
#[tokio::test]
async fn endless_heads_end_the_connection() {
    let (teal, _origin) = stage("").await;
    let crumb = field("x", "y".repeat(1000)).repeat(16);
    let cases: [(&str, Vec<u8>, Vec<u8>); 4] = [
        ("empty CONTINUATION", pseudo("GET", "/"), Vec::new()),
        ("CONTINUATION with fields", pseudo("GET", "/"), crumb),
        ("CONTINUATION with small fields", pseudo("GET", "/"), field("x", "y")),
        // The field is never whole.
        (
            "CONTINUATION of one field",
            [&pseudo("GET", "/")[..], &[0, 1, b'x', 0x7f, 0xff, 0xff, 0xff, 0x07]].concat(),
            vec![b'y'; 16_000],
        ),
    ];
    for (name, first, next) in cases {
        let mut client = Raw::connect(teal.address).await;
        client.send(frame(HEADERS, END_STREAM, 1, first)).await;
        let frames = flood(&mut client, 2_000, |_| frame(CONTINUATION, 0, 1, &next)).await;
        assert!(frames.is_some_and(|frames| frames < 1_000), "{name}: {frames:?}");
        drop(client);
        all_is_well(&teal, name).await;
    }
}

#[tokio::test]
async fn empty_frames_end_the_connection() {
    let (teal, _origin) = stage("").await;
    // CVE-2019-9518.
    let mut client = Raw::connect(teal.address).await;
    client.send(post(1, "/wait")).await;
    let frames = flood(&mut client, 100, |_| many(&frame(DATA, 0, 1, ""))).await;
    assert!(frames.is_some(), "empty DATA may go on for ever");
    drop(client);
    // Heads without fields: each is a stream of its own that is reset.
    let mut client = Raw::connect(teal.address).await;
    let frames = flood(&mut client, 5_000, |n| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n as u32 + 1, "")).await;
    assert!(frames.is_some(), "empty HEADERS may go on for ever");
    drop(client);
    all_is_well(&teal, "after empty frames").await;
}

/// HPACK lets a small block stand for a large list (CVE-2016-6581, CVE-2026-49975): what counts is what it stands for.
#[tokio::test]
async fn small_blocks_that_stand_for_large_lists_are_refused() {
    let (teal, _origin) = stage("").await;
    let indexed = |name: &str, value: &str| {
        let mut literal = field(name, value);
        literal[0] = 0x40;
        literal
    };
    let large = indexed("x-large", &"y".repeat(3_900));
    let crumb = indexed("cookie", "a");
    // The entry that was indexed last.
    let cases = [
        ("a large field, repeated", [large.clone(), vec![0xbe; 30]].concat(), 431),
        ("a large field, repeated until it is absurd", [large, vec![0xbe; 10_000]].concat(), 0),
        ("crumbs of a cookie", [crumb.clone(), vec![0xbe; 2_000]].concat(), 431),
        ("many more crumbs", [crumb.clone(), vec![0xbe; 16_000]].concat(), 0),
        ("crumbs as many as are good", [crumb, vec![0xbe; 95]].concat(), 200),
        ("fields", vec![0x90; 150], 431),
    ];
    for (name, fields, status) in cases {
        let mut client = Raw::connect(teal.address).await;
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, [pseudo("GET", "/"), fields].concat())).await;
        let outcome = client.outcome(1).await;
        match status {
            0 => assert_eq!(outcome, Outcome::GoAway(ENHANCE_YOUR_CALM), "{name}"),
            status => assert_eq!(outcome.status(), status, "{name}: {outcome:?}"),
        }
        drop(client);
        all_is_well(&teal, name).await;
    }
}

/// An origin that never answers and counts what reaches it.
async fn counting() -> (Origin, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let origin = Origin::http(move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            if request.line().contains("/wait") {
                std::future::pending::<()>().await;
            }
            ok("ok")
        }
    });
    (origin.await, asked)
}

/// CVE-2023-44487: requests that are given up at once cost an origin nothing, and their sender the connection.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let (origin, asked) = counting().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Raw::connect(teal.address).await;
    let pair = |n: usize| [get(2 * n as u32 + 1, "/wait"), reset(2 * n as u32 + 1, CANCEL)].concat();
    let frames = flood(&mut client, 200, |n| (0..50).flat_map(|m| pair(50 * n + m)).collect()).await;
    assert!(frames.is_some(), "it may go on for ever");
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked < 1_500, "{asked} requests reached the origin");
    drop(client);
    all_is_well(&teal, "after rapid resets").await;
}

/// The same, but slow enough that each request reaches the origin.
#[tokio::test]
async fn resets_that_take_their_time_end_the_connection_too() {
    let (origin, asked) = counting().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Raw::connect(teal.address).await;
    let mut count = 0;
    while count < 2_000 {
        let stream = 2 * count as u32 + 1;
        if !client.send(get(stream, "/wait")).await {
            break;
        }
        count += 1;
        let seen = || asked.load(Ordering::SeqCst) >= count;
        if count <= 500 {
            eventually("the origin has it", seen).await;
        }
        client.send(reset(stream, CANCEL)).await;
        if count > 500 && !client.settle().await {
            break;
        }
    }
    assert!((500..600).contains(&count), "ended after {count}");
    drop(client);
    all_is_well(&teal, "after late resets").await;
}

/// A client that waits for more answers than it gives up is a browser.
#[tokio::test]
async fn who_gives_up_less_than_half_may_go_on() {
    let (origin, _) = counting().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Raw::connect(teal.address).await;
    for n in 0..1_200 {
        let (first, second) = (4 * n + 1, 4 * n + 3);
        client.send([get(first, "/wait"), get(second, "/")].concat()).await;
        assert_eq!(client.outcome(second).await.status(), 200, "after {n}");
        client.send(reset(first, CANCEL)).await;
    }
    assert!(client.settle().await);
}

/// CVE-2025-8671: the client makes us reset what it has asked for.
#[tokio::test]
async fn resets_that_the_client_makes_us_send_end_the_connection() {
    let (origin, asked) = counting().await;
    let teal = Builder::app(&[&origin]).start().await;
    let provocations: [(&str, fn(u32) -> Vec<u8>); 4] = [
        ("a window that overflows", |stream| window_update(stream, 0x7fff_ffff)),
        ("priority of itself", |stream| frame(PRIORITY, 0, stream, [&stream.to_be_bytes()[..], &[15]].concat())),
        ("more than the length", |stream| frame(DATA, 0, stream, "xxxxx")),
        ("trailers that do not end", |stream| frame(HEADERS, END_HEADERS, stream, block(&[("x", "y")]))),
    ];
    for (name, provoke) in provocations {
        asked.store(0, Ordering::SeqCst);
        let mut client = Raw::connect(teal.address).await;
        let head = [pseudo("POST", "/wait"), block(&[("content-length", "1")])].concat();
        let open = |stream: u32| frame(HEADERS, END_HEADERS, stream, &head);
        let frames = flood(&mut client, 3_000, |n| [open(2 * n as u32 + 1), provoke(2 * n as u32 + 1)].concat()).await;
        assert!(frames.is_some_and(|frames| frames < 2_000), "{name}: {frames:?}");
        drop(client);
        all_is_well(&teal, name).await;
    }
}

/// A balancer's connection carries the mistakes of many clients, for months.
#[tokio::test]
async fn errors_that_come_one_by_one_end_no_request() {
    let (teal, _origin) = stage("").await;
    let mut client = Raw::connect(teal.address).await;
    let mut errors = 0;
    loop {
        let stream = 4 * errors + 1;
        client.send([post(stream, "/wait"), window_update(stream, 0x7fff_ffff), get(stream + 2, "/")].concat()).await;
        // The last of them may come after the goodbye, and is served like the others.
        let mut is_leaving = false;
        loop {
            let frame = client.next().await.expect("the connection goes on");
            match frame.kind {
                GOAWAY => {
                    assert_eq!(frame.code(), NO_ERROR, "after {errors}");
                    is_leaving = true;
                }
                // It waits for the client to have seen the goodbye.
                PING => drop(client.send(self::frame(PING, 1, 0, &frame.payload)).await),
                HEADERS if frame.stream == stream + 2 => assert_eq!(frame.status(), 200, "after {errors}"),
                _ => {}
            }
            if frame.stream == stream + 2 && frame.flags & END_STREAM != 0 {
                break;
            }
        }
        errors += 1;
        if is_leaving {
            break;
        }
        assert!(errors < 200, "no goodbye");
    }
    assert!(errors >= 100, "goodbye after {errors}");
    // The last word names no error either.
    while let Some(frame) = client.next().await {
        match frame.kind {
            GOAWAY => assert_eq!(frame.code(), NO_ERROR),
            PING => drop(client.send(self::frame(PING, 1, 0, &frame.payload)).await),
            _ => {}
        }
    }
    drop(client);
    all_is_well(&teal, "after a goodbye").await;
}

#[tokio::test]
async fn connections_that_open_streams_and_leave_leave_nothing() {
    let (teal, _origin) = stage("").await;
    for n in 0..40 {
        let mut client = Raw::connect(teal.address).await;
        let streams: Vec<u8> = (0..100).flat_map(|n| get(2 * n + 1, "/wait")).collect();
        client.send(streams).await;
        if n % 2 == 0 {
            client.settle().await;
        }
    }
    all_is_well(&teal, "after clients that left").await;
}

/// Whoever begins something and does not go on is not waited for.
#[tokio::test]
async fn what_stalls_ends_in_time() {
    let (teal, _origin) = stage("header_timeout = \"1s\"\nidle_timeout = \"1s\"\n").await;
    let address = teal.address;
    let half_head = frame(HEADERS, END_STREAM, 1, pseudo("GET", "/"));
    let cases: [(&str, &[u8]); 4] = [
        ("half a preface", b"PRI * HT"),
        ("a preface alone", b""),
        ("half a frame", &half_head[..20]),
        ("a head that is not ended", &half_head),
    ];
    let stalled = cases.map(|(name, octets)| async move {
        let mut client = Raw { wire: Client::connect(address).await };
        let preface = if octets.starts_with(b"PRI") { b"".as_slice() } else { PREFACE };
        client.send([preface, octets].concat()).await;
        soon(name, async { while client.wire.more().await.is_some() {} }).await;
    });
    join_all(stalled).await;
    // An idle connection is told, and its client need not answer.
    let mut client = Raw::connect(teal.address).await;
    client.send(get(1, "/")).await;
    assert_eq!(client.outcome(1).await.status(), 200);
    let goodbye: Vec<u32> = client.rest().await.iter().filter(|frame| frame.kind == GOAWAY).map(|f| f.code()).collect();
    assert!(goodbye.iter().all(|code| *code == NO_ERROR) && !goodbye.is_empty(), "{goodbye:?}");
    all_is_well(&teal, "after those that stalled").await;
    // One that answers is gone at once.
    let good = Good::connect(teal.address).await;
    soon("the end of an idle connection", good.connection).await.expect("no panic").expect("an end in order");
}

/// A head gets `header_timeout`, however slowly it comes, and not what an idle connection gets.
#[tokio::test]
async fn half_a_head_is_not_waited_for_as_long_as_an_idle_connection() {
    let (teal, _origin) = stage("header_timeout = \"1s\"\nidle_timeout = \"1h\"\n").await;
    let address = teal.address;
    let mut idle = Raw::connect(address).await;
    idle.send(get(1, "/")).await;
    assert_eq!(idle.outcome(1).await.status(), 200);
    let (whole, open) = (get(3, "/"), frame(HEADERS, END_STREAM, 3, pseudo("GET", "/")));
    let cases =
        [("half a frame", &whole[..20]), ("a head that is not ended", &open), ("a dribbled head", &whole[..10])];
    let stalled = cases.map(|(name, octets)| {
        let mut rest = whole[10..].iter().take(if name == "a dribbled head" { 30 } else { 0 });
        async move {
            let mut client = Raw::connect(address).await;
            client.send(get(1, "/")).await;
            assert_eq!(client.outcome(1).await.status(), 200);
            client.send(octets).await;
            let end = async {
                let mut pause = tokio::time::interval(Duration::from_millis(100));
                loop {
                    tokio::select! {
                        more = client.wire.more() => if more.is_none() { return },
                        _ = pause.tick() => if let Some(octet) = rest.next() {
                            let _ = client.wire.stream.try_write(&[*octet]);
                        },
                    }
                }
            };
            soon(name, end).await;
        }
    });
    join_all(stalled).await;
    let stats = teal.state().listener_stats(&teal.listener.to_string());
    assert_eq!(stats.rejected(Rejection::HeaderTimeout), 3);
    idle.send(get(3, "/")).await;
    assert_eq!(idle.outcome(3).await.status(), 200, "an idle one was not meant");
}
