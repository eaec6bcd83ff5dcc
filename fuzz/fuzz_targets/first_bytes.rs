//! However the first bytes of a connection are cut into packets, and whatever protocol they are of: the same request comes
//! out of them, or none.
#![no_main]

#[path = "../support/messages.rs"]
mod messages;
#[path = "../support/spelling.rs"]
mod spelling;

use libfuzzer_sys::fuzz_target;
use teal::http::fuzzing::{request, request_in_pieces};

/// What other protocols begin with.
const OTHERS: [&[u8]; 8] = [
    b"",
    b"\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    b"SSH-2.0-x\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
];

fuzz_target!(|data: &[u8]| {
    let [other, rhythm, data @ ..] = data else { return };
    let mut bytes = OTHERS[usize::from(*other) % OTHERS.len()].to_vec();
    bytes.extend(spelling::spelt(data, messages::PIECES));
    let in_pieces = request_in_pieces(&bytes, &spelling::cuts(*rhythm, bytes.len()));
    match request(&bytes) {
        Ok(whole) => assert_eq!(in_pieces, Ok(whole)),
        // It may be refused only when more has come, but it is no request.
        Err(why) => assert!(matches!(in_pieces, Ok(None) | Err(_)), "{in_pieces:?}, at once {why:?}"),
    }
});
