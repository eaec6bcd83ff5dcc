//! A client as good ones are, by `h2`.

use std::future::poll_fn;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::soon;

/// One connection.
pub(crate) struct Good {
    pub(crate) send: SendRequest<Bytes>,
    /// Ends with the connection.
    pub(crate) connection: JoinHandle<Result<(), h2::Error>>,
}

/// An answer as the client got it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text")
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.to_str().expect("a text"))
    }
}

impl Good {
    pub(crate) async fn connect(address: SocketAddr) -> Good {
        let stream = TcpStream::connect(address).await.expect("the proxy accepts");
        stream.set_nodelay(true).expect("a TCP socket");
        Good::on(stream, &client::Builder::new()).await
    }

    pub(crate) async fn on(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        builder: &client::Builder,
    ) -> Good {
        let (send, connection) = soon("a handshake", builder.handshake(stream)).await.expect("HTTP/2");
        Good { send, connection: tokio::spawn(connection) }
    }

    /// Sends a head; the body is over unless `has_body`.
    pub(crate) async fn begin(&mut self, request: Request<()>, has_body: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let ready = soon("room for a stream", self.send.clone().ready()).await;
        self.send = ready.expect("the connection goes on");
        self.send.send_request(request, !has_body).expect("a request")
    }

    /// A request with this body, and its whole answer.
    pub(crate) async fn ask(&mut self, request: Request<()>, body: &[u8]) -> Answer {
        self.try_ask(request, body).await.expect("a whole answer")
    }

    pub(crate) async fn try_ask(&mut self, request: Request<()>, body: &[u8]) -> Result<Answer, h2::Error> {
        let (answer, mut send) = self.begin(request, !body.is_empty()).await;
        if !body.is_empty() {
            soon("the body to be taken", write(&mut send, body, true)).await?;
        }
        whole(answer).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.ask(get(path), b"").await
    }
}

/// GET on a connection of its own.
pub(crate) async fn get_once(address: SocketAddr, path: &str) -> Answer {
    Good::connect(address).await.get(path).await
}

pub(crate) fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://test{path}"))
}

pub(crate) fn get(path: &str) -> Request<()> {
    request("GET", path).body(()).expect("a request")
}

pub(crate) fn post(path: &str) -> Request<()> {
    request("POST", path).body(()).expect("a request")
}

/// Writes as the proxy grants it.
pub(crate) async fn write(send: &mut SendStream<Bytes>, mut body: &[u8], is_last: bool) -> Result<(), h2::Error> {
    while !body.is_empty() {
        send.reserve_capacity(body.len());
        let granted = poll_fn(|cx| send.poll_capacity(cx)).await;
        let count = granted.ok_or(Reason::CANCEL)??.min(body.len());
        send.send_data(Bytes::copy_from_slice(&body[..count]), is_last && count == body.len())?;
        body = &body[count..];
    }
    Ok(())
}

/// The head of an answer, and its body to be read.
pub(crate) async fn head(answer: ResponseFuture) -> Result<Response<RecvStream>, h2::Error> {
    soon("the head of an answer", answer).await
}

/// The next piece of a body that is not empty; `None` at its end.
pub(crate) async fn piece(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    loop {
        let piece = soon("a piece of a body", body.data()).await?;
        let Ok(data) = &piece else { return Some(piece) };
        body.flow_control().release_capacity(data.len()).expect("what was received");
        if !data.is_empty() {
            return Some(piece);
        }
    }
}

pub(crate) async fn whole(answer: ResponseFuture) -> Result<Answer, h2::Error> {
    let (parts, mut stream) = head(answer).await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = piece(&mut stream).await {
        body.extend_from_slice(&data?);
    }
    let trailers = soon("trailers", stream.trailers()).await?;
    Ok(Answer { status: parts.status.as_u16(), fields: parts.headers, body, trailers })
}
