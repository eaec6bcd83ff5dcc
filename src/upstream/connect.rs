//! Opens a connection to an endpoint.

use std::io;

use rustix::io::Errno;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::config::Address;
use crate::net::{Stream, keep_alive};
use crate::upstream::Endpoint;

/// Whether a connection failed for want of something of ours: this process is short of file descriptors, memory or ports. It
/// says nothing about the endpoint, and if it counted it would take every endpoint out of service at the worst moment.
pub fn is_ours(error: &io::Error) -> bool {
    const OURS: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    Errno::from_io_error(error).is_some_and(|errno| OURS.contains(&errno))
}

/// Connects to where an endpoint is, or to another port there, without a time limit; bound it from outside.
///
/// # Errors
/// What the operating system says, such as a refused connection, or what is wrong with the endpoint's TLS.
pub async fn connect(endpoint: &Endpoint, address: &Address) -> io::Result<Stream> {
    let stream = match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            keep_alive(&stream)?;
            Stream::Tcp(stream)
        }
        Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
    };
    let Some(tls) = &endpoint.transport().tls else { return Ok(stream) };
    let name = tls.name_of(endpoint.upstream()).ok_or(io::ErrorKind::InvalidInput)?;
    let stream = TlsConnector::from(tls.client.clone()).connect(name, stream).await?;
    if endpoint.transport().protocol.is_http2() && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other("the endpoint does not speak HTTP/2"));
    }
    Ok(Stream::Tls(Box::new(stream.into())))
}
