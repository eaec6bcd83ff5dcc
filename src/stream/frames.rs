//! Where a WebSocket is: follows the frame headers of RFC 6455 §5.2 in one direction.
//!
//! Opaque to payload, masks, RSV bits and extensions; it reads nothing but headers and changes nothing. What breaks the
//! framing makes it blind for good: it then knows no boundary, so nobody will write into such a connection.

use std::io::Cursor;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Two octets, a length of eight, a mask of four (RFC 6455 §5.2).
const MAX_HEADER: usize = 14;
/// Largest payload of a control frame (RFC 6455 §5.5).
const MAX_CONTROL: u64 = 125;

/// Who sends the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// Masks every frame.
    Client,
    /// Masks none.
    Server,
}

/// What the next octet would belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A new message, or a control frame.
    BetweenMessages,
    /// The next fragment of a message, or a control frame.
    BetweenFragments,
    InsideFrame,
    /// Nothing: a Close frame was the last word.
    Closed,
    /// Nobody knows: the framing was broken.
    Unknown,
}

/// Follows one direction of a WebSocket.
#[derive(Debug)]
pub struct Frames {
    sender: Sender,
    header: [u8; MAX_HEADER],
    /// Octets of an incomplete header.
    filled: u8,
    /// Octets of payload that are still to come.
    left: u64,
    is_fragmented: bool,
    is_closing: bool,
    is_blind: bool,
}

impl Frames {
    pub fn new(sender: Sender) -> Frames {
        Frames {
            sender,
            header: [0; MAX_HEADER],
            filled: 0,
            left: 0,
            is_fragmented: false,
            is_closing: false,
            is_blind: false,
        }
    }

    pub fn place(&self) -> Place {
        match self {
            Frames { is_blind: true, .. } => Place::Unknown,
            Frames { left: 0, filled: 0, is_closing: true, .. } => Place::Closed,
            Frames { left: 0, filled: 0, is_fragmented: true, .. } => Place::BetweenFragments,
            Frames { left: 0, filled: 0, .. } => Place::BetweenMessages,
            _ => Place::InsideFrame,
        }
    }

    /// Whether a Close frame has begun.
    pub fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Whether an octet that stands where a frame begins begins a Close frame.
    pub fn begins_close(octet: u8) -> bool {
        octet & 0x0f == 0x08
    }

    /// Follows all of `bytes`.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.advance(bytes)..];
        }
    }

    /// Follows `bytes`, which are not empty, to the end of the first frame that ends in them, or all of them. Returns how
    /// many.
    pub fn advance(&mut self, bytes: &[u8]) -> usize {
        if self.is_blind || self.place() == Place::Closed {
            return bytes.len();
        }
        let header = if self.left == 0 { self.header(bytes) } else { 0 };
        let payload = (bytes.len() - header).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= payload as u64;
        header + payload
    }

    /// Reads a header at the front of `bytes`, or what there is of it. Returns how many octets belong to it.
    fn header(&mut self, bytes: &[u8]) -> usize {
        if self.filled == 0
            && let Some(length) = self.parse(bytes)
        {
            return length;
        }
        let filled = usize::from(self.filled);
        let more = bytes.len().min(MAX_HEADER - filled);
        self.header[filled..filled + more].copy_from_slice(&bytes[..more]);
        let header = self.header;
        match self.parse(&header[..filled + more]) {
            Some(length) => {
                self.filled = 0;
                length - filled
            }
            None => {
                self.filled += more as u8;
                more
            }
        }
    }

    /// The length of the header at the front of `bytes`; `None` when it is not complete.
    fn parse(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut cursor = Cursor::new(bytes);
        match FrameHeader::parse(&mut cursor) {
            Ok(None) => None,
            Ok(Some((header, length))) => {
                self.begin(&header, length);
                usize::try_from(cursor.position()).ok()
            }
            Err(_) => {
                self.is_blind = true;
                Some(bytes.len())
            }
        }
    }

    fn begin(&mut self, header: &FrameHeader, length: u64) {
        let is_control = matches!(header.opcode, OpCode::Control(_));
        let continues = matches!(header.opcode, OpCode::Data(Data::Continue));
        let is_sound = header.mask.is_some() == (self.sender == Sender::Client)
            && i64::try_from(length).is_ok()
            && if is_control { header.is_final && length <= MAX_CONTROL } else { continues == self.is_fragmented };
        if !is_sound {
            self.is_blind = true;
            return;
        }
        self.left = length;
        if !is_control {
            self.is_fragmented = !header.is_final;
        }
        self.is_closing |= matches!(header.opcode, OpCode::Control(Control::Close));
    }
}

/// A Close frame as a server sends it. `reason` has at most 123 octets.
pub fn close_to_client(code: u16, reason: &str) -> Vec<u8> {
    let length = u8::try_from(2 + reason.len()).unwrap_or(u8::MAX);
    let mut frame = vec![0x88, length];
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(reason.as_bytes());
    frame
}

/// A Close frame as a client sends it, masked.
pub fn close_to_origin(code: u16, mask: [u8; 4]) -> Vec<u8> {
    let [high, low] = code.to_be_bytes();
    let mut frame = vec![0x88, 0x82];
    frame.extend_from_slice(&mask);
    frame.extend_from_slice(&[high ^ mask[0], low ^ mask[1]]);
    frame
}
