//! Opens a connection to an endpoint.

use std::io;

use tokio::net::{TcpStream, UnixStream};

use crate::config::Address;
use crate::net::Stream;

/// Nothing was sent: another endpoint may be tried.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect")]
    Io(#[from] io::Error),
    #[error("no connection within the connect timeout")]
    Timeout,
}

/// Connects without a time limit; bound it from outside.
///
/// # Errors
/// What the operating system says, such as a refused connection.
pub async fn connect(address: &Address) -> io::Result<Stream> {
    match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        }
        Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
    }
}
