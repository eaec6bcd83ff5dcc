//! Frames that RFC 9113 forbids, one by one: whoever sends them loses a stream or his connection, and nobody else notices.

use std::sync::atomic::Ordering;

use teal::config::Color;

use crate::good;
use crate::raw::{
    ACK, CANCEL, COMPRESSION_ERROR, CONTINUATION, DATA, END_HEADERS, END_STREAM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR,
    GOAWAY, HAS_PRIORITY, HEADERS, NO_ERROR, Outcome, PADDED, PING, PREFACE, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE,
    REFUSED_STREAM, RST_STREAM, Raw, SETTINGS, STREAM_CLOSED, WINDOW_UPDATE, block, frame, get, post, pseudo, reset,
    setting, window_update,
};
use crate::support::client::Client;
use crate::support::origin::{Origin, ok};
use crate::support::proxy::{Builder, Teal};
use crate::support::{eventually, soon};

/// What a case leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// The end of the connection.
    Ends(u32),
    /// The same, but `h2` says PROTOCOL_ERROR where the RFC has this word.
    Blunt(u32),
    /// The end of stream 1; the connection goes on.
    Resets(u32),
    /// So the RFC; with `h2` the connection ends.
    Stern(u32),
    /// Stream 1 is answered all the same, and the connection goes on.
    Serves,
    /// Nothing; the connection goes on.
    Nothing,
}

use Then::{Blunt, Ends, Nothing, Resets, Serves, Stern};

type Case = (&'static str, Vec<u8>, Then);

/// A proxy whose origin keeps what asks for `/wait` waiting, and answers everything else.
pub(crate) async fn stage(listener: &str) -> (Teal, Origin) {
    let origin = Origin::http(|request| async move {
        if request.line().contains(" /wait") {
            std::future::pending::<()>().await;
        }
        ok("ok")
    });
    let origin = origin.await;
    (Builder::app(&[&origin]).listener(listener).start().await, origin)
}

/// A good client is served, and nothing is left of the others.
pub(crate) async fn all_is_well(teal: &Teal, what: &str) {
    assert_eq!(good::get_once(teal.address, "/").await.status, 200, "{what}");
    let snapshot = teal.state().load();
    let under_way = || {
        let shards = [Color::Blue, Color::Green].map(|color| snapshot.services[0].stats.shards(color));
        shards.into_iter().flatten().flat_map(|shard| &shard.in_flight).any(|count| count.load(Ordering::SeqCst) != 0)
    };
    eventually("no request is under way", || !under_way()).await;
    let stats = teal.state().listeners()[0].1.clone();
    eventually("no connection is open", || stats.connections.load(Ordering::SeqCst) == 0).await;
}

fn in_a_row(pieces: &[Vec<u8>]) -> Vec<u8> {
    pieces.concat()
}

fn settings(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, setting(id, value))
}

/// HEADERS that hold these octets.
fn headers(flags: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    frame(HEADERS, flags, 1, payload)
}

fn frames_and_fields() -> Vec<Case> {
    let whole = END_HEADERS | END_STREAM;
    let self_dependent = [&[0, 0, 0, 1, 15][..], &pseudo("GET", "/")].concat();
    let padded = |length: u8| [&[length][..], &pseudo("GET", "/")].concat();
    let and = |octets: &[u8]| headers(whole, [&pseudo("GET", "/"), octets].concat());
    vec![
        ("§4.1 an unknown type is ignored", in_a_row(&[frame(0xee, 0xff, 1, "what"), get(1, "/")]), Serves),
        ("§4.1 unknown flags are ignored", frame(HEADERS, whole | 0xd2, 1, pseudo("GET", "/")), Serves),
        ("§4.1 a reserved bit is ignored", frame(HEADERS, whole, 1 | 1 << 31, pseudo("GET", "/")), Serves),
        ("§4.2 DATA too large", in_a_row(&[post(1, "/wait"), frame(DATA, 0, 1, [0; 16_385])]), Ends(FRAME_SIZE_ERROR)),
        ("§4.2 HEADERS too large", headers(whole, [0; 16_385]), Ends(FRAME_SIZE_ERROR)),
        ("§4.2 an unknown frame too large", frame(0xee, 0, 0, [0; 16_385]), Ends(FRAME_SIZE_ERROR)),
        ("§4.2 the largest length", vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1], Ends(FRAME_SIZE_ERROR)),
        ("§4.3 index 0", and(&[0x80]), Blunt(COMPRESSION_ERROR)),
        ("§4.3 an index of nothing", and(&[0xff, 0x80, 0x01]), Blunt(COMPRESSION_ERROR)),
        ("§4.3 an endless integer", and(&[0xff; 16]), Blunt(COMPRESSION_ERROR)),
        ("§4.3 half a field", and(&[0x00, 0x05, b'x']), Blunt(COMPRESSION_ERROR)),
        (
            "§4.3 a table larger than allowed",
            headers(whole, [&[0x3f, 0xe1, 0xff, 0x03][..], &pseudo("GET", "/")].concat()),
            Blunt(COMPRESSION_ERROR),
        ),
        ("§4.3 a size update behind a field", and(&[0x20]), Blunt(COMPRESSION_ERROR)),
        (
            "§4.3 the end of Huffman's code",
            and(&[0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x01, b'x']),
            Blunt(COMPRESSION_ERROR),
        ),
        (
            "§5.3.1 HEADERS that depend on themselves",
            headers(whole | HAS_PRIORITY, self_dependent),
            Resets(PROTOCOL_ERROR),
        ),
        ("§5.3.1 PRIORITY that depends on itself", frame(PRIORITY, 0, 1, [0, 0, 0, 1, 15]), Resets(PROTOCOL_ERROR)),
        (
            "§6.1 padding larger than the payload",
            in_a_row(&[post(1, "/wait"), frame(DATA, PADDED, 1, [9, 0, 0])]),
            Ends(PROTOCOL_ERROR),
        ),
        (
            "§6.1 nothing but the mark of padding",
            in_a_row(&[post(1, "/wait"), frame(DATA, PADDED, 1, "")]),
            Ends(PROTOCOL_ERROR),
        ),
        ("§6.1 nothing but padding", in_a_row(&[post(1, "/"), frame(DATA, PADDED | END_STREAM, 1, [2, 0, 0])]), Serves),
        ("§6.2 padding larger than the payload", headers(whole | PADDED, padded(255)), Ends(PROTOCOL_ERROR)),
        ("§6.2 priority without room for it", headers(whole | HAS_PRIORITY, [0; 4]), Ends(PROTOCOL_ERROR)),
        ("§6.3 PRIORITY too short", frame(PRIORITY, 0, 1, [0; 4]), Blunt(FRAME_SIZE_ERROR)),
        ("§6.3 PRIORITY too long", frame(PRIORITY, 0, 1, [0; 6]), Blunt(FRAME_SIZE_ERROR)),
        (
            "§6.4 RST_STREAM too short",
            in_a_row(&[get(1, "/wait"), frame(RST_STREAM, 0, 1, [0; 3])]),
            Blunt(FRAME_SIZE_ERROR),
        ),
        (
            "§6.4 RST_STREAM too long",
            in_a_row(&[get(1, "/wait"), frame(RST_STREAM, 0, 1, [0; 5])]),
            Blunt(FRAME_SIZE_ERROR),
        ),
        ("§6.7 PING too short", frame(PING, 0, 0, [0; 7]), Blunt(FRAME_SIZE_ERROR)),
        ("§6.7 PING too long", frame(PING, 0, 0, [0; 9]), Blunt(FRAME_SIZE_ERROR)),
        ("§6.8 GOAWAY too short", frame(GOAWAY, 0, 0, [0; 7]), Blunt(FRAME_SIZE_ERROR)),
        ("§6.9 WINDOW_UPDATE too short", frame(WINDOW_UPDATE, 0, 0, [0; 3]), Blunt(FRAME_SIZE_ERROR)),
        ("§6.9 WINDOW_UPDATE too long", frame(WINDOW_UPDATE, 0, 0, [0; 5]), Blunt(FRAME_SIZE_ERROR)),
    ]
}

fn states_of_streams() -> Vec<Case> {
    let trailers = |stream: u32| frame(HEADERS, END_HEADERS | END_STREAM, stream, block(&[("x", "y")]));
    let half = frame(HEADERS, END_STREAM, 1, pseudo("GET", "/"));
    vec![
        ("§5.1 DATA on an idle stream", frame(DATA, 0, 1, "x"), Ends(PROTOCOL_ERROR)),
        ("§5.1 RST_STREAM on an idle stream", reset(1, CANCEL), Ends(PROTOCOL_ERROR)),
        ("§5.1 WINDOW_UPDATE on an idle stream", window_update(1, 1), Ends(PROTOCOL_ERROR)),
        ("§5.1 PRIORITY on an idle stream", in_a_row(&[frame(PRIORITY, 0, 3, [0, 0, 0, 0, 15]), get(1, "/")]), Serves),
        ("§5.1 DATA behind END_STREAM", in_a_row(&[get(1, "/wait"), frame(DATA, 0, 1, "x")]), Blunt(STREAM_CLOSED)),
        ("§5.1 HEADERS behind END_STREAM", in_a_row(&[get(1, "/wait"), get(1, "/wait")]), Blunt(STREAM_CLOSED)),
        ("§5.1 trailers behind END_STREAM", in_a_row(&[get(1, "/wait"), trailers(1)]), Blunt(STREAM_CLOSED)),
        (
            "§5.1 DATA behind RST_STREAM",
            in_a_row(&[post(1, "/wait"), reset(1, CANCEL), frame(DATA, 0, 1, "x")]),
            Resets(STREAM_CLOSED),
        ),
        (
            "§5.1 HEADERS behind RST_STREAM",
            in_a_row(&[post(1, "/wait"), reset(1, CANCEL), trailers(1)]),
            Blunt(STREAM_CLOSED),
        ),
        (
            "§5.1 WINDOW_UPDATE behind RST_STREAM",
            in_a_row(&[get(1, "/wait"), reset(1, CANCEL), window_update(1, 1)]),
            Nothing,
        ),
        (
            "§5.1 RST_STREAM behind RST_STREAM",
            in_a_row(&[get(1, "/wait"), reset(1, CANCEL), reset(1, CANCEL)]),
            Nothing,
        ),
        (
            "§5.1 PRIORITY behind RST_STREAM",
            in_a_row(&[get(1, "/wait"), reset(1, CANCEL), frame(PRIORITY, 0, 1, [0, 0, 0, 0, 15])]),
            Nothing,
        ),
        ("§5.1.1 an even stream", get(2, "/"), Ends(PROTOCOL_ERROR)),
        ("§5.1.1 a stream that goes back", in_a_row(&[get(5, "/wait"), get(3, "/")]), Ends(PROTOCOL_ERROR)),
        ("§5.1.1 HEADERS on no stream", get(0, "/"), Ends(PROTOCOL_ERROR)),
        ("§6.1 DATA on no stream", frame(DATA, 0, 0, "x"), Ends(PROTOCOL_ERROR)),
        (
            "§6.2 another frame inside a head",
            in_a_row(&[half.clone(), frame(PING, 0, 0, [0; 8])]),
            Ends(PROTOCOL_ERROR),
        ),
        ("§6.2 another head inside a head", in_a_row(&[half.clone(), get(3, "/")]), Ends(PROTOCOL_ERROR)),
        ("§6.2 an unknown frame inside a head", in_a_row(&[half.clone(), frame(0xee, 0, 0, "")]), Ends(PROTOCOL_ERROR)),
        ("§6.3 PRIORITY on no stream", frame(PRIORITY, 0, 0, [0, 0, 0, 0, 15]), Ends(PROTOCOL_ERROR)),
        ("§6.4 RST_STREAM on no stream", reset(0, CANCEL), Ends(PROTOCOL_ERROR)),
        (
            "§6.6 PUSH_PROMISE from a client",
            in_a_row(&[
                get(1, "/wait"),
                frame(PUSH_PROMISE, END_HEADERS, 1, [&[0, 0, 0, 2][..], &pseudo("GET", "/")].concat()),
            ]),
            Ends(PROTOCOL_ERROR),
        ),
        ("§6.10 CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, ""), Ends(PROTOCOL_ERROR)),
        (
            "§6.10 CONTINUATION of a whole head",
            in_a_row(&[get(1, "/wait"), frame(CONTINUATION, END_HEADERS, 1, "")]),
            Ends(PROTOCOL_ERROR),
        ),
        (
            "§6.10 CONTINUATION of another stream",
            in_a_row(&[half.clone(), frame(CONTINUATION, END_HEADERS, 3, "")]),
            Ends(PROTOCOL_ERROR),
        ),
        ("§6.10 CONTINUATION on no stream", frame(CONTINUATION, END_HEADERS, 0, ""), Ends(PROTOCOL_ERROR)),
        ("§6.10 an empty CONTINUATION", in_a_row(&[half, frame(CONTINUATION, END_HEADERS, 1, "")]), Serves),
    ]
}

fn of_the_connection() -> Vec<Case> {
    let most = (1 << 31) - 1;
    vec![
        ("§6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, ""), Ends(PROTOCOL_ERROR)),
        ("§6.5 SETTINGS of half a setting", frame(SETTINGS, 0, 0, [0; 5]), Blunt(FRAME_SIZE_ERROR)),
        ("§6.5 an acknowledgement with settings", frame(SETTINGS, ACK, 0, setting(1, 0)), Blunt(FRAME_SIZE_ERROR)),
        ("§6.5 an acknowledgement of nothing", frame(SETTINGS, ACK, 0, "").repeat(2), Ends(PROTOCOL_ERROR)),
        ("§6.5.2 ENABLE_PUSH of 2", settings(2, 2), Ends(PROTOCOL_ERROR)),
        ("§6.5.2 an initial window that is too large", settings(4, 1 << 31), Blunt(FLOW_CONTROL_ERROR)),
        ("§6.5.2 frames that are too small", settings(5, 16_383), Ends(PROTOCOL_ERROR)),
        ("§6.5.2 frames that are too large", settings(5, 1 << 24), Ends(PROTOCOL_ERROR)),
        ("§6.5.2 a huge table", in_a_row(&[settings(1, u32::MAX), get(1, "/")]), Serves),
        ("§6.5.2 no stream of ours at all", in_a_row(&[settings(3, 0), get(1, "/")]), Serves),
        ("§6.5.2 an unknown setting", in_a_row(&[settings(0xeeee, 1), get(1, "/")]), Serves),
        (
            "§6.5.2 one setting many times",
            in_a_row(&[frame(SETTINGS, 0, 0, setting(4, 1000).repeat(2000)), get(1, "/")]),
            Serves,
        ),
        ("RFC 8441 §3 a switch that is neither on nor off", settings(8, 2), Ends(PROTOCOL_ERROR)),
        ("§6.7 PING on a stream", frame(PING, 0, 1, [0; 8]), Ends(PROTOCOL_ERROR)),
        ("§6.7 an answer to no PING", frame(PING, ACK, 0, [0; 8]), Nothing),
        ("§6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, [0; 8]), Ends(PROTOCOL_ERROR)),
        ("§6.9 a window of the connection grows by 0", window_update(0, 0), Ends(PROTOCOL_ERROR)),
        (
            "§6.9 a window of a stream grows by 0",
            in_a_row(&[get(1, "/wait"), window_update(1, 0)]),
            Stern(PROTOCOL_ERROR),
        ),
        ("§6.9.1 the window of the connection overflows", window_update(0, most), Ends(FLOW_CONTROL_ERROR)),
        (
            "§6.9.1 the window of a stream overflows",
            in_a_row(&[get(1, "/wait"), window_update(1, most)]),
            Resets(FLOW_CONTROL_ERROR),
        ),
        (
            "§6.9.2 all windows overflow",
            in_a_row(&[get(1, "/wait"), window_update(1, most - 65_535), settings(4, 65_536)]),
            Ends(FLOW_CONTROL_ERROR),
        ),
    ]
}

fn is_met(then: Then, outcome: &Outcome) -> bool {
    match (then, outcome) {
        (Ends(code), Outcome::GoAway(found)) => *found == code,
        (Blunt(better), Outcome::GoAway(found)) => *found == PROTOCOL_ERROR && better != PROTOCOL_ERROR,
        (Stern(code), Outcome::GoAway(found)) => *found == code,
        (Resets(code), Outcome::Reset { status: 0, code: found, .. }) => *found == code,
        (Serves, Outcome::Answer { status: 200, .. }) => true,
        _ => false,
    }
}

async fn run(cases: Vec<Case>) -> usize {
    let (teal, _origin) = stage("").await;
    let mut differences = Vec::new();
    let count = cases.len();
    for (name, bytes, then) in cases {
        let mut client = Raw::connect(teal.address).await;
        client.send(bytes).await;
        let outcome = if then == Nothing { None } else { Some(client.outcome(1).await) };
        if outcome.as_ref().is_some_and(|outcome| !is_met(then, outcome)) {
            differences.push(format!("{name}: {then:?}, {outcome:?}"));
        }
        if matches!(then, Nothing | Serves) && !client.settle().await {
            differences.push(format!("{name}: the connection ended"));
        }
        let ends = matches!(outcome, Some(Outcome::GoAway(_)));
        if ends {
            client.rest().await;
        }
        // While the other is still connected, if it may be.
        all_is_well_beside(&teal, name).await;
    }
    assert!(differences.is_empty(), "{differences:#?}");
    all_is_well(&teal, "after all").await;
    count
}

async fn all_is_well_beside(teal: &Teal, what: &str) {
    assert_eq!(good::get_once(teal.address, "/").await.status, 200, "{what}");
}

#[tokio::test]
async fn a_frame_that_is_none_costs_its_sender_the_connection() {
    assert!(run(frames_and_fields()).await >= 30);
}

#[tokio::test]
async fn a_frame_on_the_wrong_stream_costs_its_sender_the_connection() {
    assert!(run(states_of_streams()).await >= 27);
}

#[tokio::test]
async fn settings_and_windows_out_of_range_cost_their_sender_the_connection() {
    assert!(run(of_the_connection()).await >= 21);
}

/// RFC 9113 §3.4.
#[tokio::test]
async fn what_does_not_begin_as_http_2_is_http_1() {
    let (teal, _origin) = stage("").await;
    for (opening, status) in [
        (&b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..], 505),
        (b"PRI * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"PRI /x HTTP/2.0\r\n\r\n", 505),
        (b"PRIX / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ] {
        let mut client = Client::connect(teal.address).await;
        client.send(opening).await;
        assert_eq!(client.answer().await.status, status, "{}", opening.escape_ascii());
        drop(client);
        all_is_well(&teal, "after a preface that is none").await;
    }
    // Octet by octet, it and a request.
    let mut client = Raw { wire: Client::connect(teal.address).await };
    for octet in [PREFACE, &settings(1, 0), &get(1, "/")].concat() {
        client.send([octet]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.outcome(1).await.status(), 200);
}

/// RFC 9113 §5.1.2.
#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_safe_to_repeat() {
    let (teal, _origin) = stage("").await;
    let mut client = Raw::connect(teal.address).await;
    let streams: Vec<u32> = (0..130).map(|n| 2 * n + 1).collect();
    client.send(streams.iter().flat_map(|stream| get(*stream, "/wait")).collect::<Vec<u8>>()).await;
    for stream in &streams[128..] {
        assert_eq!(client.expect(RST_STREAM, *stream).await.code(), REFUSED_STREAM);
    }
    // Others may begin when they have ended.
    client.send([reset(1, CANCEL), get(261, "/")].concat()).await;
    assert_eq!(client.outcome(261).await.status(), 200);
    drop(client);
    all_is_well(&teal, "after many streams").await;
}

/// RFC 9113 §6.8: a client that says goodbye gets what it has asked for.
#[tokio::test]
async fn who_says_goodbye_is_still_answered() {
    let (origin, mut calls) = crate::support::by_hand::by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Raw::connect(teal.address).await;
    client.send([get(1, "/"), frame(GOAWAY, 0, 0, [0; 8])].concat()).await;
    calls.next().await.send(ok("answered")).await;
    assert_eq!(client.outcome(1).await, Outcome::Answer { status: 200, body: b"answered".to_vec() });
    let rest = soon("the end", client.rest()).await;
    assert!(rest.iter().all(|frame| frame.kind != GOAWAY || frame.code() == NO_ERROR), "{rest:?}");
}
