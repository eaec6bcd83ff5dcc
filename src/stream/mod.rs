//! Long-lived exchanges: what makes a handshake valid, the tunnel that follows it, and where in them a goodbye fits.

mod direction;
pub mod events;
pub mod frames;
mod goodbye;
pub mod tunnel;
pub mod websocket;
