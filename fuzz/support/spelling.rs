//! How a fuzzer spells: octets above 0x7f stand for pieces that it would have to find octet by octet.

/// The text that `data` spells. The last of the pieces is for octets that are none: the next one stands for itself.
pub fn spelt(data: &[u8], pieces: &[&str]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut octets = data.iter();
    while let Some(&octet) = octets.next() {
        match octet.checked_sub(0x80).map(usize::from) {
            None => text.push(octet),
            Some(at) => match pieces.get(at) {
                Some(piece) => text.extend_from_slice(piece.as_bytes()),
                None => text.extend(octets.next()),
            },
        }
    }
    text
}

/// Where pieces of a text end, by an octet of rhythm: they rise, and the last one is the end.
pub fn cuts(rhythm: u8, length: usize) -> Vec<usize> {
    let mut cuts = Vec::new();
    let mut at = 0;
    while at < length {
        at = (at + 1 + (usize::from(rhythm) + at) % 23 * (at % 5)).min(length);
        cuts.push(at);
    }
    cuts
}
