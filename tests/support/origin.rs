//! Origins: one that answers like a real service, and one whose every byte the test decides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// An origin that runs until it is dropped.
pub struct Origin {
    pub address: SocketAddr,
    /// Connections accepted so far, those of TCP health probes included.
    pub connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Origin {
    /// Runs `serve` for every connection.
    pub async fn raw<F, Fut>(serve: F) -> Origin
    where
        F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound address");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
        });
        Origin { address, connections, task }
    }

    /// Answers every request, keep-alive and all, with what `answer` makes of it.
    pub async fn http<F, Fut>(answer: F) -> Origin
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<u8>> + Send + 'static,
    {
        let answer = Arc::new(answer);
        let next_connection = AtomicUsize::new(0);
        Origin::raw(move |mut stream| {
            let answer = answer.clone();
            let connection = next_connection.fetch_add(1, Ordering::SeqCst);
            async move {
                let mut buffer = Vec::new();
                while let Some(request) = read_request(&mut stream, &mut buffer).await {
                    let request = Request { connection, ..request };
                    if stream.write_all(&answer(request).await).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }

    /// Answers every request with 200 and `body`.
    pub async fn saying(body: &'static str) -> Origin {
        Origin::http(move |_| async move { ok(body) }).await
    }

    /// Refuses every connection; nobody else can have its address meanwhile.
    pub fn refusing() -> Origin {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        let address = socket.local_addr().expect("a bound address").as_socket().expect("an IP address");
        let task = tokio::spawn(async move {
            let _bound_but_not_listening = socket;
            std::future::pending().await
        });
        Origin { address, connections: Arc::default(), task }
    }

    /// Answers every request with 200 and keeps it.
    pub async fn recording() -> (Origin, Requests) {
        let requests = Requests::default();
        let kept = requests.clone();
        let origin = Origin::http(move |request| {
            kept.lock().push(request);
            async { ok("ok") }
        });
        (origin.await, requests)
    }

    /// For a list in a pool.
    pub fn toml(&self) -> String {
        format!("\"{}\"", self.address)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What an origin has got so far.
pub type Requests = Arc<Mutex<Vec<Request>>>;

/// A request as the origin got it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Request line and fields, as they came, without the empty line.
    pub head: String,
    /// Without its framing.
    pub body: Vec<u8>,
    /// Which of the origin's connections it came on.
    pub connection: usize,
}

impl Request {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The value of a field; fails the test if it is there more than once.
    pub fn field(&self, name: &str) -> Option<&str> {
        only_field(&self.head, name)
    }
}

/// The value of a field; fails the test if it is there more than once.
pub fn only_field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = head.lines().skip(1).filter_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    });
    let value = values.next();
    assert!(values.next().is_none(), "{name} more than once in {head}");
    value
}

/// A whole answer with a length.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Accepts the WebSocket that the request with this head asks for.
pub fn accepted(head: &str) -> String {
    let accept = derive_accept_key(only_field(head, "sec-websocket-key").unwrap_or_default().as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// Reads one request; what follows it stays in `buffer`. `None` at the end of the connection.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Request> {
    let head = read_head(stream, buffer).await?;
    let mut request = Request { head, body: Vec::new(), connection: 0 };
    if let Some(length) = request.field("content-length").and_then(|length| length.parse::<usize>().ok()) {
        while buffer.len() < length {
            more(stream, buffer).await?;
        }
        request.body = buffer.drain(..length).collect();
    } else if request.field("transfer-encoding").is_some() {
        request.body = read_chunked(stream, buffer).await?;
    }
    Some(request)
}

/// Reads up to the empty line.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = buffer.drain(..end + 4).collect();
            return Some(String::from_utf8_lossy(&head[..end]).into_owned());
        }
        more(stream, buffer).await?;
    }
}

/// The data of a chunked body; trailers are left out.
pub async fn read_chunked(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = read_line(stream, buffer).await?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            while !read_line(stream, buffer).await?.is_empty() {}
            return Some(body);
        }
        while buffer.len() < size + 2 {
            more(stream, buffer).await?;
        }
        body.extend(buffer.drain(..size));
        buffer.drain(..2);
    }
}

async fn read_line(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(2).position(|window| window == b"\r\n") {
            let line: Vec<u8> = buffer.drain(..end + 2).collect();
            return Some(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        more(stream, buffer).await?;
    }
}

async fn more(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<()> {
    let count = stream.read_buf(buffer).await.ok()?;
    (count > 0).then_some(())
}
