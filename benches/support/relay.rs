//! A bare TCP relay: what it costs to move the bytes and to know nothing about them.
//!
//! One thread, one upstream connection per client connection. It is the floor that a proxy is measured against.

use std::ffi::OsString;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

const BUFFER: usize = 64 * 1024;

/// `--relay LISTEN UPSTREAM`
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let mut address = || -> Result<SocketAddr> {
        Ok(arguments.next().context("--relay needs two addresses")?.to_string_lossy().parse()?)
    };
    let (listen, upstream) = (address()?, address()?);
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(serve(listen, upstream))
}

async fn serve(listen: SocketAddr, upstream: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (client, _) = listener.accept().await?;
        // A broken connection ends that relay alone; the load notices.
        tokio::spawn(async move { relay(client, upstream).await.ok() });
    }
}

async fn relay(mut client: TcpStream, upstream: SocketAddr) -> Result<()> {
    let mut upstream = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await?;
    Ok(())
}
