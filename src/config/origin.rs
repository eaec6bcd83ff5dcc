//! How endpoints are spoken to: the keys `protocol` and `upstream_tls` of a service.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use toml::de::DeValue;

use crate::config::Upstream;
use crate::config::reader::{Expected, Table};
use crate::config::tls::{Certificate, pair, read_authorities};
use crate::config::units::{flag, path};

/// What endpoints speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    #[default]
    Http1,
    /// HTTP/2 inside TLS.
    H2,
    /// HTTP/2 in plain text, by prior knowledge.
    H2c,
}

impl Protocol {
    pub fn is_http2(self) -> bool {
        self != Protocol::Http1
    }
}

/// TLS to the endpoints of a service.
#[derive(Clone)]
pub struct UpstreamTls {
    /// `None`: the authorities that the system trusts.
    pub ca: Option<PathBuf>,
    /// `None`: as the endpoint is called in the configuration.
    pub server_name: Option<ServerName<'static>>,
    /// Without verification anybody may pass for an endpoint.
    pub is_verified: bool,
    /// The certificate that we show.
    pub identity: Option<Certificate>,
    roots: Vec<CertificateDer<'static>>,
    is_http2: bool,
    /// Made of all that.
    pub client: Arc<ClientConfig>,
}

impl PartialEq for UpstreamTls {
    fn eq(&self, other: &UpstreamTls) -> bool {
        let UpstreamTls { ca, server_name, is_verified, identity, roots, is_http2, client: _ } = self;
        (ca, server_name, is_verified) == (&other.ca, &other.server_name, &other.is_verified)
            && (identity, roots, is_http2) == (&other.identity, &other.roots, &other.is_http2)
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UpstreamTls { ca, server_name, is_verified, identity, .. } = self;
        f.debug_struct("UpstreamTls")
            .field("ca", ca)
            .field("server_name", server_name)
            .field("is_verified", is_verified)
            .field("identity", &identity.as_ref().map(|certificate| &certificate.cert))
            .finish_non_exhaustive()
    }
}

impl UpstreamTls {
    /// The name that the certificate of `upstream` must be good for. `None`: a unix socket has none.
    pub fn name_of(&self, upstream: &Upstream) -> Option<ServerName<'static>> {
        self.server_name.clone().or_else(|| match upstream {
            Upstream::Ip(address) => Some(ServerName::IpAddress(address.ip().into())),
            Upstream::Name { host, .. } => ServerName::try_from(host.to_string()).ok(),
            Upstream::Unix(_) => None,
        })
    }
}

/// `None` when something is wrong, which is in the report then.
pub(crate) fn upstream_tls(table: &mut Table<'_>, protocol: Protocol) -> Option<UpstreamTls> {
    let ca = table.optional("ca", path).map(|ca| ca.into_inner());
    let server_name = table.optional("server_name", server_name).map(|name| name.into_inner());
    let cert = table.optional("cert", path).map(|cert| cert.into_inner());
    let key = table.optional("key", path).map(|key| key.into_inner());
    ca.iter().for_each(|file| table.reads(file));
    let is_verified = !table.value("insecure", false, flag);
    let roots = match &ca {
        Some(ca) => read_authorities(ca).map_err(|why| table.conflict("ca", || why)).ok()?,
        None if is_verified => system_roots(table)?,
        None => Vec::new(),
    };
    if table.has("cert") != table.has("key") {
        table.conflict("cert", || "found one of cert and key, expected both, or neither".to_owned());
        return None;
    }
    let identity = match cert.zip(key) {
        None => None,
        Some((cert, key)) => Some(pair(table, cert, key)?),
    };
    let is_http2 = protocol.is_http2();
    let client = client(&roots, identity.as_ref(), is_verified, is_http2);
    let client = client.map_err(|error| table.conflict("ca", || format!("cannot be used: {error}"))).ok()?;
    let client = Arc::new(client);
    Some(UpstreamTls { ca, server_name, is_verified, identity, roots, is_http2, client })
}

fn server_name(value: &DeValue<'_>) -> Result<ServerName<'static>, Expected> {
    let name = value.as_str().and_then(|text| ServerName::try_from(text.to_owned()).ok());
    name.ok_or_else(|| "a host name or an IP address such as \"api.internal\"".into())
}

fn system_roots(table: &Table<'_>) -> Option<Vec<CertificateDer<'static>>> {
    let roots = rustls_native_certs::load_native_certs().certs;
    if roots.is_empty() {
        let message = "found without ca on a system that trusts no authorities, expected ca = \"ca.pem\"";
        table.conflict("ca", || message.to_owned());
        return None;
    }
    Some(roots)
}

fn client(
    roots: &[CertificateDer<'static>],
    own: Option<&Certificate>,
    is_verified: bool,
    is_http2: bool,
) -> Result<ClientConfig, Box<dyn std::error::Error>> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = if is_verified {
        let mut store = RootCertStore::empty();
        // Of the system's authorities a few may be odd; those that were named have been looked at.
        let (good, _) = store.add_parsable_certificates(roots.iter().cloned());
        if good == 0 {
            return Err("no authority in it".into());
        }
        builder.with_webpki_verifier(WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build()?)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    };
    let mut client = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.secret.clone_key())?,
    };
    client.alpn_protocols = vec![if is_http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(client)
}

/// Takes any certificate, for `insecure = true`.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
