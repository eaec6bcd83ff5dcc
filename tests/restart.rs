//! What was acknowledged survives whatever ends the process, and a state that cannot be used is never overwritten.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Signal, getrlimit, prlimit};
use serde_json::{Value, json};
use teal::config::Color;
use teal::state::{Aim, Receipt, SwitchRequest};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::Command;

use support::binary::{Binary, call, teal_run};
use support::client::{Client, get};
use support::exchange::Stage;
use support::proxy::{Builder, Teal, to_color};
use support::{eventually, scratch, soon};

const KILLS: usize = 30;

/// The service `a`, of which the file says that this color is active.
fn file(stage: &Stage, active: Color) -> Builder {
    Builder::new(&stage.service("a", &format!("active = \"{active}\"")))
}

fn start(stage: &Stage, active: Color, dir: TempDir) -> Teal {
    file(stage, active).start_unprobed(dir)
}

fn color_and_number(teal: &Teal) -> (Color, u64) {
    let snapshot = teal.state().load();
    let service = snapshot.service("a").expect("a known service");
    (service.active, service.number)
}

#[tokio::test]
async fn the_last_who_changed_the_color_wins() {
    use Color::{Blue, Green};
    let stage = Stage::new().await;
    let teal = start(&stage, Blue, scratch());
    teal.probed().await;
    teal.switch("a", Green).await.expect("a switch");
    // The file says what it said before.
    let teal = start(&stage, Blue, teal.stop().await);
    assert_eq!(color_and_number(&teal), (Green, 2));
    assert_eq!(get(teal.address, "/a").await.text(), "green");
    // Now it was changed, to what is so already.
    let teal = start(&stage, Green, teal.stop().await);
    assert_eq!(color_and_number(&teal), (Green, 2));
    // And now to something else.
    let teal = start(&stage, Blue, teal.stop().await);
    assert_eq!(color_and_number(&teal), (Blue, 3));
    assert_eq!(get(teal.address, "/a").await.text(), "blue");
    teal.probed().await;
    // There is a way back from what the file did, too.
    let back = SwitchRequest { aims: [("a".to_owned(), Aim::Back)].into(), ..to_color(&[]) };
    teal.state().switch(back).await.expect("a rollback");
    let teal = start(&stage, Blue, teal.stop().await);
    assert_eq!(color_and_number(&teal), (Green, 4));
}

#[tokio::test]
async fn numbers_of_generations_only_grow() {
    let stage = Stage::new().await;
    let (mut dir, mut last) = (scratch(), 0);
    for round in 0..6 {
        // Every other time the file itself goes to the other color.
        let says = if round / 2 % 2 == 0 { Color::Blue } else { Color::Green };
        let teal = start(&stage, says, dir);
        teal.probed().await;
        assert!(color_and_number(&teal).1 >= last);
        for _ in 0..3 {
            let before = color_and_number(&teal);
            let record = teal.switch("a", before.0.other()).await.expect("a switch");
            assert_eq!(record.receipt().services[0].generation, before.1 + 1);
            last = before.1 + 1;
        }
        dir = teal.stop().await;
    }
}

#[tokio::test]
async fn receipts_and_keys_outlive_the_process() {
    let stage = Stage::new().await;
    let teal = start(&stage, Color::Blue, scratch());
    teal.probed().await;
    let request = || SwitchRequest { key: Some("build 7".to_owned()), ..to_color(&[("a", Color::Green)]) };
    let first = teal.state().switch(request()).await.expect("a switch");
    soon("the drain", first.drain().unwrap().over()).await;
    let teal = start(&stage, Color::Blue, teal.stop().await);
    teal.probed().await;
    teal.switch("a", Color::Blue).await.expect("a switch");
    let again = teal.state().switch(request()).await.expect("the first one's receipt");
    assert_eq!(again.receipt(), first.receipt());
    assert_eq!(teal.active("a"), Color::Blue);
}

/// A client switches in a loop through the admin API, and the process dies at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    let stage = Stage::new().await;
    // On a real disk, where a commit takes time to be interrupted in.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = file(&stage, Color::Blue).write(dir.path());
    let (mut known, mut acked) = ((Color::Blue, 1), None);
    for _ in 0..KILLS {
        let mut teal = Binary::start(teal_run(&config)).await;
        known = check_kept(&teal, known, acked.as_ref()).await;
        let count = Arc::new(AtomicUsize::new(0));
        let client = tokio::spawn(switch_until_it_dies(teal.admin, count.clone()));
        let enough = fastrand::usize(..6);
        eventually("some switches are acknowledged", || count.load(Ordering::SeqCst) >= enough).await;
        // Anywhere within the next ones.
        std::thread::sleep(Duration::from_micros(fastrand::u64(..20_000)));
        teal.signal(Signal::KILL);
        teal.ended().await;
        if let Some(last) = client.await.expect("the client only stops when the process dies") {
            known = (last.services[0].to, last.services[0].generation);
            acked = Some(last);
        }
    }
    assert!(acked.is_some());
}

/// Switches back and forth; gives the last receipt that came back.
async fn switch_until_it_dies(admin: std::net::SocketAddr, count: Arc<AtomicUsize>) -> Option<Receipt> {
    let mut client = Client::on(TcpStream::connect(admin).await.ok()?);
    let mut last = None;
    for n in 0.. {
        let to = if n % 2 == 0 { "green" } else { "blue" };
        let body = json!({"services": {"a": to}, "force": true}).to_string();
        let request = call(admin, "POST", "/v1/switch", &body);
        if tokio::io::AsyncWriteExt::write_all(&mut client.stream, request.as_bytes()).await.is_err() {
            break;
        }
        let Some(answer) = client.try_answer(false).await else { break };
        assert_eq!(answer.status, 200, "{}", answer.text());
        let receipt: Receipt = serde_json::from_str(answer.text()).expect("a receipt");
        // The first may find its color active already.
        if !receipt.services.is_empty() {
            last = Some(receipt);
        }
        count.fetch_add(1, Ordering::SeqCst);
    }
    last
}

/// To what was known before the kill, only the one switch that was not answered may have come. Gives what is known now.
async fn check_kept(teal: &Binary, known: (Color, u64), acked: Option<&Receipt>) -> (Color, u64) {
    let status = teal.call("GET", "/v1/services/a", "").await;
    let status: Value = serde_json::from_str(status.text()).expect("a status");
    let color: Color = status["active"].as_str().and_then(|color| color.parse().ok()).expect("a color");
    let now = (color, status["generation"].as_u64().expect("a number"));
    assert!(now == known || now == (known.0.other(), known.1 + 1), "{known:?} was known, {now:?} is there");
    let Some(acked) = acked else { return now };
    let kept = teal.call("GET", &format!("/v1/receipts/{}", acked.id), "").await;
    assert_eq!(kept.status, 200, "{}", kept.text());
    let kept: Receipt = serde_json::from_str(kept.text()).expect("a receipt");
    assert_eq!((&kept.at, &kept.services), (&acked.at, &acked.services));
    now
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_teal_on_the_same_state_is_refused() {
    let (stage, dir) = (Stage::new().await, scratch());
    let config = file(&stage, Color::Blue).write(dir.path());
    let first = Binary::start(teal_run(&config)).await;
    let (code, said) = refused(&config).await;
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("in use by another teal (pid {},", first.pid().as_raw_nonzero())), "{said}");
    assert_eq!(get(first.address, "/a").await.text(), "blue");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_state_is_explained_and_left_as_it_is() {
    let (stage, dir) = (Stage::new().await, scratch());
    let config = file(&stage, Color::Blue).write(dir.path());
    let state = dir.path().join("state");
    fs::create_dir(&state).expect("a directory");
    let file = state.join("state.redb");
    let mut garbage = vec![0; 100_000];
    fastrand::fill(&mut garbage);
    for content in [&garbage[..], b"", b"redb"] {
        fs::write(&file, content).expect("the test can write");
        let (code, said) = refused(&config).await;
        assert_eq!(code, Some(1));
        let how = format!("mv '{0}' '{0}.unreadable'", file.display());
        assert!(said.contains("unreadable") && said.contains(&how), "{said}");
        assert_eq!(fs::read(&file).expect("it is still there"), content);
    }
    // The advice works.
    fs::rename(&file, state.join("state.redb.unreadable")).expect("the test can rename");
    assert_eq!(get(Binary::start(teal_run(&config)).await.address, "/a").await.text(), "blue");
}

/// How `teal run` ended that must not start, and what it said.
async fn refused(config: &Path) -> (Option<i32>, String) {
    let output = soon("the refusal", teal_run(config).output()).await.expect("it runs");
    assert_eq!(output.stdout, b"");
    (output.status.code(), String::from_utf8(output.stderr).expect("a text"))
}

/// Where the disk takes no more, a switch is refused with the reason and nothing has changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_that_cannot_be_recorded_is_refused() {
    let (stage, dir) = (Stage::new().await, scratch());
    let config = file(&stage, Color::Blue).write(dir.path());
    // So that the file is there, and the limit only hinders its growth.
    let mut first = Binary::start(teal_run(&config)).await;
    first.signal(Signal::TERM);
    first.ended().await;
    let size = fs::metadata(dir.path().join("state/state.redb")).expect("the state").len();
    // Blocks of 512 octets. The signal is ignored so that the write fails instead of ending the process.
    let limited = format!(r#"trap "" XFSZ; ulimit -S -f {}; exec "$@""#, size.div_ceil(512) + 200);
    let run = teal_run(&config);
    let mut command = Command::new("sh");
    command
        .args(["-c", &limited, "sh"])
        .arg(run.as_std().get_program())
        .args(run.as_std().get_args())
        .env("RUST_LOG", "off");
    let teal = Binary::start(command).await;

    let (mut done, reason) = (0, "r".repeat(4000));
    let refusal = loop {
        let (from, to) = if done % 2 == 0 { ("blue", "green") } else { ("green", "blue") };
        let body = json!({"services": {"a": to}, "force": true, "reason": reason}).to_string();
        let answer = teal.call("POST", "/v1/switch", &body).await;
        let expected = if answer.status == 200 { to } else { from };
        assert_eq!(get(teal.address, "/a").await.text(), expected);
        if answer.status != 200 {
            break answer;
        }
        done += 1;
        assert!(done < 5_000, "the disk never fills");
    };
    assert!(refusal.text().contains("File too large"), "{}", refusal.text());
    let generation = async || {
        let status = teal.call("GET", "/v1/services/a", "").await;
        serde_json::from_str::<Value>(status.text()).expect("a status")["generation"].as_u64()
    };
    assert_eq!(generation().await, Some(done + 1));

    let unlimited = getrlimit(Resource::Fsize);
    prlimit(Some(teal.pid()), Resource::Fsize, unlimited).expect("it is our process");
    let to = if done % 2 == 0 { "green" } else { "blue" };
    let body = json!({"services": {"a": to}, "force": true, "reason": reason}).to_string();
    let answer = teal.call("POST", "/v1/switch", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!((get(teal.address, "/a").await.text(), generation().await), (to, Some(done + 2)));
}
