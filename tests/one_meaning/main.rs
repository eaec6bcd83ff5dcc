//! Every sequence of bytes that a client may send has exactly one meaning, the same to teal and to the origin, or is
//! refused: tables of raw bytes, each with what the origin gets of them, byte by byte, and what the client is told.
//!
//! A next request stands behind each of them. It is answered where the connection goes on, and reaches nobody where it
//! does not.

#[path = "../support/mod.rs"]
mod support;

mod differential;
mod requests_chunks;
mod requests_connections;
mod requests_fields;
mod requests_framing;
mod requests_hosts;
mod requests_limits;
mod requests_lines;
mod requests_paths;
mod row;
mod stage;

use std::collections::BTreeSet;

use row::Row;
use stage::Stage;

/// What a proxy takes for what: the tables whose rows are compared with other proxies.
pub(crate) fn tables() -> Vec<(&'static str, Vec<Row>)> {
    vec![
        ("Framing", requests_framing::rows()),
        ("Chunks and trailers", requests_chunks::rows()),
        ("Fields", requests_fields::rows()),
        ("Hop-by-hop fields", requests_fields::hop_by_hop()),
        ("Request lines", requests_lines::rows()),
        ("Paths and routes", requests_paths::rows()),
        ("Hosts", requests_hosts::rows()),
        ("Connections and other protocols", requests_connections::rows()),
    ]
}

async fn check(rows: Vec<Row>) {
    check_in_pieces(rows, usize::MAX).await;
}

/// Checks every row, one after the other, and reports all that are wrong.
async fn check_in_pieces(rows: Vec<Row>, piece: usize) {
    let stage = Stage::new().await;
    let mut wrong = Vec::new();
    for row in &rows {
        if let Err(why) = stage.check(row, piece).await {
            let sent = &row.sent[..row.sent.len().min(400)];
            wrong.push(format!("{} ({}): {}\n  {why}", row.name, row.reference, sent.escape_ascii()));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    stage.end().await;
}

#[tokio::test]
async fn the_length_of_a_body_is_known_or_the_request_refused() {
    check(requests_framing::rows()).await;
}

#[tokio::test]
async fn chunks_and_trailers_are_read_to_the_letter() {
    check(requests_chunks::rows()).await;
}

#[tokio::test]
async fn fields_are_passed_on_or_refused_but_not_reinterpreted() {
    check(requests_fields::rows()).await;
}

#[tokio::test]
async fn fields_of_one_hop_do_not_reach_the_next() {
    check(requests_fields::hop_by_hop()).await;
}

#[tokio::test]
async fn a_request_line_is_method_target_and_version() {
    check(requests_lines::rows()).await;
}

#[tokio::test]
async fn paths_are_matched_and_passed_on_as_they_were_sent() {
    check(requests_paths::rows()).await;
}

#[tokio::test]
async fn a_request_names_one_host() {
    check(requests_hosts::rows()).await;
}

#[tokio::test]
async fn what_follows_on_a_connection_is_a_request_or_nothing() {
    check(requests_connections::rows()).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    check(requests_limits::rows()).await;
}

/// Of a chunked body in pieces the origin gets other chunks, and may get some before what is wrong with the rest comes.
/// Who announces the last request of a connection, and sends on, may see a reset.
#[tokio::test]
async fn a_head_that_arrives_octet_by_octet_means_the_same() {
    let is_chunked = |row: &Row| {
        let goes_on = stage::find(&row.expected.received, b"Transfer-Encoding: chunked").is_some();
        goes_on || stage::find(&row.sent.to_ascii_lowercase(), b"chunked\r\n\r\n").is_some()
    };
    let all = tables().into_iter().flat_map(|(_, rows)| rows);
    let rows: Vec<Row> = all.filter(|row| !is_chunked(row) && (row.is_refused() || row.expected.goes_on)).collect();
    assert!(rows.len() >= 200, "{} rows", rows.len());
    check_in_pieces(rows, 1).await;
}

#[test]
fn every_row_has_a_name_of_its_own_and_a_reference() {
    let mut rows: Vec<Row> = tables().into_iter().flat_map(|(_, rows)| rows).collect();
    rows.extend(requests_limits::rows());
    assert!(rows.len() >= 200, "{} rows", rows.len());
    let mut names = BTreeSet::new();
    for row in &rows {
        assert!(names.insert(row.name.as_ref()), "two rows are named {:?}", row.name);
        let is_known = ["RFC ", "CVE-"].iter().any(|start| row.reference.starts_with(start));
        assert!(is_known, "{:?} refers to {:?}", row.name, row.reference);
    }
}
