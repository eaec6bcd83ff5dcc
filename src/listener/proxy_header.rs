//! The PROXY protocol: what a balancer says before all else about the connection that it passes on
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
//!
//! Where a header ends is found here, so that the parser only ever sees a whole one, and nothing behind it is touched. A
//! header that says nothing about the client (LOCAL, UNKNOWN, a unix socket, a datagram) leaves the connection its own
//! addresses, as §2 asks for. Additional fields (TLVs) are skipped, their checksum among them.

use std::net::IpAddr;

use ppp::v1;
use ppp::v2::{self, AddressFamily, Protocol};

/// Octets of the longest header that is read. Version 2 could announce 64 KiB; what balancers add stays far below this.
pub(super) const LONGEST: usize = 4096;
/// Octets of the longest header of version 1, with its line end (§2.1).
const LONGEST_V1: usize = 107;
const BEGIN_V1: &[u8] = b"PROXY ";
/// Octets of version 2 from its signature to the announced length.
const FIXED_V2: usize = 16;
const LOCAL: u8 = 0x20;

/// What the first octets of a connection are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Opening {
    /// No PROXY header.
    Other,
    Header {
        length: usize,
        client: Option<Passed>,
    },
    /// Begins like a header and is none.
    Broken(&'static str),
}

/// The connection that a balancer passes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Passed {
    pub(super) from: IpAddr,
    /// The port that the client connected to.
    pub(super) to: u16,
}

/// Judges the first octets; `None` when it takes more of them.
pub(super) fn judge(octets: &[u8]) -> Option<Opening> {
    if begins(octets, v2::PROTOCOL_PREFIX) {
        judge_v2(octets)
    } else if begins(octets, BEGIN_V1) {
        judge_v1(octets)
    } else {
        Some(Opening::Other)
    }
}

/// Whether the octets are the beginning of such a header as far as there are any.
fn begins(octets: &[u8], with: &[u8]) -> bool {
    let known = octets.len().min(with.len());
    octets[..known] == with[..known]
}

fn judge_v1(octets: &[u8]) -> Option<Opening> {
    let line = &octets[..octets.len().min(LONGEST_V1)];
    match memchr::memchr(b'\n', line) {
        Some(end) => Some(parse_v1(&line[..=end])),
        None if line.len() == LONGEST_V1 => Some(Opening::Broken("longer than 107 octets")),
        None => None,
    }
}

fn parse_v1(line: &[u8]) -> Opening {
    let header = |client| Opening::Header { length: line.len(), client };
    let Some(text) = line.strip_suffix(b"\r\n") else { return Opening::Broken("no CRLF at its end") };
    // Whatever follows the word is to be ignored; the parser would count it.
    if text == b"PROXY UNKNOWN" || text.starts_with(b"PROXY UNKNOWN ") {
        return header(None);
    }
    // The parser takes "+80" for a port.
    if text.contains(&b'+') {
        return Opening::Broken("not a header of version 1");
    }
    match v1::Header::try_from(line).map(|header| (header.header.len(), header.addresses)) {
        Ok((length, v1::Addresses::Tcp4(ip))) if length == line.len() => {
            header(passed(ip.source_address, ip.destination_port))
        }
        Ok((length, v1::Addresses::Tcp6(ip))) if length == line.len() => {
            header(passed(ip.source_address, ip.destination_port))
        }
        _ => Opening::Broken("not a header of version 1"),
    }
}

fn judge_v2(octets: &[u8]) -> Option<Opening> {
    let fixed = octets.get(..FIXED_V2)?;
    let length = FIXED_V2 + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > LONGEST {
        return Some(Opening::Broken("longer than 4096 octets"));
    }
    octets.get(..length).map(parse_v2)
}

fn parse_v2(octets: &[u8]) -> Opening {
    let header = |client| Opening::Header { length: octets.len(), client };
    // The balancer's own connection: what else it says is to be ignored, the family included.
    if octets[12] == LOCAL {
        return header(None);
    }
    let Ok(parsed) = v2::Header::try_from(octets) else { return Opening::Broken("not a header of version 2") };
    match (parsed.addresses, parsed.protocol) {
        (v2::Addresses::IPv4(ip), Protocol::Stream) => header(passed(ip.source_address, ip.destination_port)),
        (v2::Addresses::IPv6(ip), Protocol::Stream) => header(passed(ip.source_address, ip.destination_port)),
        (v2::Addresses::Unix(_), Protocol::Stream) | (_, Protocol::Datagram)
            if parsed.address_family() != AddressFamily::Unspecified =>
        {
            header(None)
        }
        (v2::Addresses::Unspecified, Protocol::Unspecified) => header(None),
        _ => Opening::Broken("an unknown family or protocol"),
    }
}

fn passed(from: impl Into<IpAddr>, to: u16) -> Option<Passed> {
    Some(Passed { from: from.into().to_canonical(), to })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V1: &str = "PROXY TCP4 192.0.2.1 192.0.2.2 51234 443\r\n";

    /// A header of version 2 with this command, family and content.
    fn v2(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).expect("a short content").to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[command, family], &length, content].concat()
    }

    const IPV4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 200, 34, 1, 187];

    fn ipv6() -> Vec<u8> {
        let mut octets = vec![0x20, 1, 0xd, 0xb8];
        octets.resize(32, 0);
        octets[15] = 1;
        octets.extend([200, 34, 1, 187]);
        octets
    }

    fn from(address: &str) -> Option<Passed> {
        Some(Passed { from: address.parse().expect("an address"), to: 443 })
    }

    /// Headers and whose connection they say it is.
    fn good() -> Vec<(Vec<u8>, Option<Passed>)> {
        let with_fields = |content: &[u8]| [content, &[4, 0, 2, 0, 0], &[0xea, 0, 1, 7]].concat();
        let longest = [&IPV4[..], &vec![4; LONGEST - FIXED_V2 - IPV4.len()]].concat();
        vec![
            (V1.into(), from("192.0.2.1")),
            ("PROXY TCP6 2001:db8::1 ::2 51234 443\r\n".into(), from("2001:db8::1")),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::2 51234 443\r\n".into(), from("192.0.2.1")),
            ("PROXY UNKNOWN\r\n".into(), None),
            ("PROXY UNKNOWN ffff:f:f:f:f:f:f:ffff ffff:f:f:f:f:f:f:ffff 65535 65535\r\n".into(), None),
            ("PROXY UNKNOWN so many words that nobody can count them all\r\n".into(), None),
            (v2(0x21, 0x11, &IPV4), from("192.0.2.1")),
            (v2(0x21, 0x11, &with_fields(&IPV4)), from("192.0.2.1")),
            (v2(0x21, 0x11, &longest), from("192.0.2.1")),
            (v2(0x21, 0x21, &ipv6()), from("2001:db8::1")),
            (v2(0x21, 0x21, &with_fields(&ipv6())), from("2001:db8::1")),
            // What says nothing about a client of ours.
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &IPV4), None),
            (v2(0x20, 0x11, &[]), None),
            (v2(0x20, 0xff, &[1, 2, 3]), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x00, &[1, 2, 3]), None),
            (v2(0x21, 0x12, &IPV4), None),
            (v2(0x21, 0x22, &ipv6()), None),
            (v2(0x21, 0x31, &[0; 216]), None),
            (v2(0x21, 0x32, &[0; 216]), None),
        ]
    }

    #[test]
    fn a_header_ends_where_it_ends_whatever_follows() {
        for (header, client) in good() {
            let whole = Some(Opening::Header { length: header.len(), client });
            let shown = String::from_utf8_lossy(&header).into_owned();
            for rest in [b"".as_slice(), b"G", b"\r\n", b"\n", b"PROXY UNKNOWN\r\n", b"\x16\x03\x01"] {
                assert_eq!(judge(&[&header, rest].concat()), whole, "{shown:?} and {rest:?}");
            }
            for cut in 0..header.len() {
                assert_eq!(judge(&header[..cut]), None, "{shown:?} cut after {cut}");
            }
        }
    }

    #[test]
    fn what_cannot_be_a_header_is_left_to_others() {
        let others =
            ["G", "PR ", "PROPFIND / HTTP/1.1\r\n", "proxy TCP4", "\r\nGET", "\r\n\r\nGET", "\x16\x03\x01", "\n"];
        for other in others {
            assert_eq!(judge(other.as_bytes()), Some(Opening::Other), "{other:?}");
        }
    }

    #[test]
    fn what_begins_like_a_header_and_is_none_is_broken() {
        let lines = [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY\u{20}\u{20}TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 -2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 é\r\n",
            "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY UNKNOWN\n",
            "PROXY / HTTP/1.1\r\n",
        ];
        let long = format!("PROXY UNKNOWN {}", "x".repeat(LONGEST_V1 - 14));
        let headers = [
            v2(0x11, 0x11, &IPV4),
            v2(0x31, 0x11, &IPV4),
            v2(0x22, 0x11, &IPV4),
            v2(0x21, 0x10, &IPV4),
            v2(0x21, 0x01, &[]),
            v2(0x21, 0x02, &[]),
            v2(0x21, 0x13, &IPV4),
            v2(0x21, 0x41, &IPV4),
            v2(0x21, 0x11, &IPV4[..11]),
            v2(0x21, 0x21, &IPV4),
            v2(0x21, 0x31, &[0; 215]),
            // Announced only.
            v2(0x21, 0x11, &[0; LONGEST - FIXED_V2 + 1])[..FIXED_V2].to_vec(),
            v2(0x20, 0x00, &[0; 65535])[..FIXED_V2].to_vec(),
        ];
        let texts = lines.iter().map(|line| line.as_bytes().to_vec()).chain([long.into_bytes()]);
        for broken in texts.chain(headers) {
            let judged = judge(&broken);
            assert!(matches!(judged, Some(Opening::Broken(_))), "{:?}: {judged:?}", String::from_utf8_lossy(&broken));
        }
    }

    proptest! {
        /// What was decided stays so, however much more comes; and it is decided within the bound.
        #[test]
        fn no_octets_panic_and_more_of_them_change_no_verdict(
            start in prop_oneof![
                Just(Vec::new()), Just(V1.into()), Just(b"PROXY TCP6 ".to_vec()), Just(v2::PROTOCOL_PREFIX.to_vec()),
                any::<[u8; 4]>().prop_map(|[command, family, high, low]| {
                    [v2::PROTOCOL_PREFIX, &[command & 0x2f, family & 0x3f, high & 0x1f, low]].concat()
                }),
            ],
            rest in prop::collection::vec(any::<u8>(), 0..300),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut octets = [start, rest].concat();
            let early = judge(&octets[..cut.index(octets.len() + 1)]);
            let late = judge(&octets);
            prop_assert!(early.is_none() || early == late, "{early:?} and then {late:?}");
            octets.resize(LONGEST, b'x');
            prop_assert!(judge(&octets).is_some());
        }
    }
}
