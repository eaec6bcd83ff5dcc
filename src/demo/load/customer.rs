//! A customer: one request after the other on a connection that is kept alive and now and then made anew, each answer
//! checked against what the shop of the color that gave it would say.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::config::Color;
use crate::demo::book::Order;
use crate::demo::client::{self, Connection, NoAnswer};
use crate::demo::shop::{self, Basket, COLOR_HEADER, Confirmation, Products};

use super::World;

/// Pause after each answer: a load that a laptop carries without becoming the bottleneck itself.
const PAUSE: Duration = Duration::from_millis(2);

/// A request without an answer by then has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests per connection.
const KEEP: u64 = 100;

/// Shops until told to stop.
pub(super) async fn shop(world: Arc<World>, stop: watch::Receiver<bool>, id: u64) {
    let mut customer = Customer { world, id, connection: None, last_color: None, changes: 0 };
    for n in 0.. {
        if *stop.borrow() {
            return;
        }
        customer.run(n).await;
        sleep(PAUSE).await;
    }
}

struct Customer {
    world: Arc<World>,
    id: u64,
    connection: Option<Connection>,
    last_color: Option<Color>,
    /// How often the color of the answers changed.
    changes: u64,
}

/// What a customer comes for.
enum Errand {
    Page,
    Products,
    Coupon,
    Checkout(Basket),
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    #[error("no answer in {PATIENCE:?}")]
    Late,
    #[error("{status}: {body}")]
    Status { status: StatusCode, body: String },
    #[error("the answer names no color")]
    NoColor,
    #[error("the answer of {0} is not what {0} would say")]
    Wrong(Color),
}

impl Customer {
    async fn run(&mut self, n: u64) {
        let errand = self.errand(n);
        let start = self.world.course.leg();
        let started = Instant::now();
        let result = self.answer(&errand, n).await.and_then(|answer| errand.verify(&answer));
        let took = started.elapsed();
        let tally = &self.world.tally;
        tally.requests.add(1);
        match result {
            Err(failure) => {
                tally.failed.add(1);
                tally.trouble.note(|| format!("{} {}: {failure}", errand.method(), errand.target()));
            }
            Ok(color) => {
                let end = self.world.course.leg();
                tally.after_ack.add(start.is_after_ack().into());
                tally.stale.add(start.is_stale(color, &end).into());
                self.enter_color(color, end.switches());
                self.enter_done(&errand, took, end.is_near());
            }
        }
    }

    fn errand(&self, n: u64) -> Errand {
        // Customers start at different errands, so that at any time somebody is at the till.
        match (n + self.id) % 8 {
            0 => Errand::Page,
            1 => Errand::Coupon,
            2 => Errand::Checkout(Basket {
                order: Order { customer: self.id, n },
                product: "kettle".to_owned(),
                coupon: n.is_multiple_of(2).then(|| "HELLO10".to_owned()),
            }),
            _ => Errand::Products,
        }
    }

    async fn answer(&mut self, errand: &Errand, n: u64) -> Result<Response<Bytes>, Failure> {
        timeout(PATIENCE, self.exchange(errand, n)).await.unwrap_or(Err(Failure::Late))
    }

    async fn exchange(&mut self, errand: &Errand, n: u64) -> Result<Response<Bytes>, Failure> {
        let mut connection = self.connection().await?;
        let answer = client::exchange(&mut connection, errand.request(&self.world)).await?;
        if !n.is_multiple_of(KEEP) {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    /// The kept connection, or a new one if the server has closed it since.
    async fn connection(&mut self) -> Result<Connection, NoAnswer> {
        if let Some(mut kept) = self.connection.take()
            && kept.ready().await.is_ok()
        {
            return Ok(kept);
        }
        client::connect(self.world.proxy).await
    }

    /// A color may change once per switch and never back.
    fn enter_color(&mut self, color: Color, switches: u64) {
        if self.last_color.replace(color).is_some_and(|last| last != color) {
            self.changes += 1;
        }
        if self.changes > switches {
            self.changes = switches;
            self.world.tally.back_again.add(1);
        }
    }

    fn enter_done(&self, errand: &Errand, took: Duration, is_near: bool) {
        let tally = &self.world.tally;
        match errand {
            Errand::Checkout(_) => tally.confirmed.add(1),
            Errand::Products | Errand::Coupon if is_near => tally.near.record(took),
            Errand::Products | Errand::Coupon => tally.steady.record(took),
            Errand::Page => {}
        }
    }
}

impl Errand {
    fn method(&self) -> Method {
        match self {
            Errand::Checkout(_) => Method::POST,
            _ => Method::GET,
        }
    }

    fn target(&self) -> &'static str {
        match self {
            Errand::Page => "/",
            Errand::Products => "/api/products",
            Errand::Coupon => "/api/coupons/HELLO10",
            Errand::Checkout(_) => "/api/checkout",
        }
    }

    fn request(&self, world: &World) -> Request<Full<Bytes>> {
        let json = match self {
            Errand::Checkout(basket) => {
                Some(serde_json::to_string(basket).expect("numbers and strings are always JSON"))
            }
            _ => None,
        };
        client::request(self.method(), world.proxy, self.target(), json)
    }

    /// The color that gave this answer, if the answer is right.
    fn verify(&self, answer: &Response<Bytes>) -> Result<Color, Failure> {
        if !answer.status().is_success() {
            let body = String::from_utf8_lossy(answer.body()).chars().take(200).collect();
            return Err(Failure::Status { status: answer.status(), body });
        }
        let color = answer.headers().get(COLOR_HEADER).and_then(|name| name.to_str().ok()?.parse().ok());
        let color = color.ok_or(Failure::NoColor)?;
        if self.is_right(color, answer.body()) { Ok(color) } else { Err(Failure::Wrong(color)) }
    }

    fn is_right(&self, color: Color, body: &[u8]) -> bool {
        match self {
            Errand::Page => is_page(color, body),
            Errand::Products => serde_json::from_slice(body).is_ok_and(|products| is_list(color, &products)),
            Errand::Coupon => serde_json::from_slice(body)
                .is_ok_and(|coupon: serde_json::Value| coupon["percent"].as_u64() == shop::discount("HELLO10")),
            Errand::Checkout(basket) => {
                serde_json::from_slice(body).is_ok_and(|receipt| is_confirmation(color, basket, &receipt))
            }
        }
    }
}

fn is_page(color: Color, body: &[u8]) -> bool {
    let is_whole = body.trim_ascii_end().ends_with(b"</html>");
    is_whole && String::from_utf8_lossy(body).contains(&format!("data-color=\"{color}\""))
}

fn is_list(color: Color, list: &Products) -> bool {
    list.color == color
        && list.version == shop::release(color)
        && list.products.iter().all(|product| shop::price(color, &product.id) == Some(product.cents))
}

fn is_confirmation(color: Color, basket: &Basket, confirmation: &Confirmation) -> bool {
    confirmation.color == color
        && confirmation.order == basket.order
        && Some(confirmation.cents) == shop::total(color, basket)
}
