//! The certificate that all contestants show, and clients that accept no other.
//!
//! Everybody uses TLS 1.3 with AES-128-GCM and X25519: left to the programs, one would spend its time on another cipher
//! than the others.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::contestant::{HOST, written};

const TICKETS: usize = 4;

/// A certificate for [`HOST`], ECDSA with P-256, signed by itself.
pub(crate) struct Identity {
    pub(crate) cert: OsString,
    pub(crate) key: OsString,
    /// Both in one file.
    pub(crate) both: OsString,
    trusted: CertificateDer<'static>,
}

impl Identity {
    pub(crate) fn made_in(folder: &Path) -> Result<Self> {
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
        let (chain, secret) = (cert.pem(), signing_key.serialize_pem());
        Ok(Self {
            cert: written(folder, "cert.pem", &chain)?,
            key: written(folder, "key.pem", &secret)?,
            both: written(folder, "both.pem", &(chain + &secret))?,
            trusted: cert.der().clone(),
        })
    }
}

/// What a handshake has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Handshakes {
    Full,
    /// By a ticket, from the second on.
    Resumed,
}

/// How clients speak TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    config: ClientConfig,
    handshakes: Handshakes,
}

impl Tls {
    pub(crate) fn new(identity: &Identity, protocol: &str, handshakes: Handshakes) -> Result<Self> {
        let provider = CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![kx_group::X25519],
            ..default_provider()
        };
        let mut roots = RootCertStore::empty();
        roots.add(identity.trusted.clone())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.into()];
        Ok(Self { config, handshakes })
    }

    /// A client that has been nowhere yet.
    pub(crate) fn client(&self) -> TlsClient {
        let mut config = self.config.clone();
        config.resumption = match self.handshakes {
            Handshakes::Full => Resumption::disabled(),
            Handshakes::Resumed => Resumption::in_memory_sessions(TICKETS),
        };
        TlsClient { connector: Arc::new(config).into(), expected: HandshakeKind::Full, handshakes: self.handshakes }
    }
}

/// One client with its tickets.
pub(crate) struct TlsClient {
    connector: TlsConnector,
    expected: HandshakeKind,
    handshakes: Handshakes,
}

impl TlsClient {
    /// Connects; a handshake that is not of the kind to be measured is an error, and so is another protocol.
    pub(crate) async fn connect(&mut self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(HOST).map_err(io::Error::other)?;
        let stream = self.connector.connect(name, stream).await?;
        let (_, session) = stream.get_ref();
        if session.handshake_kind() != Some(self.expected) {
            return Err(io::Error::other(format!("a handshake of another kind: {:?}", session.handshake_kind())));
        }
        if session.alpn_protocol() != self.connector.config().alpn_protocols.first().map(Vec::as_slice) {
            return Err(io::Error::other("another protocol"));
        }
        if self.handshakes == Handshakes::Resumed {
            self.expected = HandshakeKind::Resumed;
        }
        Ok(stream)
    }
}

/// The first answer of a contestant that speaks TLS begins like this.
pub(crate) fn begins(address: SocketAddr, tls: &Tls, request: &[u8], answer: &[u8]) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tls.client().connect(address).await?;
        stream.write_all(request).await?;
        stream.flush().await?;
        let mut head = vec![0; answer.len()];
        stream.read_exact(&mut head).await.context("no answer")?;
        Ok(head == answer)
    })
}
