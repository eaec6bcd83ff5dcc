//! The command line as pipelines use it: exit codes, JSON, signals, and what a terminal gets and a pipe does not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use support::PATIENCE;
use support::client::Client;
use support::origin::{Origin, ok};

#[tokio::test(flavor = "multi_thread")]
async fn ready_names_every_address_once_and_sigterm_ends_with_0() {
    let more = "[[listeners]]\nlisten = \"127.0.0.2:0\"\n";
    let mut teal = Folder::new(&format!("{more}{}", idle_services())).start();
    let [http, admin] =
        teal.ready.trim_end().strip_prefix("ready http=").unwrap().split(" admin=").collect::<Vec<_>>()[..]
    else {
        panic!("{}", teal.ready)
    };
    assert_eq!(http.split(',').count(), 2, "{}", teal.ready);
    for address in http.split(',').chain([admin]) {
        assert!(TcpStream::connect(address).is_ok(), "{address} does not answer");
    }
    teal.signal(Signal::TERM);
    assert_eq!(teal.ended().code(), Some(0));
    assert_eq!(teal.stdout.rest(), teal.ready, "nothing but the one line");
}

/// With them every place that the allocator touches would take 2 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_takes_no_huge_pages() {
    let teal = Folder::new(&idle_services()).start();
    let status = fs::read_to_string(format!("/proc/{}/status", teal.process.id())).unwrap();
    // Systems before Linux 5.0 do not tell.
    let told = status.lines().find_map(|line| line.strip_prefix("THP_enabled:"));
    assert!(told.is_none_or(|told| told.trim() == "0"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_signal_ends_at_once() {
    let shop = Shop::open(1).await;
    let mut teal = shop.start();
    let _slow = teal.open_slow(&shop).await;
    teal.signal(Signal::TERM);
    // It has heard the first when it lets nobody in any more.
    let address = teal.http;
    eventually("the listener is closed", || TcpStream::connect(address).is_err());
    assert!(teal.process.try_wait().unwrap().is_none(), "it should wait for the slow request");
    teal.signal(Signal::INT);
    assert_eq!(teal.ended().code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_of_start_reload_and_stop() {
    let folder = Folder::new(&idle_services());
    let socket = UnixDatagram::bind(folder.path("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect("systemd is told");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut teal = folder.start_with(&[("NOTIFY_SOCKET", folder.path("notify").to_str().unwrap())]);
    assert_eq!(heard(), "READY=1\n");
    teal.signal(Signal::HUP);
    assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(heard(), "READY=1\n");
    teal.signal(Signal::TERM);
    assert_eq!(heard(), "STOPPING=1\n");
    assert_eq!(teal.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_reload_is_shown_until_a_good_one() {
    let folder = Folder::new(&idle_services());
    let teal = folder.start();
    let good = fs::read_to_string(folder.config()).unwrap();
    fs::write(folder.config(), good.replace("\"blue\"", "\"blu\"")).unwrap();
    teal.signal(Signal::HUP);
    let problems = || teal.status()["config"]["problems"].as_array().map(Vec::len);
    eventually("the problem is shown", || problems() == Some(2));
    let text = teal.cli(&["status"]).done();
    assert!(text.contains("teal.toml:"), "{text}");
    assert!(text.contains("found \"blu\""), "{text}");
    fs::write(folder.config(), good).unwrap();
    teal.signal(Signal::HUP);
    eventually("the problem is gone", || problems() == Some(0));
}

#[test]
fn port_in_use_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = Folder::new(&idle_services());
    folder.change("[[listeners]]\nlisten = \"127.0.0.1:0\"", &format!("[[listeners]]\nlisten = \"{address}\""));
    let run = folder.run();
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains(&address), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("pid {}", std::process::id())), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_teal_on_the_same_state_is_refused() {
    let folder = Folder::new(&idle_services());
    let mut first = folder.start();
    let second = folder.run();
    assert_eq!((second.code, second.stderr.lines().count()), (1, 1), "{}", second.stderr);
    assert!(second.stderr.contains(&first.process.id().to_string()), "{}", second.stderr);
    assert!(first.process.try_wait().unwrap().is_none(), "the first runs on");
}

#[test]
fn unreadable_state_is_left_alone() {
    let folder = Folder::new(&idle_services());
    let file = folder.path("state/state.redb");
    fs::create_dir(folder.path("state")).unwrap();
    fs::write(&file, "not a database").unwrap();
    let run = folder.run();
    assert_eq!((run.code, run.stderr.lines().count()), (1, 1), "{}", run.stderr);
    assert_eq!(fs::read(&file).unwrap(), b"not a database");
}

#[test]
fn check_says_ok_or_everything_that_is_wrong() {
    let folder = Folder::new(&idle_services());
    let good = folder.teal(&["check"]);
    let name = folder.config().display().to_string();
    assert_eq!(good.done(), format!("{name}: ok (1 listener, 2 services, 1 route)\n"));
    let json = folder.teal(&["check", "--json"]).json();
    assert_eq!((&json["ok"], &json["routes"]), (&true.into(), &1.into()));

    folder.change("\"blue\"", "\"blu\"");
    folder.change("path = \"/\"", "path = \"x\"");
    let bad = folder.teal(&["check"]);
    assert_eq!((bad.code, bad.stdout.as_str()), (2, ""));
    let lines: Vec<&str> = bad.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.starts_with(&format!("{name}:"))), "{lines:#?}");
    let json = folder.teal(&["check", "--json"]).failed(2).json();
    assert_eq!((&json["ok"], json["problems"].as_array().unwrap().len()), (&false.into(), 3));
    assert!(json["problems"][0]["line"].as_u64() > Some(0), "{json}");
    assert_eq!(folder.run().stderr, bad.stderr, "run says the same");
    assert_eq!(folder.run().code, 2);
}

#[test]
fn usage_errors_are_2() {
    let folder = Folder::new(&idle_services());
    let wrong: [&[&str]; 8] = [
        &[],
        &["nonsense"],
        &["switch", "api"],
        &["switch", "api", "red"],
        &["switch", "api,", "green"],
        &["switch", "api", "green", "--timeout", "soon"],
        &["rollback", "api,web", "--key", "1"],
        &["status", "--watch"],
    ];
    for arguments in wrong {
        let output = folder.teal(arguments);
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{arguments:?}: {}", output.stderr);
        assert!(!output.stderr.is_empty());
    }
    let by_flag = folder.teal(&["status", "--admin", "9900"]).failed(2);
    let by_variable = Output::of(command(&["status"]).env("TEAL_ADMIN", "9900")).failed(2);
    for output in [by_flag, by_variable] {
        assert!(output.stderr.contains("127.0.0.1:9900"), "{}", output.stderr);
    }
    let missing = folder.teal(&["check", "--config", "/no/such/file"]).failed(2);
    assert!(missing.stderr.contains("/no/such/file:1:1: "), "{}", missing.stderr);
}

#[test]
fn config_is_looked_for_where_it_belongs() {
    let empty = tempfile::tempdir().unwrap();
    let check = || {
        let mut command = command(&["check"]);
        command.current_dir(empty.path());
        command
    };
    // A machine on which teal is installed has one in /etc.
    if !Path::new("/etc/teal/teal.toml").exists() {
        assert!(Output::of(&mut check()).failed(2).stderr.contains("--config"));
    }
    let folder = Folder::new(&idle_services());
    assert_eq!(Output::of(check().env("TEAL_CONFIG", folder.config())).code, 0);
    fs::copy(folder.config(), empty.path().join("teal.toml")).unwrap();
    assert!(Output::of(&mut check()).done().starts_with("./teal.toml: ok"));
    // An empty variable names nothing.
    assert!(Output::of(check().env("TEAL_CONFIG", "")).done().starts_with("./teal.toml: ok"));
}

#[tokio::test(flavor = "multi_thread")]
async fn switch_tells_what_happened() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let receipt = |text: &str| text.trim_end().rsplit(' ').next().unwrap().to_owned();
    let text = teal.cli(&["switch", "api", "green", "--reason", "build 214", "--actor", "jenkins"]).done();
    assert!(text.starts_with("api: blue → green (generation 2) in "), "{text}");
    let shown = teal.cli(&["receipt", &receipt(&text)]).done();
    for fact in ["api: blue → green (generation 2)", "cli, jenkins", "build 214", "drain", "websocket"] {
        assert!(shown.contains(fact), "{fact}: {shown}");
    }
    let again = teal.cli(&["switch", "api", "green"]).done();
    assert_eq!(again, "api: nothing to do, it is at this color already\n");
    let rehearsed = teal.cli(&["switch", "api", "blue", "--dry-run"]).done();
    assert!(rehearsed.contains("nothing was changed"), "{rehearsed}");
    assert_eq!(teal.status()["services"][0]["active"], "green");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_one_document_on_standard_output() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let status = teal.status();
    assert_eq!(status["services"].as_array().unwrap().len(), 2);
    let service = teal.cli(&["status", "api", "--json"]).json();
    assert_eq!((&service["name"], &service["active"]), (&"api".into(), &"blue".into()));
    let switched = teal.cli(&["switch", "api", "green", "--json", "--wait", "drained"]).json();
    assert_eq!((&switched["trigger"], &switched["services"][0]["to"]), (&"cli".into(), &"green".into()));
    assert_eq!(switched["drain"]["state"], "drained");
    let receipt = teal.cli(&["receipt", switched["id"].as_str().unwrap(), "--json"]).json();
    assert_eq!(receipt, switched);
    let refused = teal.cli(&["switch", "api", "blue", "--expect-active", "blue", "--json"]).failed(4);
    assert_eq!((&refused.json()["status"], &refused.json()["active"]), (&409.into(), &"green".into()));
    assert!(refused.stderr.contains("green is active"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why_and_what_to_do() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let unhealthy = teal.cli(&["switch", "web", "green"]).failed(1);
    assert!(unhealthy.stderr.contains("0 of 1 endpoints"), "{}", unhealthy.stderr);
    assert!(unhealthy.stderr.contains("--force"), "{}", unhealthy.stderr);
    let unknown = teal.cli(&["switch", "nope", "green"]).failed(1);
    assert!(unknown.stderr.contains("known are: api, web"), "{}", unknown.stderr);
    let conflict = teal.cli(&["switch", "api", "green", "--expect-active", "green"]).failed(4);
    assert!(conflict.stderr.contains("blue is active"), "{}", conflict.stderr);
    let strange = teal.cli(&["status", "../x y"]).failed(1);
    assert!(strange.stderr.contains("../x y"), "{}", strange.stderr);
    teal.cli(&["receipt", "0"]).failed(1);
    assert_eq!(teal.status()["services"][0]["generation"], 1, "a refused switch changes nothing");
    teal.cli(&["switch", "web", "green", "--force"]).done();
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_done_once() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let first = teal.cli(&["switch", "api", "green", "--key", "build-214", "--json"]).json();
    let second = teal.cli(&["switch", "api", "green", "--key", "build-214", "--json"]).json();
    assert_eq!(first["id"], second["id"]);
    let other = teal.cli(&["switch", "api", "blue", "--key", "build-214"]).failed(1);
    assert!(other.stderr.contains("build-214"), "{}", other.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_goes_back_alone_or_together() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let active = || -> Vec<String> {
        let status = teal.status();
        let services = status["services"].as_array().unwrap().clone();
        services.iter().map(|service| service["active"].as_str().unwrap().to_owned()).collect()
    };
    teal.cli(&["rollback", "api"]).failed(4);
    teal.cli(&["switch", "api", "green"]).done();
    let one_never_switched = teal.cli(&["rollback", "api,web"]).failed(4);
    assert!(one_never_switched.stderr.contains("web: "), "{}", one_never_switched.stderr);
    assert_eq!(active(), ["green", "blue"], "all or none");

    teal.cli(&["switch", "web", "green", "--force"]).done();
    let text = teal.cli(&["rollback", "web,api"]).failed(1);
    assert!(text.stderr.contains("web: "), "its blue is not healthy either: {}", text.stderr);
    assert_eq!(active(), ["green", "green"], "all or none");
    let rehearsed = teal.cli(&["rollback", "web,api", "--force", "--dry-run"]).done();
    assert!(rehearsed.contains("2 services in one step · dry run"), "{rehearsed}");
    let receipt = teal.cli(&["rollback", "web,api", "--force", "--json"]).json();
    assert_eq!(receipt["services"].as_array().unwrap().len(), 2, "{receipt:#}");
    assert_eq!(active(), ["blue", "blue"]);
    let text = teal.cli(&["rollback", "api", "--expect-active", "blue"]).done();
    assert!(text.starts_with("api: blue → green (generation 4)"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn switched_but_not_drained_is_3() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let mut slow = teal.open_slow(&shop).await;
    let late = teal.cli(&["switch", "api", "green", "--wait", "drained", "--timeout", "200ms"]).failed(3);
    assert!(late.stdout.starts_with("api: blue → green (generation 2)"), "{}", late.stdout);
    assert!(late.stdout.contains("draining"), "{}", late.stdout);
    assert!(late.stderr.contains("1 http still open"), "{}", late.stderr);
    // Nothing to switch, but not everybody has left: still not done.
    teal.cli(&["switch", "api", "green", "--wait", "drained", "--timeout", "200ms"]).failed(3);
    shop.gate.add_permits(1);
    assert_eq!(slow.answer().await.status, 200);
    teal.cli(&["switch", "api", "green", "--wait", "drained"]).done();
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_that_cannot_be_reached_is_5() {
    let folder = Folder::new(&idle_services());
    let refusing = Origin::refusing();
    let free = refusing.address.to_string();
    let gone = folder.teal(&["status", "--admin", &free]).failed(5);
    assert!(gone.stderr.contains(&free), "{}", gone.stderr);
    folder.teal(&["switch", "api", "green", "--admin", "unix:/no/such/socket"]).failed(5);

    let shop = Origin::saying("hello").await;
    let other = folder.teal(&["status", "--admin", &shop.address.to_string()]).failed(5);
    assert!(other.stderr.contains("not the admin API of teal"), "{}", other.stderr);
    let ssh = Origin::raw(|mut stream| async move {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await;
        std::future::pending().await
    });
    let other = folder.teal(&["status", "--admin", &ssh.await.address.to_string()]).failed(5);
    assert!(other.stderr.contains("does not speak HTTP"), "{}", other.stderr);
    let rude = Origin::raw(|stream| async move { drop(stream) }).await;
    folder.teal(&["switch", "api", "green", "--admin", &rude.address.to_string()]).failed(5);
}

#[tokio::test(flavor = "multi_thread")]
async fn address_may_stand_before_or_behind_the_command() {
    let folder = Folder::new(&idle_services());
    let teal = folder.start();
    Output::of(&mut command(&["--admin", &teal.admin, "status"])).done();
    Output::of(&mut command(&["--admin", "127.0.0.1:1", "status", "--admin", &teal.admin])).done();
    Output::of(command(&["status", "--admin", &teal.admin]).env("TEAL_ADMIN", "127.0.0.1:1")).done();
    Output::of(command(&["status"]).env("TEAL_ADMIN", &teal.admin)).done();
}

#[tokio::test(flavor = "multi_thread")]
async fn token_comes_from_file_variable_or_config() {
    let folder = Folder::new(&idle_services());
    fs::write(folder.path("token"), "s3cret\n").unwrap();
    folder.change("[admin]", &format!("[admin]\ntoken_file = {:?}", folder.path("token")));
    let teal = folder.start();
    let call = || command(&["status", "--admin", &teal.admin]);
    let refused = Output::of(&mut call()).failed(1);
    assert!(refused.stderr.contains("--token-file"), "{}", refused.stderr);
    assert_eq!(Output::of(call().env("TEAL_TOKEN", "wrong")).code, 1);
    assert_eq!(Output::of(call().env("TEAL_TOKEN", "s3cret")).code, 0);
    assert_eq!(Output::of(call().arg("--token-file").arg(folder.path("token"))).code, 0);
    assert_eq!(Output::of(call().arg("--config").arg(folder.config())).code, 0);
    assert_eq!(Output::of(call().arg("--token-file").arg("/no/such/file")).code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_says_where_the_api_is_even_with_a_mistake_elsewhere() {
    let folder = Folder::new(&idle_services());
    folder.change(
        "[admin]\nlisten = \"127.0.0.1:0\"",
        &format!("[admin]\nlisten = \"unix:{}\"", folder.path("a").display()),
    );
    let _teal = folder.start();
    folder.teal(&["status"]).done();
    folder.change("\"blue\"", "\"blu\"");
    let output = folder.teal(&["status", "--json"]);
    assert_eq!((output.code, &output.json()["services"][0]["name"]), (0, &"api".into()));
    assert!(output.stderr.contains("teal check"), "{}", output.stderr);
    folder.change("[admin]", "[admin");
    folder.teal(&["status"]).failed(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipe_gets_no_escape_codes() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let calls: [&[&str]; 6] = [
        &["status"],
        &["status", "web"],
        &["switch", "web", "green"],
        &["switch", "api", "green", "--wait", "drained"],
        &["--help"],
        &["nonsense"],
    ];
    for arguments in calls {
        let output = teal.cli(arguments);
        assert!(!(output.stdout + &output.stderr).contains('\x1b'), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_gets_colors_unless_it_wants_none() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let shown = |no_color: &str| {
        let mut command = command(&["status", "--admin", &teal.admin]);
        command.env("NO_COLOR", no_color);
        let mut terminal = Terminal::start(command, 80);
        assert_eq!(ended(&mut terminal.process).code(), Some(0));
        terminal.shown.rest()
    };
    assert!(shown("").contains("\x1b[1;38;5;69m● blue"), "{}", shown(""));
    assert!(shown("1").contains("● blue"));
    assert!(!shown("1").contains('\x1b'));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_redraws_and_leaves_the_terminal_as_it_was() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let mut terminal = Terminal::start(command(&["status", "--watch", "--admin", &teal.admin]), 80);
    terminal.shown.until("\x1b[?1049h");
    terminal.shown.until("● blue");
    teal.cli(&["switch", "api", "green"]).done();
    terminal.shown.until("● green");
    teal.signal(Signal::KILL);
    terminal.shown.until("cannot reach the proxy");
    signal(&terminal.process, Signal::INT);
    assert_eq!(ended(&mut terminal.process).code(), Some(0));
    assert!(terminal.shown.rest().ends_with("\x1b[?7h\x1b[?25h\x1b[?1049l"));
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_shows_what_a_drain_waits_for() {
    let shop = Shop::open(1).await;
    let teal = shop.start();
    let mut slow = teal.open_slow(&shop).await;
    let switch = command(&["switch", "api", "green", "--wait", "drained", "--admin", &teal.admin]);
    let mut terminal = Terminal::start(switch, 80);
    terminal.shown.until("draining: 1 http open");
    shop.gate.add_permits(1);
    assert_eq!(slow.answer().await.status, 200);
    assert_eq!(ended(&mut terminal.process).code(), Some(0));
    assert!(terminal.shown.rest().contains("drained"));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = Output::of(&mut command(&["completions", shell])).done();
        for word in ["rollback", "expect-active"] {
            assert!(script.contains(word), "{shell}");
        }
    }
    assert_eq!(Output::of(&mut command(&["completions", "csh"])).code, 2);
}

/// Two services that nobody needs to reach.
fn idle_services() -> String {
    services("\"127.0.0.1:9\"", "\"127.0.0.1:9\"")
}

/// `api` with these pools, and `web`, of which no endpoint is ever healthy.
fn services(blue: &str, green: &str) -> String {
    format!(
        "[services.api]\nactive = \"blue\"\nblue = [{blue}]\ngreen = [{green}]\n\
         [services.web]\nactive = \"blue\"\nblue = [\"unix:/no/such/origin\"]\ngreen = [\"unix:/no/such/origin\"]\n\
         [[routes]]\npath = \"/\"\nservice = \"api\"\n"
    )
}

/// A config file and a place for everything that belongs to it.
struct Folder(TempDir);

impl Folder {
    fn new(rest: &str) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "state_dir = {:?}\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [limits]\nconnections = 100\n[[listeners]]\nlisten = \"127.0.0.1:0\"\n{rest}",
            dir.path().join("state")
        );
        fs::write(dir.path().join("teal.toml"), config).unwrap();
        Folder(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("teal.toml")
    }

    /// Replaces every `from` in the config file.
    fn change(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(self.config(), text.replace(from, to)).unwrap();
    }

    /// Calls teal with this config file.
    fn teal(&self, arguments: &[&str]) -> Output {
        Output::of(command(arguments).env("TEAL_CONFIG", self.config()))
    }

    /// `teal run` that is expected to end by itself.
    fn run(&self) -> Output {
        self.teal(&["run"])
    }

    fn start(&self) -> Teal {
        self.start_with(&[])
    }

    fn start_with(&self, variables: &[(&str, &str)]) -> Teal {
        let mut command = command(&["run"]);
        command.arg("--config").arg(self.config()).envs(variables.iter().copied());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = Written::of(process.stdout.take().expect("a pipe was asked for"));
        let ready = stdout.until("\n");
        let value = |key: &str| {
            let word = ready.split_whitespace().find_map(|word| word.strip_prefix(key)).expect("a known line");
            word.split(',').next().expect("a first address").to_owned()
        };
        let (http, admin) = (value("http=").parse().unwrap(), value("admin="));
        Teal { process, stdout, ready, http, admin }
    }
}

/// A running `teal run`, killed when it is dropped.
struct Teal {
    process: Child,
    stdout: Written,
    ready: String,
    http: SocketAddr,
    admin: String,
}

impl Teal {
    /// Calls teal with the address of this proxy.
    fn cli(&self, arguments: &[&str]) -> Output {
        Output::of(command(arguments).env("TEAL_ADMIN", &self.admin))
    }

    fn status(&self) -> Value {
        self.cli(&["status", "--json"]).json()
    }

    fn signal(&self, which: Signal) {
        signal(&self.process, which);
    }

    fn ended(&mut self) -> ExitStatus {
        ended(&mut self.process)
    }

    /// A request that is in the generation and waits for the gate of the shop.
    async fn open_slow(&self, shop: &Shop) -> Client {
        let mut client = Client::connect(self.http).await;
        client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n").await;
        shop.slow.acquire().await.expect("never closed").forget();
        client
    }
}

impl Drop for Teal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Both colors of `api`, and the config of a proxy before them.
struct Shop {
    folder: Folder,
    /// Lets one slow request go on for each permit.
    gate: Arc<Semaphore>,
    /// A permit for each slow request that has arrived.
    slow: Arc<Semaphore>,
    _origins: Vec<Origin>,
}

impl Shop {
    async fn open(endpoints: usize) -> Shop {
        let (gate, slow) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let mut origins = Vec::new();
        for _ in 0..2 * endpoints {
            let (gate, slow) = (gate.clone(), slow.clone());
            let answer = move |request: support::origin::Request| {
                let (gate, slow) = (gate.clone(), slow.clone());
                async move {
                    if request.line().contains("/slow") {
                        slow.add_permits(1);
                        gate.acquire().await.expect("never closed").forget();
                    }
                    ok("ok")
                }
            };
            origins.push(Origin::http(answer).await);
        }
        let pool = |origins: &[Origin]| origins.iter().map(Origin::toml).collect::<Vec<_>>().join(", ");
        let folder = Folder::new(&services(&pool(&origins[..endpoints]), &pool(&origins[endpoints..])));
        Shop { folder, gate, slow, _origins: origins }
    }

    /// Starts the proxy and waits until every endpoint has been probed.
    fn start(&self) -> Teal {
        let teal = self.folder.start();
        eventually("all endpoints are probed", || !teal.status().to_string().contains("\"health\":\"unknown\""));
        teal
    }
}

/// A process on a terminal of its own, killed when it is dropped.
struct Terminal {
    process: Child,
    shown: Written,
}

impl Terminal {
    fn start(mut command: Command, columns: u16) -> Terminal {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let size = rustix::termios::Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&ours, size).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        command.env("TERM", "xterm-256color").stdout(theirs.try_clone().unwrap()).stderr(theirs);
        let process = command.spawn().unwrap();
        Terminal { process, shown: Written::of(File::from(ours)) }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a process writes, as it comes.
struct Written {
    chunks: Receiver<Vec<u8>>,
    octets: Vec<u8>,
    seen: usize,
}

impl Written {
    fn of(mut source: impl Read + Send + 'static) -> Written {
        let (sender, chunks) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose other end is closed gives an error, not an end.
            while let Ok(length @ 1..) = source.read(&mut buffer) {
                let _ = sender.send(buffer[..length].to_vec());
            }
        });
        Written { chunks, octets: Vec::new(), seen: 0 }
    }

    /// What comes up to these words, from where the last call stopped.
    fn until(&mut self, words: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.octets[self.seen..]).into_owned();
            if let Some(end) = text.find(words) {
                self.seen += end + words.len();
                return text[..end + words.len()].to_owned();
            }
            let chunk = self.chunks.recv_timeout(PATIENCE);
            self.octets.extend(chunk.unwrap_or_else(|_| panic!("waited in vain for {words:?} after {text:?}")));
        }
    }

    /// Everything there ever was, up to the end.
    fn rest(&mut self) -> String {
        while let Ok(chunk) = self.chunks.recv_timeout(PATIENCE) {
            self.octets.extend(chunk);
        }
        String::from_utf8_lossy(&self.octets).into_owned()
    }
}

/// How a call of teal went.
struct Output {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Output {
    fn of(command: &mut Command) -> Output {
        let output = command.output().unwrap();
        let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
        let code = output.status.code().expect("not killed");
        Output { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Standard output of a call that succeeded.
    fn done(self) -> String {
        self.failed(0).stdout
    }

    fn failed(self, code: i32) -> Output {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }
}

/// Teal, with nothing from the environment of whoever runs the test.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_teal"));
    for name in ["TEAL_CONFIG", "TEAL_ADMIN", "TEAL_TOKEN", "NO_COLOR", "NOTIFY_SOCKET", "STATE_DIRECTORY", "USER"] {
        command.env_remove(name);
    }
    command.args(arguments).env("RUST_LOG", "off").stdin(Stdio::null());
    command
}

fn signal(process: &Child, which: Signal) {
    kill_process(Pid::from_child(process), which).unwrap();
}

fn ended(process: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("the process ends", || {
        status = process.try_wait().unwrap();
        status.is_some()
    });
    status.expect("it has ended")
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
