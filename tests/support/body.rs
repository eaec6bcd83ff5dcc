//! Bodies so long and so irregular that a byte lost, doubled or out of place shows.

use std::sync::LazyLock;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A prime, so that no buffer size divides it.
const PERIOD: usize = 65_521;

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(1);
    (0..PERIOD).map(|_| random.u8(..)).collect()
});

/// The bytes of the body from `at` on, as many as come in one piece.
pub fn piece(at: usize) -> &'static [u8] {
    &PATTERN[at % PERIOD..]
}

/// The first `length` bytes of the body.
pub fn body(length: usize) -> Vec<u8> {
    PATTERN.iter().copied().cycle().take(length).collect()
}

/// Fails the test unless `bytes` are the body's from `at` on.
pub fn check(mut at: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let piece = piece(at);
        let count = piece.len().min(bytes.len());
        assert!(bytes[..count] == piece[..count], "the body differs between byte {at} and byte {}", at + count);
        (at, bytes) = (at + count, &bytes[count..]);
    }
}

/// Writes the first `length` bytes; false when the other side does not take them.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), length: usize) -> bool {
    let mut at = 0;
    while at < length {
        let piece = piece(at);
        let count = piece.len().min(length - at);
        if stream.write_all(&piece[..count]).await.is_err() {
            return false;
        }
        at += count;
    }
    true
}

/// Reads the first `length` bytes, those in `buffer` first, and checks them.
pub async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>, length: usize) {
    let mut at = 0;
    while at < length {
        if buffer.is_empty() {
            let count = stream.read_buf(buffer).await.expect("the body goes on");
            assert!(count > 0, "the body ended after {at} of {length} bytes");
        }
        let count = buffer.len().min(length - at);
        check(at, &buffer[..count]);
        buffer.drain(..count);
        at += count;
    }
}
