//! The end of a drain, as people follow it and as they read it afterwards.
//!
//! Follows a drain by the id of its receipt: the *newest* drain of a service may be another one by then.

use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, timeout_at};

use crate::cli::Failure;
use crate::cli::client::{Client, ClientError, segment};
use crate::cli::terminal::{Paint, Style, err, fit, micros, size, span};
use crate::drain::{DrainReport, DrainState, KindReport};
use crate::state::Receipt;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// How long past the deadline the last look may take.
const GRACE: Duration = Duration::from_secs(1);

/// Waits until the drain of `receipt` is over, and keeps the receipt up to date meanwhile.
///
/// # Errors
/// When it is not over at the deadline, or nobody could say so.
pub(super) async fn follow(client: &Client, receipt: &mut Receipt, deadline: Instant) -> Result<(), Failure> {
    let line = Line::new();
    let target = format!("/v1/receipts/{}", segment(&receipt.id));
    let mut silence = None;
    while is_open(receipt) {
        line.show(receipt);
        let now = Instant::now();
        if now >= deadline {
            line.clear();
            return Err(Failure::NotDrained(left(receipt, silence.as_ref())));
        }
        sleep(LOOK.min(deadline - now)).await;
        match timeout_at(deadline + GRACE, client.get(&target)).await {
            Ok(Ok(next)) => (*receipt, silence) = (next, None),
            // The switch is done: a proxy that is silent for a moment is asked again.
            Ok(Err(error)) => silence = Some(error),
            Err(_) => {}
        }
    }
    line.clear();
    if receipt.drain.as_ref().is_some_and(|drain| drain.state == DrainState::Kept) {
        let id = &receipt.id;
        return Err(Failure::NotDrained(format!(
            "switched, and back since: the old color is active again (receipt {id})"
        )));
    }
    Ok(())
}

/// Whether the drain of a receipt is under way.
pub(super) fn is_open(receipt: &Receipt) -> bool {
    receipt.drain.as_ref().is_some_and(|drain| drain.state == DrainState::Draining)
}

/// What is open now, in words: `12 http · 100 sse`.
pub(super) fn open_now(drain: &DrainReport) -> String {
    let open: Vec<String> = kinds(drain)
        .into_iter()
        .filter(|(_, report)| report.open > 0)
        .map(|(kind, report)| format!("{} {kind}", report.open))
        .collect();
    if open.is_empty() { "nothing".to_owned() } else { open.join(" · ") }
}

/// Time until what is left is cut.
pub(super) fn until_cut(drain: &DrainReport) -> Option<Duration> {
    humantime::parse_rfc3339(&drain.deadline).ok()?.duration_since(SystemTime::now()).ok()
}

/// How each ended, by kind.
pub(super) fn account(receipt: &Receipt, paint: Paint) -> String {
    let Some(drain) = &receipt.drain else { return String::new() };
    let is_open = drain.state == DrainState::Draining;
    let open = |text: &str| if is_open { format!("{text:>8}") } else { String::new() };
    let is_kept = kinds(drain).iter().any(|(_, report)| report.kept > 0);
    let kept = |text: &str| if is_kept { format!("{text:>8}") } else { String::new() };
    let (kept_heading, open_heading) = (kept("kept"), open("open"));
    let heading = format!("  {:<10}{:>10}{:>10}{kept_heading}{:>8}{open_heading}", "", "at switch", "finished", "cut");
    let mut text = format!("{}\n{}\n", state(receipt, drain, paint), paint.paint(Style::Dim, &heading));
    for (kind, report) in kinds(drain) {
        let cut = format!("{:>8}", report.cut);
        let cut = if report.cut > 0 { paint.paint(Style::Warn, &cut) } else { cut };
        let (at_switch, finished) = (report.at_switch, report.finished);
        let (kept, open) = (kept(&report.kept.to_string()), open(&report.open.to_string()));
        text += &format!("  {kind:<10}{at_switch:>10}{finished:>10}{kept}{cut}{open}\n");
    }
    text
}

fn state(receipt: &Receipt, drain: &DrainReport, paint: Paint) -> String {
    let [at, ended_at] = [Some(&receipt.at), drain.ended_at.as_ref()]
        .map(|time| time.and_then(|time| humantime::parse_rfc3339(time).ok()));
    let took = at.zip(ended_at).and_then(|(at, ended_at)| ended_at.duration_since(at).ok());
    match (drain.state, took) {
        (DrainState::Drained, Some(took)) => {
            let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            format!("{} in {}", paint.paint(Style::Good, "drained"), micros(took))
        }
        (DrainState::Drained, None) => paint.paint(Style::Good, "drained"),
        (DrainState::Draining, _) => format!("{}{}", paint.paint(Style::Warn, "draining"), remaining(drain)),
        (DrainState::Kept, _) => {
            format!("{}, since the old color is active again", paint.paint(Style::Warn, "not drained"))
        }
    }
}

/// `, last goodbye in 8 s, what is open is cut in 24 s`
fn remaining(drain: &DrainReport) -> String {
    let in_time =
        |what: &str, time: Option<Duration>| time.map(|left| format!(", {what} in {}", span(left))).unwrap_or_default();
    in_time("last goodbye", until_last_goodbye(drain)) + &in_time("what is open is cut", until_cut(drain))
}

/// Time until the last stream is told goodbye, if there is one left to tell.
fn until_last_goodbye(drain: &DrainReport) -> Option<Duration> {
    let last = drain.last_goodbye.as_ref().filter(|_| drain.sse.open + drain.websocket.open > 0)?;
    humantime::parse_rfc3339(last).ok()?.duration_since(SystemTime::now()).ok()
}

fn kinds(drain: &DrainReport) -> [(&'static str, KindReport); 3] {
    [("http", drain.http), ("sse", drain.sse), ("websocket", drain.websocket)]
}

fn left(receipt: &Receipt, silence: Option<&ClientError>) -> String {
    let id = &receipt.id;
    match (silence, &receipt.drain) {
        (None, Some(drain)) => {
            let (open, remaining) = (open_now(drain), remaining(drain));
            format!("switched, but not drained in time: {open} still open{remaining}; `teal receipt {id}` tells more")
        }
        (Some(error), _) => format!("switched, but nobody says whether it is drained (receipt {id}): {error}"),
        (None, None) => format!("switched, but not drained in time (receipt {id})"),
    }
}

/// A line that moves while a person waits; nothing where nobody looks.
struct Line {
    is_shown: bool,
}

impl Line {
    fn new() -> Line {
        Line { is_shown: io::stderr().is_terminal() }
    }

    fn show(&self, receipt: &Receipt) {
        if let (true, Some(drain)) = (self.is_shown, &receipt.drain) {
            let text = format!("draining: {} open{}", open_now(drain), remaining(drain));
            let width = size().map_or(80, |(columns, _)| columns);
            err(&format!("\r\x1b[2K{}", Paint::stderr().paint(Style::Dim, &fit(&text, width.saturating_sub(1)))));
        }
    }

    fn clear(&self) {
        if self.is_shown {
            err("\r\x1b[2K");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Mode;
    use crate::state::Trigger;

    use super::*;

    fn receipt(state: DrainState) -> Receipt {
        let websocket = KindReport { open: 1, at_switch: 200, finished: 197, kept: 0, cut: 2 };
        let drain = DrainReport {
            state,
            deadline: "2026-11-22T10:00:30.000Z".to_owned(),
            last_goodbye: None,
            ended_at: (state == DrainState::Drained).then(|| "2026-11-22T10:00:02.100Z".to_owned()),
            http: KindReport::default(),
            sse: KindReport::default(),
            websocket,
        };
        Receipt {
            id: "1".to_owned(),
            at: "2026-11-22T10:00:00.000Z".to_owned(),
            trigger: Trigger::Cli,
            actor: None,
            reason: None,
            mode: Mode::Instant,
            took_us: 1,
            dry_run: false,
            services: Vec::new(),
            drain: Some(drain),
        }
    }

    #[test]
    fn account_shows_what_is_open_only_while_it_can_be() {
        let text = account(&receipt(DrainState::Drained), Paint::plain());
        assert!(text.starts_with("drained in 2.1 s\n"), "{text}");
        assert!(text.contains("\n  websocket        200       197       2\n"), "{text}");
        let text = account(&receipt(DrainState::Draining), Paint::plain());
        assert!(text.contains("\n  websocket        200       197       2       1\n"), "{text}");
        let mut receipt = receipt(DrainState::Drained);
        let drain = receipt.drain.as_mut().expect("a drain");
        drain.websocket = KindReport { open: 0, at_switch: 200, finished: 150, kept: 50, cut: 0 };
        let text = account(&receipt, Paint::plain());
        assert!(text.contains(" at switch  finished    kept     cut\n"), "{text}");
        assert!(text.contains("\n  websocket        200       150      50       0\n"), "{text}");
    }

    #[test]
    fn open_exchanges_in_words() {
        let mut drain = receipt(DrainState::Draining).drain.unwrap();
        assert_eq!(open_now(&drain), "1 websocket");
        drain.http.open = 12;
        assert_eq!(open_now(&drain), "12 http · 1 websocket");
        (drain.http.open, drain.websocket.open) = (0, 0);
        assert_eq!(open_now(&drain), "nothing");
    }
}
