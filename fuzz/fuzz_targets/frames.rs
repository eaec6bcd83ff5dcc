//! However its bytes are split, a WebSocket has the same frames, and nothing in them makes the tracker panic.
#![no_main]

#[allow(dead_code, reason = "a target uses a part of it")]
#[path = "../../src/stream/frames.rs"]
mod frames;

use libfuzzer_sys::fuzz_target;

use frames::{Frames, Place, Sender};

fuzz_target!(|data: &[u8]| {
    let [settings, data @ ..] = data else { return };
    let sender = if settings & 1 == 0 { Sender::Client } else { Sender::Server };
    let places = octet_by_octet(sender, data);
    in_pieces(sender, data, usize::from(settings >> 1), &places);
    frame_by_frame(sender, data, &places);
});

/// The place before each octet, and behind the last.
fn octet_by_octet(sender: Sender, data: &[u8]) -> Vec<Place> {
    let mut frames = Frames::new(sender);
    let mut places = vec![frames.place()];
    for octet in data {
        let (before, was_closing) = (frames.place(), frames.is_closing());
        frames.follow(std::slice::from_ref(octet));
        assert!(frames.is_closing() || !was_closing, "a Close frame was taken back");
        if matches!(before, Place::Closed | Place::Unknown) {
            assert_eq!(frames.place(), before, "there is no way back");
        }
        places.push(frames.place());
    }
    places
}

/// `rhythm` decides how long the pieces are.
fn in_pieces(sender: Sender, data: &[u8], rhythm: usize, places: &[Place]) {
    let mut frames = Frames::new(sender);
    let mut at = 0;
    while at < data.len() {
        let length = (1 + (rhythm + at) % 23 * (at % 5)).min(data.len() - at);
        frames.follow(&data[at..at + length]);
        at += length;
        assert_eq!(frames.place(), places[at], "behind octet {at}");
    }
}

/// Each end of a frame is seen, also when all comes at once.
fn frame_by_frame(sender: Sender, data: &[u8], places: &[Place]) {
    let mut frames = Frames::new(sender);
    let mut at = 0;
    while at < data.len() {
        let length = frames.advance(&data[at..]);
        assert!((1..=data.len() - at).contains(&length), "{length} octets of {}", data.len() - at);
        let jumped = &places[at + 1..at + length];
        let is_end = |place: &Place| matches!(place, Place::BetweenMessages | Place::BetweenFragments);
        assert!(!jumped.iter().any(is_end), "an end was missed behind octet {at}");
        let is_same = jumped.iter().all(|place| *place == places[at]);
        assert!(is_same || !jumped.contains(&Place::Closed), "the end was missed behind octet {at}");
        at += length;
        assert_eq!(frames.place(), places[at], "behind octet {at}");
    }
}
