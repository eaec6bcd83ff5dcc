//! One color of the shop: an origin with an HTTP API, a chat over WebSocket, alarms over SSE and a page.
//!
//! Every answer says by itself which color gave it (`x-shop-color`, and in the body), so that what a client believes
//! about a switch rests on the word of the origin, not on that of the proxy. What the two colors share is in the
//! [`Book`]; what differs is their look, their version and their prices.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Color;

use super::book::{Book, Line, Order};

/// Names the color that answered.
pub(super) const COLOR_HEADER: &str = "x-shop-color";

/// How long a checkout takes, so that some are always under way when a switch comes.
const PAYMENT: Duration = Duration::from_millis(15);

/// Delay after which an SSE client comes back.
const RETRY: Duration = Duration::from_millis(100);

/// Lines of the past that a newcomer to the chat or the alarms gets.
const GLANCE: u64 = 8;

/// One running color; it ends when this is dropped.
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    _server: AbortOnDropHandle<io::Result<()>>,
}

impl Origin {
    /// Opens the shop of `color` on a free port of the loopback address.
    pub(super) async fn open(color: Color, book: &Arc<Book>) -> io::Result<Origin> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let server = axum::serve(listener, routes(Shop { color, book: book.clone() })).into_future();
        Ok(Origin { address, _server: AbortOnDropHandle::new(tokio::spawn(server)) })
    }
}

#[derive(Clone)]
struct Shop {
    color: Color,
    book: Arc<Book>,
}

fn routes(shop: Shop) -> Router {
    let color = shop.color.as_str();
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(async || "ok"))
        .route("/version", get(version))
        .route("/chat", get(chat))
        .route("/alarms", get(alarms))
        .route("/api/products", get(products))
        .route("/api/coupons/{code}", get(coupon))
        .route("/api/checkout", post(checkout))
        .layer(middleware::map_response(move |answer: Response| ready(([(COLOR_HEADER, color)], answer))))
        .with_state(shop)
}

async fn page(State(shop): State<Shop>) -> Html<String> {
    let admin = shop.book.admin.get().map(SocketAddr::to_string).unwrap_or_default();
    let page = include_str!("page.html")
        .replace("{{color}}", shop.color.as_str())
        .replace("{{version}}", release(shop.color))
        .replace("{{admin}}", &admin);
    Html(page)
}

async fn version(State(shop): State<Shop>) -> Json<serde_json::Value> {
    Json(json!({ "color": shop.color, "version": release(shop.color) }))
}

/// The version that a color of the shop calls itself.
pub(super) fn release(color: Color) -> &'static str {
    match color {
        Color::Blue => "1.4.2",
        Color::Green => "1.5.0",
    }
}

/// What the shop sells: id, name, price in cents while blue.
const PRODUCTS: [(&str, &str, u64); 6] = [
    ("beans", "Espresso beans, 250 g", 890),
    ("filter", "Filter roast, 250 g", 1050),
    ("tea", "Tin of teal tea", 720),
    ("mug", "Enamel mug", 1400),
    ("kettle", "Gooseneck kettle", 5900),
    ("grinder", "Hand grinder", 7900),
];

/// Discounts in percent, by code.
const COUPONS: [(&str, u64); 2] = [("HELLO10", 10), ("REGULAR20", 20)];

/// The price of a product in a color: the green release has a spring sale.
pub(super) fn price(color: Color, product: &str) -> Option<u64> {
    let (_, _, cents) = PRODUCTS.iter().find(|(id, ..)| *id == product)?;
    match color {
        Color::Blue => Some(*cents),
        Color::Green => Some(cents * 9 / 10),
    }
}

pub(super) fn discount(code: &str) -> Option<u64> {
    COUPONS.iter().find(|(known, _)| *known == code).map(|(_, percent)| *percent)
}

/// The list of products, as `GET /api/products` answers it.
#[derive(Serialize, Deserialize)]
pub(super) struct Products {
    pub(super) color: Color,
    pub(super) version: String,
    pub(super) products: Vec<Product>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Product {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) cents: u64,
}

async fn products(State(shop): State<Shop>) -> Json<Products> {
    let products = PRODUCTS.iter().filter_map(|(id, name, _)| {
        Some(Product { id: (*id).to_owned(), name: (*name).to_owned(), cents: price(shop.color, id)? })
    });
    Json(Products { color: shop.color, version: release(shop.color).to_owned(), products: products.collect() })
}

async fn coupon(Path(code): Path<String>) -> Response {
    match discount(&code) {
        Some(percent) => Json(json!({ "code": code, "percent": percent })).into_response(),
        None => (StatusCode::NOT_FOUND, "no such coupon").into_response(),
    }
}

/// What a customer posts to `/api/checkout`.
#[derive(Serialize, Deserialize)]
pub(super) struct Basket {
    #[serde(flatten)]
    pub(super) order: Order,
    pub(super) product: String,
    pub(super) coupon: Option<String>,
}

/// What `/api/checkout` confirms.
#[derive(Serialize, Deserialize)]
pub(super) struct Confirmation {
    pub(super) number: u64,
    #[serde(flatten)]
    pub(super) order: Order,
    pub(super) cents: u64,
    pub(super) color: Color,
}

async fn checkout(State(shop): State<Shop>, Json(basket): Json<Basket>) -> Response {
    let Some(cents) = total(shop.color, &basket) else {
        return (StatusCode::UNPROCESSABLE_ENTITY, "no such product or coupon").into_response();
    };
    let number = shop.book.order(basket.order);
    tokio::time::sleep(PAYMENT).await;
    let confirmation = Confirmation { number, order: basket.order, cents, color: shop.color };
    (StatusCode::CREATED, Json(confirmation)).into_response()
}

/// What a basket costs in a color.
pub(super) fn total(color: Color, basket: &Basket) -> Option<u64> {
    let percent = match &basket.coupon {
        Some(code) => discount(code)?,
        None => 0,
    };
    Some(price(color, &basket.product)? * (100 - percent) / 100)
}

/// The newest line that a member of the chat has seen.
#[derive(Deserialize)]
struct Since {
    after: Option<u64>,
}

/// What the chat sends: first a hello, then every line of the room with its number.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Heard {
    /// Lines after this one follow.
    Hello { color: Color, after: u64 },
    Line {
        number: u64,
        #[serde(flatten)]
        line: Line,
    },
}

/// What a member of the chat sends.
#[derive(Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) from: u64,
    pub(super) n: u64,
    pub(super) text: String,
}

async fn chat(State(shop): State<Shop>, Query(since): Query<Since>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.max_message_size(4096).on_upgrade(async move |socket| {
        // An error means that the member left, which is what the end of this task says anyway.
        let _ = converse(shop, socket, since.after).await;
    })
}

/// Runs one member's connection until either side ends it. The lines of the room are the acknowledgement of what the
/// member says: one that does not see its own line come back sends it again.
async fn converse(shop: Shop, mut socket: WebSocket, after: Option<u64>) -> Result<(), axum::Error> {
    let after = after.unwrap_or_else(|| shop.book.chat.last().saturating_sub(GLANCE));
    let mut lines = shop.book.chat.read(after);
    let hello = Heard::Hello { color: shop.color, after };
    socket.send(text(&hello)).await?;
    loop {
        // Both arms wait for something that is still there when the other one wins.
        tokio::select! {
            Some((number, line)) = lines.next() => socket.send(text(&Heard::Line { number, line })).await?,
            message = socket.recv() => match message.transpose()? {
                Some(Message::Text(said)) => take(&shop, &said),
                Some(Message::Close(_)) | None => return Ok(()),
                Some(_) => {}
            },
        }
    }
}

fn text(heard: &Heard) -> Message {
    let json = serde_json::to_string(heard).expect("numbers and strings are always JSON");
    Message::Text(Utf8Bytes::from(json))
}

fn take(shop: &Shop, said: &str) {
    if let Ok(Said { from, n, text }) = serde_json::from_str(said) {
        shop.book.say(Line { from, n, text: text.into(), color: shop.color });
    }
}

async fn alarms(State(shop): State<Shop>, headers: HeaderMap) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let reader = shop.book.alarms.read(seen.unwrap_or_else(|| shop.book.alarms.last().saturating_sub(GLANCE)));
    let color = shop.color;
    let hello = Event::default().event("hello").retry(RETRY).data(json!({ "color": color }).to_string());
    let alarms = stream::unfold(reader, async |mut reader| Some((reader.next().await?, reader)));
    let alarms = alarms.map(move |(id, alarm)| {
        let data = json!({ "color": color, "text": alarm.text }).to_string();
        Event::default().id(id.to_string()).event("alarm").data(data)
    });
    let events = stream::iter([hello]).chain(alarms).map(Ok);
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(1)))
}
