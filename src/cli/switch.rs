//! `teal switch` and `teal rollback`: ask for it, say what happened, and wait for the drain if that is wanted.
//!
//! Several services go in one step or not at all. The API rolls back one service at a time, so a rollback of several is
//! rehearsed service by service and then done as one switch that expects just the colors that the rehearsal found: if
//! anybody switches in between, it is refused and nothing has changed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use http::HeaderValue;
use serde::Serialize;
use tokio::time::Instant;

use crate::cli::client::{Client, ClientError, segment};
use crate::cli::drain::{account, follow, is_open};
use crate::cli::place::Access;
use crate::cli::terminal::{Paint, Style, counted, micros, out};
use crate::cli::{Failure, Global, Remote, block_on, pretty, variable};
use crate::config::{self, Color};
use crate::state::{Receipt, ServiceSwitch};

/// How much longer than `--timeout` an answer may take.
const MARGIN: Duration = Duration::from_secs(10);

#[derive(clap::Args, Debug)]
pub(super) struct SwitchOptions {
    #[command(flatten)]
    which: Which,
    /// The color to make active
    #[arg(value_parser = color())]
    color: Color,
    #[command(flatten)]
    how: How,
}

#[derive(clap::Args, Debug)]
pub(super) struct RollbackOptions {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    how: How,
}

impl SwitchOptions {
    pub(super) fn is_json(&self) -> bool {
        self.how.json
    }
}

impl RollbackOptions {
    pub(super) fn is_json(&self) -> bool {
        self.how.json
    }
}

#[derive(clap::Args, Debug)]
struct Which {
    /// One service, or several that go in one step
    #[arg(value_name = "SERVICE[,SERVICE…]", required = true, num_args = 1, value_delimiter = ',')]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    services: Vec<String>,
}

#[derive(clap::Args, Debug)]
struct How {
    /// Refuse unless this color is active now
    #[arg(long, value_name = "COLOR", value_parser = color())]
    expect_active: Option<Color>,
    /// When to return: as soon as all new requests go to the new color, or when the old one is left by everybody
    #[arg(long, value_enum, default_value_t = Wait::Switched)]
    wait: Wait,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    timeout: Duration,
    /// How to switch [default: from the config file of the proxy]
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Switch although the target has too few healthy endpoints
    #[arg(long)]
    force: bool,
    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Why; kept in the receipt
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Idempotency key: a second call with the same key gets the receipt of the first
    #[arg(long, value_name = "KEY", value_parser = key)]
    key: Option<HeaderValue>,
    /// Who; kept in the receipt [default: $USER]
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Print the receipt, or what was refused, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    Switched,
    Drained,
}

#[derive(ValueEnum, Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Instant,
    Fence,
}

/// The body of a call.
#[derive(Serialize, Debug)]
struct Body<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    services: BTreeMap<&'a str, Color>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    expect: BTreeMap<&'a str, Color>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    force: bool,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<Cow<'a, str>>,
}

/// # Errors
/// A refusal, an unreachable proxy, or a drain that takes too long.
pub(super) fn switch(global: &Global, options: SwitchOptions) -> Result<(), Failure> {
    let SwitchOptions { which, color, how } = options;
    perform(global, &which, &how, async |client| {
        let mut body = how.body(&which);
        body.services = which.each(color);
        client.post("/v1/switch", &body, how.key.as_ref()).await
    })
}

/// # Errors
/// As [`switch`].
pub(super) fn rollback(global: &Global, options: RollbackOptions) -> Result<(), Failure> {
    let RollbackOptions { which, how } = options;
    let names = which.names();
    if how.key.is_some() && names.len() > 1 {
        // A second rehearsal would find the other direction, and so be another request.
        let advice = "--key needs a rollback of one service; for several, `teal switch` with --key does the same";
        return Err(Failure::Usage(advice.to_owned()));
    }
    perform(global, &which, &how, async |client| match names.iter().next() {
        Some(one) if names.len() == 1 => client.post(&rollback_of(one), &how.body(&which), how.key.as_ref()).await,
        _ => rollback_together(client, &which, &how).await,
    })
}

async fn rollback_together(client: &Client, which: &Which, how: &How) -> Result<Receipt, ClientError> {
    let mut found = Vec::new();
    for service in which.names() {
        let only = Which { services: vec![service.to_owned()] };
        let rehearsal = Body { dry_run: true, ..how.body(&only) };
        let receipt: Receipt = client.post(&rollback_of(service), &rehearsal, None).await?;
        found.extend(receipt.services);
    }
    let colors = |of: fn(&ServiceSwitch) -> Color| found.iter().map(|step| (&*step.service, of(step))).collect();
    let body = Body { services: colors(|step| step.to), expect: colors(|step| step.from), ..how.body(which) };
    client.post("/v1/switch", &body, None).await
}

fn rollback_of(service: &str) -> String {
    format!("/v1/services/{}/rollback", segment(service))
}

/// Calls, waits if that is wanted, and reports in the form that was asked for.
fn perform(
    global: &Global,
    which: &Which,
    how: &How,
    call: impl AsyncFnOnce(&Client) -> Result<Receipt, ClientError>,
) -> Result<(), Failure> {
    let client = Client::new(Access::find(global, &how.remote)?, how.timeout + MARGIN);
    block_on(async {
        let deadline = Instant::now() + how.timeout;
        let mut receipt = call(&client).await?;
        if !how.json {
            out(&told(&receipt, which, Paint::stdout()));
        }
        let waited = match how.wait {
            Wait::Switched => Ok(()),
            Wait::Drained => wait_drained(&client, &mut receipt, which, deadline).await,
        };
        match how.wait {
            _ if how.json => out(&pretty(&receipt)),
            Wait::Switched => {}
            Wait::Drained => out(&account(&receipt, Paint::stdout())),
        }
        waited
    })
}

/// Waits for the drain of the switch, and for those under way of services that were at their color already: done means
/// that nobody is left behind, whichever call it was that switched.
async fn wait_drained(client: &Client, receipt: &mut Receipt, which: &Which, deadline: Instant) -> Result<(), Failure> {
    let mut earlier = if receipt.dry_run { Vec::new() } else { earlier_drains(client, receipt, which).await? };
    follow(client, receipt, deadline).await?;
    for receipt in &mut earlier {
        follow(client, receipt, deadline).await?;
    }
    Ok(())
}

async fn earlier_drains(client: &Client, receipt: &Receipt, which: &Which) -> Result<Vec<Receipt>, ClientError> {
    let mut drains = Vec::new();
    for service in which.names().into_iter().filter(|name| !has_switched(receipt, name)) {
        match client.get::<Receipt>(&format!("/v1/services/{}/drain", segment(service))).await {
            Ok(receipt) => drains.extend(is_open(&receipt).then_some(receipt)),
            Err(ClientError::Refused(problem)) if problem.status == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(drains)
}

fn has_switched(receipt: &Receipt, service: &str) -> bool {
    receipt.services.iter().any(|step| step.service == service)
}

/// What happened, in one line for each service and one for all if there are several.
fn told(receipt: &Receipt, which: &Which, paint: Paint) -> String {
    let end = match receipt.dry_run {
        true => " · dry run, nothing was changed".to_owned(),
        false => format!(" in {} · receipt {}", micros(receipt.took_us), receipt.id),
    };
    let mut lines: Vec<String> = receipt.services.iter().map(|step| step_told(step, paint)).collect();
    match lines.as_mut_slice() {
        [] => {}
        [only] => only.push_str(&end),
        all => {
            let count = counted(all.len(), "service");
            lines.push(format!("{count} in one step{end}"));
        }
    }
    let unchanged = which.names().into_iter().filter(|name| !has_switched(receipt, name));
    lines.extend(unchanged.map(|name| format!("{name}: nothing to do, it is at this color already")));
    lines.join("\n") + "\n"
}

fn step_told(step: &ServiceSwitch, paint: Paint) -> String {
    let ServiceSwitch { service, from, to, generation } = step;
    let service = paint.paint(Style::Bold, service);
    format!("{service}: {} → {} (generation {generation})", paint.color(*from), paint.color(*to))
}

impl Which {
    /// Each service once.
    fn names(&self) -> BTreeSet<&str> {
        self.services.iter().map(String::as_str).collect()
    }

    fn each(&self, color: Color) -> BTreeMap<&str, Color> {
        self.names().into_iter().map(|name| (name, color)).collect()
    }
}

impl How {
    /// The body of a call but for the colors to go to.
    fn body<'a>(&'a self, which: &'a Which) -> Body<'a> {
        Body {
            services: BTreeMap::new(),
            expect: self.expect_active.map(|color| which.each(color)).unwrap_or_default(),
            mode: self.mode,
            force: self.force,
            dry_run: self.dry_run,
            reason: self.reason.as_deref(),
            actor: self.actor(),
        }
    }

    fn actor(&self) -> Option<Cow<'_, str>> {
        let user = || variable("USER").map(|user| user.to_string_lossy().into_owned().into());
        self.actor.as_deref().map(Cow::from).or_else(user)
    }
}

fn color() -> impl TypedValueParser<Value = Color> {
    PossibleValuesParser::new(Color::BOTH.map(Color::as_str)).try_map(|text| text.parse::<Color>())
}

fn duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).map_err(|expected| format!("expected {}", expected.0))
}

fn key(text: &str) -> Result<HeaderValue, &'static str> {
    HeaderValue::from_str(text).ok().filter(|key| !key.is_empty()).ok_or("expected a line of ASCII characters")
}

#[cfg(test)]
mod tests {
    use crate::state::Trigger;

    use super::*;

    fn receipt(services: &[&str]) -> Receipt {
        let step = |service: &&str| ServiceSwitch {
            service: (*service).to_owned(),
            from: Color::Blue,
            to: Color::Green,
            generation: 7,
        };
        Receipt {
            id: "0190".to_owned(),
            at: String::new(),
            trigger: Trigger::Cli,
            actor: None,
            reason: None,
            mode: config::Mode::Instant,
            took_us: 300,
            dry_run: false,
            services: services.iter().map(step).collect(),
            drain: None,
        }
    }

    fn told_of(switched: &[&str], asked: &[&str]) -> String {
        let which = Which { services: asked.iter().map(|name| (*name).to_owned()).collect() };
        told(&receipt(switched), &which, Paint::plain())
    }

    #[test]
    fn one_service_is_one_line() {
        assert_eq!(told_of(&["api"], &["api"]), "api: blue → green (generation 7) in 300 µs · receipt 0190\n");
    }

    #[test]
    fn several_services_are_one_step() {
        let text = told_of(&["api", "web"], &["web", "api", "web", "old"]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[2], "2 services in one step in 300 µs · receipt 0190");
        assert_eq!(lines[3], "old: nothing to do, it is at this color already");
    }

    #[test]
    fn rehearsal_says_so() {
        let which = Which { services: vec!["api".to_owned()] };
        let text = told(&Receipt { dry_run: true, ..receipt(&["api"]) }, &which, Paint::plain());
        assert_eq!(text, "api: blue → green (generation 7) · dry run, nothing was changed\n");
    }
}
