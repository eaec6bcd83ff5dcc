//! The one socket of the admin API: TCP or unix.
//!
//! A socket file is made for owner and group alone, replaced when the process that left it is dead, and removed when
//! the socket is dropped.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use crate::config::Address;
use crate::occupant;

const SOCKET_MODE: u32 = 0o660;
const BACKLOG: i32 = 128;

/// Why the admin API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "cannot listen on {address}: it is in use{}; stop that process or give admin.listen another address",
        owner.as_ref().map(|owner| format!(" by {owner}")).unwrap_or_default()
    )]
    InUse { address: Address, owner: Option<String> },
    #[error("cannot listen on {address}: {reason}")]
    Io { address: Address, reason: io::Error },
}

/// A connection, and the address of this end if it is a TCP one.
pub(super) type Accepted = (Either<TcpStream, UnixStream>, Option<SocketAddr>);

/// Bound, and not yet tied to a runtime.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) address: Address,
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Tcp(StdTcpListener),
    Unix(StdUnixListener, SocketFile),
}

/// Accepts connections on a runtime.
pub(super) enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "its drop removes the file")] SocketFile),
}

/// Gone when dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Socket {
    pub(super) fn bind(address: &Address) -> Result<Socket, BindError> {
        let bound = match address {
            Address::Tcp(address) => bind_tcp(*address),
            Address::Unix(path) => bind_unix(path),
        };
        bound.map_err(|reason| match reason.kind() {
            ErrorKind::AddrInUse => BindError::InUse { address: address.clone(), owner: occupant::occupant(address) },
            _ => BindError::Io { address: address.clone(), reason },
        })
    }

    pub(super) fn into_acceptor(self) -> io::Result<Acceptor> {
        Ok(match self.listener {
            Listener::Tcp(listener) => Acceptor::Tcp(TcpListener::from_std(listener)?),
            Listener::Unix(listener, file) => Acceptor::Unix(UnixListener::from_std(listener)?, file),
        })
    }
}

impl Acceptor {
    /// Cancel-safe: a connection that was not returned stays in the queue.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Acceptor::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let local = stream.local_addr()?;
                Ok((Either::Left(stream), Some(local)))
            }
            Acceptor::Unix(listener, _) => Ok((Either::Right(listener.accept().await?.0), None)),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Socket> {
    let listener = StdTcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(Socket { address: Address::Tcp(listener.local_addr()?), listener: Listener::Tcp(listener) })
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    if occupant::is_left_over(path) {
        fs::remove_file(path)?;
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file gets the mode of the socket, less the umask: nobody else can get in before the mode below is set.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile(path.to_owned());
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(Socket { address: Address::Unix(path.to_owned()), listener: Listener::Unix(socket.into(), file) })
}
