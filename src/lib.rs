//! teal: an edge reverse proxy for blue/green releases.
//!
//! The modules stand in the order in which a request meets them. A [`listener`] accepts a connection and gives it a
//! seat in the worker's [`roster`]; [`http`] reads the request head and forwards it; [`state`] holds the one snapshot
//! that the request reads, in which the [`router`] finds the [`service`], whose active color's generation the request
//! enters; [`upstream`] chooses an endpoint and lends a connection to it; the answer streams back, or the exchange
//! becomes a [`stream`] tunnel. When the request ends it leaves its generation, and [`drain`] sees when nobody is left.
//!
//! Beside the path, on a thread of their own so that no request ever waits for them: [`health`] and [`admin`]. The ground
//! that all stand on and that knows nothing of them: [`config`], [`metrics`], [`access`], [`store`], [`error`].

pub mod cli;
pub mod demo;
pub mod run;

pub mod drain;
pub mod http;
pub mod listener;
pub mod net;
pub mod occupant;
pub mod quota;
pub mod roster;
pub mod router;
pub mod service;
pub mod state;
pub mod stream;
pub mod tls;
pub mod upstream;

pub mod admin;
pub mod health;

pub mod access;
pub mod config;
pub mod error;
pub mod metrics;
pub mod store;
