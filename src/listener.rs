//! Listening sockets: binding them, accepting from them, and the limits on connections.
//!
//! Every worker has a socket of its own for each TCP listener (`SO_REUSEPORT`), so accepting needs no hand-over between
//! threads; a unix socket is shared, and its connections are dealt in turn. A listener that closes first takes what its
//! queue still holds: nobody who was let in is turned away.

mod arrival;
mod deal;
mod proxy_header;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::config::{Address, Listener};
use crate::http::{self, Worker};
use crate::listener::arrival::{Arrival, Permit};
use crate::listener::deal::{Hand, hands};
use crate::metrics::ListenerStats;
use crate::net::{Stream, keep_alive};
use crate::occupant;
use crate::quota::RateLimit;
use crate::tls::{Terminator, TlsError};

const BACKLOG: i32 = 4096;
/// Pause after an accept that failed for want of something.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A listener that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}: it is in use{}; stop that process or choose another address", owner.as_ref().map(|owner| format!(" by {owner}")).unwrap_or_default())]
    InUse { address: Address, owner: Option<String> },
    #[error("cannot listen on {address}: {reason}")]
    Io { address: Address, reason: io::Error },
    #[error("cannot speak TLS on {address}: {reason}")]
    Tls { address: Address, reason: TlsError },
}

/// One listener and what all workers share of it.
#[derive(Debug)]
pub struct Listening {
    /// Unique among the listeners of the process.
    pub id: u64,
    /// As bound, with the port that was chosen for port 0.
    pub address: Address,
    /// As of the last reload; a connection keeps those it began with.
    pub settings: ArcSwap<Listener>,
    rate: ArcSwapOption<RateLimit>,
    /// `None`: plain text.
    terminator: ArcSwapOption<Terminator>,
    pub stats: Arc<ListenerStats>,
    limit: Arc<Limit>,
    by_ip: Mutex<HashMap<IpAddr, usize>>,
    process_limit: Arc<Limit>,
    closing: CancellationToken,
    /// Has a token for each socket.
    sockets: TaskTracker,
}

/// A number of connections that may be open; it can be changed.
#[derive(Debug)]
pub struct Limit {
    permits: Semaphore,
    size: Mutex<Size>,
}

/// How many permits there should be, and how many there are: more while a limit that shrank is still exceeded.
#[derive(Debug)]
struct Size {
    wanted: usize,
    actual: usize,
}

impl Limit {
    pub fn new(size: usize) -> Limit {
        Limit { permits: Semaphore::new(size), size: Mutex::new(Size { wanted: size, actual: size }) }
    }

    /// Takes effect at once when it grows, and as connections end when it shrinks.
    pub fn resize(&self, to: usize) {
        let mut size = self.size.lock();
        size.wanted = to;
        if to > size.actual {
            self.permits.add_permits(to - size.actual);
            size.actual = to;
        } else {
            size.actual -= self.permits.forget_permits(size.actual - to);
        }
    }

    async fn take(limit: &Arc<Limit>) -> Place {
        limit.permits.acquire().await.expect("the semaphore is never closed").forget();
        Place(limit.clone())
    }
}

/// One of the connections of a [`Limit`].
#[derive(Debug)]
struct Place(Arc<Limit>);

/// Requests that share a connection take as much of the process as connections do: each has one to an origin.
impl http::Permit for Place {
    fn beside(&self) -> Option<Box<dyn http::Permit>> {
        self.0.permits.try_acquire().ok()?.forget();
        Some(Box::new(Place(self.0.clone())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut size = self.0.size.lock();
        if size.actual > size.wanted {
            size.actual -= 1;
        } else {
            self.0.permits.add_permits(1);
        }
    }
}

/// One worker's socket of a listener. As long as there is one, the address is taken.
#[derive(Debug)]
pub struct WorkerSocket {
    socket: StdSocket,
    /// Where the workers share the socket.
    hand: Option<Hand>,
    open: TaskTrackerToken,
}

#[derive(Debug)]
enum StdSocket {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

impl Listening {
    /// Binds the address, with one socket for each worker.
    ///
    /// # Errors
    /// When the address cannot be had; in use names the process that has it, if that can be found out.
    pub fn bind(
        id: u64,
        settings: Arc<Listener>,
        stats: impl FnOnce(&str) -> Arc<ListenerStats>,
        process_limit: Arc<Limit>,
        workers: usize,
    ) -> Result<(Listening, Vec<WorkerSocket>), BindError> {
        let terminator = terminator(&settings, None)
            .map_err(|reason| BindError::Tls { address: settings.listen.clone(), reason })?;
        let (address, sockets) =
            bind_sockets(&settings.listen, workers).map_err(|reason| why(&settings.listen, reason))?;
        let stats = stats(&address.to_string());
        stats.tls.store(settings.tls.clone());
        let listening = Listening {
            id,
            stats,
            address,
            limit: Arc::new(Limit::new(settings.limits.connections)),
            rate: ArcSwapOption::new(rate_limit(&settings, None)),
            terminator: ArcSwapOption::new(terminator),
            settings: ArcSwap::new(settings),
            by_ip: Mutex::default(),
            process_limit,
            closing: CancellationToken::new(),
            sockets: TaskTracker::new(),
        };
        let hands: Vec<Option<Hand>> = match &listening.address {
            Address::Tcp(_) => sockets.iter().map(|_| None).collect(),
            Address::Unix(_) => hands(sockets.len()).into_iter().map(Some).collect(),
        };
        let open = |(socket, hand)| WorkerSocket { socket, hand, open: listening.sockets.token() };
        let sockets = sockets.into_iter().zip(hands).map(open).collect();
        Ok((listening, sockets))
    }

    fn port(&self) -> Option<u16> {
        match &self.address {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) => None,
        }
    }

    /// New settings for connections from now on.
    pub fn update(&self, settings: Arc<Listener>) {
        self.limit.resize(settings.limits.connections);
        self.rate.store(rate_limit(&settings, self.rate.load_full()));
        if self.settings.load().tls != settings.tls || self.settings.load().http2 != settings.http2 {
            match terminator(&settings, self.terminator.load().as_deref()) {
                Ok(terminator) => {
                    self.terminator.store(terminator);
                    self.stats.tls.store(settings.tls.clone());
                }
                Err(error) => tracing::error!(address = %self.address, %error, "the old certificates stay in use"),
            }
        }
        self.settings.store(settings);
    }

    /// Stops accepting, after what waits in the queues.
    pub fn close(&self) {
        self.closing.cancel();
        self.stats.tls.store(None);
        self.remove_file();
    }

    fn remove_file(&self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Resolves after [`Listening::close`], when the address is free again.
    pub async fn closed(&self) {
        self.sockets.close();
        self.sockets.wait().await;
    }
}

/// One that was never closed, because it was bound beside one that could not be, or too late, leaves nothing behind either.
impl Drop for Listening {
    fn drop(&mut self) {
        if !self.closing.is_cancelled() {
            self.remove_file();
        }
    }
}

/// Accepts on behalf of one worker until the listener closes. Runs on the worker's runtime.
pub async fn accept(listening: Arc<Listening>, socket: WorkerSocket, worker: Arc<Worker>) {
    let WorkerSocket { socket, mut hand, open: _open } = socket;
    let socket = match Acceptor::new(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(address = %listening.address, %error, "cannot listen"),
    };
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = listening.closing.cancelled() => break,
            // Dropping either while it waits loses no connection: it stays in its queue.
            dealt = next(&mut hand) => match dealt {
                Some((stream, permit)) => { seat(&listening, stream, None, permit, &worker); continue }
                None => break,
            },
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                is_failing = false;
                admit(&listening, accepted, &worker, &mut hand).await;
            }
            Err(error) => {
                back_off(&listening, &error, is_failing).await;
                is_failing = true;
            }
        }
    }
    drain_queue(&listening, socket, &worker, hand).await;
}

async fn next(hand: &mut Option<Hand>) -> Option<(Stream, Permit)> {
    match hand {
        Some(hand) => hand.next().await,
        None => std::future::pending().await,
    }
}

/// What was in the queue when the listener closed has been let in. Asks the system itself: tokio may not know yet.
async fn drain_queue(listening: &Arc<Listening>, socket: Acceptor, worker: &Arc<Worker>, mut hand: Option<Hand>) {
    // Whoever comes meanwhile must not keep it from closing.
    for _ in 0..BACKLOG {
        let Some(accepted) = socket.accept_waiting() else { break };
        admit(listening, accepted, worker, &mut hand).await;
    }
    let Some(mut hand) = hand else { return };
    hand.stop_dealing();
    while let Some((stream, permit)) = hand.next().await {
        seat(listening, stream, None, permit, worker);
    }
}

/// A connection that was reset before it was accepted is nothing; anything else is likely to happen again at once.
async fn back_off(listening: &Listening, error: &io::Error, was_failing: bool) {
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    if !was_failing {
        tracing::error!(address = %listening.address, %error, "cannot accept; open connections are served on");
    }
    tokio::time::sleep(BACK_OFF).await;
}

/// A new connection.
#[derive(Debug)]
struct Accepted {
    stream: Stream,
    peer: Option<SocketAddr>,
}

/// A worker's socket on that worker's runtime.
#[derive(Debug)]
enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    fn new(socket: StdSocket) -> io::Result<Acceptor> {
        Ok(match socket {
            StdSocket::Tcp(socket) => Acceptor::Tcp(TcpListener::from_std(socket)?),
            StdSocket::Unix(socket) => Acceptor::Unix(UnixListener::from_std(socket)?),
        })
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Acceptor::Tcp(socket) => socket.accept().await.map(|(stream, peer)| Accepted::tcp(stream, peer)),
            Acceptor::Unix(socket) => {
                socket.accept().await.map(|(stream, _)| Accepted { stream: Stream::Unix(stream), peer: None })
            }
        }
    }

    /// A connection that waits in the queue now.
    fn accept_waiting(&self) -> Option<Accepted> {
        match self {
            Acceptor::Tcp(socket) => {
                let (stream, peer) = socket2::SockRef::from(socket).accept().ok()?;
                stream.set_nonblocking(true).ok()?;
                let stream = TcpStream::from_std(stream.into()).ok()?;
                Some(Accepted::tcp(stream, peer.as_socket()?))
            }
            Acceptor::Unix(socket) => {
                let (stream, _) = socket2::SockRef::from(socket).accept().ok()?;
                stream.set_nonblocking(true).ok()?;
                Some(Accepted { stream: Stream::Unix(UnixStream::from_std(stream.into()).ok()?), peer: None })
            }
        }
    }
}

impl Accepted {
    fn tcp(stream: TcpStream, peer: SocketAddr) -> Accepted {
        Accepted { stream: Stream::Tcp(stream), peer: Some(peer) }
    }
}

/// Waits until there is room for the connection, then seats it, here or at the worker whose turn it is.
async fn admit(listening: &Arc<Listening>, accepted: Accepted, worker: &Arc<Worker>, hand: &mut Option<Hand>) {
    let mut room = pin!(async { (Limit::take(&listening.limit).await, Limit::take(&listening.process_limit).await) });
    let (own, process) = loop {
        tokio::select! {
            biased;
            // Who is dealt meanwhile has a place already, and may be the one that makes room.
            Some((stream, permit)) = next(hand) => seat(listening, stream, None, permit, worker),
            room = &mut room => break room,
        }
    };
    let permit = Permit::new(listening, own, process);
    let kept = match hand {
        Some(hand) => hand.deal(accepted.stream, permit),
        None => Some((accepted.stream, permit)),
    };
    if let Some((stream, permit)) = kept {
        seat(listening, stream, accepted.peer, permit, worker);
    }
}

/// Gives the connection a seat, and a task in which the rest happens.
fn seat(listening: &Listening, stream: Stream, peer: Option<SocketAddr>, permit: Permit, worker: &Arc<Worker>) {
    let seat = worker.roster.sit(listening.id);
    if listening.closing.is_cancelled() {
        // It was not seated yet when the others were asked to leave.
        seat.leave();
    }
    arrival::begin(Arrival {
        stream,
        client: peer.map(|peer| peer.ip().to_canonical()),
        port: listening.port(),
        seat,
        worker: worker.clone(),
        settings: listening.settings.load_full(),
        permit,
    });
}

/// What ends TLS as the settings ask for it; `before` is what did so until now.
fn terminator(settings: &Listener, before: Option<&Terminator>) -> Result<Option<Arc<Terminator>>, TlsError> {
    let Some(tls) = &settings.tls else { return Ok(None) };
    Terminator::new(tls, settings.http2, before).map(|terminator| Some(Arc::new(terminator)))
}

/// The limit that the settings ask for; one that has not changed goes on counting where it was.
fn rate_limit(settings: &Listener, before: Option<Arc<RateLimit>>) -> Option<Arc<RateLimit>> {
    let rate = settings.limits.rate?;
    before.filter(|before| before.rate() == rate).or_else(|| Some(Arc::new(RateLimit::new(rate))))
}

fn bind_sockets(address: &Address, workers: usize) -> io::Result<(Address, Vec<StdSocket>)> {
    match address {
        Address::Tcp(address) => {
            let (address, sockets) = bind_tcp(*address, workers)?;
            Ok((Address::Tcp(address), sockets.into_iter().map(StdSocket::Tcp).collect()))
        }
        Address::Unix(path) => {
            let socket = bind_unix(path)?;
            let sockets: io::Result<Vec<_>> = (0..workers).map(|_| socket.try_clone().map(StdSocket::Unix)).collect();
            Ok((Address::Unix(path.clone()), sockets?))
        }
    }
}

fn bind_tcp(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<StdTcpListener>)> {
    // With SO_REUSEPORT a second process of the same user would silently share the port: ask once without it.
    drop(tcp_socket(address, false)?);
    let first = tcp_socket(address, true)?;
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    while sockets.len() < workers {
        sockets.push(tcp_socket(address, true)?);
    }
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok((address, sockets.into_iter().map(Into::into).collect()))
}

fn tcp_socket(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    // Inherited by what is accepted: answers go out as they come in.
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

/// A socket file that nobody listens on is left over from a process that died, and is replaced.
fn bind_unix(path: &Path) -> io::Result<StdUnixListener> {
    if occupant::is_left_over(path) {
        std::fs::remove_file(path)?;
    }
    let socket = StdUnixListener::bind(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn why(address: &Address, reason: io::Error) -> BindError {
    if reason.kind() != io::ErrorKind::AddrInUse {
        return BindError::Io { address: address.clone(), reason };
    }
    BindError::InUse { address: address.clone(), owner: occupant::occupant(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_vanishes_without_a_word_is_noticed_by_the_system() {
        let (address, sockets) = bind_tcp(([127, 0, 0, 1], 0).into(), 1).expect("a port");
        let _client = std::net::TcpStream::connect(address).expect("it listens");
        sockets[0].set_nonblocking(false).expect("a socket");
        let (accepted, _) = sockets[0].accept().expect("a connection");
        assert!(socket2::SockRef::from(&accepted).keepalive().expect("a socket"));
    }
}
