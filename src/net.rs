//! A byte stream to a client or an origin: TCP or a unix socket, behind one type.

mod pipe;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

pub use pipe::Pipe;

/// Size of the scratch space in which bodies and tunnels are moved.
const SCRATCH: usize = 512 * 1024;

thread_local! {
    static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// Runs `use_it` with the worker's scratch space, which holds garbage before and after.
pub fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SPACE.with_borrow_mut(|space| use_it(space))
}

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Which way bytes go through a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Read,
    Write,
}

impl Stream {
    /// Runs `call` on the socket until it does not say that it would block.
    pub fn poll_with(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let result = match (self, direction) {
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
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Reads into `buffer`, which must not be empty; 0 is the end of the stream.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let result = match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
        };
        ready!(result)?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// Sends the end of the stream; the other direction stays open.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    /// Resolves when there is something to read, or the end.
    pub fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_read_ready(cx),
            Stream::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Whether nothing has come in: neither bytes nor the end. An idle connection to be used again must be quiet.
    pub fn is_quiet(&self) -> bool {
        let mut probe = [0];
        let result = match self {
            Stream::Tcp(stream) => stream.try_read(&mut probe),
            Stream::Unix(stream) => stream.try_read(&mut probe),
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
        match self {
            Stream::Tcp(stream) => stream.ready(Interest::READABLE).await,
            Stream::Unix(stream) => stream.ready(Interest::READABLE).await,
        }
    }

    fn try_read_with<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        match self {
            Stream::Tcp(stream) => stream.try_io(Interest::READABLE, || call(stream.as_fd())),
            Stream::Unix(stream) => stream.try_io(Interest::READABLE, || call(stream.as_fd())),
        }
    }

    /// Makes the coming close a reset, so that a body that only the close would end is seen to be broken.
    pub fn abort_on_close(&self) {
        if let Stream::Tcp(stream) = self {
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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
