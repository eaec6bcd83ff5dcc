//! Finding the end of a body in what comes in, strictly.

use std::ops::Range;

use crate::http::head::Framing;

/// Digits of a chunk size; more than any real chunk needs.
const MAX_SIZE_DIGITS: u8 = 16;
/// Octets of extensions after one chunk size.
const MAX_EXTENSION: usize = 4096;
/// Octets of a trailer section.
const MAX_TRAILERS: usize = 16 * 1024;

/// A body whose framing is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadBody(pub(crate) &'static str);

/// Follows a body to its end.
#[derive(Debug)]
pub(crate) enum Decoder {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Done,
}

#[derive(Debug)]
pub(crate) struct Chunked {
    at: At,
    trailers: Vec<u8>,
}

/// Where in the chunked coding (RFC 9112 §7.1) the next octet stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Size { value: u64, digits: u8 },
    Extension { value: u64, length: usize },
    SizeEnd { value: u64 },
    Data { left: u64 },
    DataReturn,
    DataEnd,
    Trailers,
}

/// What a decoder made of some input.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) consumed: usize,
    pub(crate) data: Range<usize>,
}

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Decoder {
        match framing {
            Framing::Empty => Decoder::Done,
            Framing::Length(length) => Decoder::Length(length),
            Framing::Chunked => {
                Decoder::Chunked(Chunked { at: At::Size { value: 0, digits: 0 }, trailers: Vec::new() })
            }
            Framing::UntilClose => Decoder::UntilClose,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Decoder::Done)
    }

    /// How many octets may be read without running into the next message.
    pub(crate) fn wanted(&self) -> usize {
        match self {
            Decoder::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
            _ => usize::MAX,
        }
    }

    /// The next piece of data at the front of `input`, which is not empty. Trailers are ready when it is done.
    pub(crate) fn step(&mut self, input: &[u8], trailers: &mut Vec<u8>) -> Result<Step, BadBody> {
        self.step_within(usize::MAX, input, trailers)
    }

    /// As [`Decoder::step`], with at most `room` octets of data. Without any it gets as far as the next data.
    pub(crate) fn step_within(&mut self, room: usize, input: &[u8], trailers: &mut Vec<u8>) -> Result<Step, BadBody> {
        match self {
            Decoder::Done => Ok(Step { consumed: 0, data: 0..0 }),
            Decoder::UntilClose => {
                let count = input.len().min(room);
                Ok(Step { consumed: count, data: 0..count })
            }
            Decoder::Length(left) => {
                let count = input.len().min(room).min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                if *left == 0 {
                    *self = Decoder::Done;
                }
                Ok(Step { consumed: count, data: 0..count })
            }
            Decoder::Chunked(chunked) => {
                let (step, is_done) = chunked.step(room, input)?;
                if is_done {
                    *trailers = std::mem::take(&mut chunked.trailers);
                    *self = Decoder::Done;
                }
                Ok(step)
            }
        }
    }

    /// The sender has closed its side; whether the body may end here.
    pub(crate) fn end(&mut self) -> bool {
        if matches!(self, Decoder::UntilClose) {
            *self = Decoder::Done;
        }
        self.is_done()
    }
}

impl Chunked {
    /// The next piece of data, and whether the body ends with it.
    fn step(&mut self, room: usize, input: &[u8]) -> Result<(Step, bool), BadBody> {
        for (at, &byte) in input.iter().enumerate() {
            if let At::Data { left } = self.at {
                let count = (input.len() - at).min(room).min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - count as u64;
                self.at = if left == 0 { At::DataReturn } else { At::Data { left } };
                return Ok((Step { consumed: at + count, data: at..at + count }, false));
            }
            if self.at == At::Trailers {
                let (count, is_done) = self.trailers(&input[at..])?;
                return Ok((Step { consumed: at + count, data: 0..0 }, is_done));
            }
            self.octet(byte)?;
        }
        Ok((Step { consumed: input.len(), data: 0..0 }, false))
    }

    /// Takes an octet that is neither data nor of the trailers.
    fn octet(&mut self, byte: u8) -> Result<(), BadBody> {
        self.at = match (self.at, byte) {
            (At::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_SIZE_DIGITS {
                    return Err(BadBody("chunk size too long"));
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                At::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (At::Size { digits: 0, .. }, _) => return Err(BadBody("chunk without size")),
            (At::Size { value, .. }, b'\r') => At::SizeEnd { value },
            (At::Size { value, .. }, b';') => At::Extension { value, length: 0 },
            (At::Size { .. }, _) => return Err(BadBody("invalid chunk size")),
            (At::Extension { value, .. }, b'\r') => At::SizeEnd { value },
            (At::Extension { .. }, _) if byte.is_ascii_control() && byte != b'\t' => {
                return Err(BadBody("control character in a chunk extension"));
            }
            (At::Extension { length: MAX_EXTENSION, .. }, _) => return Err(BadBody("chunk extension too long")),
            (At::Extension { value, length }, _) => At::Extension { value, length: length + 1 },
            (At::SizeEnd { value: 0 }, b'\n') => At::Trailers,
            (At::SizeEnd { value }, b'\n') => At::Data { left: value },
            (At::DataReturn, b'\r') => At::DataEnd,
            (At::DataEnd, b'\n') => At::Size { value: 0, digits: 0 },
            (At::SizeEnd { .. } | At::DataReturn | At::DataEnd | At::Data { .. } | At::Trailers, _) => {
                return Err(BadBody("chunk without its line end"));
            }
        };
        Ok(())
    }

    /// Takes the trailer section line by line; how much of `input` that was, and whether the section ends with it.
    fn trailers(&mut self, input: &[u8]) -> Result<(usize, bool), BadBody> {
        let mut taken = 0;
        while taken < input.len() {
            let rest = &input[taken..];
            let line = &rest[..memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1)];
            if self.trailers.len() + line.len() > MAX_TRAILERS {
                return Err(BadBody("trailers too long"));
            }
            self.trailers.extend_from_slice(line);
            taken += line.len();
            if line.ends_with(b"\n") {
                if !self.trailers.ends_with(b"\r\n") {
                    return Err(BadBody("line feed without carriage return in the trailers"));
                }
                if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
                    return Ok((taken, true));
                }
            }
        }
        Ok((taken, false))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::http::body::push_chunk;

    use super::*;

    /// What a decoder has made of its input.
    #[derive(PartialEq, Eq, Debug)]
    struct Decoded {
        data: Vec<u8>,
        trailers: Vec<u8>,
        /// Octets of the input that belong to the body.
        consumed: usize,
        is_done: bool,
    }

    fn decode(pieces: &[&[u8]]) -> Result<Decoded, BadBody> {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut decoded = Decoded { data: Vec::new(), trailers: Vec::new(), consumed: 0, is_done: false };
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() && !decoder.is_done() {
                let step = decoder.step(rest, &mut decoded.trailers)?;
                assert!(step.consumed > 0, "a step must get on");
                decoded.data.extend_from_slice(&rest[step.data]);
                decoded.consumed += step.consumed;
                rest = &rest[step.consumed..];
            }
        }
        decoded.is_done = decoder.is_done();
        Ok(decoded)
    }

    const SAMPLE: &[u8] =
        b"4\r\nWiki\r\n00b;a=\"b\"\r\npedia in\r\n\r\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\nGET / HTTP/1.1\r\n";

    #[test]
    fn a_chunked_body_means_the_same_in_every_three_pieces() {
        let whole = decode(&[SAMPLE]).expect("a valid body");
        assert_eq!(whole.data, b"Wikipedia in\r\n\r");
        assert_eq!(whole.trailers, b"X-Sum: 1\r\nY: 2\r\n\r\n");
        assert_eq!((whole.is_done, &SAMPLE[whole.consumed..]), (true, &b"GET / HTTP/1.1\r\n"[..]));
        for first in 0..=SAMPLE.len() {
            for second in first..=SAMPLE.len() {
                let pieces = [&SAMPLE[..first], &SAMPLE[first..second], &SAMPLE[second..]];
                assert_eq!(decode(&pieces).as_ref(), Ok(&whole), "split at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_chunked_body_is_done_at_its_very_last_octet() {
        let length = decode(&[SAMPLE]).expect("a valid body").consumed;
        for end in 0..length {
            assert_eq!(decode(&[&SAMPLE[..end]]).map(|decoded| decoded.is_done), Ok(false), "after {end} octets");
        }
    }

    fn pieces<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..6),
            follows in prop::collection::vec(any::<u8>(), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut bytes = Vec::new();
            chunks.iter().for_each(|chunk| push_chunk(&mut bytes, chunk));
            bytes.extend_from_slice(b"0\r\n\r\n");
            let length = bytes.len();
            bytes.extend_from_slice(&follows);
            let decoded = decode(&pieces(&bytes, &cuts)).expect("a valid body");
            prop_assert_eq!(decoded.data, chunks.concat());
            prop_assert_eq!((decoded.consumed, decoded.is_done), (length, true));
        }

        /// Valid or not: how bytes are cut into packets must not change what they mean.
        #[test]
        fn cuts_change_nothing(
            bytes in "([0-2aF]{0,2}(;[a=]{0,2})?\r?\n?[ab\r\n]{0,3}){0,6}(0\r\n)?(X: y\r\n)?(\r\n)?",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes = bytes.as_bytes();
            let octets: Vec<&[u8]> = bytes.chunks(1).collect();
            let whole = decode(&[bytes]);
            prop_assert_eq!(&decode(&octets), &whole);
            prop_assert_eq!(&decode(&pieces(bytes, &cuts)), &whole);
        }
    }
}
