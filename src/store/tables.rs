//! The tables of the state file, and the only code that knows their rows.
//!
//! Every transaction has a revision, one higher than the last. It numbers the receipts, so that a clock set back cannot
//! reorder them, and it tells whether a transaction whose commit failed is in the file all the same.

use std::collections::BTreeMap;

use redb::{Database, ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};

use super::{Entry, RECEIPTS_KEPT};

/// The version of the tables below. A file of a higher one is refused.
pub(super) const FORMAT: u64 = 1;

/// `format` and `revision`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Name to [`Stored`](super::Stored) as JSON.
const SERVICES: TableDefinition<'_, &str, &str> = TableDefinition::new("services");
/// Revision to (id, idempotency key or nothing, JSON).
const RECEIPTS: TableDefinition<'_, u64, (&str, &str, &str)> = TableDefinition::new("receipts");
/// Receipt id to revision.
const REVISIONS: TableDefinition<'_, &str, u64> = TableDefinition::new("revisions");
/// Idempotency key to (fingerprint, revision).
const KEYS: TableDefinition<'_, &str, (&str, u64)> = TableDefinition::new("keys");

/// Runs `body` as one transaction that is on disk when this returns.
pub(super) fn transact(
    db: &Database,
    revision: u64,
    body: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let mut txn = db.begin_write()?;
    // A second sync, 70 µs: without it a commit whose only sync failed may be in the file, and damage to the newest
    // commit would silently bring back the one before instead of being an error.
    txn.set_two_phase_commit(true);
    body(&txn)?;
    txn.open_table(META)?.insert("revision", revision)?;
    Ok(txn.commit()?)
}

/// Makes every table of an empty database.
pub(super) fn create(db: &Database) -> Result<(), redb::Error> {
    transact(db, 0, |txn| {
        txn.open_table(META)?.insert("format", FORMAT)?;
        txn.open_table(SERVICES)?;
        Receipts::open(txn)?;
        Ok(())
    })
}

pub(super) fn format(txn: &ReadTransaction) -> Result<u64, redb::Error> {
    meta(txn, "format")
}

pub(super) fn revision(txn: &ReadTransaction) -> Result<u64, redb::Error> {
    meta(txn, "revision")
}

pub(super) fn services(txn: &ReadTransaction) -> Result<BTreeMap<String, String>, redb::Error> {
    let mut services = BTreeMap::new();
    for row in txn.open_table(SERVICES)?.iter()? {
        let (name, json) = row?;
        services.insert(name.value().to_owned(), json.value().to_owned());
    }
    Ok(services)
}

pub(super) fn receipt(txn: &ReadTransaction, id: &str) -> Result<Option<String>, redb::Error> {
    let Some(revision) = txn.open_table(REVISIONS)?.get(id)? else { return Ok(None) };
    let receipt = txn.open_table(RECEIPTS)?.get(revision.value())?;
    Ok(receipt.map(|row| row.value().2.to_owned()))
}

pub(super) fn newest_receipts(txn: &ReadTransaction, limit: usize) -> Result<Vec<String>, redb::Error> {
    let receipts = txn.open_table(RECEIPTS)?;
    receipts.iter()?.rev().take(limit).map(|row| Ok(row?.1.value().2.to_owned())).collect()
}

pub(super) fn key(txn: &ReadTransaction, key: &str) -> Result<Option<(String, String)>, redb::Error> {
    let Some(row) = txn.open_table(KEYS)?.get(key)? else { return Ok(None) };
    let (fingerprint, revision) = row.value();
    let receipt = txn.open_table(RECEIPTS)?.get(revision)?;
    Ok(receipt.map(|receipt| (fingerprint.to_owned(), receipt.value().0.to_owned())))
}

pub(super) fn put_services<'a>(
    txn: &WriteTransaction,
    services: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<(), redb::Error> {
    let mut table = txn.open_table(SERVICES)?;
    for (name, json) in services {
        table.insert(name.as_str(), json.as_str())?;
    }
    Ok(())
}

pub(super) fn clear_services(txn: &WriteTransaction) -> Result<(), redb::Error> {
    Ok(txn.open_table(SERVICES)?.retain(|_, _| false)?)
}

/// The tables of receipts, which change together.
pub(super) struct Receipts<'t> {
    receipts: Table<'t, u64, (&'static str, &'static str, &'static str)>,
    revisions: Table<'t, &'static str, u64>,
    keys: Table<'t, &'static str, (&'static str, u64)>,
}

impl<'t> Receipts<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Receipts<'t>, redb::Error> {
        Ok(Receipts {
            receipts: txn.open_table(RECEIPTS)?,
            revisions: txn.open_table(REVISIONS)?,
            keys: txn.open_table(KEYS)?,
        })
    }

    /// Adds the newest receipt and the (key, fingerprint) of the request that it answers; drops what is too many.
    pub(super) fn add(&mut self, revision: u64, receipt: &Entry, key: Option<(&str, &str)>) -> Result<(), redb::Error> {
        if let Some(known) = self.revision(&receipt.id)? {
            self.forget(known)?;
        }
        let (key, fingerprint) = key.unwrap_or_default();
        self.receipts.insert(revision, (receipt.id.as_str(), key, receipt.json.as_str()))?;
        self.revisions.insert(receipt.id.as_str(), revision)?;
        if !key.is_empty() {
            self.keys.insert(key, (fingerprint, revision))?;
        }
        self.prune()
    }

    pub(super) fn put(&mut self, revision: u64, receipt: &Entry) -> Result<(), redb::Error> {
        let Some(known) = self.revision(&receipt.id)? else {
            return self.add(revision, receipt, None);
        };
        let key = self.receipts.get(known)?.map(|row| row.value().1.to_owned()).unwrap_or_default();
        self.receipts.insert(known, (receipt.id.as_str(), key.as_str(), receipt.json.as_str()))?;
        Ok(())
    }

    pub(super) fn forget(&mut self, revision: u64) -> Result<(), redb::Error> {
        let Some(row) = self.receipts.remove(revision)? else { return Ok(()) };
        let (id, key, _) = row.value();
        self.revisions.remove(id)?;
        // A key that was used again answers with the newer receipt.
        let is_ours = self.keys.get(key)?.is_some_and(|row| row.value().1 == revision);
        if is_ours {
            self.keys.remove(key)?;
        }
        Ok(())
    }

    fn revision(&self, id: &str) -> Result<Option<u64>, redb::Error> {
        Ok(self.revisions.get(id)?.map(|revision| revision.value()))
    }

    fn prune(&mut self) -> Result<(), redb::Error> {
        while self.receipts.len()? > RECEIPTS_KEPT as u64 {
            let Some(oldest) = self.receipts.first()?.map(|(revision, _)| revision.value()) else { break };
            self.forget(oldest)?;
        }
        Ok(())
    }
}

fn meta(txn: &ReadTransaction, name: &str) -> Result<u64, redb::Error> {
    let value = txn.open_table(META)?.get(name)?.map(|value| value.value());
    value.ok_or_else(|| redb::Error::Corrupted(format!("no {name}")))
}
