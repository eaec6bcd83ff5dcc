//! Certificates made for a test, clients that speak TLS, and a forwarder that puts TLS between a client and the proxy.

use std::fs;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
    SignatureAlgorithm,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion, version};
use socket2::SockRef;
use teal::config::Tls;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::Client;

pub const ECDSA: &SignatureAlgorithm = &PKCS_ECDSA_P256_SHA256;
pub const RSA: &SignatureAlgorithm = &PKCS_RSA_SHA256;
pub const BOTH_VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// A certificate for `test` with its authority and its key, for runs over TLS, of this day or an earlier one.
const SAMPLE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/over-tls.pem");
/// How long a client may take to end its side after the end of ours.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Who signs the certificates of a test.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are fine names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("authority {:08x}", fastrand::u32(..)));
        Authority(CertifiedIssuer::self_signed(params, key(ECDSA)).expect("a key that can sign"))
    }

    /// A certificate that is good for these names.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.issue_with(names, ECDSA, |_| {})
    }

    pub fn issue_with(
        &self,
        names: &[&str],
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names of hosts");
        change(&mut params);
        let key = key(algorithm);
        let cert = params.signed_by(&key, &self.0).expect("a key that can sign").pem();
        Pair { cert, key: key.serialize_pem() }
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Trusts this authority and nobody else.
    pub fn roots(&self) -> RootCertStore {
        trusting([self.0.der().clone()])
    }
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("an algorithm that is built in")
}

fn trusting(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    certificates.into_iter().for_each(|certificate| roots.add(certificate).expect("a certificate"));
    roots
}

impl Pair {
    /// Writes `NAME.pem` and `NAME.key`, and gives the entry of `certificates` that names them.
    pub fn write(&self, dir: &Path, name: &str) -> String {
        let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        let drafts = [dir.join(format!("{name}.pem.draft")), dir.join(format!("{name}.key.draft"))];
        fs::write(&drafts[0], &self.cert).expect("the test can write");
        fs::write(&drafts[1], &self.key).expect("the test can write");
        // Who watches them sees the one without the other as shortly as can be.
        fs::rename(&drafts[0], &cert).expect("the test can rename");
        fs::rename(&drafts[1], &key).expect("the test can rename");
        format!("{{ cert = {cert:?}, key = {key:?} }}")
    }

    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.cert.as_bytes()).map(|der| der.expect("made by us")).collect()
    }

    pub fn secret(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("made by us")
    }
}

/// A client that trusts `roots`, speaks `versions`, and shows the certificate of `own`, if it has one.
pub fn client_config(
    roots: RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
    own: Option<&Pair>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(versions).expect("versions that are built in");
    let builder = builder.with_root_certificates(roots);
    match own {
        Some(pair) => builder.with_client_auth_cert(pair.chain(), pair.secret()).expect("a pair"),
        None => builder.with_no_client_auth(),
    }
}

/// A client that believes whatever certificate it is shown, and understands signatures by `schemes`.
pub fn believing(schemes: &[SignatureScheme], versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut config = client_config(RootCertStore::empty(), versions, None);
    config.dangerous().set_certificate_verifier(Arc::new(Believing(schemes.to_vec())));
    config
}

#[derive(Debug)]
struct Believing(Vec<SignatureScheme>);

impl ServerCertVerifier for Believing {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &default_provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &default_provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

pub type Secured = TlsStream<TcpStream>;

/// Connects and shakes hands; `name` is what SNI says, unless it is an IP address.
pub async fn connect(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<Client<Secured>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned()).expect("the name of a host");
    Ok(Client::on(TlsConnector::from(config.clone()).connect(name, stream).await?))
}

/// The key `tls` of a listener, for a run over TLS: a certificate for `test`, made once.
pub fn sample_keys() -> String {
    static WRITTEN: Once = Once::new();
    let path = Path::new(SAMPLE);
    WRITTEN.call_once(|| {
        let authority = Authority::new();
        let Pair { cert, key } = authority.issue(&["test"]);
        let draft = path.with_extension(std::process::id().to_string());
        fs::write(&draft, [cert, authority.pem(), key].concat()).expect("the test can write");
        // Other processes do the same, or have done it. The first one's stays: it is read twice, as certificate and as key.
        let linked = fs::hard_link(&draft, path);
        fs::remove_file(&draft).expect("the test can remove what it has written");
        assert!(linked.is_ok() || path.exists(), "{linked:?}");
    });
    format!("tls = {{ certificates = [{{ cert = {path:?}, key = {path:?} }}] }}\n")
}

/// Whether these are the keys of [`sample_keys`].
pub fn is_sample(tls: &Tls) -> bool {
    tls.certificates[0].cert == Path::new(SAMPLE)
}

/// Takes connections in plain text and passes each on over TLS, until it is dropped: clients that know nothing of TLS
/// speak it. What the connection does at its end goes through as well: an end of one direction is a `close_notify` on the
/// other side and the other way round, and everything else, such as an end without it, is a reset.
pub struct Forwarder {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Before the listener at `to`; the last certificate of its chain is trusted.
    pub fn start(to: SocketAddr, tls: &Tls, runtime: &Runtime) -> Forwarder {
        let authority = tls.certificates[0].chain.last().cloned();
        let config = Arc::new(client_config(trusting(authority), BOTH_VERSIONS, None));
        let listener = StdTcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a TCP socket");
        let address = listener.local_addr().expect("a bound address");
        let task = runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a runtime");
            while let Ok((plain, _)) = listener.accept().await {
                tokio::spawn(forward(plain, to, config.clone()));
            }
        });
        Forwarder { address, task }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut plain: TcpStream, to: SocketAddr, config: Arc<ClientConfig>) {
    let _ = plain.set_nodelay(true);
    // Who is turned away before the handshake is over sees an end, as it would without TLS; a reset could come while it
    // is still connecting.
    let Ok(Client { stream: mut secured, .. }) = connect(to, "test", &config).await else {
        return end(plain).await;
    };
    let (mut from_client, mut to_client) = plain.split();
    let (mut from_proxy, mut to_proxy) = split(&mut secured);
    let ended = tokio::try_join!(pass(&mut from_client, &mut to_proxy), pass(&mut from_proxy, &mut to_client));
    if ended.is_err() {
        reset(&plain);
        reset(secured.get_ref().0);
    }
}

async fn pass(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    tokio::io::copy(from, to).await?;
    to.shutdown().await
}

/// Ends the connection in order: what the client still says is read, for a close that leaves it unread would be a reset.
pub async fn end(mut plain: TcpStream) {
    let mut scratch = [0; 4096];
    let _ = plain.shutdown().await;
    let rest = async { while plain.read(&mut scratch).await.is_ok_and(|count| count > 0) {} };
    let _ = timeout(LAST_WORDS, rest).await;
}

/// Makes the coming close a reset.
pub fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
