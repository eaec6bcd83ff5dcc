//! A byte stream to a client or an origin: TCP or a unix socket, in plain text or inside TLS, behind one type.

mod pipe;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

pub use pipe::{MOST_PIPES, Pipe};

/// Size of the scratch space in which bodies and tunnels are moved.
const SCRATCH: usize = 512 * 1024;

/// Where in a page of memory it begins. From there it is copied into records of TLS, which begin with a page or close to it: on
/// AMD Zen 3 and 4 `rep movsb`, by which libc and the kernel copy, takes 30 times as long when the destination is less than
/// 16 octets further into its page than the source, and a record's head has 5.
const INTO_PAGE: usize = PAGE / 2;
const PAGE: usize = 4096;

thread_local! {
    static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH + PAGE]);
}

/// Runs `use_it` with the worker's scratch space, which holds garbage before and after.
pub fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SPACE.with_borrow_mut(|space| {
        let begin = (INTO_PAGE + PAGE - space.as_ptr().addr() % PAGE) % PAGE;
        use_it(&mut space[begin..begin + SCRATCH])
    })
}

/// When the system asks whether the other side of a silent connection is still there, and how often it asks again: a client
/// that has vanished without a word, or an origin's machine, would hold a WebSocket open for ever.
const SILENCE: Duration = Duration::from_secs(60);
const ASKED_AGAIN: Duration = Duration::from_secs(15);

/// Makes a TCP connection end some minutes after the other side has vanished; of a listening socket, all that it accepts.
///
/// # Errors
/// What the operating system says.
pub fn keep_alive<'s>(socket: impl Into<socket2::SockRef<'s>>) -> io::Result<()> {
    socket.into().set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(SILENCE).with_interval(ASKED_AGAIN))
}

/// A connected socket, or TLS over one.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<Stream>>),
    /// One of many on a connection that somebody else drives.
    Multiplexed(Box<dyn Multiplexed>),
}

/// A byte stream that shares its connection with others. It is ended by [`Multiplexed::poll_shutdown`], and broken off by
/// being dropped.
pub trait Multiplexed: Send + Sync + std::fmt::Debug {
    /// As [`Stream::poll_read`].
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    /// As [`Stream::poll_write`].
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    /// As [`Stream::poll_shutdown`].
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// As [`Stream::waited_in_vain`].
    fn waited_in_vain(&mut self) {}
}

/// A connection on which more streams can be opened.
pub trait Opener: Send + std::fmt::Debug {
    /// `None`: it has as many as it may.
    fn open(&mut self) -> Option<Stream>;
    /// Streams that may be open at once.
    fn capacity(&self) -> usize;
    /// Streams that are open.
    fn in_use(&self) -> usize;
    /// Whether nothing can be opened any more.
    fn is_over(&mut self) -> bool;
}

/// The other side has said that it did nothing with what it was sent: it may be sent elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("refused before it was looked at: {0}")]
pub struct Refused(pub Box<dyn std::error::Error + Send + Sync>);

impl Refused {
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Refused>())
    }
}

/// What was to be sent cannot be said in the protocol of the stream. Whoever asks for it is to blame, and not the other side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unsayable {
    #[error("a request that HTTP/2 cannot express")]
    Request,
    #[error("the other side takes no WebSocket over HTTP/2")]
    WebSocket,
}

impl Unsayable {
    pub fn of(error: &io::Error) -> Option<Unsayable> {
        error.get_ref().and_then(|inner| inner.downcast_ref()).copied()
    }
}

/// What is left of a stream that was handed to somebody else.
#[derive(Debug)]
struct Gone;

impl Multiplexed for Gone {
    fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Which way bytes go through a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Read,
    Write,
}

impl Stream {
    /// Whether what is read and written is what is on the wire.
    pub fn is_plain(&self) -> bool {
        matches!(self, Stream::Tcp(_) | Stream::Unix(_))
    }

    /// Whether it is one of many on its connection, and so speaks HTTP/2.
    pub fn is_multiplexed(&self) -> bool {
        matches!(self, Stream::Multiplexed(_))
    }

    /// Hands the stream over; what stays has ended.
    pub fn take(&mut self) -> Stream {
        std::mem::replace(self, Stream::Multiplexed(Box::new(Gone)))
    }

    /// The other side has not answered in time. If it has said nothing else either, nobody else is sent its way.
    pub fn waited_in_vain(&mut self) {
        if let Stream::Multiplexed(stream) = self {
            stream.waited_in_vain();
        }
    }

    /// The socket at the bottom.
    fn socket(&self) -> &Stream {
        match self {
            Stream::Tls(stream) => stream.get_ref().0.socket(),
            socket => socket,
        }
    }

    /// Runs `call` on the socket until it does not say that it would block.
    pub fn poll_with(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let result = match (self.socket(), direction) {
                (Stream::Tcp(stream), Direction::Read) => {
                    ready!(stream.poll_read_ready(cx))?;
                    stream.try_io(Interest::READABLE, || call(stream.as_fd()))
                }
                (Stream::Tcp(stream), Direction::Write) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_io(Interest::WRITABLE, || call(stream.as_fd()))
                }
                (Stream::Unix(stream), Direction::Read) => {
                    ready!(stream.poll_read_ready(cx))?;
                    stream.try_io(Interest::READABLE, || call(stream.as_fd()))
                }
                (Stream::Unix(stream), Direction::Write) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_io(Interest::WRITABLE, || call(stream.as_fd()))
                }
                (Stream::Tls(_) | Stream::Multiplexed(_), _) => {
                    return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
                }
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Reads into `buffer`, which must not be empty; 0 is the end of the stream.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Stream::Multiplexed(stream) = self {
            return stream.poll_read(cx, buffer);
        }
        let mut buffer = ReadBuf::new(buffer);
        let result = match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, &mut buffer),
            Stream::Multiplexed(_) => return Poll::Pending,
        };
        match (ready!(result), &self) {
            (Ok(()), _) => Poll::Ready(Ok(buffer.filled().len())),
            // Many clients just hang up. What they had to say is delimited in other ways; an origin's answer may not be.
            (Err(error), Stream::Tls(stream))
                if error.kind() == io::ErrorKind::UnexpectedEof && matches!(**stream, TlsStream::Server(_)) =>
            {
                Poll::Ready(Ok(0))
            }
            (Err(error), _) => Poll::Ready(Err(error)),
        }
    }

    /// Writes some of `bytes`. Inside TLS they may still wait in memory then: nothing is sent for sure before
    /// [`Stream::poll_flush`] says so.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
            Stream::Multiplexed(stream) => stream.poll_write(cx, bytes),
        }
    }

    /// Ready when everything written is with the system.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Stream::Tcp(_) | Stream::Unix(_) | Stream::Multiplexed(_) => Poll::Ready(Ok(())),
        }
    }

    /// Writes the last of what there is to write. A TCP socket may hold it back until [`Stream::send_end`], so that the end
    /// goes in the same packet.
    pub fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        match self {
            Stream::Tcp(_) => {
                self.poll_with(cx, Direction::Write, |socket| Ok(rustix::net::send(socket, bytes, flags)?))
            }
            _ => self.poll_write(cx, bytes),
        }
    }

    /// Sends what [`Stream::poll_write_last`] has held back, and the end with it. Has to follow at once.
    pub fn send_end(&self) {
        if let Stream::Tcp(stream) = self {
            // A connection that is gone already has nobody to tell.
            let _ = socket2::SockRef::from(stream).shutdown(Shutdown::Write);
        }
    }

    /// Sends the end of the stream; the other direction stays open.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Stream::Multiplexed(stream) => stream.poll_shutdown(cx),
        }
    }

    /// Says that this is the end, where the close that follows does not say so itself. Waits for nobody.
    pub fn hang_up(&mut self) {
        if let Stream::Tls(_) = self {
            let _ = self.poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Whether something that was written has not been sent, because the other side does not take it.
    pub fn has_unsent(&self) -> bool {
        matches!(self, Stream::Tls(stream) if stream.get_ref().1.wants_write())
    }

    /// Whether nothing has come in: neither bytes nor the end. An idle connection to be used again must be quiet.
    pub fn is_quiet(&mut self) -> bool {
        let mut probe = [0];
        let result = match self {
            Stream::Tcp(stream) => stream.try_read(&mut probe),
            Stream::Unix(stream) => stream.try_read(&mut probe),
            // What has come in may be for TLS alone, such as a ticket.
            Stream::Tls(_) => return self.poll_read(&mut Context::from_waker(Waker::noop()), &mut probe).is_pending(),
            Stream::Multiplexed(_) => return false,
        };
        matches!(result, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether bytes or the end have come in, as the system knows it: the runtime may not have been told yet.
    pub fn has_input(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let mut probe = [0];
        let result = match self {
            Stream::Tcp(stream) => rustix::net::recv(stream, &mut probe, flags),
            Stream::Unix(stream) => rustix::net::recv(stream, &mut probe, flags),
            Stream::Tls(stream) => {
                let (below, session) = stream.get_ref();
                // With plaintext at hand it wants no more.
                return !session.wants_read() || below.has_input();
            }
            Stream::Multiplexed(_) => return false,
        };
        !matches!(result, Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Shows `look` the first octets that have come in, `most` at a time, until it makes something of them; whatever it
    /// makes, they are still there to be read. `None`: no more will come, and it has made nothing of what did.
    ///
    /// # Errors
    /// As reading.
    pub async fn peek<T>(&self, most: usize, mut look: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        loop {
            // Asked before looking: whoever has seen the end then sees all that came before it.
            let is_last = self.readable().await?.is_read_closed();
            let looked = self.try_read_with(|socket| {
                let seen = with_scratch(|scratch| {
                    let room = &mut scratch[..most.min(SCRATCH)];
                    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
                    let (count, _) = rustix::net::recv(socket, &mut *room, flags)?;
                    Ok::<_, io::Error>((count, look(&room[..count])))
                })?;
                match seen {
                    (_, Some(made)) => Ok(Some(made)),
                    (0, None) => Ok(None),
                    (_, None) if is_last => Ok(None),
                    // Makes the runtime wait for more, which it would not do for what was left unread.
                    (_, None) => Err(io::ErrorKind::WouldBlock.into()),
                }
            });
            match looked {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                looked => return looked,
            }
        }
    }

    /// Takes away the first `count` octets, no more than were seen by [`Stream::peek`].
    ///
    /// # Errors
    /// As reading.
    pub async fn skip(&mut self, count: usize) -> io::Result<()> {
        let mut left = count.min(SCRATCH);
        poll_fn(|cx| {
            while left > 0 {
                match ready!(with_scratch(|scratch| self.poll_read(cx, &mut scratch[..left])))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    read => left -= read,
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    async fn readable(&self) -> io::Result<Ready> {
        match self.socket() {
            Stream::Tcp(stream) => stream.ready(Interest::READABLE).await,
            Stream::Unix(stream) => stream.ready(Interest::READABLE).await,
            Stream::Tls(_) | Stream::Multiplexed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn try_read_with<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        match self.socket() {
            Stream::Tcp(stream) => stream.try_io(Interest::READABLE, || call(stream.as_fd())),
            Stream::Unix(stream) => stream.try_io(Interest::READABLE, || call(stream.as_fd())),
            Stream::Tls(_) | Stream::Multiplexed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Makes the coming close a reset, so that a body that only the close would end is seen to be broken.
    pub fn abort_on_close(&self) {
        if let Stream::Tcp(stream) = self.socket() {
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// What TLS stands on.
impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buffer),
            Stream::Multiplexed(stream) => {
                let count = ready!(stream.poll_read(cx, buffer.initialize_unfilled()))?;
                buffer.advance(count);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Stream::poll_write(self.get_mut(), cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, pieces),
            Stream::Multiplexed(stream) => {
                let first = pieces.iter().find(|piece| !piece.is_empty());
                first.map_or(Poll::Ready(Ok(0)), |piece| stream.poll_write(cx, piece))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Stream::poll_flush(self.get_mut(), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Stream::poll_shutdown(self.get_mut(), cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn input_is_seen_before_the_runtime_is_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut peer = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("a listener");
        let (socket, _) = listener.accept().expect("a connection");
        socket.set_nonblocking(true).expect("a TCP socket");
        // Nothing is awaited here, so the runtime learns nothing.
        let stream = Stream::Tcp(TcpStream::from_std(socket).expect("a runtime"));
        assert!(!stream.has_input());
        peer.write_all(b"x").expect("an open connection");
        assert!(stream.has_input() && stream.has_input(), "looking takes nothing away");
    }

    /// A listener's side of a connection, and the other side.
    async fn pair() -> (Stream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a listener");
        (Stream::Tcp(listener.accept().await.expect("a connection").0), peer)
    }

    #[tokio::test]
    async fn what_was_written_last_comes_with_the_end_although_nobody_has_read_what_the_peer_says() {
        let (mut stream, mut peer) = pair().await;
        peer.write_all(b"unread").await.expect("an open connection");
        stream.peek(6, |octets| (octets.len() == 6).then_some(())).await.expect("an open connection");
        let written = poll_fn(|cx| stream.poll_write_last(cx, b"last")).await;
        assert_eq!(written.expect("an open connection"), 4);
        stream.send_end();
        let mut last = String::new();
        let read = tokio::time::timeout(Duration::from_secs(10), peer.read_to_string(&mut last)).await;
        read.expect("the end comes at once").expect("and in order");
        assert_eq!(last, "last");
    }

    #[tokio::test]
    async fn looking_waits_for_more_and_takes_nothing_away() {
        let (mut stream, peer) = pair().await;
        let mut looks = Vec::new();
        let looking = stream.peek(4, |octets| {
            looks.push(octets.to_vec());
            (octets.len() == 4).then_some(())
        });
        let writing = async {
            for octet in [b"a", b"b", b"c", b"d", b"e"] {
                peer.writable().await.expect("an open connection");
                peer.try_write(octet).expect("room for an octet");
                // The other one looks.
                tokio::task::yield_now().await;
            }
        };
        let (looked, ()) = tokio::join!(looking, writing);
        assert_eq!(looked.expect("an open connection"), Some(()));
        assert!(looks.is_sorted() && looks.last().is_some_and(|last| last == b"abcd"), "{looks:?}");
        stream.skip(3).await.expect("they are there");
        let rest = stream.peek(4, |octets| (octets.len() == 2).then(|| octets.to_vec())).await;
        assert_eq!(rest.expect("an open connection").as_deref(), Some(b"de".as_slice()));
    }

    /// The end changes nothing of what can be seen, and nothing more will wake who waits for more.
    #[tokio::test]
    async fn looking_ends_with_what_there_is_to_see() {
        for sent in [b"".as_slice(), b"ab"] {
            let (stream, peer) = pair().await;
            let mut seen = 0;
            let looking = stream.peek(4, |octets| {
                seen = octets.len();
                None::<()>
            });
            let ending = async {
                peer.writable().await.expect("an open connection");
                if !sent.is_empty() {
                    peer.try_write(sent).expect("room for two octets");
                    tokio::task::yield_now().await;
                }
                drop(peer);
            };
            assert_eq!(tokio::join!(looking, ending).0.expect("an end in order"), None);
            assert_eq!(seen, sent.len());
        }
    }
}
