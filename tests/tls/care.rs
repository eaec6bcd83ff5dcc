//! What operators are told of their certificates, and what nobody is told of their keys.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;
use teal::config;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::support::binary::{Binary, call, teal_run};
use crate::support::client::Client;
use crate::support::origin::Origin;
use crate::support::proxy::Builder;
use crate::support::tls::{Authority, BOTH_VERSIONS, ECDSA, Pair, RSA, client_config, connect};
use crate::support::{scratch, soon};
use crate::{GET, Site};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn issue(authority: &Authority, from: SystemTime, to: SystemTime) -> Pair {
    authority.issue_with(&["a.test"], ECDSA, |params| {
        (params.not_before, params.not_after) = (from.into(), to.into());
    })
}

async fn ask_admin(site: &Site, path: &str) -> String {
    let answer = Client::connect(site.teal.admin).await.ask(call(site.teal.admin, "GET", path, "")).await;
    assert_eq!(answer.status, 200);
    answer.text().to_owned()
}

#[tokio::test]
async fn a_certificate_that_needs_attention_is_shown() {
    let (authority, now) = (Authority::new(), SystemTime::now());
    let cases = [
        ("good", now - DAY, now + 15 * DAY, ""),
        ("soon", now - DAY, now + 14 * DAY - Duration::from_secs(60), "soon.pem expires in 13 days, on 2"),
        ("late", now - 2 * DAY, now - DAY, "late.pem has expired, on 2"),
        ("early", now + DAY, now + 90 * DAY, "early.pem is not valid before 2"),
    ];
    let ours = now + 3 * DAY - Duration::from_secs(60);
    let site = Site::with(authority, |authority, dir| {
        let pairs: Vec<_> =
            cases.iter().map(|(name, from, to, _)| issue(authority, *from, *to).write(dir.path(), name)).collect();
        let shown_to_endpoints = issue(authority, now - DAY, ours).write(dir.path(), "ours");
        let shown_to_endpoints = shown_to_endpoints.replace("{ ", "{ insecure = true, ");
        format!(
            "tls = {{ certificates = [{}] }}\n[services.other]\nblue = []\nupstream_tls = {shown_to_endpoints}\n",
            pairs.join(", ")
        )
    })
    .await;
    let status: Value = serde_json::from_str(&ask_admin(&site, "/v1/status").await).expect("JSON");
    let metrics = ask_admin(&site, "/metrics").await;
    for (n, (name, _, to, warning)) in cases.iter().enumerate() {
        let shown = &status["listeners"][0]["certificates"][n];
        assert_eq!(shown["names"][0], "a.test");
        assert_eq!(shown["warning"].is_null(), warning.is_empty(), "{shown}");
        assert!(shown["warning"].as_str().is_none_or(|found| found.contains(warning)), "{shown}");
        let seconds = to.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let cert = site.dir.path().join(format!("{name}.pem"));
        let row = format!(
            "teal_tls_certificate_expiry_timestamp_seconds{{listener=\"{}\",certificate={cert:?}}} {seconds}\n",
            site.teal.listener
        );
        assert!(metrics.contains(&row), "{row}{metrics}");
    }
    let shown = status["services"].as_array().expect("services").iter().find(|service| service["name"] == "other");
    let warning = shown.and_then(|service| service["certificate"]["warning"].as_str()).expect("a warning");
    assert!(warning.contains("ours.pem expires in 2 days, on 2"), "{warning}");
    let row = format!(
        "teal_upstream_tls_certificate_expiry_timestamp_seconds{{service=\"other\",certificate={:?}}} {}\n",
        site.dir.path().join("ours.pem"),
        ours.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
    );
    assert!(metrics.contains(&row), "{row}{metrics}");
    let output = Command::new(env!("CARGO_BIN_EXE_teal"))
        .args(["status", "--admin", &site.teal.admin.to_string()])
        .output()
        .await
        .expect("it runs");
    let table = String::from_utf8(output.stdout).expect("a text");
    for (_, _, _, warning) in cases {
        assert!(table.contains(warning), "{table}");
    }
    assert!(table.contains("ours.pem expires in 2 days"), "{table}");
    assert!(!table.contains("good.pem"), "{table}");
}

#[tokio::test]
async fn a_key_that_everybody_may_read_is_named_by_check() {
    let (dir, authority) = (scratch(), Authority::new());
    let pair = authority.issue(&["a.test"]).write(dir.path(), "a");
    let ours = authority.issue(&["teal"]).write(dir.path(), "ours");
    let ours = ours.replace("{ ", "{ insecure = true, ");
    let path = Builder::new(&format!("[services.a]\nblue = []\nupstream_tls = {ours}\n"))
        .listener(&format!("tls = {{ certificates = [{pair}] }}\n"))
        .write(dir.path());
    for (mode, is_named) in [(0o600, false), (0o640, false), (0o644, true), (0o666, true)] {
        for key in ["a.key", "ours.key"] {
            fs::set_permissions(dir.path().join(key), Permissions::from_mode(mode)).expect("it is ours");
        }
        for json in [&[][..], &["--json"]] {
            let mut check = Command::new(env!("CARGO_BIN_EXE_teal"));
            let output = check.args(["check", "--config"]).arg(&path).args(json).output().await.expect("it runs");
            assert_eq!(output.status.code(), Some(0), "a warning is no error");
            let said = String::from_utf8(output.stdout).expect("a text");
            for key in ["/a.key", "/ours.key"] {
                let warning = format!("{key} is a private key that everybody");
                assert_eq!(said.contains(&warning), is_named, "{mode:o}: {said}");
            }
        }
    }
}

/// Parts of a key in the ways in which it might be printed.
fn parts(pair: &Pair) -> Vec<String> {
    let body: Vec<&str> = pair.key.lines().filter(|line| !line.starts_with("-----")).collect();
    let secret = pair.secret();
    let octets = &secret.secret_der()[secret.secret_der().len() / 2..][..16];
    let list =
        |separator: &str, octet: &dyn Fn(&u8) -> String| octets.iter().map(octet).collect::<Vec<_>>().join(separator);
    let middle = body[body.len() / 2];
    vec![
        middle[..middle.len().min(24)].to_owned(),
        list(", ", &u8::to_string),
        list("", &|octet| format!("{octet:02x}")),
        octets.escape_ascii().to_string(),
    ]
}

fn assert_secret(text: &str, pair: &Pair) {
    for part in parts(pair) {
        assert!(!text.contains(&part), "{part} in {text}");
    }
}

#[tokio::test]
async fn nothing_that_is_printed_has_a_part_of_a_key() {
    let (dir, authority, origin) = (scratch(), Authority::new(), Origin::saying("ok").await);
    let pair = authority.issue_with(&["a.test"], RSA, |_| {});
    let entry = pair.write(dir.path(), "a");
    let path = Builder::app(&[&origin]).listener(&format!("tls = {{ certificates = [{entry}] }}\n")).write(dir.path());
    let config = config::load(&path).expect("a valid config");
    assert_secret(&format!("{config:?}{config:#?}"), &pair);
    let terminator = teal::tls::Terminator::new(config.listeners[0].tls.as_ref().expect("TLS"), true, None);
    assert_secret(&format!("{:?}", terminator.expect("a good pair")), &pair);

    let mut command = teal_run(&path);
    command.env("RUST_LOG", "trace").stderr(std::process::Stdio::piped());
    let mut teal = Binary::start(command).await;
    let mut stderr = teal.stderr().expect("a pipe was asked for");
    let reading = tokio::spawn(async move {
        let mut said = String::new();
        stderr.read_to_string(&mut said).await.expect("a text");
        said
    });
    let client = client_config(authority.roots(), BOTH_VERSIONS, None).into();
    let mut connected = connect(teal.address, "a.test", &client).await.expect("a handshake");
    assert_eq!(connected.ask(GET).await.text(), "ok");
    // A key where a certificate should be, a certificate behind the key, half a key: problems that quote what they found.
    for (cert, key) in [(&pair.key, &pair.key), (&pair.cert, &pair.cert), (&pair.cert, &pair.key[..900].to_owned())] {
        fs::write(dir.path().join("a.pem"), cert).expect("the test can write");
        fs::write(dir.path().join("a.key"), key).expect("the test can write");
        let problems = config::load(&path).expect_err("they do not fit");
        assert_secret(&format!("{problems}{problems:?}"), &pair);
        assert!(refused(&teal, &problems.0[0].message).await);
    }
    teal.signal(Signal::TERM);
    assert_eq!(teal.ended().await.code(), Some(0));
    let said = soon("the log", reading).await.expect("a log");
    assert!(said.contains("config rejected") && said.contains("a.key"), "{said}");
    assert_secret(&said, &pair);
}

/// Waits until the status shows this problem; what it shows is no secret either.
async fn refused(teal: &Binary, message: &str) -> bool {
    soon("the refusal", async {
        loop {
            let status: Value = serde_json::from_str(teal.call("GET", "/v1/status", "").await.text()).expect("JSON");
            let problems = status["config"]["problems"].as_array().cloned().unwrap_or_default();
            if problems.iter().any(|problem| problem["message"] == message) {
                return true;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_crash_writes_no_keys_down() {
    let (dir, authority) = (scratch(), Authority::new());
    let pair = authority.issue(&["a.test"]).write(dir.path(), "a");
    let plain = || Builder::new("[services.a]\nblue = []\n");
    let ours = format!("upstream_tls = {}", pair.replace("{ ", "{ insecure = true, "));
    let for_clients = plain().listener(&format!("tls = {{ certificates = [{pair}] }}\n"));
    for config in [for_clients, plain().service(&ours)] {
        let state = scratch();
        let teal = Binary::start(teal_run(&config.write(state.path()))).await;
        let limits = Path::new("/proc").join(teal.pid().to_string()).join("limits");
        let limits = fs::read_to_string(limits).expect("it runs");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit of core dumps");
        let soft = core.split_whitespace().nth(4).and_then(|soft| soft.parse::<u64>().ok());
        assert!(soft.is_some_and(|soft| soft <= 1), "{core}");
    }
}
