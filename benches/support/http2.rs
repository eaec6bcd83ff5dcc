//! HTTP/2: connections inside TLS with many requests at a time, and an origin that answers calls as gRPC does.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use anyhow::{Result, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::contestant::HOST;
use super::load::Progress;
use super::origin::SMALL;
use super::process::pin;
use super::tls::Tls;

/// The flag and the length before a message of gRPC.
const MESSAGE_HEAD: usize = 5;
const WINDOW: u32 = 1 << 20;
/// Requests of one connection at a time that the origin takes.
const MOST_STREAMS: u32 = 1024;

/// Requests that each of the streams of a connection sends in turn.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(crate) tls: Tls,
    pub(crate) streams: usize,
    pub(crate) call: Call,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// A GET, as a browser sends it.
    Get,
    /// A unary call with a message of as many octets as the one that comes back.
    Grpc,
}

impl Streams {
    /// Runs one connection until the load is over.
    pub(crate) async fn run(&self, proxy: SocketAddr, progress: &Arc<Progress>) -> io::Result<()> {
        let stream = self.tls.client().connect(proxy).await?;
        let mut builder = client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
        let (requests, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
        let mut tasks = JoinSet::new();
        for _ in 0..self.streams {
            tasks.spawn(ask(requests.clone(), self.call, progress.clone()));
        }
        drop(requests);
        let asking = async {
            while let Some(task) = tasks.join_next().await {
                task.map_err(io::Error::other)?.map_err(io::Error::other)?;
            }
            io::Result::Ok(())
        };
        tokio::pin!(connection, asking);
        tokio::select! {
            asked = &mut asking => asked?,
            ended = &mut connection => {
                ended.map_err(io::Error::other)?;
                return asking.await;
            }
        }
        // Says goodbye.
        connection.await.map_err(io::Error::other)
    }
}

async fn ask(mut requests: SendRequest<Bytes>, call: Call, progress: Arc<Progress>) -> Result<()> {
    let request = call.request()?;
    while !progress.is_over() {
        requests = requests.ready().await?;
        let body = call.body();
        let (answer, mut send) = requests.send_request(request.clone(), body.is_empty())?;
        if !body.is_empty() {
            send.send_data(body, true)?;
        }
        call.check(answer.await?).await?;
        progress.count();
    }
    Ok(())
}

impl Call {
    fn request(self) -> Result<Request<()>> {
        let builder = match self {
            Self::Get => Request::get(format!("https://{HOST}/p0"))
                .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
                .header("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
                .header("accept-language", "en-US,en;q=0.5")
                .header("accept-encoding", "gzip, deflate"),
            Self::Grpc => Request::builder()
                .method(Method::POST)
                .uri(format!("https://{HOST}/shop.Orders/Place"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("grpc-timeout", "10S")
                .header("user-agent", "grpc-go/1.75.0"),
        };
        Ok(builder.body(())?)
    }

    fn body(self) -> Bytes {
        match self {
            Self::Get => Bytes::new(),
            Self::Grpc => message(),
        }
    }

    async fn check(self, answer: Response<RecvStream>) -> Result<()> {
        let status = answer.status();
        let mut body = answer.into_body();
        let length = read_to_end(&mut body).await?;
        let expected = if self == Self::Grpc { MESSAGE_HEAD + SMALL } else { SMALL };
        if status != 200 || length != expected {
            bail!("an answer of {status} with {length} octets");
        }
        if self == Self::Grpc {
            let trailers = body.trailers().await?.unwrap_or_default();
            if trailers.get("grpc-status").is_none_or(|status| status != "0") {
                bail!("no grpc-status of 0");
            }
        }
        Ok(())
    }
}

async fn read_to_end(body: &mut RecvStream) -> Result<usize, h2::Error> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let count = data?.len();
        length += count;
        body.flow_control().release_capacity(count)?;
    }
    Ok(length)
}

fn message() -> Bytes {
    let mut octets = vec![0, 0, 0, 0, SMALL as u8];
    octets.resize(MESSAGE_HEAD + SMALL, b'.');
    octets.into()
}

/// Starts an origin that speaks HTTP/2 in plain text on a core, and answers every request like a call; it runs for as
/// long as the bench.
pub(crate) fn start_origin(core: usize) -> Result<SocketAddr> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("origin-h2c".into()).spawn(move || -> Result<()> {
        pin(core)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            sender.send(listener.local_addr()?)?;
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                // A broken connection ends that one alone; the load notices.
                tokio::spawn(async move { serve(stream).await.ok() });
            }
        })
    })?;
    Ok(receiver.recv()?)
}

async fn serve(stream: TcpStream) -> Result<()> {
    let mut builder = server::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).max_concurrent_streams(MOST_STREAMS);
    let mut connection = builder.handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        tokio::spawn(async move { answer(request.into_body(), respond).await.ok() });
    }
    Ok(())
}

async fn answer(mut body: RecvStream, mut respond: SendResponse<Bytes>) -> Result<()> {
    read_to_end(&mut body).await?;
    let head = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut send = respond.send_response(head, false)?;
    send.send_data(message(), false)?;
    send.send_trailers(HeaderMap::from_iter([("grpc-status".parse()?, HeaderValue::from_static("0"))]))?;
    Ok(())
}
