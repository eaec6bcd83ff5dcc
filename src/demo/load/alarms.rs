//! A listener to the alarms: reads the event stream, comes back with the last id when it ends, and checks that every
//! id follows the one before.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};

use crate::demo::client::{self, NoAnswer};

use super::sse::{Event, Parser, TooLong};
use super::{Mark, World};

/// Delay before the first reconnect, until the stream names another.
const RETRY: Duration = Duration::from_millis(100);

const EVENTS: &[u8] = b"text/event-stream";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A request without an answer by then is refused.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens until it is dropped.
pub(super) async fn listen(world: Arc<World>, mark: Arc<Mark>) {
    let mut listener = Listener { world, mark, retry: RETRY, last_id: "0".to_owned() };
    loop {
        match timeout(PATIENCE, listener.open()).await.unwrap_or(Err(Closed::Late)) {
            Ok(body) => {
                listener.mark.is_open.store(true, Ordering::Relaxed);
                listener.follow(body).await;
                listener.mark.is_open.store(false, Ordering::Relaxed);
            }
            Err(closed) => listener.enter_refused(&closed),
        }
        sleep(listener.retry).await;
        listener.world.tally.alarms.reconnects.add(1);
    }
}

struct Listener {
    world: Arc<World>,
    mark: Arc<Mark>,
    retry: Duration,
    last_id: String,
}

/// Why a stream did not open.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    #[error("no answer in {PATIENCE:?}")]
    Late,
    /// A browser would give up for good here; this listener comes back to see what else happens.
    #[error("{0}, and no event stream")]
    NoStream(StatusCode),
}

impl Listener {
    async fn open(&self) -> Result<Incoming, Closed> {
        let mut connection = client::connect(self.world.proxy).await?;
        let mut request = client::request(Method::GET, self.world.proxy, "/alarms", None);
        let id = HeaderValue::from_str(&self.last_id);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        request.headers_mut().extend(id.ok().map(|id| (LAST_EVENT_ID, id)));
        let answer = connection.send_request(request).await.map_err(NoAnswer::from)?;
        let is_stream = answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(EVENTS));
        if answer.status() != StatusCode::OK || !is_stream {
            return Err(Closed::NoStream(answer.status()));
        }
        Ok(answer.into_body())
    }

    fn enter_refused(&self, closed: &Closed) {
        self.world.tally.alarms.refused.add(1);
        self.world.tally.trouble.note(|| format!("SSE /alarms: {closed}"));
    }

    /// Reads until the stream ends; a broken end is an end.
    async fn follow(&mut self, mut body: Incoming) {
        let mut parser = Parser::after(self.last_id.clone());
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(piece) = frame.into_data() else { continue };
            if let Err(error) = self.take(&mut parser, &piece) {
                self.world.tally.trouble.note(|| format!("SSE /alarms: {error}"));
                return;
            }
        }
    }

    fn take(&mut self, parser: &mut Parser, piece: &[u8]) -> Result<(), TooLong> {
        let events = parser.feed(piece)?;
        self.retry = parser.retry.unwrap_or(self.retry);
        events.into_iter().for_each(|event| self.hear(event));
        Ok(())
    }

    fn hear(&mut self, event: Event) {
        if event.name == "alarm"
            && let Ok(id) = event.id.parse()
        {
            self.world.tally.alarms.receive(&self.mark, id);
        }
        self.last_id = event.id;
    }
}
