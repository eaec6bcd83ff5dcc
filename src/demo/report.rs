//! What the terminal shows: what stands where, what happens when, the receipts, and one line per promise.
//!
//! Colors and the line that moves only on a terminal; nothing at all in between when the caller wants JSON.

use std::convert::Infallible;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::config::Color;
use crate::drain::KindReport;

use super::load::World;
use super::outcome::{Outcome, Percentiles, Promise, thousands};
use super::pipeline::Switched;

/// Time between two pictures of the line that moves.
const FRAME: Duration = Duration::from_millis(100);

/// Where the demo says what it does.
pub(super) struct Screen {
    mode: Mode,
    opened: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Colors, and a line that moves.
    Terminal,
    Plain,
    /// One document at the end.
    Json,
}

/// Escape sequences; nothing where there is no terminal.
#[derive(Clone, Copy)]
enum Style {
    Bold,
    Dim,
    Good,
    Bad,
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

impl Screen {
    pub(super) fn new(json: bool) -> Screen {
        let is_plain = !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|no| !no.is_empty());
        let mode = match (json, is_plain) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Plain,
            (false, false) => Mode::Terminal,
        };
        Screen { mode, opened: Instant::now() }
    }

    pub(super) fn open(&mut self, facts: &[(&str, String)]) {
        self.opened = Instant::now();
        self.line(&self.paint(Style::Bold, "\nteal demo: a small shop in two colors, one proxy, nobody dropped\n"));
        for (name, fact) in facts {
            self.line(&format!("  {} {fact}", self.paint(Style::Dim, &format!("{name:<8}"))));
        }
        self.line("");
    }

    /// Something happened now.
    pub(super) fn event(&self, color: Color, what: &str, note: &str) {
        let at = format!("{:5.2} s", self.opened.elapsed().as_secs_f64());
        let mark = self.paint(color.into(), "●");
        self.line(&format!("  {}  {mark} {what:<34} {}", self.paint(Style::Dim, &at), self.paint(Style::Dim, note)));
    }

    pub(super) fn switched(&self, switched: &Switched, what: &str) {
        self.event(switched.to, what, &format!("acknowledged in {}", micros(switched.call_us)));
    }

    /// Keeps one line moving with what the clients see; without a terminal it only waits.
    pub(super) async fn follow(&self, world: &World) -> Infallible {
        loop {
            sleep(FRAME).await;
            if self.mode == Mode::Terminal {
                let mark = world.course.color().map(|color| self.paint(color.into(), "●")).unwrap_or_default();
                self.write(&format!("\r\x1b[2K           {mark} {}", self.paint(Style::Dim, &progress(world))));
            }
        }
    }

    pub(super) fn close(&self, outcome: &Outcome, timeout: Duration) {
        self.receipts(outcome, timeout);
        self.promises(outcome);
        let (style, verdict) = match outcome.kept {
            true => (Style::Good, "every promise kept"),
            false => (Style::Bad, "not every promise was kept"),
        };
        self.line(&format!("\n  {}\n", self.paint(style, verdict)));
    }

    /// Prints a document, when that is what the caller wants.
    pub(super) fn document(&self, document: &impl Serialize) {
        if self.mode == Mode::Json {
            let json = serde_json::to_string_pretty(document).expect("strings, numbers and lists are always JSON");
            self.write(&format!("{json}\n"));
        }
    }

    /// How to go on by hand.
    pub(super) fn invite(&self, web: SocketAddr, admin: SocketAddr, outcome: &Outcome, config: &str) {
        self.line(&self.paint(Style::Bold, "  still running; leave with Ctrl-C"));
        self.line(&format!("\n  open in a browser   {}", self.paint(Style::Bold, &format!("http://{web}/"))));
        self.line("  try in another terminal");
        // As this process was called: not everybody who builds it has it in the search path.
        let teal = std::env::args().next().unwrap_or_else(|| "teal".to_owned());
        let receipt = outcome.switches.last().map(|switched| format!("receipt {}", switched.receipt.id));
        let others = ["switch web,api green", "status --watch", "rollback web,api"].map(str::to_owned);
        for command in others.into_iter().chain(receipt) {
            self.line(&format!("    {teal} {command} --admin {admin}"));
        }
        self.line(&self.paint(Style::Bold, "\n  its configuration"));
        config.lines().for_each(|line| self.line(&format!("    {line}")));
    }

    fn receipts(&self, outcome: &Outcome, timeout: Duration) {
        self.line(&self.paint(Style::Bold, "\n  receipts"));
        let columns = format!("{:<9} {:<20} {:<24} {:<24} websocket", "", "took / call", "http", "sse");
        self.line(&format!("  {}", self.paint(Style::Dim, &columns)));
        outcome.switches.iter().for_each(|switched| self.receipt(switched));
        let cut = outcome.streams_cut();
        if cut > 0 {
            let note = format!("{cut} streams ran on in the old color until drain.timeout ({timeout:?}) cut them");
            self.line(&format!("  {}", self.paint(Style::Dim, &note)));
        }
    }

    fn receipt(&self, switched: &Switched) {
        let Some(drain) = &switched.receipt.drain else { return };
        let times = format!("{} / {}", micros(switched.receipt.took_us), micros(switched.call_us));
        let [http, sse, websocket] = [drain.http, drain.sse, drain.websocket].map(|kind| ends(&kind));
        let to = self.paint(switched.to.into(), &format!("to {:<6}", switched.to));
        self.line(&format!("  {to} {times:<20} {http:<24} {sse:<24} {websocket}"));
    }

    fn promises(&self, outcome: &Outcome) {
        self.line(&self.paint(Style::Bold, "\n  promises"));
        outcome.promises.iter().for_each(|promise| self.promise(promise));
        self.acknowledgements(&outcome.switches);
        self.latency("reads", outcome.steady);
        self.latency("reads within 100 ms of a switch", outcome.near_switch);
        if let Some(trouble) = &outcome.trouble {
            self.line(&format!("  first trouble: {trouble}"));
        }
    }

    fn promise(&self, promise: &Promise) {
        let mark = if promise.kept { self.paint(Style::Good, "✓") } else { self.paint(Style::Bad, "✗") };
        self.line(&format!("  {mark} {:<72} {}", promise.text, self.paint(Style::Dim, &promise.detail)));
    }

    fn acknowledgements(&self, switches: &[Switched]) {
        let each: Vec<String> =
            switches.iter().map(|switched| format!("to {} in {}", switched.to, micros(switched.call_us))).collect();
        self.line(&format!("  · switches acknowledged: {}", each.join(", ")));
    }

    fn latency(&self, what: &str, percentiles: Percentiles) {
        if let Percentiles { p50_us: Some(p50), p99_us: Some(p99) } = percentiles {
            self.line(&format!("  · {what}: p50 {}, p99 {}", micros(p50), micros(p99)));
        }
    }

    fn line(&self, text: &str) {
        let text = text.trim_end_matches(' ');
        match self.mode {
            Mode::Terminal => self.write(&format!("\r\x1b[2K{text}\n")),
            Mode::Plain => self.write(&format!("{text}\n")),
            Mode::Json => {}
        }
    }

    fn write(&self, text: &str) {
        // Whoever closed our standard output does not want to hear more, and the exit code says the rest.
        let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
    }

    fn paint(&self, style: Style, text: &str) -> String {
        match self.mode {
            Mode::Terminal if !text.is_empty() => format!("\x1b[{}m{text}\x1b[0m", style.code()),
            _ => text.to_owned(),
        }
    }
}

fn progress(world: &World) -> String {
    let tally = &world.tally;
    format!(
        "{} requests, {} failed · {} chat messages, {} alarms heard",
        thousands(tally.requests.count()),
        thousands(tally.failed.count()),
        thousands(tally.chat.sent.count()),
        thousands(tally.alarms.received.count()),
    )
}

fn ends(kind: &KindReport) -> String {
    let open = if kind.open > 0 { format!(" + {} open", kind.open) } else { String::new() };
    let kept = if kind.kept > 0 { format!(" + {} kept", kind.kept) } else { String::new() };
    format!("{} = {} done{kept} + {} cut{open}", kind.at_switch, kind.finished, kind.cut)
}

/// A time as people read it: `412 µs`, `4.1 ms`.
fn micros(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_fitting_unit() {
        assert_eq!([7, 999, 1000, 41_250, 2_000_000].map(micros), ["7 µs", "999 µs", "1.0 ms", "41.2 ms", "2.0 s"]);
    }

    #[test]
    fn ends_add_up_for_the_reader() {
        let kind = KindReport { open: 1, at_switch: 12, finished: 9, kept: 0, cut: 2 };
        assert_eq!(ends(&kind), "12 = 9 done + 2 cut + 1 open");
        let kind = KindReport { open: 0, at_switch: 12, finished: 9, kept: 3, cut: 0 };
        assert_eq!(ends(&kind), "12 = 9 done + 3 kept + 0 cut");
    }
}
