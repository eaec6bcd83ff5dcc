//! Puts tables into a page, between the marks `<!-- NAME -->` and `<!-- /NAME -->`, so that no figure is copied by
//! hand.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Replaces what stands between the marks; a page without them is left as it is, with an error.
pub(crate) fn put(file: &Path, name: &str, text: &str) -> Result<()> {
    let page = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let parts = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no marks for {name}", file.display()))?;
    let page = format!("{before}{begin}{}\n{end}{after}", text.trim_end());
    fs::write(file, page).with_context(|| format!("writing {}", file.display()))
}
