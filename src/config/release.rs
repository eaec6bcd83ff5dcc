//! The tables `[services.NAME.switch]` and `[services.NAME.drain]`: how a release goes on.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use crate::config::meaning::LONGEST;
use crate::config::reader::{Expected, Table};
use crate::config::units::{duration, min_healthy, parse_duration, whole, word};
use crate::config::{Drain, EventStreams, MinHealthy, Mode, Pace, Switch, WebSockets};

/// What fits into a Close frame beside the code (RFC 6455 section 5.5).
const LONGEST_REASON: usize = 123;

pub(crate) fn switch(table: &mut Table<'_>) -> Switch {
    let modes = word(&[("instant", Mode::Instant), ("fence", Mode::Fence)]);
    let one_ms = Duration::from_millis(1);
    Switch {
        mode: table.value("mode", Mode::Instant, modes),
        fence_timeout: table.value("fence_timeout", Duration::from_secs(5), duration(one_ms..=LONGEST)),
        min_healthy: table.value("min_healthy", MinHealthy::All, min_healthy),
    }
}

pub(crate) fn drain(table: &mut Table<'_>) -> Drain {
    let timeout = table.value("timeout", Duration::from_secs(30), duration(Duration::ZERO..=LONGEST));
    Drain {
        timeout,
        websocket: table.table_or_word("websocket", "keep", websockets),
        sse: table.table_or_word("sse", "keep", event_streams),
    }
}

fn pace(table: &mut Table<'_>) -> Pace {
    let within = || duration(Duration::ZERO..=LONGEST);
    Pace {
        hold: table.value("hold", Duration::ZERO, within()),
        spread: table.value("spread", Duration::from_secs(10), within()),
    }
}

fn websockets(table: &mut Table<'_>) -> WebSockets {
    let one_minute = Duration::from_secs(60);
    WebSockets {
        pace: pace(table),
        quiet: table.value("quiet", Duration::from_secs(1), duration(Duration::ZERO..=one_minute)),
        code: table.value("code", 1012, close_code),
        reason: table.value("reason", "service restart".into(), reason),
    }
}

fn event_streams(table: &mut Table<'_>) -> EventStreams {
    let retry = Duration::from_secs(1)..=Duration::from_secs(5);
    EventStreams { pace: pace(table), retry: table.value("retry", retry, retry_range) }
}

/// A code that an endpoint may send: RFC 6455 section 7.4 and the registry at IANA.
fn close_code(value: &DeValue<'_>) -> Result<u16, Expected> {
    let code = whole::<u16>(1000..=4999)(value).ok();
    let may_be_sent = |code: &u16| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    let expected = || "a close code that may be sent: 1000 to 1003, 1007 to 1014, or 3000 to 4999".into();
    code.filter(may_be_sent).ok_or_else(expected)
}

fn reason(value: &DeValue<'_>) -> Result<Box<str>, Expected> {
    let text = value.as_str().filter(|text| text.len() <= LONGEST_REASON);
    text.map(Into::into).ok_or_else(|| format!("a text of at most {LONGEST_REASON} octets, may be empty").into())
}

/// `"1s..5s"`, or a single duration.
fn retry_range(value: &DeValue<'_>) -> Result<RangeInclusive<Duration>, Expected> {
    let text = value.as_str().unwrap_or_default();
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let read = |text: &str| parse_duration(text.trim()).ok().filter(|duration| *duration <= Duration::from_secs(600));
    let range = read(from).zip(read(to)).filter(|(from, to)| from <= to);
    let expected = || "a range of durations up to 10m such as \"1s..5s\"".into();
    range.map(|(from, to)| from..=to).ok_or_else(expected)
}
