//! Streams are told goodbye one after the other, no faster than the new color takes them, and not at all once their
//! color is active again.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use teal::config::Color;
use teal::drain::{DrainReport, DrainState, KindReport};
use teal::service::Kind;
use teal::state::Record;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use support::binary::call;
use support::by_hand::by_hand;
use support::client::Client;
use support::origin::Origin;
use support::proxy::{Builder, Teal};
use support::streams::{EventSource, Heard, Mood, Stalls, Streams, chat, farewell, is_even};
use support::{eventually, soon};

/// A machine that is busy with other things may spoil a measurement, but not all of them.
const ROUNDS: usize = 3;
/// Long enough for whatever must not happen to happen, as a rule.
const A_WHILE: Duration = Duration::from_millis(500);

/// A proxy before one service `app`, both of whose colors take streams.
struct Stage {
    teal: Teal,
    green: watch::Sender<Mood>,
    _origins: [Origin; 2],
}

impl Stage {
    /// `pace` goes for both kinds of streams.
    async fn new(top: &str, pace: &str, timeout: &str) -> Stage {
        let streams = Streams::new(Duration::from_millis(200));
        let ((blue, _), (other, green)) = (streams.origin().await, streams.origin().await);
        let keys = format!(
            "green = [{}]\noutlier.consecutive_errors = 0\n[services.app.drain]\ntimeout = \"{timeout}\"\n\
             websocket = {{ {pace}, quiet = \"0s\" }}\nsse = {{ {pace} }}",
            other.toml()
        );
        let teal = Builder::app(&[&blue]).service(&keys).top(top).start().await;
        Stage { teal, green, _origins: [blue, other] }
    }

    async fn switch(&self, to: Color) -> Arc<Record> {
        self.teal.switch("app", to).await.expect("a switch")
    }

    /// Streams of this kind that are open.
    fn open(&self, kind: Kind) -> usize {
        let snapshot = self.teal.state().load();
        let stats = &snapshot.service("app").expect("a known service").stats;
        let shards = Color::BOTH.into_iter().flat_map(|color| stats.shards(color));
        let sum: i64 = shards.map(|shard| shard.in_flight[kind as usize].load(Ordering::SeqCst)).sum();
        usize::try_from(sum).expect("a count")
    }

    async fn admin(&self, path: &str) -> support::client::Answer {
        Client::connect(self.teal.admin).await.ask(call(self.teal.admin, "GET", path, "")).await
    }
}

/// Clients of streams, who wait to be told goodbye.
#[derive(Default)]
struct Crowd {
    told: Arc<[Mutex<Vec<Instant>>; 3]>,
    /// Streams that ended otherwise.
    broken: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Crowd {
    /// So many of each kind. `comes_back`: whoever has been told comes back once.
    async fn gather(stage: &Stage, websockets: usize, event_streams: usize, comes_back: bool) -> Crowd {
        let (mut crowd, address) = (Crowd::default(), stage.teal.address);
        for _ in 0..websockets {
            let mut socket = chat(address, "/").await.expect("a WebSocket");
            let (told, broken) = (crowd.told.clone(), crowd.broken.clone());
            crowd.clients.spawn(async move {
                note(Kind::WebSocket, farewell(&mut socket).await, &told, &broken);
                let _ = if comes_back { Some(chat(address, "/").await) } else { None };
            });
        }
        for _ in 0..event_streams {
            let mut source = EventSource::connect(address, "/", None).await.expect("an event stream");
            let (told, broken) = (crowd.told.clone(), crowd.broken.clone());
            crowd.clients.spawn(async move {
                let is_clean = source.farewell().await == Heard::End && source.retry.is_some() && source.astray == 0;
                note(Kind::Sse, is_clean, &told, &broken);
                let _ = if comes_back { EventSource::connect(address, "/", source.last_id).await } else { None };
            });
        }
        crowd
    }

    fn told(&self, kind: Kind) -> usize {
        self.told[kind as usize].lock().len()
    }

    fn times(&self, kind: Kind) -> Vec<Instant> {
        self.told[kind as usize].lock().clone()
    }

    fn broken(&self) -> usize {
        self.broken.load(Ordering::SeqCst)
    }
}

fn note(kind: Kind, is_clean: bool, told: &[Mutex<Vec<Instant>>; 3], broken: &AtomicUsize) {
    if is_clean {
        told[kind as usize].lock().push(Instant::now());
    } else {
        broken.fetch_add(1, Ordering::SeqCst);
    }
}

fn report(record: &Record) -> DrainReport {
    record.receipt().drain.expect("a drain")
}

async fn over(record: &Record) -> DrainReport {
    soon("the drain", record.drain().expect("a drain").over()).await;
    report(record)
}

fn all_finished(count: u64) -> KindReport {
    KindReport { open: 0, at_switch: count, finished: count, kept: 0, cut: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_before_the_hold_is_over() {
    let stage = Stage::new("", "hold = \"700ms\", spread = \"0s\"", "60s").await;
    let crowd = Crowd::gather(&stage, 10, 10, false).await;
    let called = Instant::now();
    let record = stage.switch(Color::Green).await;
    let last = over(&record).await;
    assert_eq!((last.websocket, last.sse, crowd.broken()), (all_finished(10), all_finished(10), 0));
    for kind in [Kind::WebSocket, Kind::Sse] {
        eventually("all clients know", || crowd.told(kind) == 10).await;
        let first = crowd.times(kind).into_iter().min().expect("ten");
        assert!(first - called >= Duration::from_millis(700), "told after {:?}", first - called);
    }
    assert!(last.last_goodbye > Some(record.receipt().at), "{last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goodbyes_are_spread_evenly() {
    const STREAMS: usize = 150;
    const SPREAD: Duration = Duration::from_secs(3);
    let stage = Stage::new("", "spread = \"3s\"", "60s").await;
    let mut to = Color::Green;
    let mut faults = Vec::new();
    while faults.len() < ROUNDS {
        let crowd = Crowd::gather(&stage, STREAMS, STREAMS, true).await;
        let stalls = Stalls::watch();
        let last = over(&*stage.switch(to).await).await;
        assert_eq!((last.websocket.cut, last.sse.cut, crowd.broken()), (0, 0, 0), "{last:?}");
        to = to.other();
        let both = [Kind::WebSocket, Kind::Sse];
        eventually("all clients know", || both.iter().all(|kind| crowd.told(*kind) == STREAMS)).await;
        let look = both.map(|kind| is_even(&crowd.times(kind), SPREAD, &stalls));
        match look.into_iter().find_map(Result::err) {
            None => return,
            Some(fault) => faults.push(fault),
        }
    }
    panic!("{faults:#?}");
}

/// What is left when there is no more time to wait is told at last, and not cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_would_be_cut_first_is_told_before_the_deadline() {
    let stage = Stage::new("", "spread = \"1h\"", "12s").await;
    let crowd = Crowd::gather(&stage, 50, 50, false).await;
    let called = Instant::now();
    let last = over(&*stage.switch(Color::Green).await).await;
    assert_eq!((last.websocket, last.sse, crowd.broken()), (all_finished(50), all_finished(50), 0));
    assert!(called.elapsed() < Duration::from_secs(12), "{:?}", called.elapsed());
    assert!(last.last_goodbye.is_some_and(|at| at < last.deadline));
}

/// Whoever would be sent to a color that turns everybody away is better off where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_color_that_refuses_streams_slows_the_goodbyes_down() {
    is_waited_for(Mood::Refusing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_color_that_is_slow_to_take_streams_slows_the_goodbyes_down() {
    is_waited_for(Mood::Slow).await;
}

async fn is_waited_for(mood: Mood) {
    const STREAMS: usize = 150;
    let stage = Stage::new("", "spread = \"3s\"", "60s").await;
    let crowd = Crowd::gather(&stage, STREAMS, 0, true).await;
    stage.green.send_replace(mood);
    let record = stage.switch(Color::Green).await;
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    // By now all of them, had the new color taken them.
    let told = crowd.told(Kind::WebSocket);
    assert!((1..STREAMS / 2).contains(&told), "{told} of {STREAMS} were told");
    stage.green.send_replace(Mood::Ready);
    let last = over(&record).await;
    assert_eq!((last.websocket, crowd.broken()), (all_finished(STREAMS as u64), 0));
}

/// A color that never takes anybody does not keep the old one for ever: there is a last call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_color_that_goes_on_refusing_is_waited_for_until_the_last_call() {
    let stage = Stage::new("", "spread = \"1s\"", "10s").await;
    let crowd = Crowd::gather(&stage, 60, 0, true).await;
    stage.green.send_replace(Mood::Refusing);
    let called = Instant::now();
    let last = over(&*stage.switch(Color::Green).await).await;
    assert_eq!((last.websocket, crowd.broken()), (all_finished(60), 0));
    let took = called.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

/// A color that cannot even be connected to is as one that refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_color_with_a_closed_port_slows_the_goodbyes_down() {
    let streams = Streams::new(Duration::from_millis(200));
    let ((blue, _), closed) = (streams.origin().await, Origin::refusing());
    let keys = format!(
        "green = [{}]\nqueue_timeout = \"200ms\"\n[services.app.drain]\ntimeout = \"60s\"\n\
         websocket = {{ spread = \"3s\", quiet = \"0s\" }}",
        closed.toml()
    );
    let teal = Builder::app(&[&blue]).service(&keys).start().await;
    let (_, green) = streams.origin().await;
    let stage = Stage { teal, green, _origins: [blue, closed] };
    let crowd = Crowd::gather(&stage, 150, 0, true).await;
    let request = teal::state::SwitchRequest { force: true, ..support::proxy::to_color(&[("app", Color::Green)]) };
    let record = stage.teal.state().switch(request).await.expect("a forced switch");
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    let told = crowd.told(Kind::WebSocket);
    assert!((1..100).contains(&told), "{told} of 150 were told");
    let now = report(&record).websocket;
    assert_eq!((now.at_switch, now.cut, crowd.broken()), (150, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_stops_the_goodbyes_and_the_rest_is_kept() {
    const STREAMS: usize = 80;
    let stage = Stage::new("", "spread = \"6s\"", "60s").await;
    let crowd = Crowd::gather(&stage, STREAMS, STREAMS, false).await;
    let to_green = stage.switch(Color::Green).await;
    let (looking, is_looked_at) = look_all_the_time(to_green.clone(), [STREAMS as u64; 2]);
    let kinds = [Kind::WebSocket, Kind::Sse];
    eventually("some have gone", || kinds.iter().all(|kind| crowd.told(*kind) > STREAMS / 10)).await;
    let status: serde_json::Value = serde_json::from_slice(&stage.admin("/v1/services/app").await.body).expect("JSON");
    assert!(status["drain"]["websocket"]["open"].as_u64() > Some(0), "{status}");
    stage.switch(Color::Blue).await;
    let first = over(&to_green).await;
    assert_eq!(first.state, DrainState::Kept);
    is_looked_at.store(true, Ordering::SeqCst);
    assert!(looking.await.expect("every look is sound") > 0);

    // Who had been told already goes; nobody else does.
    let left = |kind| STREAMS - crowd.told(kind);
    eventually("the last goodbye is over", || kinds.iter().all(|kind| stage.open(*kind) == left(*kind))).await;
    // A goodbye that was under way may still be, without anybody having noticed.
    tokio::time::sleep(A_WHILE).await;
    let stay = kinds.map(left);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!((kinds.map(left), crowd.broken()), (stay, 0));
    for (account, stay) in [first.websocket, first.sse].into_iter().zip(stay) {
        assert!(stay > 0 && account.kept >= stay as u64, "{account:?}, {stay} stay");
        assert_eq!((account.open, account.cut, account.finished + account.kept), (0, 0, STREAMS as u64));
    }
    check_shown(&stage, &first).await;

    let again = stage.switch(Color::Green).await;
    assert_eq!([report(&again).websocket.at_switch, report(&again).sse.at_switch], stay.map(|stay| stay as u64));
    let last = over(&again).await;
    assert_eq!([last.websocket, last.sse], stay.map(|stay| all_finished(stay as u64)));
    eventually("everybody has been told", || kinds.iter().all(|kind| crowd.told(*kind) == STREAMS)).await;
    assert_eq!((report(&to_green), crowd.broken()), (first, 0), "the first account is closed");
}

/// Whoever was told and has had no good moment yet need not go any more.
#[tokio::test]
async fn a_rollback_takes_back_goodbyes_that_nobody_knows_of() {
    let ((blue, mut calls), (green, _)) = (by_hand().await, by_hand().await);
    let keys = format!(
        "green = [{}]\n[services.app.drain]\ntimeout = \"1h\"\nsse = {{ spread = \"0s\" }}\n\
         websocket = {{ spread = \"0s\", quiet = \"60s\" }}",
        green.toml()
    );
    let teal = Builder::app(&[&blue]).service(&keys).start().await;
    let mut open = async |fields: &str, answer: &str| {
        let mut client = Client::connect(teal.address).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: test\r\n{fields}\r\n")).await;
        let mut call = calls.next().await;
        call.send(if answer.is_empty() { call.accepted() } else { answer.to_owned() }).await;
        assert!(client.head().await.is_some());
        (client, call)
    };
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let stream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    let (mut idle, _idle) = open("", stream).await;
    let (mut source, mut events) = open("", &format!("{stream}data: ha")).await;
    let (mut socket, mut chat) = open(upgrade, "").await;
    let message = b"\x81\x85\0\0\0\0hello";
    socket.send(&message[..8]).await;
    chat.expect(&message[..8]).await;
    teal.switch("app", Color::Green).await.expect("a switch");
    // All are told at about the same time.
    let goodbye = async { while !idle.buffer.ends_with(b"\r\n0\r\n\r\n") && idle.more().await.is_some() {} };
    soon("the goodbye of the idle one", goodbye).await;
    tokio::time::sleep(A_WHILE).await;
    let back = teal.switch("app", Color::Blue).await.expect("a rollback");
    soon("the drain", back.drain().expect("a drain").over()).await;
    socket.send(&message[8..]).await;
    chat.expect(&message[8..]).await;
    chat.send(b"\x81\x02hi").await;
    events.send("lf\n\ndata: more\n\n").await;
    let both_come = async {
        while socket.buffer.len() < 4 && socket.more().await.is_some() {}
        while !source.buffer.windows(10).any(|text| text == b"data: more") && source.more().await.is_some() {}
    };
    soon("what was said after the rollback", both_come).await;
    tokio::time::sleep(A_WHILE).await;
    let seen =
        |client: &mut Client| while client.stream.try_read_buf(&mut client.buffer).is_ok_and(|count| count > 0) {};
    seen(&mut socket);
    seen(&mut source);
    assert_eq!(socket.buffer, b"\x81\x02hi");
    let text = String::from_utf8_lossy(&source.buffer);
    assert!(text.contains("data: more") && !text.contains("retry"), "{text}");
    let snapshot = teal.state().load();
    assert!(
        Kind::ALL[1..]
            .iter()
            .all(|kind| { snapshot.services[0].generation.tally().counts()[*kind as usize].open() == 1 })
    );
}

/// However often the mind is changed, everybody is in the account of every drain that began while it was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switches_in_quick_succession_keep_the_accounts() {
    const STREAMS: usize = 60;
    let stage = Stage::new("", "spread = \"2s\"", "60s").await;
    let crowd = Crowd::gather(&stage, STREAMS, STREAMS, false).await;
    let (mut records, mut looks) = (Vec::new(), Vec::new());
    for n in 0..21 {
        let record = stage.switch(if n % 2 == 0 { Color::Green } else { Color::Blue }).await;
        let before = report(&record);
        looks.push(look_all_the_time(record.clone(), [before.websocket.at_switch, before.sse.at_switch]));
        records.push(record);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..100))).await;
    }
    let last = over(&records[20]).await;
    assert_eq!((last.state, last.websocket.cut, last.sse.cut), (DrainState::Drained, 0, 0));
    let kinds = [Kind::WebSocket, Kind::Sse];
    eventually("everybody has been told", || kinds.iter().all(|kind| crowd.told(*kind) == STREAMS)).await;
    assert_eq!(crowd.broken(), 0);
    for (record, (looking, is_over)) in records.iter().zip(looks) {
        over(record).await;
        is_over.store(true, Ordering::SeqCst);
        assert!(looking.await.expect("every look is sound") > 0);
    }
    // Those that left green left nobody, those that left blue all who were there.
    let at_switch: Vec<u64> = records.iter().step_by(2).map(|record| report(record).websocket.at_switch).collect();
    assert!(at_switch[0] == STREAMS as u64 && at_switch.is_sorted_by(|a, b| a >= b), "{at_switch:?}");
    let kept = records.iter().filter(|record| report(record).state == DrainState::Kept).count();
    assert!(kept >= 5, "{kept} drains were stopped");
}

/// The drain's account must be sound at every look, until the test has seen enough; gives the number of looks.
fn look_all_the_time(record: Arc<Record>, at_switch: [u64; 2]) -> (JoinHandle<u64>, Arc<AtomicBool>) {
    let is_over = Arc::new(AtomicBool::new(false));
    let until = is_over.clone();
    let looking = tokio::spawn(async move {
        let mut looks = 0;
        while !until.load(Ordering::SeqCst) {
            let now = report(&record);
            for (kind, at_switch) in [now.websocket, now.sse].into_iter().zip(at_switch) {
                assert_eq!(kind.at_switch, kind.finished + kind.kept + kind.cut + kind.open, "{now:?}");
                assert_eq!(kind.at_switch, at_switch, "{now:?}");
            }
            looks += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        looks
    });
    (looking, is_over)
}

/// The API and the metrics say the same as the report.
async fn check_shown(stage: &Stage, first: &DrainReport) {
    let path = format!("/v1/receipts/{}", stage.teal.state().recent().last().expect("two switches").id());
    let receipt: serde_json::Value = serde_json::from_slice(&stage.admin(&path).await.body).expect("JSON");
    assert_eq!(receipt["drain"]["state"], "kept");
    assert_eq!(receipt["drain"]["websocket"]["kept"].as_u64(), Some(first.websocket.kept), "{receipt}");
    let newest: serde_json::Value =
        serde_json::from_slice(&stage.admin("/v1/services/app/drain").await.body).expect("JSON");
    assert_eq!(newest["services"][0]["to"], "blue", "{newest}");
    let metrics = stage.admin("/metrics").await;
    for (kind, kept) in [("websocket", first.websocket.kept), ("sse", first.sse.kept)] {
        let line = format!("teal_drain_streams_total{{service=\"app\",kind=\"{kind}\",outcome=\"kept\"}} {kept}\n");
        assert!(metrics.text().contains(&line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_stops_tells_its_streams_at_the_same_pace() {
    const STREAMS: usize = 100;
    const SPREAD: Duration = Duration::from_secs(3);
    let mut faults = Vec::new();
    while faults.len() < ROUNDS {
        let stage = Stage::new("shutdown_timeout = \"60s\"", "spread = \"3s\"", "60s").await;
        let mut crowd = Crowd::gather(&stage, STREAMS, STREAMS, false).await;
        let (stalls, begun) = (Stalls::watch(), Instant::now());
        soon("the stop", stage.teal.stop()).await;
        assert!(begun.elapsed() < Duration::from_secs(60));
        soon("the clients", async { while crowd.clients.join_next().await.is_some() {} }).await;
        assert_eq!(crowd.broken(), 0);
        let look = [Kind::WebSocket, Kind::Sse].map(|kind| is_even(&crowd.times(kind), SPREAD, &stalls));
        match look.into_iter().find_map(Result::err) {
            None => return,
            Some(fault) => faults.push(fault),
        }
    }
    panic!("{faults:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_stops_tells_all_its_streams_before_its_timeout() {
    let stage = Stage::new("shutdown_timeout = \"12s\"", "spread = \"1h\"", "1h").await;
    let mut crowd = Crowd::gather(&stage, 40, 40, false).await;
    let begun = Instant::now();
    soon("the stop", stage.teal.stop()).await;
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    soon("the clients", async { while crowd.clients.join_next().await.is_some() {} }).await;
    assert_eq!((crowd.told(Kind::WebSocket), crowd.told(Kind::Sse), crowd.broken()), (40, 40, 0));
}
