//! One request and its answer on a connection to an origin, both directions at once.
//!
//! The answer may begin before the request has ended; a client that leaves is noticed while the origin still thinks.
//! Nothing is kept but what the other side has not taken yet.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::error::Failure;
use crate::http::Client;
use crate::http::body::{Encoding, Pump, PumpError};
use crate::http::buffer::Buffer;
use crate::http::event_stream::{EventStream, RETURN, between};
use crate::http::forward::Facts;
use crate::http::head::{AnswerHead, Framing, Scan, owned, parse_answer};
use crate::http::headers::{Delivery, incoming};
use crate::net::{Stream, Unsayable};
use crate::roster::Interrupt;
use crate::service::{Kind, Passage};
use crate::stream::websocket;

/// Largest head of an answer, octets.
const MAX_ANSWER_HEAD: usize = 256 * 1024;
/// Interim answers (1xx) before the final one.
const MAX_INTERIM: u32 = 32;

/// How an exchange ended well.
#[derive(Debug)]
pub(crate) enum Done {
    /// The answer is through.
    Answered { origin_is_reusable: bool, client_closes: bool },
    /// The origin has switched to WebSocket. Its 101 and what it has sent behind it still have to go to the client.
    Upgraded { head: Vec<u8>, early: Vec<u8> },
}

/// The state of both directions. Polled until done; dropping it in between leaves both connections unusable.
pub(crate) struct Exchange<'a> {
    client: &'a mut Client,
    origin: &'a mut Stream,
    passage: &'a mut Passage,
    facts: &'a Facts,
    upload: &'a mut Pump,
    upload_is_over: bool,
    /// The origin takes no more of the request; it may have answered already.
    upload_broke: Option<io::Error>,
    answer: Buffer,
    /// Of the head that `answer` begins with.
    scan: Scan,
    /// Interim answers on their way to the client.
    interim: Vec<u8>,
    interim_sent: usize,
    interim_count: u32,
    is_continued: bool,
    download: Option<Pump>,
    origin_keeps_alive: bool,
    delivery: Delivery,
    /// Of the final answer; 0 before it.
    pub(crate) status: u16,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(
        client: &'a mut Client,
        origin: &'a mut Stream,
        passage: &'a mut Passage,
        facts: &'a Facts,
        upload: &'a mut Pump,
    ) -> Exchange<'a> {
        let delivery = Delivery { encoding: Encoding::Plain, closes: true, to_http_10: facts.is_http_10 };
        let exchange = Exchange {
            client,
            origin,
            passage,
            facts,
            upload,
            upload_is_over: false,
            upload_broke: None,
            answer: Buffer::default(),
            scan: Scan::default(),
            interim: Vec::new(),
            interim_sent: 0,
            interim_count: 0,
            is_continued: false,
            download: None,
            origin_keeps_alive: false,
            delivery,
            status: 0,
        };
        exchange.client.seat.within(exchange.response_timeout());
        exchange
    }

    /// Octets of the answer's body so far.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.download.as_ref().map_or(0, |download| download.moved)
    }

    /// Whether a reply of our own would come out in the middle of something else.
    pub(crate) fn is_mid_head(&self) -> bool {
        (1..self.interim.len()).contains(&self.interim_sent)
    }

    /// Whether the origin has begun to answer.
    pub(crate) fn is_answering(&self) -> bool {
        self.status != 0 || self.interim_count > 0 || !self.answer.is_empty()
    }

    /// Moves on as far as possible, or until an interrupt of the client's seat.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Done, Failure>> {
        if let Some(interrupt) = self.client.seat.interrupt() {
            return Poll::Ready(Err(self.interrupted(interrupt)));
        }
        if !self.upload_is_over {
            self.poll_upload(cx)?;
        }
        if self.upload_is_over {
            self.poll_client_gone(cx)?;
        }
        if self.download.is_none()
            && let Some(upgraded) = ready!(self.poll_answer_head(cx))?
        {
            return Poll::Ready(Ok(upgraded));
        }
        self.poll_download(cx)
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let mut progress = false;
        let client = &mut *self.client;
        let result = self.upload.poll(cx, &mut client.stream, &mut client.buffer, self.origin, &mut progress);
        match result {
            Poll::Ready(Ok(())) => self.upload_is_over = true,
            Poll::Ready(Err(PumpError::Receiver(error))) => {
                if let Some(what) = Unsayable::of(&error) {
                    return Err(unsayable(what));
                }
                self.upload_is_over = true;
                self.upload_broke = Some(error);
            }
            Poll::Ready(Err(PumpError::Sender(error))) => return Err(Failure::ClientGone(error)),
            Poll::Ready(Err(PumpError::Bad(bad))) => return Err(Failure::BadRequest(bad.0)),
            Poll::Ready(Err(PumpError::TooLarge)) => return Err(Failure::BodyTooLarge),
            Poll::Pending => {}
        }
        if progress && self.passage.kind() == Kind::Http {
            let is_origins_turn = self.upload_is_over || self.awaits_continue();
            let waits_for_answer = is_origins_turn && self.download.is_none();
            let limit = if waits_for_answer { self.response_timeout() } else { self.body_timeout() };
            self.client.seat.within(limit);
        } else if progress {
            self.limit_stream();
        }
        Ok(())
    }

    /// While the origin has the word, the client can only leave, or send the next request ahead.
    fn poll_client_gone(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let Client { stream, buffer, listener, .. } = &mut *self.client;
        buffer.read_ahead(cx, stream, listener.limits.request_head).map_err(Failure::ClientGone)
    }

    /// Reads until the final head is there. `Some`: it is an upgrade.
    fn poll_answer_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Done>, Failure>> {
        loop {
            ready!(self.poll_flush_interim(cx))?;
            while !self.answer.is_empty() {
                match self.take_head()? {
                    Head::Partial => break,
                    // Before the next head is taken: a final one has another way to the client.
                    Head::Interim => ready!(self.poll_flush_interim(cx))?,
                    Head::Final => return Poll::Ready(Ok(None)),
                    Head::Upgrade(done) => return Poll::Ready(Ok(Some(done))),
                }
            }
            let room = self.answer.spare(MAX_ANSWER_HEAD);
            let result = self.origin.poll_read(cx, room);
            match result {
                Poll::Pending => {
                    self.answer.release_if_empty();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Failure::Broken(self.upload_broke.take()))),
                Poll::Ready(Ok(count)) => self.answer.add(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Broken(Some(error)))),
            }
        }
    }

    fn poll_flush_interim(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while self.interim_sent < self.interim.len() {
            let sent = ready!(self.client.stream.poll_write(cx, &self.interim[self.interim_sent..]));
            self.interim_sent += sent.map_err(|error| Failure::ClientGone(Some(error)))?;
        }
        ready!(self.client.stream.poll_flush(cx)).map_err(|error| Failure::ClientGone(Some(error)))?;
        (self.interim, self.interim_sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Takes one head off what the origin has sent.
    fn take_head(&mut self) -> Result<Head, Failure> {
        if !self.scan.is_due(self.answer.filled(), MAX_ANSWER_HEAD) {
            return Ok(Head::Partial);
        }
        let answer = std::mem::take(&mut self.answer);
        let parsed = parse_answer(answer.filled(), self.facts.is_head, MAX_ANSWER_HEAD, |head, length| {
            (self.judge(head), length)
        });
        self.answer = answer;
        let Some((head, length)) = parsed? else { return Ok(Head::Partial) };
        let head = head?;
        self.answer.consume(length);
        self.scan = Scan::default();
        match head {
            Head::Upgrade(Done::Upgraded { head, .. }) => {
                Ok(Head::Upgrade(Done::Upgraded { head, early: self.answer.filled().to_vec() }))
            }
            other => Ok(other),
        }
    }

    fn judge(&mut self, head: &AnswerHead<'_>) -> Result<Head, Failure> {
        match head.status {
            101 => self.upgrade(head),
            100..=199 => self.interim(head),
            200..=299 if self.would_accept() => Err(Failure::BadAnswer("success, but not the WebSocket's")),
            _ => {
                self.begin_download(head);
                Ok(Head::Final)
            }
        }
    }

    /// Over HTTP/2 every success accepts a WebSocket (RFC 8441 §5): what an origin means otherwise cannot go on.
    fn would_accept(&self) -> bool {
        self.facts.websocket_key.is_some() && self.client.stream.is_multiplexed()
    }

    fn upgrade(&mut self, head: &AnswerHead<'_>) -> Result<Head, Failure> {
        let Some(key) = &self.facts.websocket_key else { return Err(Failure::BadAnswer("101 that nobody asked for")) };
        if !head.upgrades_to_websocket || !websocket::is_accepted(key, head.websocket_accept) {
            return Err(Failure::BadAnswer("101 that does not accept the WebSocket"));
        }
        self.status = 101;
        let head = incoming(head, self.delivery, Some(self.passage.service()));
        Ok(Head::Upgrade(Done::Upgraded { head, early: Vec::new() }))
    }

    /// Interim answers go on as they are; HTTP/1.0 does not know them.
    fn interim(&mut self, head: &AnswerHead<'_>) -> Result<Head, Failure> {
        self.interim_count += 1;
        if self.interim_count > MAX_INTERIM {
            return Err(Failure::BadAnswer("endless interim answers"));
        }
        if head.status == 100 && self.awaits_continue() {
            self.is_continued = true;
            self.client.seat.within(self.body_timeout());
        }
        if !self.facts.is_http_10 {
            self.interim.extend_from_slice(&incoming(head, self.delivery, None));
        }
        Ok(Head::Interim)
    }

    fn begin_download(&mut self, head: &AnswerHead<'_>) {
        let is_delimited = matches!(head.framing, Framing::Empty | Framing::Length(_));
        let encoding = if is_delimited || self.facts.is_http_10 { Encoding::Plain } else { Encoding::Chunked };
        let client = &*self.client;
        let has_pipelined_upgrade = self.facts.websocket_key.is_some() && !client.buffer.is_empty();
        self.delivery.encoding = encoding;
        self.delivery.closes = !self.facts.keep_alive
            || client.seat.is_leaving()
            || !self.upload_is_over
            || self.upload_broke.is_some()
            || (self.facts.is_http_10 && !is_delimited)
            || has_pipelined_upgrade;
        self.origin_keeps_alive = head.keep_alive;
        self.status = head.status;
        let bytes = incoming(head, self.delivery, Some(self.passage.service()));
        let download = Pump::new(bytes, head.framing, encoding, None).before_end(self.delivery.closes);
        self.download = Some(download.without_trailers(owned(&head.named_by_connection)));
        if head.is_event_stream {
            self.begin_events(head.is_encoded);
        } else {
            self.passage.answered(head.status < 500);
            self.client.seat.within(self.body_timeout());
        }
    }

    fn begin_events(&mut self, is_encoded: bool) {
        self.passage.turn(Kind::Sse);
        self.client.seat.turn(Kind::Sse as u8);
        self.limit_stream();
        if let Some(download) = &mut self.download
            && !is_encoded
        {
            download.follow_events(EventStream::new(self.passage.service().returning.is_expected()));
        }
    }

    /// A stream lasts as long as both ends want. While the origin does not take the rest of the request, though, nobody
    /// reads what the client says, and so nobody would notice that it has gone.
    fn limit_stream(&self) {
        if !self.upload_is_over && self.origin_is_behind() {
            self.client.seat.within(self.body_timeout());
        } else {
            self.client.seat.without_limit();
        }
    }

    /// The drain asks for the end of the event stream, or does not want it any more.
    fn reconsider_events(&mut self) -> Result<(), Failure> {
        let is_told = self.client.seat.is_told();
        let service = self.passage.service();
        let (Some(download), Some(settings)) = (&mut self.download, &service.config.drain.sse) else { return Ok(()) };
        let Some(events) = download.events().filter(|events| events.is_told() != is_told) else { return Ok(()) };
        if !is_told {
            events.recall();
            return Ok(());
        }
        service.returning.expect(*settings.retry.end() + RETURN);
        if events.tell(between(&settings.retry)) {
            download.end_events().map_err(|_| Failure::BadAnswer("an end that cannot be written"))?;
        }
        Ok(())
    }

    fn poll_download(&mut self, cx: &mut Context<'_>) -> Poll<Result<Done, Failure>> {
        if self.passage.kind() == Kind::Sse {
            self.reconsider_events()?;
        }
        let mut progress = false;
        let Some(download) = &mut self.download else { return Poll::Pending };
        let result = download.poll(cx, self.origin, &mut self.answer, &mut self.client.stream, &mut progress);
        if progress && self.passage.kind() == Kind::Http {
            self.client.seat.within(self.client.listener.limits.body_timeout);
        } else if progress {
            self.limit_stream();
        }
        let through = match ready!(result) {
            Ok(()) => Ok(()),
            Err(PumpError::Sender(error)) => Err(Failure::Broken(error)),
            Err(PumpError::Bad(bad)) => Err(Failure::BadAnswer(bad.0)),
            Err(PumpError::Receiver(error)) => Err(Failure::ClientGone(Some(error))),
            Err(PumpError::TooLarge) => Err(Failure::BadAnswer("answer too large")),
        };
        Poll::Ready(through.map(|()| self.answered()))
    }

    fn answered(&self) -> Done {
        let upload_is_through = self.upload_is_over && self.upload_broke.is_none();
        let was_ended = self.download.as_ref().is_some_and(Pump::was_ended);
        Done::Answered {
            origin_is_reusable: self.origin_keeps_alive && upload_is_through && self.answer.is_empty() && !was_ended,
            client_closes: self.delivery.closes,
        }
    }

    /// Only a close tells the client that the answer is over: a broken one must not look whole.
    pub(crate) fn close_would_look_whole(&self) -> bool {
        self.status != 0 && self.delivery.encoding == Encoding::Plain && self.delivery.closes
    }

    /// Who is late decides whose failure it is: a client must not be able to make an origin look ill.
    fn interrupted(&self, interrupt: Interrupt) -> Failure {
        if interrupt != Interrupt::Timeout {
            return Failure::Cut;
        }
        let waits_for_client = match &self.download {
            Some(download) => download.is_waiting_for_receiver(),
            None => self.interim_sent < self.interim.len(),
        };
        let takes_nothing = waits_for_client || self.client.stream.has_unsent();
        let owes_body = !self.upload_is_over && !self.origin_is_behind() && !self.awaits_continue();
        match &self.download {
            _ if takes_nothing => Failure::ClientStalled,
            _ if owes_body => Failure::BodyTimeout,
            Some(_) => Failure::AnswerStalled,
            None => Failure::AnswerTimeout,
        }
    }

    /// Whether the origin does not take what there is of the request.
    fn origin_is_behind(&self) -> bool {
        self.upload.is_waiting_for_receiver() || self.origin.has_unsent()
    }

    /// Whether the client holds its body back until the origin asks for it.
    fn awaits_continue(&self) -> bool {
        self.facts.expects_continue && !self.is_continued && self.upload.moved == 0
    }

    fn response_timeout(&self) -> Duration {
        self.passage.service().config.response_timeout
    }

    fn body_timeout(&self) -> Duration {
        self.client.listener.limits.body_timeout
    }
}

fn unsayable(what: Unsayable) -> Failure {
    match what {
        Unsayable::Request => {
            Failure::BadRequest("this service is spoken to in HTTP/2, which cannot express the request")
        }
        Unsayable::WebSocket => Failure::NoWebSocket,
    }
}

enum Head {
    Partial,
    Interim,
    Final,
    Upgrade(Done),
}
