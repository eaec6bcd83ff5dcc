//! The file as it was written: from a path or a text to a table, and to every problem on the way.
//!
//! Reads no more than [`LARGEST`] octets. Syntax is judged first, since what a broken line would have meant is a guess;
//! once it is sound, `meaning` reads the table and finds all the rest at once. Changes nothing anywhere.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, Error};

use crate::config::meaning;
use crate::config::reader::{Report, Table, position, quoted};
use crate::config::{Config, Problem, Problems};

/// Octets of the largest file that is read.
pub(crate) const LARGEST: u64 = 4 << 20;

/// Reads the config file at `path`, and the secrets that it names. Blocks as file systems do,
/// and a pipe until its writer is done.
///
/// # Errors
/// Every problem of the file; one of them at line 1 when it cannot be read at all.
pub fn load(path: &Path) -> Result<Config, Problems> {
    load_noting(path, &mut Vec::new())
}

/// As [`load`], and adds to `files` those that the file names and that belong to it, such as certificates, whether or not
/// they could be read.
///
/// # Errors
/// As [`load`].
pub fn load_noting(path: &Path, files: &mut Vec<PathBuf>) -> Result<Config, Problems> {
    let octets = read(path).map_err(|message| only_problem(path, (1, 1), message))?;
    let text = std::str::from_utf8(&octets).map_err(|error| {
        let at = error.valid_up_to();
        let message = format!("found the octet 0x{:02x}, expected text in UTF-8", octets[at]);
        only_problem(path, position(&octets, at), message)
    })?;
    parse_noting(text, path, files)
}

/// Reads a config from `text`; `path` only names it in problems.
///
/// # Errors
/// Every problem of the text, in its order.
pub fn parse(text: &str, path: &Path) -> Result<Config, Problems> {
    parse_noting(text, path, &mut Vec::new())
}

fn parse_noting(text: &str, path: &Path, files: &mut Vec<PathBuf>) -> Result<Config, Problems> {
    if text.len() as u64 > LARGEST {
        return Err(only_problem(path, (1, 1), too_large()));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let report = Report::new(text);
    let (entries, errors) = table(text);
    syntax(&report, text, &errors);
    let meant = entries.as_ref().map(|entries| Table::read_top(&report, entries.get_ref(), meaning::config));
    files.append(&mut report.take_files());
    report.finish(path)?;
    Ok(meant.expect("an error of syntax is in the report"))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "found no such file, expected a config file; name another with --config".to_owned(),
        _ => format!("found a file that cannot be read ({error}), expected a config file"),
    };
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err("found a directory, expected a config file".to_owned());
    }
    let mut octets = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut octets).map_err(unreadable)?;
    if octets.len() as u64 > LARGEST { Err(too_large()) } else { Ok(octets) }
}

fn too_large() -> String {
    format!("found more than {} MiB, expected a config file", LARGEST >> 20)
}

fn only_problem(path: &Path, (line, column): (usize, usize), message: String) -> Problems {
    Problems(vec![Problem { file: path.to_owned(), line, column, message }])
}

/// The table if it is whole, which it is when nothing was wrong but keys that stand twice.
fn table(text: &str) -> (Option<Spanned<DeTable<'_>>>, Vec<Error>) {
    /// The parser spends hundreds of octets on an error, so of a large text it is asked for one only.
    const SMALL: usize = 256 << 10;
    if text.len() > SMALL {
        return match DeTable::parse(text) {
            Ok(entries) => (Some(entries), Vec::new()),
            Err(error) => (None, vec![error]),
        };
    }
    let (entries, errors) = DeTable::parse_recoverable(text);
    (errors.iter().all(is_duplicate).then_some(entries), errors)
}

/// Reports the first error of each line: the others follow from it.
fn syntax(report: &Report<'_>, text: &str, errors: &[Error]) {
    let mut errors: Vec<_> = errors.iter().map(|error| (error.span().unwrap_or_default(), error)).collect();
    errors.sort_by_key(|(span, _)| span.start);
    let mut reported = 0;
    for (span, error) in errors {
        if span.start < reported {
            continue;
        }
        let found = text.get(span.clone()).unwrap_or_default().trim_end();
        report.add(span.start, || syntax_message(found, error));
        reported = next_line(text, span.start);
    }
}

/// Where the line after the one of `at` starts.
fn next_line(text: &str, at: usize) -> usize {
    let rest = text.as_bytes().get(at..).unwrap_or_default();
    memchr::memchr(b'\n', rest).map_or(usize::MAX, |length| at + length + 1)
}

fn syntax_message(found: &str, error: &Error) -> String {
    let message = error.message().trim_end_matches(", expected nothing");
    let is_bare = message.starts_with(UNQUOTED);
    match found {
        _ if is_duplicate(error) => {
            format!("found the key {} again, expected each key once in its table", quoted(found))
        }
        "" if is_bare => r#"found no value, expected one such as "text", 5, true or [1, 2]"#.to_owned(),
        _ if is_bare => format!("found a text without quotes, expected {}", quoted(found)),
        // What TOML takes an address for.
        _ if message.starts_with("invalid float") => format!("not TOML: {message}; an address needs quotes"),
        _ => format!("not TOML: {message}"),
    }
}

/// The parser's own words, as it has no kinds of errors; a test holds them.
const UNQUOTED: &str = "string values must be quoted";

fn is_duplicate(error: &Error) -> bool {
    error.message() == "duplicate key"
}
