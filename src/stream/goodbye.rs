//! The goodbye of a WebSocket: how a tunnel ends so that no message is torn and no answer lost.
//!
//! It waits for a quiet moment; tells the origin, by a Close frame between two messages; delivers all that the origin
//! still says up to its own Close; then tells the client, again at a boundary, and waits for its answer. What the client
//! sends once the origin has been told reaches nobody: it is unanswered, so the client may send it again. A side that
//! ends the conversation itself is not disturbed, and a connection whose framing is broken is never written into.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::WebSockets;
use crate::net::{Stream, with_scratch};
use crate::stream::direction::{Direction, Stop, Stopped};
use crate::stream::frames::{Place, close_to_client, close_to_origin};

/// No bytes for so long, and no message half through: a quiet moment.
const QUIET: Duration = Duration::from_millis(50);
/// How long a message that is half through may take to end, and how long each side has to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client has to close its socket after both have said goodbye.
const PARTING: Duration = Duration::from_secs(1);
/// What the origin is told: its peer goes away (RFC 6455 §7.4.1).
const GOING_AWAY: u16 = 1001;

/// Both directions of a tunnel and the socket of the origin.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) origin: Stream,
    pub(super) to_origin: Direction,
    pub(super) to_client: Direction,
}

impl Pair {
    /// Relays until both directions have ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, client: &mut Stream) -> Poll<io::Result<()>> {
        let up = self.to_origin.poll(cx, client, &mut self.origin)?;
        let down = self.to_client.poll(cx, &mut self.origin, client)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Whether a goodbye would disturb: one side ends the conversation itself, or nobody knows where a frame ends.
    fn is_beyond_goodbye(&self) -> bool {
        [&self.to_origin, &self.to_client].iter().any(|way| way.is_ending() || way.place() == Place::Unknown)
    }

    /// Whether one side has ended, and how much has been heard by then.
    pub(super) fn half_ended(&self) -> Option<(u32, u32)> {
        (self.to_origin.has_ended() != self.to_client.has_ended()).then(|| self.heard())
    }

    fn is_between_messages(&self) -> bool {
        [&self.to_origin, &self.to_client].iter().all(|way| way.place() == Place::BetweenMessages && way.is_flushed())
    }

    fn heard(&self) -> (u32, u32) {
        (self.to_origin.heard(), self.to_client.heard())
    }
}

/// How a tunnel came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// Both sides knew.
    Finished,
    /// A side did not answer in time.
    Cut,
}

/// A goodbye under way.
#[derive(Debug)]
pub(super) struct Goodbye {
    stage: Stage,
    timer: Pin<Box<Sleep>>,
    /// When the wait for a quiet moment is over.
    quiet_until: Instant,
    /// At the last look.
    heard: (u32, u32),
    code: u16,
    reason: Box<str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// All goes on as before.
    Quiet,
    /// All goes on, but the origin is to be told at the next boundary.
    Origin,
    /// The origin has been told; what it still says goes to the client.
    LastWords,
    /// The origin has said all; the client is to be told at the next boundary.
    Client,
    /// The client has been told.
    Answer,
    /// Both have said goodbye.
    Parting,
    /// One side ends the conversation itself.
    Undisturbed,
}

/// What a stage has led to.
enum Next {
    Stage(Stage),
    Over(Ending),
}

impl Goodbye {
    pub(super) fn new(settings: &WebSockets, pair: &Pair) -> Goodbye {
        let now = Instant::now();
        let quiet_until = now + settings.quiet;
        Goodbye {
            stage: Stage::Quiet,
            timer: Box::pin(sleep_until(quiet_until.min(now + QUIET))),
            quiet_until,
            heard: pair.heard(),
            code: settings.code,
            reason: settings.reason.clone(),
        }
    }

    /// Whether nobody knows of it yet.
    pub(super) fn may_be_recalled(&self) -> bool {
        matches!(self.stage, Stage::Quiet | Stage::Origin)
    }

    /// Goes on with the goodbye, and with the conversation as long as there is one.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        pair: &mut Pair,
        client: &mut Stream,
    ) -> Poll<io::Result<Ending>> {
        loop {
            let next = match self.stage {
                Stage::Quiet => self.poll_quiet(cx, pair, client),
                Stage::Origin => self.poll_origin(cx, pair, client),
                Stage::LastWords => self.poll_last_words(cx, pair, client),
                Stage::Client => self.poll_client(cx, pair, client),
                Stage::Answer => self.poll_answer(cx, pair, client),
                Stage::Parting => self.poll_parting(cx, pair, client),
                Stage::Undisturbed => return pair.poll(cx, client).map_ok(|()| Ending::Finished),
            };
            match ready!(next)? {
                Next::Over(ending) => return Poll::Ready(Ok(ending)),
                Next::Stage(stage) => {
                    self.stage = stage;
                    let limit = if stage == Stage::Parting { PARTING } else { PATIENCE };
                    self.timer.as_mut().reset(Instant::now() + limit);
                }
            }
        }
    }

    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer.as_mut().poll(cx).is_ready()
    }

    fn poll_quiet(&mut self, cx: &mut Context<'_>, pair: &mut Pair, client: &mut Stream) -> Poll<io::Result<Next>> {
        if pair.poll(cx, client)?.is_ready() {
            return Poll::Ready(Ok(Next::Over(Ending::Finished)));
        }
        if pair.is_beyond_goodbye() {
            return Poll::Ready(Ok(Next::Stage(Stage::Undisturbed)));
        }
        while self.is_late(cx) {
            let (now, heard) = (Instant::now(), pair.heard());
            let is_quiet = heard == self.heard && pair.is_between_messages();
            if is_quiet || now >= self.quiet_until {
                return Poll::Ready(Ok(Next::Stage(Stage::Origin)));
            }
            self.heard = heard;
            self.timer.as_mut().reset(self.quiet_until.min(now + QUIET));
        }
        Poll::Pending
    }

    fn poll_origin(&mut self, cx: &mut Context<'_>, pair: &mut Pair, client: &mut Stream) -> Poll<io::Result<Next>> {
        let has_origin_ended = pair.to_client.poll(cx, &mut pair.origin, client)?.is_ready();
        if has_origin_ended || pair.is_beyond_goodbye() {
            return Poll::Ready(Ok(Next::Stage(Stage::Undisturbed)));
        }
        // A message that takes longer is interrupted between two of its fragments, as the protocol allows.
        let stop = if self.is_late(cx) { Stop::Frame } else { Stop::Message };
        match pair.to_origin.poll_until(cx, client, &mut pair.origin, stop)? {
            Poll::Ready(Stopped::There) if !pair.to_origin.is_ending() => {
                pair.to_origin.insert(&close_to_origin(GOING_AWAY, fastrand::u32(..).to_ne_bytes()));
                Poll::Ready(Ok(Next::Stage(Stage::LastWords)))
            }
            Poll::Ready(_) => Poll::Ready(Ok(Next::Stage(Stage::Undisturbed))),
            Poll::Pending if pair.is_beyond_goodbye() => Poll::Ready(Ok(Next::Stage(Stage::Undisturbed))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_last_words(
        &mut self,
        cx: &mut Context<'_>,
        pair: &mut Pair,
        client: &mut Stream,
    ) -> Poll<io::Result<Next>> {
        // An origin that takes nothing any more may still have something to say.
        let _ = pair.to_origin.poll_flush(cx, &mut pair.origin);
        let _ = pair.to_origin.poll_discard(cx, client);
        if pair.to_client.poll_until(cx, &mut pair.origin, client, Stop::Close)?.is_ready() || self.is_late(cx) {
            return Poll::Ready(Ok(Next::Stage(Stage::Client)));
        }
        Poll::Pending
    }

    fn poll_client(&mut self, cx: &mut Context<'_>, pair: &mut Pair, client: &mut Stream) -> Poll<io::Result<Next>> {
        let _ = pair.to_origin.poll_flush(cx, &mut pair.origin);
        let _ = pair.to_origin.poll_discard(cx, client);
        let stop = if self.is_late(cx) { Stop::Frame } else { Stop::Message };
        ready!(pair.to_client.poll_until(cx, &mut pair.origin, client, stop))?;
        match pair.to_client.place() {
            Place::BetweenMessages | Place::BetweenFragments => {
                pair.to_client.insert(&close_to_client(self.code, &self.reason));
                Poll::Ready(Ok(Next::Stage(Stage::Answer)))
            }
            // The origin's own Close had begun to arrive already.
            Place::Closed => Poll::Ready(Ok(Next::Stage(Stage::Answer))),
            Place::InsideFrame | Place::Unknown => Poll::Ready(Ok(Next::Over(Ending::Cut))),
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>, pair: &mut Pair, client: &mut Stream) -> Poll<io::Result<Next>> {
        let is_told = pair.to_client.poll_flush(cx, client)?.is_ready();
        let _ = pair.origin.poll_shutdown(cx);
        if pair.to_origin.poll_discard(cx, client).is_ready() && is_told {
            return Poll::Ready(Ok(Next::Stage(Stage::Parting)));
        }
        if self.is_late(cx) { Poll::Ready(Ok(Next::Over(Ending::Cut))) } else { Poll::Pending }
    }

    /// The server closes first (RFC 6455 §7.1.1); a socket with unread data would be reset, and so takes its time.
    fn poll_parting(&mut self, cx: &mut Context<'_>, pair: &mut Pair, client: &mut Stream) -> Poll<io::Result<Next>> {
        let _ = client.poll_shutdown(cx);
        let has_left = [client, &mut pair.origin].map(|side| poll_end(cx, side)).iter().all(Poll::is_ready);
        if has_left || self.is_late(cx) { Poll::Ready(Ok(Next::Over(Ending::Finished))) } else { Poll::Pending }
    }
}

/// Takes what a side still says; ready when it has closed its socket.
fn poll_end(cx: &mut Context<'_>, side: &mut Stream) -> Poll<()> {
    while ready!(with_scratch(|scratch| side.poll_read(cx, scratch))).is_ok_and(|count| count > 0) {}
    Poll::Ready(())
}
