//! A client that writes HTTP/2 frame by frame, and reads what comes back.

use std::net::SocketAddr;

use crate::support::client::Client;
use crate::support::soon;

pub(crate) const DATA: u8 = 0x0;
pub(crate) const HEADERS: u8 = 0x1;
pub(crate) const PRIORITY: u8 = 0x2;
pub(crate) const RST_STREAM: u8 = 0x3;
pub(crate) const SETTINGS: u8 = 0x4;
pub(crate) const PUSH_PROMISE: u8 = 0x5;
pub(crate) const PING: u8 = 0x6;
pub(crate) const GOAWAY: u8 = 0x7;
pub(crate) const WINDOW_UPDATE: u8 = 0x8;
pub(crate) const CONTINUATION: u8 = 0x9;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const HAS_PRIORITY: u8 = 0x20;

pub(crate) const NO_ERROR: u32 = 0x0;
pub(crate) const PROTOCOL_ERROR: u32 = 0x1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 0x3;
pub(crate) const STREAM_CLOSED: u32 = 0x5;
pub(crate) const FRAME_SIZE_ERROR: u32 = 0x6;
pub(crate) const REFUSED_STREAM: u32 = 0x7;
pub(crate) const CANCEL: u32 = 0x8;
pub(crate) const COMPRESSION_ERROR: u32 = 0x9;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 0xb;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame that came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// The octets of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).expect("a small payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field as HPACK writes it without its tables and without Huffman's code (RFC 7541 §6.2.2).
pub(crate) fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name.as_ref(), value.as_ref()] {
        push_length(&mut out, text.len());
        out.extend_from_slice(text);
    }
    out
}

/// An integer with a prefix of seven bits (RFC 7541 §5.1).
fn push_length(out: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else { return out.push(length as u8) };
    out.push(127);
    while rest >= 128 {
        out.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// The pseudo-header fields of a request.
pub(crate) fn pseudo(method: &str, path: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)])
}

/// A request without a body.
pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, pseudo("GET", path))
}

/// The head of a request whose body follows.
pub(crate) fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, pseudo("POST", path))
}

pub(crate) fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

pub(crate) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, code.to_be_bytes())
}

pub(crate) fn window_update(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, more.to_be_bytes())
}

/// One connection. Its HPACK tables stay empty, so that every status can be read by itself.
pub(crate) struct Raw {
    pub(crate) wire: Client,
}

impl Raw {
    /// A connection on which the preface and these settings have been sent.
    pub(crate) async fn with_settings(address: SocketAddr, settings: &[u8]) -> Raw {
        let mut raw = Raw { wire: Client::connect(address).await };
        let settings = [&setting(1, 0), settings].concat();
        raw.send([PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await;
        raw
    }

    pub(crate) async fn connect(address: SocketAddr) -> Raw {
        Raw::with_settings(address, &[]).await
    }

    /// Sends; a proxy that has ended the connection meanwhile need not read it.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        use tokio::io::AsyncWriteExt;
        soon("the proxy to read", self.wire.stream.write_all(bytes.as_ref())).await.is_ok()
    }

    /// The next frame; `None` when the connection is over.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        soon("a frame", async {
            loop {
                if let Some(frame) = self.take() {
                    return Some(frame);
                }
                self.wire.more().await?;
            }
        })
        .await
    }

    /// The next frame of this kind on this stream; fails the test when the connection ends before it.
    pub(crate) async fn expect(&mut self, kind: u8, stream: u32) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("no frame {kind} on stream {stream}"));
            if (frame.kind, frame.stream) == (kind, stream) && (kind != SETTINGS || frame.flags & ACK == 0) {
                return frame;
            }
            assert!(kind == GOAWAY || frame.kind != GOAWAY, "{frame:?}");
        }
    }

    /// What becomes of a stream.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Outcome {
        let (mut status, mut body) = (0, Vec::new());
        while let Some(frame) = self.next().await {
            match frame.kind {
                GOAWAY if frame.code() != NO_ERROR => return Outcome::GoAway(frame.code()),
                _ if frame.stream != stream => continue,
                HEADERS if status < 200 => status = frame.status(),
                DATA => body.extend_from_slice(&frame.payload),
                RST_STREAM => return Outcome::Reset { status, body, code: frame.code() },
                _ => {}
            }
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                return Outcome::Answer { status, body };
            }
        }
        Outcome::Closed
    }

    /// Waits until an answer is whole, whichever.
    pub(crate) async fn end_of_any(&mut self) {
        loop {
            let frame = self.next().await.expect("the connection goes on");
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                return;
            }
        }
    }

    /// Waits until everything that was sent before has been read.
    pub(crate) async fn settle(&mut self) -> bool {
        self.send(frame(PING, 0, 0, *b"settled?")).await;
        while let Some(frame) = self.next().await {
            if frame.kind == PING && frame.flags & ACK != 0 && frame.payload == b"settled?" {
                return true;
            }
        }
        false
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    fn take(&mut self) -> Option<Frame> {
        let buffer = &mut self.wire.buffer;
        let head = buffer.first_chunk::<9>()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = buffer.get(9..9 + length)?.to_vec();
        buffer.drain(..9 + length);
        Some(Frame { kind, flags, stream, payload })
    }
}

/// What became of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It ended in order.
    Answer {
        status: u16,
        body: Vec<u8>,
    },
    Reset {
        status: u16,
        body: Vec<u8>,
        code: u32,
    },
    /// The connection ended with this error.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
}

impl Outcome {
    pub(crate) fn status(&self) -> u16 {
        match self {
            Outcome::Answer { status, .. } | Outcome::Reset { status, .. } => *status,
            Outcome::GoAway(_) | Outcome::Closed => 0,
        }
    }
}

impl Frame {
    /// Of RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        let code = self.payload.get(at..at + 4).and_then(|code| code.first_chunk::<4>());
        code.map_or(u32::MAX, |code| u32::from_be_bytes(*code))
    }

    /// Of HEADERS: the first field. Without a dynamic table it is an entry of the static one, or three digits.
    pub(crate) fn status(&self) -> u16 {
        const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
        match without_updates(&self.payload) {
            [entry @ 0x88..=0x8e, ..] => STATIC[usize::from(entry - 0x88)],
            [0x08 | 0x18 | 0x48, length, text @ ..] => {
                let text = &text[..usize::from(length & 0x7f)];
                let text = if length & 0x80 == 0 { text.to_vec() } else { digits(text) };
                String::from_utf8_lossy(&text).parse().expect("a status")
            }
            _ => 0,
        }
    }
}

/// A block without the sizes of the table that it begins with (RFC 7541 §6.3).
fn without_updates(mut block: &[u8]) -> &[u8] {
    while let [first @ 0x20..=0x3f, rest @ ..] = block {
        let more = if *first == 0x3f { rest.iter().take_while(|octet| **octet >= 0x80).count() + 1 } else { 0 };
        block = rest.get(more..).unwrap_or_default();
    }
    block
}

/// Three digits in Huffman's code (RFC 7541 appendix B): 0 to 2 have five bits, the others six.
fn digits(bytes: &[u8]) -> Vec<u8> {
    let bits = bytes.iter().fold(0_u64, |bits, &byte| bits << 8 | u64::from(byte)) << (64 - 8 * bytes.len());
    let mut at = 0;
    (0..3)
        .map(|_| {
            let rest = bits << at;
            let (short, long) = ((rest >> 59) as u8, (rest >> 58) as u8);
            at += if short < 3 { 5 } else { 6 };
            b'0' + if short < 3 { short } else { long - 0x19 + 3 }
        })
        .collect()
}
