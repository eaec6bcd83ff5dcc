//! Addresses, hosts and paths: where to listen, where the endpoints are, whom to trust, what a route matches.
//!
//! A wrong address is most often a good one with something missing, so the messages show the text as it should be.
//! Nothing here resolves a name or opens anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use http::uri::PathAndQuery;
use ipnet::IpNet;
use toml::de::DeValue;

use crate::config::reader::Expected;
use crate::config::{Address, HostPattern, Upstream};

impl FromStr for Address {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Address, Expected> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Address::Unix);
        }
        text.parse().map(Address::Tcp).map_err(|_| listen_expected(text))
    }
}

fn listen_expected(text: &str) -> Expected {
    let expected = r#"an address such as "0.0.0.0:8080", "[::]:8080" or "unix:/run/teal.sock""#;
    let hint = match split_port(text) {
        Some(("" | "*", port)) => format!(r#"; for every address of this machine write "0.0.0.0:{port}""#),
        Some(("localhost", port)) => format!(r#"; write "127.0.0.1:{port}""#),
        Some((host, _)) if is_name(host) => "; a name is not resolved here, write the IP address".to_owned(),
        _ => hint(text, "0.0.0.0"),
    };
    format!("{expected}{hint}").into()
}

impl FromStr for Upstream {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Upstream, Expected> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Upstream::Unix);
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => return Ok(Upstream::Ip(address)),
            _ => {}
        }
        let named = split_port(text).filter(|(host, port)| is_name(host) && *port != 0);
        let (host, port) = named.ok_or_else(|| upstream_expected(text))?;
        Ok(Upstream::Name { host: host.to_ascii_lowercase().into(), port })
    }
}

fn upstream_expected(text: &str) -> Expected {
    let expected = r#"an endpoint such as "10.0.0.1:8080", "[::1]:8080", "api.internal:8080" or "unix:/run/api.sock""#;
    let hint = match split_port(text) {
        Some((_, 0)) => "; the port is from 1 to 65535".to_owned(),
        Some(("" | "*", port)) => format!(r#"; for this machine write "127.0.0.1:{port}""#),
        None if is_name(text) => format!(r#"; add the port: "{text}:8080""#),
        _ => hint(text, "127.0.0.1"),
    };
    format!("{expected}{hint}").into()
}

/// What is probably missing or too much in an address.
fn hint(text: &str, this_machine: &str) -> String {
    if let Some((_, rest)) = text.split_once("://") {
        return format!("; leave out the scheme: {:?}", rest.trim_end_matches('/'));
    }
    if text.starts_with('/') {
        return format!("; for a unix socket write {:?}", format!("unix:{text}"));
    }
    if text.contains('/') {
        return "; leave out what follows the port".to_owned();
    }
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!(r#"; add the port: "{ip}:8080""#),
        Ok(IpAddr::V6(ip)) => format!(r#"; put the address in brackets and add the port: "[{ip}]:8080""#),
        Err(_) => port_hint(text, this_machine),
    }
}

fn port_hint(text: &str, this_machine: &str) -> String {
    let digits = text.rsplit_once(':').map_or(text, |(_, port)| port);
    let is_number = !digits.is_empty() && digits.bytes().all(|octet| octet.is_ascii_digit());
    match digits.parse::<u16>() {
        Ok(port) if digits == text => format!(r#"; write "{this_machine}:{port}""#),
        Err(_) if is_number => "; the port is at most 65535".to_owned(),
        _ => String::new(),
    }
}

fn unix_path(path: &str) -> Result<PathBuf, Expected> {
    /// `sun_path` without its final zero.
    const LONGEST: usize = 107;
    if path.is_empty() || path.len() > LONGEST || path.contains('\0') {
        return Err(format!(r#"unix: and a path of 1 to {LONGEST} octets such as "unix:/run/teal.sock""#).into());
    }
    Ok(PathBuf::from(path))
}

/// `host:port` at the last colon; the port must be a plain number.
fn split_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let is_number = port.bytes().all(|octet| octet.is_ascii_digit());
    Some((host, port.parse().ok().filter(|_| is_number)?))
}

/// A DNS name, as lenient as resolvers are (`_` is common in container networks), that no one takes for an IP address.
fn is_name(text: &str) -> bool {
    const LONGEST: usize = 253;
    let is_label = |label: &str| {
        let is_sound = label.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'));
        is_sound && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= LONGEST && name.split('.').all(is_label) && !last.bytes().all(|octet| octet.is_ascii_digit())
}

/// A name, an IPv4 address or an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    let in_brackets = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match in_brackets {
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
        None => is_name(text) || text.parse::<Ipv4Addr>().is_ok(),
    }
}

pub(crate) fn listen(value: &DeValue<'_>) -> Result<Address, Expected> {
    text_or_port(value).parse()
}

/// Where the admin API listens, or `None` for `"off"`.
pub(crate) fn admin_listen(value: &DeValue<'_>) -> Result<Option<Address>, Expected> {
    match text_or_port(value) {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(|Expected(words)| format!("\"off\" or {words}").into()),
    }
}

pub(crate) fn upstream(value: &DeValue<'_>) -> Result<Upstream, Expected> {
    text_or_port(value).parse()
}

/// A network such as `10.0.0.0/8`, or a single address.
pub(crate) fn network(value: &DeValue<'_>) -> Result<IpNet, Expected> {
    let text = text(value);
    let network = text.parse::<IpNet>().ok().map(|network| network.trunc());
    let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
    network.or_else(single).ok_or_else(|| r#"a network such as "10.0.0.0/8" or an address such as "10.0.0.1""#.into())
}

/// A `Host` value, with or without port, lower-cased.
pub(crate) fn authority(value: &DeValue<'_>) -> Result<String, Expected> {
    let text = text(value);
    let is_sound = is_host(text) || split_port(text).is_some_and(|(host, _)| is_host(host));
    if is_sound {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(r#"a host such as "api.example.com" or "api.example.com:8080""#.into())
    }
}

/// The host of a route: `shop.example.com` or `*.example.com`.
pub(crate) fn host_pattern(value: &DeValue<'_>) -> Result<HostPattern, Expected> {
    let text = text(value);
    let below = text.strip_prefix("*.");
    let host = below.unwrap_or(text);
    let is_sound = if below.is_some() { is_name(host) } else { is_host(host) };
    if !is_sound || host.ends_with('.') {
        return Err(host_expected(text));
    }
    let host: Arc<str> = host.to_ascii_lowercase().into();
    Ok(if below.is_some() { HostPattern::Below(host) } else { HostPattern::Exact(host) })
}

fn host_expected(text: &str) -> Expected {
    let hint = match split_port(text) {
        Some((host, _)) => format!("; a route looks at the name alone: {host:?}"),
        None if text == "*" => "; leave host out to match any".to_owned(),
        None if text.contains("://") => "; leave out the scheme".to_owned(),
        None if text.ends_with('.') => "; leave out the final dot".to_owned(),
        None if !text.is_ascii() => "; write it as browsers send it: \"xn--…\"".to_owned(),
        None => String::new(),
    };
    format!(r#"a host such as "shop.example.com" or "*.example.com"{hint}"#).into()
}

/// The path of a route: a prefix without query, and without trailing `/` unless it is the root.
pub(crate) fn route_path(value: &DeValue<'_>) -> Result<Arc<str>, Expected> {
    let text = text(value);
    let hint = match text {
        text if text.ends_with("/*") => "; a path matches all below it, leave out the *",
        text if text.contains(['?', '#']) => "; a route does not look at the query",
        text if !text.starts_with('/') => "; it starts with /",
        text if !is_target(text) => "; write it as clients send it, percent-encoded",
        text => {
            let trimmed = text.trim_end_matches('/');
            return Ok(if trimmed.is_empty() { "/".into() } else { trimmed.into() });
        }
    };
    Err(format!(r#"a path such as "/" or "/api"{hint}"#).into())
}

/// A path without query, such as `/ready`.
pub(crate) fn plain_path(value: &DeValue<'_>) -> Result<String, Expected> {
    match text(value) {
        text if is_target(text) && !text.contains('?') => Ok(text.to_owned()),
        _ => Err(r#"a path without query such as "/ready""#.into()),
    }
}

/// What a request line asks for: a path and perhaps a query.
pub(crate) fn target(value: &DeValue<'_>) -> Result<String, Expected> {
    match text(value) {
        text if is_target(text) => Ok(text.to_owned()),
        _ => Err(r#"a path such as "/healthz" or "/healthz?deep=1""#.into()),
    }
}

/// Origin-form of RFC 9112 section 3.2.1.
fn is_target(text: &str) -> bool {
    let is_sound = text.starts_with('/') && text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'#');
    is_sound && PathAndQuery::try_from(text).is_ok()
}

/// Not a string reads as the empty one, which is never right.
fn text<'v>(value: &'v DeValue<'_>) -> &'v str {
    value.as_str().unwrap_or_default()
}

/// A bare port is most likely what a number is.
fn text_or_port<'v>(value: &'v DeValue<'_>) -> &'v str {
    value.as_integer().map_or_else(|| text(value), |port| port.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    fn expected<T: FromStr<Err = Expected> + std::fmt::Debug>(text: &str) -> String {
        text.parse::<T>().expect_err(text).to_string()
    }

    fn read<T>(text: &str, kind: impl Fn(&DeValue<'_>) -> Result<T, Expected>) -> Result<T, String> {
        kind(&DeValue::String(text.into())).map_err(|expected| expected.to_string())
    }

    #[test]
    fn listen_addresses() {
        for good in ["0.0.0.0:8080", "[::]:8080", "127.0.0.1:0", "unix:/run/teal.sock"] {
            assert_eq!(good.parse::<Address>().expect(good).to_string(), good);
        }
    }

    #[test]
    fn a_wrong_listen_address_shows_the_right_one() {
        let hints = [
            (":8080", r#"; for every address of this machine write "0.0.0.0:8080""#),
            ("*:8080", r#"; for every address of this machine write "0.0.0.0:8080""#),
            ("8080", r#"; write "0.0.0.0:8080""#),
            ("localhost:8080", r#"; write "127.0.0.1:8080""#),
            ("edge.internal:8080", "; a name is not resolved here, write the IP address"),
            ("10.0.0.1", r#"; add the port: "10.0.0.1:8080""#),
            ("::1", r#"; put the address in brackets and add the port: "[::1]:8080""#),
            ("http://10.0.0.1:80/", r#"; leave out the scheme: "10.0.0.1:80""#),
            ("0.0.0.0:80800", "; the port is at most 65535"),
            ("/run/teal.sock", r#"; for a unix socket write "unix:/run/teal.sock""#),
            ("", r#"such as "0.0.0.0:8080", "[::]:8080" or "unix:/run/teal.sock""#),
        ];
        for (text, hint) in hints {
            let message = expected::<Address>(text);
            assert!(message.ends_with(hint), "{text:?}: {message}");
        }
        assert!(expected::<Address>("unix:").starts_with("expected unix: and a path"));
        assert!(expected::<Address>(&format!("unix:/{}", "x".repeat(107))).contains("1 to 107 octets"));
    }

    #[test]
    fn endpoints() {
        let good =
            ["10.0.0.1:8080", "[::1]:8080", "api:80", "my_app.internal.:8080", "a-b.c1:65535", "unix:/run/api.sock"];
        for good in good {
            assert_eq!(good.parse::<Upstream>().expect(good).to_string(), good);
        }
        assert_eq!("API.Internal:80".parse::<Upstream>().expect("a name").to_string(), "api.internal:80");
    }

    #[test]
    fn a_wrong_endpoint_shows_the_right_one() {
        let hints = [
            ("10.0.0.1", r#"; add the port: "10.0.0.1:8080""#),
            ("api.internal", r#"; add the port: "api.internal:8080""#),
            ("http://api:80", r#"; leave out the scheme: "api:80""#),
            ("8080", r#"; write "127.0.0.1:8080""#),
            (":8080", r#"; for this machine write "127.0.0.1:8080""#),
            ("10.0.0.1:0", "; the port is from 1 to 65535"),
            ("api:99999", "; the port is at most 65535"),
        ];
        for (text, hint) in hints {
            let message = expected::<Upstream>(text);
            assert!(message.ends_with(hint), "{text:?}: {message}");
        }
        for bad in ["10.0.0:80", "1.2.3.4.5:80", "a..b:80", "-a:80", "a b:80", "api:80/x", "api:+80", "é:80", "u@a:80"]
        {
            assert!(bad.parse::<Upstream>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!(read("10.1.2.3/8", network).expect("a network").to_string(), "10.0.0.0/8");
        assert_eq!(read("10.1.2.3", network).expect("an address").to_string(), "10.1.2.3/32");
        assert_eq!(read("::1", network).expect("an address").to_string(), "::1/128");
        for bad in ["", "10.0.0.0/33", "10/8", "lan", "10.0.0.1:80"] {
            assert!(read(bad, network).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hosts_of_routes() {
        assert_eq!(read("Shop.Example.com", host_pattern), Ok(HostPattern::Exact("shop.example.com".into())));
        assert_eq!(read("*.Example.com", host_pattern), Ok(HostPattern::Below("example.com".into())));
        assert_eq!(read("[::1]", host_pattern), Ok(HostPattern::Exact("[::1]".into())));
        for bad in
            ["", "*", "*.", "a.*.com", "*a.com", "*.1.2.3.4", "shop:80", "http://shop", "shop.", "schön.de", "a b"]
        {
            assert!(read(bad, host_pattern).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_of_routes() {
        for (written, meant) in [("/", "/"), ("//", "/"), ("/api", "/api"), ("/api/", "/api"), ("/a%20b", "/a%20b")] {
            assert_eq!(read(written, route_path).as_deref(), Ok(meant));
        }
        for bad in ["", "api", "/api/*", "/api?x=1", "/a#b", "/a b", "/é", "/a\n"] {
            assert!(read(bad, route_path).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn targets_and_authorities() {
        assert!(read("/healthz?deep=1", target).is_ok());
        assert!(read("/ready?x", plain_path).is_err());
        for bad in ["", "healthz", "http://x/healthz", "/a b", "/a\r\nX: y", "/a#b", "*"] {
            assert!(read(bad, target).is_err(), "{bad:?}");
        }
        for good in ["a.example.com", "A:80", "10.0.0.1:80", "[::1]:80", "[::1]"] {
            assert_eq!(read(good, authority), Ok(good.to_ascii_lowercase()));
        }
        for bad in ["", "a b", "a:b", "::1", "a/b", "a\r\n", "u@a"] {
            assert!(read(bad, authority).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_reads_again(text in "[-a-zA-Z0-9.:/*?#\\[\\]_% é]{0,40}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
            if let Ok(upstream) = text.parse::<Upstream>() {
                prop_assert_eq!(upstream.to_string().parse(), Ok(upstream));
            }
            if let Ok(path) = read(&text, route_path) {
                prop_assert_eq!(read(&path, route_path), Ok(path));
            }
            let _ = (read(&text, network), read(&text, host_pattern), read(&text, authority), read(&text, target));
        }
    }
}
