//! A process that has run out of file descriptors serves whom it has, blames no endpoint, and goes on when there are some.

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Resource, Rlimit, prlimit};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use support::binary::{Binary, teal_run};
use support::client::Client;
use support::origin::{Origin, read_head};
use support::proxy::Builder;
use support::{eventually, scratch, soon};

/// Descriptors that a process may have, and connections that are more than they are enough for.
const MOST: usize = 128;
const TOO_MANY: usize = 200;
/// Connections that so few descriptors are for: an eighth of them, two each.
const LET_IN: usize = 8;

/// Without keep-alive each request needs a descriptor for a connection to the origin.
async fn once() -> Origin {
    Origin::raw(|mut stream| async move {
        if read_head(&mut stream, &mut Vec::new()).await.is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
        }
    })
    .await
}

#[tokio::test]
async fn who_is_connected_is_served_and_no_endpoint_is_blamed() {
    let (first, second) = (once().await, once().await);
    let dir = scratch();
    // Who is ejected stays so for longer than the test has patience. The last one never is.
    let keys = "retries = 0\nqueue_timeout = \"1s\"\noutlier = { consecutive_errors = 1, eject = \"5m\" }";
    let config = Builder::app(&[&first, &second]).service(keys).listener("header_timeout = \"1h\"").workers(1);
    let config = config.write(dir.path());
    let teal = Binary::start(teal_run(&config)).await;
    let open = || fs::read_dir(format!("/proc/{}/fd", teal.pid().as_raw_nonzero())).map_or(0, Iterator::count);
    // Others than it knew of at the start: the system may run out as well.
    let limit = Rlimit { current: Some(MOST as u64), maximum: Some(MOST as u64) };
    prlimit(Some(teal.pid()), Resource::Nofile, limit).expect("it is ours");

    let mut known = Client::connect(teal.address).await;
    assert_eq!(soon("an answer", known.get("/")).await.status, 200);
    let mut others = Vec::new();
    for _ in 0..TOO_MANY {
        // The system lets them in; the process cannot.
        others.push(Client::connect(teal.address).await);
    }
    let refused = async {
        loop {
            let answer = known.get("/").await;
            if answer.status != 200 {
                return answer;
            }
        }
    };
    let answer = soon("descriptors to run out", refused).await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "{}", answer.head);
    // A probe that ended gives one back, until the next client is accepted.
    eventually("descriptors have run out", || open() >= MOST).await;
    assert_eq!(soon("an answer", known.get("/.well-known/teal/ready")).await.status, 200);

    drop(others);
    eventually("descriptors are free", || open() < MOST / 2).await;
    assert_eq!(soon("an answer", known.get("/")).await.status, 200);
    let service = teal.call("GET", "/v1/services/app", "").await;
    assert!(!service.text().contains("\"ejected\":true"), "no endpoint is to blame: {}", service.text());
    assert_eq!(service.text().matches("\"ejected\":false").count(), 2, "{}", service.text());
    let mut newcomer = Client::connect(teal.address).await;
    assert_eq!(soon("an answer", newcomer.get("/")).await.status, 200, "accepting goes on");
}

/// The program, which may have no more than `MOST` descriptors.
fn with_few(config: &Path) -> Command {
    let run = teal_run(config);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {MOST}; exec \"$0\" \"$@\"")]).arg(run.as_std().get_program());
    command.args(run.as_std().get_args()).env("RUST_LOG", "warn").stderr(Stdio::piped());
    command
}

/// Each client has a request at the origin, which does not answer.
#[tokio::test]
async fn clients_leave_descriptors_to_those_who_operate_it() {
    let origin = Origin::raw(|mut stream| async move {
        let mut buffer = Vec::new();
        while read_head(&mut stream, &mut buffer).await.is_some() {}
    })
    .await;
    let other = once().await;
    let dir = scratch();
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nblue = [{}]\ngreen = [{}]\n\
         health = {{ interval = \"10ms\" }}\n",
        origin.toml(),
        other.toml()
    );
    let config = Builder::new(&services).workers(1).write(dir.path());
    let mut teal = Binary::start(with_few(&config)).await;
    let mut log = BufReader::new(teal.stderr().expect("a pipe")).lines();
    let warning = soon("a warning", log.next_line()).await.expect("a line").expect("it goes on");
    assert!(warning.contains("too few file descriptors") && warning.contains("connections=8"), "{warning}");

    let mut clients = Vec::new();
    for _ in 0..TOO_MANY {
        let mut client = Client::connect(teal.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        clients.push(client);
    }
    let in_flight = format!("teal_in_flight{{service=\"app\",color=\"blue\",kind=\"http\"}} {LET_IN}\n");
    // Probes are among those who operate it.
    let is_green_healthy =
        |line: &str| line.starts_with("teal_endpoint_healthy{service=\"app\",color=\"green\"") && line.ends_with(" 1");
    let as_many_as_may_be = async {
        loop {
            let metrics = teal.call("GET", "/metrics", "").await.text().to_owned();
            if metrics.contains(&in_flight) && metrics.lines().any(is_green_healthy) {
                return;
            }
        }
    };
    soon("as many as may be, and a healthy green", as_many_as_may_be).await;
    let open = fs::read_dir(format!("/proc/{}/fd", teal.pid().as_raw_nonzero())).map_or(0, Iterator::count);
    assert!(open < MOST, "{open}");
    let switched = teal.call("POST", "/v1/switch", "{\"services\":{\"app\":\"green\"}}").await;
    assert_eq!(switched.status, 200, "{}", switched.text());

    drop(clients);
    let mut newcomer = Client::connect(teal.address).await;
    assert_eq!(soon("an answer", newcomer.get("/")).await.status, 200, "places are free again");
}
