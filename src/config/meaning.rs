//! From the file as written to the [`Config`] as meant: the keys of the top level, their defaults and their bounds.
//!
//! Each function reads one table in the order in which the documentation shows it; a key that is not asked for here
//! does not exist. `services` does the same for a service. What is wrong goes to the report and reading goes on, so a
//! returned value is good only if the report stays empty. Reads secrets that the file names, and the environment.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;
use tracing_subscriber::filter::{Directive, LevelFilter};

use crate::config::address::{admin_listen, authority, host_pattern, listen, network, plain_path, route_path};
use crate::config::reader::{Expected, Table, listed, nearest, quoted};
use crate::config::services::services;
use crate::config::tls::tls;
use crate::config::units::{duration, flag, path, size, text, whole, word};
use crate::config::{
    Access, AccessLog, Address, Admin, Config, HostPattern, Limits, Listener, Log, LogFormat, ProxyProtocol, Rate,
    ReadyWhen, Route, Secret, Service,
};

/// No wait is longer; much more is a mistake of units.
pub(crate) const LONGEST: Duration = Duration::from_secs(7 * 86400);
pub(crate) const SHORTEST: Duration = Duration::from_millis(1);

pub(crate) fn config(top: &mut Table<'_>) -> Config {
    let state_dir = top.value("state_dir", None, |value| path(value).map(Some));
    let workers = top.value("workers", 0, whole(0..=1024));
    let shutdown_timeout = top.value("shutdown_timeout", Duration::from_secs(30), duration(Duration::ZERO..=LONGEST));
    let shutdown_delay = top.value("shutdown_delay", Duration::ZERO, duration(Duration::ZERO..=LONGEST));
    let admin = top.table("admin", admin);
    let log = top.table("log", log);
    let limits = top.table("limits", |table| limits(table, Limits::default()));
    let listeners = listeners(top, &limits, admin.as_ref());
    let services = services(top);
    let routes = routes(top, &services);
    top.later("notify", "this version of teal does not notify yet; watch its metrics or its log instead");
    Config {
        state_dir: state_dir.unwrap_or_else(|| default_state_dir(std::env::var_os("STATE_DIRECTORY"))),
        workers: if workers == 0 { cores() } else { workers },
        shutdown_timeout,
        shutdown_delay,
        admin,
        log,
        connections: limits.connections,
        listeners,
        services,
        routes,
    }
}

/// systemd may list several directories; the first is ours.
fn default_state_dir(systemd: Option<OsString>) -> PathBuf {
    let directories = systemd.unwrap_or_default();
    match std::env::split_paths(&directories).next() {
        Some(first) if !first.as_os_str().is_empty() => first,
        _ => PathBuf::from("./teal-state"),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn admin(table: &mut Table<'_>) -> Option<Admin> {
    let by_default = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 9900)));
    let listen = table.value("listen", Some(by_default), admin_listen);
    let from_file = table.value("token_file", None, |value| token_file(value).map(Some));
    let from_env = table.value("token_env", None, |value| token_env(value).map(Some));
    let allowed_hosts = table.list("allowed_hosts", authority);
    if table.has("token_file") && table.has("token_env") {
        table.conflict("token_env", || "found a token_file too, expected one of them".to_owned());
    }
    let has_token = table.has("token_file") || table.has("token_env");
    if let (Some(Address::Tcp(address)), false) = (&listen, has_token) {
        require_token(table, *address);
    }
    let access = admitted(table);
    Some(Admin {
        listen: listen?,
        token: from_file.or(from_env),
        allowed_hosts: allowed_hosts.into_iter().map(Spanned::into_inner).collect(),
        access,
    })
}

fn admitted(table: &mut Table<'_>) -> Access {
    let mut networks = |key| table.list(key, network).into_iter().map(Spanned::into_inner).collect();
    Access { allow: networks("allow"), deny: networks("deny") }
}

/// `base` where the table says nothing.
fn rate(table: &mut Table<'_>, base: Option<Rate>) -> Option<Rate> {
    const MOST: u64 = 1_000_000;
    let given = table.has("requests_per_second");
    let per_second = table.value("requests_per_second", 0, whole(0..=MOST));
    let burst = table.value("burst", 0, whole(0..=MOST));
    if table.has("burst") && !given && base.is_none() {
        let message = "found without requests_per_second, expected both, or neither";
        table.conflict("burst", || message.to_owned());
    }
    let per_second = if given { NonZeroU32::new(per_second) } else { base.map(|rate| rate.per_second) }?;
    let inherited = base.filter(|_| !given).map_or(per_second, |rate| rate.burst);
    Some(Rate { per_second, burst: NonZeroU32::new(burst).unwrap_or(inherited) })
}

fn require_token(table: &Table<'_>, address: SocketAddr) {
    if !address.ip().to_canonical().is_loopback() {
        let message = format!(
            "found \"{address}\", which other machines can reach, expected a token_file or token_env beside it; \
             or listen on \"127.0.0.1:{}\"",
            address.port()
        );
        table.conflict("listen", || message);
    }
}

fn token_file(value: &DeValue<'_>) -> Result<Secret, Expected> {
    let text = small_file(&path(value)?).map_err(|error| Expected::from(format!("a file with the token: {error}")))?;
    secret(&text).ok_or_else(|| "a file with the token: one line of visible ASCII characters".into())
}

fn small_file(path: &Path) -> io::Result<String> {
    const LARGEST: u64 = 4096;
    // Opening a pipe that nobody writes to would hold up the start or a reload.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    if File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)? as u64 > LARGEST {
        return Err(io::Error::other(format!("larger than {LARGEST} octets")));
    }
    Ok(text)
}

fn token_env(value: &DeValue<'_>) -> Result<Secret, Expected> {
    let name = text(value).map_err(|_| Expected::from("the name of an environment variable"))?;
    let is_name = !name.contains(['=', '\0']);
    let token = is_name.then(|| std::env::var(name).ok()).flatten();
    let wrong = || "an environment variable that holds the token, as visible ASCII characters".into();
    token.and_then(|token| secret(&token)).ok_or_else(wrong)
}

/// A token as an `Authorization` header can carry it.
fn secret(text: &str) -> Option<Secret> {
    let token = text.trim();
    let is_sound = !token.is_empty() && token.bytes().all(|octet| octet.is_ascii_graphic());
    is_sound.then(|| Secret(token.into()))
}

fn log(table: &mut Table<'_>) -> Log {
    Log {
        level: table.value("level", "info".to_owned(), level),
        format: table.value("format", LogFormat::Text, word(&[("text", LogFormat::Text), ("json", LogFormat::Json)])),
        access: table.value("access", AccessLog::Off, access),
    }
}

fn level(value: &DeValue<'_>) -> Result<String, Expected> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = value.as_str().unwrap_or_default();
    // A bare word that is no level is a target to tracing, and would silence all others.
    let bare = text.split(',').map(str::trim).find(|part| !part.contains(['=', '[', ']', '{', '}']) && !is_level(part));
    // One by one: as a filter they would be told on standard error, at every reload, that a release has no traces.
    let is_filter = |text: &str| text.split(',').all(|part| part.is_empty() || part.parse::<Directive>().is_ok());
    match bare {
        None if is_filter(text) => Ok(text.to_owned()),
        bare => {
            let meant = bare.and_then(|word| nearest(word, LEVELS));
            let hint = meant.map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default();
            Err(format!("one of {}, or a filter such as \"info,teal=debug\"{hint}", LEVELS.join(", ")).into())
        }
    }
}

fn is_level(word: &str) -> bool {
    !word.is_empty() && word.parse::<LevelFilter>().is_ok()
}

fn access(value: &DeValue<'_>) -> Result<AccessLog, Expected> {
    match value.as_str().unwrap_or_default() {
        "off" => Ok(AccessLog::Off),
        "json" => Ok(AccessLog::Stdout),
        // A word without either is more likely a misspelling than a file.
        text if text.contains(['/', '.']) && !text.ends_with('/') => path(value).map(AccessLog::File),
        _ => Err("\"off\", \"json\" for lines on standard output, or a file such as \"./access.log\"".into()),
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 20_000,
            connections_per_ip: None,
            request_head: 64 << 10,
            request_headers: 100,
            request_body: None,
            rate: None,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
        }
    }
}

/// Reads the limits in `table`, those absent as in `base`.
fn limits(table: &mut Table<'_>, base: Limits) -> Limits {
    const MOST_CONNECTIONS: u64 = 10_000_000;
    let timeout = || duration(SHORTEST..=LONGEST);
    let per_ip =
        |value: &DeValue<'_>| whole(0..=MOST_CONNECTIONS)(value).map(|most| Some(most).filter(|most| *most > 0));
    let head = |value: &DeValue<'_>| size(1 << 10..=1 << 20)(value).map(|octets| octets as usize);
    let body = |value: &DeValue<'_>| size(0..=1 << 40)(value).map(|octets| Some(octets).filter(|octets| *octets > 0));
    Limits {
        connections: table.value("connections", base.connections, whole(1..=MOST_CONNECTIONS)),
        connections_per_ip: table.value("connections_per_ip", base.connections_per_ip, per_ip),
        request_head: table.value("request_head", base.request_head, head),
        request_headers: table.value("request_headers", base.request_headers, whole(1..=1000)),
        request_body: table.value("request_body", base.request_body, body),
        rate: rate(table, base.rate),
        header_timeout: table.value("header_timeout", base.header_timeout, timeout()),
        idle_timeout: table.value("idle_timeout", base.idle_timeout, timeout()),
        body_timeout: table.value("body_timeout", base.body_timeout, timeout()),
    }
}

fn listeners(top: &mut Table<'_>, base: &Limits, admin: Option<&Admin>) -> Vec<Arc<Listener>> {
    if top.is_empty("listeners") {
        let message =
            "found none, expected at least one: a header [[listeners]] and below it listen = \"0.0.0.0:8080\"";
        top.conflict("listeners", || message.to_owned());
    }
    let read = top.tables("listeners", |table| listener(table, base));
    let mut seen = HashMap::new();
    let mut listeners = Vec::new();
    for listener in read.into_iter().flatten() {
        let (at, listener) = (listener.span(), listener.into_inner());
        if let Some(admin) = admin.filter(|admin| overlap(&admin.listen, &listener.listen)) {
            top.conflict_at(at.start, "listeners.listen", || {
                format!("found \"{}\", expected another than admin.listen, \"{}\"", listener.listen, admin.listen)
            });
        }
        let shown = format!("\"{}\"", listener.listen);
        top.once("listeners.listen", &shown, Spanned::new(at, listener.listen.clone()), &mut seen);
        listeners.push(Arc::new(listener));
    }
    listeners
}

/// Whether one socket would take what is meant for the other. Port 0 is a free port each time.
fn overlap(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) => {
            let is_same_port = one.port() == other.port() && one.port() != 0;
            let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
            is_same_port && one.is_ipv4() == other.is_ipv4() && (is_any || one.ip() == other.ip())
        }
        (one, other) => one == other,
    }
}

/// The listener, at the place of its address.
fn listener(table: &mut Table<'_>, base: &Limits) -> Option<Spanned<Listener>> {
    let listen = table.required("listen", "an address such as \"0.0.0.0:8080\"", listen);
    let tls = table.has("tls").then(|| table.table("tls", tls));
    let http2 = table.value("http2", true, flag);
    let proxy_protocol = table.value("proxy_protocol", ProxyProtocol::Off, word(&PROXY_PROTOCOL));
    let trusted_proxies = table.list("trusted_proxies", network).into_iter().map(Spanned::into_inner).collect();
    let ready_path = table.value("ready_path", "/.well-known/teal/ready".to_owned(), plain_path);
    let ready_when = table.value("ready_when", ReadyWhen::Any, word(&READY_WHEN));
    let redirect_to_https = table.value("redirect_to_https", false, flag);
    let limits = limits(table, base.clone());
    let listen = listen?;
    let is_tcp = matches!(listen.get_ref(), Address::Tcp(_));
    if proxy_protocol != ProxyProtocol::Off && is_tcp && table.is_empty("trusted_proxies") {
        let message = "found without trusted_proxies, expected both: the header of nobody else is believed";
        table.conflict("proxy_protocol", || message.to_owned());
    }
    let (at, listen) = (listen.span(), listen.into_inner());
    let listener = Listener {
        listen,
        tls: tls.flatten().map(Arc::new),
        http2,
        proxy_protocol,
        trusted_proxies,
        ready_path,
        ready_when,
        redirect_to_https,
        limits,
    };
    Some(Spanned::new(at, listener))
}

const READY_WHEN: [(&str, ReadyWhen); 3] =
    [("running", ReadyWhen::Running), ("any", ReadyWhen::Any), ("all", ReadyWhen::All)];

const PROXY_PROTOCOL: [(&str, ProxyProtocol); 3] =
    [("off", ProxyProtocol::Off), ("accept", ProxyProtocol::Accept), ("require", ProxyProtocol::Require)];

type Services = BTreeMap<Arc<str>, Arc<Service>>;

fn routes(top: &mut Table<'_>, services: &Services) -> Vec<Route> {
    let read = top.tables("routes", |table| route(table, services));
    let mut seen = HashMap::new();
    let mut routes = Vec::new();
    for route in read.into_iter().flatten() {
        let (at, route) = (route.span(), route.into_inner());
        let key = (route.host.clone(), route.path.clone());
        top.once("routes.path", &shown(&route), Spanned::new(at, key), &mut seen);
        routes.push(route);
    }
    routes
}

fn shown(route: &Route) -> String {
    match &route.host {
        HostPattern::Any => format!("{:?} for any host", &*route.path),
        HostPattern::Exact(host) => format!("{:?} for {host}", &*route.path),
        HostPattern::Below(host) => format!("{:?} for *.{host}", &*route.path),
    }
}

/// The route, at the place of its path.
fn route(table: &mut Table<'_>, services: &Services) -> Option<Spanned<Route>> {
    let host = table.optional("host", host_pattern);
    let path = table.optional("path", route_path);
    let is_whole = host.is_some() == table.has("host") && path.is_some() == table.has("path");
    let at = path.as_ref().map_or(table.at()..table.at(), Spanned::span);
    let service = table.required("service", "the name of a service", text);
    if let Some(service) = service.as_ref().filter(|service| !services.contains_key(service.get_ref().as_str())) {
        table.conflict("service", || unknown_service(service.get_ref(), services));
    }
    let route = Route {
        host: host.map_or(HostPattern::Any, Spanned::into_inner),
        path: path.map_or("/".into(), Spanned::into_inner),
        strip_prefix: table.value("strip_prefix", false, flag),
        access: admitted(table),
        rate: rate(table, None),
        service: service?.into_inner().into(),
    };
    is_whole.then(|| Spanned::new(at, route))
}

fn unknown_service(name: &str, services: &Services) -> String {
    let names = || services.keys().map(|name| &**name);
    let (found, known) = (quoted(name), listed(names()));
    match nearest(name, names()) {
        _ if services.is_empty() => {
            format!("found {found}, expected a service, but there is none: add [services.NAME]")
        }
        Some(meant) => format!("found {found}, expected one of {known}; did you mean {meant:?}?"),
        None => format!("found {found}, expected one of {known}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_goes_where_systemd_says() {
        assert_eq!(default_state_dir(None), PathBuf::from("./teal-state"));
        assert_eq!(default_state_dir(Some("".into())), PathBuf::from("./teal-state"));
        assert_eq!(default_state_dir(Some("/var/lib/teal:/var/lib/other".into())), PathBuf::from("/var/lib/teal"));
    }

    #[test]
    fn a_token_is_one_visible_line() {
        assert_eq!(secret(" s3cret\n"), Some(Secret("s3cret".into())));
        for bad in ["", "\n", "two words", "two\nlines", "schön"] {
            assert_eq!(secret(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn levels_and_filters() {
        for good in ["info", "WARN", "info,teal=debug", "off", "teal[request{id=1}]=trace,info"] {
            assert_eq!(level(&DeValue::String(good.into())), Ok(good.to_owned()));
        }
        for bad in ["", "inof", "info,teal", "teal=loud", "info,", "=debug,x"] {
            assert!(level(&DeValue::String(bad.into())).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sockets_that_would_take_each_others_connections() {
        let overlap = |one: &str, other: &str| overlap(&one.parse().expect(one), &other.parse().expect(other));
        assert!(overlap("127.0.0.1:80", "127.0.0.1:80"));
        assert!(overlap("127.0.0.1:80", "0.0.0.0:80"));
        assert!(overlap("unix:/a", "unix:/a"));
        assert!(!overlap("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!overlap("[::1]:80", "0.0.0.0:80"));
        assert!(!overlap("unix:/a", "127.0.0.1:80"));
    }
}
