//! The table `tls` of a listener and the files that it names: certificates, keys and authorities of clients.
//!
//! They are read and judged here, with the rest of the file, so that a pair that does not fit is one of its problems and a
//! bad reload changes nothing. What a handshake makes of them is in `crate::tls`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use toml::Spanned;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::reader::Table;
use crate::config::units::{path, word};

/// Octets of the largest file that is read.
const LARGEST: u64 = 1 << 20;
/// Of the mode of a file: what others than its owner and its group may do.
const EXPOSED: u32 = 0o007;

const DAY: i64 = 24 * 60 * 60;
/// From when on the end of a certificate is warned of: what renews it by itself has done so long before.
const SOON: i64 = 14 * DAY;

/// How a listener speaks TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    /// At least one. The first serves clients that name no host, or one that no certificate has.
    pub certificates: Vec<Certificate>,
    pub min_version: TlsVersion,
    pub client_auth: Option<ClientAuth>,
}

/// A certificate with its chain and its key, which belong together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The certificate itself first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Printed as "elided".
    pub secret: Arc<PrivateKeyDer<'static>>,
    pub facts: CertificateFacts,
    /// Whether others than the owner and the group may read the key.
    pub is_exposed: bool,
}

/// What a certificate says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFacts {
    /// Host names in lower case, `*.example.com` and IP addresses among them.
    pub names: Vec<Box<str>>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}

impl Certificate {
    /// Why it needs somebody's attention soon, if it does.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let CertificateFacts { not_before, not_after, .. } = self.facts;
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        let (cert, left) = (self.cert.display(), not_after.saturating_sub(now));
        match left {
            _ if now < not_before => Some(format!("{cert} is not valid before {}", date(not_before))),
            ..0 => Some(format!("{cert} has expired, on {}", date(not_after))),
            0..SOON => Some(format!("{cert} expires in {} days, on {}", left / DAY, date(not_after))),
            _ => None,
        }
    }
}

/// A time in seconds since 1970 as RFC 3339 has it, or the nearest that it can write.
pub fn date(seconds: i64) -> String {
    const END_OF_9999: u64 = 253_402_300_799;
    let seconds = u64::try_from(seconds).unwrap_or(0).min(END_OF_9999);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// Certificates that clients show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientAuth {
    pub ca: PathBuf,
    pub authorities: Vec<CertificateDer<'static>>,
    /// Who shows none is turned away.
    pub is_required: bool,
}

/// `None` when something is wrong, which is in the report then.
pub(crate) fn tls(table: &mut Table<'_>) -> Option<Tls> {
    let min_version =
        table.value("min_version", TlsVersion::V1_2, word(&[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)]));
    if table.is_empty("certificates") {
        let example = "{ cert = \"shop.pem\", key = \"shop.key\" }";
        table.conflict("certificates", || format!("found none, expected at least one: certificates = [{example}]"));
    }
    let certificates = table.tables("certificates", certificate);
    let client_auth = client_auth(table);
    let certificates = certificates.into_iter().collect::<Option<Vec<_>>>()?;
    Some(Tls { certificates, min_version, client_auth })
}

fn certificate(table: &mut Table<'_>) -> Option<Certificate> {
    let cert = table.required("cert", "the path of a PEM file with the certificate and its chain", path);
    let key = table.required("key", "the path of a PEM file with its private key", path);
    pair(table, cert?.into_inner(), key?.into_inner())
}

/// What the files of the keys `cert` and `key` hold. `None` when something is wrong, which is in the report then.
pub(crate) fn pair(table: &mut Table<'_>, cert: PathBuf, key: PathBuf) -> Option<Certificate> {
    [&cert, &key].into_iter().for_each(|file| table.reads(file));
    let chain = read_chain(&cert).map_err(|why| table.conflict("cert", || why)).ok();
    let secret = read_key(&key).map_err(|why| table.conflict("key", || why)).ok();
    let (chain, (secret, is_exposed)) = (chain?, secret?);
    let facts = facts(&chain).map_err(|why| table.conflict("cert", || not_as_expected(&cert, &why))).ok()?;
    if let Err(error) = CertifiedKey::from_der(chain.clone(), secret.clone_key(), &default_provider()) {
        let (cert, key) = (cert.display(), key.display());
        table.conflict("key", || format!("found {key} ({error}), expected the key of the certificate in {cert}"));
        return None;
    }
    Some(Certificate { cert, key, chain, secret: Arc::new(secret), facts, is_exposed })
}

fn client_auth(table: &mut Table<'_>) -> Option<ClientAuth> {
    let ca = table.optional("client_ca", path);
    let is_required = table.optional("client_auth", word(&[("optional", false), ("require", true)]));
    if is_required.is_some() && !table.has("client_ca") {
        let message = "found without client_ca, expected the authorities that sign the clients' certificates beside it";
        table.conflict("client_auth", || message.to_owned());
    }
    let ca = ca?.into_inner();
    table.reads(&ca);
    let authorities = read_authorities(&ca).map_err(|why| table.conflict("client_ca", || why)).ok()?;
    Some(ClientAuth { ca, authorities, is_required: is_required.is_none_or(Spanned::into_inner) })
}

/// The certificates of a PEM file, at least one.
fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let (text, _) = small_file(path).map_err(|error| not_as_expected(path, &error.to_string()))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(not_as_expected(path, "no certificate in it")),
        Err(error) => Err(not_as_expected(path, &error.to_string())),
    }
}

/// As [`read_chain`], each of them fit to sign others.
pub(crate) fn read_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let authorities = read_chain(path)?;
    let mut roots = RootCertStore::empty();
    let added = authorities.iter().try_for_each(|authority| roots.add(authority.clone()));
    added.map_err(|error| not_as_expected(path, &error.to_string()))?;
    Ok(authorities)
}

/// The first private key of a PEM file, and whether everybody may read it. No error repeats what is in the file.
fn read_key(path: &Path) -> Result<(PrivateKeyDer<'static>, bool), String> {
    let wrong = |why: &str| format!("found {} ({why}), expected a PEM file with a private key", path.display());
    let (text, mode) = small_file(path).map_err(|error| wrong(&error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| wrong("no private key in it that can be read"))?;
    Ok((key, mode & EXPOSED != 0))
}

fn not_as_expected(path: &Path, why: &str) -> String {
    format!("found {} ({why}), expected a PEM file with certificates", path.display())
}

fn facts(chain: &[CertificateDer<'_>]) -> Result<CertificateFacts, String> {
    let own = chain.first().ok_or("no certificate in it")?;
    let (_, own) = X509Certificate::from_der(own).map_err(|error| error.to_string())?;
    let names = own.subject_alternative_name().ok().flatten().map(|names| &names.value.general_names);
    let names = names.into_iter().flatten().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into()),
        GeneralName::IPAddress(octets) => address(octets).map(|address| address.to_string().into()),
        _ => None,
    });
    let (not_before, not_after) = (own.validity().not_before.timestamp(), own.validity().not_after.timestamp());
    Ok(CertificateFacts { names: names.collect(), not_before, not_after })
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())
}

/// What is in the file, and its mode.
fn small_file(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let metadata = fs::metadata(path)?;
    // Opening a pipe that nobody writes to would hold up the start or a reload.
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut octets = Vec::new();
    if File::open(path)?.take(LARGEST + 1).read_to_end(&mut octets)? as u64 > LARGEST {
        return Err(io::Error::other(format!("larger than {} MiB", LARGEST >> 20)));
    }
    Ok((octets, metadata.mode()))
}
