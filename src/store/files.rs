//! The state directory and its two files: `lock` and `state.redb`.
//!
//! Creates them for nobody else to read, and opens them so that what cannot be read stays as it is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::backends::InMemoryBackend;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageBackend};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{StoreError, io_error, parse, redb_error, tables, unreadable};

/// Octets of the file kept in memory. Old receipts are read seldom, and what a switch changes is much less.
const CACHE: usize = 1 << 20;

pub(super) fn create_dir(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create the state directory", dir))?;
    let parent = dir.parent().unwrap_or(dir);
    sync_dir(parent).map_err(io_error("sync", parent))
}

/// Makes the state file unless there is one; under another name first, so that a process killed half way leaves none
/// that cannot be read.
pub(super) fn create_file(dir: &Path) -> Result<PathBuf, StoreError> {
    let file = dir.join("state.redb");
    if fs::exists(&file).map_err(io_error("read", &file))? {
        return Ok(file);
    }
    let draft = dir.join("state.redb.new");
    let created = initialize(&draft).and_then(|()| {
        fs::rename(&draft, &file)?;
        Ok(sync_dir(dir)?)
    });
    match created {
        Ok(()) => Ok(file),
        Err(reason) => {
            let _ = fs::remove_file(&draft);
            Err(redb_error("create", &file, reason))
        }
    }
}

/// Opens and reads a copy in memory. Opening repairs what a crash left behind, and so writes, also to a file that then
/// turns out to be beyond repair.
pub(super) fn rehearse(file: &Path) -> Result<(), StoreError> {
    let bytes = fs::read(file).map_err(|reason| redb_error("read", file, reason.into()))?;
    if bytes.is_empty() {
        return Err(unreadable(file, "it is empty"));
    }
    let memory = InMemoryBackend::new();
    let copied = memory.set_len(bytes.len() as u64).and_then(|()| memory.write(0, &bytes));
    copied.map_err(io_error("read", file))?;
    drop(bytes);
    let db = open_backend(memory).map_err(|reason| redb_error("read", file, reason.into()))?;
    read_all(file, &db)
}

pub(super) fn open(file: &Path) -> Result<Database, StoreError> {
    let opened = OpenOptions::new().read(true).write(true).open(file).map_err(io_error("open", file))?;
    disk(opened).and_then(open_backend).map_err(|reason| redb_error("open", file, reason.into()))
}

/// The shell command that keeps the file and lets teal start without it.
pub(super) fn move_away(file: &Path) -> String {
    let file = file.display().to_string().replace('\'', r"'\''");
    format!("mv '{file}' '{file}.unreadable'")
}

/// The lock file of a state directory, which says who holds it.
pub(super) struct Lock(File);

impl Lock {
    pub(super) fn acquire(dir: &Path) -> Result<Lock, StoreError> {
        let path = dir.join("lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(io_error("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(StoreError::InUse { dir: dir.to_owned(), holder: holder(&file) });
            }
            Err(errno) => return Err(io_error("lock", &path)(errno.into())),
        }
        introduce(&file).map_err(io_error("write", &path))?;
        Ok(Lock(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that is just being started shares the open file for a moment.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn introduce(file: &File) -> io::Result<()> {
    let started = humantime::format_rfc3339_seconds(SystemTime::now());
    let line = format!("pid {}, started {started}\n", std::process::id());
    // Cut only afterwards: a full disk has no room for a file that was emptied.
    file.write_all_at(line.as_bytes(), 0)?;
    file.set_len(line.len() as u64)
}

fn holder(file: &File) -> String {
    let mut line = String::new();
    match file.take(128).read_to_string(&mut line) {
        Ok(_) if !line.trim().is_empty() => format!("another teal ({})", line.trim()),
        _ => "another teal that is just starting".to_owned(),
    }
}

fn initialize(draft: &Path) -> Result<(), redb::Error> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(draft)?;
    let db = Builder::new().create_with_backend(disk(file)?)?;
    tables::create(&db)?;
    Ok(db.close()?)
}

fn read_all(file: &Path, db: &Database) -> Result<(), StoreError> {
    let read = |reason| redb_error("read", file, reason);
    let txn = db.begin_read().map_err(|reason| read(reason.into()))?;
    let found = tables::format(&txn).map_err(read)?;
    if found > tables::FORMAT {
        return Err(StoreError::Newer { file: file.to_owned(), found });
    }
    let services = tables::services(&txn).map_err(read)?;
    services.values().try_for_each(|json| parse(file, json).map(drop))
}

/// The check walks every page: without it redb may panic later on a page that was damaged.
fn open_backend(backend: impl StorageBackend) -> Result<Database, DatabaseError> {
    Builder::new().set_cache_size(CACHE).set_check_integrity_on_open(true).create_with_backend(backend)
}

#[cfg(not(test))]
fn disk(file: File) -> Result<redb::backends::FileBackend, DatabaseError> {
    redb::backends::FileBackend::new(file)
}

/// In tests, a disk that fails when told to.
#[cfg(test)]
fn disk(file: File) -> Result<super::tests::FaultyDisk, DatabaseError> {
    super::tests::FaultyDisk::new(file)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
