//! `teal receipt`: the record of one switch.

use std::time::Duration;

use crate::cli::client::{Client, segment};
use crate::cli::drain::account;
use crate::cli::place::Access;
use crate::cli::terminal::{Paint, Style, harmless, micros, out};
use crate::cli::{Failure, Global, Remote, block_on, pretty};
use crate::state::Receipt;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// As `teal switch` has printed it
    id: String,
    /// Print it as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    remote: Remote,
}

/// # Errors
/// When there is no such receipt, or the proxy cannot be reached.
pub(super) fn receipt(global: &Global, options: &Options) -> Result<(), Failure> {
    let client = Client::new(Access::find(global, &options.remote)?, PATIENCE);
    let target = format!("/v1/receipts/{}", segment(&options.id));
    let receipt = block_on(async { Ok(client.get(&target).await?) })?;
    out(&if options.json { pretty(&receipt) } else { text(&receipt, Paint::stdout()) });
    Ok(())
}

fn text(receipt: &Receipt, paint: Paint) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        text += &format!("{} {value}\n", paint.paint(Style::Dim, &format!("{name:<9}")));
    };
    fact("receipt", &receipt.id);
    for step in &receipt.services {
        let colors = format!("{} → {}", paint.color(step.from), paint.color(step.to));
        fact("switched", &format!("{}: {colors} (generation {})", step.service, step.generation));
    }
    fact("at", &format!("{}, in {}", receipt.at, micros(receipt.took_us)));
    let actor = receipt.actor.as_deref().map(|actor| format!(", {}", harmless(actor)));
    fact("by", &format!("{}{}", receipt.trigger.as_str(), actor.unwrap_or_default()));
    if let Some(reason) = &receipt.reason {
        fact("reason", &harmless(reason));
    }
    text + &account(receipt, paint)
}
