//! The plain HTTP/1.1 client of the demo: connections by hand, bodies read whole and never more than a megabyte.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub(super) type Connection = SendRequest<Full<Bytes>>;

const BODY_LIMIT: usize = 1 << 20;

/// Why an exchange gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("connect: {0}")]
    Connect(#[from] io::Error),
    #[error("{}", innermost(.0))]
    Http(#[from] hyper::Error),
    #[error("body: {}", innermost(&**.0))]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// The cause that a person can act on; hyper's own levels above it say little on one line.
fn innermost(mut error: &(dyn std::error::Error + 'static)) -> String {
    let outer = error.to_string();
    while let Some(source) = error.source() {
        error = source;
    }
    let inner = error.to_string();
    if inner == outer { outer } else { format!("{outer}: {inner}") }
}

/// Opens a connection that lives until it is dropped or the server closes it.
pub(super) async fn connect(address: SocketAddr) -> Result<Connection, NoAnswer> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // What goes wrong here also reaches the exchange that waits for it.
        let _ = driver.await;
    });
    Ok(connection)
}

/// A request of an origin-form `target`; with a body it is JSON.
pub(super) fn request(method: Method, address: SocketAddr, target: &str, json: Option<String>) -> Request<Full<Bytes>> {
    let host = HeaderValue::from_str(&address.to_string()).expect("a socket address is plain ASCII");
    let mut request = Request::builder().method(method).uri(target).header(HOST, host);
    if json.is_some() {
        request = request.header(http::header::CONTENT_TYPE, "application/json");
    }
    let body = Full::from(json.unwrap_or_default());
    request.body(body).expect("targets are literals of this module's users or escaped by them")
}

pub(super) async fn exchange(
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, NoAnswer> {
    let (head, body) = connection.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, whole(body).await?))
}

async fn whole(body: Incoming) -> Result<Bytes, NoAnswer> {
    Ok(Limited::new(body, BODY_LIMIT).collect().await.map_err(NoAnswer::Body)?.to_bytes())
}
