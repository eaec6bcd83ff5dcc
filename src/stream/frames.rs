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

    pub fn sender(&self) -> Sender {
        self.sender
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const CLOSE: u8 = 0x88;

    /// How a length is written: in as few octets as it takes, in two more or in eight more.
    #[derive(Clone, Copy, Debug)]
    enum Width {
        Least,
        Two,
        Eight,
    }

    fn frame(first: u8, sender: Sender, length: u64, width: Width) -> Vec<u8> {
        let (code, extra): (u64, usize) = match width {
            Width::Least if length < 126 => (length, 0),
            Width::Least | Width::Two if length <= 0xffff => (126, 2),
            _ => (127, 8),
        };
        let mask = if sender == Sender::Client { 0x80 } else { 0 };
        let mut frame = vec![first, mask | code as u8];
        frame.extend_from_slice(&length.to_be_bytes()[8 - extra..]);
        if mask != 0 {
            // Octets that would be the header of a Close, were they one.
            frame.extend_from_slice(&[CLOSE, 0, CLOSE, 0]);
        }
        frame
    }

    /// A frame with a payload of headers of Close frames.
    fn full(first: u8, sender: Sender, length: usize, width: Width) -> Vec<u8> {
        let header = frame(first, sender, length as u64, width);
        [header, [CLOSE, 0x80].into_iter().cycle().take(length).collect()].concat()
    }

    fn place_behind(sender: Sender, data: &[u8]) -> Place {
        let mut frames = Frames::new(sender);
        frames.follow(data);
        frames.place()
    }

    /// The place before each octet and behind the last, found by RFC 6455 §5.2 in whole frames.
    fn reference(sender: Sender, data: &[u8]) -> Vec<Place> {
        let mut places = vec![Place::InsideFrame; data.len() + 1];
        let (mut at, mut is_fragmented) = (0, false);
        loop {
            places[at] = if is_fragmented { Place::BetweenFragments } else { Place::BetweenMessages };
            let [first, second, rest @ ..] = &data[at..] else { return places };
            let extra = [0, 2, 8][(second & 0x7f).saturating_sub(125) as usize];
            let header = 2 + extra + if second & 0x80 == 0 { 0 } else { 4 };
            if data.len() - at < header {
                return places;
            }
            let written = rest[..extra].iter().fold(0, |sum, octet| (sum << 8) | u64::from(*octet));
            let length = if extra == 0 { u64::from(second & 0x7f) } else { written };
            if !is_sound(sender, (*first, *second), length, is_fragmented) {
                places[at + header..].fill(Place::Unknown);
                return places;
            }
            let left = data.len() - at - header;
            if length > left as u64 {
                return places;
            }
            at += header + length as usize;
            match first & 0x0f {
                8 => {
                    places[at..].fill(Place::Closed);
                    return places;
                }
                0..=2 => is_fragmented = first & 0x80 == 0,
                _ => {}
            }
        }
    }

    fn is_sound(sender: Sender, (first, second): (u8, u8), length: u64, is_fragmented: bool) -> bool {
        let is_opcode_right = match first & 0x0f {
            0 => is_fragmented,
            1 | 2 => !is_fragmented,
            8..=10 => first & 0x80 != 0 && length <= 125,
            _ => false,
        };
        is_opcode_right && (second & 0x80 != 0) == (sender == Sender::Client) && length >> 63 == 0
    }

    fn sender() -> impl Strategy<Value = Sender> {
        prop_oneof![Just(Sender::Client), Just(Sender::Server)]
    }

    fn width() -> impl Strategy<Value = Width> {
        prop_oneof![4 => Just(Width::Least), 1 => Just(Width::Two), 1 => Just(Width::Eight)]
    }

    /// Any reserved bits.
    fn bits() -> impl Strategy<Value = u8> {
        (0u8..8).prop_map(|bits| bits << 4)
    }

    fn length() -> impl Strategy<Value = usize> {
        prop_oneof![3 => 0..6usize, 1 => 120..130usize, 1 => 0..600usize]
    }

    /// A message in any number of fragments, with a Ping or a Pong before each.
    fn message(sender: Sender) -> impl Strategy<Value = Vec<u8>> {
        let fragment = (bits(), length(), width(), proptest::option::of((0x89u8..=0x8a, 0..126usize)));
        (1u8..=2, vec(fragment, 1..4)).prop_map(move |(opcode, fragments)| {
            let last = fragments.len() - 1;
            let one = |(at, (bits, length, width, control)): (usize, (u8, usize, Width, Option<(u8, usize)>))| {
                let control = control.map(|(first, length)| full(first, sender, length, Width::Least));
                let first = bits | if at == 0 { opcode } else { 0 } | if at == last { 0x80 } else { 0 };
                [control.unwrap_or_default(), full(first, sender, length, width)].concat()
            };
            fragments.into_iter().enumerate().flat_map(one).collect()
        })
    }

    /// Sound messages, and perhaps a Close, and octets behind it that belong to nothing.
    fn sound(sender: Sender) -> impl Strategy<Value = Vec<u8>> {
        let close = (0..126usize, vec(any::<u8>(), 0..20));
        (vec(message(sender), 0..5), proptest::option::of(close)).prop_map(move |(messages, close)| {
            let end = close.map(|(length, rest)| [full(CLOSE, sender, length, Width::Least), rest].concat());
            [messages.concat(), end.unwrap_or_default()].concat()
        })
    }

    /// What one side may say: sound, sound but for one octet, headers with nothing between them, or noise.
    fn said() -> impl Strategy<Value = (Sender, Vec<u8>)> {
        sender().prop_flat_map(|sender| {
            let damaged =
                (sound(sender), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut data, at, octet)| {
                    if !data.is_empty() {
                        let at = at.index(data.len());
                        data[at] = octet;
                    }
                    data
                });
            let header = (any::<u8>(), any::<u64>(), 0..64u32, width());
            let headers = vec(header, 1..4).prop_map(move |headers| {
                headers
                    .into_iter()
                    .flat_map(|(first, long, by, width)| frame(first, sender, long >> by, width))
                    .collect()
            });
            let noise = vec(any::<u8>(), 0..80);
            (Just(sender), prop_oneof![3 => sound(sender), 3 => damaged, 1 => headers, 1 => noise])
        })
    }

    proptest! {
        #[test]
        fn the_place_is_where_whole_frames_say_that_it_is((sender, data) in said()) {
            let mut frames = Frames::new(sender);
            let mut places = vec![frames.place()];
            for octet in &data {
                frames.follow(&[*octet]);
                places.push(frames.place());
            }
            prop_assert_eq!(places, reference(sender, &data));
        }

        #[test]
        fn any_split_leads_to_the_same_place(
            (sender, data) in said(),
            cuts in vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(data.len() + 1)).collect();
            cuts.extend([0, data.len()]);
            cuts.sort_unstable();
            let places = reference(sender, &data);
            let mut frames = Frames::new(sender);
            for cut in cuts.windows(2) {
                frames.follow(&data[cut[0]..cut[1]]);
                prop_assert_eq!(frames.place(), places[cut[1]], "behind {} of {:?}", cut[1], cuts);
            }
        }

        #[test]
        fn an_advance_ends_behind_each_frame_and_nowhere_else(
            (sender, data) in said(),
            start in any::<prop::sample::Index>(),
        ) {
            let places = reference(sender, &data);
            let mut at = start.index(data.len() + 1);
            let mut frames = Frames::new(sender);
            frames.follow(&data[..at]);
            while at < data.len() {
                let length = frames.advance(&data[at..]);
                prop_assert!((1..=data.len() - at).contains(&length));
                let is_end = |place: &Place| matches!(place, Place::BetweenMessages | Place::BetweenFragments);
                prop_assert!(!places[at + 1..at + length].iter().any(is_end));
                at += length;
                // Only where nobody knows what a frame is may it stop elsewhere.
                prop_assert!(at == data.len() || places[at] != Place::InsideFrame);
                prop_assert_eq!(frames.place(), places[at]);
            }
        }

        #[test]
        fn what_is_not_a_frame_is_no_reason_to_panic(sender in sender(), pieces in vec(vec(any::<u8>(), 0..40), 0..8)) {
            let mut frames = Frames::new(sender);
            pieces.iter().for_each(|piece| frames.follow(piece));
            let data = pieces.concat();
            prop_assert_eq!(frames.place(), reference(sender, &data)[data.len()]);
        }
    }

    #[test]
    fn a_message_ends_with_its_last_fragment_and_not_with_a_ping_between() {
        let steps = [
            (0x01, Place::BetweenFragments),
            (0x89, Place::BetweenFragments),
            (0x00, Place::BetweenFragments),
            (0x8a, Place::BetweenFragments),
            (0x80, Place::BetweenMessages),
            (0x8a, Place::BetweenMessages),
            (0x82, Place::BetweenMessages),
        ];
        let mut frames = Frames::new(Sender::Server);
        for (first, expected) in steps {
            frames.follow(&full(first, Sender::Server, 5, Width::Least));
            assert_eq!(frames.place(), expected, "{first:#x}");
        }
    }

    #[test]
    fn reserved_bits_and_lengths_wider_than_needed_mean_nothing() {
        for first in [0xc1, 0xa2, 0x91, 0xf2, 0xf9] {
            for width in [Width::Least, Width::Two, Width::Eight] {
                for length in [0, 1, 125] {
                    let data = full(first, Sender::Client, length, width);
                    assert_eq!(place_behind(Sender::Client, &data), Place::BetweenMessages, "{data:x?}");
                }
            }
        }
    }

    #[test]
    fn what_breaks_the_framing_makes_it_blind_for_good() {
        let broken = [
            ("no such opcode for data", frame(0x83, Sender::Client, 1, Width::Least)),
            ("no such opcode for control", frame(0x8b, Sender::Client, 1, Width::Least)),
            ("not masked", frame(0x81, Sender::Server, 1, Width::Least)),
            ("continues nothing", frame(0x80, Sender::Client, 1, Width::Least)),
            ("a control frame in fragments", frame(0x09, Sender::Client, 1, Width::Least)),
            ("a Close in fragments", frame(0x08, Sender::Client, 0, Width::Least)),
            ("a control frame too long", frame(0x89, Sender::Client, 126, Width::Two)),
            ("a length of 64 bits", frame(0x82, Sender::Client, 1 << 63, Width::Eight)),
            (
                "a message within a message",
                [full(0x01, Sender::Client, 1, Width::Least), frame(0x81, Sender::Client, 1, Width::Least)].concat(),
            ),
        ];
        for (what, header) in broken {
            assert_eq!(place_behind(Sender::Client, &header), Place::Unknown, "{what}");
            let data = [header, full(CLOSE, Sender::Client, 0, Width::Least)].concat();
            assert_eq!(place_behind(Sender::Client, &data), Place::Unknown, "{what}");
        }
        let masked = frame(0x81, Sender::Client, 1, Width::Least);
        assert_eq!(place_behind(Sender::Server, &masked), Place::Unknown, "a server masks nothing");
    }

    #[test]
    fn a_frame_may_be_as_long_as_a_length_can_say() {
        let mut frames = Frames::new(Sender::Server);
        frames.follow(&frame(0x82, Sender::Server, i64::MAX as u64, Width::Eight));
        frames.follow(&[CLOSE; 4096]);
        assert_eq!((frames.place(), frames.is_closing()), (Place::InsideFrame, false));
    }

    #[test]
    fn a_close_frame_has_begun_with_its_header_and_is_the_last_word_with_its_end() {
        let close = full(CLOSE, Sender::Client, 2, Width::Least);
        let mut frames = Frames::new(Sender::Client);
        for (at, octet) in close.iter().enumerate() {
            assert_eq!(frames.is_closing(), at >= 6, "before octet {at}");
            frames.follow(&[*octet]);
        }
        assert_eq!(frames.place(), Place::Closed);
        frames.follow(&full(0x81, Sender::Client, 3, Width::Least));
        assert_eq!(frames.place(), Place::Closed);
    }

    #[test]
    fn only_a_close_frame_begins_like_one() {
        let beginnings: Vec<u8> = (0..=u8::MAX).filter(|octet| Frames::begins_close(*octet)).collect();
        assert_eq!(beginnings, (0..16).map(|bits| bits << 4 | 8).collect::<Vec<u8>>());
    }

    #[test]
    fn our_close_to_the_client_says_code_and_reason_as_a_server_does() {
        for reason in ["", "service restart", &"r".repeat(123)] {
            let close = close_to_client(1012, reason);
            assert_eq!(place_behind(Sender::Server, &close), Place::Closed);
            assert_eq!(close, [&[0x88, 2 + reason.len() as u8, 0x03, 0xf4], reason.as_bytes()].concat());
        }
    }

    #[test]
    fn our_close_to_the_origin_is_masked_as_a_clients_is() {
        let close = close_to_origin(1001, [1, 2, 3, 4]);
        assert_eq!(place_behind(Sender::Client, &close), Place::Closed);
        assert_eq!(close, [0x88, 0x82, 1, 2, 3, 4, 0x03 ^ 1, 0xe9 ^ 2]);
    }
}
