//! A drain ends a WebSocket so that no frame is torn and no answer lost, whatever its two sides do meanwhile.

mod support;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use teal::config::Color;
use teal::drain::{DrainState, KindReport};
use teal::state::Record;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use support::frames::{self, BINARY, CONTINUE, Colors, Ends, Frame, PING, PONG, TEXT, account};
use support::over::{self, Over};
use support::{body, eventually, soon};

/// Goodbyes at once, and a deadline that no test reaches.
const AT_ONCE: &str = "drain = { timeout = \"10m\", websocket = { spread = \"0s\" } }";
/// The same, without a wait for a quiet moment.
const RESTLESS: &str = "drain = { timeout = \"10m\", websocket = { spread = \"0s\", quiet = \"0s\" } }";
/// A moment without traffic is waited for, for longer than any test takes.
const PATIENT: &str = "drain = { timeout = \"10m\", websocket = { spread = \"0s\", quiet = \"60s\" } }";
/// How long a message may take to end and a side to answer, and what a clock may take off it.
const PATIENCE: Duration = Duration::from_millis(1_950);
/// What cannot have happened within this time will not happen because of what was before it.
const A_WHILE: Duration = Duration::from_millis(400);
const RESTART: &str = "service restart";

fn finished(count: u64) -> KindReport {
    KindReport { at_switch: count, finished: count, ..KindReport::default() }
}

fn cut(count: u64) -> KindReport {
    KindReport { at_switch: count, cut: count, ..KindReport::default() }
}

#[tokio::test]
async fn both_sides_are_told_and_nothing_of_the_last_words_is_lost() {
    let settings = |more: &str| format!("drain = {{ timeout = \"10m\", websocket = {{ spread = \"0s\"{more} }} }}");
    let longest = "x".repeat(123);
    let cases = [
        (settings(""), 1012, RESTART),
        (settings(", code = 4001, reason = \"\""), 4001, ""),
        (settings(&format!(", code = 1001, reason = \"{longest}\"")), 1001, &longest),
    ];
    for (settings, code, reason) in cases {
        let mut colors = Colors::new(&settings).await;
        let mut ends = colors.open().await;
        ends.client.send(Frame::text("question").by_client()).await;
        ends.origin.expect(Frame::text("question").by_client()).await;
        let record = colors.switch().await;
        let told = frames::read(&mut ends.origin).await;
        assert_eq!((told.closes(), told.is_masked), (Some((1001, String::new())), true));
        for word in ["an answer", "a last word"] {
            ends.origin.send(Frame::text(word).by_server()).await;
            ends.client.expect(Frame::text(word).by_server()).await;
        }
        assert!(timeout(A_WHILE / 4, ends.client.more()).await.is_err(), "the origin has not said all");
        ends.origin.send(Frame::close(1001, "leaving").by_server()).await;
        ends.client_leaves(code, reason).await;
        assert_eq!(account(&record).await, finished(1));
    }
}

/// Everything that a side may send, in an order that it may be sent in. Messages and control frames end at the marks.
fn sample() -> Vec<Vec<Frame>> {
    vec![
        vec![Frame::text("hello")],
        vec![Frame::new(BINARY, "x".repeat(130))],
        vec![
            Frame::text("fra").unfinished(),
            Frame::new(PING, "in between"),
            Frame::new(CONTINUE, "g").unfinished(),
            Frame::new(CONTINUE, "ment"),
        ],
        vec![Frame::new(PONG, "")],
        vec![Frame::text("deflated").compressed()],
    ]
}

/// The octets of the sample, and where in them no message is half through.
fn octets(of: fn(&Frame) -> Vec<u8>) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut boundaries) = (Vec::new(), vec![0]);
    for message in sample() {
        bytes.extend(message.iter().flat_map(of));
        boundaries.push(bytes.len());
    }
    (bytes, boundaries)
}

/// Sends octet by octet; the other side may not take it any more.
async fn trickle(wire: &mut support::client::Client, bytes: &[u8]) {
    for octet in bytes {
        if wire.stream.write_all(&[*octet]).await.is_err() {
            return;
        }
    }
}
/// Tunnels that have each got another part of the sample when the switch comes, up to every octet of it.
#[tokio::test]
async fn wherever_the_client_is_the_close_comes_between_two_messages() {
    let (bytes, boundaries) = octets(Frame::by_client);
    let splits: Vec<usize> = (0..=bytes.len()).collect();
    // Each message has to end while it is waited for: not all of them at once.
    for splits in splits.chunks(30) {
        the_close_comes_between_two_messages(&bytes, &boundaries, splits).await;
    }
}

async fn the_close_comes_between_two_messages(bytes: &[u8], boundaries: &[usize], splits: &[usize]) {
    let mut colors = Colors::new(RESTLESS).await;
    let mut tunnels = Vec::new();
    for split in splits {
        let mut ends = colors.open().await;
        ends.client.send(&bytes[..*split]).await;
        ends.origin.expect(&bytes[..*split]).await;
        tunnels.push((*split, ends));
    }
    let record = colors.switch().await;
    let endings = tunnels.into_iter().map(async |(split, mut ends)| {
        trickle(&mut ends.client, &bytes[split..]).await;
        let mut at = split;
        while !(boundaries.contains(&at) && ends.origin.buffer.first() == Some(&0x88)) {
            soon("more at the origin", ends.origin.more()).await.expect("a Close first");
            let found = ends.origin.buffer.iter().zip(&bytes[at..]).take_while(|(seen, sent)| seen == sent).count();
            ends.origin.buffer.drain(..found);
            at += found;
        }
        ends.origin_leaves().await;
        ends.client_leaves(1012, RESTART).await;
    });
    join_all(endings).await;
    assert_eq!(account(&record).await, finished(splits.len() as u64));
}

#[tokio::test]
async fn wherever_the_origin_is_all_of_it_arrives_before_the_close() {
    let (bytes, _) = octets(Frame::by_server);
    let splits: Vec<usize> = (0..=bytes.len()).collect();
    for splits in splits.chunks(30) {
        all_of_it_arrives_before_the_close(&bytes, splits).await;
    }
}

async fn all_of_it_arrives_before_the_close(bytes: &[u8], splits: &[usize]) {
    let mut colors = Colors::new(RESTLESS).await;
    let mut tunnels = Vec::new();
    for split in splits {
        let mut ends = colors.open().await;
        ends.origin.send(&bytes[..*split]).await;
        ends.client.expect(&bytes[..*split]).await;
        tunnels.push((*split, ends));
    }
    let record = colors.switch().await;
    let endings = tunnels.into_iter().map(async |(split, mut ends)| {
        ends.origin.send(&bytes[split..]).await;
        ends.origin_leaves().await;
        ends.client.expect(&bytes[split..]).await;
        ends.client_leaves(1012, RESTART).await;
    });
    join_all(endings).await;
    assert_eq!(account(&record).await, finished(splits.len() as u64));
}

/// Lengths at which the header changes, after all of which the proxy still knows where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_arrives_byte_for_byte_and_can_be_ended() {
    let mut messages: Vec<Frame> = Vec::new();
    for length in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 200_000] {
        messages.push(Frame::new(TEXT, "x".repeat(length)));
        messages.push(Frame::new(BINARY, body::body(length)));
        messages.push(Frame::new(BINARY, body::body(length)).compressed());
        messages.push(Frame::new(TEXT, "").unfinished());
        for piece in body::body(length).chunks(length / 3 + 1) {
            messages.push(Frame::new(PING, &piece[..piece.len().min(125)]));
            messages.push(Frame::new(CONTINUE, piece).unfinished());
        }
        messages.push(Frame::new(CONTINUE, ""));
    }
    let upward: Vec<u8> = messages.iter().flat_map(Frame::by_client).collect();
    let downward: Vec<u8> = messages.iter().flat_map(Frame::by_server).collect();
    let mut colors = Colors::new(AT_ONCE).await;
    let mut ends = colors.open().await;
    let Ends { client, origin } = &mut ends;
    let (client_stream, origin_stream) = (&mut client.stream, &mut origin.stream);
    let (mut client_reader, mut client_writer) = client_stream.split();
    let (mut origin_reader, mut origin_writer) = origin_stream.split();
    let (mut seen_below, mut seen_above) = (vec![0; downward.len()], vec![0; upward.len()]);
    let flows = async {
        use tokio::io::AsyncReadExt;
        tokio::try_join!(
            client_writer.write_all(&upward),
            origin_writer.write_all(&downward),
            client_reader.read_exact(&mut seen_below),
            origin_reader.read_exact(&mut seen_above),
        )
    };
    soon("both flows", flows).await.expect("open connections");
    assert!(seen_above == upward && seen_below == downward);
    let record = colors.switch().await;
    ends.origin_leaves().await;
    ends.client_leaves(1012, RESTART).await;
    assert_eq!(account(&record).await, finished(1));
}

/// Repeats what only a machine that keeps up can show. `attempt` gives `None` when it did not keep up.
async fn in_time<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..10 {
        if let Some(result) = attempt().await {
            return result;
        }
    }
    panic!("this machine is too slow");
}

#[tokio::test]
async fn a_message_that_is_half_through_is_waited_for() {
    let end = Frame::new(CONTINUE, "ly").by_client();
    in_time(async || {
        let mut colors = Colors::new(RESTLESS).await;
        let mut ends = colors.open().await;
        ends.client.send(Frame::text("final").unfinished().by_client()).await;
        ends.origin.expect(Frame::text("final").unfinished().by_client()).await;
        let switched = Instant::now();
        colors.switch().await;
        assert!(timeout(A_WHILE, ends.origin.more()).await.is_err() || switched.elapsed() >= PATIENCE);
        ends.client.send(&end).await;
        if switched.elapsed() >= PATIENCE / 2 {
            return None;
        }
        ends.origin.expect(&end).await;
        ends.origin_leaves().await;
        ends.client_leaves(1012, RESTART).await;
        Some(())
    })
    .await;
}

#[tokio::test]
async fn a_message_that_does_not_end_is_interrupted_between_two_fragments() {
    let mut colors = Colors::new(RESTLESS).await;
    let (mut above, mut below) = (colors.open().await, colors.open().await);
    let fragment = Frame::text("once upon a time").unfinished();
    above.client.send(fragment.by_client()).await;
    above.origin.expect(fragment.by_client()).await;
    below.origin.send(fragment.by_server()).await;
    below.client.expect(fragment.by_server()).await;
    let switched = Instant::now();
    let record = colors.switch().await;
    let above = async {
        above.origin_leaves().await;
        assert!(switched.elapsed() >= PATIENCE, "{:?}", switched.elapsed());
        above.client_leaves(1012, RESTART).await;
    };
    let below = async {
        assert_eq!(frames::read(&mut below.origin).await.closes(), Some((1001, String::new())));
        below.origin.send(Frame::new(CONTINUE, " there was").unfinished().by_server()).await;
        below.client.expect(Frame::new(CONTINUE, " there was").unfinished().by_server()).await;
        below.client_leaves(1012, RESTART).await;
        assert!(switched.elapsed() >= PATIENCE, "{:?}", switched.elapsed());
    };
    tokio::join!(above, below);
    assert_eq!(account(&record).await, finished(2));
}

/// However long it takes: what is inside a frame would become part of it.
#[tokio::test]
async fn inside_a_frame_there_is_no_goodbye_but_the_cut() {
    let settings = "drain = { timeout = \"5s\", websocket = { spread = \"0s\", quiet = \"0s\" } }";
    let mut colors = Colors::new(settings).await;
    let huge = |masked: u8| [&[0x82, masked | 127, 0, 0, 0, 1, 0, 0, 0, 0][..], &[0; 4]].concat();
    let (mut above, mut below) = (colors.open().await, colors.open().await);
    above.client.send(huge(0x80)).await;
    above.origin.expect(huge(0x80)).await;
    below.origin.send(huge(0)).await;
    below.client.expect(huge(0)).await;
    let record = colors.switch().await;
    let dribble = async |wire: &mut support::client::Client| {
        let mut count = 0;
        while wire.stream.write_all(b".").await.is_ok() {
            count += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        count
    };
    let Ends { client, origin } = &mut above;
    let (sent, (seen, _)) = soon("the cut", async { tokio::join!(dribble(client), origin.rest()) }).await;
    assert!(seen.iter().all(|octet| *octet == b'.') && seen.len() <= sent, "{seen:?}");
    assert_eq!(frames::read(&mut below.origin).await.closes(), Some((1001, String::new())));
    assert!(below.client.rest().await.0.is_empty());
    assert_eq!(account(&record).await, cut(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_waits_for_a_quiet_moment_but_not_for_ever() {
    const QUIET: Duration = Duration::from_secs(2);
    let settings = "drain = { timeout = \"10m\", websocket = { spread = \"0s\", quiet = \"2s\" } }";
    let mut colors = Colors::new(PATIENT).await;
    let mut idle = colors.open().await;
    colors.switch().await;
    // Well before the 60 s of the setting: nobody speaks.
    idle.origin_leaves().await;
    idle.client_leaves(1012, RESTART).await;

    let waited = in_time(async || {
        let mut colors = Colors::new(settings).await;
        let mut ends = colors.open().await;
        let switched = Instant::now();
        colors.switch().await;
        let (mut pause, mut spoke) = (Duration::ZERO, switched);
        loop {
            ends.client.send(Frame::new(PING, "").by_client()).await;
            pause = pause.max(spoke.elapsed());
            spoke = Instant::now();
            let seen = frames::read(&mut ends.origin).await;
            if seen.closes().is_some() {
                pause = pause.max(spoke.elapsed());
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The silence that ended it may have been that of a busy machine.
        (pause < Duration::from_millis(20) || switched.elapsed() >= QUIET).then(|| switched.elapsed())
    })
    .await;
    assert!(waited >= QUIET - Duration::from_millis(50), "{waited:?}");
}

/// The message that is half through keeps the goodbye waiting, in the one stage or in the other.
async fn with_a_goodbye_that_waits(settings: &str) -> (Colors, Ends, Arc<Record>) {
    in_time(async || {
        let mut colors = Colors::new(settings).await;
        let mut witness = colors.open().await;
        let mut ends = colors.open().await;
        ends.client.send(Frame::text("half").unfinished().by_client()).await;
        ends.origin.expect(Frame::text("half").unfinished().by_client()).await;
        let switched = Instant::now();
        let record = colors.switch().await;
        witness.origin_leaves().await;
        witness.client_leaves(1012, RESTART).await;
        (switched.elapsed() < PATIENCE / 2).then_some((colors, ends, record))
    })
    .await
}
#[tokio::test]
async fn a_client_that_closes_by_itself_is_not_disturbed() {
    for settings in [RESTLESS, PATIENT] {
        let (_colors, mut ends, record) = with_a_goodbye_that_waits(settings).await;
        ends.client.send(Frame::close(3000, "my own").by_client()).await;
        ends.origin.expect(Frame::close(3000, "my own").by_client()).await;
        ends.origin.send(Frame::close(3000, "").by_server()).await;
        ends.client.expect(Frame::close(3000, "").by_server()).await;
        ends.origin.stream.shutdown().await.expect("an open connection");
        assert_eq!(ends.client.rest().await, (Vec::new(), true));
        drop(ends.client);
        assert_eq!(ends.origin.rest().await, (Vec::new(), true));
        assert_eq!(account(&record).await, finished(2));
    }
}

#[tokio::test]
async fn an_origin_that_closes_by_itself_is_not_disturbed() {
    for settings in [RESTLESS, PATIENT] {
        let (_colors, mut ends, record) = with_a_goodbye_that_waits(settings).await;
        ends.origin.send(Frame::close(4000, "my own").by_server()).await;
        ends.client.expect(Frame::close(4000, "my own").by_server()).await;
        ends.client.send(Frame::close(4000, "").by_client()).await;
        ends.origin.expect(Frame::close(4000, "").by_client()).await;
        ends.origin.stream.shutdown().await.expect("an open connection");
        assert_eq!(ends.client.rest().await, (Vec::new(), true));
        drop(ends.client);
        assert_eq!(ends.origin.rest().await, (Vec::new(), true));
        assert_eq!(account(&record).await, finished(2));
    }
}
/// It cannot be taken back: the client gets this Close and no other.
#[tokio::test]
async fn a_close_of_the_origin_that_has_begun_is_the_one_that_counts() {
    let mut colors = Colors::new(RESTLESS).await;
    let mut ends = colors.open().await;
    let (begun, rest) = (&[0x88], &Frame::close(4000, "my own").by_server()[1..]);
    ends.origin.send(begun).await;
    ends.client.expect(begun).await;
    let record = colors.switch().await;
    assert_eq!(frames::read(&mut ends.origin).await.closes(), Some((1001, String::new())));
    ends.origin.send(rest).await;
    ends.client.expect(rest).await;
    ends.client.send(Frame::close(4000, "").by_client()).await;
    assert_eq!(ends.client.rest().await, (Vec::new(), true));
    drop(ends.client);
    assert_eq!(ends.origin.rest().await, (Vec::new(), true));
    assert_eq!(account(&record).await, finished(1));
}

#[tokio::test]
async fn an_origin_that_does_not_answer_has_two_seconds_for_its_last_words() {
    let mut colors = Colors::new(RESTLESS).await;
    let (mut silent, mut talking) = (colors.open().await, colors.open().await);
    let switched = Instant::now();
    let record = colors.switch().await;
    let silent = async {
        assert_eq!(frames::read(&mut silent.origin).await.closes(), Some((1001, String::new())));
        silent.client_leaves(1012, RESTART).await;
        assert!(switched.elapsed() >= PATIENCE, "{:?}", switched.elapsed());
    };
    let talking = async {
        assert_eq!(frames::read(&mut talking.origin).await.closes(), Some((1001, String::new())));
        let mut count = 0;
        let told = loop {
            talking.origin.send(Frame::text("blah").by_server()).await;
            let seen = frames::read(&mut talking.client).await;
            if seen != Frame::text("blah") {
                break seen;
            }
            count += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(count > 0 && switched.elapsed() >= PATIENCE, "{count} in {:?}", switched.elapsed());
        assert_eq!(told.closes(), Some((1012, RESTART.to_owned())));
        talking.client.send(Frame::close(1012, "").by_client()).await;
        assert_eq!(talking.client.rest().await, (Vec::new(), true));
    };
    tokio::join!(silent, talking);
    assert_eq!(account(&record).await, finished(2));
}

/// Its end is as good as a Close between two frames; inside one it is not.
#[tokio::test]
async fn an_origin_that_just_leaves_is_stood_in_for_unless_its_frame_is_torn() {
    let mut colors = Colors::new(RESTLESS).await;
    let (mut whole, mut torn) = (colors.open().await, colors.open().await);
    let record = colors.switch().await;
    let whole = async {
        assert_eq!(frames::read(&mut whole.origin).await.closes(), Some((1001, String::new())));
        whole.origin.send(Frame::text("last").by_server()).await;
        whole.origin.stream.shutdown().await.expect("an open connection");
        whole.client.expect(Frame::text("last").by_server()).await;
        whole.client_leaves(1012, RESTART).await;
    };
    let torn = async {
        assert_eq!(frames::read(&mut torn.origin).await.closes(), Some((1001, String::new())));
        let half = &Frame::text("last").by_server()[..3];
        torn.origin.send(half).await;
        torn.origin.stream.shutdown().await.expect("an open connection");
        let seen = torn.client.rest().await.0;
        // A reset of a stream of HTTP/2 overtakes what is still on its way there.
        assert!(seen == half || over::asked_for() == Over::Http2 && half.starts_with(&seen), "{seen:?}");
    };
    tokio::join!(whole, torn);
    assert_eq!(account(&record).await, KindReport { at_switch: 2, finished: 1, cut: 1, ..KindReport::default() });
}

#[tokio::test]
async fn a_client_that_does_not_answer_is_cut() {
    let mut colors = Colors::new(RESTLESS).await;
    let mut ends = colors.open().await;
    let record = colors.switch().await;
    assert_eq!(frames::read(&mut ends.origin).await.closes(), Some((1001, String::new())));
    // The client is told after the origin has left, and not before.
    let told = Instant::now();
    ends.origin.send(Frame::close(1001, "").by_server()).await;
    assert_eq!(frames::read(&mut ends.client).await.closes(), Some((1012, RESTART.to_owned())));
    assert!(ends.client.rest().await.0.is_empty());
    assert!(told.elapsed() >= PATIENCE, "{:?}", told.elapsed());
    assert_eq!(account(&record).await, cut(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_cut_and_nothing_is_kept_for_it() {
    const MUCH: usize = 8 * 1024 * 1024;
    let settings = "drain = { timeout = \"6s\", websocket = { spread = \"0s\", quiet = \"0s\" } }";
    let mut colors = Colors::new(settings).await;
    let Ends { client, mut origin } = colors.open().await;
    let message = Frame::new(BINARY, vec![0; 60_000]).by_server();
    let mut taken = 0;
    while let Ok(count) = timeout(A_WHILE * 5, origin.stream.write(&message[taken % message.len()..])).await {
        taken += count.expect("an open connection");
    }
    let record = colors.switch().await;
    let mut more = 0;
    while let Ok(count) = origin.stream.write(&message[(taken + more) % message.len()..]).await {
        more += count;
        assert!(more < MUCH, "{more} octets more were taken that nobody reads");
    }
    assert_eq!(account(&record).await, cut(1));
    drop(client);
}

#[tokio::test]
async fn what_a_client_sends_too_late_reaches_nobody_and_harms_nobody() {
    let mut colors = Colors::new(RESTLESS).await;
    let mut ends = colors.open().await;
    let record = colors.switch().await;
    assert_eq!(frames::read(&mut ends.origin).await.closes(), Some((1001, String::new())));
    ends.client.send(Frame::text("too late").by_client()).await;
    ends.origin.send([Frame::text("last").by_server(), Frame::close(1001, "").by_server()].concat()).await;
    ends.client.expect(Frame::text("last").by_server()).await;
    assert_eq!(frames::read(&mut ends.client).await.closes(), Some((1012, RESTART.to_owned())));
    ends.client.send(Frame::new(BINARY, vec![0; 1024 * 1024]).by_client()).await;
    ends.client.send(Frame::close(1012, "").by_client()).await;
    ends.client.send(vec![0; 1024 * 1024]).await;
    ends.client.stream.shutdown().await.expect("an open connection");
    assert_eq!(ends.client.rest().await, (Vec::new(), true));
    assert_eq!(ends.origin.rest().await, (Vec::new(), true));
    assert_eq!(account(&record).await, finished(1));
}

/// What breaks the framing passes like everything else, but then nobody knows where a frame ends.
#[tokio::test]
async fn a_tunnel_whose_framing_is_broken_is_never_written_into() {
    let settings = "drain = { timeout = \"5s\", websocket = { spread = \"0s\", quiet = \"0s\" } }";
    let mut colors = Colors::new(settings).await;
    let reserved = |opcode: u8| Frame::new(opcode, "reserved");
    let broken = [
        (Frame::text("not masked").by_server(), Frame::text("masked").by_client()),
        (reserved(0x3).by_client(), reserved(0x3).by_server()),
        (reserved(0xb).by_client(), reserved(0xf).by_server()),
        (Frame::new(PING, "x".repeat(126)).by_client(), Frame::new(PING, "x".repeat(126)).by_server()),
        (Frame::new(PING, "").unfinished().by_client(), Frame::new(PING, "").unfinished().by_server()),
        (Frame::new(CONTINUE, "no start").by_client(), Frame::new(CONTINUE, "no start").by_server()),
        (
            [Frame::text("two").unfinished().by_client(), Frame::text("starts").by_client()].concat(),
            [Frame::text("two").unfinished().by_server(), Frame::text("starts").by_server()].concat(),
        ),
        (vec![0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], vec![0x82, 0x7f, 0xff, 0, 0, 0, 0, 0, 0, 0]),
        (b"\0\x01\x02 no frames at all".to_vec(), b"\0\x01\x02 no frames at all".to_vec()),
    ];
    let mut tunnels = Vec::new();
    for (above, below) in &broken {
        for (above, below) in [(&above[..], &[][..]), (&[][..], below)] {
            let mut ends = colors.open().await;
            ends.client.send(above).await;
            ends.origin.expect(above).await;
            ends.origin.send(below).await;
            ends.client.expect(below).await;
            tunnels.push(ends);
        }
    }
    let count = tunnels.len() as u64;
    let record = colors.switch().await;
    let endings = tunnels.into_iter().map(async |Ends { mut client, mut origin }| {
        let nothing = tokio::join!(timeout(A_WHILE, client.more()), timeout(A_WHILE, origin.more()));
        assert!(nothing.0.is_err() && nothing.1.is_err(), "{:?} {:?}", client.buffer, origin.buffer);
        client.send("still passes").await;
        origin.send("still passes").await;
        let (below, above) = tokio::join!(client.rest(), origin.rest());
        assert_eq!(String::from_utf8_lossy(&below.0), "still passes");
        assert_eq!(String::from_utf8_lossy(&above.0), "still passes");
    });
    join_all(endings).await;
    assert_eq!(account(&record).await, cut(count));
}

#[tokio::test]
async fn who_is_to_be_kept_is_left_alone_until_the_deadline() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let mut colors = Colors::new("drain = { timeout = \"2s\", websocket = \"keep\" }").await;
    let mut ends = colors.open().await;
    let switched = Instant::now();
    let record = colors.switch().await;
    ends.client.send(Frame::text("and on").by_client()).await;
    ends.origin.expect(Frame::text("and on").by_client()).await;
    assert!(ends.origin.rest().await.0.is_empty());
    assert!(switched.elapsed() >= TIMEOUT - Duration::from_millis(50), "{:?}", switched.elapsed());
    assert!(ends.client.rest().await.0.is_empty());
    assert_eq!(account(&record).await, cut(1));
}

#[tokio::test]
async fn a_rollback_recalls_a_goodbye_that_waits() {
    let (colors, mut ends, record) = with_a_goodbye_that_waits(PATIENT).await;
    // Both were told at the same time, give or take.
    tokio::time::sleep(A_WHILE).await;
    colors.teal.switch("app", Color::Blue).await.expect("a rollback");
    let expected = KindReport { at_switch: 2, finished: 1, kept: 1, ..KindReport::default() };
    assert_eq!(account(&record).await, expected);
    assert_eq!(record.drain().expect("a drain").report().state, DrainState::Kept);
    ends.client.send(Frame::new(CONTINUE, " through").by_client()).await;
    ends.origin.expect(Frame::new(CONTINUE, " through").by_client()).await;
    assert!(timeout(A_WHILE, ends.origin.more()).await.is_err(), "a quiet moment, but no goodbye");
    ends.origin.send(Frame::text("still here").by_server()).await;
    ends.client.expect(Frame::text("still here").by_server()).await;

    let record = colors.switch().await;
    ends.origin_leaves().await;
    ends.client_leaves(1012, RESTART).await;
    assert_eq!(account(&record).await, finished(1));
    eventually("blue is empty", || colors.blue.is_empty()).await;
}
