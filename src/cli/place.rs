//! Where the admin API of the running proxy is, and the token that it wants.
//!
//! Both come from the command line or the environment, else from the config file. A file with a mistake in it still says
//! where the API is if its `[admin]` can be read: a typing error must not keep an operator from a rollback.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::cli::terminal::err;
use crate::cli::{Failure, Global, Remote, variable};
use crate::config::{self, Address, Config, Secret};

/// What `[admin] listen` is when nobody says otherwise.
const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9900);

/// An address to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// `host:port`; the host is resolved when connecting.
    Tcp(String),
    Unix(PathBuf),
}

/// The admin API as this command will call it.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) place: Place,
    pub(super) token: Option<Secret>,
}

impl Access {
    /// `remote` is what stands behind the command; it counts more than what stands before.
    pub(super) fn find(global: &Global, remote: &Remote) -> Result<Access, Failure> {
        let before = &global.remote;
        let admin = remote.admin.as_ref().or(before.admin.as_ref());
        let mut access = match given_place(admin)? {
            Some(place) => Access { place, token: token_beside(global) },
            None => from_file(global)?,
        };
        if let Some(token) = given_token(remote.token_file.as_deref().or(before.token_file.as_deref()))? {
            access.token = Some(token);
        }
        Ok(access)
    }
}

fn given_place(admin: Option<&Place>) -> Result<Option<Place>, Failure> {
    let Some(text) = variable("TEAL_ADMIN").filter(|_| admin.is_none()) else { return Ok(admin.cloned()) };
    let text = text.to_string_lossy();
    let place = text.parse().map_err(|expected| Failure::Usage(format!("$TEAL_ADMIN is {text:?}, {expected}")));
    place.map(Some)
}

/// The token on the command line or in the environment.
fn given_token(token_file: Option<&Path>) -> Result<Option<Secret>, Failure> {
    let (from, text) = match (token_file, variable("TEAL_TOKEN")) {
        (Some(path), _) => {
            let from = format!("token file {}", path.display());
            let text = fs::read_to_string(path).map_err(|error| Failure::Usage(format!("{from}: {error}")))?;
            (from, text)
        }
        (None, Some(text)) => ("$TEAL_TOKEN".to_owned(), text.to_string_lossy().into_owned()),
        (None, None) => return Ok(None),
    };
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|octet| octet.is_ascii_graphic()) {
        return Err(Failure::Usage(format!("{from}: expected the token, one line of visible ASCII characters")));
    }
    Ok(Some(Secret(token.into())))
}

/// The token of a config file that was named together with the address. That of a file which merely lies around is not
/// sent to an address that is not in it.
fn token_beside(global: &Global) -> Option<Secret> {
    let config = config::load(&global.named_config_file()?).ok()?;
    config.admin?.token
}

fn from_file(global: &Global) -> Result<Access, Failure> {
    let Some(path) = global.config_file() else {
        return Ok(Access { place: Place::Tcp(DEFAULT.to_string()), token: None });
    };
    let file = path.display();
    let (listen, token) = match config::load(&path) {
        Ok(Config { admin: Some(admin), .. }) => (admin.listen, admin.token),
        Ok(_) => return Err(Failure::Usage(format!("{file}: the admin API is off"))),
        Err(problems) => {
            let listen = listen_alone(&path).ok_or(Failure::Config(problems))?;
            err(&format!("teal: {file} has problems (see `teal check`), only its admin address is used\n"));
            (listen, None)
        }
    };
    let unknown = || format!("{file}: the port of the admin API is chosen at the start; name it with --admin");
    let place = Place::reaching(&listen).ok_or_else(|| Failure::Usage(unknown()))?;
    Ok(Access { place, token })
}

/// Where the API listens according to a file that is not valid as a whole.
fn listen_alone(path: &Path) -> Option<Address> {
    let file: toml::Table = fs::read_to_string(path).ok()?.parse().ok()?;
    match file.get("admin").map(|admin| admin.get("listen")) {
        None | Some(None) => Some(Address::Tcp(DEFAULT)),
        Some(Some(listen)) => listen.as_str()?.parse().ok(),
    }
}

impl Place {
    /// Where a client on this machine reaches what listens at `address`; `None` for a port that is not known yet.
    fn reaching(address: &Address) -> Option<Place> {
        let address = match address {
            Address::Unix(path) => return Some(Place::Unix(path.clone())),
            Address::Tcp(address) if address.port() == 0 => return None,
            Address::Tcp(address) => address,
        };
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Some(Place::Tcp(SocketAddr::new(ip, address.port()).to_string()))
    }

    /// The `Host` of a request.
    pub(super) fn host(&self) -> &str {
        match self {
            Place::Tcp(address) => address,
            Place::Unix(_) => "localhost",
        }
    }
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Place, &'static str> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Place::Unix(path.into()));
        }
        let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let port = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        match port {
            Some((host, 1..)) if is_host(host) => Ok(Place::Tcp(address.to_owned())),
            _ => Err("expected an address such as \"127.0.0.1:9900\" or \"unix:/run/teal/admin.sock\""),
        }
    }
}

/// A name or an IP address as it may stand before a port.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-._".contains(&octet)),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp(address) => f.write_str(address),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let tcp = |text: &str| Ok(Place::Tcp(text.to_owned()));
        assert_eq!("127.0.0.1:9900".parse(), tcp("127.0.0.1:9900"));
        assert_eq!("teal.internal:9900".parse(), tcp("teal.internal:9900"));
        assert_eq!("http://[::1]:9900/".parse(), tcp("[::1]:9900"));
        assert_eq!("unix:/run/a".parse(), Ok(Place::Unix("/run/a".into())));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "unix:", ":9900", "9900", "host", "host:0", "host:70000", "https://host:1", "::1:9900", "a/b:1"]
        {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_api_on_every_address_is_reached_by_loopback() {
        let reached = |text: &str| Place::reaching(&text.parse().unwrap()).map(|place| place.to_string());
        assert_eq!(reached("0.0.0.0:9900").as_deref(), Some("127.0.0.1:9900"));
        assert_eq!(reached("[::]:9900").as_deref(), Some("[::1]:9900"));
        assert_eq!(reached("10.0.0.1:9900").as_deref(), Some("10.0.0.1:9900"));
        assert_eq!(reached("unix:/run/a").as_deref(), Some("unix:/run/a"));
        assert_eq!(reached("127.0.0.1:0"), None);
    }
}
