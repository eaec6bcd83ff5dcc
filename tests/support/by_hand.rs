//! An origin whose every step the test takes.

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::client::Client;
use super::origin::Origin;
use super::soon;

/// A request that has reached the origin, on a connection of its own.
pub struct Call {
    /// Request line and fields, without the empty line.
    pub head: String,
    /// The connection; a [`Client`] reads and writes bytes at either end.
    pub wire: Client,
}

/// The calls of an origin, in the order in which their heads were whole. Connections that say nothing are no calls.
pub struct Calls(UnboundedReceiver<Call>);

/// An origin that accepts and reads heads, and leaves everything else to the test.
pub async fn by_hand() -> (Origin, Calls) {
    let (calls, inbox) = unbounded_channel();
    let origin = Origin::raw(move |stream| {
        let calls = calls.clone();
        async move {
            let mut wire = Client::on(stream);
            if let Some(head) = wire.head().await {
                // The test may be over already.
                let _ = calls.send(Call { head, wire });
            }
        }
    });
    (origin.await, Calls(inbox))
}

impl Calls {
    pub async fn next(&mut self) -> Call {
        soon("a request at the origin", self.0.recv()).await.expect("the origin runs")
    }

    /// Whether no call is waiting now.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Call {
    /// The value of a field; fails the test if it is there more than once.
    pub fn field(&self, name: &str) -> Option<&str> {
        super::origin::only_field(&self.head, name)
    }

    /// The answer that accepts the WebSocket that it asks for.
    pub fn accepted(&self) -> String {
        super::origin::accepted(&self.head)
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes).await;
    }

    /// Reads exactly what is expected.
    pub async fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.expect(bytes).await;
    }

    /// Resolves when the proxy has closed its side, in order or by a reset; gives what it sent before.
    pub async fn gone(&mut self) -> Vec<u8> {
        self.wire.rest().await.0
    }
}
