//! The record of a switch: who, why, when, what was open, how each ended.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::{Color, Mode};
use crate::drain::{Drain, DrainReport};
use crate::state::Trigger;

/// What a switch did, as the API shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    pub id: String,
    /// When it took effect; RFC 3339.
    pub at: String,
    pub trigger: Trigger,
    pub actor: Option<String>,
    pub reason: Option<String>,
    /// Whether requests of the two colors could overlap.
    #[serde(default = "instant")]
    pub mode: Mode,
    /// From the call to the moment when the new color was in effect, in microseconds.
    pub took_us: u64,
    /// Nothing was changed, since that was asked for.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dry_run: bool,
    /// The services that changed color; empty if all were there already.
    pub services: Vec<ServiceSwitch>,
    /// Absent if no service changed color.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainReport>,
}

/// One service's part in a switch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceSwitch {
    pub service: String,
    pub from: Color,
    pub to: Color,
    /// The number of the tenure that began.
    pub generation: u64,
}

/// A receipt whose drain may still be under way.
#[derive(Debug)]
pub struct Record {
    facts: Receipt,
    drain: Option<Arc<Drain>>,
}

impl Record {
    pub(super) fn new(facts: Receipt, drain: Option<Arc<Drain>>) -> Record {
        Record { facts, drain }
    }

    pub fn id(&self) -> &str {
        &self.facts.id
    }

    pub fn drain(&self) -> Option<&Arc<Drain>> {
        self.drain.as_ref()
    }

    /// Whether the old color of this service left in it.
    pub fn drains(&self, service: &str) -> bool {
        self.drain.is_some() && self.facts.services.iter().any(|switch| switch.service == service)
    }

    /// The receipt as of now.
    pub fn receipt(&self) -> Receipt {
        let drain = self.drain.as_ref().map(|drain| drain.report()).or_else(|| self.facts.drain.clone());
        Receipt { drain, ..self.facts.clone() }
    }
}

/// Of receipts that were written before there was another mode.
fn instant() -> Mode {
    Mode::Instant
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}
