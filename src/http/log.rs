//! What the access log says of a request. Without an access log nothing here costs anything.

use std::time::{Duration, SystemTime};

use crate::access::Line;
use crate::error::Failure;
use crate::http::forward::Place;
use crate::http::head::RequestHead;
use crate::http::headers::{RequestId, client_address};
use crate::http::reply::{Reply, Wish};
use crate::service::Service;

/// The line of a request that has entered a service; how it ends is filled in then.
pub(crate) fn begun(head: &RequestHead<'_>, place: &Place<'_>, service: &Service, id: &RequestId) -> Option<Box<Line>> {
    place.worker.access.as_ref()?;
    let mut line = line(Some(head), place, id);
    line.service = Some(service.config.name.to_string());
    line.color = Some(service.active.as_str());
    Some(Box::new(line))
}

/// Logs a request that was answered here, without a service; `head` is `None` when it could not be read.
pub(crate) fn answered_here(
    head: Option<&RequestHead<'_>>,
    place: &Place<'_>,
    reply: &Reply,
    wish: &Wish,
    failure: Option<&Failure>,
) {
    let Some(access) = &place.worker.access else { return };
    let mut line = line(head, place, &wish.id);
    line.status = reply.status;
    line.bytes = reply.octets(wish);
    line.error = failure.map(ToString::to_string);
    access.log(line);
}

fn line(head: Option<&RequestHead<'_>>, place: &Place<'_>, id: &RequestId) -> Line {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let peer = place.origin.peer;
    let client = head.map_or(peer, |head| client_address(place.listener, head, peer));
    Line {
        at: SystemTime::now(),
        client: client.map_or_else(|| "unix".to_owned(), |client| client.to_string()),
        method: head.map_or("", |head| head.method).to_owned(),
        host: text(head.map_or(&[], |head| head.host)),
        target: head.map_or("", |head| head.target).to_owned(),
        status: 0,
        bytes: 0,
        took_us: 0,
        service: None,
        color: None,
        endpoint: None,
        request_id: Some(text(id.as_bytes())),
        error: None,
    }
}

/// A time as the log gives it.
pub(crate) fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
