//! A worker that has far more to do than it can: new requests are turned away early, some are served all the same, and
//! nothing that operators and balancers need is touched by it.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use teal::config::{Address, Color, Listener};
use teal::http::{Overload, Worker};
use teal::listener::{Limit, Listening, accept};
use teal::metrics::{ListenerStats, Rejection};
use teal::roster::Roster;

use support::binary::call;
use support::client::{Answer, Client};
use support::origin::{Origin, Requests};
use support::proxy::{Builder, Teal};
use support::soon;

const REQUESTS: usize = 500;
const READY: &str = "/.well-known/teal/ready";

/// One more worker of a proxy, which sheds as much as any does, and stays so: it has no housekeeping.
struct Overloaded {
    teal: Teal,
    address: SocketAddr,
    stats: Arc<ListenerStats>,
    _green: Origin,
    _blue: Origin,
    reached: Requests,
}

impl Overloaded {
    async fn start() -> Overloaded {
        let (blue, reached) = Origin::recording().await;
        let green = Origin::saying("green").await;
        let teal = Builder::app(&[&blue]).service(&format!("green = [{}]", green.toml())).start().await;
        let overload = Overload::at_its_worst();
        let worker = Worker { overload, ..Worker::new(0, teal.state().clone(), Roster::new(), None) };
        let settings = teal.state().load().config.listeners[0].clone();
        let settings = Arc::new(Listener {
            listen: "127.0.0.1:0".parse().map(Address::Tcp).expect("an address"),
            ..(*settings).clone()
        });
        let stats = Arc::new(ListenerStats::default());
        let limit = Arc::new(Limit::new(1000));
        let (listening, sockets) = Listening::bind(u64::MAX, settings, |_| stats.clone(), limit, 1).expect("a port");
        let Address::Tcp(address) = listening.address else { panic!("a TCP listener") };
        let (listening, worker) = (Arc::new(listening), Arc::new(worker));
        sockets.into_iter().for_each(|socket| drop(tokio::spawn(accept(listening.clone(), socket, worker.clone()))));
        Overloaded { teal, address, stats, _green: green, _blue: blue, reached }
    }

    async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    async fn admin(&self, method: &str, path: &str, body: &str) -> Answer {
        soon("the admin API", Client::connect(self.teal.admin).await.ask(call(self.teal.admin, method, path, body)))
            .await
    }
}

#[tokio::test]
async fn most_requests_are_told_when_to_come_again_and_the_others_are_served() {
    let overloaded = Overloaded::start().await;
    let mut client = overloaded.client().await;
    let mut served = 0;
    for _ in 0..REQUESTS {
        let answer = soon("an answer", client.get("/")).await;
        match answer.status {
            200 => served += 1,
            503 => assert_eq!((answer.field("retry-after"), answer.field("connection")), (Some("1"), None)),
            status => panic!("{status}"),
        }
    }
    assert!((1..REQUESTS / 2).contains(&served), "{served} of {REQUESTS} were served");
    assert_eq!(overloaded.reached.lock().len(), served, "what is shed reaches no origin");
    assert_eq!(overloaded.stats.rejected(Rejection::Overload), (REQUESTS - served) as u64);
}

#[tokio::test]
async fn the_ready_path_and_refusals_are_as_ever() {
    let overloaded = Overloaded::start().await;
    for _ in 0..50 {
        let mut client = overloaded.client().await;
        assert_eq!(client.get(READY).await.status, 200, "the balancer must not think that the proxy is gone");
        let bad = client.ask("GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n").await;
        assert_eq!(bad.status, 400);
    }
}

#[tokio::test]
async fn switches_status_and_probes_work_meanwhile() {
    let overloaded = Overloaded::start().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..8).map(|_| tokio::spawn(ask_on(overloaded.address, is_over.clone()))).collect();
    for to in [Color::Green, Color::Blue, Color::Green] {
        let body = format!(r#"{{"services":{{"app":"{to}"}}}}"#);
        let answer = overloaded.admin("POST", "/v1/switch", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(overloaded.teal.active("app"), to, "the ack means done");
        let status = overloaded.admin("GET", "/v1/services/app", "").await;
        assert!(status.text().contains(&format!("\"active\":\"{to}\"")), "{}", status.text());
        // What is served after the ack is served by the new color.
        let mut client = overloaded.client().await;
        let served = async {
            loop {
                let answer = client.get("/").await;
                if answer.status == 200 {
                    return answer.text() == "green";
                }
            }
        };
        assert_eq!(soon("a request that is served", served).await, to == Color::Green);
    }
    assert_eq!(overloaded.admin("GET", "/livez", "").await.status, 200);
    is_over.store(true, Ordering::SeqCst);
    for load in load {
        let (served, shed) = soon("the end of the load", load).await.expect("every answer was one of two");
        assert!(shed > 0, "{served} served and {shed} shed");
    }
}

/// Asks without a break; how many were served, and how many shed.
async fn ask_on(address: SocketAddr, is_over: Arc<AtomicBool>) -> (usize, usize) {
    let mut client = Client::connect(address).await;
    let (mut served, mut shed) = (0, 0);
    while !is_over.load(Ordering::SeqCst) || shed == 0 {
        match client.get("/").await.status {
            200 => served += 1,
            503 => shed += 1,
            status => panic!("{status}"),
        }
    }
    (served, shed)
}
