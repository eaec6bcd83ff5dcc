//! The tables `[services.NAME]` and what stands below them, as `meaning` reads the rest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderName;
use toml::Spanned;
use toml::de::DeValue;

use crate::config::address::{authority, target, upstream};
use crate::config::meaning::{LONGEST, SHORTEST};
use crate::config::origin::{Protocol, upstream_tls};
use crate::config::reader::{Expected, Table, quoted};
use crate::config::release::{drain, switch};
use crate::config::units::{duration, flag, status, whole, word, words_expected};
use crate::config::{Balance, ByColor, Color, Health, HostHeader, Outlier, Probe, Service, StatusRange, Upstream};

/// How often something may be asked again and again.
const OFTENEST: Duration = Duration::from_millis(10);

pub(crate) fn services(top: &mut Table<'_>) -> BTreeMap<Arc<str>, Arc<Service>> {
    let read = top.named("services", service);
    read.iter().for_each(|(name, _)| check_name(name, top));
    read.into_iter().map(|(name, service)| (name.into_inner(), Arc::new(service))).collect()
}

/// A name stands in paths of the API, in labels and in lists on the command line.
fn check_name(name: &Spanned<Arc<str>>, top: &Table<'_>) {
    const LONGEST: usize = 64;
    let text = name.get_ref();
    let is_sound = text.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'));
    if !is_sound || text.is_empty() || text.len() > LONGEST {
        top.conflict_at(name.span().start, "services", || {
            format!("found the name {}, expected 1 to {LONGEST} letters, digits, - or _", quoted(text))
        });
    }
}

fn service(name: &str, table: &mut Table<'_>) -> Service {
    let colors = word(&[("blue", Color::Blue), ("green", Color::Green)]);
    let active = table.value("active", Color::Blue, colors);
    let pools = ByColor { blue: pool(table, "blue"), green: pool(table, "green") };
    let protocol = table.value("protocol", Protocol::Http1, word(&PROTOCOLS));
    let has_tls = table.has("upstream_tls");
    let upstream_tls = has_tls.then(|| table.table("upstream_tls", |table| upstream_tls(table, protocol)));
    check_protocol(table, protocol, &pools);
    let balance = table.value("balance", Balance::LeastRequest, balance);
    let host = table.value("host", HostHeader::Preserve, host_header);
    let connect_timeout = table.value("connect_timeout", Duration::from_secs(2), duration(SHORTEST..=LONGEST));
    let response_timeout = table.value("response_timeout", Duration::from_secs(60), duration(SHORTEST..=LONGEST));
    let retries = table.value("retries", 1, whole(0..=10));
    let queue_timeout = table.value("queue_timeout", Duration::from_secs(3), duration(Duration::ZERO..=LONGEST));
    let max_in_flight = table.value("max_in_flight", 0, whole(0..=1_000_000));
    let resolve_interval = table.value("resolve_interval", Duration::from_secs(5), duration(OFTENEST..=LONGEST));
    let expose_color = table.value("expose_color", false, flag);
    table.later("guard", "this version of teal does not watch the new color after a switch yet; roll back by hand");
    Service {
        name: name.into(),
        active,
        protocol,
        upstream_tls: upstream_tls.flatten().map(Arc::new),
        balance,
        host,
        connect_timeout,
        response_timeout,
        retries,
        queue_timeout,
        max_in_flight: Some(max_in_flight).filter(|most| *most > 0),
        resolve_interval,
        expose_color,
        health: table.table("health", |table| health(table, &pools)),
        outlier: table.table("outlier", outlier),
        switch: table.table("switch", switch),
        drain: table.table("drain", drain),
        pools,
    }
}

const PROTOCOLS: [(&str, Protocol); 3] = [("http1", Protocol::Http1), ("h2", Protocol::H2), ("h2c", Protocol::H2c)];

fn check_protocol(table: &Table<'_>, protocol: Protocol, pools: &ByColor<Vec<Upstream>>) {
    match (protocol, table.has("upstream_tls")) {
        (Protocol::H2, false) => table.conflict("protocol", || {
            "found \"h2\" without upstream_tls, expected both, or \"h2c\" for HTTP/2 in plain text".to_owned()
        }),
        (Protocol::H2c, true) => table.conflict("protocol", || {
            "found \"h2c\" beside upstream_tls, expected \"h2\", which is HTTP/2 inside TLS".to_owned()
        }),
        _ => {}
    }
    let is_unix = |upstream: &&Upstream| matches!(upstream, Upstream::Unix(_));
    if table.has("upstream_tls") && pools.blue.iter().chain(&pools.green).any(|upstream| is_unix(&upstream)) {
        table.conflict("upstream_tls", || "found beside a unix socket, which needs no TLS".to_owned());
    }
}

fn pool(table: &mut Table<'_>, color: &'static str) -> Vec<Upstream> {
    let mut seen = HashMap::new();
    let mut pool = Vec::new();
    for address in table.list(color, upstream) {
        pool.push(address.get_ref().clone());
        table.once(color, &format!("\"{}\"", address.get_ref()), address, &mut seen);
    }
    pool
}

fn balance(value: &DeValue<'_>) -> Result<Balance, Expected> {
    const FORMS: [&str; 6] =
        ["least_request", "round_robin", "random", "hash:ip", "hash:cookie:NAME", "hash:header:NAME"];
    let text = value.as_str().unwrap_or_default();
    // Names of cookies and of headers are made of the same characters, RFC 6265 section 4.1.1.
    let named = |prefix| text.strip_prefix(prefix).and_then(|name| Some((name, HeaderName::try_from(name).ok()?)));
    match text {
        "least_request" => Ok(Balance::LeastRequest),
        "round_robin" => Ok(Balance::RoundRobin),
        "random" => Ok(Balance::Random),
        "hash:ip" => Ok(Balance::HashIp),
        _ => match (named("hash:cookie:"), named("hash:header:")) {
            (Some((cookie, _)), _) => Ok(Balance::HashCookie(cookie.into())),
            (_, Some((_, header))) => Ok(Balance::HashHeader(header.as_str().into())),
            _ => Err(words_expected(text, FORMS.into_iter())),
        },
    }
}

fn host_header(value: &DeValue<'_>) -> Result<HostHeader, Expected> {
    match value.as_str() {
        Some("preserve") => Ok(HostHeader::Preserve),
        Some("upstream") => Ok(HostHeader::Upstream),
        _ => authority(value)
            .map(|host| HostHeader::Fixed(host.into()))
            .map_err(|Expected(words)| format!("\"preserve\" or \"upstream\" or {words}").into()),
    }
}

fn health(table: &mut Table<'_>, pools: &ByColor<Vec<Upstream>>) -> Health {
    let path = table.optional("path", target);
    let status = table.one_or_more("status", status);
    let interval = table.value("interval", Duration::from_secs(2), duration(OFTENEST..=LONGEST));
    let timeout = table.value("timeout", Duration::from_secs(1), duration(SHORTEST..=LONGEST));
    let rise = table.value("rise", 2, whole(1..=1000));
    let fall = table.value("fall", 3, whole(1..=1000));
    let host = table.optional("host", authority);
    let port = table.value("port", 0, whole(0..=65535));
    check_probe(table, port, pools);
    let ok = vec![StatusRange { from: 200, to: 200 }];
    let http = |path: Spanned<String>| Probe::Http {
        path: path.into_inner(),
        status: status.map_or(ok, Spanned::into_inner),
        host: host.map(Spanned::into_inner),
    };
    let port = Some(port).filter(|port| *port > 0);
    Health { probe: path.map_or(Probe::Tcp, http), interval, timeout, rise, fall, port }
}

/// What a probe would have to ignore is a mistake.
fn check_probe(table: &Table<'_>, port: u16, pools: &ByColor<Vec<Upstream>>) {
    for key in ["status", "host"] {
        if table.has(key) && !table.has("path") {
            let message = "found without a path, expected path = \"/healthz\" beside it, or neither";
            table.conflict(key, || message.to_owned());
        }
    }
    let mut unix = pools.blue.iter().chain(&pools.green).filter(|address| matches!(address, Upstream::Unix(_)));
    if let (1.., Some(unix)) = (port, unix.next()) {
        table.conflict("port", || format!("found {port}, expected 0, as the endpoint \"{unix}\" has no port"));
    }
}

fn outlier(table: &mut Table<'_>) -> Outlier {
    const LONGEST: Duration = Duration::from_secs(300);
    let consecutive_errors = table.value("consecutive_errors", 5, whole(0..=1000));
    Outlier {
        consecutive_errors: Some(consecutive_errors).filter(|errors| *errors > 0),
        eject: table.value("eject", Duration::from_secs(10), duration(SHORTEST..=LONGEST)),
    }
}
