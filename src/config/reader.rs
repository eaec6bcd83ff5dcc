//! Walks a TOML table key by key and remembers what is wrong with it.
//!
//! The code that asks for a key *is* the list of known keys: what nobody asked for is reported as unknown when the
//! table has been read. A wrong value is reported and its default used, so that reading goes on and one run finds
//! every problem. Knows no key by name and nothing of what values mean.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::problem::{Problem, Problems};

/// What would have been right, in the operator's words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected {0}")]
pub struct Expected(pub Cow<'static, str>);

impl From<&'static str> for Expected {
    fn from(words: &'static str) -> Expected {
        Expected(Cow::Borrowed(words))
    }
}

impl From<String> for Expected {
    fn from(words: String) -> Expected {
        Expected(Cow::Owned(words))
    }
}

/// Problems kept of one file; those beyond are counted only.
const MOST_PROBLEMS: usize = 100;

/// The problems of one file, by byte offset.
pub(crate) struct Report<'t> {
    text: &'t str,
    problems: RefCell<Vec<(usize, String)>>,
    /// The files that it names and that were read with it, or should have been.
    files: RefCell<Vec<PathBuf>>,
    beyond: Cell<usize>,
}

impl<'t> Report<'t> {
    pub(crate) fn new(text: &'t str) -> Report<'t> {
        Report { text, problems: RefCell::default(), files: RefCell::default(), beyond: Cell::new(0) }
    }

    /// The message is made only while there is room for it, so a hostile file cannot make this slow.
    pub(crate) fn add(&self, at: usize, message: impl FnOnce() -> String) {
        if self.problems.borrow().len() == MOST_PROBLEMS {
            self.beyond.set(self.beyond.get() + 1);
            return;
        }
        let message = message();
        self.problems.borrow_mut().push((at, message));
    }

    pub(crate) fn take_files(&self) -> Vec<PathBuf> {
        self.files.take()
    }

    /// `Ok` when nothing was wrong.
    pub(crate) fn finish(self, file: &Path) -> Result<(), Problems> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(at, _)| *at);
        if let (1.., Some((at, _))) = (self.beyond.get(), problems.last()) {
            let more = format!("{} more problems, shown when these are gone", self.beyond.get());
            problems.push((*at, more));
        }
        if problems.is_empty() {
            return Ok(());
        }
        let place = |(at, message)| {
            let (line, column) = position(self.text.as_bytes(), at);
            Problem { file: file.to_owned(), line, column, message }
        };
        Err(Problems(problems.into_iter().map(place).collect()))
    }

    pub(crate) fn line(&self, at: usize) -> usize {
        position(self.text.as_bytes(), at).0
    }

    fn found(&self, value: &Spanned<DeValue<'_>>) -> String {
        match value.get_ref() {
            DeValue::String(text) => quoted(text),
            DeValue::Array(_) => "an array".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
            _ => cut(self.text.get(value.span()).unwrap_or("a value")).into_owned(),
        }
    }
}

/// Line and column of a byte offset, both from 1, the column in characters.
pub(crate) fn position(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line_start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    let line = memchr::memchr_iter(b'\n', before).count() + 1;
    let is_first_of_char = |octet: &&u8| **octet & 0xC0 != 0x80;
    (line, before[line_start..].iter().filter(is_first_of_char).count() + 1)
}

/// The text in quotes, cut where it gets long.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text))
}

fn cut(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// The candidate that `word` is probably a misspelling of.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let distance = |candidate: &'c str| (strsim::osa_distance(word, candidate), candidate);
    let (distance, candidate) = candidates.into_iter().map(distance).min_by_key(|(distance, _)| *distance)?;
    (distance <= candidate.len() / 3).then_some(candidate)
}

/// The words as one line, cut where it gets long.
pub(crate) fn listed<'c>(words: impl ExactSizeIterator<Item = &'c str>) -> String {
    const MOST: usize = 24;
    let more = words.len().saturating_sub(MOST);
    let shown = words.take(MOST).collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// One table while it is read; absent ones read as empty.
pub(crate) struct Table<'r> {
    report: &'r Report<'r>,
    parent: Option<&'r Table<'r>>,
    /// Dotted, as a key of this table would be written at the top level; empty for the top level itself.
    name: String,
    /// How the operator calls it: `[admin]`, `[[routes]]`.
    title: String,
    /// Where a missing key is reported.
    at: usize,
    entries: Option<&'r DeTable<'r>>,
    known: Vec<&'static str>,
    /// Known, but not built yet: never offered in a list.
    later: Vec<&'static str>,
}

impl<'r> Table<'r> {
    /// Reads a whole document.
    pub(crate) fn read_top<T>(
        report: &'r Report<'r>,
        entries: &'r DeTable<'r>,
        read: impl FnOnce(&mut Table<'r>) -> T,
    ) -> T {
        let top = Table {
            report,
            parent: None,
            name: String::new(),
            title: "the top level".to_owned(),
            at: 0,
            entries: Some(entries),
            known: Vec::new(),
            later: Vec::new(),
        };
        top.read(read)
    }

    /// Where the table stands in the file.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    /// Whether `key` is absent or an empty array.
    pub(crate) fn is_empty(&self, key: &str) -> bool {
        let value = self.entries.and_then(|entries| entries.get(key));
        value.is_none_or(|value| value.get_ref().as_array().is_some_and(|items| items.is_empty()))
    }

    /// What `kind` makes of the value of `key`; `default` when it is absent or wrong.
    pub(crate) fn value<T>(
        &mut self,
        key: &'static str,
        default: T,
        kind: impl FnOnce(&DeValue<'_>) -> Result<T, Expected>,
    ) -> T {
        self.optional(key, kind).map_or(default, Spanned::into_inner)
    }

    /// What `kind` makes of the value of `key`; `None` when it is absent or wrong.
    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        kind: impl FnOnce(&DeValue<'_>) -> Result<T, Expected>,
    ) -> Option<Spanned<T>> {
        let value = self.take(key)?;
        self.judge(key, value, kind)
    }

    /// As [`Table::optional`], and absence is a problem; `example` says what should be there.
    pub(crate) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        kind: impl FnOnce(&DeValue<'_>) -> Result<T, Expected>,
    ) -> Option<Spanned<T>> {
        if !self.has(key) {
            self.report.add(self.at, || format!("{} is missing, expected {example}", self.path(key)));
        }
        self.optional(key, kind)
    }

    /// What `kind` makes of each item of the array `key`; without those that are wrong.
    pub(crate) fn list<T>(
        &mut self,
        key: &'static str,
        kind: impl Fn(&DeValue<'_>) -> Result<T, Expected>,
    ) -> Vec<Spanned<T>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            self.wrong(key, value, array_expected(self.report.found(value), value.get_ref()));
            return Vec::new();
        };
        items.iter().filter_map(|item| self.judge(key, item, &kind)).collect()
    }

    /// As [`Table::list`], but a single value may stand without brackets and there must be one; `None` when absent.
    pub(crate) fn one_or_more<T>(
        &mut self,
        key: &'static str,
        kind: impl Fn(&DeValue<'_>) -> Result<T, Expected>,
    ) -> Option<Spanned<Vec<T>>> {
        let value = self.take(key)?;
        let items = match value.get_ref().as_array() {
            None => std::slice::from_ref(value),
            Some(items) if items.is_empty() => {
                self.report.add(value.span().start, || format!("{}: found [], expected at least one", self.path(key)));
                return None;
            }
            Some(items) => items,
        };
        let meant = items.iter().filter_map(|item| self.judge(key, item, &kind)).map(Spanned::into_inner).collect();
        Some(Spanned::new(value.span(), meant))
    }

    /// Reads the table `key`, as if empty when it is absent or not a table.
    pub(crate) fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'_>) -> T) -> T {
        let path = self.path(key);
        let value = self.take(key);
        let entries = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, entries) {
            self.wrong(key, value, format!("a table: [{path}] or {key} = {{ … }}").into());
        }
        let at = value.map_or(self.at, |value| value.span().start);
        self.below(path.clone(), format!("[{path}]"), at, entries).read(read)
    }

    /// As [`Table::table`], but `word` may stand instead of a table: `None`.
    pub(crate) fn table_or_word<T>(
        &mut self,
        key: &'static str,
        word: &'static str,
        read: impl FnOnce(&mut Table<'_>) -> T,
    ) -> Option<T> {
        let value = self.entries.and_then(|entries| entries.get(key));
        match value.map(Spanned::get_ref).and_then(DeValue::as_str) {
            Some(text) if text == word => {
                self.known.push(key);
                None
            }
            Some(_) => {
                let path = self.path(key);
                self.optional(key, |_| Err::<(), _>(format!("{word:?}, or a table: [{path}]").into()));
                None
            }
            None => Some(self.table(key, read)),
        }
    }

    /// Reads each table of the array `[[key]]`.
    pub(crate) fn tables<T>(&mut self, key: &'static str, read: impl Fn(&mut Table<'_>) -> T) -> Vec<T> {
        let title = format!("[[{}]]", self.path(key));
        let Some(value) = self.take(key) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            self.wrong(key, value, format!("an array of tables, each under a header {title}").into());
            return Vec::new();
        };
        let read_one = |item: &Spanned<DeValue<'r>>| {
            let Some(entries) = item.get_ref().as_table() else {
                self.wrong(key, item, format!("a table under a header {title}").into());
                return None;
            };
            Some(self.below(self.path(key), title.clone(), item.span().start, Some(entries)).read(&read))
        };
        items.iter().filter_map(read_one).collect()
    }

    /// Reads each table of the table `key`, whose keys are names that the operator chose.
    pub(crate) fn named<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str, &mut Table<'_>) -> T,
    ) -> Vec<(Spanned<Arc<str>>, T)> {
        let path = self.path(key);
        let Some(value) = self.take(key) else { return Vec::new() };
        let Some(entries) = value.get_ref().as_table() else {
            self.wrong(key, value, format!("a table for each of its names: [{path}.NAME]").into());
            return Vec::new();
        };
        let read_one = |(key, value): (&Spanned<Cow<'r, str>>, &Spanned<DeValue<'r>>)| {
            let name = key.get_ref();
            let below = format!("{path}.{}", cut(name));
            let title = format!("[{below}]");
            let Some(entries) = value.get_ref().as_table() else {
                self.refuse(&below, value, format!("a table: {title}").into());
                return None;
            };
            let table = self.below(below, title, value.span().start, Some(entries));
            Some((Spanned::new(key.span(), name.as_ref().into()), table.read(|table| read(name, table))))
        };
        entries.iter().filter_map(read_one).collect()
    }

    /// A key that a later version will have: refused, never ignored. `why` says what to do without it.
    pub(crate) fn later(&mut self, key: &'static str, why: &str) {
        self.later.push(key);
        if let Some(value) = self.entries.and_then(|entries| entries.get(key)) {
            self.wrong(key, value, format!("no such key: {why}").into());
        }
    }

    /// Reports `key`, whose value may be fine in itself but not beside the others.
    pub(crate) fn conflict(&self, key: &str, message: impl FnOnce() -> String) {
        let at = self.entries.and_then(|entries| entries.get(key)).map_or(self.at, |value| value.span().start);
        self.conflict_at(at, key, message);
    }

    /// Remembers that a file belongs to the config: a change of it is a change of the config.
    pub(crate) fn reads(&self, file: &Path) {
        self.report.files.borrow_mut().push(file.to_owned());
    }

    /// As [`Table::conflict`], at a place of its own.
    pub(crate) fn conflict_at(&self, at: usize, key: &str, message: impl FnOnce() -> String) {
        self.report.add(at, || format!("{}: {}", self.path(key), message()));
    }

    /// Reports `value` if `seen` has it already, else remembers it.
    pub(crate) fn once<T: Hash + Eq>(&self, key: &str, shown: &str, value: Spanned<T>, seen: &mut HashMap<T, usize>) {
        let at = value.span().start;
        match seen.entry(value.into_inner()) {
            Entry::Vacant(free) => {
                free.insert(at);
            }
            Entry::Occupied(first) => self.conflict_at(at, key, || {
                let line = self.report.line(*first.get());
                format!("found {shown} again, expected it once; line {line} has it")
            }),
        }
    }

    fn below<'b>(&'b self, name: String, title: String, at: usize, entries: Option<&'b DeTable<'b>>) -> Table<'b>
    where
        'r: 'b,
    {
        Table {
            report: self.report,
            parent: Some(self),
            name,
            title,
            at,
            entries,
            known: Vec::new(),
            later: Vec::new(),
        }
    }

    fn read<T>(mut self, read: impl FnOnce(&mut Table<'r>) -> T) -> T {
        let meant = read(&mut self);
        for key in self.entries.into_iter().flat_map(DeTable::keys) {
            let name = key.get_ref();
            if !self.known.contains(&&**name) && !self.later.contains(&&**name) {
                self.report.add(key.span().start, || self.unknown(name));
            }
        }
        meant
    }

    fn unknown(&self, key: &str) -> String {
        let known = listed(self.known.iter().copied());
        let place = if self.name.is_empty() { "at" } else { "in" };
        let problem = format!("unknown key {} {place} {}, expected one of {known}", quoted(key), self.title);
        if let Some(owner) = self.above_knows(key) {
            return format!("{problem}; {key:?} is a key of {owner}: move it there, before the next header");
        }
        match nearest(key, self.known.iter().chain(&self.later).copied()) {
            Some(meant) => format!("{problem}; did you mean {meant:?}?"),
            None => problem,
        }
    }

    /// In TOML a key belongs to the last header above it, which is easily forgotten.
    fn above_knows(&self, key: &str) -> Option<&str> {
        let parent = self.parent?;
        if parent.known.contains(&key) { Some(&parent.title) } else { parent.above_knows(key) }
    }

    fn take(&mut self, key: &'static str) -> Option<&'r Spanned<DeValue<'r>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entries?.get(key)
    }

    fn judge<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        kind: impl FnOnce(&DeValue<'_>) -> Result<T, Expected>,
    ) -> Option<Spanned<T>> {
        match kind(value.get_ref()) {
            Ok(meant) => Some(Spanned::new(value.span(), meant)),
            Err(expected) => {
                self.wrong(key, value, expected);
                None
            }
        }
    }

    fn wrong(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: Expected) {
        self.refuse(&self.path(key), value, expected);
    }

    fn refuse(&self, path: &str, value: &Spanned<DeValue<'_>>, expected: Expected) {
        self.report.add(value.span().start, || format!("{path}: found {}, {expected}", self.report.found(value)));
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

fn array_expected(found: String, value: &DeValue<'_>) -> Expected {
    match value {
        DeValue::String(_) => format!("an array: [{found}]").into(),
        _ => "an array of strings".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a\nbü = c\n".as_bytes();
        for (at, place) in [(0, (1, 1)), (1, (1, 2)), (2, (2, 1)), (3, (2, 2)), (5, (2, 3)), (10, (3, 1)), (99, (3, 1))]
        {
            assert_eq!(position(text, at), place, "{at}");
        }
    }

    #[test]
    fn only_a_likely_misspelling_is_recognised() {
        let known = ["listen", "tls", "http2"];
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("tsl", known), Some("tls"));
        assert_eq!(nearest("http", known), Some("http2"));
        assert_eq!(nearest("workers", known), None);
        assert_eq!(nearest("lsn", known), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn what_is_long_is_cut() {
        assert_eq!(quoted("a \"b\"\n"), r#""a \"b\"\n""#);
        assert_eq!(quoted(&"ü".repeat(61)), format!("\"{}…\"", "ü".repeat(60)));
        assert_eq!(listed(["a", "b"].into_iter()), "a, b");
        assert!(listed(["a"; 30].into_iter()).ends_with("a, a and 6 more"));
    }

    #[test]
    fn what_nobody_asked_for_is_unknown() {
        let text = "a = 1\nb = 2\n";
        let report = Report::new(text);
        let entries = DeTable::parse(text).expect("TOML of the test is good");
        let read = |table: &mut Table<'_>| table.optional("a", |_| Ok(())).is_some();
        assert!(Table::read_top(&report, entries.get_ref(), read));
        let Problems(found) = report.finish(Path::new("f")).expect_err("b is unknown");
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["f:2:1: unknown key \"b\" at the top level, expected one of a"]);
    }
}
