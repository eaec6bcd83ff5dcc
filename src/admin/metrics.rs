//! `GET /metrics`: the counts of [`crate::metrics`] as Prometheus reads them.
//!
//! Labels come from the configuration, so their number is bounded by it. A count that has not moved is shown as zero:
//! a rate needs to see the step from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State as Extract;
use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use prometheus::TextEncoder;
use prometheus::core::Collector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::admin::app::{App, blocking};
use crate::admin::problem::Problem;
use crate::admin::view::{Seen, see};
use crate::config::Color;
use crate::metrics::{Class, ColorShard, ControlStats, Handshake, LATENCY_BOUNDS_US, ListenerStats, Rejection};
use crate::service::Kind;
use crate::state::State;
use crate::upstream::Endpoint;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[utoipa::path(
    get, path = "/metrics", tag = "process", summary = "Everything that is counted, for Prometheus",
    responses((status = 200, body = String, content_type = "text/plain", description = "Text format 0.0.4"))
)]
pub(super) async fn metrics(Extract(app): Extract<App>) -> Result<Response, Problem> {
    let text = blocking(move || {
        let mut families = families(&app.state);
        families.extend(app.process.collect());
        // An empty family is an error to the encoder.
        families.retain(|family| !family.get_metric().is_empty());
        TextEncoder::new().encode_to_string(&families).expect("every family has a name and a row")
    });
    Ok(([(CONTENT_TYPE, HeaderValue::from_static(TEXT))], text.await?).into_response())
}

fn families(state: &State) -> Vec<MetricFamily> {
    let services = see(state);
    let mut families = of_requests(&services);
    families.extend(of_colors(&services));
    families.extend(of_endpoints(&services));
    families.extend(of_switches(&state.stats));
    families.extend(of_listeners(&state.listeners()));
    families.extend(of_process(&state.stats));
    families
}

fn of_requests(services: &[Seen]) -> Vec<MetricFamily> {
    vec![
        counters(
            "teal_requests_total",
            "Requests that have ended, by the class of their status; cut: the answer began and did not end.",
            by_color(services).flat_map(|(seen, color)| {
                Class::LABELS.iter().enumerate().map(move |(place, class)| {
                    let labels = [("service", seen.name()), ("color", color.as_str()), ("class", class)];
                    counter(&labels, seen.sum(color, |shard| &shard.classes[place]))
                })
            }),
        ),
        family(
            "teal_request_seconds",
            "From the head of a request to the end of the body of its answer.",
            MetricType::HISTOGRAM,
            by_color(services).map(|(seen, color)| {
                let latency = std::array::from_fn(|place| seen.sum(color, |shard| &shard.latency[place]));
                histogram(&of_color(seen, color), latency, seen.sum(color, |shard| &shard.latency_sum_us))
            }),
        ),
        gauges(
            "teal_in_flight",
            "Requests and streams under way.",
            by_color(services).flat_map(|(seen, color)| {
                Kind::ALL.into_iter().zip(seen.in_flight(color)).map(move |(kind, count)| {
                    gauge(&[("service", seen.name()), ("color", color.as_str()), ("kind", kind.as_str())], count)
                })
            }),
        ),
        counters(
            "teal_retries_total",
            "Requests that were sent to a second endpoint after the first had failed them.",
            services.iter().map(|seen| counter(&[("service", seen.name())], load(&seen.stats.retries))),
        ),
    ]
}

fn of_colors(services: &[Seen]) -> Vec<MetricFamily> {
    vec![
        gauges(
            "teal_active",
            "1 for the color that takes the traffic, 0 for the idle one.",
            by_color(services).map(|(seen, color)| gauge(&of_color(seen, color), u64::from(seen.active == color))),
        ),
        gauges(
            "teal_generation",
            "Number of the active color's tenure; every switch adds one.",
            services.iter().map(|seen| gauge(&[("service", seen.name())], seen.number)),
        ),
    ]
}

fn of_endpoints(services: &[Seen]) -> Vec<MetricFamily> {
    vec![
        gauges(
            "teal_endpoint_healthy",
            "1 for an endpoint whose probes say that it is well, 0 for one that is not or has not been probed.",
            by_endpoint(services).map(|(labels, endpoint)| gauge(&labels, u64::from(endpoint.is_healthy()))),
        ),
        counters(
            "teal_endpoint_requests_total",
            "Requests sent to an endpoint, retries among them.",
            by_endpoint(services).map(|(labels, endpoint)| counter(&labels, endpoint.requests())),
        ),
        counters(
            "teal_upstream_connects_total",
            "Connections opened to endpoints, and those that could not be.",
            by_color(services).flat_map(|(seen, color)| {
                let row = |outcome, count: u64| {
                    counter(&[("service", seen.name()), ("color", color.as_str()), ("outcome", outcome)], count)
                };
                let failed = seen.sum(color, |shard| &shard.connect_failures);
                [row("ok", seen.sum(color, |shard| &shard.connects)), row("failed", failed)]
            }),
        ),
        gauges(
            "teal_upstream_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that a service shows to its endpoints expires, in seconds since 1970.",
            services.iter().filter_map(|seen| {
                let own = seen.config.own_certificate()?;
                let cert = own.cert.display().to_string();
                let end = u64::try_from(own.facts.not_after).unwrap_or(0);
                Some(gauge(&[("service", seen.name()), ("certificate", &*cert)], end))
            }),
        ),
    ]
}

fn of_switches(stats: &ControlStats) -> Vec<MetricFamily> {
    vec![
        counters(
            "teal_switches_total",
            "Switches asked for, by the color to switch to, by what asked, and by whether it was done or refused.",
            stats.switches().iter().map(|(service, to, trigger, outcome, count)| {
                let labels = [("service", &**service), ("to", to.as_str()), ("trigger", trigger), ("outcome", outcome)];
                counter(&labels, *count)
            }),
        ),
        family(
            "teal_switch_seconds",
            "From the call of a switch to the moment when the new color is in effect.",
            MetricType::HISTOGRAM,
            [histogram(&[], stats.switch_latency.each_ref().map(load), load(&stats.switch_latency_sum_us))],
        ),
        counters(
            "teal_drain_streams_total",
            "Requests and streams open at a switch, by whether they finished or the drain's timeout cut them.",
            stats.drains().iter().map(|(service, kind, outcome, count)| {
                counter(&[("service", &**service), ("kind", kind), ("outcome", outcome)], *count)
            }),
        ),
    ]
}

fn of_listeners(listeners: &[(String, Arc<ListenerStats>)]) -> Vec<MetricFamily> {
    vec![
        gauges(
            "teal_connections",
            "Client connections that are open.",
            listeners.iter().map(|(address, stats)| {
                let open = u64::try_from(stats.connections.load(Ordering::Relaxed)).unwrap_or_default();
                gauge(&[("listener", address)], open)
            }),
        ),
        counters(
            "teal_rejected_total",
            "Requests and connections that teal itself turned away, by reason.",
            listeners.iter().flat_map(|(address, stats)| {
                let row = |why: Rejection| {
                    counter(&[("listener", &**address), ("reason", why.as_str())], stats.rejected(why))
                };
                Rejection::ALL.map(row)
            }),
        ),
        gauges(
            "teal_tls_certificate_expiry_timestamp_seconds",
            "When a certificate expires, in seconds since 1970.",
            listeners.iter().flat_map(|(address, stats)| {
                let tls = stats.tls.load_full();
                let certificates = tls.iter().flat_map(|tls| &tls.certificates);
                // One that is named twice is one.
                let ends: BTreeMap<_, _> =
                    certificates.map(|one| (one.cert.display().to_string(), one.facts.not_after)).collect();
                let row = |(cert, end): (String, i64)| {
                    gauge(&[("listener", &**address), ("certificate", &*cert)], u64::try_from(end).unwrap_or(0))
                };
                ends.into_iter().map(row).collect::<Vec<_>>()
            }),
        ),
        counters(
            "teal_tls_handshakes_total",
            "TLS handshakes that clients began, by how they ended.",
            listeners.iter().flat_map(|(address, stats)| {
                let row = |outcome: Handshake| {
                    let labels = [("listener", &**address), ("outcome", outcome.as_str())];
                    counter(&labels, stats.handshakes(outcome))
                };
                Handshake::ALL.map(row)
            }),
        ),
    ]
}

fn of_process(stats: &ControlStats) -> Vec<MetricFamily> {
    let reloads = [("applied", load(&stats.reloads_applied)), ("rejected", load(&stats.reloads_rejected))];
    vec![
        counters(
            "teal_config_reloads_total",
            "Reloads of the config file; a rejected one changed nothing, and the status says why.",
            reloads.into_iter().map(|(outcome, count)| counter(&[("outcome", outcome)], count)),
        ),
        gauges(
            "teal_build_info",
            "1, labelled with what is running.",
            [gauge(&[("version", super::VERSION), ("commit", super::COMMIT)], 1)],
        ),
    ]
}

fn by_color(services: &[Seen]) -> impl Iterator<Item = (&Seen, Color)> {
    services.iter().flat_map(|seen| Color::BOTH.map(|color| (seen, color)))
}

fn by_endpoint(services: &[Seen]) -> impl Iterator<Item = ([(&'static str, &str); 3], &Endpoint)> {
    by_color(services).flat_map(|(seen, color)| {
        seen.pools[color].endpoints().iter().map(move |endpoint| {
            let labels = [("service", seen.name()), ("color", color.as_str()), ("endpoint", &**endpoint.name())];
            (labels, &**endpoint)
        })
    })
}

fn of_color(seen: &Seen, color: Color) -> [(&'static str, &str); 2] {
    [("service", seen.name()), ("color", color.as_str())]
}

impl Seen {
    fn sum(&self, color: Color, pick: impl Fn(&ColorShard) -> &AtomicU64) -> u64 {
        self.stats.shards(color).map(|shard| load(pick(shard))).fold(0, u64::wrapping_add)
    }
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

fn counters(name: &str, help: &str, rows: impl IntoIterator<Item = Metric>) -> MetricFamily {
    family(name, help, MetricType::COUNTER, rows)
}

fn gauges(name: &str, help: &str, rows: impl IntoIterator<Item = Metric>) -> MetricFamily {
    family(name, help, MetricType::GAUGE, rows)
}

fn family(name: &str, help: &str, kind: MetricType, rows: impl IntoIterator<Item = Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(rows.into_iter().collect());
    family
}

fn counter(labels: &[(&str, &str)], count: u64) -> Metric {
    let mut value = Counter::default();
    value.set_value(count as f64);
    let mut metric = row(labels);
    metric.set_counter(value);
    metric
}

fn gauge(labels: &[(&str, &str)], count: u64) -> Metric {
    let mut value = Gauge::default();
    value.set_value(count as f64);
    let mut metric = row(labels);
    metric.set_gauge(value);
    metric
}

/// `counts` by [`LATENCY_BOUNDS_US`], not cumulative, the unbounded one last.
fn histogram(labels: &[(&str, &str)], counts: [u64; LATENCY_BOUNDS_US.len() + 1], sum_us: u64) -> Metric {
    let mut seen = 0;
    let bucket = |(bound, count): (u64, u64)| {
        seen += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(seconds(bound));
        bucket.set_cumulative_count(seen);
        bucket
    };
    let mut value = Histogram::default();
    value.set_bucket(LATENCY_BOUNDS_US.into_iter().zip(counts).map(bucket).collect());
    value.set_sample_count(counts.iter().sum());
    value.set_sample_sum(seconds(sum_us));
    let mut metric = row(labels);
    metric.set_histogram(value);
    metric
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn row(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}
