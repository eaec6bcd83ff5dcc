//! What it costs to find the service of a request among 1, 100 and 10,000 routes.
//!
//! `cargo bench --bench route -- [--doc FILE]`
//!
//! Routes are spread over hosts and paths, requests over routes, in an order that the caches cannot guess. The
//! figures are nanoseconds per lookup, the median and the least of many batches; a lookup that finds the wrong
//! service ends the bench.

mod support;

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use teal::config::{Access, HostPattern, Route};
use teal::router::Router;

use support::contestant::route;
use support::document;
use support::stats::quantile;

const BATCHES: usize = 200;
const LOOKUPS: usize = 10_000;

#[derive(Parser)]
struct Options {
    /// A page to put the table into, between its marks `route`
    #[arg(long)]
    doc: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    if !support::is_bench() {
        println!("nothing measured: use cargo bench");
        return Ok(());
    }
    let options = Options::parse();
    let mut table = "| routes | request | median ns | least ns |\n|---:|---|---:|---:|\n".to_owned();
    for routes in [1, 100, 10_000] {
        let router = router(routes);
        table += &measure(routes, "found", &router, &requests(routes, ""))?;
        table += &measure(routes, "host unknown", &router, &requests(routes, "not-"))?;
    }
    print!("{table}");
    options.doc.map_or(Ok(()), |file| document::put(&file, "route", &table))
}

/// Route n leads to service n.
fn router(routes: usize) -> Router {
    let written = |number| {
        let (host, path) = route(number);
        let service = number.to_string().into();
        Route {
            host: HostPattern::Exact(host.into()),
            path: path.into(),
            service,
            strip_prefix: false,
            access: Access::default(),
            rate: None,
        }
    };
    Router::new(&(0..routes).map(written).collect::<Vec<_>>(), |service| service.parse().ok(), None)
}

struct Request {
    host: String,
    path: String,
    service: Option<usize>,
}

fn requests(routes: usize, before_host: &str) -> Vec<Request> {
    let request = |_| {
        let number = fastrand::usize(..routes);
        let (host, path) = route(number);
        let service = before_host.is_empty().then_some(number);
        Request { host: format!("{before_host}{host}"), path: format!("{path}/item/17"), service }
    };
    (0..LOOKUPS).map(request).collect()
}

fn measure(routes: usize, what: &str, router: &Router, requests: &[Request]) -> Result<String> {
    for request in requests {
        let found = router.find(request.host.as_bytes(), &request.path).map(|target| target.service);
        ensure!(found == request.service, "{}{} leads to {found:?}", request.host, request.path);
    }
    let mut batches: Vec<f64> = (0..BATCHES).map(|_| batch(router, requests)).collect();
    let (median, least) = (quantile(&mut batches, 0.5), quantile(&mut batches, 0.0));
    Ok(format!("| {routes} | {what} | {median:.1} | {least:.1} |\n"))
}

/// Nanoseconds per lookup over one pass.
fn batch(router: &Router, requests: &[Request]) -> f64 {
    let began = Instant::now();
    for request in requests {
        black_box(router.find(black_box(request.host.as_bytes()), black_box(&request.path)));
    }
    began.elapsed().as_secs_f64() * 1e9 / requests.len() as f64
}
