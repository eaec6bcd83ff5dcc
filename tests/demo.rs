//! `teal demo` keeps every promise that it prints, and leaves nothing behind however it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const PROMISES: [&str; 8] =
    ["requests", "after_ack", "no_way_back", "orders", "chat", "alarms", "reconnects", "receipts"];

#[test]
fn every_promise_is_put_to_the_test_and_kept() {
    let mut demo = Demo::start(&["--seconds", "2", "--json"]);
    let shown = demo.document();
    let status = demo.wait();
    assert_eq!(status.code(), Some(0), "{shown:#}");
    assert_eq!(shown["kept"], true);
    for name in PROMISES {
        let promise = find(&shown, name);
        assert_eq!((&promise["kept"], &promise["broken"]), (&true.into(), &0.into()), "{promise}");
        assert!(promise["of"].as_u64() > Some(0), "{promise}");
    }
    demo.assert_gone(&shown);
}

#[test]
fn receipts_tell_of_a_switch_and_a_rollback() {
    let mut demo = Demo::start(&["--seconds", "2", "--json"]);
    let shown = demo.document();
    demo.wait();
    let switches = shown["switches"].as_array().expect("a list of switches");
    let to: Vec<&str> = switches.iter().filter_map(|switch| switch["to"].as_str()).collect();
    assert_eq!(to, ["green", "blue"]);
    for switch in switches {
        assert_eq!(switch["receipt"]["services"].as_array().map(Vec::len), Some(2), "{switch}");
        let drain = &switch["receipt"]["drain"];
        assert_eq!(drain["state"], "drained");
        for kind in ["sse", "websocket"] {
            assert_eq!(drain[kind]["at_switch"], 8, "{kind}: {drain}");
        }
    }
}

#[test]
fn kept_demo_serves_the_page_until_interrupted() {
    let mut demo = Demo::start(&["--seconds", "1", "--json", "--keep"]);
    let shown = demo.document();
    let page = get(address(&shown["proxy"]), "/");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains(r#"data-color="blue""#), "{page}");
    demo.interrupt();
    assert_eq!(demo.wait().code(), Some(0), "{shown:#}");
    demo.assert_gone(&shown);
}

#[test]
fn interrupted_demo_leaves_nothing_and_says_so() {
    let mut demo = Demo::start(&["--seconds", "600"]);
    demo.read_until("load starts");
    demo.interrupt();
    assert_eq!(demo.wait().code(), Some(1));
    assert!(demo.errors().contains("interrupted"));
    demo.assert_folder_gone();
}

#[test]
fn busy_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut demo = Demo::start(&["--listen", &address]);
    assert_eq!(demo.wait().code(), Some(1));
    let errors = demo.errors();
    assert!(errors.contains(&address), "{errors}");
    demo.assert_folder_gone();
}

/// A running `teal demo` with a folder for temporary files of its own.
struct Demo {
    process: Child,
    stdout: BufReader<ChildStdout>,
    temporary: TempDir,
}

impl Demo {
    fn start(options: &[&str]) -> Demo {
        let temporary = TempDir::new().expect("a temporary folder");
        let mut process = Command::new(env!("CARGO_BIN_EXE_teal"))
            .arg("demo")
            .args(options)
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("teal starts");
        let stdout = BufReader::new(process.stdout.take().expect("a pipe was asked for"));
        Demo { process, stdout, temporary }
    }

    /// The document of `--json`.
    fn document(&mut self) -> Value {
        let mut text = String::new();
        while !text.ends_with("\n}\n") {
            assert_ne!(
                self.stdout.read_line(&mut text).expect("lines"),
                0,
                "no document, but: {text:?} {}",
                self.errors()
            );
        }
        serde_json::from_str(&text).expect("a JSON document")
    }

    fn read_until(&mut self, words: &str) {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert_ne!(
                self.stdout.read_line(&mut line).expect("lines"),
                0,
                "it never said {words:?}: {}",
                self.errors()
            );
        }
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.process), Signal::INT).expect("it runs");
    }

    fn wait(&mut self) -> ExitStatus {
        self.process.wait().expect("it is our child")
    }

    /// What it wrote to standard error until it ended.
    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.process.stderr.take().expect("a pipe, read once").read_to_string(&mut text).expect("text");
        text
    }

    fn assert_gone(&self, shown: &Value) {
        self.assert_folder_gone();
        let origins = shown["origins"].as_array().expect("two addresses");
        for place in [&shown["proxy"], &shown["admin"]].into_iter().chain(origins) {
            assert!(TcpStream::connect(address(place)).is_err(), "{place} still answers");
        }
    }

    fn assert_folder_gone(&self) {
        let left: Vec<_> = self.temporary.path().read_dir().expect("a folder").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Only a failed test leaves it running.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn find<'a>(shown: &'a Value, name: &str) -> &'a Value {
    let promises = shown["promises"].as_array().expect("a list of promises");
    promises.iter().find(|promise| promise["name"] == name).unwrap_or_else(|| panic!("no promise {name} in {shown:#}"))
}

fn address(value: &Value) -> SocketAddr {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no address: {value}"))
}

fn get(address: SocketAddr, target: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    write!(stream, "GET {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")
        .expect("a request is small");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("a whole answer");
    answer
}
