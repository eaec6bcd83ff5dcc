//! Paths: matched octet by octet as they were sent, and passed on so. Nothing is decoded, and nothing crosses a route.
//!
//! `/admin` is a route of its own, whose service is told by its host; `/strip` loses its prefix.

use crate::row::{Row, forwarded, row};

/// Targets that do not belong to `/admin`, however they may look to somebody who decodes or resolves them.
const OUTSIDE: [(&str, &str, &str); 35] = [
    ("RFC 9112 §3.2.1", "root", "/"),
    ("RFC 3986 §6.2.2.3", "dot segments", "/a/../b/./c"),
    ("RFC 3986 §6.2.2.3", "dot segments above the root", "/../../etc/passwd"),
    ("RFC 3986 §6.2.2.3", "dot segment into a route", "/a/../admin"),
    ("RFC 3986 §6.2.2.3", "single dot before a route", "/./admin"),
    ("RFC 3986 §6.2.2.3", "double dot before a route", "/../admin"),
    ("RFC 3986 §6.2.2.2", "encoded dots into a route", "/a/%2e%2e/admin"),
    ("CVE-2021-41773", "half encoded dots into a route", "/a/.%2e/admin"),
    ("CVE-2021-41773", "half encoded dots in upper case", "/a/%2E./admin"),
    ("CVE-2021-41773", "doubly encoded dots into a route", "/a/%%32%65%%32%65/admin"),
    ("RFC 3986 §2.4", "dots encoded twice", "/a/%252e%252e/admin"),
    ("RFC 3986 §2.2", "encoded slash into a route", "/a%2f..%2fadmin"),
    ("RFC 3986 §2.2", "encoded slash before a route", "/%2fadmin"),
    ("RFC 3986 §2.2", "encoded slash behind a route", "/admin%2fx"),
    ("RFC 3986 §2.2", "slash encoded twice", "/admin%252fx"),
    ("RFC 3986 §3.3", "two slashes before a route", "//admin"),
    ("RFC 3986 §3.3", "three slashes before a route", "///admin"),
    ("RFC 3986 §3.3", "two slashes, looking like an authority", "//a/admin"),
    ("RFC 3986 §6.2.2.2", "encoded letter of a route", "/%61dmin"),
    ("RFC 3986 §6.2.2.1", "route in upper case", "/ADMIN"),
    ("RFC 3986 §3.3", "longer than a route", "/adminx"),
    ("RFC 3986 §3.3", "shorter than a route", "/admi"),
    ("RFC 3986 §3.3", "parameter behind a route", "/admin;x"),
    ("RFC 3986 §3.3", "dots with a parameter", "/a/..;/admin"),
    ("RFC 3986 §2.1", "NUL behind a route", "/admin%00"),
    ("RFC 3986 §2.1", "space behind a route", "/admin%20"),
    ("RFC 3986 §2.1", "encoded line end and field", "/admin%0d%0aX:%20y"),
    ("RFC 3986 §2.1", "encoded request", "/%20HTTP/1.1%0d%0aHost:%20evil%0d%0a%0d%0aGET%20/x"),
    ("RFC 3986 §2.2", "encoded question mark behind a route", "/admin%3fx"),
    ("RFC 3986 §2.2", "encoded fragment", "/a%23/admin"),
    ("RFC 3986 §3.3", "backslash behind a route", "/admin\\x"),
    ("RFC 3986 §3.3", "backslashes into a route", "/a\\..\\admin"),
    ("RFC 3986 §2.1", "broken encoding", "/%zz%"),
    ("RFC 3986 §2.1", "encoding of sixteen bits", "/%u0061dmin"),
    ("RFC 3986 §3.4", "route in a query", "/?/admin"),
];

/// Targets that belong to `/admin`.
const INSIDE: [(&str, &str, &str); 8] = [
    ("RFC 9112 §3.2.1", "route", "/admin"),
    ("RFC 9112 §3.2.1", "route with a slash", "/admin/"),
    ("RFC 9112 §3.2.1", "below a route", "/admin/x"),
    ("RFC 3986 §3.4", "route with a query", "/admin?x=/a"),
    ("RFC 3986 §3.3", "two slashes behind a route", "/admin//x"),
    ("RFC 3986 §6.2.2.3", "dots out of a route", "/admin/../x"),
    ("RFC 3986 §6.2.2.2", "encoded dots out of a route", "/admin/%2e%2e/x"),
    ("RFC 3986 §2.2", "encoded slashes below a route", "/admin/..%2f..%2fx"),
];

/// Targets that belong to `/strip`, and what the origin gets.
const STRIPPED: [(&str, &str, &str, &str); 8] = [
    ("RFC 9112 §3.2.1", "stripped route", "/strip", "/"),
    ("RFC 9112 §3.2.1", "below a stripped route", "/strip/x", "/x"),
    ("RFC 3986 §3.4", "stripped route with a query", "/strip?x", "/?x"),
    ("RFC 3986 §3.3", "two slashes behind a stripped route", "/strip//admin", "//admin"),
    ("RFC 3986 §6.2.2.3", "dots behind a stripped route", "/strip/../admin", "/../admin"),
    ("RFC 3986 §2.2", "encoded slash behind a route that is not stripped", "/strip%2fadmin", "/strip%2fadmin"),
    ("RFC 3986 §3.3", "star behind a route that is not stripped", "/strip*", "/strip*"),
    ("RFC 9112 §3.2.1", "route behind a stripped route", "/strip/admin", "/admin"),
];

pub(crate) fn rows() -> Vec<Row> {
    let sent = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let got = |target: &str, host: &str| forwarded(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n@a\r\n\r\n"));
    let outside = OUTSIDE.iter().map(|&(reference, name, target)| row(reference, name, sent(target), got(target, "a")));
    let inside = INSIDE
        .iter()
        .map(|&(reference, name, target)| row(reference, name, sent(target), got(target, "admin.internal")));
    let stripped =
        STRIPPED.iter().map(|&(reference, name, target, passed)| row(reference, name, sent(target), got(passed, "a")));
    outside.chain(inside).chain(stripped).collect()
}
