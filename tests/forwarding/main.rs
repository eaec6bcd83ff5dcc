//! What a client asks reaches the origin as it was meant, and the answer reaches the client as it was given.

#[path = "../support/mod.rs"]
mod support;

mod balance;
mod bodies;
mod broken;
mod chaos;
mod headers;
mod messages;
mod property;
mod routing;
