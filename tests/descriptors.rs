//! A process that has run out of file descriptors serves whom it has, blames no endpoint, and goes on when there are some.

mod support;

use std::fs;

use tokio::io::AsyncWriteExt;

use support::binary::{Binary, teal_run};
use support::client::Client;
use support::origin::{Origin, read_head};
use support::proxy::Builder;
use support::{eventually, scratch, soon};

/// Descriptors that the process may have, and connections that are more than they are enough for.
const MOST: usize = 64;
const TOO_MANY: usize = 100;

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
    let config = Builder::app(&[&first, &second]).service(keys).workers(1).write(dir.path());
    let mut command = tokio::process::Command::new("sh");
    let run = teal_run(&config);
    command.args(["-c", &format!("ulimit -n {MOST}; exec \"$0\" \"$@\"")]).arg(run.as_std().get_program());
    command.args(run.as_std().get_args()).env("RUST_LOG", "off");
    let teal = Binary::start(command).await;
    let open = || fs::read_dir(format!("/proc/{}/fd", teal.pid().as_raw_nonzero())).map_or(0, Iterator::count);

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
    assert!(open() >= MOST);
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
