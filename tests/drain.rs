//! What a switch leaves behind runs to its end or to the deadline, and is accounted for exactly.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use teal::config::{self, Color};
use teal::drain::{DrainReport, DrainState, KindReport};
use teal::metrics::ColorShard;
use teal::service::{Generation, Kind, Tally};
use teal::state::{Receipt, Record};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use support::by_hand::by_hand;
use support::client::{Client, field, get};
use support::exchange::{Exchange, Stage};
use support::proxy::{Builder, Teal, to_color};
use support::{PATIENCE, eventually, soon};

const SCHEDULES: u64 = 6;
const IDLE_WEBSOCKETS: usize = 2_000;

/// How an exchange of a schedule ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    ByClient,
    ByOrigin,
    Cut,
}

/// An exchange of a schedule, open at the switch.
struct Open {
    service: usize,
    fate: Fate,
    exchange: Exchange,
}

/// Random exchanges of random services end in random ways; the accounts must be those of the clients, all the time.
/// `TEAL_TEST_SEED` repeats a run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_is_that_of_the_clients() {
    let given = std::env::var("TEAL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let schedules = (seed..seed + SCHEDULES).map(|seed| (seed, tokio::spawn(schedule(seed))));
    for (seed, schedule) in schedules.collect::<Vec<_>>() {
        assert!(schedule.await.is_ok(), "failed with TEAL_TEST_SEED={seed}");
    }
}

async fn schedule(seed: u64) {
    let mut timeout = Duration::from_secs(2);
    while !is_kept(seed, timeout).await {
        timeout *= 2;
        assert!(timeout < 2 * PATIENCE, "this machine is too slow to end some exchanges in {timeout:?}");
    }
}

/// False if the machine was too slow to end before the deadline what was to end before it.
async fn is_kept(seed: u64, shortest: Duration) -> bool {
    let mut random = fastrand::Rng::with_seed(seed);
    let services = &["a", "b", "c"][..random.usize(1..=3)];
    let timeout =
        |service: usize| shortest + Duration::from_millis(300) * u32::try_from(service).expect("a few services");
    let stage = Stage::new().await;
    let toml = |n: usize| stage.service(services[n], &format!("drain.timeout = \"{}ms\"", timeout(n).as_millis()));
    let teal = Builder::new(&(0..services.len()).map(toml).collect::<String>()).start().await;

    let mut open = Vec::new();
    for _ in 0..random.usize(..40) {
        let (service, kind) = (random.usize(..services.len()), Kind::ALL[random.usize(..3)]);
        let fate = [Fate::ByClient, Fate::ByOrigin, Fate::Cut][random.usize(..3)];
        open.push(Open { service, fate, exchange: stage.open(teal.address, services[service], kind).await });
    }
    let expected = Account::of(&open);
    let called = Instant::now();
    let aims: Vec<_> = services.iter().map(|service| (*service, Color::Green)).collect();
    let record = teal.state().switch(to_color(&aims)).await.expect("a switch");
    let begun = Arc::new(AtomicU64::new(0));
    let watch = tokio::spawn(watch(record.clone(), expected.clone(), begun.clone(), called + shortest));

    let mut endings = JoinSet::new();
    random.shuffle(&mut open);
    for Open { service, fate, exchange } in open {
        // What the deadline cuts can no longer be ended by anybody else.
        if called.elapsed() >= shortest * 9 / 10 {
            endings.abort_all();
            return false;
        }
        match fate {
            Fate::ByClient => {
                begun.fetch_add(1, Ordering::SeqCst);
                drop(exchange);
            }
            Fate::ByOrigin => {
                begun.fetch_add(1, Ordering::SeqCst);
                exchange.release();
                endings.spawn(async move { assert_eq!(exchange.ending().await.as_deref(), Some("blue")) });
            }
            Fate::Cut => {
                let deadline = called + timeout(service);
                endings.spawn(async move {
                    assert_eq!(exchange.ending().await, None);
                    assert!(Instant::now() >= deadline, "cut before its time");
                });
            }
        }
        if random.bool() {
            assert_eq!(get(teal.address, &format!("/{}", services[0])).await.text(), "green");
        }
    }
    let is_open = |report: &DrainReport| report.http.open + report.sse.open + report.websocket.open;
    eventually("only what is to be cut is open", || is_open(&report(&record)) <= expected.cut.iter().sum()).await;
    if called.elapsed() >= shortest {
        endings.abort_all();
        return false;
    }
    while let Some(ending) = endings.join_next().await {
        ending.expect("the clients see what was to be");
    }
    let last = soon("the drain", watch).await.expect("every look is sound");
    expected.check(&last);
    eventually("the origins have let go, too", || stage.held() == 0).await;
    check_kept(&teal, &record, &expected).await;
    for service in &teal.state().load().services {
        let in_flight = |shard: &ColorShard| shard.in_flight.iter().all(|count| count.load(Ordering::SeqCst) == 0);
        let nothing = || Color::BOTH.iter().all(|color| service.stats.shards(*color).all(in_flight));
        eventually("nothing is in flight", nothing).await;
    }
    true
}

/// What the clients know, by kind.
#[derive(Clone, Debug)]
struct Account {
    finished: [u64; 3],
    cut: [u64; 3],
}

impl Account {
    fn of(open: &[Open]) -> Account {
        let count = |kind: Kind, is_cut: bool| {
            let is_meant = |open: &&Open| open.exchange.kind == kind && (open.fate == Fate::Cut) == is_cut;
            open.iter().filter(is_meant).count() as u64
        };
        Account { finished: Kind::ALL.map(|kind| count(kind, false)), cut: Kind::ALL.map(|kind| count(kind, true)) }
    }

    fn check(&self, report: &DrainReport) {
        for (kind, found) in [report.http, report.sse, report.websocket].into_iter().enumerate() {
            let (finished, cut) = (self.finished[kind], self.cut[kind]);
            assert_eq!(found, KindReport { open: 0, at_switch: finished + cut, finished, kept: 0, cut }, "kind {kind}");
        }
    }
}

fn report(record: &Record) -> DrainReport {
    record.receipt().drain.expect("a drain")
}

/// Looks at a drain all the time, until it is over. `begun` counts the ends that clients and origins have begun; what they
/// have not begun before the `deadline` they cannot.
async fn watch(record: Arc<Record>, expected: Account, begun: Arc<AtomicU64>, deadline: Instant) -> DrainReport {
    let mut before = [KindReport::default(); 3];
    loop {
        let report = report(&record);
        // After the look, so that an end that begins in between is not missed.
        let begun = begun.load(Ordering::SeqCst);
        let now = [report.http, report.sse, report.websocket];
        for (kind, (now, before)) in now.iter().zip(&before).enumerate() {
            assert_eq!(now.at_switch, now.finished + now.cut + now.open, "{report:?}");
            assert_eq!(now.at_switch, expected.finished[kind] + expected.cut[kind], "{report:?}");
            assert!(now.finished >= before.finished && now.cut >= before.cut, "{before:?}, then {now:?}");
        }
        assert_eq!(report.state == DrainState::Drained, report.ended_at.is_some());
        if report.state == DrainState::Drained {
            assert!(now.iter().all(|kind| kind.open == 0), "{report:?}");
            let is_due = begun == expected.finished.iter().sum::<u64>() || Instant::now() >= deadline;
            assert!(is_due, "drained before all had begun to end: {begun} of {expected:?}");
            return report;
        }
        before = now;
        tokio::task::yield_now().await;
    }
}

/// The metrics and the stored receipt say the same.
async fn check_kept(teal: &Teal, record: &Record, expected: &Account) {
    let stored = || teal.state().store().receipt(record.id()).expect("the store can be read").expect("it is stored");
    let stored = || serde_json::from_str::<Receipt>(&stored()).expect("a receipt").drain;
    eventually("the end is stored", || stored().is_some_and(|drain| drain.state == DrainState::Drained)).await;
    assert_eq!(stored(), record.receipt().drain);
    let mut counted: HashMap<(&str, &str), u64> = HashMap::new();
    for (_, kind, outcome, count) in teal.state().stats.drains() {
        *counted.entry((kind, outcome)).or_default() += count;
    }
    for kind in Kind::ALL {
        assert_eq!(counted[&(kind.as_str(), "finished")], expected.finished[kind as usize]);
        assert_eq!(counted[&(kind.as_str(), "cut")], expected.cut[kind as usize]);
    }
}

/// What is on a color that is active again stays there, and leaves when that color leaves again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_keeps_what_has_not_left_yet() {
    let (stage, teal) = one_service("drain.timeout = \"4s\"").await;
    let open = async |kind| stage.open(teal.address, "a", kind).await;
    let (first, slow) = (open(Kind::WebSocket).await, open(Kind::Http).await);
    let to_green = teal.switch("a", Color::Green).await.expect("a switch");
    let second = open(Kind::Sse).await;
    let to_blue = teal.switch("a", Color::Blue).await.expect("a rollback");
    let third = open(Kind::WebSocket).await;
    soon("the end of the first drain", to_green.drain().unwrap().over()).await;
    assert!(!to_blue.drain().unwrap().is_over());
    let kept = KindReport { open: 0, at_switch: 1, finished: 0, kept: 1, cut: 0 };
    let before = report(&to_green);
    assert_eq!((before.state, before.http, before.websocket), (DrainState::Kept, kept, kept));
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));

    let drain = to_blue.drain().expect("a drain");
    // Everybody who waits is told, and who comes late as well.
    soon("the drain", async { tokio::join!(drain.over(), drain.over()) }).await;
    soon("the drain", drain.over()).await;
    assert!(drain.is_over() && drain.report().ended_at >= Some(drain.report().deadline));
    let cut = KindReport { open: 0, at_switch: 1, finished: 0, kept: 0, cut: 1 };
    assert_eq!((second.ending().await, report(&to_blue).sse), (None, cut));
    // What was kept has outlived the deadline of its first drain, and is in the next one of its color.
    let again = teal.switch("a", Color::Green).await.expect("a switch");
    assert_eq!(report(&again).websocket, KindReport { open: 2, at_switch: 2, finished: 0, kept: 0, cut: 0 });
    third.release();
    assert_eq!(third.ending().await.as_deref(), Some("blue"));
    soon("the drain", again.drain().unwrap().over()).await;
    assert_eq!(first.ending().await, None);
    assert_eq!(report(&again).websocket, KindReport { open: 0, at_switch: 2, finished: 1, kept: 0, cut: 1 });
    assert_eq!(report(&to_green), before, "the account of the first drain is closed");
}

/// Requests come in all the time, between the look at the snapshot and the first count as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_is_never_said_while_a_request_of_the_generation_runs() {
    let (stage, teal) = one_service("expose_color = true").await;
    let (stage, teal) = (Arc::new(stage), Arc::new(teal));
    let (is_over, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let client = |_| {
        let (stage, teal, is_over, requests) = (stage.clone(), teal.clone(), is_over.clone(), requests.clone());
        tokio::spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                let exchange = stage.open(teal.address, "a", Kind::Sse).await;
                let generation: u64 = field(&exchange.head, "x-teal-generation").unwrap().parse().unwrap();
                let left = |record: &Arc<Record>| record.receipt().services[0].generation == generation + 1;
                let drain = teal.state().recent().into_iter().find(left);
                let is_drained = drain.is_some_and(|record| report(&record).state == DrainState::Drained);
                assert!(!is_drained, "generation {generation} is drained, and a request of it runs");
                exchange.release();
                let color = if generation % 2 == 1 { "blue" } else { "green" };
                assert_eq!(exchange.ending().await.as_deref(), Some(color));
                requests.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let clients: Vec<_> = (0..4).map(client).collect();
    let mut kept_up = 0;
    for n in 0..250 {
        let to = if n % 2 == 0 { Color::Green } else { Color::Blue };
        teal.switch("a", to).await.expect("a switch");
        if n % 5 == 4 {
            eventually("the clients keep up", || requests.load(Ordering::SeqCst) >= kept_up + 4).await;
            kept_up = requests.load(Ordering::SeqCst);
        }
    }
    is_over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("no assertion of a client failed");
    }
    let mut at_switch = 0;
    for record in teal.state().recent() {
        soon("the drain", record.drain().unwrap().over()).await;
        let report = report(&record);
        assert_eq!((report.http.cut, report.sse.cut), (0, 0));
        at_switch += report.sse.at_switch;
    }
    assert!(at_switch > 0, "of {requests:?} requests none was there at a switch");
}

#[tokio::test]
async fn what_began_before_the_switch_ends_on_the_old_color_with_its_retry() {
    let ((one, mut at_one), (other, mut at_other)) = (by_hand().await, by_hand().await);
    let (green, at_green) = by_hand().await;
    let teal = Builder::app(&[&one, &other]).service(&format!("green = [{}]", green.toml())).start().await;
    let request = tokio::spawn(get(teal.address, "/"));
    let (first, second) = tokio::select! {
        call = at_one.next() => (call, &mut at_other),
        call = at_other.next() => (call, &mut at_one),
    };
    let record = teal.switch("app", Color::Green).await.expect("a switch");
    drop(first);
    let mut retry = second.next().await;
    retry.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nblue").await;
    assert_eq!(request.await.unwrap().text(), "blue");
    soon("the drain", record.drain().unwrap().over()).await;
    assert_eq!(report(&record).http, KindReport { open: 0, at_switch: 1, finished: 1, kept: 0, cut: 0 });
    assert!(at_green.is_empty());
}

#[tokio::test]
async fn new_requests_do_not_wait_for_the_drain() {
    let (stage, teal) = one_service("drain.timeout = \"1h\"").await;
    let slow = stage.open(teal.address, "a", Kind::Http).await;
    let record = teal.switch("a", Color::Green).await.expect("a switch");
    for _ in 0..100 {
        assert_eq!(get(teal.address, "/a").await.text(), "green");
    }
    assert!(!record.drain().unwrap().is_over());
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    soon("the drain", record.drain().unwrap().over()).await;
}

/// An answer that takes until after the switch may turn out to be a stream, and is counted as what it turned out to be.
#[tokio::test]
async fn what_becomes_a_stream_after_the_switch_is_cut_as_a_stream() {
    let (blue, mut calls) = by_hand().await;
    let (green, _) = by_hand().await;
    let drain = "drain = { timeout = \"4s\", websocket = \"keep\", sse = \"keep\" }";
    let teal = Builder::app(&[&blue]).service(&format!("green = [{}]\n{drain}", green.toml())).start().await;
    let (mut sse, mut websocket) = (Client::connect(teal.address).await, Client::connect(teal.address).await);
    sse.send("GET /sse HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let mut events = calls.next().await;
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    websocket.send(format!("GET /ws HTTP/1.1\r\nHost: test\r\n{upgrade}\r\n")).await;
    let mut chat = calls.next().await;
    let record = teal.switch("app", Color::Green).await.expect("a switch");
    assert_eq!(report(&record).http.open, 2);
    events.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await;
    chat.send(chat.accepted()).await;
    assert!(soon("the head", sse.head()).await.is_some() && soon("the head", websocket.head()).await.is_some());
    soon("the drain", record.drain().unwrap().over()).await;
    let cut = KindReport { open: 0, at_switch: 1, finished: 0, kept: 0, cut: 1 };
    assert_eq!((report(&record).sse, report(&record).websocket), (cut, cut));
    assert_eq!(report(&record).http, KindReport::default());
}

/// With no time at all everything is cut at once, and new requests are served.
#[tokio::test]
async fn a_drain_without_time_cuts_at_once() {
    let (stage, teal) = one_service("drain.timeout = \"0s\"").await;
    let mut open = Vec::new();
    for kind in Kind::ALL {
        open.push(stage.open(teal.address, "a", kind).await);
    }
    let record = teal.switch("a", Color::Green).await.expect("a switch");
    soon("the drain", record.drain().unwrap().over()).await;
    let cut = KindReport { open: 0, at_switch: 1, finished: 0, kept: 0, cut: 1 };
    assert_eq!([report(&record).http, report(&record).sse, report(&record).websocket], [cut; 3]);
    for exchange in open {
        assert_eq!(exchange.ending().await, None);
    }
    assert_eq!(get(teal.address, "/a").await.text(), "green");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_idle_websockets_are_cut_in_one_go_and_new_requests_are_served() {
    let (stage, teal) = one_service("drain.timeout = \"1s\"").await;
    let (stage, address) = (Arc::new(stage), teal.address);
    let at_once = Arc::new(Semaphore::new(64));
    let mut opening = JoinSet::new();
    for _ in 0..IDLE_WEBSOCKETS {
        let (stage, at_once) = (stage.clone(), at_once.clone());
        opening.spawn(async move {
            let _turn = at_once.acquire().await;
            stage.open(address, "a", Kind::WebSocket).await
        });
    }
    let websockets = opening.join_all().await;
    let record = teal.switch("a", Color::Green).await.expect("a switch");
    assert_eq!(report(&record).websocket.at_switch, IDLE_WEBSOCKETS as u64);
    // Not by way of what stands before the others, which has to end them all.
    let (_front, address) = teal.another_way();
    let mut client = Client::connect(address).await;
    let mut slowest = Duration::ZERO;
    while !record.drain().unwrap().is_over() {
        let asked = Instant::now();
        assert_eq!(client.get("/a").await.text(), "green");
        slowest = slowest.max(asked.elapsed());
    }
    let expected = KindReport { open: 0, at_switch: 2_000, finished: 0, kept: 0, cut: 2_000 };
    assert_eq!(report(&record).websocket, expected);
    assert!(slowest < Duration::from_secs(2), "a new request took {slowest:?}");
    for websocket in websockets {
        assert_eq!(websocket.ending().await, None);
    }
}

/// Whoever does not read, client or origin, cannot hold a drain beyond its deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_that_never_reads_is_cut_at_the_deadline() {
    let (blue, mut calls) = by_hand().await;
    let (green, _) = by_hand().await;
    let keys = format!("green = [{}]\ndrain.timeout = \"1s\"", green.toml());
    let teal = Builder::app(&[&blue]).service(&keys).start().await;
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let floods = [
        ("GET", "", "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"),
        ("GET", "", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"),
        ("GET", upgrade, ""),
    ];
    let mut clients = Vec::new();
    let mut flooding = JoinSet::new();
    for (method, fields, answer) in floods {
        let mut client = Client::connect(teal.address).await;
        client.send(format!("{method} / HTTP/1.1\r\nHost: test\r\n{fields}\r\n")).await;
        let mut call = calls.next().await;
        call.send(if fields == upgrade { call.accepted() } else { answer.to_owned() }).await;
        assert!(soon("the head", client.head()).await.is_some());
        clients.push(client);
        flooding.spawn(flood(call.wire));
    }
    let mut upload = Client::connect(teal.address).await;
    upload.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000000\r\n\r\n").await;
    let _silent = calls.next().await;
    flooding.spawn(flood(upload));

    let record = teal.switch("app", Color::Green).await.expect("a switch");
    soon("the drain", record.drain().unwrap().over()).await;
    let cut = |count| KindReport { open: 0, at_switch: count, finished: 0, kept: 0, cut: count };
    assert_eq!([report(&record).http, report(&record).sse, report(&record).websocket], [cut(2), cut(1), cut(1)]);
    soon("the proxy to let go of all", flooding.join_all()).await;
}

/// Sends until nobody takes it any more.
async fn flood(mut client: Client) {
    use tokio::io::AsyncWriteExt;
    while client.stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
}

/// What runs for a service when a reload removes it has its drain, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_service_is_drained() {
    let stage = Stage::new().await;
    let (gone, stays) = (stage.service("gone", "drain.timeout = \"4s\""), stage.service("stays", ""));
    let (before, after) = (Builder::new(&format!("{gone}{stays}")), Builder::new(&stays));
    let teal = before.start().await;
    let mut open = Vec::new();
    for kind in Kind::ALL {
        open.push(stage.open(teal.address, "gone", kind).await);
    }
    let slow = stage.open(teal.address, "gone", Kind::Http).await;
    let other = stage.open(teal.address, "stays", Kind::WebSocket).await;
    let tenure = tenure(&teal, "gone");
    let config = config::parse(&after.toml(&teal.dir().join("state")), Path::new("test.toml")).expect("a good config");
    teal.state().reload(config).await.expect("it runs").expect("a reload");

    assert_eq!(get(teal.address, "/gone").await.status, 404);
    slow.release();
    assert_eq!(slow.ending().await.as_deref(), Some("blue"));
    assert!(tenure.0.strong_count() > 0);
    for exchange in open {
        assert_eq!(exchange.ending().await, None);
    }
    eventually("nobody works for it", || tenure.0.strong_count() == 0).await;
    other.release();
    assert_eq!(other.ending().await.as_deref(), Some("blue"));
}

/// A reload renews everything but the tenure.
#[tokio::test]
async fn what_began_before_a_reload_is_in_the_account_of_the_next_switch() {
    let (stage, teal) = one_service("drain.timeout = \"500ms\"").await;
    let (old, tenure) = (stage.open(teal.address, "a", Kind::WebSocket).await, tenure(&teal, "a"));
    let next = Builder::new(&stage.service("a", "drain.timeout = \"1s\""));
    let config = config::parse(&next.toml(&teal.dir().join("state")), Path::new("test.toml")).expect("a good config");
    teal.state().reload(config).await.expect("it runs").expect("a reload");
    let new = stage.open(teal.address, "a", Kind::WebSocket).await;
    assert!(tenure.0.strong_count() > 0);
    let called = Instant::now();
    let record = teal.switch("a", Color::Green).await.expect("a switch");
    soon("the drain", record.drain().unwrap().over()).await;
    assert!(called.elapsed() >= Duration::from_secs(1), "the timeout is that of the reload");
    assert_eq!(report(&record).websocket, KindReport { open: 0, at_switch: 2, finished: 0, kept: 0, cut: 2 });
    assert_eq!((old.ending().await, new.ending().await), (None, None));
}

/// Neither a generation nor, once its record is forgotten, its counts stay in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_old_generations() {
    let (stage, teal) = one_service("").await;
    let mut tenures = vec![tenure(&teal, "a")];
    for n in 0..300 {
        let to = if n % 2 == 0 { Color::Green } else { Color::Blue };
        let open = stage.open(teal.address, "a", Kind::ALL[n % 3]).await;
        let record = teal.switch("a", to).await.expect("a switch");
        open.release();
        assert_eq!(open.ending().await.as_deref(), Some(to.other().as_str()));
        soon("the drain", record.drain().unwrap().over()).await;
        tenures.push(tenure(&teal, "a"));
    }
    let (active, left) = tenures.split_last().unwrap();
    assert!(left.iter().all(|(generation, _)| generation.upgrade().is_none()));
    assert!(active.0.upgrade().is_some());
    // The newest 256 records show their counts on.
    let forgotten = &left[..40];
    eventually("old counts are gone", || forgotten.iter().all(|(_, tally)| tally.strong_count() == 0)).await;
}

fn tenure(teal: &Teal, service: &str) -> (Weak<Generation>, Weak<Tally>) {
    let snapshot = teal.state().load();
    let generation = &snapshot.service(service).expect("a known service").generation;
    (Arc::downgrade(generation), Arc::downgrade(generation.tally()))
}

/// The service `a`.
async fn one_service(keys: &str) -> (Stage, Teal) {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", keys)).start().await;
    (stage, teal)
}
