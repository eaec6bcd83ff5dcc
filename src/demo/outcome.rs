//! What teal promises, held against what the clients found.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use crate::drain::{DrainReport, DrainState, KindReport};

use super::book::Book;
use super::load::{CUSTOMERS, LISTENERS, Latency, MEMBERS, Stream, World};
use super::pipeline::Switched;

/// What the demo showed.
#[derive(Serialize, Clone, Debug)]
pub struct Outcome {
    /// Whether every promise was kept.
    pub kept: bool,
    pub promises: Vec<Promise>,
    pub switches: Vec<Switched>,
    /// How long a read took away from the switches, and in the 100 ms after the call of one.
    pub steady: Percentiles,
    pub near_switch: Percentiles,
    /// The first thing that went wrong, if anything did.
    pub trouble: Option<String>,
}

/// One promise with what was measured.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Promise {
    pub name: &'static str,
    pub kept: bool,
    /// How often it was broken, of how many times that it was put to the test.
    pub broken: u64,
    pub of: u64,
    pub text: String,
    /// Who put it to the test.
    pub detail: String,
}

/// In microseconds; `None` when nothing was measured.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Percentiles {
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
}

impl Outcome {
    pub(super) fn of(world: &World, book: &Book, switches: Vec<Switched>) -> Outcome {
        let promises = promises(world, book, &switches);
        Outcome {
            kept: promises.iter().all(|promise| promise.kept),
            promises,
            switches,
            steady: Percentiles::of(&world.tally.steady),
            near_switch: Percentiles::of(&world.tally.near),
            trouble: world.tally.trouble.first().map(str::to_owned),
        }
    }

    /// Streams that the drains cut.
    pub(super) fn streams_cut(&self) -> u64 {
        self.switches.iter().filter_map(|switch| switch.receipt.drain.as_ref()).map(cut_streams).sum()
    }
}

fn cut_streams(drain: &DrainReport) -> u64 {
    drain.sse.cut + drain.websocket.cut
}

impl Percentiles {
    fn of(latency: &Latency) -> Percentiles {
        let micros = |percent| latency.percentile(percent).as_ref().map(Duration::as_micros);
        let micros = |percent| micros(percent).and_then(|micros| u64::try_from(micros).ok());
        Percentiles { p50_us: micros(50), p99_us: micros(99) }
    }
}

fn promises(world: &World, book: &Book, switches: &[Switched]) -> Vec<Promise> {
    let tally = &world.tally;
    let (answered, confirmed) = (tally.requests.count() - tally.failed.count(), tally.confirmed.count());
    let doubled = book.orders_doubled.load(Ordering::Relaxed);
    let wrong_orders = book.orders.last().abs_diff(confirmed).max(doubled);
    let (chat, alarms) = (&tally.chat, &tally.alarms);
    let said_twice = book.chat.last().saturating_sub(chat.sent.count());
    vec![
        promise("requests", tally.failed.count(), tally.requests.count(), "requests failed")
            .by(format!("{CUSTOMERS} customers")),
        promise(
            "after_ack",
            tally.stale.count(),
            tally.after_ack.count(),
            "requests started after an ack were answered by the old color",
        ),
        promise("no_way_back", tally.back_again.count(), answered, "answers came from a color already left"),
        promise("orders", wrong_orders, confirmed, "orders lost or booked twice"),
        promise("chat", broken(chat) + said_twice, chat.sent.count(), "chat messages lost or doubled")
            .by(format!("{MEMBERS} members, each heard all")),
        promise("alarms", broken(alarms), alarms.received.count(), "SSE ids skipped or doubled")
            .by(format!("{LISTENERS} listeners")),
        reconnects(chat, alarms),
        drains(switches),
    ]
}

fn broken(stream: &Stream) -> u64 {
    stream.missing.count() + stream.doubled.count()
}

fn reconnects(chat: &Stream, alarms: &Stream) -> Promise {
    let (websocket, sse) = (chat.reconnects.count(), alarms.reconnects.count());
    let refused = chat.refused.count() + alarms.refused.count();
    let reconnects = promise("reconnects", refused, websocket + sse, "reconnects of streams refused");
    reconnects.by(format!("{websocket} WebSocket, {sse} SSE"))
}

fn drains(switches: &[Switched]) -> Promise {
    let is_wrong = |switch: &&Switched| !switch.receipt.drain.as_ref().is_some_and(adds_up);
    let wrong = switches.iter().filter(is_wrong).count() as u64;
    promise("receipts", wrong, switches.len() as u64, "receipts fail to add up or leave anybody behind")
        .by("at switch = finished + kept + cut".to_owned())
}

fn adds_up(drain: &DrainReport) -> bool {
    let is_over = |kind: &KindReport| kind.open == 0 && kind.at_switch == kind.finished + kind.kept + kind.cut;
    drain.state == DrainState::Drained && [drain.http, drain.sse, drain.websocket].iter().all(is_over)
}

/// A promise that was never put to the test is not kept.
fn promise(name: &'static str, broken: u64, of: u64, what: &str) -> Promise {
    let text = format!("{} of {} {what}", thousands(broken), thousands(of));
    Promise { name, kept: broken == 0 && of > 0, broken, of, text, detail: String::new() }
}

impl Promise {
    fn by(self, detail: String) -> Promise {
        Promise { detail, ..self }
    }
}

/// A count as people read it: `48,213`.
pub(super) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(at_switch: u64, finished: u64, cut: u64, open: u64) -> DrainReport {
        let kind = KindReport { open, at_switch, finished, kept: 0, cut };
        let state = if open == 0 { DrainState::Drained } else { DrainState::Draining };
        let none = KindReport::default();
        DrainReport {
            state,
            deadline: String::new(),
            last_goodbye: None,
            ended_at: None,
            http: none,
            sse: none,
            websocket: kind,
        }
    }

    #[test]
    fn promise_is_kept_only_if_it_was_put_to_the_test_and_never_broken() {
        assert!(promise("x", 0, 3, "y").kept);
        assert!(!promise("x", 0, 0, "y").kept);
        assert!(!promise("x", 1, 3, "y").kept);
        assert_eq!(promise("x", 1, 48_213, "requests failed").text, "1 of 48,213 requests failed");
    }

    #[test]
    fn receipts_must_add_up_and_leave_nobody() {
        assert!(adds_up(&drain(8, 6, 2, 0)));
        assert!(!adds_up(&drain(8, 6, 1, 0)));
        assert!(!adds_up(&drain(8, 6, 1, 1)));
    }

    #[test]
    fn digits_in_threes() {
        let shown = [0, 12, 999, 1000, 48_213, 1_000_000].map(thousands);
        assert_eq!(shown, ["0", "12", "999", "1,000", "48,213", "1,000,000"]);
    }
}
