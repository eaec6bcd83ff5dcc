//! The status of a proxy as a table: two rows for each service, the active color first.
//!
//! Fits the width it is given: names and notes that are too long end in `…`. Without a width nothing is cut.

use std::time::{Duration, SystemTime};

use crate::admin::status::{EndpointStatus, PoolStatus, ServiceStatus, Status};
use crate::cli::terminal::{Paint, Style, compact, counted, fit, harmless, span, wrap};
use crate::config::Color;

/// Config problems shown; the others are counted.
const MOST_PROBLEMS: usize = 5;
/// Ill endpoints shown of one pool; the others are counted.
const MOST_ILL: usize = 3;
/// Columns of everything between the name and the note.
const MIDDLE: usize = 44;
/// Columns that a long name leaves to the note.
const NOTE: usize = 20;
/// Columns that a name gets however narrow the terminal is.
const NAME: usize = 8;

/// How a table is to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) paint: Paint,
    /// Columns; `None`: as many as it takes.
    pub(super) width: Option<usize>,
    pub(super) now: SystemTime,
}

impl Look {
    /// The lines of the whole proxy.
    pub(super) fn whole(&self, status: &Status) -> Vec<String> {
        let mut lines = vec![self.heading(status)];
        lines.extend(self.troubles(status));
        lines.extend(self.certificates(status));
        lines.push(String::new());
        lines.extend(self.services(&status.services));
        lines
    }

    /// The lines of one service, with all its endpoints.
    pub(super) fn one(&self, service: &ServiceStatus) -> Vec<String> {
        let mut lines = self.services(std::slice::from_ref(service));
        lines.push(String::new());
        lines.extend(self.endpoints(service));
        lines
    }

    /// The whole text in red, on as many lines as it takes.
    pub(super) fn alarm(&self, text: &str) -> Vec<String> {
        let lines = wrap(&harmless(text), self.width.unwrap_or(usize::MAX));
        lines.iter().map(|line| self.line(Style::Bad, line)).collect()
    }

    fn heading(&self, status: &Status) -> String {
        let style = if status.ready { Style::Good } else { Style::Warn };
        let connections: u64 = status.listeners.iter().map(|listener| listener.connections).sum();
        let up = span(Duration::from_secs(status.uptime_s));
        let connections = counted(usize::try_from(connections).unwrap_or(usize::MAX), "connection");
        let teal = format!("teal {}", harmless(&status.version));
        format!(
            "{} · {} · up {up} · {connections}",
            self.paint.paint(Style::Bold, &teal),
            self.paint.paint(style, &harmless(&status.readiness))
        )
    }

    /// What the config file asks for and does not get.
    fn troubles(&self, status: &Status) -> Vec<String> {
        let problems = status
            .config
            .problems
            .iter()
            .map(|problem| format!("{}:{}:{}: {}", problem.file, problem.line, problem.column, problem.message));
        let refused = status.config.refused.iter().map(|refused| format!("refused: {}", refused.reason));
        let all: Vec<String> = problems.chain(refused).collect();
        let mut lines: Vec<String> = all.iter().take(MOST_PROBLEMS).flat_map(|problem| self.alarm(problem)).collect();
        if !status.config.problems.is_empty() {
            lines.splice(
                0..0,
                self.alarm(
                    "the config, or a file that it names, was changed and has problems; the old one is in effect",
                ),
            );
        }
        if all.len() > MOST_PROBLEMS {
            lines.extend(self.alarm(&format!("… and {} more", all.len() - MOST_PROBLEMS)));
        }
        lines
    }

    /// Certificates that somebody should look after, each once.
    fn certificates(&self, status: &Status) -> Vec<String> {
        let certificates = status.listeners.iter().flat_map(|listener| &listener.certificates);
        let certificates =
            certificates.chain(status.services.iter().filter_map(|service| service.certificate.as_ref()));
        let mut warnings: Vec<&str> = certificates.filter_map(|one| one.warning.as_deref()).collect();
        warnings.sort_unstable();
        warnings.dedup();
        let more = warnings.len().saturating_sub(MOST_PROBLEMS);
        let mut lines: Vec<_> = warnings.into_iter().take(MOST_PROBLEMS).flat_map(|text| self.alarm(text)).collect();
        if more > 0 {
            lines.extend(self.alarm(&format!("… and {more} more certificates")));
        }
        lines
    }

    fn services(&self, services: &[ServiceStatus]) -> Vec<String> {
        let longest = services.iter().map(|service| service.name.chars().count()).max().unwrap_or_default();
        let widest = self.width.map_or(usize::MAX, |width| width.saturating_sub(MIDDLE + NOTE).max(NAME));
        let name = longest.max("SERVICE".len()).min(widest);
        let columns = format!("{:<name$}  COLOR     GEN  HEALTHY  HTTP   SSE    WS", fit("SERVICE", name));
        let mut lines = vec![self.line(Style::Dim, &columns)];
        for service in services {
            lines.extend(self.service(service, name));
        }
        lines
    }

    fn service(&self, service: &ServiceStatus, width: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for color in [service.active, service.active.other()] {
            let pool = &service.pools[color];
            let is_active = color == service.active;
            let name = if is_active { fit(&service.name, width) } else { String::new() };
            let name = self.paint.paint(Style::Bold, &format!("{name:<width$}"));
            let generation = if is_active { compact(service.generation) } else { String::new() };
            let (style, note) = self.note(service, color);
            let room = self.width.map_or(usize::MAX, |columns| columns.saturating_sub(width + MIDDLE));
            let line = format!(
                "{name}  {} {generation:>5}  {}{}  {}",
                self.color(color, is_active),
                self.health(pool),
                self.open(pool),
                self.paint.paint(style, &fit(&note, room)),
            );
            lines.push(line.trim_end().to_owned());
            lines.extend(self.ill(pool, width));
        }
        lines
    }

    /// `● green` for the active color, `○ blue` for the other.
    fn color(&self, color: Color, is_active: bool) -> String {
        let mark = if is_active { '●' } else { '○' };
        self.paint.paint(color.into(), &format!("{mark} {color:<5}"))
    }

    fn health(&self, pool: &PoolStatus) -> String {
        let total = total(pool);
        let style = match pool.healthy {
            _ if total == 0 => Style::Dim,
            healthy if healthy == total => Style::Good,
            healthy if healthy >= pool.needed => Style::Warn,
            _ => Style::Bad,
        };
        let text = if total == 0 { "–".to_owned() } else { format!("{}/{total}", pool.healthy) };
        self.paint.paint(style, &format!("{text:>7}"))
    }

    fn open(&self, pool: &PoolStatus) -> String {
        let cell = |count: u64| {
            let text = format!("{:>6}", compact(count));
            if count == 0 { self.paint.paint(Style::Dim, &text) } else { text }
        };
        [pool.open.http, pool.open.sse, pool.open.websocket].map(cell).concat()
    }

    /// What else is to be said of a color.
    fn note(&self, service: &ServiceStatus, color: Color) -> (Style, String) {
        if let Some(drain) = service.drain.as_ref().filter(|drain| drain.color == color) {
            let left = self.until(&drain.deadline).map_or_else(String::new, |left| format!(", {} left", span(left)));
            return (Style::Warn, format!("draining{left}"));
        }
        let pool = &service.pools[color];
        match color == service.active {
            true if service.fenced => (Style::Warn, "fenced, new requests wait".to_owned()),
            true => (Style::Dim, self.since(service)),
            false if total(pool) == 0 => (Style::Dim, "nothing deployed".to_owned()),
            false if pool.healthy < pool.needed => (Style::Warn, format!("needs {} healthy", pool.needed)),
            false => (Style::Dim, "ready to switch".to_owned()),
        }
    }

    /// `2 min ago by cli`
    fn since(&self, service: &ServiceStatus) -> String {
        let ago = service.since.as_deref().and_then(|since| self.ago(since));
        let by = service.set_by.as_deref().map(|by| format!("by {}", harmless(by)));
        ago.into_iter().chain(by).collect::<Vec<_>>().join(" ")
    }

    /// The endpoints of a pool that are not well, below its row.
    fn ill(&self, pool: &PoolStatus, indent: usize) -> Vec<String> {
        let endpoints = pool.endpoints.iter().filter(|endpoint| endpoint.ejected || endpoint.health != "healthy");
        let mut ill: Vec<String> =
            endpoints.map(|endpoint| format!("{}: {}", endpoint.name, reason(endpoint))).collect();
        ill.extend(pool.unresolved.iter().map(|name| format!("{name}: the name has no address")));
        let more = ill.len().saturating_sub(MOST_ILL);
        ill.truncate(MOST_ILL);
        if more > 0 {
            ill.push(format!("… and {more} more"));
        }
        ill.iter().map(|text| self.line(Style::Warn, &format!("{:indent$}  {text}", ""))).collect()
    }

    fn endpoints(&self, service: &ServiceStatus) -> Vec<String> {
        let all = || Color::BOTH.map(|color| service.pools[color].endpoints.iter().map(move |one| (color, one)));
        let longest = all().into_iter().flatten().map(|(_, endpoint)| endpoint.name.chars().count()).max();
        let name = longest.unwrap_or_default().max("ENDPOINT".len());
        let columns = format!("{:<name$}  COLOR    IN FLIGHT  REQUESTS  HEALTH", "ENDPOINT");
        let row = |(color, endpoint): (Color, &EndpointStatus)| {
            let room = self.width.map_or(usize::MAX, |columns| columns.saturating_sub(name + 34));
            let (style, health) = match endpoint.health.as_str() {
                "healthy" if !endpoint.ejected => (Style::Good, "healthy".to_owned()),
                _ => (Style::Bad, reason(endpoint)),
            };
            format!(
                "{:<name$}  {}  {:>9}  {:>8}  {}",
                harmless(&endpoint.name),
                self.color(color, color == service.active),
                compact(endpoint.in_flight as u64),
                compact(endpoint.requests),
                self.paint.paint(style, &fit(&health, room)),
            )
        };
        let rows = all().into_iter().flatten().map(row);
        std::iter::once(self.line(Style::Dim, &columns)).chain(rows).collect()
    }

    fn line(&self, style: Style, text: &str) -> String {
        self.paint.paint(style, &fit(&harmless(text), self.width.unwrap_or(usize::MAX)))
    }

    fn ago(&self, time: &str) -> Option<String> {
        let time = humantime::parse_rfc3339(time).ok()?;
        // A clock that is a little ahead of ours is no reason to say nothing.
        Some(format!("{} ago", span(self.now.duration_since(time).unwrap_or_default())))
    }

    fn until(&self, time: &str) -> Option<Duration> {
        let time = humantime::parse_rfc3339(time).ok()?;
        Some(time.duration_since(self.now).unwrap_or_default())
    }
}

fn total(pool: &PoolStatus) -> usize {
    pool.endpoints.len() + pool.unresolved.len()
}

/// Why an endpoint gets no requests.
fn reason(endpoint: &EndpointStatus) -> String {
    let error = endpoint.last_probe.as_ref().and_then(|probe| probe.error.as_deref()).map(harmless);
    match (endpoint.health.as_str(), error) {
        ("unknown", _) => "not probed yet".to_owned(),
        ("healthy", _) => "taken out for a while, since requests to it failed".to_owned(),
        (_, Some(error)) => error,
        (_, None) => "recovering".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-11-22T10:00:30Z";

    fn look(width: Option<usize>) -> Look {
        Look { paint: Paint::plain(), width, now: humantime::parse_rfc3339(NOW).unwrap() }
    }

    fn pool(healthy: usize, endpoints: &[(&str, Option<&str>)]) -> Value {
        let endpoint = |(name, error): &(&str, Option<&str>)| {
            let health = if error.is_some() { "unhealthy" } else { "healthy" };
            json!({
                "name": name, "health": health, "ejected": false, "in_flight": 1, "requests": 123_456,
                "last_probe": { "at": NOW, "error": error },
            })
        };
        let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
        let needed = endpoints.len().max(1);
        json!({
            "healthy": healthy, "needed": needed, "endpoints": endpoints, "unresolved": [],
            "open": { "http": 12, "sse": 0, "websocket": 1_000_000 },
        })
    }

    fn service(name: &str, blue: Value, green: Value) -> Value {
        json!({
            "name": name, "active": "green", "generation": 7, "set_by": "cli", "since": "2026-11-22T09:58:00Z",
            "previous": "blue", "pools": { "blue": blue, "green": green },
        })
    }

    fn status(services: Value, config: Value) -> Status {
        serde_json::from_value(json!({
            "version": "0.1.0", "commit": "", "started_at": NOW, "uptime_s": 90, "ready": true, "readiness": "ready", "config": config,
            "listeners": [{ "address": "127.0.0.1:80", "connections": 3 }], "services": services,
        }))
        .unwrap()
    }

    fn quiet() -> Value {
        json!({ "problems": [], "refused": [] })
    }

    #[test]
    fn two_rows_for_a_service() {
        let blue = pool(0, &[("10.0.0.1:80", Some("connection refused"))]);
        let green = pool(2, &[("10.0.1.1:80", None), ("10.0.1.2:80", None)]);
        let lines = look(None).whole(&status(json!([service("api", blue, green)]), quiet()));
        assert_eq!(
            lines,
            [
                "teal 0.1.0 · ready · up 1 min · 3 connections",
                "",
                "SERVICE  COLOR     GEN  HEALTHY  HTTP   SSE    WS",
                "api      ● green     7      2/2    12     0 1000k  2 min ago by cli",
                "         ○ blue             0/1    12     0 1000k  needs 1 healthy",
                "         10.0.0.1:80: connection refused",
            ]
        );
    }

    #[test]
    fn drain_shows_the_time_that_is_left() {
        let mut service = service("api", pool(0, &[]), pool(0, &[]));
        service["drain"] = json!({
            "receipt": "1", "color": "blue", "deadline": "2026-11-22T10:00:54Z",
            "http": { "open": 1, "at_switch": 1, "finished": 0, "cut": 0 },
            "sse": { "open": 0, "at_switch": 0, "finished": 0, "cut": 0 },
            "websocket": { "open": 0, "at_switch": 0, "finished": 0, "cut": 0 },
        });
        let lines = look(None).whole(&status(json!([service]), quiet()));
        assert!(lines[4].ends_with("draining, 24 s left"), "{lines:#?}");
    }

    #[test]
    fn fence_is_shown_where_requests_wait() {
        let mut service = service("api", pool(0, &[]), pool(0, &[]));
        service["fenced"] = json!(true);
        let lines = look(None).whole(&status(json!([service]), quiet()));
        assert!(lines[3].ends_with("fenced, new requests wait"), "{lines:#?}");
    }

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        let refused = "connection refused by something that has a lot to say about it and does not come to an end";
        let ill: Vec<_> = (0..9).map(|_| ("a.very.long.name.of.an.endpoint.example:8080", Some(refused))).collect();
        let services = json!([service("a-service-with-a-long-name", pool(0, &ill), pool(0, &ill))]);
        let problem = json!({ "file": "teal.toml", "line": 1, "column": 2, "message": refused });
        let config = json!({ "problems": vec![problem; 9], "refused": [{ "service": "api", "reason": refused }] });
        let status = status(services, config);
        for width in [80, 120] {
            for line in look(Some(width)).whole(&status).iter().chain(&look(Some(width)).one(&status.services[0])) {
                assert!(line.chars().count() <= width, "{line}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_the_config_comes_first_and_whole() {
        let problem = json!({ "file": "teal.toml", "line": 3, "column": 5, "message": "found \u{1b}[2J, expected 1" });
        let refused = json!({ "service": "api", "reason": "api: green has no endpoints, nothing is deployed there" });
        let config = json!({ "problems": vec![problem; 6], "refused": [refused] });
        let lines = look(Some(40)).whole(&status(json!([]), config));
        assert_eq!(lines[1], "the config, or a file that it names, was");
        assert_eq!(lines[4], "teal.toml:3:5: found [2J, expected 1");
        assert!(lines.contains(&"… and 2 more".to_owned()), "{lines:#?}");
    }

    #[test]
    fn one_service_shows_all_its_endpoints() {
        let green = pool(1, &[("10.0.1.1:80", None), ("10.0.1.2:80", Some("status 500"))]);
        let status = status(json!([service("api", pool(0, &[]), green)]), quiet());
        let lines = look(None).one(&status.services[0]);
        assert_eq!(
            lines[lines.len() - 2..],
            [
                "10.0.1.1:80  ● green          1      123k  healthy",
                "10.0.1.2:80  ● green          1      123k  status 500",
            ]
        );
    }
}
