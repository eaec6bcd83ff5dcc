//! Which color may answer, as somebody knows it who calls a switch and waits for the acknowledgement.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::Color;

/// How long after the call of a switch a request counts as near it.
const NEAR: Duration = Duration::from_millis(100);

/// The switches so far; whoever calls one writes it, and every request reads it when it begins and when it ends.
pub(in crate::demo) struct Course(Mutex<Leg>);

#[derive(Clone, Copy)]
pub(super) struct Leg {
    /// Grows at every call of a switch and at every acknowledgement.
    number: u64,
    /// `None` between the call and the acknowledgement, when either color may answer.
    settled: Option<Color>,
    called: Option<Instant>,
}

impl Course {
    pub(super) fn new(color: Color) -> Course {
        Course(Mutex::new(Leg { number: 0, settled: Some(color), called: None }))
    }

    /// A switch is about to be called.
    pub(in crate::demo) fn depart(&self) {
        let mut leg = self.0.lock();
        *leg = Leg { number: leg.number + 1, settled: None, called: Some(Instant::now()) };
    }

    /// The switch is acknowledged.
    pub(in crate::demo) fn arrive(&self, color: Color) {
        let mut leg = self.0.lock();
        *leg = Leg { number: leg.number + 1, settled: Some(color), ..*leg };
    }

    /// The color that answers; `None` while a switch is under way.
    pub(in crate::demo) fn color(&self) -> Option<Color> {
        self.leg().settled
    }

    pub(super) fn leg(&self) -> Leg {
        *self.0.lock()
    }
}

impl Leg {
    /// Switches called so far.
    pub(super) fn switches(&self) -> u64 {
        self.number.div_ceil(2)
    }

    pub(super) fn is_after_ack(&self) -> bool {
        self.number > 0 && self.settled.is_some()
    }

    /// Whether an answer of `color` broke the promise, given the leg on which the request began and the one on which
    /// it ended: a later switch may have changed the color meanwhile.
    pub(super) fn is_stale(&self, color: Color, end: &Leg) -> bool {
        self.settled.is_some_and(|settled| settled != color) && self.number == end.number
    }

    pub(super) fn is_near(&self) -> bool {
        self.called.is_some_and(|called| called.elapsed() < NEAR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_old_color_after_the_ack_is_stale() {
        let course = Course::new(Color::Blue);
        let start = course.leg();
        assert!(!start.is_after_ack());
        course.depart();
        let under_way = course.leg();
        assert!(!start.is_stale(Color::Green, &under_way), "the switch may have overtaken the request");
        course.arrive(Color::Green);
        let settled = course.leg();
        assert!(!under_way.is_stale(Color::Blue, &settled));
        assert!(settled.is_after_ack() && settled.is_near());
        assert!(settled.is_stale(Color::Blue, &course.leg()));
        assert!(!settled.is_stale(Color::Green, &course.leg()));
        assert_eq!(settled.switches(), 1);
    }
}
