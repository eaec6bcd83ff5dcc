//! The origin behind every contestant: small and cheap, so that the proxy's core is the one that works.
//!
//! `GET /…` answers 64 bytes that begin with the origin's name, `GET /big` 1 MiB, `PUT` takes a body and answers as a
//! GET, and an upgrade becomes a WebSocket that echoes, a Close frame too, which so is answered. Anything else ends the
//! connection, which the load counts as an error.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::contestant::free_address;
use super::process::{Process, pin};

pub(crate) const SMALL: usize = 64;
pub(crate) const BIG: usize = 1024 * 1024;

const HEAD: usize = 4 * 1024;
const HEAD_LIMIT: usize = 64 * 1024;
const SWALLOW: usize = 256 * 1024;

/// Starts an origin on a core and returns its address; it runs for as long as the bench.
pub(crate) fn start(name: &'static str, core: usize) -> Result<SocketAddr> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name(format!("origin-{name}")).spawn(move || -> Result<()> {
        pin(core)?;
        listen(name, (Ipv4Addr::LOCALHOST, 0).into(), |address| Ok(sender.send(address)?))
    })?;
    Ok(receiver.recv()?)
}

/// Starts an origin as a process of its own, which may have as many sockets as the bench.
pub(crate) fn start_process(name: &str, core: usize, folder: &Path) -> Result<(SocketAddr, Process)> {
    let address = free_address()?;
    let arguments = ["--origin".into(), name.into(), address.to_string().into()];
    let process = Process::start(core, &std::env::current_exe()?, &arguments, &folder.join(name))?;
    Ok((address, process))
}

/// `--origin NAME LISTEN`
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let mut argument = || Some(arguments.next()?.to_string_lossy().into_owned());
    let (name, address) = argument().zip(argument()).context("--origin needs a name and an address")?;
    listen(&name, address.parse()?, |_| Ok(()))
}

fn listen(name: &str, address: SocketAddr, ready: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(address)?;
        let listener = socket.listen(4096)?;
        ready(listener.local_addr()?)?;
        accept(listener, Arc::new(Answers::new(name))).await
    })
}

async fn accept(listener: TcpListener, answers: Arc<Answers>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream, answers.clone()));
    }
}

struct Answers {
    small: Bytes,
    big: Bytes,
}

impl Answers {
    fn new(name: &str) -> Self {
        Self { small: answer(name, SMALL), big: answer(name, BIG) }
    }
}

fn answer(name: &str, length: usize) -> Bytes {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sun, 22 Nov 2026 10:00:00 GMT\r\n\
         Server: origin\r\nContent-Length: {length}\r\n\r\n"
    );
    let mut whole = head.into_bytes();
    let end = whole.len() + length;
    whole.extend_from_slice(name.as_bytes());
    whole.resize(end, b'.');
    whole.into()
}

async fn serve(mut stream: TcpStream, answers: Arc<Answers>) -> io::Result<()> {
    let mut input = BytesMut::with_capacity(HEAD);
    loop {
        let Some(end) = memchr::memmem::find(&input, b"\r\n\r\n") else {
            if input.len() > HEAD_LIMIT || stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head = input.split_to(end + 4);
        // As the load spells it; only a relay lets this header through.
        let is_last = memchr::memmem::find(&head, b"Connection: close").is_some();
        match Wanted::of(&head)? {
            Wanted::Small => stream.write_all(&answers.small).await?,
            Wanted::Big => stream.write_all(&answers.big).await?,
            Wanted::Upload(length) => {
                swallow(&mut stream, &mut input, length).await?;
                stream.write_all(&answers.small).await?;
            }
            Wanted::WebSocket(key) => return websocket(stream, input, &key).await,
        }
        if is_last {
            return Ok(());
        }
    }
}

enum Wanted {
    Small,
    Big,
    Upload(usize),
    WebSocket(Vec<u8>),
}

impl Wanted {
    fn of(head: &[u8]) -> io::Result<Self> {
        if head.starts_with(b"GET /big") {
            return Ok(Self::Big);
        }
        if head.starts_with(b"GET /ws") {
            return header(head, "sec-websocket-key").map(Self::WebSocket);
        }
        if head.starts_with(b"PUT ") {
            let length = String::from_utf8(header(head, "content-length")?).ok().and_then(|text| text.parse().ok());
            return length.map(Self::Upload).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
        }
        if head.starts_with(b"GET ") { Ok(Self::Small) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

fn header(head: &[u8], name: &str) -> io::Result<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).map_err(io::Error::other)?;
    let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    found.map(|header| header.value.to_vec()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

async fn swallow(stream: &mut TcpStream, input: &mut BytesMut, length: usize) -> io::Result<()> {
    let here = input.len().min(length);
    input.advance(here);
    let mut left = length - here;
    let mut buffer = vec![0; SWALLOW.min(left)];
    while left > 0 {
        let wanted = left.min(buffer.len());
        let read = stream.read(&mut buffer[..wanted]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= read;
    }
    Ok(())
}

async fn websocket(mut stream: TcpStream, mut input: BytesMut, key: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key)
    );
    stream.write_all(head.as_bytes()).await?;
    let mut output = BytesMut::with_capacity(2 * SMALL);
    loop {
        while echo(&mut input, &mut output)? {}
        if !output.is_empty() {
            stream.write_all(&output).await?;
            output.clear();
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

/// Moves one short masked frame from the input to the output, if it is there as a whole.
fn echo(input: &mut BytesMut, output: &mut BytesMut) -> io::Result<bool> {
    let [first, second, rest @ ..] = &input[..] else { return Ok(false) };
    let length = usize::from(second & 0x7f);
    if second & 0x80 == 0 || length > 125 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some((mask, payload)) = rest.split_first_chunk::<4>() else { return Ok(false) };
    let Some(payload) = payload.get(..length) else { return Ok(false) };
    output.extend_from_slice(&[*first, second & 0x7f]);
    output.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    input.advance(2 + 4 + length);
    Ok(true)
}
