//! Interim answers without end or with a body, and a 101 that nobody asked for or that accepts something else.

use crate::case::{OLD_GET, Step, check, gone, passes, refused};

const UPGRADE: &str = "GET /case HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ACCEPT: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
const HINTS: &str = "HTTP/1.1 103 Early Hints\r\n\r\n";

#[tokio::test]
async fn interim_answers_go_on_but_not_for_ever() {
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
    let with = |interim: &str| format!("{interim}{FINAL}");
    let fields = |fields: &str| format!("HTTP/1.1 103 Early Hints\r\n{fields}\r\n{FINAL}");
    check([
        passes("RFC 9110 §15.2", "early hints", with(hint), with(hint)),
        passes("RFC 9110 §15.2", "32 of them", with(&HINTS.repeat(32)), with(&HINTS.repeat(32))),
        passes(
            "RFC 9110 §15.2.1",
            "a 100 that nobody waits for",
            with("HTTP/1.1 100 Continue\r\n\r\n"),
            with("HTTP/1.1 100 Continue\r\n\r\n"),
        ),
        passes(
            "RFC 9110 §15.2",
            "an unknown one without a reason",
            with("HTTP/1.1 199\r\n\r\n"),
            with("HTTP/1.1 199 \r\n\r\n"),
        ),
        passes("RFC 9110 §15.2", "octet by octet", with(hint), with(hint)).dribbled(),
        passes(
            "RFC 9110 §15.2",
            "for HTTP/1.0",
            with(hint),
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
        )
        .to(OLD_GET)
        .and_last(),
        passes(
            "RFC 9110 §7.6.1",
            "with fields of one hop",
            fields("Connection: close, x\r\nX: 1\r\nKeep-Alive: 5\r\n"),
            with(HINTS),
        ),
        passes("RFC 9112 §6.1", "in chunks", fields("Transfer-Encoding: chunked\r\n"), with(HINTS)),
        passes("RFC 9110 §8.6", "with a length of 0", fields("Content-Length: 0\r\n"), with(HINTS)),
        refused("RFC 9110 §15.2", "33 of them", with(&HINTS.repeat(33))),
        refused("RFC 9110 §15.2", "33 of them for HTTP/1.0", with(&HINTS.repeat(33))).to(OLD_GET),
        refused("RFC 9110 §15.2", "without end", HINTS.repeat(10_000)),
        refused("RFC 9110 §15.2.1", "100 without end", "HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000)),
        refused("RFC 9110 §15.2", "with a body", format!("{HINTS}hello{FINAL}")),
        refused(
            "RFC 9110 §8.6",
            "with a length and a body",
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello".to_owned() + FINAL,
        )
        .dribbled(),
        refused(
            "RFC 9112 §6.1",
            "in chunks that come",
            "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned() + FINAL,
        ),
        refused("RFC 9112 §4", "before garbage", format!("{HINTS}garbage\r\n\r\n")),
        refused("RFC 9112 §5.1", "with a broken field", fields("X : y\r\n")),
        gone("RFC 9110 §15.2", "and nothing else", HINTS, Step::Close),
        gone("RFC 9110 §15.2", "and a reset", HINTS, Step::Reset),
        gone("RFC 9110 §15.2", "and half a head", format!("{HINTS}HTTP/1.1 200 OK\r\n"), Step::Close),
    ])
    .await;
}

#[tokio::test]
async fn a_101_that_nobody_asked_for_is_no_answer() {
    let switch = |fields: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
    let whole = switch(&format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{ACCEPT}"));
    let post = UPGRADE.replace("GET", "POST");
    let h2c = "GET /case HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
               HTTP2-Settings: AAMAAABk\r\n\r\n";
    check([
        refused("RFC 9110 §15.2.2", "a bare 101", switch("")),
        refused("RFC 9110 §15.2.2", "a whole 101", &whole),
        refused("RFC 9110 §15.2.2", "a 101 and an answer", whole.clone() + FINAL),
        refused("RFC 9110 §15.2.2", "a 101 after hints", HINTS.to_owned() + &whole),
        refused("RFC 9110 §15.2.2", "a 101 with a body", switch("Content-Length: 2\r\n") + "hi"),
        refused("RFC 9110 §15.2.2", "a 101 to a POST that asks", &whole).to(&post),
        refused("RFC 9110 §7.8", "a 101 to HTTP/1.0", &whole)
            .to("GET /case HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        refused("RFC 9113 §3.1", "h2c, which is not passed on", switch("Connection: Upgrade\r\nUpgrade: h2c\r\n"))
            .to(h2c),
    ])
    .await;
}

#[tokio::test]
async fn a_101_that_accepts_something_else_is_no_answer() {
    let fields = |fields: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let accepts = |accept: &str| fields(&format!("{upgrade}{accept}"));
    let rows = [
        ("RFC 6455 §4.2.2", "no accept", accepts("")),
        ("RFC 6455 §4.2.2", "an empty accept", accepts("Sec-WebSocket-Accept:\r\n")),
        (
            "RFC 6455 §4.2.2",
            "the accept of another key",
            accepts("Sec-WebSocket-Accept: HSmrc0sMlYUkAGmm5OPpG2HaGWk=\r\n"),
        ),
        ("RFC 6455 §4.2.2", "the key for an accept", accepts("Sec-WebSocket-Accept: dGhlIHNhbXBsZSBub25jZQ==\r\n")),
        ("RFC 6455 §4.2.2", "the accept in lower case", accepts(&ACCEPT.to_ascii_lowercase())),
        ("RFC 6455 §4.2.2", "the accept and something else", accepts(&ACCEPT.replace("=\r\n", "=, x\r\n"))),
        (
            "RFC 6455 §11.3.3",
            "a wrong accept and the right one",
            accepts(&format!("Sec-WebSocket-Accept: x\r\n{ACCEPT}")),
        ),
        (
            "RFC 6455 §11.3.3",
            "the right accept and a wrong one",
            accepts(&format!("{ACCEPT}Sec-WebSocket-Accept: x\r\n")),
        ),
        ("RFC 9110 §7.8", "another protocol", fields(&format!("Connection: Upgrade\r\nUpgrade: h2c\r\n{ACCEPT}"))),
        ("RFC 9110 §7.8", "no protocol", fields(&format!("Connection: Upgrade\r\n{ACCEPT}"))),
        ("RFC 6455 §4.1", "no Connection", fields(&format!("Upgrade: websocket\r\n{ACCEPT}"))),
        (
            "RFC 6455 §4.1",
            "another Connection",
            fields(&format!("Connection: keep-alive\r\nUpgrade: websocket\r\n{ACCEPT}")),
        ),
        (
            "RFC 9112 §6.3",
            "both framings",
            accepts(&format!("{ACCEPT}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n")),
        ),
        ("RFC 9110 §7.8", "HTTP/1.0", accepts(ACCEPT).replace("HTTP/1.1", "HTTP/1.0")),
    ];
    check(rows.map(|(source, name, answer)| refused(source, name, answer).to(UPGRADE))).await;
}

#[tokio::test]
async fn what_follows_an_upgrade_goes_to_who_asked_for_it_and_to_nobody_else() {
    let accepted = |fields: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
    let client = accepted(&format!("{ACCEPT}Connection: Upgrade\r\nUpgrade: websocket\r\n"));
    let whole = accepted(&format!("{ACCEPT}Connection: Upgrade\r\nUpgrade: websocket\r\n"));
    let with_length = accepted(&format!("{ACCEPT}Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n"));
    let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
    let row = |source, name, answer: String, client: String| {
        passes(source, name, answer, client).to(UPGRADE).then(Step::WhenGot).then(Step::Close).once().and_last()
    };
    check([
        row(
            "RFC 6455 §4.2.2",
            "a frame behind the 101",
            format!("{whole}\u{1}\u{2}hi"),
            format!("{client}\u{1}\u{2}hi"),
        ),
        row("RFC 6455 §4.2.2", "an answer behind the 101", whole.clone() + FINAL, client.clone() + FINAL),
        row("RFC 6455 §4.2.2", "hints before the 101", HINTS.to_owned() + &whole, HINTS.to_owned() + &client),
        row("RFC 9110 §8.6", "a length of the 101", with_length + "hi", client.clone() + "hi"),
        passes("RFC 6455 §4.2.2", "a refusal", refusal, refusal).to(UPGRADE),
        passes("RFC 6455 §4.2.2", "a refusal and a frame", format!("{refusal}\u{1}\u{2}hi"), refusal)
            .to(UPGRADE)
            .once(),
    ])
    .await;
}
