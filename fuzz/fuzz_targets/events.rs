//! However its bytes are split, an event stream has the same events, and nothing in them makes the tracker panic.
#![no_main]

#[allow(dead_code, reason = "a target uses a part of it")]
#[path = "../../src/stream/events.rs"]
mod events;

use libfuzzer_sys::fuzz_target;

use events::Events;

fuzz_target!(|data: &[u8]| {
    let [rhythm, data @ ..] = data else { return };
    let places = octet_by_octet(data);
    in_pieces(data, usize::from(*rhythm), &places);
    event_by_event(data, &places);
});

/// Whether an event could begin before each octet, and behind the last.
fn octet_by_octet(data: &[u8]) -> Vec<bool> {
    let mut events = Events::default();
    let mut places = vec![events.is_between()];
    for octet in data {
        events.follow(std::slice::from_ref(octet));
        places.push(events.is_between());
    }
    places
}

/// `rhythm` decides how long the pieces are.
fn in_pieces(data: &[u8], rhythm: usize, places: &[bool]) {
    let mut events = Events::default();
    let mut at = 0;
    while at < data.len() {
        let length = (1 + (rhythm + at) % 23 * (at % 5)).min(data.len() - at);
        events.follow(&data[at..at + length]);
        at += length;
        assert_eq!(events.is_between(), places[at], "behind octet {at}");
    }
}

/// Each place between two events is seen, also when all comes at once.
fn event_by_event(data: &[u8], places: &[bool]) {
    let mut events = Events::default();
    let mut at = 0;
    while at < data.len() {
        let length = events.advance(&data[at..]);
        assert!((1..=data.len() - at).contains(&length), "{length} octets of {}", data.len() - at);
        assert!(!places[at + 1..at + length].contains(&true), "a place was missed behind octet {at}");
        at += length;
        assert_eq!(events.is_between(), places[at], "behind octet {at}");
    }
}
