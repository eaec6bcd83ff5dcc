//! What rows of contestants measured, as it is printed and as it is stored in JSON, from which the chart is drawn.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::contestant::Name;
use super::machine::Machine;
use super::stats::median;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) rows: Vec<Row>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) title: String,
    /// What a value counts, e.g. "CPU µs per request".
    pub(crate) unit: String,
    pub(crate) results: Vec<Outcome>,
    /// Why this row proves nothing, if it does not.
    pub(crate) void: Vec<String>,
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) contestant: String,
    /// One value per round; the n-th values of all contestants belong to the same round.
    pub(crate) per_round: Vec<f64>,
    pub(crate) median: f64,
    /// Medians of the per-round ratios: to the peer that is cheaper in the median, and to the relay.
    pub(crate) to_peer: Option<f64>,
    pub(crate) to_relay: Option<f64>,
    /// Units per second, and the share of its core that the contestant was busy; medians.
    pub(crate) per_second: Option<f64>,
    pub(crate) busy: Option<f64>,
}

impl Report {
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("writing {}", file.display()))
    }
}

impl Report {
    /// All rows in one Markdown table: medians, and how teal compares.
    pub(crate) fn table(&self) -> String {
        let contestants: Vec<Name> =
            Name::ALL.into_iter().filter(|name| self.rows.iter().any(|row| row.outcome(*name).is_some())).collect();
        let titles: Vec<_> = contestants.iter().map(|name| name.as_str()).collect();
        let mut table = format!("{}; {} rounds of {} s each.\n\n", self.machine, self.rounds, self.seconds);
        let has_relay = contestants.contains(&Name::Relay);
        let (relay, line) = if has_relay { (" to the relay |", "---:|") } else { ("", "") };
        table += &format!("| | {} | teal to the cheaper peer |{relay}\n", titles.join(" | "));
        table += &format!("|---|{}---:|{line}\n", "---:|".repeat(titles.len()));
        for row in &self.rows {
            table += &row.line(&contestants);
        }
        table
    }
}

impl Row {
    /// A row without results, called as on the command line.
    pub(crate) fn new(kind: &impl ValueEnum, title: &str, unit: &str) -> Self {
        let name = kind.to_possible_value().expect("no row is hidden").get_name().to_owned();
        let (results, void, notes) = Default::default();
        Row { name, title: title.into(), unit: unit.into(), results, void, notes }
    }

    fn line(&self, contestants: &[Name]) -> String {
        let value = |name: &Name| self.outcome(*name).map_or("–".into(), |outcome| figure(outcome.median));
        let values: Vec<String> = contestants.iter().map(value).collect();
        let teal = self.outcome(Name::Teal);
        let ratio =
            |of: fn(&Outcome) -> Option<f64>| teal.and_then(of).map_or("–".into(), |ratio| format!("{ratio:.2}"));
        let peer = ratio(|teal| teal.to_peer);
        let has_relay = contestants.contains(&Name::Relay);
        let relay = if has_relay { format!(" {} |", ratio(|teal| teal.to_relay)) } else { String::new() };
        let void = if self.void.is_empty() { "" } else { ", **void**" };
        format!("| {} ({}{void}) | {} | {peer} |{relay}\n", self.title, self.unit, values.join(" | "))
    }

    /// Fills in the medians and ratios, once all rounds are there.
    pub(crate) fn conclude(&mut self) {
        let cheapest = |is_wanted: fn(Name) -> bool| {
            let wanted = Name::ALL.into_iter().filter(|name| is_wanted(*name)).filter_map(|name| self.outcome(name));
            wanted.min_by(|a, b| median(&a.per_round).total_cmp(&median(&b.per_round))).cloned()
        };
        let (peer, relay) = (cheapest(Name::is_peer), cheapest(|name| name == Name::Relay));
        for result in &mut self.results {
            result.median = median(&result.per_round);
            result.to_peer = peer.as_ref().map(|peer| ratio(result, peer));
            result.to_relay = relay.as_ref().map(|relay| ratio(result, relay));
        }
    }

    pub(crate) fn outcome(&self, name: Name) -> Option<&Outcome> {
        self.results.iter().find(|result| result.contestant == name.as_str())
    }

    /// A table as Markdown, which a terminal shows well enough.
    pub(crate) fn print(&self) {
        println!("\n### {} ({})", self.title, self.unit);
        println!("| | median | rounds | to cheaper peer | to relay | per second | core busy |");
        println!("|---|---:|---|---:|---:|---:|---:|");
        for result in &self.results {
            println!("{}", result.line());
        }
        self.notes.iter().for_each(|note| println!("note: {note}"));
        self.void.iter().for_each(|reason| println!("VOID: {reason}"));
    }
}

impl Outcome {
    /// The values of a contestant; [`Row::conclude`] fills in what follows from them.
    pub(crate) fn of(name: Name, per_round: Vec<f64>) -> Self {
        let contestant = name.as_str().to_owned();
        Self { contestant, per_round, median: 0.0, to_peer: None, to_relay: None, per_second: None, busy: None }
    }

    fn line(&self) -> String {
        let rounds = self.per_round.iter().map(|value| figure(*value)).collect::<Vec<_>>().join(" ");
        let ratio = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.2}"));
        let per_second = self.per_second.map_or("–".into(), |value| format!("{value:.0}"));
        let busy = self.busy.map_or("–".into(), |share| format!("{:.0} %", share * 100.0));
        let (peer, relay) = (ratio(self.to_peer), ratio(self.to_relay));
        format!(
            "| {} | {} | {rounds} | {peer} | {relay} | {per_second} | {busy} |",
            self.contestant,
            figure(self.median)
        )
    }
}

/// Three significant digits or so.
pub(crate) fn figure(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// The median over the rounds of the ratio within a round.
fn ratio(one: &Outcome, other: &Outcome) -> f64 {
    let ratios: Vec<f64> = one.per_round.iter().zip(&other.per_round).map(|(one, other)| one / other).collect();
    median(&ratios)
}
