//! The promises of the store on a disk that fails where it is told to: see [`FaultyDisk`]. What a killed process and a disk
//! that is really full do to it stands in `tests/store_crash.rs`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use redb::backends::FileBackend;
use redb::{BackendError, Database, StorageBackend, TableDefinition, WriteTransaction};
use tempfile::{TempDir, tempdir};

use super::tables::{self, Receipts};
use super::{Entry, RECEIPTS_KEPT, Store, StoreError, Stored};
use crate::config::Color;

#[test]
fn a_fresh_state_is_empty_and_private() {
    let dir = tempdir().unwrap();
    let state = dir.path().join("deep/state");
    let store = Store::open(&state).unwrap();
    assert_eq!(store.services().unwrap(), BTreeMap::new());
    assert_eq!(store.receipts(10).unwrap(), Vec::<String>::new());
    assert_eq!(store.receipt("r1").unwrap(), None);
    assert_eq!(store.key("build-1").unwrap(), None);
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("state.redb")), 0o600);
    assert_eq!(mode(&state.join("lock")), 0o600);
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let dir = tempdir().unwrap();
    let services = [("api".to_owned(), stored(7)), ("shop".to_owned(), stored(8))];
    let store = Store::open(dir.path()).unwrap();
    store.commit(&services, Some(&receipt("r1")), Some(("build-1", "print-1"))).unwrap();
    store.commit(&[("api".to_owned(), stored(9))], Some(&receipt("r2")), None).unwrap();
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    let expected = BTreeMap::from([("api".to_owned(), stored(9)), ("shop".to_owned(), stored(8))]);
    assert_eq!(store.services().unwrap(), expected);
    assert_eq!(store.receipts(10).unwrap(), [receipt("r2").json, receipt("r1").json]);
    assert_eq!(store.receipts(1).unwrap(), [receipt("r2").json]);
    assert_eq!(store.receipt("r1").unwrap(), Some(receipt("r1").json));
    assert_eq!(store.key("build-1").unwrap(), Some(("print-1".to_owned(), "r1".to_owned())));
    assert_eq!(store.key("build-2").unwrap(), None);
}

#[test]
fn a_receipt_put_again_keeps_its_place_and_its_key() {
    let dir = tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.commit(&[], Some(&receipt("r1")), Some(("build-1", "print-1"))).unwrap();
    store.commit(&[], Some(&receipt("r2")), None).unwrap();
    let drained = Entry { id: "r1".to_owned(), json: "drained".to_owned() };
    store.put_receipt(&drained).unwrap();
    store.put_receipt(&receipt("r0")).unwrap();
    assert_eq!(store.receipts(10).unwrap(), [receipt("r0").json, receipt("r2").json, drained.json]);
    assert_eq!(store.key("build-1").unwrap(), Some(("print-1".to_owned(), "r1".to_owned())));
}

#[test]
fn old_receipts_go_and_their_keys_with_them() {
    let dir = tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let kept = RECEIPTS_KEPT as u64;
    edit(dir.path(), |txn| {
        let mut receipts = Receipts::open(txn).unwrap();
        for n in 1..=kept {
            receipts.add(n, &receipt(&format!("r{n}")), Some((&format!("build-{n}"), "print"))).unwrap();
        }
        txn.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().insert("revision", kept).unwrap();
    });
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.receipts(usize::MAX).unwrap().len(), RECEIPTS_KEPT);
    // The key of the oldest is used again, so it stays when the oldest goes.
    store.commit(&[], Some(&receipt("next")), Some(("build-1", "again"))).unwrap();
    store.put_receipt(&receipt("last")).unwrap();

    let receipts = store.receipts(usize::MAX).unwrap();
    assert_eq!(receipts.len(), RECEIPTS_KEPT);
    assert_eq!(receipts[..2], [receipt("last").json, receipt("next").json]);
    assert_eq!(receipts.last(), Some(&receipt("r3").json));
    assert_eq!(store.receipt("r2").unwrap(), None);
    assert_eq!(store.key("build-1").unwrap(), Some(("again".to_owned(), "next".to_owned())));
    assert_eq!(store.key("build-2").unwrap(), None);
    assert_eq!(store.key("build-3").unwrap(), Some(("print".to_owned(), "r3".to_owned())));
}

#[test]
fn a_second_store_is_refused_and_names_the_first() {
    let dir = tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    let refused = refusal(dir.path());
    assert!(refused.contains(&format!("pid {}, started 20", std::process::id())), "{refused}");
    assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn damage_is_an_error_that_changes_nothing_and_says_how_to_start_fresh() {
    let dir = filled();
    let file = dir.path().join("state.redb");
    let closed = fs::read(&file).unwrap();
    let store = Store::open(dir.path()).unwrap();
    second_commit(&store).unwrap();
    let crashed = fs::read(&file).unwrap();
    drop(store);
    for (good, newest) in [(closed, "receipt r1"), (crashed, "22222222")] {
        for damaged in damage(&good, newest) {
            fs::write(&file, &damaged).unwrap();
            let refused = refusal(dir.path());
            assert!(refused.contains(&format!("the state in {} is unreadable (", file.display())), "{refused}");
            assert!(fs::read(&file).unwrap() == damaged, "{refused}, but it was changed");
        }
        start_fresh_as_told(dir.path());
        fs::write(&file, good).unwrap();
        assert!(Store::open(dir.path()).unwrap().key("build-1").unwrap().is_some());
    }
}

#[test]
fn a_directory_in_place_of_the_file_is_an_error() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("state.redb")).unwrap();
    assert!(refusal(dir.path()).contains("state.redb is unreadable ("));
    start_fresh_as_told(dir.path());
}

#[test]
fn services_that_do_not_parse_are_damage() {
    let dir = filled();
    edit(dir.path(), |txn| {
        let table = TableDefinition::<&str, &str>::new("services");
        txn.open_table(table).unwrap().insert("shop", r#"{"active":"purple"}"#).unwrap();
    });
    let refused = refusal(dir.path());
    assert!(refused.contains("is unreadable (unknown variant `purple`"), "{refused}");
}

#[test]
fn a_newer_format_is_refused_and_left() {
    let dir = filled();
    edit(dir.path(), |txn| {
        let table = TableDefinition::<&str, u64>::new("meta");
        txn.open_table(table).unwrap().insert("format", tables::FORMAT + 1).unwrap();
    });
    let file = dir.path().join("state.redb");
    let before = fs::read(&file).unwrap();
    let refused = refusal(dir.path());
    assert!(refused.contains("was written by a newer teal (format 2, this one knows 1)"), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), before);
    start_fresh_as_told(dir.path());
}

#[test]
fn a_directory_that_cannot_be_made_is_named_with_the_reason() {
    let dir = tempdir().unwrap();
    let blocked = dir.path().join("file");
    fs::write(&blocked, "").unwrap();
    let refused = refusal(&blocked);
    assert_eq!(refused, format!("cannot create the state directory {}: File exists (os error 17)", blocked.display()));
}

#[test]
fn a_draft_left_by_a_killed_process_is_no_obstacle() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("state.redb.new"), "half").unwrap();
    Store::open(dir.path()).unwrap();
    assert!(!dir.path().join("state.redb.new").exists());
}

#[test]
fn the_first_start_on_a_failing_disk_leaves_no_file() {
    for fault in 0.. {
        let dir = tempdir().unwrap();
        Fault::arm(fault);
        let opened = Store::open(dir.path());
        if !Fault::disarm() {
            opened.unwrap();
            assert!(fault > 5, "only {fault} operations");
            return;
        }
        // A repair or a shrink that fails while the new file is closed is no loss.
        if let Err(refused) = opened {
            assert!(refused.to_string().contains("No space left on device"), "{refused}");
            assert!(!dir.path().join("state.redb.new").exists());
        }
        Store::open(dir.path()).unwrap();
    }
}

#[test]
fn a_commit_that_fails_changes_nothing_whatever_failed() {
    for fault in 0.. {
        let dir = filled();
        let store = Store::open(dir.path()).unwrap();
        Fault::arm(fault);
        let committed = second_commit(&store);
        if !Fault::disarm() {
            committed.unwrap();
            assert!(fault > 5, "only {fault} operations");
            return;
        }
        let refused = committed.unwrap_err().to_string();
        let file = dir.path().join("state.redb");
        assert_eq!(refused, format!("cannot write {}: No space left on device (os error 28)", file.display()));
        // Taken back at once, so also when nobody asks before the process ends.
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_first_only(&store);

        Fault::arm(fault);
        second_commit(&store).unwrap_err();
        Fault::disarm();
        assert_first_only(&store);
        second_commit(&store).unwrap();
        assert_eq!(store.receipts(10).unwrap().len(), 2);
    }
}

/// Everything after the failure fails as well, so that nothing could be taken back before the process ended.
#[test]
fn a_disk_that_dies_during_a_commit_leaves_the_old_state_up_to_the_last_write() {
    let steps = steps_of_a_commit();
    for fault in 0..steps {
        let dir = filled();
        let store = Store::open(dir.path()).unwrap();
        Fault::arm_for_good(fault);
        second_commit(&store).unwrap_err();
        store.services().unwrap_err();
        drop(store);
        Fault::disarm();
        let store = Store::open(dir.path()).unwrap();
        if fault + 2 < steps {
            assert_first_only(&store);
        } else {
            // The write that makes it the newest, and the sync after it: all or nothing.
            assert_eq!(store.key("build-2").unwrap().is_some(), store.services().unwrap()["api"].generation == 2);
        }
        second_commit(&store).unwrap();
    }
}

#[test]
fn nothing_is_left_to_sync_when_a_commit_returns() {
    let dir = filled();
    let store = Store::open(dir.path()).unwrap();
    second_commit(&store).unwrap();
    assert_eq!(Fault::unsynced(), 0);
    store.put_receipt(&Entry { id: "r2".to_owned(), json: "drained".to_owned() }).unwrap();
    assert_eq!(Fault::unsynced(), 0);
}

fn stored(generation: u64) -> Stored {
    Stored {
        active: Color::Green,
        generation,
        file_active: Color::Blue,
        set_by: "api".to_owned(),
        previous: Some(Color::Blue),
        changed_at_ms: 1_795_341_600_000,
    }
}

fn receipt(id: &str) -> Entry {
    Entry { id: id.to_owned(), json: format!("receipt {id}") }
}

/// A closed state with one commit in it.
fn filled() -> TempDir {
    let dir = tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.commit(&[("api".to_owned(), stored(1))], Some(&receipt("r1")), Some(("build-1", "print-1"))).unwrap();
    dir
}

fn second_commit(store: &Store) -> Result<(), StoreError> {
    // Larger than what a fresh file has room for, so that it grows.
    let big = Entry { id: "r2".to_owned(), json: "2".repeat(200_000) };
    let services = [("api".to_owned(), stored(2)), ("shop".to_owned(), stored(1))];
    store.commit(&services, Some(&big), Some(("build-2", "print-2")))
}

fn assert_first_only(store: &Store) {
    assert_eq!(store.services().unwrap(), BTreeMap::from([("api".to_owned(), stored(1))]));
    assert_eq!(store.receipts(10).unwrap(), [receipt("r1").json]);
    assert_eq!(store.receipt("r2").unwrap(), None);
    assert_eq!(store.key("build-1").unwrap(), Some(("print-1".to_owned(), "r1".to_owned())));
    assert_eq!(store.key("build-2").unwrap(), None);
}

fn steps_of_a_commit() -> usize {
    let dir = filled();
    let store = Store::open(dir.path()).unwrap();
    Fault::arm(usize::MAX);
    second_commit(&store).unwrap();
    let steps = Fault::steps();
    Fault::disarm();
    steps
}

fn refusal(dir: &Path) -> String {
    match Store::open(dir) {
        Ok(_) => panic!("{} was accepted", dir.display()),
        Err(error) => error.to_string(),
    }
}

/// Runs the command that the refusal ends with.
fn start_fresh_as_told(dir: &Path) {
    let refused = refusal(dir);
    let (_, command) = refused.split_once("move it away: ").expect("it says how to start fresh");
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    assert_eq!(Store::open(dir).unwrap().services().unwrap(), BTreeMap::new());
}

fn edit(dir: &Path, change: impl FnOnce(&WriteTransaction)) {
    let db = Database::open(dir.join("state.redb")).unwrap();
    let txn = db.begin_write().unwrap();
    change(&txn);
    txn.commit().unwrap();
}

/// `newest` is a text that only the newest commit wrote.
fn damage(good: &[u8], newest: &str) -> Vec<Vec<u8>> {
    let noise: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut bit = good.to_vec();
    let at = bit.windows(newest.len()).position(|window| window == newest.as_bytes()).expect("it is in the file");
    bit[at] ^= 1;
    vec![
        Vec::new(),
        b"r".to_vec(),
        b"active = \"blue\"\n".to_vec(),
        [&good[..64], &noise].concat(),
        noise,
        good[..4096].to_vec(),
        good[..good.len() / 2].to_vec(),
        good[..good.len() - 1].to_vec(),
        bit,
    ]
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

thread_local! {
    static FAULT: RefCell<Fault> = RefCell::default();
}

/// What the disks of this thread do wrong.
#[derive(Default)]
struct Fault {
    /// The step that fails, and whether all after it do as well.
    at: Option<usize>,
    for_good: bool,
    steps: usize,
    unsynced: usize,
}

impl Fault {
    fn arm(at: usize) {
        FAULT.set(Fault { at: Some(at), ..Fault::default() });
    }

    fn arm_for_good(at: usize) {
        FAULT.set(Fault { at: Some(at), for_good: true, ..Fault::default() });
    }

    /// Whether the fault struck.
    fn disarm() -> bool {
        FAULT.take().has_struck()
    }

    fn has_struck(&self) -> bool {
        self.at.is_some_and(|at| self.steps > at)
    }

    fn steps() -> usize {
        FAULT.with_borrow(|fault| fault.steps)
    }

    fn unsynced() -> usize {
        FAULT.with_borrow(|fault| fault.unsynced)
    }

    fn step(&mut self) -> io::Result<()> {
        let fails = self.at == Some(self.steps) || (self.for_good && self.has_struck());
        self.steps += 1;
        if fails { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }
}

/// A file whose write, resize or sync fails as [`FAULT`] says; a failing write gets half of its bytes there.
#[derive(Debug)]
pub(super) struct FaultyDisk(FileBackend);

impl FaultyDisk {
    pub(super) fn new(file: fs::File) -> Result<FaultyDisk, redb::DatabaseError> {
        Ok(FaultyDisk(FileBackend::new(file)?))
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        FAULT.with_borrow_mut(Fault::step)?;
        FAULT.with_borrow_mut(|fault| fault.unsynced += 1);
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        FAULT.with_borrow_mut(Fault::step)?;
        FAULT.with_borrow_mut(|fault| fault.unsynced = 0);
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Err(error) = FAULT.with_borrow_mut(Fault::step) {
            self.0.write(offset, &data[..data.len() / 2])?;
            return Err(error);
        }
        FAULT.with_borrow_mut(|fault| fault.unsynced += 1);
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
