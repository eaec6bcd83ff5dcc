//! Endpoints of both colors are probed, names are resolved, failing endpoints are ejected and taken back, and none of
//! it is forgotten in a reload. The origins are sockets of the test, which answers most probes by hand and so knows
//! what the proxy knows at each step.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use teal::config::{self, Address, Color};
use teal::health;
use teal::roster::Roster;
use teal::run::Proxy;
use teal::state::State;
use teal::store::Store;
use teal::upstream::{Endpoint, Health};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

#[test]
fn the_first_probe_decides_alone() {
    let (good, bad, closed) = (Origin::new(), Origin::new(), Closed::new());
    let health = r#"{ path = "/", interval = "1h", timeout = "30s", rise = 1000, fall = 1000 }"#;
    let edge = Edge::start(&api(&[&good.address(), &bad.address(), &closed.address()], &[], health));
    let (first, second) = (good.next(), bad.next());
    assert_eq!(edge.endpoint(Color::Blue, 0).health(), Health::Unknown);
    assert_eq!(edge.endpoint(Color::Blue, 1).health(), Health::Unknown);
    first.answer(OK);
    second.answer(UNAVAILABLE);
    edge.until_known();
    assert_eq!(edge.healths(Color::Blue), [Health::Healthy, Health::Unhealthy, Health::Unhealthy]);
    let error = |place: usize| edge.endpoint(Color::Blue, place).last_probe().expect("it was probed").error;
    assert_eq!(error(0), None);
    assert_eq!(error(1).as_deref(), Some("status 503, expected 200"));
    assert_eq!(error(2).as_deref(), Some("connection refused"));
}

#[test]
fn rise_good_or_fall_bad_probes_in_a_row_turn_the_health() {
    let origin = Origin::new();
    let health = r#"{ path = "/", interval = "10ms", timeout = "30s", rise = 3, fall = 2 }"#;
    let edge = Edge::start(&api(&[&origin.address()], &[], health));
    let (up, down, unknown) = (Health::Healthy, Health::Unhealthy, Health::Unknown);
    let steps = [
        (unknown, OK),
        (up, UNAVAILABLE),
        (up, OK),
        (up, UNAVAILABLE),
        (up, UNAVAILABLE),
        (down, OK),
        (down, OK),
        (down, UNAVAILABLE),
        (down, OK),
        (down, OK),
        (down, OK),
        (up, UNAVAILABLE),
        (up, UNAVAILABLE),
        (down, OK),
    ];
    for (place, (known, answer)) in steps.into_iter().enumerate() {
        // Results are taken in before the next probe begins.
        let asked = origin.next();
        assert_eq!(edge.endpoint(Color::Blue, 0).health(), known, "before step {place}");
        asked.answer(answer);
    }
}

#[test]
fn both_colors_are_probed() {
    let (blue, green) = (Origin::new(), Origin::new());
    let health = r#"{ path = "/", interval = "10ms", timeout = "30s", rise = 1, fall = 1 }"#;
    let edge = Edge::start(&api(&[&blue.address()], &[&green.address()], health));
    for (blue_says, green_says) in [(OK, UNAVAILABLE), (UNAVAILABLE, OK)] {
        blue.next().answer(blue_says);
        green.next().answer(green_says);
        let health = |says| if says == OK { Health::Healthy } else { Health::Unhealthy };
        until("both are judged", || {
            edge.healths(Color::Blue) == [health(blue_says)] && edge.healths(Color::Green) == [health(green_says)]
        });
    }
}

#[test]
fn a_probe_is_a_get_of_the_path_with_the_host() {
    let (plain, named) = (Origin::new(), Origin::new());
    let health = r#"{ path = "/healthz?deep=1", interval = "1h", timeout = "30s", host = "Shop.example:81" }"#;
    let _edge = Edge::start(&format!(
        "{}{}",
        service("plain", &[&plain.address()], &[], r#"{ path = "/" }"#),
        service("named", &[&named.address()], &[], health),
    ));
    let expected = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nUser-Agent: teal-health/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        plain.address(),
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(plain.next().head, expected);
    let head = named.next().head;
    assert!(head.starts_with("GET /healthz?deep=1 HTTP/1.1\r\nHost: shop.example:81\r\n"), "{head}");
}

#[test]
fn another_port_may_be_probed() {
    let (side, closed) = (Origin::new(), Closed::new());
    let health = format!(r#"{{ path = "/", interval = "1h", timeout = "30s", port = {} }}"#, side.port());
    let edge = Edge::start(&api(&[&closed.address()], &[], &health));
    let asked = side.next();
    assert!(asked.head.contains(&format!("\r\nHost: 127.0.0.1:{}\r\n", side.port())), "{}", asked.head);
    asked.answer(OK);
    edge.until_known();
    assert_eq!(edge.healths(Color::Blue), [Health::Healthy]);
}

#[test]
fn the_status_must_be_one_of_those_expected() {
    let statuses = [200, 204, 299, 300, 401, 403, 503];
    let origins = statuses.map(|_| Origin::new());
    let addresses = origins.each_ref().map(Origin::address);
    let health = r#"{ path = "/", interval = "1h", timeout = "30s", status = ["2xx", 401] }"#;
    let edge = Edge::start(&api(&addresses.each_ref().map(String::as_str), &[], health));
    for (origin, status) in origins.iter().zip(statuses) {
        origin.next().answer(&format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
    }
    edge.until_known();
    let bad = |status| Some(format!("status {status}, expected 2xx or 401"));
    let errors = edge.errors(Color::Blue);
    let found = addresses.each_ref().map(|address| errors[address].clone());
    assert_eq!(found, [None, None, None, bad(300), None, bad(403), bad(503)]);
}

#[test]
fn what_is_not_a_whole_http_answer_is_bad() {
    let huge = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(300));
    let interim = format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n{OK}");
    let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(4_000);
    let (not_http, closed) = (Some("answer is not HTTP"), Some("connection closed before the answer was complete"));
    let too_large = Some("head of the answer too large");
    let answers = [
        ("SSH-2.0-OpenSSH_9.2\r\n", not_http),
        ("\u{15}\u{3}\u{1}\0\u{2}\u{2}", not_http),
        ("<html>200 OK</html>", not_http),
        ("HTTP/1.1 2000 OK\r\n\r\n", not_http),
        ("HTTP/1.1 099 No\r\n\r\n", not_http),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", not_http),
        ("HTTP/2.0 200 OK\r\n\r\n", not_http),
        ("", closed),
        ("HTTP/1.1 200 OK\r\n", closed),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", closed),
        ("HTTP/1.1 100 Continue\r\n\r\n", closed),
        (&huge, too_large),
        (&many, too_large),
        (&endless, too_large),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", Some("status 101, expected 200")),
        (&interim, None),
        ("HTTP/1.0 200\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\n\r\nand a body that only the end ends", None),
    ];
    let origins: Vec<Origin> = answers.iter().map(|_| Origin::new()).collect();
    let addresses: Vec<String> = origins.iter().map(Origin::address).collect();
    let list: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let edge = Edge::start(&api(&list, &[], r#"{ path = "/", interval = "1h", timeout = "30s" }"#));
    for (origin, (answer, _)) in origins.iter().zip(&answers) {
        origin.next().answer(answer);
    }
    edge.until_known();
    let errors = edge.errors(Color::Blue);
    for (address, (answer, expected)) in addresses.iter().zip(answers) {
        assert_eq!(errors[address].as_deref(), expected, "{:.60}", answer);
    }
}

#[test]
fn an_answer_in_pieces_counts() {
    let origin = Origin::new();
    let edge = Edge::start(&api(&[&origin.address()], &[], r#"{ path = "/", interval = "1h", timeout = "30s" }"#));
    let mut asked = origin.next();
    for octet in OK.as_bytes() {
        asked.stream.write_all(&[*octet]).expect("the probe listens");
    }
    edge.until_known();
    assert_eq!(edge.healths(Color::Blue), [Health::Healthy]);
}

#[test]
fn an_origin_can_write_its_whole_answer() {
    let origin = Origin::new();
    let edge = Edge::start(&api(&[&origin.address()], &[], r#"{ path = "/", interval = "1h", timeout = "30s" }"#));
    let mut asked = origin.next();
    asked.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").expect("the probe listens");
    edge.until_known();
    // The verdict is there already, and the probe still listens.
    asked.stream.write_all(b"0123456789").expect("the probe listens");
    asked.stream.shutdown(Shutdown::Write).expect("the probe listens");
    assert_eq!(asked.stream.read(&mut [0]).expect("no reset"), 0);
}

#[test]
fn a_silent_origin_is_given_up_after_the_timeout() {
    let (silent, dripping) = (Origin::new(), Origin::new());
    let health = r#"{ path = "/", interval = "1h", timeout = "100ms" }"#;
    let edge = Edge::start(&api(&[&silent.address(), &dripping.address()], &[], health));
    let mut asked = dripping.next();
    asked.stream.write_all(b"HTTP/1.1 200 OK\r\n").expect("the probe listens");
    edge.until_known();
    assert_eq!(edge.healths(Color::Blue), [Health::Unhealthy; 2]);
    let errors = edge.errors(Color::Blue);
    assert!(errors.values().all(|error| error.as_deref() == Some("no answer within 100ms")), "{errors:?}");
}

#[test]
fn without_a_path_a_connection_is_enough() {
    let (open, closed) = (Origin::new(), Closed::new());
    let health = r#"{ interval = "10ms", timeout = "30s", rise = 1, fall = 1 }"#;
    let edge = Edge::start(&api(&[&open.address(), &closed.address()], &[], health));
    edge.until_known();
    assert_eq!(edge.healths(Color::Blue), [Health::Healthy, Health::Unhealthy]);
    assert_eq!(open.next().head, "", "nothing is sent");
    closed.open();
    until("the other opens", || edge.healths(Color::Blue) == [Health::Healthy; 2]);
}

#[test]
fn unix_sockets_are_probed() {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("api.sock");
    let listener = UnixListener::bind(&path).expect("a unix socket");
    let (good, bad) = (format!("unix:{}", path.display()), format!("unix:{}", dir.path().join("no.sock").display()));
    let edge = Edge::start(&api(&[&good, &bad], &[], r#"{ path = "/", interval = "1h", timeout = "30s" }"#));
    let (mut stream, _) = listener.accept().expect("a probe");
    assert!(read_head(&mut stream).starts_with("GET / HTTP/1.1\r\nHost: localhost\r\n"));
    stream.write_all(OK.as_bytes()).expect("the probe listens");
    edge.until_known();
    assert_eq!(edge.healths(Color::Blue), [Health::Healthy, Health::Unhealthy]);
    assert_eq!(edge.errors(Color::Blue)[&bad].as_deref(), Some("no such file or directory"));
}

#[test]
fn a_reload_forgets_nothing_of_endpoints_that_stay() {
    let (old, idle, new) = (Origin::new(), Origin::new(), Origin::new());
    let health = r#"{ path = "/", interval = "1h", timeout = "30s" }"#;
    let edge = Edge::start(&api(&[&old.address()], &[&idle.address()], health));
    old.next().answer(OK);
    idle.next().answer(UNAVAILABLE);
    edge.until_known();
    let before = [edge.endpoint(Color::Blue, 0), edge.endpoint(Color::Green, 0)];

    let wider = api(&[&old.address(), &new.address()], &[&idle.address()], health);
    edge.reload(&wider.replace("retries = 1", "retries = 2"));
    let asked = new.next();
    let after = [edge.endpoint(Color::Blue, 0), edge.endpoint(Color::Green, 0)];
    assert!(before.iter().zip(&after).all(|(before, after)| Arc::ptr_eq(before, after)));
    assert_eq!(edge.healths(Color::Blue), [Health::Healthy, Health::Unknown]);
    assert_eq!(edge.healths(Color::Green), [Health::Unhealthy]);
    // A schedule that had begun again would have had its turn before the new endpoint.
    assert!(old.is_quiet() && idle.is_quiet());
    asked.answer(OK);
    edge.until_known();
    assert_eq!(edge.healths(Color::Blue), [Health::Healthy, Health::Healthy]);
}

#[test]
fn new_settings_count_from_the_last_probe() {
    let origin = Origin::new();
    let old = r#"{ path = "/old", interval = "1h", timeout = "30s", fall = 100 }"#;
    let new = r#"{ path = "/new", interval = "10ms", timeout = "30s", fall = 1 }"#;
    let edge = Edge::start(&api(&[&origin.address()], &[], old));
    origin.next().answer(OK);
    edge.until_known();
    edge.reload(&api(&[&origin.address()], &[], new));
    let asked = origin.next();
    assert!(asked.head.starts_with("GET /new "), "{}", asked.head);
    asked.answer(UNAVAILABLE);
    until("the new fall counts", || edge.healths(Color::Blue) == [Health::Unhealthy]);
}

#[test]
fn what_is_removed_is_not_probed_any_more() {
    let (stays, goes) = (Origin::new(), Origin::new());
    let health = r#"{ path = "/", interval = "10ms", timeout = "1h" }"#;
    let edge = Edge::start(&format!(
        "{}{}",
        api(&[&stays.address(), &goes.address()], &[], health),
        service("other", &[&goes.address()], &[], health),
    ));
    let gone = [edge.of("api", Color::Blue, 1), edge.of("other", Color::Blue, 0)].map(|gone| Arc::downgrade(&gone));
    // Both under way.
    let asked = [goes.next(), goes.next()];
    edge.reload(&api(&[&stays.address()], &[], health));
    until("nobody knows them", || gone.iter().all(|gone| gone.strong_count() == 0));
    for mut asked in asked {
        assert!(matches!(asked.stream.read(&mut [0]), Ok(0) | Err(_)), "the probe is given up");
    }
    assert!(goes.is_quiet());
}

#[test]
fn an_ejected_endpoint_is_taken_back_and_next_time_later() {
    let (bad, good) = (Origin::new().serve(healthy_but_broken), Origin::new().serve(|_| OK));
    let edge = Edge::start(&format!(
        "{}[services.api.outlier]\nconsecutive_errors = 1\neject = \"200ms\"\n",
        api(&[&bad.address, &good.address], &[], r#"{ path = "/healthz", interval = "20ms", timeout = "30s" }"#),
    ));
    until("both are healthy", || edge.healths(Color::Blue) == [Health::Healthy; 2]);
    let endpoint = edge.endpoint(Color::Blue, 0);
    for length in [Duration::from_millis(200), Duration::from_millis(400)] {
        let mut asked = Instant::now();
        until("it is ejected", || {
            asked = Instant::now();
            edge.request();
            endpoint.is_ejected() && !endpoint.is_available()
        });
        until("it is taken back", || endpoint.is_available());
        assert!(asked.elapsed() >= length, "{:?}", asked.elapsed());
    }
}

#[test]
fn the_last_endpoint_is_never_ejected() {
    let origins = [Origin::new().serve(healthy_but_broken), Origin::new().serve(healthy_but_broken)];
    let edge = Edge::start(&format!(
        "{}[services.api.outlier]\nconsecutive_errors = 1\neject = \"5m\"\n",
        api(&[&origins[0].address, &origins[1].address], &[], r#"{ path = "/healthz", timeout = "30s" }"#),
    ));
    until("both are healthy", || edge.healths(Color::Blue) == [Health::Healthy; 2]);
    let available = || (0..2).filter(|place| edge.endpoint(Color::Blue, *place).is_available()).count();
    until("one is ejected", || {
        edge.request();
        available() == 1
    });
    for _ in 0..20 {
        edge.request();
        assert_eq!(available(), 1);
    }
}

#[test]
fn a_name_becomes_an_endpoint() {
    let origin = Origin::new();
    let name = format!("localhost:{}", origin.port());
    let health = r#"{ path = "/", interval = "1h", timeout = "30s" }"#;
    let named = api(&[&name], &[], health);
    let edge = Edge::start(&named);
    let asked = origin.next();
    assert!(asked.head.contains(&format!("\r\nHost: {name}\r\n")), "{}", asked.head);
    asked.answer(OK);
    edge.until_known();
    let endpoint = edge.endpoint(Color::Blue, 0);
    assert_eq!(&**endpoint.name(), format!("localhost/{}", origin.address()));
    assert_eq!(endpoint.health(), Health::Healthy);

    edge.reload(&named.replace("retries = 1", "retries = 2"));
    assert!(Arc::ptr_eq(&endpoint, &edge.endpoint(Color::Blue, 0)));
    edge.reload(&named.replace("localhost", "LocalHost").replace("retries = 1", "retries = 3"));
    assert!(Arc::ptr_eq(&endpoint, &edge.endpoint(Color::Blue, 0)), "names have no case");
}

#[test]
fn a_service_that_goes_and_comes_back_is_resolved_again() {
    let origin = Origin::new();
    let health = r#"{ path = "/", interval = "1h", timeout = "30s" }"#;
    let without = api(&[], &[], health);
    let named = service("named", &[&format!("localhost:{}", origin.port())], &[], health);
    let with = format!("{without}{}", named.replace("retries = 1", "resolve_interval = \"50ms\""));
    let edge = Edge::start(&with);
    origin.next().answer(OK);
    edge.until_known();
    // Too fast for anybody to notice that it was gone; it has forgotten its addresses all the same.
    edge.reload(&without);
    edge.reload(&with);
    origin.next().answer(OK);
    edge.until_known();
    assert!(edge.of("named", Color::Blue, 0).is_healthy());
}

#[test]
fn a_thousand_endpoints_are_all_probed() {
    const SERVICES: u32 = 500;
    let origin = Origin::new().serve(|_| OK);
    let health = r#"{ path = "/", interval = "1h", timeout = "30s" }"#;
    let one = |place| service(&format!("s{place}"), &[&origin.address], &[&origin.address], health);
    let edge = Edge::start(&(0..SERVICES).map(one).collect::<String>());
    edge.until_known();
    let state = edge.proxy.state();
    assert!(state.load().services.iter().all(|service| service.pools.blue.healthy() == 1));
    assert!(state.load().services.iter().all(|service| service.pools.green.healthy() == 1));
}

#[tokio::test]
async fn it_ends_with_the_state_and_does_not_keep_it() {
    let (dir, origin) = (TempDir::new().expect("a temporary directory"), Origin::new());
    let config = api(&[&origin.address()], &["localhost:1"], r#"{ path = "/", timeout = "30s" }"#);
    let config = config::parse(&whole(&config, dir.path()), Path::new("test.toml")).expect("a good config");
    let store = Arc::new(Store::open(dir.path()).expect("a new store"));
    let (state, writer) = State::open(config, store, Arc::from([Roster::new()])).expect("a new state");
    let tasks = [tokio::spawn(writer), tokio::spawn(health::run(state.clone()))];
    // Its first probe is under way.
    let asked = tokio::task::spawn_blocking(move || (origin.next(), origin)).await.expect("a probe");
    let kept = Arc::downgrade(&state);
    drop(state);
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("it ends").expect("without panic");
    }
    assert_eq!(kept.strong_count(), 0);
    drop(asked);
}

/// An endpoint that passes its probes and breaks every other request.
fn healthy_but_broken(head: &str) -> &'static str {
    if head.starts_with("GET /healthz ") { OK } else { "" }
}

/// A running proxy that follows a config file of the test.
struct Edge {
    proxy: Proxy,
    dir: TempDir,
}

/// A service named `api` that gets all requests.
fn api(blue: &[&str], green: &[&str], health: &str) -> String {
    let route = "[[routes]]\npath = \"/\"\nservice = \"api\"\n";
    format!("{route}{}", service("api", blue, green, health))
}

fn service(name: &str, blue: &[&str], green: &[&str], health: &str) -> String {
    format!("[services.{name}]\nblue = {blue:?}\ngreen = {green:?}\nretries = 1\nhealth = {health}\n")
}

fn whole(services: &str, dir: &Path) -> String {
    let (state, listeners) = (dir.join("state"), "[[listeners]]\nlisten = \"127.0.0.1:0\"\n");
    format!("state_dir = {state:?}\nworkers = 1\nadmin = {{ listen = \"off\" }}\n{listeners}{services}")
}

impl Edge {
    fn start(services: &str) -> Edge {
        let dir = TempDir::new().expect("a temporary directory");
        let file = dir.path().join("teal.toml");
        std::fs::write(&file, whole(services, dir.path())).expect("the file is written");
        let proxy = Proxy::start_watching(&file).expect("the proxy starts");
        Edge { proxy, dir }
    }

    /// Changes the config file, and returns when it is in effect.
    fn reload(&self, services: &str) {
        let (file, next) = (self.dir.path().join("teal.toml"), self.dir.path().join("next.toml"));
        std::fs::write(&next, whole(services, self.dir.path())).expect("the file is written");
        std::fs::rename(&next, &file).expect("the file is replaced");
        let meant = config::load(&file).expect("a good config");
        self.proxy.reload();
        until("the config is in effect", || *self.proxy.state().load().config == meant);
    }

    fn of(&self, service: &str, color: Color, place: usize) -> Arc<Endpoint> {
        let snapshot = self.proxy.state().load();
        snapshot.service(service).expect("it is configured").pools[color].endpoints()[place].clone()
    }

    fn endpoint(&self, color: Color, place: usize) -> Arc<Endpoint> {
        self.of("api", color, place)
    }

    fn endpoints(&self, color: Color) -> Vec<Arc<Endpoint>> {
        let snapshot = self.proxy.state().load();
        snapshot.service("api").expect("it is configured").pools[color].endpoints().to_vec()
    }

    fn healths(&self, color: Color) -> Vec<Health> {
        self.endpoints(color).iter().map(|endpoint| endpoint.health()).collect()
    }

    /// What the last probe of each endpoint said.
    fn errors(&self, color: Color) -> BTreeMap<String, Option<String>> {
        let error = |endpoint: &Endpoint| endpoint.last_probe().expect("it was probed").error;
        self.endpoints(color).iter().map(|endpoint| (endpoint.name().to_string(), error(endpoint))).collect()
    }

    /// Returns when every endpoint has been probed and every name has an address.
    fn until_known(&self) {
        until("every endpoint is known", || {
            let snapshot = self.proxy.state().load();
            let mut pools = snapshot.services.iter().flat_map(|service| [&service.pools.blue, &service.pools.green]);
            pools.all(|pool| {
                let is_known = |endpoint: &Arc<Endpoint>| endpoint.health() != Health::Unknown;
                pool.unresolved().is_empty() && pool.endpoints().iter().all(is_known)
            })
        });
    }

    /// Sends one request through the proxy and reads whatever comes back.
    fn request(&self) {
        let Address::Tcp(address) = self.proxy.addresses()[0] else { panic!("the listener is on TCP") };
        let mut stream = TcpStream::connect(address).expect("the proxy listens");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").expect("the proxy reads");
        stream.read_to_end(&mut Vec::new()).expect("the proxy answers");
    }
}

/// An origin whose connections the test takes one by one; until then they wait, unanswered.
struct Origin(TcpListener);

/// A probe or a request that waits for its answer.
struct Asked {
    stream: TcpStream,
    head: String,
}

impl Origin {
    fn new() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        Origin(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().expect("it is bound").port()
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    fn next(&self) -> Asked {
        let mut taken = None;
        until("a connection comes in", || {
            taken = self.take();
            taken.is_some()
        });
        taken.expect("just taken")
    }

    fn take(&self) -> Option<Asked> {
        match self.0.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false).expect("a socket can be blocking");
                let head = read_head(&mut stream);
                Some(Asked { stream, head })
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Whether no connection waits.
    fn is_quiet(&self) -> bool {
        self.take().is_none()
    }

    /// Answers every request from now on; nothing is a closed connection.
    fn serve(self, answer: impl Fn(&str) -> &'static str + Send + 'static) -> Served {
        let (address, is_over) = (self.address(), Arc::new(AtomicBool::new(false)));
        let until = is_over.clone();
        let thread = thread::spawn(move || {
            self.0.set_nonblocking(false).expect("a socket can be blocking");
            while !until.load(Ordering::SeqCst) {
                let Some(asked) = self.take() else { return };
                let answer = answer(&asked.head);
                asked.answer(answer);
            }
        });
        Served { address, is_over, thread: Some(thread) }
    }
}

impl Asked {
    /// A probe may be satisfied before all is written.
    fn answer(mut self, answer: &str) {
        let _ = self.stream.write_all(answer.as_bytes());
    }
}

fn read_head(stream: &mut impl Read) -> String {
    let (mut head, mut octet) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut octet), Ok(1)) {
        head.push(octet[0]);
    }
    String::from_utf8(head).expect("a head is text")
}

/// An origin that answers by itself.
struct Served {
    address: String,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// An address that is taken, but refuses connections.
struct Closed(Socket);

impl Closed {
    fn new() -> Closed {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        Closed(socket)
    }

    fn address(&self) -> String {
        let address = self.0.local_addr().expect("it is bound");
        address.as_socket().expect("an IP address").to_string()
    }

    fn open(&self) {
        self.0.listen(128).expect("it is bound");
    }
}

/// Waits, for a bounded time, until `is_so`.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
