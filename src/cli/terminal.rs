//! What people see: colors where a terminal wants them, words for times, tables' cells.
//!
//! Text that somebody else wrote (reasons, actors, errors of origins) is made harmless before it is printed. A closed
//! standard output is no error: whoever closed it does not want to hear more.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::cli::variable;
use crate::config::Color;

/// How a piece of text stands out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Style {
    Bold,
    Dim,
    Good,
    Bad,
    Warn,
    Blue,
    Green,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Good => "32",
            Style::Bad => "1;31",
            Style::Warn => "33",
            Style::Blue => "1;38;5;69",
            Style::Green => "1;38;5;35",
        }
    }
}

impl From<Color> for Style {
    fn from(color: Color) -> Style {
        match color {
            Color::Blue => Style::Blue,
            Color::Green => Style::Green,
        }
    }
}

/// Puts escape sequences around text, or does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Paint {
    is_colored: bool,
}

impl Paint {
    /// For standard output: colors on a terminal, unless `NO_COLOR` says otherwise.
    pub(super) fn stdout() -> Paint {
        Paint { is_colored: is_colored(&io::stdout()) }
    }

    pub(super) fn stderr() -> Paint {
        Paint { is_colored: is_colored(&io::stderr()) }
    }

    #[cfg(test)]
    pub(super) fn plain() -> Paint {
        Paint { is_colored: false }
    }

    pub(super) fn is_colored(self) -> bool {
        self.is_colored
    }

    pub(super) fn paint(self, style: Style, text: &str) -> String {
        if !self.is_colored || text.trim().is_empty() {
            return text.to_owned();
        }
        format!("\x1b[{}m{text}\x1b[0m", style.code())
    }

    pub(super) fn color(self, color: Color) -> String {
        self.paint(color.into(), color.as_str())
    }
}

fn is_colored(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term != "dumb")
}

/// Writes to standard output at once.
pub(super) fn out(text: &str) {
    let mut stdout = io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

pub(super) fn err(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Columns and rows of the terminal on standard output.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// The text without what a terminal would take for a command.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The text in at most `width` columns; one that is longer ends in `…`.
pub(super) fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain((width > 0).then_some('…')).collect()
}

/// The text on lines of at most `width` columns, but for words that are longer than that; indented from the second on.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let has_words = !line.trim_start().is_empty();
        if has_words && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, "  ".to_owned()));
        } else if has_words {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// A short time as people read it: `412 µs`, `4.1 ms`, `2.0 s`.
pub(super) fn micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// A long time as people read it, in its largest unit: `24 s`, `3 min`, `5 h`, `12 d`.
pub(super) fn span(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..60 => format!("{secs} s"),
        secs @ 60..3_600 => format!("{} min", secs / 60),
        secs @ 3_600..172_800 => format!("{} h", secs / 3_600),
        secs => format!("{} d", secs / 86_400),
    }
}

/// A count in at most five columns.
pub(super) fn compact(count: u64) -> String {
    match count {
        0..100_000 => count.to_string(),
        100_000..10_000_000 => format!("{}k", count / 1_000),
        10_000_000..10_000_000_000 => format!("{}M", count / 1_000_000),
        _ => format!("{}G", count / 1_000_000_000),
    }
}

/// `1 service`, `2 services`.
pub(super) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_to_the_terminal_are_taken_out() {
        assert_eq!(harmless("a\x1b]0;b\x07c\u{9b}d\ne"), "a ]0;b c d e");
    }

    #[test]
    fn long_text_ends_in_an_ellipsis() {
        let fitted = [0, 1, 3, 4, 9].map(|width| fit("ééöö", width));
        assert_eq!(fitted, ["", "…", "éé…", "ééöö", "ééöö"]);
    }

    #[test]
    fn long_lines_break_between_words() {
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("to be or not to be", 9), ["to be or", "  not to", "  be"]);
        assert_eq!(wrap("to be or not to be", 8), ["to be or", "  not to", "  be"]);
        assert_eq!(wrap("incomprehensible a b", 4), ["incomprehensible", "  a", "  b"]);
        assert_eq!(wrap("a b", usize::MAX), ["a b"]);
    }

    #[test]
    fn times_have_a_fitting_unit() {
        assert_eq!([7, 999, 1000, 41_250, 2_000_000].map(micros), ["7 µs", "999 µs", "1.0 ms", "41.2 ms", "2.0 s"]);
        let spans = [59, 60, 7_199, 172_799, 172_800].map(|secs| span(Duration::from_secs(secs)));
        assert_eq!(spans, ["59 s", "1 min", "1 h", "47 h", "2 d"]);
    }

    #[test]
    fn counts_fit_a_column() {
        let shown = [0, 99_999, 100_000, 9_999_999, 10_000_000, 12_000_000_000].map(compact);
        assert_eq!(shown, ["0", "99999", "100k", "9999k", "10M", "12G"]);
    }

    #[test]
    fn plain_text_stays_plain() {
        assert_eq!(Paint::plain().paint(Style::Bad, "x"), "x");
        assert_eq!(Paint { is_colored: true }.color(Color::Blue), "\x1b[1;38;5;69mblue\x1b[0m");
    }
}
