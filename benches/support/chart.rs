//! The chart of a report: one group of bars per row, each bar a contestant's cost relative to the cheaper peer.
//!
//! Shorter is better, and teal aims at the dashed line. Colors follow the reader's light or dark mode; every bar
//! carries its figure as text, so that nothing is told by color or length alone.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::contestant::Name;
use super::report::{Outcome, Report, Row, figure};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 92.0;
const UNIT: f64 = 270.0; // the length of a bar at 1.0
const CLIP: f64 = 2.0;
const TOP: f64 = 92.0;
const BAR: f64 = 15.0;
const STEP: f64 = 19.0;
const GROUP_TITLE: f64 = 22.0;
const GROUP_GAP: f64 = 18.0;
const TARGET: f64 = 0.9;

const STYLE: &str = "<style>
  text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328; }
  .title { font-size: 17px; font-weight: 600; } .row { font-weight: 600; }
  .soft { fill: #59636e; font-size: 12px; } .end { text-anchor: end; } .middle { text-anchor: middle; }
  .grid { stroke: #d1d9e0; } .one { stroke: #59636e; } .target { stroke: #0f766e; stroke-dasharray: 4 3; }
  .teal { fill: #0d9488; } .haproxy { fill: #7c86ad; } .nginx { fill: #a8aec4; } .relay { fill: #d5d8e2; }
  .strong { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .soft { fill: #9198a1; }
    .grid { stroke: #3d444d; } .one { stroke: #9198a1; } .target { stroke: #2dd4bf; }
    .teal { fill: #14b8a6; } .haproxy { fill: #7c86ad; } .nginx { fill: #5c6485; } .relay { fill: #424961; }
  }
</style>
";

/// Draws the rows that can be compared: those with a peer, and not void.
pub(crate) fn write(report: &Report, file: &Path) -> Result<()> {
    let rows: Vec<&Row> = report.rows.iter().filter(|row| row.void.is_empty() && has_peer(row)).collect();
    fs::write(file, draw(report, &rows)).with_context(|| format!("writing {}", file.display()))
}

fn has_peer(row: &Row) -> bool {
    row.results.iter().any(|result| result.to_peer.is_some())
}

fn draw(report: &Report, rows: &[&Row]) -> String {
    let heights = rows.iter().map(|row| GROUP_TITLE + STEP * row.results.len() as f64 + GROUP_GAP);
    let bottom = TOP + heights.sum::<f64>();
    let height = bottom + 34.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-label=\"Cost of teal relative to nginx and HAProxy\">\n{STYLE}"
    );
    text(&mut svg, 16.0, 28.0, "title", "What teal costs, relative to the cheaper of nginx and HAProxy");
    text(&mut svg, 16.0, 48.0, "soft", "CPU time of one worker, or memory per socket. Shorter is better.");
    scale(&mut svg);
    let mut y = TOP;
    for row in rows {
        y = group(&mut svg, row, y);
    }
    text(&mut svg, 16.0, height - 12.0, "soft", &report.machine.to_string());
    svg + "</svg>\n"
}

const GRID: [(f64, &str); 6] =
    [(0.0, "one"), (0.5, "grid"), (1.0, "one"), (1.5, "grid"), (CLIP, "grid"), (TARGET, "target")];

fn scale(svg: &mut String) {
    for (value, _) in GRID.iter().filter(|(value, _)| *value != TARGET) {
        text(svg, LEFT + value * UNIT, TOP - 14.0, "soft middle", &format!("{value:.1}"));
    }
    text(svg, LEFT + TARGET * UNIT - 4.0, TOP - 14.0, "soft end", "target 0.9");
}

/// One row and its bars; returns where the next one begins.
fn group(svg: &mut String, row: &Row, y: f64) -> f64 {
    text(svg, 16.0, y + 14.0, "row", &row.title);
    let order = [Name::Teal, Name::Haproxy, Name::Nginx, Name::Relay];
    let bars: Vec<_> = order.iter().filter_map(|name| Some((*name, row.outcome(*name)?))).collect();
    let (top, bottom) = (y + GROUP_TITLE, y + GROUP_TITLE + STEP * bars.len() as f64);
    for (value, class) in GRID {
        let x = LEFT + value * UNIT;
        let (top, bottom) = (top - 3.0, bottom - 1.0);
        put(svg, &format!("<line class=\"{class}\" x1=\"{x}\" x2=\"{x}\" y1=\"{top}\" y2=\"{bottom}\"/>"));
    }
    for (place, (name, result)) in bars.into_iter().enumerate() {
        bar(svg, name, result, &row.unit, top + STEP * place as f64);
    }
    bottom + GROUP_GAP
}

fn bar(svg: &mut String, name: Name, result: &Outcome, unit: &str, y: f64) {
    let Some(ratio) = result.to_peer else { return };
    let class = name.as_str().to_lowercase();
    let strong = if name == Name::Teal { "strong" } else { "" };
    text(svg, LEFT - 8.0, y + 12.0, &format!("end {strong}"), name.as_str());
    let width = ratio.min(CLIP) * UNIT;
    put(svg, &format!("<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\"/>"));
    let more = if ratio > CLIP { "→ " } else { "" };
    let unit = if name == Name::Teal { unit } else { unit.split(" per ").next().unwrap_or(unit) };
    let label = format!("{more}{ratio:.2} · {} {}", figure(result.median), unit.trim_start_matches("CPU "));
    text(svg, LEFT + CLIP * UNIT + 12.0, y + 12.0, strong, &label);
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    put(svg, &format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{text}</text>"));
}

fn put(svg: &mut String, element: &str) {
    svg.push_str(element);
    svg.push('\n');
}
