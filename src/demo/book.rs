//! What both colors of the shop share, as two releases of a real shop share a database.
//!
//! Orders, chat lines and alarms are numbered from 1 without a gap, so that whoever reads them can tell that one is
//! missing or came twice. Only the newest lines of each log are kept: a reader that stays away for too long finds a gap.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::Color;

/// The shared state of the shop.
pub(super) struct Book {
    pub(super) orders: Arc<Log<Order>>,
    pub(super) chat: Arc<Log<Line>>,
    pub(super) alarms: Arc<Log<Alarm>>,
    /// Orders that were booked although they were in the book already.
    pub(super) orders_doubled: AtomicU64,
    /// Where the admin API of the proxy listens; the page tells it to who wants to switch.
    pub(super) admin: OnceLock<SocketAddr>,
}

/// An order as the customer numbered it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) customer: u64,
    pub(super) n: u64,
}

/// A line of the chat, numbered by its author; the room's own number is that of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) from: u64,
    pub(super) n: u64,
    pub(super) text: Arc<str>,
    /// The color that took the line.
    pub(super) color: Color,
}

/// Something that the shop's staff should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Alarm {
    pub(super) text: &'static str,
}

impl Book {
    pub(super) fn new() -> Book {
        Book {
            orders: Log::new(),
            chat: Log::new(),
            alarms: Log::new(),
            orders_doubled: AtomicU64::new(0),
            admin: OnceLock::new(),
        }
    }

    /// Books an order and answers its number. An order that is booked twice stays in the book twice, and is counted:
    /// the demo wants to see what a proxy that repeats a POST would do to a shop.
    pub(super) fn order(&self, order: Order) -> u64 {
        if self.orders.contains(|booked| *booked == order) {
            self.orders_doubled.fetch_add(1, Ordering::Relaxed);
        }
        self.orders.append(order)
    }

    /// Takes a line of the chat, once however often its author sends it.
    pub(super) fn say(&self, line: Line) {
        self.chat.append_unless(|said| (said.from, said.n) == (line.from, line.n), line.clone());
    }

    pub(super) fn raise(&self, n: usize) {
        self.alarms.append(Alarm { text: ALARMS[n % ALARMS.len()] });
    }
}

const ALARMS: [&str; 6] = [
    "Kettle shelf is running low",
    "Delivery van is two streets away",
    "Oven two is at temperature",
    "Front door has been open for a minute",
    "Fridge is back at four degrees",
    "A parcel waits at the counter",
];

/// How many lines a [`Log`] keeps.
const KEPT: usize = 4096;

/// A bounded log of numbered lines that any number of readers follow.
pub(super) struct Log<T> {
    lines: Mutex<VecDeque<T>>,
    last: watch::Sender<u64>,
}

impl<T: Clone> Log<T> {
    fn new() -> Arc<Log<T>> {
        Arc::new(Log { lines: Mutex::new(VecDeque::new()), last: watch::Sender::new(0) })
    }

    /// The number of the newest line; 0 when there is none.
    pub(super) fn last(&self) -> u64 {
        *self.last.borrow()
    }

    /// Follows the log from the first kept line after `number`.
    pub(super) fn read(self: &Arc<Log<T>>, number: u64) -> Reader<T> {
        Reader { log: self.clone(), seen: number, news: self.last.subscribe(), batch: VecDeque::new() }
    }

    fn contains(&self, is_it: impl Fn(&T) -> bool) -> bool {
        self.lines.lock().iter().rev().any(is_it)
    }

    fn append(&self, line: T) -> u64 {
        self.push(&mut self.lines.lock(), line)
    }

    fn append_unless(&self, is_it: impl Fn(&T) -> bool, line: T) {
        let mut lines = self.lines.lock();
        if !lines.iter().rev().any(is_it) {
            self.push(&mut lines, line);
        }
    }

    fn push(&self, lines: &mut VecDeque<T>, line: T) -> u64 {
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
        let number = self.last() + 1;
        self.last.send_replace(number);
        number
    }

    fn after(&self, number: u64) -> VecDeque<(u64, T)> {
        let lines = self.lines.lock();
        let last = self.last();
        let first = last + 1 - lines.len() as u64;
        // A number from the future belongs to the shop of an earlier demo: that reader starts again.
        let skip = if number > last { 0 } else { (number + 1).saturating_sub(first) };
        (first..).zip(lines.iter().cloned()).skip(skip as usize).collect()
    }
}

/// A reader of a [`Log`].
pub(super) struct Reader<T> {
    log: Arc<Log<T>>,
    seen: u64,
    news: watch::Receiver<u64>,
    batch: VecDeque<(u64, T)>,
}

impl<T: Clone> Reader<T> {
    /// The next line and its number, as soon as there is one. Cancel safe. `None` never comes while the reader lives,
    /// since it holds the log.
    pub(super) async fn next(&mut self) -> Option<(u64, T)> {
        loop {
            if let Some((number, line)) = self.batch.pop_front() {
                self.seen = number;
                return Some((number, line));
            }
            self.news.borrow_and_update();
            self.batch = self.log.after(self.seen);
            if self.batch.is_empty() {
                self.news.changed().await.ok()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64) -> Line {
        Line { from: 7, n, text: "hello".into(), color: Color::Blue }
    }

    #[tokio::test]
    async fn reader_resumes_where_it_left() {
        let book = Book::new();
        (1..=5).for_each(|n| book.say(line(n)));
        let mut reader = book.chat.read(3);
        assert_eq!(reader.next().await, Some((4, line(4))));
        assert_eq!(reader.next().await, Some((5, line(5))));
        book.say(line(6));
        assert_eq!(reader.next().await, Some((6, line(6))));
    }

    #[tokio::test]
    async fn reader_that_stayed_away_too_long_finds_a_gap() {
        let book = Book::new();
        (0..KEPT + 10).for_each(|n| book.raise(n));
        assert_eq!(book.alarms.read(3).next().await.map(|(number, _)| number), Some(11));
    }

    #[tokio::test]
    async fn reader_from_an_earlier_shop_starts_again() {
        let book = Book::new();
        book.raise(0);
        assert_eq!(book.alarms.read(900).next().await.map(|(number, _)| number), Some(1));
    }

    #[test]
    fn line_sent_again_is_taken_once() {
        let book = Book::new();
        [1, 2, 1, 2, 3].into_iter().for_each(|n| book.say(line(n)));
        assert_eq!(book.chat.last(), 3);
    }

    #[test]
    fn order_booked_twice_is_counted() {
        let book = Book::new();
        let order = Order { customer: 1, n: 1 };
        assert_eq!(book.order(order), 1);
        assert_eq!(book.order(order), 2);
        assert_eq!(book.orders_doubled.load(Ordering::Relaxed), 1);
    }
}
