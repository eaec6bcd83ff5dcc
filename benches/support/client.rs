//! Clients that check every answer: one HTTP/1.1 connection, one WebSocket.
//!
//! They look like a browser to the proxy and cost little themselves. A wrong status, a wrong length or a byte that
//! should not be there is an error, never a quiet success.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::origin::SMALL;
use super::tls::TlsClient;

const BUFFER: usize = 64 * 1024;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const BINARY: u8 = 0x82;
/// An opcode that there is not (RFC 6455 §5.2).
const RESERVED: u8 = 0x83;
const CLOSE: u8 = 0x88;

/// A request of about 300 bytes, as a browser sends it.
pub(crate) fn get(host: &str, path: &str, connection: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
         Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
         Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate\r\nConnection: {connection}\r\n\r\n"
    )
    .into_bytes()
}

pub(crate) fn put(host: &str, path: &str, length: usize) -> Vec<u8> {
    let mut request = format!(
        "PUT {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.resize(request.len() + length, b'u');
    request
}

/// What an answer was, after all of it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) length: usize,
    /// The first byte of the body; 0 if there is none.
    pub(crate) first: u8,
    /// The server ends the connection after this answer.
    pub(crate) is_last: bool,
}

/// A byte stream, in plain text or inside TLS.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// One connection to the proxy.
pub(crate) struct Client {
    stream: Box<dyn Wire>,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: Box::new(stream), buffer: vec![0; BUFFER] })
    }

    pub(crate) async fn connect_tls(address: SocketAddr, tls: &mut TlsClient) -> io::Result<Self> {
        let stream = tls.connect(address).await?;
        Ok(Self { stream: Box::new(stream), buffer: vec![0; BUFFER] })
    }

    /// Sends a request and reads its whole answer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let mut filled = 0;
        let (answer, head) = loop {
            filled += self.read_some(filled).await?;
            if let Some(found) = parse(&self.buffer[..filled])? {
                break found;
            }
        };
        let first = if answer.length == 0 { 0 } else { self.byte(head, &mut filled).await? };
        let left = (head + answer.length).checked_sub(filled).ok_or_else(|| invalid("bytes after the answer"))?;
        self.discard(left).await?;
        Ok(Answer { first, ..answer })
    }

    /// Waits for the end of the connection, which inside TLS need not be announced; anything else is an error.
    pub(crate) async fn ended(&mut self) -> io::Result<()> {
        match self.stream.read(&mut self.buffer).await {
            Ok(0) => Ok(()),
            Ok(_) => Err(invalid("bytes after the answer")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn read_some(&mut self, filled: usize) -> io::Result<usize> {
        if filled == self.buffer.len() {
            return Err(invalid("head too large"));
        }
        match self.stream.read(&mut self.buffer[filled..]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    async fn byte(&mut self, at: usize, filled: &mut usize) -> io::Result<u8> {
        while *filled <= at {
            *filled += self.read_some(*filled).await?;
        }
        Ok(self.buffer[at])
    }

    async fn discard(&mut self, mut left: usize) -> io::Result<()> {
        while left > 0 {
            let wanted = left.min(self.buffer.len());
            left -= match self.stream.read(&mut self.buffer[..wanted]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => read,
            };
        }
        Ok(())
    }
}

/// The head of an answer and where its body begins.
fn parse(bytes: &[u8]) -> io::Result<Option<(Answer, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
    let (mut length, mut is_last) = (None, false);
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            length = std::str::from_utf8(header.value).ok().and_then(|text| text.parse().ok());
        } else if header.name.eq_ignore_ascii_case("connection") {
            is_last = header.value.eq_ignore_ascii_case(b"close");
        }
    }
    let length = length.ok_or_else(|| invalid("no content-length"))?;
    Ok(Some((Answer { status: response.code.unwrap_or(0), length, first: 0, is_last }, head)))
}

/// A WebSocket that sends a 64-byte message and waits for its echo.
pub(crate) struct WebSocket {
    stream: TcpStream,
    message: [u8; 6 + SMALL],
    expected: [u8; 2 + SMALL],
}

impl WebSocket {
    pub(crate) async fn connect(address: SocketAddr, host: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0\r\n\
             Origin: http://{host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        accepted(&mut stream).await?;
        Ok(Self::new(stream))
    }

    fn new(stream: TcpStream) -> Self {
        let payload: [u8; SMALL] = std::array::from_fn(|i| b'a' + (i % 26) as u8);
        let (mut message, mut expected) = ([0; 6 + SMALL], [0; 2 + SMALL]);
        expected[..2].copy_from_slice(&[BINARY, SMALL as u8]);
        expected[2..].copy_from_slice(&payload);
        message[..2].copy_from_slice(&[BINARY, 0x80 | SMALL as u8]);
        message[2..6].copy_from_slice(&MASK);
        for (i, byte) in payload.iter().enumerate() {
            message[6 + i] = byte ^ MASK[i % 4];
        }
        Self { stream, message, expected }
    }

    pub(crate) async fn echo(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.message).await?;
        let mut answer = [0; 2 + SMALL];
        self.stream.read_exact(&mut answer).await?;
        if answer == self.expected { Ok(()) } else { Err(invalid("a wrong echo")) }
    }
}

impl WebSocket {
    /// An echo of something that is no frame, after which no proxy can know where the frames are, either way.
    pub(crate) async fn break_framing(&mut self) -> io::Result<()> {
        (self.message[0], self.expected[0]) = (RESERVED, RESERVED);
        let echo = self.echo().await;
        (self.message[0], self.expected[0]) = (BINARY, BINARY);
        echo
    }

    /// Waits for a Close frame, and for nothing else; returns its code.
    pub(crate) async fn closing(&mut self) -> io::Result<u16> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).await?;
        let [CLOSE, length @ 2..=125, high, low] = header else { return Err(invalid("no Close frame")) };
        let mut reason = [0; 125];
        self.stream.read_exact(&mut reason[..usize::from(length) - 2]).await?;
        Ok(u16::from_be_bytes([high, low]))
    }

    /// Answers a Close frame, and waits for the end of the connection.
    pub(crate) async fn leave(mut self, code: u16) -> io::Result<()> {
        let [high, low] = code.to_be_bytes();
        let [a, b, c, d] = MASK;
        self.stream.write_all(&[CLOSE, 0x82, a, b, c, d, high ^ a, low ^ b]).await?;
        match self.stream.read(&mut [0; 64]).await? {
            0 => Ok(()),
            _ => Err(invalid("bytes after the Close frame")),
        }
    }
}

async fn accepted(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::with_capacity(512);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > BUFFER || stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = String::from_utf8_lossy(&head);
    let is_accepted = head.starts_with("HTTP/1.1 101 ") && head.contains(&derive_accept_key(KEY.as_bytes()));
    if is_accepted { Ok(()) } else { Err(invalid("upgrade refused")) }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
