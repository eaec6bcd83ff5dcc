//! Exchanges that stay open until the test ends them, from either side: slow requests, event streams, WebSockets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use teal::service::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::client::Client;
use super::origin::{Origin, accepted, ok, read_head};
use super::{eventually, soon};

/// The key of RFC 6455 §1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Two origins, one for each color, and the exchanges that they hold open. They answer every other path at once, with
/// their color.
pub struct Stage {
    pub blue: Origin,
    pub green: Origin,
    held: Held,
}

/// By name: what lets the origin end the exchange.
type Held = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

impl Stage {
    pub async fn new() -> Stage {
        let held = Held::default();
        let origin = |color: &'static str| {
            let held = held.clone();
            Origin::raw(move |stream| perform(stream, color, held.clone()))
        };
        Stage { blue: origin("blue").await, green: origin("green").await, held }
    }

    /// The service `name` for the path `/name`. It trusts its first probes; `keys` are more of its keys.
    pub fn service(&self, name: &str, keys: &str) -> String {
        format!(
            "[[routes]]\npath = \"/{name}\"\nservice = \"{name}\"\n[services.{name}]\nblue = [{}]\ngreen = [{}]\n\
             health.interval = \"1h\"\ndrain.websocket = \"keep\"\ndrain.sse = \"keep\"\n{keys}\n",
            self.blue.toml(),
            self.green.toml()
        )
    }

    /// Opens an exchange with `service` through the proxy at `proxy`.
    pub async fn open(&self, proxy: SocketAddr, service: &str, kind: Kind) -> Exchange {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}-{}", kind.as_str(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut client = Client::connect(proxy).await;
        let upgrade = match kind {
            Kind::WebSocket => format!(
                "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
            ),
            Kind::Http | Kind::Sse => String::new(),
        };
        client.send(format!("GET /{service}/{name} HTTP/1.1\r\nHost: test\r\n{upgrade}\r\n")).await;
        let head = match kind {
            Kind::Http => {
                eventually("the request is at the origin", || self.held.lock().contains_key(&name)).await;
                String::new()
            }
            Kind::Sse | Kind::WebSocket => soon("the head", client.head()).await.expect("a head"),
        };
        let expected = ["", "HTTP/1.1 200", "HTTP/1.1 101"][kind as usize];
        assert!(head.starts_with(expected), "{head}");
        Exchange { kind, name, head, client, held: self.held.clone() }
    }

    /// Exchanges that the origins have open.
    pub fn held(&self) -> usize {
        self.held.lock().len()
    }
}

/// An open exchange as its client has it. Dropping it is the client's way to end it.
pub struct Exchange {
    pub kind: Kind,
    name: String,
    /// Of the answer, as far as there is one.
    pub head: String,
    pub client: Client,
    held: Held,
}

impl Exchange {
    /// Lets the origin end it.
    pub fn release(&self) {
        let release = self.held.lock().remove(&self.name).expect("the origin still has it");
        // The origin's side is gone if the proxy has let go of it meanwhile.
        let _ = release.send(());
    }

    /// Reads to the end; gives the color that it was answered by, or nothing if it was broken off.
    pub async fn ending(mut self) -> Option<String> {
        let text = match self.kind {
            Kind::Http => {
                let answer = self.client.try_answer(false).await?;
                return (answer.status == 200).then(|| answer.text().to_owned());
            }
            Kind::Sse => super::origin::read_chunked(&mut self.client.stream, &mut self.client.buffer).await?,
            Kind::WebSocket => self.client.rest().await.0,
        };
        String::from_utf8_lossy(&text).strip_suffix(", bye").map(ToOwned::to_owned)
    }
}

async fn perform(mut stream: TcpStream, color: &'static str, held: Held) {
    let mut buffer = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut buffer).await {
        let target = head.split(' ').nth(1).unwrap_or_default();
        let name = target.rsplit('/').next().unwrap_or_default().to_owned();
        let (before, after) = match name.split('-').next() {
            Some("http") => (String::new(), ok(color)),
            Some("sse") => (format!("{EVENTS}{}", chunk(color)), format!("{}0\r\n\r\n", chunk(", bye")).into_bytes()),
            Some("websocket") => (format!("{}{color}", accepted(&head)), b", bye".to_vec()),
            _ => {
                let _ = stream.write_all(&ok(color)).await;
                continue;
            }
        };
        let (release, released) = oneshot::channel();
        // Who has read the head may release it.
        held.lock().insert(name.clone(), release);
        let _ = stream.write_all(before.as_bytes()).await;
        let was_released = wait(&mut stream, released).await;
        held.lock().remove(&name);
        if !was_released || stream.write_all(&after).await.is_err() || name.starts_with("websocket") {
            return;
        }
    }
}

/// Waits until the test releases the exchange, or the proxy lets go of it.
async fn wait(stream: &mut TcpStream, mut released: oneshot::Receiver<()>) -> bool {
    let mut bytes = [0; 1024];
    loop {
        tokio::select! {
            released = &mut released => return released.is_ok(),
            count = stream.read(&mut bytes) => if !count.is_ok_and(|count| count > 0) { return false },
        }
    }
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}
