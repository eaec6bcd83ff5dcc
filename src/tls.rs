//! TLS as the server: which certificate answers for which name, and the handshake.
//!
//! A [`Terminator`] is made of a listener's settings and never changes; a reload makes another one, and connections keep the
//! one that they began with. The keys of the tickets by which clients come back live as long as the listener, so that new
//! certificates do not cost every client a full handshake. Who is asked for a certificate gets no ticket: it would let its
//! owner in when the certificate has long expired, and one ticket after the other for ever.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, HandshakeKind, RootCertStore, ServerConfig, version};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::config::{Tls, TlsVersion};
use crate::net::Stream;

/// ALPN protocol IDs (RFC 7301, RFC 9113 §3.1).
const H2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";
/// The first octet of a connection that begins with a TLS record that holds a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// Keys of tickets that a client is given at once (RFC 8446 §4.6.1): a browser opens several connections.
const TICKETS: usize = 2;
/// Handshakes under way on one worker; the oldest makes room for the next one.
const MOST_HANDSHAKES: usize = 2000;

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("client_ca: {0}")]
    Authorities(#[from] rustls::server::VerifierBuilderError),
}

/// Ends TLS for one listener.
#[derive(Debug)]
pub struct Terminator {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

/// What a connection's handshake has settled.
#[derive(Clone, Debug)]
pub struct Session {
    certificates: Arc<Certificates>,
    /// Those that are good for the name that the client asked for.
    chosen: Arc<[usize]>,
    pub is_http2: bool,
    pub is_resumed: bool,
}

impl Session {
    /// Whether a request for `host` belongs to another certificate than the connection (RFC 9110 §7.4, 421): the client has
    /// not seen that this server may answer for it.
    pub fn is_misdirected(&self, host: &[u8]) -> bool {
        if self.certificates.keys.len() == 1 {
            return false;
        }
        let host = String::from_utf8_lossy(host).to_ascii_lowercase();
        let mut good = self.certificates.good_for(&host).peekable();
        good.peek().is_some() && !good.any(|certificate| self.chosen.contains(certificate))
    }
}

impl Terminator {
    /// `before` is the one that this one replaces.
    ///
    /// # Errors
    /// When a key or an authority cannot be used after all.
    pub fn new(settings: &Tls, http2: bool, before: Option<&Terminator>) -> Result<Terminator, TlsError> {
        let certificates = Arc::new(Certificates::new(settings)?);
        let versions: &[_] = match settings.min_version {
            TlsVersion::V1_2 => &[&version::TLS13, &version::TLS12],
            TlsVersion::V1_3 => &[&version::TLS13],
        };
        let provider = Arc::new(provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
        let builder = match &settings.client_auth {
            None => builder.with_no_client_auth(),
            Some(auth) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&auth.authorities)?), provider);
                let verifier = if auth.is_required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let mut config = builder.with_cert_resolver(certificates.clone());
        config.alpn_protocols = if http2 { vec![H2.into(), HTTP_1_1.into()] } else { vec![HTTP_1_1.into()] };
        config.ignore_client_order = true;
        config.send_tls13_tickets = 0;
        if settings.client_auth.is_none() {
            config.send_tls13_tickets = TICKETS;
            config.ticketer = match before.map(|before| &before.config.ticketer).filter(|before| before.enabled()) {
                Some(before) => before.clone(),
                None => Ticketer::new()?,
            };
        }
        // Tickets are all the memory that is needed, and workers share it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Terminator { config: Arc::new(config), certificates })
    }

    /// Answers a client's handshake, without a time limit.
    ///
    /// # Errors
    /// What was wrong with it; the client has been told.
    pub async fn accept(&self, stream: Stream) -> io::Result<(Stream, Session)> {
        let stream = TlsAcceptor::from(self.config.clone()).accept(stream).await?;
        let (_, connection) = stream.get_ref();
        let name = connection.server_name().unwrap_or_default();
        let session = Session {
            chosen: self.certificates.of_or_default(name).into(),
            certificates: self.certificates.clone(),
            is_http2: connection.alpn_protocol() == Some(H2),
            is_resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        };
        Ok((Stream::Tls(Box::new(stream.into())), session))
    }
}

/// Every suite of rustls is sound; ours come in the order of what machines do fastest.
fn provider() -> CryptoProvider {
    let mut provider = default_provider();
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => 1,
        _ => 2,
    });
    provider
}

/// Whether a connection that begins with this octet speaks TLS.
pub fn begins_handshake(first: u8) -> bool {
    first == HANDSHAKE
}

/// The authorities as roots of trust.
fn roots(authorities: &[rustls::pki_types::CertificateDer<'static>]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    authorities.iter().try_for_each(|authority| roots.add(authority.clone()))?;
    Ok(roots)
}

/// The certificates of a listener, by the names that they are good for.
#[derive(Debug)]
struct Certificates {
    keys: Vec<Arc<CertifiedKey>>,
    exact: HashMap<Box<str>, Vec<usize>>,
    /// By what stands behind the `*.`.
    below: HashMap<Box<str>, Vec<usize>>,
}

impl Certificates {
    fn new(settings: &Tls) -> Result<Certificates, rustls::Error> {
        let provider = default_provider();
        let mut made = Certificates { keys: Vec::new(), exact: HashMap::new(), below: HashMap::new() };
        for (index, certificate) in settings.certificates.iter().enumerate() {
            let key = CertifiedKey::from_der(certificate.chain.clone(), certificate.secret.clone_key(), &provider)?;
            made.keys.push(Arc::new(key));
            for name in &certificate.facts.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut made.below, parent),
                    None => (&mut made.exact, &**name),
                };
                names.entry(name.into()).or_default().push(index);
            }
        }
        Ok(made)
    }

    /// Those that are good for `name`, which is in lower case: an exact one goes before a wildcard, which stands for one
    /// label (RFC 9525 §6.3).
    fn of(&self, name: &str) -> &[usize] {
        let below = || name.split_once('.').and_then(|(_, parent)| self.below.get(parent));
        self.exact.get(name).or_else(below).map_or(&[], Vec::as_slice)
    }

    /// All that are good for `name`, not only those that are chosen for it.
    fn good_for(&self, name: &str) -> impl Iterator<Item = &usize> {
        let below = name.split_once('.').and_then(|(_, parent)| self.below.get(parent));
        self.exact.get(name).into_iter().chain(below).flatten()
    }

    fn of_or_default(&self, name: &str) -> &[usize] {
        match self.of(name) {
            [] => &[0],
            some => some,
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        let candidates = || self.of_or_default(&name).iter().filter_map(|index| self.keys.get(*index));
        // Of several for one name, such as ECDSA and RSA, the first that the client understands.
        let understood = candidates().find(|key| key.key.choose_scheme(hello.signature_schemes()).is_some());
        understood.or_else(|| candidates().next()).cloned()
    }
}

/// The handshakes under way on one worker.
///
/// Whoever opens connections by the thousand and says half a sentence on each holds no place that a good client would need:
/// where there are too many, the oldest goes, and a good client's is never old.
#[derive(Debug, Default)]
pub struct Handshakes {
    under_way: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    places: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A handshake's place among those under way.
#[derive(Debug)]
pub struct Turn<'a> {
    all: &'a Handshakes,
    number: u64,
    /// Resolves when the place is wanted for another one.
    pub pushed_out: oneshot::Receiver<()>,
}

impl Handshakes {
    pub fn begin(&self) -> Turn<'_> {
        let (place, pushed_out) = oneshot::channel();
        let mut queue = self.under_way.lock();
        if queue.places.len() >= MOST_HANDSHAKES {
            // Dropping the sender is the sign.
            queue.places.pop_first();
        }
        let number = queue.next;
        queue.next += 1;
        queue.places.insert(number, place);
        Turn { all: self, number, pushed_out }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.all.under_way.lock().places.remove(&self.number);
    }
}
