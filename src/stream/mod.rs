//! Long-lived exchanges: what makes a handshake valid, and the tunnel that follows it.

pub mod tunnel;
pub mod websocket;
