//! `teal status`: what a running proxy does, once or every second.
//!
//! `--watch` redraws in place on the terminal's other screen, and leaves the terminal as it was, whatever ends it.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::admin::status::{ServiceStatus, Status};
use crate::cli::client::{Client, ClientError, segment};
use crate::cli::place::Access;
use crate::cli::table::Look;
use crate::cli::terminal::{Paint, out, size, span};
use crate::cli::{Failure, Global, Remote, block_on, pretty};

const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two pictures.
const FRAME: Duration = Duration::from_secs(1);

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// Only this service, with its endpoints
    service: Option<String>,
    /// Print it as JSON
    #[arg(long, conflicts_with = "watch")]
    pub(super) json: bool,
    /// Redraw every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    remote: Remote,
}

/// # Errors
/// When there is no such service, or the proxy cannot be reached.
pub(super) fn status(global: &Global, options: &Options) -> Result<(), Failure> {
    if options.watch && !io::stdout().is_terminal() {
        return Err(Failure::Usage("--watch redraws a terminal, and standard output is none".to_owned()));
    }
    let client = Client::new(Access::find(global, &options.remote)?, PATIENCE);
    block_on(async {
        let facts = Facts::fetch(&client, options).await?;
        match options {
            Options { watch: true, .. } => watch(&client, options, facts).await?,
            Options { json: true, .. } => out(&facts.json()),
            _ => out(&(facts.lines().join("\n") + "\n")),
        }
        Ok(())
    })
}

/// What the API says.
enum Facts {
    Whole(Status),
    One(Box<ServiceStatus>),
}

impl Facts {
    async fn fetch(client: &Client, options: &Options) -> Result<Facts, ClientError> {
        Ok(match &options.service {
            Some(name) => Facts::One(Box::new(client.get(&format!("/v1/services/{}", segment(name))).await?)),
            None => Facts::Whole(client.get("/v1/status").await?),
        })
    }

    fn json(&self) -> String {
        match self {
            Facts::Whole(status) => pretty(status),
            Facts::One(service) => pretty(&**service),
        }
    }

    fn lines(&self) -> Vec<String> {
        let look = look();
        match self {
            Facts::Whole(status) => look.whole(status),
            Facts::One(service) => look.one(service),
        }
    }
}

/// As standard output can show it now.
fn look() -> Look {
    Look { paint: Paint::stdout(), width: size().map(|(columns, _)| columns), now: SystemTime::now() }
}

async fn watch(client: &Client, options: &Options, mut facts: Facts) -> anyhow::Result<()> {
    let mut leave = Leave::new().context("no signal handler")?;
    let mut resized = signal(SignalKind::window_change()).context("no signal handler")?;
    let (mut seen, mut trouble) = (Instant::now(), None);
    let screen = Screen::open();
    loop {
        screen.draw(&picture(&facts, trouble.as_ref(), seen));
        let next = async {
            sleep(FRAME).await;
            Facts::fetch(client, options).await
        };
        tokio::select! {
            () = leave.come() => return Ok(()),
            // Loses a picture that is on its way; the next is not far.
            _ = resized.recv() => {}
            next = next => match next {
                Ok(next) => (facts, seen, trouble) = (next, Instant::now(), None),
                Err(error) => trouble = Some(error),
            },
        }
    }
}

fn picture(facts: &Facts, trouble: Option<&ClientError>, seen: Instant) -> Vec<String> {
    let mut lines = facts.lines();
    if let Some(error) = trouble {
        let alarm = format!("{error}; what follows is {} old", span(seen.elapsed()));
        lines.splice(0..0, look().alarm(&alarm));
    }
    lines
}

/// The terminal's other screen; dropping it goes back to the first.
struct Screen;

impl Screen {
    fn open() -> Screen {
        // The other screen, no cursor, no wrapping.
        out("\x1b[?1049h\x1b[?25l\x1b[?7l");
        Screen
    }

    fn draw(&self, lines: &[String]) {
        out(&frame(lines, size().map_or(24, |(_, rows)| rows)));
    }
}

/// Writes over what is there, in one go and without clearing first: nothing flickers.
fn frame(lines: &[String], rows: usize) -> String {
    let mut text = String::from("\x1b[?2026h\x1b[H");
    for (row, line) in lines.iter().take(rows).enumerate() {
        let more = lines.len() - row;
        let is_cut = row + 1 == rows && more > 1;
        // Erased before it is written: after a full line the cursor stands on its last character.
        text += if row == 0 { "\x1b[K" } else { "\r\n\x1b[K" };
        text += &if is_cut { format!("… {more} more lines; the terminal is too short") } else { line.clone() };
    }
    let below = if lines.len() < rows { "\r\n\x1b[J" } else { "" };
    text + below + "\x1b[?2026l"
}

impl Drop for Screen {
    fn drop(&mut self) {
        out("\x1b[?7h\x1b[?25h\x1b[?1049l");
    }
}

/// The signals that end the watching.
struct Leave([Signal; 3]);

impl Leave {
    fn new() -> io::Result<Leave> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Leave([interrupt?, terminate?, hangup?]))
    }

    async fn come(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(count: usize, rows: usize) -> Vec<String> {
        let lines: Vec<String> = (0..count).map(|n| n.to_string()).collect();
        let frame = frame(&lines, rows);
        let inner = frame.strip_prefix("\x1b[?2026h\x1b[H").and_then(|frame| frame.strip_suffix("\x1b[?2026l"));
        inner.unwrap().split("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn each_line_is_erased_before_it_is_written() {
        assert_eq!(drawn(2, 3), ["\x1b[K0", "\x1b[K1", "\x1b[J"]);
    }

    #[test]
    fn full_screen_does_not_scroll() {
        assert_eq!(drawn(2, 2), ["\x1b[K0", "\x1b[K1"]);
        assert_eq!(drawn(5, 2), ["\x1b[K0", "\x1b[K… 4 more lines; the terminal is too short"]);
    }
}
