//! Who may come in: everything that is checked before a request reaches its handler.
//!
//! A page in the browser of an operator must not be able to use the API, neither by a name that it points at us (DNS
//! rebinding: `Host`) nor from its own place (`Origin`, `Sec-Fetch-Site`). Everybody else needs the token, if there is
//! one, except for asking whether the process lives and is ready.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method};
use subtle::ConstantTimeEq;

use crate::admin::app::App;
use crate::admin::extract::discard;
use crate::admin::problem::Problem;
use crate::config::{self, Address, Secret};

/// Paths that need no token.
const PUBLIC: [&str; 2] = ["/livez", "/readyz"];

/// The address of this end of the connection on which a request came; none for a unix socket.
#[derive(Clone, Copy)]
pub(super) struct Local(pub(super) Option<SocketAddr>);

/// What a request has to show.
pub(super) struct Access {
    listen: Address,
    token: Option<Secret>,
    allowed_hosts: Vec<String>,
}

/// Lets a request in or answers it.
pub(super) async fn pass(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = match app.access.check(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => {
            discard(request.into_body()).await;
            problem.into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl Access {
    /// `listen` has the real port.
    pub(super) fn new(config: &config::Admin, listen: Address) -> Access {
        Access { listen, token: config.token.clone(), allowed_hosts: config.allowed_hosts.clone() }
    }

    fn check<B>(&self, request: &http::Request<B>) -> Result<(), Problem> {
        let local = request.extensions().get::<Local>().and_then(|local| local.0);
        let headers = request.headers();
        self.check_host(headers, request.uri().authority(), local)?;
        self.check_origin(headers, local)?;
        let is_cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
        if is_cross_site && ![Method::GET, Method::HEAD].contains(request.method()) {
            return Err(Problem::cross_site("a page of another site may change nothing here"));
        }
        if PUBLIC.contains(&request.uri().path()) || self.has_token(headers) {
            return Ok(());
        }
        Err(Problem::unauthorized())
    }

    /// Any `Host` will do on a unix socket: no browser can be made to use one.
    fn check_host(
        &self,
        headers: &HeaderMap,
        target: Option<&Authority>,
        local: Option<SocketAddr>,
    ) -> Result<(), Problem> {
        if matches!(self.listen, Address::Unix(_)) {
            return Ok(());
        }
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(Problem::malformed("one Host header is needed (RFC 9112 section 3.2)"));
        };
        let host =
            Authority::try_from(host.as_bytes()).map_err(|_| Problem::malformed("the Host header is no host"))?;
        // A target in absolute form counts more than Host, but not here.
        match [Some(&host), target].into_iter().flatten().find(|host| !self.is_ours(host, 80, local)) {
            None => Ok(()),
            Some(other) => Err(Problem::misdirected(format!(
                "{other} is not this admin API: use {} or list the name in admin.allowed_hosts",
                self.listen
            ))),
        }
    }

    fn check_origin(&self, headers: &HeaderMap, local: Option<SocketAddr>) -> Result<(), Problem> {
        let is_ours = |origin: &HeaderValue| {
            let origin = origin.to_str().unwrap_or_default();
            let (port, host) = match origin.split_once("://") {
                Some(("http", host)) => (80, host),
                Some(("https", host)) => (443, host),
                _ => return false,
            };
            host.parse().is_ok_and(|host| self.is_ours(&host, port, local))
        };
        if headers.get_all(ORIGIN).iter().all(is_ours) {
            return Ok(());
        }
        Err(Problem::cross_site("this Origin is not listed in admin.allowed_hosts"))
    }

    fn is_ours(&self, authority: &Authority, default_port: u16, local: Option<SocketAddr>) -> bool {
        let Some((host, port)) = split(authority, default_port) else { return false };
        let with_port = format!("{host}:{port}");
        if self.allowed_hosts.iter().any(|allowed| *allowed == host || *allowed == with_port) {
            return true;
        }
        let Address::Tcp(listen) = self.listen else { return false };
        let names_us = match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            // An address cannot be rebound: it is where the client connected to, or the client lies to itself.
            Ok(ip) => {
                is_loopback_literal(ip) || ip == canonical(listen.ip()) || local.map(|l| canonical(l.ip())) == Some(ip)
            }
            Err(_) => host == "localhost",
        };
        names_us && port == listen.port()
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let sent = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        sent.is_some_and(|sent| sent.ct_eq(token.0.as_bytes()).into())
    }
}

fn is_loopback_literal(ip: IpAddr) -> bool {
    ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::from(std::net::Ipv6Addr::LOCALHOST)
}

/// Host in lower case, and port.
fn split(authority: &Authority, default_port: u16) -> Option<(String, u16)> {
    let host = authority.host();
    // Anything before the host would be user information, which has no business here.
    let rest = authority.as_str().strip_prefix(host)?;
    let port = match rest.strip_prefix(':') {
        Some(digits) => digits.parse().ok()?,
        None => default_port,
    };
    Some((host.to_ascii_lowercase(), port))
}

fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// What follows `Bearer`, whose case does not matter (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: Option<SocketAddr> = Some(SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7)), 9900));

    fn access(listen: &str, allowed: &[&str]) -> Access {
        let allowed_hosts = allowed.iter().map(|host| (*host).to_owned()).collect();
        Access { listen: listen.parse().expect("an address"), token: None, allowed_hosts }
    }

    fn check(access: &Access, uri: &str, headers: &[(&str, &str)]) -> Result<(), Problem> {
        let mut request = http::Request::post(uri).extension(Local(LOCAL));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        access.check(&request.body(()).expect("a request"))
    }

    fn is_host_ours(access: &Access, host: &str) -> bool {
        check(access, "/v1/switch", &[("host", host)]).is_ok()
    }

    fn is_origin_ours(access: &Access, origin: &str) -> bool {
        check(access, "/v1/switch", &[("host", "localhost:9900"), ("origin", origin)]).is_ok()
    }

    #[test]
    fn hosts_that_are_ours() {
        let access = access("0.0.0.0:9900", &["teal-admin", "edge.example.com:443"]);
        let ours =
            ["localhost:9900", "LocalHost:9900", "127.0.0.1:9900", "[::1]:9900", "10.0.0.7:9900", "0.0.0.0:9900"];
        for host in ours.into_iter().chain(["teal-admin", "teal-admin:80", "TEAL-ADMIN:1", "edge.example.com:443"]) {
            assert!(is_host_ours(&access, host), "{host}");
        }
    }

    #[test]
    fn hosts_that_are_not_ours() {
        let access = access("127.0.0.1:9900", &["edge.example.com:443"]);
        let others =
            ["evil.example:9900", "localhost", "localhost:9901", "127.0.0.1", "127.0.0.2:9900", "localhost:99999"];
        let tricks =
            ["localhost:9900@evil.example:9900", "u@localhost:9900", "localhost.:9900", "localhost.evil.example:9900"];
        for host in others.into_iter().chain(tricks).chain(["edge.example.com", "", "a b", "10.0.0.8:9900"]) {
            assert!(!is_host_ours(&access, host), "{host}");
        }
        assert!(check(&access, "/v1/switch", &[]).is_err());
        assert!(check(&access, "/v1/switch", &[("host", "localhost:9900"), ("host", "localhost:9900")]).is_err());
        assert!(check(&access, "http://evil.example/v1/switch", &[("host", "localhost:9900")]).is_err());
        assert!(check(&access, "http://localhost:9900/v1/switch", &[("host", "localhost:9900")]).is_ok());
    }

    #[test]
    fn origins() {
        let access = access("127.0.0.1:9900", &["edge.example.com"]);
        for origin in
            ["http://localhost:9900", "http://127.0.0.1:9900", "https://edge.example.com", "http://[::1]:9900"]
        {
            assert!(is_origin_ours(&access, origin), "{origin}");
        }
        for origin in ["null", "http://localhost:3000", "http://localhost", "https://evil.example", "", "file://", "x"]
        {
            assert!(!is_origin_ours(&access, origin), "{origin}");
        }
    }

    #[test]
    fn a_unix_socket_takes_any_host_but_no_unknown_origin() {
        let access = access("unix:/run/teal.sock", &["edge.example.com"]);
        assert!(is_host_ours(&access, "whatever"));
        assert!(check(&access, "/v1/switch", &[("origin", "https://edge.example.com")]).is_ok());
        assert!(check(&access, "/v1/switch", &[("origin", "http://localhost")]).is_err());
    }

    #[test]
    fn bearer_tokens() {
        let token = Some(Secret("s3cret".into()));
        let access = Access { token, ..access("unix:/run/teal.sock", &[]) };
        let check = |uri: &str, value: &str| check(&access, uri, &[("authorization", value)]).is_ok();
        for good in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret"] {
            assert!(check("/v1/status", good), "{good}");
        }
        for bad in
            ["", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret", "Bearer S3CRET"]
        {
            assert!(!check("/v1/status", bad), "{bad}");
            assert!(check("/livez", bad), "{bad}");
        }
        assert!(!check("/livez/x", ""));
    }
}
