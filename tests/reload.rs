//! A change of the config file takes effect whole or not at all, and drops nothing that it does not speak of.

mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::process::Signal;
use teal::config::{self, Color};
use teal::run::Proxy;
use teal::service::{Generation, Kind};
use teal::state::{SwitchRequest, Trigger};
use teal::upstream::{Endpoint, Health};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use support::binary::{Binary, call, teal_run};
use support::by_hand::by_hand;
use support::client::{Client, get};
use support::exchange::Stage;
use support::origin::{Origin, Request, ok};
use support::proxy::{Builder, Teal, to_color};
use support::{eventually, replace, scratch, soon};

const RELOADS: usize = 50;
const MANY_RELOADS: usize = 1_000;
/// Long enough for whatever must not happen to happen, as a rule.
const A_WHILE: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_drop_nothing() {
    let stage = Stage::new().await;
    let teal = Builder::new(&(stage.service("a", "") + &stage.service("b", ""))).start_watching().await;
    let mut streams = Vec::new();
    for n in 0..100 {
        streams.push(stage.open(teal.address, "a", [Kind::WebSocket, Kind::Sse][n % 2]).await);
    }
    let mut idle = Client::connect(teal.address).await;
    assert_eq!(idle.get("/a").await.text(), "blue");
    let (tenure, endpoints) = inside(&teal, "a");
    let load = Load::start(teal.address, "/a");
    for n in 0..RELOADS {
        edit(&teal, |text| format!("{text}[[routes]]\npath = \"/more{n}\"\nservice = \"b\"\n")).await;
        assert_eq!(get(teal.address, &format!("/more{n}")).await.text(), "blue");
    }
    assert!(load.stop().await > 0);
    assert_eq!(idle.get("/a").await.text(), "blue");
    for stream in streams {
        stream.release();
        assert_eq!(stream.ending().await.as_deref(), Some("blue"));
    }
    let (tenure_now, endpoints_now) = inside(&teal, "a");
    assert!(tenure.ptr_eq(&tenure_now));
    for (before, now) in endpoints.iter().zip(&endpoints_now) {
        assert!(Arc::ptr_eq(before, now) && now.health() == Health::Healthy);
    }
    assert_eq!(counts(&teal), (RELOADS as u64, 0));
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_shown_until_a_good_one_comes() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "")).start_watching().await;
    let good = fs::read_to_string(teal.file()).expect("a file");
    let snapshot = Arc::downgrade(&teal.state().load());
    let bad = [
        (format!("{good}x = 1\n"), "unknown key"),
        (format!("{good}[services"), "expected"),
        (String::new(), "listeners"),
        (good.replace("service = \"a\"", "service = \"other\""), "other"),
    ];
    for (n, (text, word)) in bad.iter().enumerate() {
        edit(&teal, |_| text.clone()).await;
        let problems = teal.state().problems().expect("a problem").to_string();
        assert!(problems.starts_with(&format!("{}:", teal.file().display())) && problems.contains(word), "{problems}");
        assert!(snapshot.ptr_eq(&Arc::downgrade(&teal.state().load())));
        assert_eq!(get(teal.address, "/a").await.text(), "blue");
        assert_eq!(counts(&teal), (0, n as u64 + 1));
    }
    fs::remove_file(teal.file()).expect("the test can remove it");
    eventually("it is missed", || counts(&teal) == (0, bad.len() as u64 + 1)).await;
    assert!(teal.state().problems().is_some() && snapshot.ptr_eq(&Arc::downgrade(&teal.state().load())));
    replace(&teal.file(), &good);
    eventually("it is good again", || counts(&teal) == (1, bad.len() as u64 + 1)).await;
    assert_eq!(teal.state().problems(), None);
}

#[tokio::test]
async fn a_swapped_config_map_takes_effect() {
    let stage = Stage::new().await;
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    for version in ["..1", "..2"] {
        fs::create_dir(at(version)).expect("a directory");
        let route = if version == "..2" { "[[routes]]\npath = \"/new\"\nservice = \"a\"\n" } else { "" };
        let text = Builder::new(&format!("{route}{}", stage.service("a", ""))).toml(&at("state"));
        fs::write(at(version).join("teal.toml"), text).expect("a file");
    }
    symlink("..1", at("..data")).expect("a link");
    symlink("..data/teal.toml", at("teal.toml")).expect("a link");
    let (next, current) = (at("..next"), at("..data"));
    let teal = Teal::watching(dir).await;
    assert_eq!(get(teal.address, "/new").await.status, 404);
    symlink("..2", &next).expect("a link");
    fs::rename(&next, &current).expect("it takes the other's place");
    eventually("the new version is in effect", || counts(&teal) == (1, 0)).await;
    assert_eq!(get(teal.address, "/new").await.text(), "blue");
}

/// A writer that is slow shows half a file; that is a bad file like any other until the rest is there.
#[tokio::test]
async fn a_half_written_file_changes_nothing() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "")).start_watching().await;
    let text = fs::read_to_string(teal.file()).expect("a file") + "[[routes]]\npath = \"/new\"\nservice = \"a\"\n";
    for (n, length) in [0, text.len() / 2, text.len() - 5].into_iter().enumerate() {
        replace(&teal.file(), &text[..length]);
        eventually("half a file is refused", || counts(&teal) == (0, n as u64 + 1)).await;
        assert_eq!(get(teal.address, "/a").await.text(), "blue");
    }
    replace(&teal.file(), &text);
    eventually("the whole file is in effect", || counts(&teal).0 == 1).await;
    assert_eq!(get(teal.address, "/new").await.text(), "blue");
    assert!(teal.state().problems().is_none());
}

/// What the file says in the end is what is in effect, however the changes fall between the first look and the watch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_during_the_start_is_not_missed() {
    for _ in 0..10 {
        let dir = scratch();
        let text = |n: u64| {
            Builder::new(&format!("[services.a]\nqueue_timeout = \"{n}ms\"\n")).toml(&dir.path().join("state"))
        };
        let path = dir.path().join("teal.toml");
        fs::write(&path, text(0)).expect("the test can write");
        let starting = tokio::task::spawn_blocking({
            let path = path.clone();
            move || Proxy::start_watching(&path).expect("the proxy starts")
        });
        let mut last = 0;
        while !starting.is_finished() {
            last += 1;
            replace(&path, text(last));
        }
        let proxy = starting.await.expect("it starts");
        let teal = Teal::of(proxy, dir);
        let in_effect = || teal.state().load().services[0].config.queue_timeout;
        eventually("the last change is in effect", || in_effect() == Duration::from_millis(last)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_comes_and_goes() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "")).start_watching().await;
    let with = "[[listeners]]\nlisten = \"127.0.0.2:0\"\n";
    let without = fs::read_to_string(teal.file()).expect("a file");
    let mut stays = Client::connect(teal.address).await;
    assert_eq!(stays.get("/a").await.text(), "blue");

    edit(&teal, |text| format!("{text}{with}")).await;
    let address = newest(&teal, "127.0.0.2:");
    let mut idle = Client::connect(address).await;
    assert_eq!(idle.get("/a").await.text(), "blue");
    let silent = Client::connect(address).await;
    let mut slow = stage.open(address, "a", Kind::Http).await;
    let stream = stage.open(address, "a", Kind::WebSocket).await;

    edit(&teal, |_| without).await;
    for mut client in [idle, silent] {
        assert_eq!(client.rest().await, (Vec::new(), true), "an idle connection ends in order");
    }
    eventually("nobody listens", || StdTcpStream::connect(address).is_err()).await;
    slow.release();
    let answer = slow.client.answer().await;
    assert_eq!((answer.text(), answer.field("connection")), ("blue", Some("close")));
    assert_eq!(slow.client.rest().await, (Vec::new(), true));
    drop(StdTcpListener::bind(address).expect("the address is free"));
    stream.release();
    assert_eq!(stream.ending().await.as_deref(), Some("blue"));
    assert_eq!(stays.get("/a").await.text(), "blue");

    edit(&teal, |text| format!("{text}{with}")).await;
    assert_eq!(get(newest(&teal, "127.0.0.2:"), "/a").await.text(), "blue");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_gets_new_settings_and_keeps_its_socket() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "")).listener("request_body = \"1KiB\"").start_watching().await;
    let upload = |length: usize| {
        format!("POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(length))
    };
    let mut old = Client::connect(teal.address).await;
    assert_eq!(old.get("/a").await.status, 200);
    assert_eq!(Client::connect(teal.address).await.ask(upload(2000)).await.status, 413);
    let load = Load::start_connecting(teal.address, "/a");
    for limit in ["2KiB", "3KiB", "4KiB"] {
        edit(&teal, |text| {
            let (before, after) = text.split_once("request_body = \"").expect("the key");
            format!("{before}request_body = \"{limit}{}", &after[after.find('"').expect("its end")..])
        })
        .await;
    }
    assert!(load.stop().await > 0);
    assert_eq!(Client::connect(teal.address).await.ask(upload(2000)).await.status, 200);
    // A connection keeps the settings that it began with.
    assert_eq!(old.ask(upload(2000)).await.status, 413);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_limit_of_connections_counts_those_that_are_open() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "")).listener("connections = 3").start_watching().await;
    let served = async || {
        let mut client = Client::connect(teal.address).await;
        assert_eq!(client.get("/a").await.status, 200);
        client
    };
    let waiting = async || {
        let mut client = Client::connect(teal.address).await;
        client.send("GET /a HTTP/1.1\r\nHost: test\r\n\r\n").await;
        assert!(timeout(A_WHILE, client.more()).await.is_err(), "one too many is served");
        client
    };
    let mut open = vec![served().await, served().await, served().await];
    let mut fourth = waiting().await;
    edit(&teal, |text| text.replace("connections = 3", "connections = 4")).await;
    assert_eq!(fourth.answer().await.status, 200);
    open.push(fourth);

    edit(&teal, |text| text.replace("connections = 4", "connections = 2")).await;
    let mut next = waiting().await;
    // With these two gone there are as many as there may be.
    open.truncate(2);
    assert!(timeout(A_WHILE, next.more()).await.is_err(), "the limit did not shrink");
    open.truncate(1);
    assert_eq!(next.answer().await.status, 200);
    let mut last = waiting().await;
    edit(&teal, |text| text.replace("connections = 2", "connections = 3")).await;
    assert_eq!(last.answer().await.status, 200);
}

#[tokio::test]
async fn an_address_in_use_refuses_the_whole_file() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "")).start_watching().await;
    let holder = StdTcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("it is bound");
    let snapshot = Arc::downgrade(&teal.state().load());
    let more = format!(
        "[[listeners]]\nlisten = \"127.0.0.2:0\"\n[[listeners]]\nlisten = \"{taken}\"\n\
         [[routes]]\npath = \"/new\"\nservice = \"a\"\n"
    );
    edit(&teal, |text| format!("{text}{more}")).await;
    let problems = teal.state().problems().expect("a problem").to_string();
    for part in [&taken.to_string(), "in use", &format!("(pid {})", std::process::id())] {
        assert!(problems.contains(part), "{problems}");
    }
    assert!(snapshot.ptr_eq(&Arc::downgrade(&teal.state().load())));
    assert_eq!(get(teal.address, "/new").await.status, 404);
    let other = newest(&teal, "127.0.0.2:");
    assert!(StdTcpStream::connect(other).is_err(), "a listener of a refused file is open");

    drop(holder);
    teal.proxy().reload();
    eventually("the file is in effect", || counts(&teal) == (1, 1)).await;
    assert_eq!(get(taken, "/new").await.text(), "blue");
}

/// The new endpoints come with the same edit that makes them active: nobody may be sent to them before they are known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_switches_once_the_new_endpoints_have_been_probed() {
    let (old, new) = (Sick::saying("old").await, Sick::saying("new").await);
    let teal = old.service().start_watching().await;
    let load = Load::start(teal.address, "/");
    new.is_silent.send_replace(true);
    edit(&teal, |text| {
        let green = format!("green = [{}]", new.origin.toml());
        text.replace("green = []", &green).replace("active = \"blue\"", "active = \"green\"")
    })
    .await;
    assert_eq!(teal.active("app"), Color::Blue);
    let unknown = || teal.state().load().service("app").unwrap().pools.green.endpoints()[0].health() == Health::Unknown;
    assert!(unknown());
    assert_eq!(get(teal.address, "/").await.text(), "old");
    assert!(teal.state().recent().is_empty() && unknown());
    new.is_silent.send_replace(false);
    eventually("the switch", || teal.state().recent().len() == 1).await;
    assert_eq!(get(teal.address, "/").await.text(), "new");
    assert!(load.stop().await > 0);
    let records = teal.state().recent();
    let receipt = records[0].receipt();
    assert_eq!((records.len(), receipt.trigger, receipt.services[0].generation), (1, Trigger::Config, 2));
    assert!(teal.state().refused().is_empty());
}

#[tokio::test]
async fn a_switch_that_is_refused_is_shown_and_done_at_the_next_reload() {
    let (old, new) = (Sick::saying("old").await, Sick::saying("new").await);
    let teal = old.service().start_watching().await;
    new.is_sick.store(true, Ordering::SeqCst);
    let green = format!("green = [{}]", new.origin.toml());
    edit(&teal, |text| text.replace("green = []", &green).replace("active = \"blue\"", "active = \"green\"")).await;
    let is_refused = || !teal.state().refused().is_empty();
    eventually("the switch is refused", is_refused).await;
    let (service, why) = teal.state().refused().remove(0);
    assert_eq!(&*service, "app");
    assert!(why.contains("0 of 1 endpoints of green are healthy"), "{why}");
    assert_eq!((teal.active("app"), get(teal.address, "/").await.text()), (Color::Blue, "old"));

    // Who takes it back is not reproached with it any more.
    edit(&teal, |text| text.replace("active = \"green\"", "active = \"blue\"")).await;
    assert!(!is_refused());
    edit(&teal, |text| text.replace("active = \"blue\"", "active = \"green\"")).await;
    eventually("the switch is refused again", is_refused).await;

    new.is_sick.store(false, Ordering::SeqCst);
    eventually("it is well", || teal.state().load().service("app").unwrap().pools.green.healthy() == 1).await;
    assert_eq!(teal.active("app"), Color::Blue, "nobody asked again");
    teal.proxy().reload();
    eventually("the switch", || teal.active("app") == Color::Green).await;
    eventually("nothing is refused", || !is_refused()).await;
    assert_eq!(get(teal.address, "/").await.text(), "new");
}

#[tokio::test]
async fn a_reload_never_undoes_a_switch_of_the_api() {
    let stage = Stage::new().await;
    let teal = Builder::new(&stage.service("a", "active = \"blue\"")).start_watching().await;
    let color_and_number = || {
        let snapshot = teal.state().load();
        let service = snapshot.service("a").unwrap();
        (service.active, service.number)
    };
    let unrelated = |n: usize| edit(&teal, move |text| format!("{text}[[routes]]\npath = \"/{n}\"\nservice = \"a\"\n"));
    teal.switch("a", Color::Green).await.expect("a switch");
    unrelated(1).await;
    unrelated(2).await;
    assert_eq!(color_and_number(), (Color::Green, 2));
    // The file agrees now: nothing is left to be done, and its wish is not kept for later.
    edit(&teal, |text| text.replace("active = \"blue\"", "active = \"green\"")).await;
    assert_eq!(color_and_number(), (Color::Green, 2));
    teal.switch("a", Color::Blue).await.expect("a switch");
    unrelated(3).await;
    assert_eq!(color_and_number(), (Color::Blue, 3));
    edit(&teal, |text| text.replace("active = \"green\"", "active = \"blue\"")).await;
    edit(&teal, |text| text.replace("active = \"blue\"", "active = \"green\"")).await;
    eventually("the file switches", || color_and_number() == (Color::Green, 4)).await;
}

/// What the file asked for and could not get is overruled by whoever switches later.
#[tokio::test]
async fn the_api_overrules_what_the_file_could_not_get() {
    let (old, new) = (Sick::saying("old").await, Sick::saying("new").await);
    let teal = old.service().start_watching().await;
    new.is_sick.store(true, Ordering::SeqCst);
    let green = format!("green = [{}]", new.origin.toml());
    edit(&teal, |text| text.replace("green = []", &green).replace("active = \"blue\"", "active = \"green\"")).await;
    eventually("the switch is refused", || !teal.state().refused().is_empty()).await;
    new.is_sick.store(false, Ordering::SeqCst);
    eventually("it is well", || teal.state().load().service("app").unwrap().pools.green.healthy() == 1).await;
    teal.switch("app", Color::Green).await.expect("a switch");
    assert!(teal.state().refused().is_empty());
    teal.switch("app", Color::Blue).await.expect("a switch");
    edit(&teal, |text| format!("{text}[[routes]]\npath = \"/new\"\nservice = \"app\"\n")).await;
    // A switch by the file would be asked for by now: commands are done in their order.
    let dry = SwitchRequest { dry_run: true, ..to_color(&[("app", Color::Green)]) };
    teal.state().switch(dry).await.expect("it could be done");
    assert_eq!(teal.active("app"), Color::Blue);
    assert_eq!(teal.state().recent().len(), 2);
}

/// What changes in one edit belongs together: all or none.
#[tokio::test]
async fn colors_that_change_in_one_edit_switch_in_one_step() {
    let (stage, sick) = (Stage::new().await, Sick::saying("sick").await);
    sick.is_sick.store(true, Ordering::SeqCst);
    let keys = "active = \"blue\"";
    let third = format!(
        "[services.c]\n{keys}\ngreen = [{}]\n\
         health = {{ path = \"/healthz\", interval = \"20ms\", timeout = \"9s\", rise = 1 }}\n",
        sick.origin.toml()
    );
    let services = format!("{}{}{third}", stage.service("a", keys), stage.service("b", keys));
    let teal = Builder::new(&services).start_watching().await;
    edit(&teal, |text| text.replace("\"blue\"", "\"green\"")).await;
    eventually("the switch is refused", || teal.state().refused().len() == 3).await;
    assert!(["a", "b", "c"].iter().all(|name| teal.active(name) == Color::Blue));
    sick.is_sick.store(false, Ordering::SeqCst);
    eventually("it is well", || teal.state().load().service("c").unwrap().pools.green.healthy() == 1).await;
    teal.proxy().reload();
    eventually("the switch", || teal.state().recent().len() == 1).await;
    assert_eq!(teal.state().recent()[0].receipt().services.len(), 3);
    assert!(["a", "b", "c"].iter().all(|name| teal.active(name) == Color::Green));
}

/// Reloads and switches go through one writer; neither loses what the other did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switches_and_reloads_do_not_undo_each_other() {
    let stage = Stage::new().await;
    let teal = Arc::new(Builder::new(&stage.service("a", "")).start().await);
    let load = Load::start(teal.address, "/a");
    let is_over = Arc::new(AtomicBool::new(false));
    let reloads = tokio::spawn({
        let (teal, is_over) = (teal.clone(), is_over.clone());
        let texts = ["", "queue_timeout = \"1s\""].map(|keys| Builder::new(&stage.service("a", keys)));
        async move {
            for text in texts.iter().cycle() {
                let text = text.toml(&teal.dir().join("state"));
                let config = config::parse(&text, Path::new("test.toml")).expect("a good config");
                assert_eq!(teal.state().reload(config).await.expect("it runs").expect("a reload"), []);
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
            }
        }
    });
    for n in 0..300 {
        let to = if n % 2 == 0 { Color::Green } else { Color::Blue };
        let record = teal.switch("a", to).await.expect("a switch");
        assert_eq!(record.receipt().services[0].generation, n + 2);
        assert_eq!(teal.active("a"), to);
    }
    is_over.store(true, Ordering::SeqCst);
    reloads.await.expect("no reload failed");
    assert!(load.stop().await > 0);
    assert_eq!(teal.state().load().service("a").unwrap().number, 301);
    assert_eq!(teal.state().store().services().expect("it can be read")["a"].generation, 301);
}

#[tokio::test]
async fn a_removed_endpoint_finishes_what_it_has() {
    let ((stays, mut at_stays), (goes, mut at_goes)) = (by_hand().await, by_hand().await);
    let teal = Builder::app(&[&goes]).start_watching().await;
    let running = tokio::spawn(get(teal.address, "/"));
    let mut call = at_goes.next().await;
    let endpoint = Arc::downgrade(&inside(&teal, "app").1[0]);
    edit(&teal, |text| text.replace(&goes.toml(), &stays.toml())).await;
    teal.probed().await;
    let next = tokio::spawn(get(teal.address, "/"));
    at_stays.next().await.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstays").await;
    assert_eq!(next.await.unwrap().text(), "stays");
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngoes").await;
    assert_eq!(running.await.unwrap().text(), "goes");
    assert!(at_goes.is_empty());
    eventually("nobody knows it any more", || endpoint.strong_count() == 0).await;
}

#[tokio::test]
async fn a_removed_service_is_not_found() {
    let stage = Stage::new().await;
    let (gone, stays) = (stage.service("gone", ""), stage.service("stays", ""));
    let teal = Builder::new(&format!("{stays}{gone}")).start_watching().await;
    let running = stage.open(teal.address, "gone", Kind::Http).await;
    edit(&teal, |text| text.replace(&gone, "")).await;
    assert_eq!(get(teal.address, "/gone").await.status, 404);
    assert_eq!(get(teal.address, "/stays").await.text(), "blue");
    running.release();
    assert_eq!(running.ending().await.as_deref(), Some("blue"));
}

/// A thousand reloads, each of which opens or closes a listener and adds or removes an endpoint, leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_reloads_leak_nothing() {
    let stage = Stage::new().await;
    let dir = scratch();
    // Of an address that nobody else uses, or it might be taken whenever it is free.
    let free = StdTcpListener::bind("127.0.0.3:0").and_then(|listener| listener.local_addr()).expect("a port");
    let more = format!("[[listeners]]\nlisten = \"{free}\"\n[services.more]\nblue = [{}]\n", stage.blue.toml());
    let texts = ["", &more].map(|more| Builder::new(&(stage.service("a", "") + more)).toml(&dir.path().join("state")));
    let path = dir.path().join("teal.toml");
    fs::write(&path, &texts[0]).expect("the test can write");
    let teal = Binary::start(teal_run(&path)).await;
    let mut idle = Client::connect(teal.address).await;
    assert_eq!(idle.get("/a").await.text(), "blue");
    let stream = stage.open(teal.address, "a", Kind::WebSocket).await;
    let mut admin = Client::connect(teal.admin).await;
    let (mut count, mut before) = (applied(&teal, &mut admin).await, 0);
    for n in 1..=MANY_RELOADS {
        replace(&path, &texts[n % 2]);
        teal.signal(Signal::HUP);
        let last = count;
        let counting = async {
            while count == last {
                count = applied(&teal, &mut admin).await;
            }
        };
        soon("the reload", counting).await;
        if n == 10 {
            before = settled_descriptors(&teal).await;
        }
    }
    // An even number of reloads: the last one took away what the first one had brought.
    eventually("the listener is closed", || StdTcpStream::connect(free).is_err()).await;
    eventually("no descriptor is left over", || descriptors(&teal) <= before).await;
    let metrics = admin.ask(call(teal.admin, "GET", "/metrics", "")).await;
    let seated = format!("teal_connections{{listener=\"{}\"}} 2", teal.address);
    assert!(metrics.text().lines().any(|line| line == seated), "{}", metrics.text());
    assert_eq!(idle.get("/a").await.text(), "blue");
    stream.release();
    assert_eq!(stream.ending().await.as_deref(), Some("blue"));
}

async fn applied(teal: &Binary, admin: &mut Client) -> u64 {
    let metrics = admin.ask(call(teal.admin, "GET", "/metrics", "")).await;
    let value = |outcome: &str| {
        let key = format!("teal_config_reloads_total{{outcome=\"{outcome}\"}}");
        let line = metrics.text().lines().find(|line| line.starts_with(&key));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    };
    if value("rejected") != 0 {
        panic!("a good file was rejected: {}", teal.call("GET", "/v1/status", "").await.text());
    }
    value("applied")
}

/// Their number once it stands still; what was just closed may be on its way out.
async fn settled_descriptors(teal: &Binary) -> usize {
    let mut last = descriptors(teal);
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = descriptors(teal);
        if now == last {
            return now;
        }
        last = now;
    }
}

fn descriptors(teal: &Binary) -> usize {
    fs::read_dir(format!("/proc/{}/fd", teal.pid().as_raw_nonzero())).expect("it runs").count()
}

/// Changes the file as an editor does, and waits until the change was applied or rejected.
async fn edit(teal: &Teal, change: impl FnOnce(&str) -> String) {
    let before = counts(teal);
    replace(&teal.file(), change(&fs::read_to_string(teal.file()).expect("a file")));
    eventually("the change is followed", || counts(teal) != before).await;
}

/// Reloads that were applied, and that were rejected.
fn counts(teal: &Teal) -> (u64, u64) {
    let stats = &teal.state().stats;
    (stats.reloads_applied.load(Ordering::SeqCst), stats.reloads_rejected.load(Ordering::SeqCst))
}

/// What must outlive a reload: the generation of a service, and its endpoints.
fn inside(teal: &Teal, service: &str) -> (Weak<Generation>, Vec<Arc<Endpoint>>) {
    let snapshot = teal.state().load();
    let service = snapshot.service(service).expect("a known service");
    let pools = [&service.pools.blue, &service.pools.green];
    let endpoints = pools.iter().flat_map(|pool| pool.endpoints()).cloned().collect();
    (Arc::downgrade(&service.generation), endpoints)
}

/// The address of this beginning that was bound last.
fn newest(teal: &Teal, beginning: &str) -> SocketAddr {
    let listeners = teal.state().listeners();
    let mut open = listeners.iter().filter(|(address, _)| address.starts_with(beginning));
    let is_open = |address: &&(String, _)| StdTcpStream::connect(&address.0).is_ok();
    let address = open.clone().find(is_open).or_else(|| open.next_back()).expect("it was bound");
    address.0.parse().expect("a TCP address")
}

/// Clients that ask one thing after the other and accept no failure.
struct Load {
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<u64>>,
}

impl Load {
    /// Each client stays on its connection.
    fn start(address: SocketAddr, path: &'static str) -> Load {
        Load::of(address, path, u64::MAX)
    }

    /// Each request is on a connection of its own.
    fn start_connecting(address: SocketAddr, path: &'static str) -> Load {
        Load::of(address, path, 1)
    }

    fn of(address: SocketAddr, path: &'static str, per_connection: u64) -> Load {
        let is_over = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let is_over = is_over.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                let mut requests = 0;
                while !is_over.load(Ordering::SeqCst) {
                    assert_eq!(client.get(path).await.status, 200);
                    requests += 1;
                    if requests % per_connection == 0 {
                        client = Client::connect(address).await;
                    }
                }
                requests
            })
        };
        Load { clients: (0..4).map(client).collect(), is_over }
    }

    /// The requests that were answered.
    async fn stop(self) -> u64 {
        self.is_over.store(true, Ordering::SeqCst);
        let mut requests = 0;
        for client in self.clients {
            requests += client.await.expect("no request failed");
        }
        requests
    }
}

/// An origin whose health the test decides.
struct Sick {
    origin: Origin,
    /// Probes are answered with 503.
    is_sick: Arc<AtomicBool>,
    /// Probes are not answered as long as this is so.
    is_silent: watch::Sender<bool>,
}

impl Sick {
    async fn saying(word: &'static str) -> Sick {
        let (is_sick, is_silent) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(false));
        let (sick, silent) = (is_sick.clone(), is_silent.subscribe());
        let origin = Origin::http(move |request: Request| {
            let (sick, mut silent) = (sick.clone(), silent.clone());
            async move {
                if !request.line().contains("/healthz") {
                    return ok(word);
                }
                // An error means that the test is over.
                let _ = silent.wait_for(|is_silent| !is_silent).await;
                match sick.load(Ordering::SeqCst) {
                    true => b"HTTP/1.1 503 Sick\r\nContent-Length: 0\r\n\r\n".to_vec(),
                    false => ok("well"),
                }
            }
        });
        Sick { origin: origin.await, is_sick, is_silent }
    }

    /// The service `app` with this origin as blue and nothing as green.
    fn service(&self) -> Builder {
        Builder::new(&format!(
            "[[routes]]\npath = \"/\"\nservice = \"app\"\n\
             [services.app]\nactive = \"blue\"\nblue = [{}]\ngreen = []\n\
             health = {{ path = \"/healthz\", interval = \"20ms\", timeout = \"9s\", rise = 1, fall = 1000 }}\n",
            self.origin.toml()
        ))
    }
}
