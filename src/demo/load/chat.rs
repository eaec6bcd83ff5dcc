//! A member of the chat: says something every few milliseconds, sends again after a reconnect what has not come back,
//! and checks that it hears every line of the room once and in order.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::demo::shop::{Heard, Said};

use super::{Mark, World};

/// Time between two messages of a member.
const PAUSE: Duration = Duration::from_millis(25);

/// Messages that may be unanswered before a member waits.
const WINDOW: usize = 32;

/// Pause before a member comes back.
const RECONNECT: Duration = Duration::from_millis(20);

/// A handshake without an answer by then is refused.
const PATIENCE: Duration = Duration::from_secs(10);

type Socket = WebSocketStream<TcpStream>;

/// Talks until told to stop, and listens until it is dropped.
pub(super) async fn talk(world: Arc<World>, stop: watch::Receiver<bool>, mark: Arc<Mark>, id: u64) {
    let mut member = Member { world, stop, mark, id, said: 0, unanswered: VecDeque::new() };
    loop {
        match timeout(PATIENCE, member.enter()).await.unwrap_or(Err(Closed::Late)) {
            Ok(socket) => {
                member.mark.is_open.store(true, Ordering::Relaxed);
                // However the connection ended, the member comes back and takes up where it was.
                let _ = member.converse(socket).await;
                member.mark.is_open.store(false, Ordering::Relaxed);
            }
            Err(closed) => member.enter_refused(&closed),
        }
        sleep(RECONNECT).await;
        member.world.tally.chat.reconnects.add(1);
    }
}

struct Member {
    world: Arc<World>,
    stop: watch::Receiver<bool>,
    mark: Arc<Mark>,
    id: u64,
    /// Number of the newest message.
    said: u64,
    /// Messages that have not come back, oldest first.
    unanswered: VecDeque<u64>,
}

/// Why a connection did not open.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error("connect: {0}")]
    Connect(#[from] io::Error),
    #[error(transparent)]
    WebSocket(#[from] tungstenite::Error),
    #[error("no answer in {PATIENCE:?}")]
    Late,
}

impl Member {
    async fn enter(&self) -> Result<Socket, Closed> {
        let stream = TcpStream::connect(self.world.proxy).await?;
        stream.set_nodelay(true)?;
        let seen = self.mark.seen.load(Ordering::Relaxed);
        let url = format!("ws://{}/chat?after={seen}", self.world.proxy);
        Ok(client_async(url, stream).await?.0)
    }

    fn enter_refused(&self, closed: &Closed) {
        self.world.tally.chat.refused.add(1);
        self.world.tally.trouble.note(|| format!("WebSocket /chat: {closed}"));
    }

    async fn converse(&mut self, mut socket: Socket) -> Result<(), tungstenite::Error> {
        for n in self.unanswered.clone() {
            self.send(&mut socket, n).await?;
        }
        let mut ticks = interval(PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Nothing is lost by the arm that loses: ticks go on, and the socket keeps what it has read.
            tokio::select! {
                _ = ticks.tick() => self.say(&mut socket).await?,
                message = socket.next() => match message.transpose()? {
                    Some(Message::Text(text)) => self.hear(&text),
                    Some(_) => {}
                    None => return Ok(()),
                },
            }
        }
    }

    async fn say(&mut self, socket: &mut Socket) -> Result<(), tungstenite::Error> {
        if *self.stop.borrow() || self.unanswered.len() == WINDOW {
            return Ok(());
        }
        self.said += 1;
        self.unanswered.push_back(self.said);
        self.enter_unanswered();
        self.world.tally.chat.sent.add(1);
        self.send(socket, self.said).await
    }

    async fn send(&self, socket: &mut Socket, n: u64) -> Result<(), tungstenite::Error> {
        let said = Said { from: self.id, n, text: format!("message {n} of member {}", self.id) };
        let json = serde_json::to_string(&said).expect("numbers and strings are always JSON");
        socket.send(Message::text(json)).await
    }

    fn hear(&mut self, text: &str) {
        let Ok(Heard::Line { number, line }) = serde_json::from_str(text) else { return };
        if self.world.tally.chat.receive(&self.mark, number) && line.from == self.id {
            self.unanswered.retain(|n| *n != line.n);
            self.enter_unanswered();
        }
    }

    fn enter_unanswered(&self) {
        self.mark.unanswered.store(self.unanswered.len() as u64, Ordering::Relaxed);
    }
}
