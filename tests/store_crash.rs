//! The store keeps its word when the process is killed and when the disk is full or read-only. Each test runs itself
//! again as a child process, which is the one that suffers.
#![allow(clippy::unwrap_used, reason = "a helper of a test may panic like the test")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::tempdir;

use teal::config::Color;
use teal::store::{Entry, Store, StoreError, Stored};

/// The state directory of a child; absent in the parent.
const CHILD: &str = "TEAL_TEST_STATE";

#[test]
fn a_commit_that_returned_survives_kill_9() {
    if let Some(dir) = child() {
        return commit_for_ever(&dir);
    }
    let dir = tempdir().unwrap();
    let mut printed = 0;
    for _ in 0..30 {
        let mut child = this_test("a_commit_that_returned_survives_kill_9", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let first = lines.find_map(|line| number(&line)).expect("the child commits");
        assert!(first > printed, "{first} was committed again after {printed}");
        // Anywhere within the next commits.
        thread::sleep(Duration::from_micros(fastrand::u64(..5_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        printed = lines.filter_map(|line| number(&line)).last().unwrap_or(first);
        assert_nothing_missing(dir.path(), printed);
    }
}

#[test]
fn a_commit_beyond_the_file_size_limit_is_refused_and_the_store_goes_on() {
    if let Some(dir) = child() {
        let limit = getrlimit(Resource::Fsize);
        let make_room = || setrlimit(Resource::Fsize, Rlimit { current: limit.maximum, ..limit }).unwrap();
        return fill_up_and_go_on(&dir, "File too large", || {}, make_room);
    }
    let dir = tempdir().unwrap();
    // Blocks of 512 bytes. The signal is ignored so that the write fails instead of ending the process.
    let limited = r#"trap "" XFSZ; ulimit -S -f 400; exec "$@""#;
    let name = "a_commit_beyond_the_file_size_limit_is_refused_and_the_store_goes_on";
    let output = within(&["sh", "-c", limited, "sh"], name, dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_commit_to_a_full_disk_is_refused_and_the_store_goes_on() {
    if let Some(dir) = child() {
        let ballast = dir.join("ballast");
        full_from_the_start(&dir, &ballast);
        fs::write(&ballast, [0; 200_000]).unwrap();
        let make_room = || fs::remove_file(&ballast).unwrap();
        return fill_up_and_go_on(&dir.join("state"), "No space left on device", || fill(&ballast), make_room);
    }
    on_a_disk_of_its_own("a_commit_to_a_full_disk_is_refused_and_the_store_goes_on", "size=800k");
}

#[test]
fn a_read_only_disk_is_refused_with_the_reason() {
    if let Some(dir) = child() {
        let refused = Store::open(&dir).expect_err("a read-only directory is refused").to_string();
        assert_eq!(refused, format!("cannot open {}: Read-only file system (os error 30)", dir.join("lock").display()));
        let refused = Store::open(&dir.join("state")).expect_err("nor can it be made").to_string();
        assert!(refused.contains("state: Read-only file system"), "{refused}");
        return;
    }
    on_a_disk_of_its_own("a_read_only_disk_is_refused_with_the_reason", "ro");
}

/// Prints each number once its commit returned.
fn commit_for_ever(dir: &Path) {
    let store = Store::open(dir).unwrap();
    let mut stdout = std::io::stdout();
    for number in generation(&store) + 1.. {
        commit(&store, number, 300).unwrap();
        // Not `println!`, which the test harness holds back.
        writeln!(stdout, "\ncommitted {number}").unwrap();
    }
}

fn number(line: &str) -> Option<u64> {
    line.strip_prefix("committed ")?.parse().ok()
}

fn assert_nothing_missing(dir: &Path, printed: u64) {
    let store = Store::open(dir).unwrap();
    let last = generation(&store);
    assert!(last == printed || last == printed + 1, "{printed} was the last to return, {last} is stored");
    for number in (1..=last).rev().take(900) {
        assert!(store.receipt(&id(number)).unwrap().is_some(), "receipt {number} of {last} is missing");
        assert_eq!(store.key(&id(number)).unwrap(), Some(("print".to_owned(), id(number))));
    }
    assert_eq!(store.receipt(&id(last + 1)).unwrap(), None);
}

/// Commits until the disk refuses, takes what room is left, reads, makes room, and commits again.
fn fill_up_and_go_on(dir: &Path, reason: &str, take_the_rest: impl FnOnce(), make_room: impl FnOnce()) {
    let store = Store::open(dir).unwrap();
    let (full, refused) = fill_up(&store);
    take_the_rest();
    let file = dir.join("state.redb");
    assert!(refused.starts_with(&format!("cannot write {}: {reason}", file.display())), "{refused}");
    for _ in 0..3 {
        let again = commit(&store, full, 50_000).unwrap_err().to_string();
        assert!(again.contains(reason), "{again}");
        assert_is_at(&store, full - 1);
    }
    drop(store);
    let store = Store::open(dir).expect("what is there can be read without room");
    assert_is_at(&store, full - 1);
    commit(&store, full, 50_000).unwrap_err();
    make_room();
    commit(&store, full, 50_000).unwrap();
    assert_is_at(&store, full);
    drop(store);
    assert_is_at(&Store::open(dir).unwrap(), full);
}

fn fill_up(store: &Store) -> (u64, String) {
    for number in 1..100 {
        if let Err(error) = commit(store, number, 50_000) {
            return (number, error.to_string());
        }
    }
    panic!("the disk never fills");
}

fn assert_is_at(store: &Store, number: u64) {
    assert_eq!(generation(store), number);
    assert_eq!(store.receipts(1_000).unwrap().len() as u64, number);
    assert_eq!(store.receipt(&id(number + 1)).unwrap(), None);
    assert_eq!(store.key(&id(number + 1)).unwrap(), None);
}

/// A first start without room says so, and leaves nothing that hinders the next.
fn full_from_the_start(dir: &Path, ballast: &Path) {
    let state = dir.join("state");
    fill(ballast);
    let refused = Store::open(&state).expect_err("no room for a first start").to_string();
    assert!(refused.contains("No space left on device"), "{refused}");
    assert!(refused.contains(dir.to_str().unwrap()), "{refused}");
    assert!(!state.join("state.redb").exists());
    fs::remove_file(ballast).unwrap();
    drop(Store::open(&state).unwrap());
}

/// Appends to this file until the disk is full.
fn fill(ballast: &Path) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(ballast).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
}

fn commit(store: &Store, number: u64, size: usize) -> Result<(), StoreError> {
    let stored = Stored {
        active: Color::Blue,
        generation: number,
        file_active: Color::Blue,
        set_by: "api".to_owned(),
        previous: None,
        changed_at_ms: 0,
    };
    let receipt = Entry { id: id(number), json: "r".repeat(size) };
    store.commit(&[("api".to_owned(), stored)], Some(&receipt), Some((&id(number), "print")))
}

fn generation(store: &Store) -> u64 {
    store.services().unwrap().get("api").map_or(0, |stored| stored.generation)
}

fn id(number: u64) -> String {
    format!("r{number:06}")
}

fn child() -> Option<PathBuf> {
    env::var_os(CHILD).map(PathBuf::from)
}

fn this_test(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(CHILD, dir);
    command
}

/// The test as the last arguments of another program.
fn within(program: &[&str], name: &str, dir: &Path) -> Command {
    let test = this_test(name, dir);
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(test.get_program()).args(test.get_args()).env(CHILD, dir);
    command
}

/// Runs the test as a child with a tmpfs that only it can see. Where no such thing can be made, says so and passes.
fn on_a_disk_of_its_own(name: &str, options: &str) {
    let dir = tempdir().unwrap();
    let mount = format!(r#"mount -t tmpfs -o {options} tmpfs "${CHILD}" && echo mounted && exec "$@""#);
    let program = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"];
    let spawned = within(&program, name, dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return skip(name, &format!("unshare: {error}")),
    };
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    let status = child.wait().unwrap();
    if !output.starts_with("mounted") {
        return skip(name, "no tmpfs can be mounted in a namespace of its own here");
    }
    assert!(status.success(), "{output}");
}

/// Past the test harness, which holds back what a passing test prints.
fn skip(name: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
}
