//! Which header fields go on, and the heads that are sent.
//!
//! Names keep their spelling and fields their order. What belongs to one hop only is dropped both ways, `X-Forwarded-*`
//! and `X-Request-Id` are set on the way in, and on the way out nothing is added but what the framing needs.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::config::{HostHeader, Listener, Service};
use crate::http::body::{Encoding, push_field};
use crate::http::head::{AnswerHead, Framing, Known, RequestHead, plain_decimal, split_port, tokens};
use crate::service::Service as Live;

/// The id of a request, in the `X-Request-Id` field.
#[derive(Clone, Debug)]
pub(crate) enum RequestId {
    /// Of a trusted peer.
    Given(Box<[u8]>),
    New([u8; 32]),
}

impl RequestId {
    /// Visible ASCII.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            RequestId::Given(id) => id,
            RequestId::New(id) => id,
        }
    }
}

const MAX_REQUEST_ID: usize = 128;

/// The two digits of every octet.
const HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [digits[byte >> 4], digits[byte & 0xf]];
        byte += 1;
    }
    table
};

/// Where a request came in.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    /// `None` on a unix socket.
    pub(crate) peer: Option<IpAddr>,
    pub(crate) is_trusted: bool,
    /// The port that the client connected to.
    pub(crate) port: Option<u16>,
    pub(crate) proto: &'a str,
}

/// Whether the forwarding headers of `peer` are believed.
pub(crate) fn is_trusted(listener: &Listener, peer: Option<IpAddr>) -> bool {
    peer.is_some_and(|peer| listener.trusts(peer))
}

/// The address of the client: the right-most one that is not a trusted proxy's.
pub(crate) fn client_address(listener: &Listener, head: &RequestHead<'_>, peer: Option<IpAddr>) -> Option<IpAddr> {
    let mut client = peer?;
    if !listener.trusts(client) {
        return peer;
    }
    let mut hops = hops(head);
    while listener.trusts(client)
        && let Some(hop) = hops.pop().and_then(parse_hop)
    {
        client = hop;
    }
    Some(client)
}

/// Who asked, one proxy after the other, by `X-Forwarded-For`, or where there is none by `Forwarded` (RFC 7239).
fn hops<'a>(head: &RequestHead<'a>) -> Vec<&'a [u8]> {
    let told = |by| head.headers.iter().filter(move |header| Known::of(header.name) == by);
    let mut usual = told(Known::ForwardedFor).peekable();
    if usual.peek().is_some() {
        return usual.flat_map(|header| tokens(header.value)).collect();
    }
    told(Known::Forwarded).flat_map(|header| tokens(header.value)).map(node).collect()
}

/// Whom an element of `Forwarded` is for, nobody if it does not say. Elements end at every comma, in quotes or not: no
/// address has one, and quotes that a client has left open do not hide what a proxy has added.
fn node(element: &[u8]) -> &[u8] {
    let mut pairs = element.split(|&octet| octet == b';').map(<[u8]>::trim_ascii);
    let value = pairs.find_map(|pair| match pair.split_at_checked(4) {
        Some((name, value)) if name.eq_ignore_ascii_case(b"for=") => Some(value),
        _ => None,
    });
    let value = value.unwrap_or_default();
    value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
}

/// An address as proxies write it, with or without brackets and a port.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address: Option<IpAddr> = bare.parse().ok();
    // Who listens on both families at once writes "::ffff:192.0.2.1", which is the same client.
    address.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())).map(|ip| ip.to_canonical())
}

/// The request's own id if it may be believed, else a new one.
pub(crate) fn request_id(head: &RequestHead<'_>, is_trusted: bool) -> RequestId {
    let is_sane =
        |value: &&[u8]| !value.is_empty() && value.len() <= MAX_REQUEST_ID && value.iter().all(u8::is_ascii_graphic);
    match head.request_id.filter(is_sane) {
        Some(id) if is_trusted => RequestId::Given(id.into()),
        _ => new_request_id(),
    }
}

pub(crate) fn new_request_id() -> RequestId {
    let mut id = [0; 32];
    for (digits, byte) in id.chunks_exact_mut(2).zip(fastrand::u128(..).to_le_bytes()) {
        digits.copy_from_slice(&HEX[usize::from(byte)]);
    }
    RequestId::New(id)
}

/// A request head as the origin gets it.
#[derive(Debug)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    /// Where the value of `Host` stands in it.
    host: Range<usize>,
}

impl Outgoing {
    /// The bytes for an origin that wants `host`; without it, for any origin, to be had once.
    pub(crate) fn take(&mut self, host: Option<&str>) -> Option<Vec<u8>> {
        let Some(host) = host else { return (!self.bytes.is_empty()).then(|| std::mem::take(&mut self.bytes)) };
        let (before, after) = (&self.bytes[..self.host.start], &self.bytes[self.host.end..]);
        Some([before, host.as_bytes(), after].concat())
    }
}

/// Writes the head for the origin. `strip` octets are taken off the front of the path.
pub(crate) fn outgoing(
    head: &RequestHead<'_>,
    service: &Service,
    origin: &Origin<'_>,
    strip: usize,
    id: &RequestId,
) -> Outgoing {
    let mut bytes = Vec::with_capacity(1024);
    let out = &mut bytes;
    out.extend_from_slice(head.method.as_bytes());
    out.push(b' ');
    push_target(out, head.target, strip);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    let start = out.len();
    out.extend_from_slice(match &service.host {
        HostHeader::Preserve | HostHeader::Upstream => head.host,
        HostHeader::Fixed(host) => host.as_bytes(),
    });
    let host = start..out.len();
    out.extend_from_slice(b"\r\n");
    push_request_fields(out, head, origin);
    push_forwarded(out, head, origin);
    push_field(out, "X-Request-Id", id.as_bytes());
    if head.framing == Framing::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    match (head.websocket_key.is_some(), head.accepts_trailers) {
        (true, _) => out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        (false, true) => out.extend_from_slice(b"Connection: TE\r\nTE: trailers\r\n"),
        (false, false) => {}
    }
    out.extend_from_slice(b"\r\n");
    Outgoing { bytes, host }
}

fn push_target(out: &mut Vec<u8>, target: &str, strip: usize) {
    let rest = target.get(strip..).unwrap_or(target);
    if !rest.starts_with('/') && rest != "*" {
        out.push(b'/');
    }
    out.extend_from_slice(rest.as_bytes());
}

/// The client's own fields, without those of this hop and those that are written anew.
fn push_request_fields(out: &mut Vec<u8>, head: &RequestHead<'_>, origin: &Origin<'_>) {
    for header in head.headers {
        let goes_on = match Known::of(header.name) {
            Known::ContentLength => {
                push_field(out, header.name, plain_decimal(header.value));
                continue;
            }
            // CGI and its kin would take it for the variable HTTP_PROXY (CVE-2016-5385).
            Known::Proxy
            | Known::Host
            | Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::Upgrade
            | Known::Te
            | Known::TransferEncoding
            | Known::RequestId
            | Known::ForwardedFor => false,
            Known::Expect => !head.is_http_10,
            Known::Forwarded | Known::ForwardedProto | Known::ForwardedHost | Known::ForwardedPort => origin.is_trusted,
            _ => !is_named(&head.named_by_connection, header.name) && !is_lookalike(header.name),
        };
        if goes_on {
            push_field(out, header.name, header.value);
        }
    }
}

/// CGI and its kin read `_` in a name as `-`: what a client says so must not pass for what teal says (CVE-2015-0219).
fn is_lookalike(name: &str) -> bool {
    memchr::memchr(b'_', name.as_bytes()).is_some() && Known::of(&name.replace('_', "-")) != Known::Other
}

fn push_forwarded(out: &mut Vec<u8>, head: &RequestHead<'_>, origin: &Origin<'_>) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    if origin.is_trusted {
        let earlier = head.headers.iter().filter(|header| Known::of(header.name) == Known::ForwardedFor);
        let mut is_told = false;
        for header in earlier {
            is_told = true;
            out.extend_from_slice(header.value);
            out.extend_from_slice(b", ");
        }
        if !is_told {
            push_told_otherwise(out, head);
        }
    }
    push_address(out, origin.peer);
    out.extend_from_slice(b"\r\n");
    let is_given = |name: &str| origin.is_trusted && head.header(name).is_some();
    if !is_given("x-forwarded-proto") {
        push_field(out, "X-Forwarded-Proto", origin.proto.as_bytes());
    }
    if !is_given("x-forwarded-host") {
        push_field(out, "X-Forwarded-Host", head.host);
    }
    if let Some(port) = origin.port
        && !is_given("x-forwarded-port")
    {
        push_field(out, "X-Forwarded-Port", itoa::Buffer::new().format(port).as_bytes());
    }
}

/// What `Forwarded` says in the words of `X-Forwarded-For`, as far from the right as it names addresses.
fn push_told_otherwise(out: &mut Vec<u8>, head: &RequestHead<'_>) {
    let addresses: Vec<IpAddr> = hops(head).into_iter().rev().map_while(parse_hop).collect();
    for address in addresses.into_iter().rev() {
        push_address(out, Some(address));
        out.extend_from_slice(b", ");
    }
}

fn push_address(out: &mut Vec<u8>, address: Option<IpAddr>) {
    match address {
        Some(IpAddr::V4(address)) => {
            for (place, octet) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        Some(IpAddr::V6(address)) => out.extend_from_slice(address.to_string().as_bytes()),
        None => out.extend_from_slice(b"unknown"),
    }
}

/// How the client gets an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Delivery {
    pub(crate) encoding: Encoding,
    /// The connection does not go on after it.
    pub(crate) closes: bool,
    pub(crate) to_http_10: bool,
}

/// Writes the head of an answer for the client.
pub(crate) fn incoming(head: &AnswerHead<'_>, delivery: Delivery, color: Option<&Live>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    let out = &mut bytes;
    push_status_line(out, head.status, head.reason);
    for header in head.headers {
        let goes_on = match Known::of(header.name) {
            Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::Upgrade
            | Known::TransferEncoding => false,
            Known::ContentLength => {
                // RFC 9110 §8.6 forbids it elsewhere, and a lax client would take so much of the next answer for a body.
                if head.status >= 200 && head.status != 204 {
                    push_field(out, header.name, plain_decimal(header.value));
                }
                continue;
            }
            _ => !is_named(&head.named_by_connection, header.name),
        };
        if goes_on {
            push_field(out, header.name, header.value);
        }
    }
    push_hop(out, head, delivery);
    if let Some(service) = color.filter(|service| service.config.expose_color) {
        push_field(out, "X-Teal-Color", service.active.as_str().as_bytes());
        push_field(out, "X-Teal-Generation", itoa::Buffer::new().format(service.number).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    bytes
}

pub(crate) fn push_status_line(out: &mut Vec<u8>, status: u16, reason: &str) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The fields of this hop.
fn push_hop(out: &mut Vec<u8>, head: &AnswerHead<'_>, delivery: Delivery) {
    if head.upgrades_to_websocket {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        return;
    }
    if head.status < 200 {
        return;
    }
    if delivery.encoding == Encoding::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if delivery.closes {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if delivery.to_http_10 {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
}

fn is_named(named: &[&[u8]], name: &str) -> bool {
    named.iter().any(|named| named.eq_ignore_ascii_case(name.as_bytes()))
}

/// The value of a cookie.
pub(crate) fn cookie<'a>(head: &RequestHead<'a>, name: &str) -> Option<&'a [u8]> {
    let fields = head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("cookie"));
    let mut pairs = fields.flat_map(|header| header.value.split(|&byte| byte == b';')).map(<[u8]>::trim_ascii);
    pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// `host` without its port, for a redirect.
pub(crate) fn without_port(host: &[u8]) -> &[u8] {
    split_port(host).0
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{Config, parse};
    use crate::http::head::parse_request;

    use super::*;

    fn config(listener: &str) -> Config {
        let text = format!(
            "[[listeners]]\nlisten = \"127.0.0.1:0\"\n{listener}\n[services.a]\nblue = [\"127.0.0.1:1\"]\n\
             [[routes]]\npath = \"/\"\nservice = \"a\"\n"
        );
        parse(&text, Path::new("test.toml")).expect("a valid configuration")
    }

    fn with_head<T>(config: &Config, fields: &str, look: impl FnOnce(&RequestHead<'_>) -> T) -> T {
        let head = format!("GET /a/b?c HTTP/1.1\r\nHost: shop\r\n{fields}\r\n");
        let parsed = parse_request(head.as_bytes(), &config.listeners[0].limits, |head, _| look(head));
        parsed.expect("a valid head").expect("a whole head")
    }

    #[test]
    fn the_client_is_the_first_from_the_right_that_nobody_vouches_for() {
        let config = config("trusted_proxies = [\"10.0.0.0/8\", \"::1\"]");
        let cases = [
            ("9.9.9.9", "1.1.1.1", "9.9.9.9"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "1.1.1.1, 2.2.2.2", "2.2.2.2"),
            ("10.0.0.1", "1.1.1.1, 2.2.2.2, 10.0.0.2", "2.2.2.2"),
            ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("10.0.0.1", "1.1.1.1, garbage, 10.0.0.2", "10.0.0.2"),
            ("10.0.0.1", "1.1.1.1:55555", "1.1.1.1"),
            ("10.0.0.1", "1.1.1.1, ::ffff:10.0.0.2", "1.1.1.1"),
            ("10.0.0.1", "[::ffff:1.1.1.1]:55555", "1.1.1.1"),
            ("::1", "2001:db8::1", "2001:db8::1"),
            ("::1", "[2001:db8::1]:55555", "2001:db8::1"),
            ("::1", "[2001:db8::1]", "2001:db8::1"),
        ];
        for (peer, forwarded, client) in cases {
            let fields = format!("X-Forwarded-For: {forwarded}\r\nForwarded: for=7.7.7.7\r\n");
            let peer = peer.parse().expect("an address");
            let found = with_head(&config, &fields, |head| client_address(&config.listeners[0], head, Some(peer)));
            assert_eq!(found, client.parse().ok(), "{peer} for {forwarded:?}");
        }
    }

    #[test]
    fn a_proxy_that_speaks_rfc_7239_is_understood_too() {
        let config = config("trusted_proxies = [\"10.0.0.0/8\"]");
        let cases = [
            ("for=1.1.1.1", "1.1.1.1", "1.1.1.1, "),
            ("for=1.1.1.1, For=\"2.2.2.2:80\";proto=https", "2.2.2.2", "1.1.1.1, 2.2.2.2, "),
            ("by=10.0.0.9;for=\"[2001:db8::1]:80\", for=10.0.0.2", "2001:db8::1", "2001:db8::1, 10.0.0.2, "),
            ("for=1.1.1.1\r\nForwarded: for=2.2.2.2", "2.2.2.2", "1.1.1.1, 2.2.2.2, "),
            // What the client says cannot hide what the proxy has added.
            ("for=\"1.1.1.1, for=2.2.2.2", "2.2.2.2", "2.2.2.2, "),
            ("\", for=2.2.2.2", "2.2.2.2", "2.2.2.2, "),
            ("for=1.1.1.1, for=_hidden", "10.0.0.1", ""),
            ("for=1.1.1.1, for=unknown, for=10.0.0.2", "10.0.0.2", "10.0.0.2, "),
            ("proto=https", "10.0.0.1", ""),
            ("", "10.0.0.1", ""),
        ];
        for (forwarded, client, told) in cases {
            let fields = format!("Forwarded: {forwarded}\r\n");
            let peer = "10.0.0.1".parse().ok();
            let found = with_head(&config, &fields, |head| client_address(&config.listeners[0], head, peer));
            assert_eq!(found, client.parse().ok(), "{forwarded:?}");
            let origin = Origin { peer, is_trusted: true, port: None, proto: "http" };
            let mut sent = Vec::new();
            with_head(&config, &fields, |head| push_forwarded(&mut sent, head, &origin));
            let expected = format!("X-Forwarded-For: {told}10.0.0.1\r\n");
            assert!(sent.starts_with(expected.as_bytes()), "{forwarded:?}: {}", sent.escape_ascii());
        }
        let stranger = "9.9.9.9".parse().ok();
        let found = with_head(&config, "Forwarded: for=1.1.1.1\r\n", |head| {
            client_address(&config.listeners[0], head, stranger)
        });
        assert_eq!(found, stranger);
    }

    #[test]
    fn only_a_sane_id_of_a_trusted_peer_is_kept() {
        let config = config("");
        let long = "x".repeat(MAX_REQUEST_ID + 1);
        for (given, is_trusted, is_kept) in
            [("abc", true, true), ("abc", false, false), ("", true, false), ("a b", true, false), (&long, true, false)]
        {
            let fields = format!("X-Request-Id: {given}\r\n");
            let id = with_head(&config, &fields, |head| request_id(head, is_trusted));
            assert_eq!(id.as_bytes() == given.as_bytes(), is_kept, "{given:?}");
            assert!(is_kept || id.as_bytes().len() == 32);
        }
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let config = config("");
        let fields = "Cookie: asid=1; sid2=2;sid=3; sid=4\r\ncookie: x=y=z\r\n";
        let found = |name: &str| with_head(&config, fields, |head| cookie(head, name).map(<[u8]>::to_vec));
        assert_eq!(found("sid"), Some(b"3".to_vec()));
        assert_eq!(found("x"), Some(b"y=z".to_vec()));
        assert_eq!((found("SID"), found("si"), found("")), (None, None, None));
    }

    #[test]
    fn a_head_for_an_origin_is_written_in_order() {
        let config = config("");
        let origin = Origin { peer: "::1".parse().ok(), is_trusted: false, port: Some(8080), proto: "http" };
        let fields = "Accept: a\r\nConnection: Gone\r\nGone: 1\r\nx-forwarded-for: 1.1.1.1\r\nZ: z\r\n";
        let id = RequestId::Given(b"id".as_slice().into());
        let service = &config.services["a"];
        let mut outgoing = with_head(&config, fields, |head| outgoing(head, service, &origin, 2, &id));
        let rest = "Accept: a\r\nZ: z\r\nX-Forwarded-For: ::1\r\nX-Forwarded-Proto: http\r\n\
                    X-Forwarded-Host: shop\r\nX-Forwarded-Port: 8080\r\nX-Request-Id: id\r\n\r\n";
        let text = |bytes: Option<Vec<u8>>| String::from_utf8(bytes.expect("a head")).expect("a text");
        assert_eq!(text(outgoing.take(Some("other:1"))), format!("GET /b?c HTTP/1.1\r\nHost: other:1\r\n{rest}"));
        assert_eq!(text(outgoing.take(None)), format!("GET /b?c HTTP/1.1\r\nHost: shop\r\n{rest}"));
        assert_eq!(outgoing.take(None), None);
    }
}
