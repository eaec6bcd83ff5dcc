//! Hosts: exactly one, valid, and the same wherever it is named.

use crate::row::{Row, forwarded, last, refused, row};

/// Lines of `Host` that are none, or too many.
const BAD: [(&str, &str, &str); 46] = [
    ("RFC 9112 §3.2", "two equal hosts", "Host: a\r\nHost: a"),
    ("RFC 9112 §3.2", "two different hosts", "Host: a\r\nHost: b"),
    ("RFC 9112 §3.2", "two hosts in different case", "Host: a\r\nhOsT: b"),
    ("RFC 9112 §3.2", "two hosts far apart", "Host: a\r\nX: y\r\nHost: b"),
    ("RFC 9112 §3.2", "host and empty host", "Host: a\r\nHost:"),
    ("RFC 9112 §3.2", "empty host and host", "Host:\r\nHost: a"),
    ("RFC 9112 §5.1", "space before the colon of the host", "Host : a"),
    ("RFC 9112 §5.1", "second host with a space before the colon", "Host: a\r\nHost : b"),
    ("RFC 9112 §5.2", "folded host", "Host: a\r\n b"),
    ("RFC 9112 §5.2", "host that begins folded", "Host:\r\n a"),
    ("RFC 9112 §5.2", "second host behind a space", "Host: a\r\n Host: b"),
    ("RFC 9112 §2.2", "first host behind a space", " Host: b\r\nHost: a"),
    ("RFC 9110 §7.2", "two words", "Host: a b"),
    ("RFC 9110 §7.2", "two words with a tab", "Host: a\tb"),
    ("RFC 9110 §7.2", "list of hosts", "Host: a, b"),
    ("RFC 9110 §4.2.4", "user", "Host: user@a"),
    ("RFC 9110 §4.2.4", "user and password", "Host: user:secret@a"),
    ("RFC 9110 §4.2.4", "empty user", "Host: @a"),
    ("RFC 9110 §7.2", "at sign behind the host", "Host: a@"),
    ("RFC 9110 §7.2", "path", "Host: a/b"),
    ("RFC 9110 §7.2", "URI for a host", "Host: http://a"),
    ("RFC 9110 §7.2", "query in the host", "Host: a?b"),
    ("RFC 9110 §7.2", "fragment in the host", "Host: a#b"),
    ("RFC 9110 §7.2", "backslash in the host", "Host: a\\b"),
    ("RFC 9110 §7.2", "host in quotes", "Host: \"a\""),
    ("RFC 9110 §7.2", "host in angle brackets", "Host: <a>"),
    ("RFC 9110 §7.2", "host in braces", "Host: {a}"),
    ("RFC 9110 §7.2", "pipe in the host", "Host: a|b"),
    ("RFC 9110 §7.2", "caret in the host", "Host: a^b"),
    ("RFC 9110 §7.2", "backtick in the host", "Host: a`b"),
    ("RFC 9110 §7.2", "umlaut in the host", "Host: \u{e4}"),
    ("RFC 9110 §7.2", "ideographic full stop in the host", "Host: a\u{3002}b"),
    ("RFC 3986 §3.2.3", "port in letters", "Host: a:b"),
    ("RFC 3986 §3.2.3", "port with a minus", "Host: a:-1"),
    ("RFC 3986 §3.2.3", "port with a plus", "Host: a:+80"),
    ("RFC 3986 §3.2.3", "port behind a space", "Host: a: 80"),
    ("RFC 3986 §3.2.3", "port of six digits", "Host: a:123456"),
    ("RFC 3986 §3.2.3", "full-width port", "Host: a:\u{ff18}\u{ff10}"),
    ("RFC 3986 §3.2.3", "two ports", "Host: a:80:80"),
    ("RFC 3986 §3.2.2", "port without name", "Host: :80"),
    ("RFC 3986 §3.2.2", "address without brackets", "Host: ::1"),
    ("RFC 3986 §3.2.2", "open bracket", "Host: [::1"),
    ("RFC 3986 §3.2.2", "empty brackets", "Host: []"),
    ("RFC 3986 §3.2.2", "something behind the brackets", "Host: [::1]x"),
    ("RFC 3986 §3.2.2", "no address in brackets", "Host: [::g]"),
    ("RFC 6874 §2", "zone of an address", "Host: [fe80::1%25eth0]"),
];

/// Hosts that go on as they are.
const GOOD: [(&str, &str, &str); 15] = [
    ("RFC 9110 §7.2", "empty host", ""),
    ("RFC 9110 §7.2", "host", "a"),
    ("RFC 9110 §7.2", "host in upper case", "A.Example"),
    ("RFC 9110 §7.2", "host with a port", "a:8080"),
    ("RFC 3986 §3.2.3", "host with an empty port", "a:"),
    ("RFC 3986 §3.2.2", "host with a dot behind it", "a."),
    ("RFC 3986 §3.2.2", "host with an underscore", "a_b"),
    ("RFC 3986 §3.2.2", "international host", "xn--4ca.example"),
    ("RFC 3986 §3.2.2", "percent-encoded host", "%61"),
    ("RFC 3986 §3.2.2", "sub-delimiters in the host", "a!$&'()*+,;=b"),
    ("RFC 3986 §3.2.2", "IPv4 address", "127.0.0.1"),
    ("RFC 3986 §3.2.2", "IPv6 address", "[::1]"),
    ("RFC 3986 §3.2.2", "IPv6 address with a port", "[::1]:80"),
    ("RFC 3986 §3.2.2", "IPv4 address in IPv6", "[::ffff:1.2.3.4]"),
    ("RFC 3986 §3.2.2", "host of a route", "admin.internal"),
];

/// Absolute targets that do not fit their `Host` line, or nothing.
const BAD_TARGETS: [(&str, &str, &str, &str); 23] = [
    ("RFC 9112 §3.2.2", "target and host disagree", "http://b/", "Host: a"),
    ("RFC 9112 §3.2.2", "target and host disagree about the port", "http://a:81/", "Host: a"),
    ("RFC 9112 §3.2.2", "target without and host with a port", "http://a/", "Host: a:80"),
    ("RFC 9112 §3.2.2", "target below the host", "http://b.a/", "Host: a"),
    ("RFC 9112 §3.2.2", "target with a dot behind the host", "http://a./", "Host: a"),
    ("RFC 9112 §3.2", "target and no host", "http://a/", "X: y"),
    ("RFC 9112 §3.2", "target and empty host", "http://a/", "Host:"),
    ("RFC 9112 §3.2", "target and two hosts", "http://a/", "Host: a\r\nHost: a"),
    ("RFC 9110 §4.2.4", "user in the target", "http://user@a/", "Host: a"),
    ("RFC 9110 §4.2.4", "user in target and host", "http://user@a/", "Host: user@a"),
    ("RFC 9110 §4.2.4", "host as user", "http://a@b/", "Host: a"),
    ("RFC 9110 §4.2.4", "host behind a user", "http://b@a/", "Host: a"),
    ("RFC 9110 §4.2.4", "user behind a colon", "http://a:80@b/", "Host: a"),
    ("RFC 3986 §3.2", "backslash before an at sign", "http://a\\@b/", "Host: a"),
    ("RFC 3986 §3.2", "backslash for a slash", "http://a\\b", "Host: a"),
    ("RFC 3986 §3.2", "fragment before an at sign", "http://a#@b/", "Host: a"),
    ("RFC 9110 §4.2.1", "URI with an empty host", "http:///x", "Host: a"),
    ("RFC 9110 §4.2.1", "URI with only a port", "http://:80/", "Host: a"),
    ("RFC 9110 §4.2.1", "URI with nothing", "http://", "Host: a"),
    ("RFC 9112 §3.2.1", "URI with a query but no path", "http://a?x", "Host: a"),
    ("RFC 3986 §3.2.2", "URI with an open bracket", "http://[::1/", "Host: [::1"),
    ("RFC 3986 §3.2.3", "URI with a bad port", "http://a:b/", "Host: a:b"),
    ("RFC 9112 §3.2.3", "authority with a slash", "a:80/", "Host: a:80"),
];

/// Absolute targets that fit their `Host` line; then what the origin gets as target and as host.
const GOOD_TARGETS: [(&str, &str, &str, &str, &str, &str); 11] = [
    ("RFC 9112 §3.2.2", "URI that fits", "http://a/x?y", "Host: a", "/x?y", "a"),
    ("RFC 9112 §3.2.2", "URI without path", "http://a", "Host: a", "/", "a"),
    ("RFC 9112 §3.2.2", "URI with a port", "http://a:81/", "Host: a:81", "/", "a:81"),
    ("RFC 9110 §4.2.3", "URI in upper case", "HTTP://A/X", "Host: a", "/X", "A"),
    ("RFC 9110 §4.2.2", "https URI", "https://a/", "Host: a", "/", "a"),
    ("RFC 3986 §3.2.2", "URI with an IPv6 address", "http://[::1]:80/", "Host: [::1]:80", "/", "[::1]:80"),
    ("RFC 3986 §3.3", "URI with two slashes", "http://a//b", "Host: a", "//b", "a"),
    ("RFC 3986 §6.2.2.3", "URI with dots", "http://a/../admin", "Host: a", "/../admin", "a"),
    ("RFC 3986 §3.3", "URI in a URI", "http://a/http://b/", "Host: a", "/http://b/", "a"),
    ("RFC 3986 §3.3", "at sign in the path of a URI", "http://a/@b", "Host: a", "/@b", "a"),
    ("RFC 3986 §3.4", "at sign in the query of a URI", "http://a/?@b", "Host: a", "/?@b", "a"),
];

pub(crate) fn rows() -> Vec<Row> {
    let head = |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\n{host}\r\n\r\n");
    let got = |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n@{host}\r\n\r\n");
    let bad = BAD.iter().map(|&(reference, name, host)| row(reference, name, head("/", host), refused(400)));
    let good = GOOD.iter().map(|&(reference, name, host)| {
        row(reference, name, head("/", &format!("Host: {host}")), forwarded(got("/", host)))
    });
    let bad_targets = BAD_TARGETS
        .iter()
        .map(|&(reference, name, target, host)| row(reference, name, head(target, host), refused(400)));
    let good_targets = GOOD_TARGETS.iter().map(|&(reference, name, target, host, path, passed)| {
        row(reference, name, head(target, host), forwarded(got(path, passed)))
    });
    bad.chain(good).chain(bad_targets).chain(good_targets).chain(missing()).collect()
}

fn missing() -> Vec<Row> {
    let got = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n@{host}\r\n\r\n");
    vec![
        row("RFC 9112 §3.2", "no host", "GET / HTTP/1.1\r\n\r\n", refused(400)),
        row("RFC 9112 §3.2", "other fields but no host", "GET / HTTP/1.1\r\nX: y\r\n\r\n", refused(400)),
        row("RFC 9112 §3.2", "no host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", last(200, got(""))),
        row("RFC 9112 §3.2", "two hosts in HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", refused(400)),
        row("RFC 9112 §3.2", "bad host in HTTP/1.0", "GET / HTTP/1.0\r\nHost: a/b\r\n\r\n", refused(400)),
        row("RFC 9112 §3.2.2", "URI without host in HTTP/1.0", "GET http://a/ HTTP/1.0\r\n\r\n", last(200, got("a"))),
        row(
            "RFC 9112 §3.2.2",
            "URI and another host in HTTP/1.0",
            "GET http://a/ HTTP/1.0\r\nHost: b\r\n\r\n",
            refused(400),
        ),
    ]
}
