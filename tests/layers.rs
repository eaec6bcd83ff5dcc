//! The import rule of ARCHITECTURE.md: on the path a module sees only what is below it, and the ground.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic like the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// From top to bottom; a module may import what stands in a later row.
const ROWS: &[&[&str]] = &[
    &["cli"],
    &["demo"],
    &["run"],
    // Beside the path: they see the state and below, never each other.
    &["admin", "health", "listener"],
    &["http"],
    &["stream"],
    &["state"],
    &["router", "drain", "store"],
    &["service"],
    &["upstream"],
    &["tls"],
    &["roster", "net", "occupant", "quota"],
    // The ground knows nothing of the others.
    &["access", "metrics"],
    &["config", "error"],
];

#[test]
fn every_module_sees_only_what_is_below_it() {
    let rows: BTreeMap<&str, usize> =
        ROWS.iter().enumerate().flat_map(|(row, names)| names.iter().map(move |name| (*name, row))).collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files(&source) {
        let Some(module) = module_of(&source, &file) else { continue };
        let text = fs::read_to_string(&file).unwrap();
        let own = *rows.get(&*module).unwrap_or_else(|| panic!("{module} stands in no row"));
        for (line, used) in uses(&text) {
            seen += 1;
            let other = *rows.get(&*used).unwrap_or_else(|| panic!("{used} stands in no row"));
            if used != module && other <= own {
                wrong.push(format!("{}:{line}: {module} must not import {used}", file.display()));
            }
        }
    }
    assert!(seen > 50, "the test reads the wrong place: {seen} imports");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The top-level module of a file; `None` for `lib.rs` and `main.rs`, which see all.
fn module_of(source: &Path, file: &Path) -> Option<String> {
    let path = file.strip_prefix(source).unwrap().with_extension("");
    let name = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    (name != "lib" && name != "main").then_some(name)
}

/// The modules that the code outside comments names by `crate::`, with the lines.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (_, after) in code.match_indices("crate::").map(|(at, word)| (at, &code[at + word.len()..])) {
            let name: String = after.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
            if name.chars().next().is_some_and(char::is_lowercase) {
                found.push((number + 1, name));
            }
        }
    }
    found
}
