//! What the writer has done, for the log, the metrics and the store.

use std::sync::Arc;
use std::time::Duration;

use crate::drain::Drain;
use crate::service::Kind;
use crate::state::State;
use crate::state::receipt::{Receipt, Record};
use crate::state::switch::{Aim, Refusal, SwitchRequest};
use crate::store::{Entry, Store};

pub(super) async fn keep_receipt(store: Arc<Store>, record: &Record) {
    let json = serde_json::to_string(&record.receipt()).expect("a receipt has string keys only");
    let entry = Entry { id: record.id().to_owned(), json };
    let kept = tokio::task::spawn_blocking(move || store.put_receipt(&entry)).await;
    if let Ok(Err(error)) = kept {
        tracing::warn!(%error, "the end of a drain could not be recorded");
    }
}

pub(super) fn count_drain(state: &State, drain: &Drain) {
    for leaving in drain.leaving() {
        for (kind, report) in Kind::ALL.into_iter().zip(leaving.report()) {
            state.stats.drained(&leaving.service, kind.as_str(), "finished", report.finished);
            state.stats.drained(&leaving.service, kind.as_str(), "kept", report.kept);
            state.stats.drained(&leaving.service, kind.as_str(), "cut", report.cut);
        }
    }
}

pub(super) fn log_done(state: &State, receipt: &Receipt) {
    if receipt.dry_run {
        return;
    }
    state.stats.switch_took(Duration::from_micros(receipt.took_us));
    for step in &receipt.services {
        state.stats.switch(&Arc::from(&*step.service), step.to, receipt.trigger.as_str(), "done");
        tracing::info!(
            service = step.service, from = %step.from, to = %step.to, generation = step.generation,
            trigger = receipt.trigger.as_str(), actor = receipt.actor, reason = receipt.reason,
            took_us = receipt.took_us, receipt = receipt.id, "switched"
        );
    }
}

pub(super) fn log_refused(state: &State, request: &SwitchRequest, refusal: &Refusal) {
    let snapshot = state.load();
    for (name, aim) in &request.aims {
        // Only names that exist become labels.
        if let Some(service) = snapshot.service(name) {
            let to = match aim {
                Aim::To(color) => *color,
                Aim::Back => service.active.other(),
            };
            state.stats.switch(&service.config.name, to, request.trigger.as_str(), "refused");
        }
    }
    tracing::warn!(trigger = request.trigger.as_str(), actor = request.actor, %refusal, "switch refused");
}

pub(super) fn log_drained(receipt: &Receipt) {
    let Some(drain) = &receipt.drain else { return };
    tracing::info!(
        receipt = receipt.id,
        finished = drain.http.finished + drain.sse.finished + drain.websocket.finished,
        kept = drain.http.kept + drain.sse.kept + drain.websocket.kept,
        cut = drain.cut(),
        "drained"
    );
}
