//! `ready_path` tells the balancer the truth: about the services behind, and about workers that have stopped working.

mod support;

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use support::client::{Answer, Client, get};
use support::origin::{Origin, ok};
use support::proxy::{Builder, Teal};
use support::{eventually, soon};
use teal::admin::status::Status;
use teal::config::{Address, Color};
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

const READY: &str = "/.well-known/teal/ready";

/// The services `a` and `b`, each with an endpoint for both colors, and a listener for each value of `ready_when`.
async fn start(origin: &Origin) -> (Teal, [SocketAddr; 3]) {
    let service = |name: &str| {
        let pool = origin.toml();
        format!(
            "[[routes]]\npath = \"/{name}\"\nservice = \"{name}\"\n\
             [services.{name}]\nblue = [{pool}]\ngreen = [{pool}]\nhealth.interval = \"1h\"\n"
        )
    };
    let listener = |ip: &str, when: &str| format!("[[listeners]]\nlisten = \"{ip}:0\"\nready_when = \"{when}\"\n");
    let more = [service("a"), service("b"), listener("127.0.0.2", "any"), listener("127.0.0.3", "all")].concat();
    let teal = Builder::new(&more).listener("ready_when = \"running\"").start().await;
    let addresses = std::array::from_fn(|place| match &teal.proxy().addresses()[place] {
        Address::Tcp(address) => *address,
        Address::Unix(_) => panic!("a TCP listener"),
    });
    (teal, addresses)
}

/// As a probe would say.
fn set_health(teal: &Teal, service: &str, color: Color, is_healthy: bool) {
    let snapshot = teal.state().load();
    let endpoint = &snapshot.service(service).expect("a known service").pools[color].endpoints()[0];
    endpoint.probed(if is_healthy { Ok(()) } else { Err("down".to_owned()) }, 1, 1);
}

#[tokio::test]
async fn ready_asks_as_many_services_as_the_listener_wants() {
    let origin = Origin::saying("ok").await;
    let (teal, [running, any, all]) = start(&origin).await;
    for (a, b, expected) in [
        (true, true, [200; 3]),
        (true, false, [200, 200, 503]),
        (false, true, [200, 200, 503]),
        (false, false, [200, 503, 503]),
    ] {
        set_health(&teal, "a", Color::Blue, a);
        set_health(&teal, "b", Color::Blue, b);
        for (address, status) in [running, any, all].into_iter().zip(expected) {
            let answer = get(address, READY).await;
            assert_eq!(answer.status, status, "a {a}, b {b}");
            let text = if status == 200 { "200 ready\n" } else { "503 no healthy service\n" };
            assert_eq!(answer.text(), text);
        }
        // The admin API answers for the listener that wants most.
        assert_eq!(ask(&teal, "/readyz").await.status, expected[2]);
        let status: Status = serde_json::from_slice(&ask(&teal, "/v1/status").await.body).expect("a status");
        assert_eq!((status.ready, &*status.readiness == "ready"), (a && b, a && b));
    }
    teal.state().begin_shutdown();
    for address in [running, any, all] {
        assert_eq!(get(address, READY).await.text(), "503 draining\n");
    }
}

/// The admin API.
async fn ask(teal: &Teal, path: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", teal.admin);
    Client::connect(teal.admin).await.ask(request).await
}

#[tokio::test]
async fn only_the_active_color_counts() {
    let origin = Origin::saying("ok").await;
    let (teal, [_, any, _]) = start(&origin).await;
    set_health(&teal, "a", Color::Blue, false);
    set_health(&teal, "b", Color::Blue, false);
    assert_eq!(get(any, READY).await.status, 503);
    teal.switch("b", Color::Green).await.expect("green is well");
    assert_eq!(get(any, READY).await.status, 200);
    set_health(&teal, "b", Color::Green, false);
    assert_eq!(get(any, READY).await.status, 503);
    assert_eq!(get(any, "/.well-known/teal/other").await.status, 404, "other requests are answered as ever");
}

/// Who has just started knows nothing of its origins yet.
#[tokio::test]
async fn nobody_is_ready_before_the_first_probe() {
    let (answer, waiting) = tokio::sync::watch::channel(false);
    let origin = Origin::http(move |_| {
        let mut waiting = waiting.clone();
        async move {
            let _ = waiting.wait_for(|may_answer| *may_answer).await;
            ok("ok")
        }
    });
    let origin = origin.await;
    let services = format!("[services.a]\nblue = [{}]\nhealth = {{ path = \"/\", timeout = \"1h\" }}\n", origin.toml());
    let teal = Builder::new(&services).start_unprobed(support::scratch());
    assert_eq!(get(teal.address, READY).await.text(), "503 no healthy service\n");
    answer.send_replace(true);
    teal.probed().await;
    assert_eq!(get(teal.address, READY).await.status, 200);
}

#[tokio::test]
async fn where_nothing_is_served_yet_nothing_can_be_ill() {
    let teal = Builder::new("").listener("ready_when = \"all\"").start().await;
    assert_eq!(get(teal.address, READY).await.status, 200);
}

/// Stops a thread of the proxy at an event that it logs, until the test lets go.
struct Trap {
    caught: Mutex<Sender<()>>,
    release: Mutex<Receiver<()>>,
}

impl<S: Subscriber> Layer<S> for Trap {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut is_meant = IsMeant(false);
        event.record(&mut is_meant);
        if is_meant.0 {
            let _ = self.caught.lock().send(());
            let _ = self.release.lock().recv();
        }
    }
}

struct IsMeant(bool);

impl Visit for IsMeant {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 |= field.name() == "service" && format!("{value:?}") == "trap";
    }
}

/// Each worker answers for all: the kernel may bring the balancer's question to any of them.
#[tokio::test]
async fn a_worker_that_does_nothing_is_told_by_the_others() {
    let (caught, is_caught) = channel();
    let (release, released) = channel();
    let trap = Trap { caught: Mutex::new(caught), release: Mutex::new(released) };
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(trap)).expect("the only one");
    let broken = Origin::raw(|stream| async { drop(stream) }).await;
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"trap\"\n[services.trap]\nretries = 0\nblue = [{}]\n\
         health.interval = \"1h\"\noutlier.consecutive_errors = 0\n",
        broken.toml()
    );
    let teal = Builder::new(&services).workers(2).start().await;
    // Some at either worker.
    let mut balancer = Vec::new();
    for _ in 0..32 {
        let mut client = Client::connect(teal.address).await;
        assert_eq!(client.get(READY).await.status, 200);
        balancer.push(client);
    }
    let mut victim = Client::connect(teal.address).await;
    victim.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("the worker is stuck", || is_caught.try_recv().is_ok()).await;
    let mut free = None;
    for (place, client) in balancer.iter_mut().enumerate() {
        client.send(format!("GET {READY} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        if timeout(Duration::from_millis(100), client.answer()).await.is_ok() {
            free = Some(place);
            break;
        }
    }
    let free = &mut balancer[free.expect("one of 32 is at the other worker")];
    let told = async {
        while free.get(READY).await.text() != "503 stuck\n" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the other worker to tell", told).await;
    release.send(()).expect("the worker waits for it");
    assert_eq!(victim.answer().await.status, 502);
    let well = async {
        while free.get(READY).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("all to be well again", well).await;
}
