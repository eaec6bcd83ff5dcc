//! A bridge from HTTP/1.1 to HTTP/2: clients that know nothing of HTTP/2 speak it, on few connections that all of them
//! share.
//!
//! What a client writes becomes a stream, and the stream's answer becomes text again, piece by piece, each direction only
//! as fast as the other side takes it. What is broken stays broken: the reset of a stream is a reset of the client's
//! connection, and a client that leaves resets its stream. A connection on which the proxy says goodbye is to its clients
//! one whose answers say `Connection: close`, and which ends when nothing is asked of it. Nothing is tried twice: a
//! request that the proxy has got and does not answer is lost.

mod pool;
mod text;

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::tls::{end, reset};
use pool::{Lease, Pool};
use text::{Asked, Framing, Piece};

/// Octets of a client that are read and not sent on.
const MOST_AHEAD: usize = 256 * 1024;
/// Octets that are read at once.
const PIECE: usize = 16 * 1024;

/// Takes connections of HTTP/1.1 until it is dropped.
pub struct Bridge {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Bridge {
    /// Before the listener at `to`, which speaks HTTP/2 by prior knowledge.
    pub fn start(to: SocketAddr, runtime: &Runtime) -> Bridge {
        let listener = StdTcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a TCP socket");
        let address = listener.local_addr().expect("a bound address");
        let task = runtime.spawn(async move {
            let (listener, pool) = (TcpListener::from_std(listener).expect("a runtime"), Arc::new(Pool::new(to)));
            while let Ok((plain, _)) = listener.accept().await {
                tokio::spawn(carry(plain, pool.clone()));
            }
        });
        Bridge { address, task }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut plain: TcpStream, pool: Arc<Pool>) {
    let _ = plain.set_nodelay(true);
    let (read, write) = plain.split();
    let incoming = Incoming { read, buffer: BytesMut::new() };
    let ended = Conversation { incoming, write, pool, lease: None }.run().await;
    match ended {
        Ok(()) => end(plain).await,
        Err(_) => reset(&plain),
    }
}

/// A client's connection.
struct Conversation<'a> {
    incoming: Incoming<'a>,
    write: WriteHalf<'a>,
    pool: Arc<Pool>,
    lease: Option<Lease>,
}

impl Conversation<'_> {
    /// One request after the other. An error is to be a reset.
    async fn run(mut self) -> io::Result<()> {
        while let Some(head) = self.incoming.head(self.lease.as_mut()).await? {
            let asked = text::asked(&head).ok_or(io::ErrorKind::InvalidData)?;
            let (response, send) = self.begin(&asked).await?;
            let goes_on = match asked.framing {
                Framing::Tunnel => self.tunnel(&asked, response, send).await?,
                _ => self.exchange(&asked, response, send).await?,
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// On a connection that is not going away.
    async fn begin(&mut self, asked: &Asked) -> io::Result<(ResponseFuture, SendStream<Bytes>)> {
        loop {
            let lease = match self.lease.take().filter(|lease| !lease.is_going()) {
                Some(lease) => lease,
                None => self.pool.lease().await?,
            };
            let lease = self.lease.insert(lease);
            match lease.begin(asked.request.clone(), asked.framing == Framing::Nothing).await {
                // The goodbye was faster, so nothing was sent.
                Err(_) if lease.is_going() => {}
                begun => return begun.map_err(broken),
            }
        }
    }

    fn is_going(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_going)
    }

    /// Says whether the connection goes on.
    async fn exchange(&mut self, asked: &Asked, response: ResponseFuture, send: SendStream<Bytes>) -> io::Result<bool> {
        let lease = self.lease.as_ref();
        let mut upload = Upload { framing: asked.framing, send };
        tokio::select! {
            biased;
            goes_on = answer(asked, lease, response, &mut self.write) => Ok(goes_on? && upload.is_over()),
            // Its stream is reset by being dropped.
            left = upload.run(&mut self.incoming) => left.and(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    async fn tunnel(
        &mut self,
        asked: &Asked,
        mut response: ResponseFuture,
        send: SendStream<Bytes>,
    ) -> io::Result<bool> {
        let is_going = self.is_going();
        let mut is_over = false;
        let mut up = pin!(pump(&mut self.incoming, send));
        let response = loop {
            tokio::select! {
                biased;
                response = &mut response => break response.map_err(broken)?,
                ended = &mut up, if !is_over => {
                    ended?;
                    is_over = true;
                }
            }
        };
        if response.status() != StatusCode::OK {
            return refusal(asked, is_going, response, &mut self.write).await;
        }
        let (parts, mut body) = response.into_parts();
        self.write.write_all(&text::accepted(&parts, asked)).await?;
        let down = async {
            pour(&mut body, &mut self.write, false).await?;
            self.write.shutdown().await
        };
        let up = async { if is_over { Ok(()) } else { up.await } };
        tokio::try_join!(up, down)?;
        Ok(false)
    }
}

/// Passes the answer on; says whether the connection may go on behind it.
async fn answer(
    asked: &Asked,
    lease: Option<&Lease>,
    mut response: ResponseFuture,
    write: &mut WriteHalf<'_>,
) -> io::Result<bool> {
    while let Some(interim) = poll_fn(|cx| response.poll_informational(cx)).await {
        let (parts, ()) = interim.map_err(broken)?.into_parts();
        write.write_all(&text::interim(&parts)).await?;
    }
    let response = response.await.map_err(broken)?;
    refusal(asked, lease.is_some_and(Lease::is_going), response, write).await
}

async fn refusal(
    asked: &Asked,
    is_going: bool,
    response: Response<RecvStream>,
    write: &mut WriteHalf<'_>,
) -> io::Result<bool> {
    let closes = asked.closes || is_going;
    let (parts, mut body) = response.into_parts();
    let head = text::answer(&parts, asked, body.is_end_stream(), closes);
    write.write_all(&head.text).await?;
    pour(&mut body, write, head.is_chunked).await?;
    if head.is_chunked {
        let trailers = body.trailers().await.map_err(broken)?;
        write.write_all(&text::last_chunk(trailers.as_ref())).await?;
    }
    Ok(!closes)
}

/// Passes a body on as it comes; the proxy may send more when the client has taken what it got.
async fn pour(body: &mut RecvStream, write: &mut WriteHalf<'_>, is_chunked: bool) -> io::Result<()> {
    while let Some(data) = body.data().await {
        let data = data.map_err(broken)?;
        if is_chunked && !data.is_empty() {
            write.write_all(&text::chunk(&data)).await?;
        } else {
            write.write_all(&data).await?;
        }
        body.flow_control().release_capacity(data.len()).map_err(broken)?;
    }
    Ok(())
}

/// The body of a request, as far as it is not sent.
struct Upload {
    framing: Framing,
    send: SendStream<Bytes>,
}

impl Upload {
    fn is_over(&self) -> bool {
        self.framing == Framing::Nothing
    }

    /// Sends the body, and then waits for the client to leave: that is how it ends.
    async fn run(&mut self, incoming: &mut Incoming<'_>) -> io::Result<()> {
        while !self.is_over() {
            let sent = match incoming.piece(&mut self.framing).await? {
                Piece::Data(data) => send_all(&mut self.send, data).await,
                Piece::End(Some(trailers)) => self.send.send_trailers(trailers),
                Piece::End(None) => self.send.send_data(Bytes::new(), true),
            };
            if sent.is_err() {
                // The proxy takes no more of it, and has answered or will not.
                return incoming.discard().await;
            }
        }
        while incoming.more().await? > 0 {}
        Ok(())
    }
}

/// What a client says in a tunnel. It ends with the client's side of it; a reset is an error.
async fn pump(incoming: &mut Incoming<'_>, mut send: SendStream<Bytes>) -> io::Result<()> {
    loop {
        let data = incoming.buffer.split().freeze();
        let is_taken = send_all(&mut send, data).await.is_ok();
        tokio::select! {
            biased;
            reset = poll_fn(|cx| send.poll_reset(cx)) => return match reset {
                Ok(Reason::NO_ERROR) => incoming.discard().await,
                _ => Err(io::ErrorKind::ConnectionReset.into()),
            },
            count = incoming.more(), if is_taken => if count? == 0 {
                return send.send_data(Bytes::new(), true).map_err(broken);
            },
        }
    }
}

async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let granted = poll_fn(|cx| send.poll_capacity(cx)).await.ok_or(Reason::CANCEL)??;
        send.send_data(data.split_to(granted.min(data.len())), false)?;
    }
    Ok(())
}

/// What comes from the client.
struct Incoming<'a> {
    read: ReadHalf<'a>,
    buffer: BytesMut,
}

impl Incoming<'_> {
    /// Reads more into the buffer; none is the end. Cancel-safe.
    async fn more(&mut self) -> io::Result<usize> {
        if self.buffer.len() >= MOST_AHEAD {
            // Nobody looks at the rest before this is gone.
            std::future::pending::<()>().await;
        }
        // Not in crumbs, each of which would be a frame.
        self.buffer.reserve(PIECE);
        self.read.read_buf(&mut self.buffer).await
    }

    /// As [`Incoming::more`], but the end is an error.
    async fn some(&mut self) -> io::Result<()> {
        match self.more().await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The next head; `None` at the end of the connection, which is also when the proxy says goodbye before there is any.
    async fn head(&mut self, mut lease: Option<&mut Lease>) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                return Ok(Some(self.buffer.split_to(end + 4).freeze()));
            }
            let is_idle = self.buffer.is_empty();
            let goodbye = async {
                match lease.as_mut() {
                    Some(lease) if is_idle => lease.goodbye().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                count = self.more() => if count? == 0 { return Ok(None) },
                () = goodbye => return Ok(None),
            }
        }
    }

    /// The next piece of a body.
    async fn piece(&mut self, framing: &mut Framing) -> io::Result<Piece> {
        loop {
            if let Some(piece) = text::piece(&mut self.buffer, framing).ok_or(io::ErrorKind::InvalidData)? {
                return Ok(piece);
            }
            self.some().await?;
        }
    }

    /// Reads to the end.
    async fn discard(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            if self.more().await? == 0 {
                return Ok(());
            }
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
