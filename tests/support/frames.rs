//! Frames of RFC 6455, made and read by hand, and tunnels to send them through.

use std::sync::Arc;

use teal::config::Color;
use teal::drain::KindReport;
use teal::state::Record;

use super::by_hand::{Calls, by_hand};
use super::client::Client;
use super::origin::Origin;
use super::proxy::{Builder, Teal};
use super::soon;

pub const CONTINUE: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

const FINAL: u8 = 0x80;
const RSV1: u8 = 0x40;
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The example of RFC 6455 §1.3.
pub const REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// One frame, its payload without the mask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// FIN, RSV and opcode.
    pub first: u8,
    pub is_masked: bool,
    pub payload: Vec<u8>,
}

impl Frame {
    /// A final frame.
    pub fn new(opcode: u8, payload: impl AsRef<[u8]>) -> Frame {
        Frame { first: FINAL | opcode, is_masked: false, payload: payload.as_ref().to_vec() }
    }

    pub fn text(payload: &str) -> Frame {
        Frame::new(TEXT, payload)
    }

    pub fn close(code: u16, reason: &str) -> Frame {
        Frame::new(CLOSE, [&code.to_be_bytes(), reason.as_bytes()].concat())
    }

    /// As a fragment that others follow.
    pub fn unfinished(self) -> Frame {
        Frame { first: self.first & !FINAL, ..self }
    }

    /// As permessage-deflate marks it.
    pub fn compressed(self) -> Frame {
        Frame { first: self.first | RSV1, ..self }
    }

    pub fn masked(self) -> Frame {
        Frame { is_masked: true, ..self }
    }

    /// Code and reason of a Close frame.
    pub fn closes(&self) -> Option<(u16, String)> {
        let (code, reason) = self.payload.split_first_chunk::<2>()?;
        let is_close = self.first == FINAL | CLOSE;
        is_close.then(|| (u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned()))
    }

    /// The octets of a client's frame.
    pub fn by_client(&self) -> Vec<u8> {
        let masked = self.payload.iter().zip(MASK.iter().cycle()).map(|(octet, mask)| octet ^ mask);
        [head(self.first, self.payload.len(), MASKED), MASK.to_vec(), masked.collect()].concat()
    }

    /// The octets of a server's frame.
    pub fn by_server(&self) -> Vec<u8> {
        [head(self.first, self.payload.len(), 0), self.payload.clone()].concat()
    }
}

/// The first octets of a frame up to its length, which is written as short as it can be.
fn head(first: u8, length: usize, masked: u8) -> Vec<u8> {
    match length {
        0..=125 => vec![first, masked | length as u8],
        126..=0xffff => [&[first, masked | 126][..], &(length as u16).to_be_bytes()].concat(),
        _ => [&[first, masked | 127][..], &(length as u64).to_be_bytes()].concat(),
    }
}

/// The frame at the front of `bytes`, and how many octets it has; `None` if there is less than that.
pub fn parse(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let extended = [0, 2, 8][usize::from(second & 0x7f).saturating_sub(125)];
    let mut length = usize::from(second & 0x7f);
    if extended > 0 {
        length = bytes.get(2..2 + extended)?.iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
    }
    let is_masked = second & MASKED != 0;
    let mask_at = 2 + extended;
    let at = if is_masked { mask_at + 4 } else { mask_at };
    let mut payload = bytes.get(at..at + length)?.to_vec();
    if is_masked {
        let mask = &bytes[mask_at..at];
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(octet, mask)| *octet ^= mask);
    }
    Some((Frame { first, is_masked, payload }, at + length))
}

/// All of `bytes` as frames; fails the test if it ends inside one.
pub fn parse_all(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (frame, length) = parse(bytes).unwrap_or_else(|| panic!("half a frame: {bytes:?}"));
        frames.push(frame);
        bytes = &bytes[length..];
    }
    frames
}

/// The next frame on a connection.
pub async fn read(wire: &mut Client) -> Frame {
    soon("a frame", async {
        loop {
            if let Some((frame, length)) = parse(&wire.buffer) {
                wire.buffer.drain(..length);
                return frame;
            }
            wire.more().await.unwrap_or_else(|| panic!("the connection ended after {:?}", wire.buffer));
        }
    })
    .await
}

/// A proxy between two colors whose origins are in the test's hand.
pub struct Colors {
    pub teal: Teal,
    pub blue: Calls,
    pub green: Calls,
    _origins: [Origin; 2],
}

/// Both ends of a tunnel.
pub struct Ends {
    pub client: Client,
    pub origin: Client,
}

impl Colors {
    /// `keys` are keys of the service, for its drain.
    pub async fn new(keys: &str) -> Colors {
        let ((first, blue), (second, green)) = (by_hand().await, by_hand().await);
        let keys = format!("green = [{}]\n{keys}", second.toml());
        let teal = Builder::app(&[&first]).service(&keys).start().await;
        Colors { teal, blue, green, _origins: [first, second] }
    }

    /// A tunnel to the blue origin.
    pub async fn open(&mut self) -> Ends {
        let mut client = Client::connect(self.teal.address).await;
        client.send(REQUEST).await;
        let mut call = self.blue.next().await;
        call.send(call.accepted()).await;
        assert!(client.head().await.expect("a head").starts_with("HTTP/1.1 101 "));
        Ends { client, origin: call.wire }
    }

    /// To green.
    pub async fn switch(&self) -> Arc<Record> {
        self.teal.switch("app", Color::Green).await.expect("a switch")
    }
}

impl Ends {
    /// The origin is told, and answers as it should.
    pub async fn origin_leaves(&mut self) {
        let told = read(&mut self.origin).await;
        assert_eq!((told.closes(), told.is_masked), (Some((1001, String::new())), true));
        self.origin.send(Frame::close(1001, "").by_server()).await;
    }

    /// The client is told, answers as it should, and both connections end in order with not an octet more.
    pub async fn client_leaves(mut self, code: u16, reason: &str) {
        let told = read(&mut self.client).await;
        assert_eq!((told.closes(), told.is_masked), (Some((code, reason.to_owned())), false));
        self.client.send(Frame::close(code, "").by_client()).await;
        let Ends { mut client, mut origin } = self;
        assert_eq!(client.rest().await, (Vec::new(), true), "the client's end");
        drop(client);
        assert_eq!(origin.rest().await, (Vec::new(), true), "the origin's end");
    }
}

/// What has become of the WebSockets of a switch, once its drain is over.
pub async fn account(record: &Record) -> KindReport {
    let drain = record.drain().expect("something was switched");
    soon("the end of the drain", drain.over()).await;
    drain.report().websocket
}
