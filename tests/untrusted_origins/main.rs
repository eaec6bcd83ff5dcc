//! Octets of an origin that nobody may trust: whatever it sends, the client gets a 502, a body that is visibly broken,
//! or exactly the answer that the octets are; and nothing of it ever reaches somebody else.
//!
//! Each row of a table names the rule or the fault that it stands for, and is checked with a proxy of its own.

#[path = "../support/mod.rs"]
mod support;

mod case;
mod chunks;
mod fields;
mod framing;
mod heads;
mod interim;
mod reuse;
mod truncated;
