//! Finds the service of a request: the longest path wins, then the more exact host.
//!
//! Paths are compared as they are sent, octet by octet, at segment boundaries; nothing is decoded. The cost does not
//! grow with the number of routes: one hash lookup for each length of route that ends at a segment boundary of the path.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::{Access, HostPattern, Route};
use crate::quota::RateLimit;

/// The longest host name that is looked up; DNS allows no longer one.
const MAX_HOST: usize = 255;

/// All routes, ready for lookup.
#[derive(Debug, Default)]
pub struct Router {
    any: Table,
    exact: HashMap<Arc<str>, Table>,
    /// By the name that the hosts are below.
    below: HashMap<Arc<str>, Table>,
    rules: Vec<Rules>,
}

/// Who may use a route, and how much.
#[derive(Debug)]
pub struct Rules {
    host: HostPattern,
    path: Arc<str>,
    pub access: Access,
    pub rate: Option<Arc<RateLimit>>,
}

impl Rules {
    /// A limit that has not changed goes on counting where it was.
    fn new(route: &Route, before: Option<&Rules>) -> Rules {
        let same = before.and_then(|rules| rules.rate.clone()).filter(|limit| Some(limit.rate()) == route.rate);
        let new = || route.rate.map(|rate| Arc::new(RateLimit::new(rate)));
        Rules {
            host: route.host.clone(),
            path: route.path.clone(),
            access: route.access.clone(),
            rate: same.or_else(new),
        }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Place of the service in the snapshot.
    pub service: usize,
    /// Octets to take off the front of the path.
    pub strip: usize,
    path_len: usize,
    rules: usize,
}

/// The routes of one host pattern.
#[derive(Debug, Default)]
struct Table {
    targets: HashMap<Arc<str>, Target>,
    /// Distinct lengths of the paths, longest first.
    lengths: Vec<usize>,
}

impl Router {
    /// `place` gives each service's place in the snapshot; `before` is the router that this one comes after.
    pub fn new(routes: &[Route], place: impl Fn(&str) -> Option<usize>, before: Option<&Router>) -> Router {
        let mut router = Router::default();
        let before: HashMap<_, _> =
            before.iter().flat_map(|before| &before.rules).map(|rules| ((&rules.host, &rules.path), rules)).collect();
        for route in routes {
            let Some(service) = place(&route.service) else { continue };
            let rules = router.rules.len();
            router.rules.push(Rules::new(route, before.get(&(&route.host, &route.path)).copied()));
            let table = match &route.host {
                HostPattern::Any => &mut router.any,
                HostPattern::Exact(host) => router.exact.entry(host.clone()).or_default(),
                HostPattern::Below(host) => router.below.entry(host.clone()).or_default(),
            };
            table.add(route, service, rules);
        }
        router
    }

    /// The target of a request for `path` (without query) at `host` (without port, any case).
    pub fn find(&self, host: &[u8], path: &str) -> Option<Target> {
        if self.exact.is_empty() && self.below.is_empty() {
            return self.any.find(path);
        }
        let mut lower = [0; MAX_HOST];
        let host = lower_case(host, &mut lower);
        let mut best: Option<Target> = None;
        for table in self.tables(host) {
            let found = table.find(path);
            if found.is_some_and(|found| best.is_none_or(|best| found.path_len > best.path_len)) {
                best = found;
            }
        }
        best
    }

    pub fn rules(&self, target: Target) -> &Rules {
        &self.rules[target.rules]
    }

    /// The tables that hold routes for `host`, the most exact first.
    fn tables<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Table> {
        let parents = host.match_indices('.').map(|(dot, _)| &host[dot + 1..]);
        let below =
            parents.take(if self.below.is_empty() { 0 } else { MAX_HOST }).filter_map(|name| self.below.get(name));
        self.exact.get(host).into_iter().chain(below).chain([&self.any])
    }
}

impl Table {
    fn add(&mut self, route: &Route, service: usize, rules: usize) {
        let path_len = if &*route.path == "/" { 0 } else { route.path.len() };
        let strip = if route.strip_prefix { path_len } else { 0 };
        self.targets.insert(route.path[..path_len].into(), Target { service, strip, path_len, rules });
        if let Err(place) = self.lengths.binary_search_by(|length| path_len.cmp(length)) {
            self.lengths.insert(place, path_len);
        }
    }

    fn find(&self, path: &str) -> Option<Target> {
        let bytes = path.as_bytes();
        let is_boundary = |length: usize| bytes.get(length).is_none_or(|&byte| byte == b'/');
        let prefixes = self.lengths.iter().filter(|&&length| length <= bytes.len() && is_boundary(length));
        prefixes.filter_map(|&length| self.targets.get(path.get(..length)?)).next().copied()
    }
}

/// `host` in lower case; empty when it is no name that a route could have.
fn lower_case<'a>(host: &[u8], buffer: &'a mut [u8; MAX_HOST]) -> &'a str {
    let Some(lower) = buffer.get_mut(..host.len()) else { return "" };
    lower.copy_from_slice(host);
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(host: &str, path: &str, service: usize) -> Route {
        let host = match host.strip_prefix("*.") {
            _ if host.is_empty() => HostPattern::Any,
            Some(name) => HostPattern::Below(name.into()),
            None => HostPattern::Exact(host.into()),
        };
        Route {
            host,
            path: path.into(),
            service: service.to_string().into(),
            strip_prefix: service % 2 == 1,
            access: Access::default(),
            rate: None,
        }
    }

    fn router(routes: &[Route]) -> Router {
        Router::new(routes, |name| name.parse().ok(), None)
    }

    fn found(router: &Router, host: &str, path: &str) -> Option<usize> {
        router.find(host.as_bytes(), path).map(|target| target.service)
    }

    #[test]
    fn a_prefix_matches_at_segment_boundaries_only() {
        let router = router(&[route("", "/api", 2)]);
        assert_eq!(found(&router, "h", "/api"), Some(2));
        assert_eq!(found(&router, "h", "/api/x"), Some(2));
        assert_eq!(found(&router, "h", "/apix"), None);
        assert_eq!(found(&router, "h", "/ap"), None);
        assert_eq!(found(&router, "h", "/"), None);
    }

    #[test]
    fn the_longest_path_wins_then_the_more_exact_host() {
        let router = router(&[
            route("", "/api/v1", 0),
            route("shop.example.com", "/api", 2),
            route("*.example.com", "/api", 4),
            route("*.com", "/api", 6),
            route("", "/", 8),
        ]);
        assert_eq!(found(&router, "shop.example.com", "/api/v1/x"), Some(0));
        assert_eq!(found(&router, "SHOP.example.com", "/api/v2"), Some(2));
        assert_eq!(found(&router, "a.b.example.com", "/api"), Some(4));
        assert_eq!(found(&router, "example.com", "/api"), Some(6));
        assert_eq!(found(&router, "com", "/api"), Some(8));
    }

    #[test]
    fn a_stripped_prefix_is_the_route_path() {
        let router = router(&[route("", "/api", 1), route("", "/", 3)]);
        assert_eq!(router.find(b"h", "/api/x").map(|target| target.strip), Some(4));
        assert_eq!(router.find(b"h", "/x").map(|target| target.strip), Some(0));
    }

    /// The rule of the contract, spelt out without any index.
    fn slow_find(routes: &[Route], host: &str, path: &str) -> Option<usize> {
        let exactness = |pattern: &HostPattern| match pattern {
            HostPattern::Any => Some(0),
            HostPattern::Exact(name) => (**name == *host).then_some(usize::MAX),
            HostPattern::Below(name) => host.ends_with(&format!(".{name}")).then_some(name.len()),
        };
        let is_prefix = |prefix: &str| {
            prefix == "/" || path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        let matching = routes.iter().filter(|route| is_prefix(&route.path));
        matching
            .filter_map(|route| Some((route.path.len(), exactness(&route.host)?, route)))
            .max_by_key(|(path, host, _)| (if *path == 1 { 0 } else { *path }, *host))
            .and_then(|(_, _, route)| route.service.parse().ok())
    }

    proptest! {
        #[test]
        fn finds_what_the_rule_says(
            routes in prop::collection::btree_map(("(|a\\.b|\\*\\.b|\\*\\.a\\.b|b)", "(/|(/[ab]{1,2}){1,3})"), 0usize..50, 0..12),
            host in "([ab]\\.){0,2}b",
            path in "(/[ab]{0,2}){1,4}",
        ) {
            let routes: Vec<Route> = routes.iter().map(|((host, path), service)| route(host, path, *service)).collect();
            prop_assert_eq!(found(&router(&routes), &host, &path), slow_find(&routes, &host, &path));
        }
    }
}
