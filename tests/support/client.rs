//! A client that sends what the test says and sees every byte of the answer.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::origin::{read_chunked, read_head};
use super::soon;

/// One connection.
pub struct Client<S = TcpStream> {
    pub stream: S,
    pub buffer: Vec<u8>,
}

/// An answer as the client got it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and fields, without the empty line.
    pub head: String,
    /// Without its framing.
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a text")
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

/// The value of the first field of this name.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.expect("the proxy accepts");
        stream.set_nodelay(true).expect("a TCP socket");
        Client::on(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Reads and writes on a connection that is there already.
    pub fn on(stream: S) -> Client<S> {
        Client { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("the proxy reads");
    }

    /// Sends a request and reads the whole answer.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    /// GET on this connection.
    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
        self.answer().await
    }

    /// The next answer, whole.
    pub async fn answer(&mut self) -> Answer {
        self.try_answer(false).await.expect("a whole answer")
    }

    /// The next answer to a HEAD request.
    pub async fn answer_to_head(&mut self) -> Answer {
        self.try_answer(true).await.expect("a whole answer")
    }

    /// The next answer; `None` when the connection ends before it does.
    pub async fn try_answer(&mut self, to_head: bool) -> Option<Answer> {
        soon("an answer", async {
            let head = self.head().await?;
            let status = head.get(9..12)?.parse().ok()?;
            let mut answer = Answer { status, head, body: Vec::new() };
            if to_head || status < 200 || status == 204 || status == 304 {
                return Some(answer);
            }
            answer.body = if answer.field("transfer-encoding").is_some() {
                read_chunked(&mut self.stream, &mut self.buffer).await?
            } else if let Some(length) = answer.field("content-length") {
                let length = length.parse().ok()?;
                while self.buffer.len() < length {
                    self.more().await?;
                }
                self.buffer.drain(..length).collect()
            } else {
                while self.more().await.is_some() {}
                std::mem::take(&mut self.buffer)
            };
            Some(answer)
        })
        .await
    }

    /// The next head, without its empty line.
    pub async fn head(&mut self) -> Option<String> {
        soon("a head", read_head(&mut self.stream, &mut self.buffer)).await
    }

    /// Reads more into the buffer; `None` at the end.
    pub async fn more(&mut self) -> Option<()> {
        let count = self.stream.read_buf(&mut self.buffer).await.ok()?;
        (count > 0).then_some(())
    }

    /// Reads exactly what is expected.
    pub async fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let read = async { while self.buffer.len() < bytes.len() && self.more().await.is_some() {} };
        soon("expected bytes", read).await;
        let found: Vec<u8> = self.buffer.drain(..bytes.len().min(self.buffer.len())).collect();
        assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(bytes));
    }

    /// Everything up to the end of the connection, and whether it ended in order rather than by a reset.
    pub async fn rest(&mut self) -> (Vec<u8>, bool) {
        soon("the end of the connection", async {
            loop {
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(0) => return (std::mem::take(&mut self.buffer), true),
                    Ok(_) => {}
                    Err(_) => return (std::mem::take(&mut self.buffer), false),
                }
            }
        })
        .await
    }
}

/// GET on a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    Client::connect(address).await.get(path).await
}
