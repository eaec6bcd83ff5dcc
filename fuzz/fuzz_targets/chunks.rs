//! However a chunked body is cut into pieces: what goes on are the data and the trailers that a second reader finds in it,
//! and what that reader refuses does not go on as a whole body.
#![no_main]

#[allow(dead_code, reason = "a target uses a part of it")]
#[path = "../support/reader.rs"]
mod reader;
#[allow(dead_code, reason = "a target uses a part of it")]
#[path = "../support/spelling.rs"]
mod spelling;

use libfuzzer_sys::fuzz_target;
use teal::http::fuzzing::{Chunks, Refused, chunks};

use reader::Chunked;

const PIECES: &[&str] = &[
    "0\r\n\r\n",
    "0\r\n",
    "5\r\nhello\r\n",
    "\r\n",
    ";x=\"y\"",
    "X: y\r\n",
    "Private: y\r\n",
    "Host: a\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Proxy: x\r\n",
    "X-Forwarded-For: x\r\n",
    "ffffffffffffffff",
    "0000000000000000",
    "GET / HTTP/1.1\r\n",
];
/// Trailers that change what a message means, or who sent it.
const GONE: [&str; 5] = ["host", "content-length", "transfer-encoding", "proxy", "x-forwarded-for"];
const MOST_TRAILERS: usize = 64;

fuzz_target!(|data: &[u8]| {
    let [rhythm, data @ ..] = data else { return };
    let bytes = spelling::spelt(data, PIECES);
    let mut start = 0;
    let cuts = spelling::cuts(*rhythm, bytes.len());
    let pieces: Vec<&[u8]> = cuts.iter().map(|&end| &bytes[std::mem::replace(&mut start, end)..end]).collect();
    let private: &[&[u8]] = if rhythm & 1 == 0 { &[] } else { &[b"private"] };
    let forwarded = chunks(&pieces, private);
    let all_at_once = chunks(&[&bytes], private);
    match reader::chunked(&bytes) {
        Ok(Some(meant)) => whole(&forwarded, &meant, !private.is_empty()),
        Ok(None) => assert!(forwarded.as_ref().is_ok_and(is_begun) || forwarded.is_err(), "{forwarded:?}"),
        Err(()) => assert!(forwarded.is_err(), "{forwarded:?}"),
    }
    assert_eq!(forwarded.is_ok(), all_at_once.is_ok(), "{forwarded:?}, at once {all_at_once:?}");
});

fn is_begun(forwarded: &Chunks) -> bool {
    !forwarded.is_done && matches!(reader::chunked(&forwarded.sent), Ok(None))
}

fn whole(forwarded: &Result<Chunks, Refused>, meant: &Chunked<'_>, has_private: bool) {
    let forwarded = match forwarded {
        Ok(forwarded) => forwarded,
        Err(Refused(why)) if why.contains("long") || meant.trailers.len() > MOST_TRAILERS => return,
        Err(why) => panic!("{why:?}"),
    };
    assert_eq!((forwarded.is_done, forwarded.length), (true, meant.length));
    let sent = reader::chunked(&forwarded.sent).expect("a valid body").expect("a whole body");
    assert_eq!((sent.length, sent.data), (forwarded.sent.len(), meant.data.clone()));
    let is_gone = |name: &[u8]| {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        GONE.into_iter().any(is) || (has_private && is("private"))
    };
    assert!(!sent.trailers.iter().any(|trailer| is_gone(trailer.0)), "a trailer goes on");
    let mut left = sent.trailers.iter();
    assert!(left.all(|trailer| meant.trailers.contains(trailer)), "a trailer was made up");
    let kept = meant.trailers.iter().filter(|trailer| trailer.0 == b"X").count();
    assert_eq!(sent.trailers.iter().filter(|trailer| trailer.0 == b"X").count(), kept, "a trailer is lost");
}
