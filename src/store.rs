//! What must outlive the process: the active color of each service, the receipts, the idempotency keys.
//!
//! Owns the state directory: `lock`, held for the life of the process so that no second teal writes here, and
//! `state.redb`, one [`redb`] file. redb is pure Rust, maintained, and keeps everything in one copy-on-write file whose
//! every page is checksummed. A commit is one transaction and on disk when it returns; one that fails leaves no trace,
//! and the store goes on. Receipts are bounded, and an idempotency key lives as long as the receipt that it answers.
//!
//! Does not know what a receipt says, and never writes to a file that it cannot read: see [`StoreError::Unreadable`].
//! Every call waits for the disk: not for an async task.

mod files;
mod tables;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::config::Color;

use files::Lock;
use tables::Receipts;

/// Receipts kept; older ones go, and their idempotency keys with them.
pub const RECEIPTS_KEPT: usize = 1_000;

/// The embedded database of one state directory.
pub struct Store {
    file: PathBuf,
    state: Mutex<State>,
    _lock: Lock,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("file", &self.file).finish_non_exhaustive()
    }
}

/// What must outlive the process about one service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stored {
    pub active: Color,
    pub generation: u64,
    /// `active` as the config file said it when it was last read.
    pub file_active: Color,
    /// Who set the color: `file`, `api`, … free text.
    pub set_by: String,
    pub previous: Option<Color>,
    /// Milliseconds since the Unix epoch.
    pub changed_at_ms: u64,
}

/// A receipt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub id: String,
    pub json: String,
}

/// Why the store cannot do as asked. Each message is whole, with the reason of the operating system in it and none in
/// `source()`: it reaches people through the log, the command line and the admin API alike.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} {}: {reason}", path.display())]
    Io { doing: &'static str, path: PathBuf, reason: io::Error },
    #[error(
        "the state directory {} is in use by {holder}; stop that process or give this one a state_dir of its own",
        dir.display()
    )]
    InUse { dir: PathBuf, holder: String },
    #[error(
        "the state in {} is unreadable ({reason}) and was left as it is; to start fresh, with the colors of the config \
         file, move it away: {}",
        file.display(),
        files::move_away(file)
    )]
    Unreadable { file: PathBuf, reason: Box<dyn Error + Send + Sync> },
    #[error(
        "the state in {} was written by a newer teal (format {found}, this one knows {}) and was left as it is; run that \
         version, or, to start fresh with the colors of the config file, move it away: {}",
        file.display(),
        tables::FORMAT,
        files::move_away(file)
    )]
    Newer { file: PathBuf, found: u64 },
}

impl Store {
    /// Opens the state in `dir`, creating both when absent, and keeps every other process out until dropped.
    ///
    /// # Errors
    /// A directory that cannot be used or is in use, or a state that cannot be read; then nothing was changed.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let dir = std::path::absolute(dir).map_err(io_error("use the state directory", dir))?;
        files::create_dir(&dir)?;
        let lock = Lock::acquire(&dir)?;
        let file = files::create_file(&dir)?;
        files::rehearse(&file)?;
        let db = files::open(&file)?;
        let state = State::load(db).map_err(|reason| redb_error("read", &file, reason))?;
        Ok(Store { file, state: Mutex::new(state), _lock: lock })
    }

    /// Every service that was ever committed.
    pub fn services(&self) -> Result<BTreeMap<String, Stored>, StoreError> {
        let rows = self.read(tables::services)?;
        rows.into_iter().map(|(name, json)| Ok((name, parse(&self.file, &json)?))).collect()
    }

    /// One durable transaction: the services' new facts, the receipt, and the idempotency key that it answers with the
    /// fingerprint of its request; or nothing. A key without a receipt has nothing to answer and is not kept.
    ///
    /// # Errors
    /// When the disk refuses; the store is then as it was before the call.
    pub fn commit(
        &self,
        services: &[(String, Stored)],
        receipt: Option<&Entry>,
        key: Option<(&str, &str)>,
    ) -> Result<(), StoreError> {
        let services: Vec<_> = services.iter().map(|(name, stored)| (name.clone(), json(stored))).collect();
        let mut state = self.state.lock();
        self.write(&mut state, |txn, revision| {
            tables::put_services(txn, services.iter().map(|(name, json)| (name, json)))?;
            match receipt {
                Some(receipt) => Receipts::open(txn)?.add(revision, receipt, key),
                None => Ok(()),
            }
        })?;
        state.services.extend(services);
        Ok(())
    }

    /// Replaces the receipt of this id; one that is not there becomes the newest.
    pub fn put_receipt(&self, receipt: &Entry) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        self.write(&mut state, |txn, revision| Receipts::open(txn)?.put(revision, receipt))
    }

    /// The receipt of this id, as JSON.
    pub fn receipt(&self, id: &str) -> Result<Option<String>, StoreError> {
        self.read(|txn| tables::receipt(txn, id))
    }

    /// At most `limit` receipts as JSON, newest first.
    pub fn receipts(&self, limit: usize) -> Result<Vec<String>, StoreError> {
        self.read(|txn| tables::newest_receipts(txn, limit))
    }

    /// The fingerprint of the request that used this idempotency key, and the id of the receipt that answered it.
    pub fn key(&self, key: &str) -> Result<Option<(String, String)>, StoreError> {
        self.read(|txn| tables::key(txn, key))
    }

    fn read<T>(&self, body: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let mut state = self.state.lock();
        let result = state.database(&self.file)?.begin_read().map_err(redb::Error::from).and_then(|txn| body(&txn));
        result.map_err(|reason| self.give_up(&mut state, "read", reason))
    }

    fn write(
        &self,
        state: &mut State,
        body: impl FnOnce(&WriteTransaction, u64) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let revision = state.revision + 1;
        tables::transact(state.database(&self.file)?, revision, |txn| body(txn, revision))
            .map_err(|reason| self.give_up(state, "write", reason))?;
        state.revision = revision;
        Ok(())
    }

    /// After an error of the disk redb serves nothing until it is opened again. That is done at once, and not by the next
    /// caller: a transaction whose very last sync failed may be in the file, and must not be there at the next start.
    fn give_up(&self, state: &mut State, doing: &'static str, reason: redb::Error) -> StoreError {
        state.db = None;
        // When this fails too, the next call tries again, and has its own error to report.
        let _ = state.database(&self.file);
        redb_error(doing, &self.file, reason)
    }
}

/// The open file, and what was last acknowledged.
struct State {
    /// `None` from an error until it could be opened again.
    db: Option<Database>,
    revision: u64,
    services: BTreeMap<String, String>,
}

impl State {
    fn load(db: Database) -> Result<State, redb::Error> {
        let txn = db.begin_read()?;
        let (revision, services) = (tables::revision(&txn)?, tables::services(&txn)?);
        drop(txn);
        Ok(State { db: Some(db), revision, services })
    }

    fn database(&mut self, file: &Path) -> Result<&Database, StoreError> {
        let db = match self.db.take() {
            Some(db) => db,
            None => {
                let db = files::open(file)?;
                self.restore(&db).map_err(|reason| redb_error("write", file, reason))?;
                db
            }
        };
        Ok(self.db.insert(db))
    }

    /// Takes back a transaction that is in the file although its caller was told that it failed.
    fn restore(&self, db: &Database) -> Result<(), redb::Error> {
        let found = tables::revision(&db.begin_read()?)?;
        if found == self.revision {
            return Ok(());
        }
        tables::transact(db, self.revision, |txn| {
            tables::clear_services(txn)?;
            tables::put_services(txn, self.services.iter())?;
            let mut receipts = Receipts::open(txn)?;
            (self.revision + 1..=found).try_for_each(|revision| receipts.forget(revision))
        })
    }
}

fn json(stored: &Stored) -> String {
    serde_json::to_string(stored).expect("a struct of strings, numbers and colors is valid JSON")
}

fn parse(file: &Path, json: &str) -> Result<Stored, StoreError> {
    serde_json::from_str(json).map_err(|reason| unreadable(file, reason))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |reason| StoreError::Io { doing, path: path.to_owned(), reason }
}

fn redb_error(doing: &'static str, file: &Path, reason: redb::Error) -> StoreError {
    use ErrorKind::{InvalidData, IsADirectory, UnexpectedEof};
    match reason {
        redb::Error::Io(reason) if matches!(reason.kind(), InvalidData | IsADirectory | UnexpectedEof) => {
            unreadable(file, reason)
        }
        redb::Error::Io(reason) => io_error(doing, file)(reason),
        redb::Error::DatabaseAlreadyOpen => {
            let dir = file.parent().unwrap_or(file).to_owned();
            StoreError::InUse { dir, holder: "another program that has its state.redb open".to_owned() }
        }
        reason => unreadable(file, reason),
    }
}

fn unreadable(file: &Path, reason: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Unreadable { file: file.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests;
