//! Octets that belong to no answer: behind its end, on a connection that rests, or before the request is whole. The
//! client gets its answer, and nobody ever gets the rest.

use crate::case::{Case, GET, HEAD, Step, check, passes, send};

const SMUGGLED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";

/// A request, the answer to it, and what the client gets.
const ANSWERS: [(&str, &str, &str); 9] = [
    (GET, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine"),
    (GET, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    (
        GET,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\n\r\n",
    ),
    (GET, "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"),
    (GET, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"),
    (GET, "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
    (
        GET,
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 49\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 49\r\n\r\n",
    ),
    (HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 49\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 49\r\n\r\n"),
    (HEAD, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
];

/// Every answer with these octets behind it, at once.
fn behind(source: &'static str, name: &'static str, octets: &'static str) -> impl Iterator<Item = Case> {
    ANSWERS.into_iter().map(move |(request, answer, client)| {
        let name = format!("{name} behind {answer:?}");
        passes(source, &name, format!("{answer}{octets}"), client).to(request).once()
    })
}

/// Every answer, and these octets once the client has it.
fn later(source: &'static str, name: &'static str, steps: &[Step]) -> Vec<Case> {
    let case = |(request, answer, client): (&str, &str, &str)| {
        let case = passes(source, &format!("{name} after {answer:?}"), answer, client).to(request).once();
        steps.iter().fold(case.then(Step::WhenGot), |case, step| case.then(step.clone()))
    };
    ANSWERS.map(case).into()
}

#[tokio::test]
async fn octets_behind_an_answer_reach_nobody() {
    check(behind("RFC 9112 §9.2", "another answer", SMUGGLED)).await;
    check(behind("RFC 9110 §9.3.2", "a body", "hello")).await;
    check(behind("RFC 9112 §6.3", "an end of chunks", "0\r\n\r\n")).await;
    check(behind("RFC 9112 §6.3", "an empty line", "\r\n")).await;
}

#[tokio::test]
async fn octets_that_come_later_reach_nobody() {
    check(later("RFC 9112 §9.2", "another answer", &[send(SMUGGLED)])).await;
    check(later("RFC 9112 §6.3", "an empty line", &[send("\r\n")])).await;
}

/// The connection rests; whatever comes then, the next request does not go there.
#[tokio::test]
async fn a_connection_that_does_not_rest_is_not_used() {
    let timeout = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let steps: [(_, _, Vec<Step>); 10] = [
        ("RFC 9112 §9.5", "a close", vec![Step::Close]),
        ("RFC 9112 §9.5", "a reset", vec![Step::Reset]),
        ("RFC 9110 §15.5.9", "a 408", vec![send(timeout)]),
        ("RFC 9110 §15.5.9", "a 408 and a close", vec![send(timeout), Step::Close]),
        ("RFC 9112 §9.2", "half an answer", vec![send("HTTP/1.1 200 OK\r\nContent-")]),
        ("RFC 9112 §9.2", "an interim answer", vec![send("HTTP/1.1 103 Early Hints\r\n\r\n")]),
        ("RFC 9110 §15.2.2", "a 101", vec![send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")]),
        ("RFC 8446 §6.1", "a TLS alert", vec![send(b"\x15\x03\x03\x00\x02\x01\x00"), Step::Close]),
        ("RFC 9112 §9.2", "a NUL", vec![send("\0")]),
        ("RFC 9112 §9.2", "10,000 answers", vec![send(SMUGGLED.repeat(10_000))]),
    ];
    let answer = ANSWERS[0].1;
    check(steps.into_iter().map(|(source, name, steps)| {
        let case = passes(source, name, answer, answer).once().then(Step::WhenGot);
        steps.into_iter().fold(case, Case::then)
    }))
    .await;
}

/// What the origin was sent of the request is not known, so nothing may follow it.
#[tokio::test]
async fn an_answer_before_the_request_is_whole_is_the_last_one() {
    let head = "POST /case HTTP/1.1\r\nHost: a\r\n";
    let requests = [
        ("CVE-2025-4366", "nothing of a body", format!("{head}Content-Length: 40\r\n\r\n")),
        ("CVE-2025-4366", "half of a body", format!("{head}Content-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\n")),
        ("CVE-2025-4366", "no chunk", format!("{head}Transfer-Encoding: chunked\r\n\r\n")),
        ("CVE-2025-4366", "half of a chunk", format!("{head}Transfer-Encoding: chunked\r\n\r\n28\r\nGET /smuggled")),
        ("CVE-2025-4366", "all but the last chunk", format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")),
        (
            "RFC 9110 §10.1.1",
            "a body that waits for 100",
            format!("{head}Expect: 100-continue\r\nContent-Length: 40\r\n\r\n"),
        ),
    ];
    let answers = [
        ("a length", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n", "\r\nmine"),
        ("chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", "\r\n4\r\nmine\r\n0\r\n\r\n"),
        ("no body", "HTTP/1.1 204 No Content\r\n", "\r\n"),
    ];
    let cases = requests.iter().flat_map(|(source, name, request)| {
        answers.map(|(framing, head, body)| {
            let (name, client) =
                (format!("{name}, answered with {framing}"), format!("{head}Connection: close\r\n{body}"));
            passes(source, &name, format!("{head}{body}"), client).to(request).once().and_last()
        })
    });
    check(cases).await;
}

/// A large body is moved in another way than a small one; what follows it stays behind all the same.
#[tokio::test]
async fn octets_behind_a_large_body_reach_nobody() {
    const LENGTH: usize = 1_000_000;
    let body = String::from_utf8(vec![b'x'; LENGTH]).expect("a text");
    let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n{body}");
    check([
        passes("RFC 9112 §9.2", "a length and nothing else", &length, &length),
        passes("RFC 9112 §9.2", "a length and an answer", format!("{length}{SMUGGLED}"), &length).once(),
        passes("RFC 9112 §9.2", "a length and one octet", format!("{length}\n"), &length).once(),
        passes("RFC 9112 §9.2", "a length and an answer later", &length, &length)
            .then(Step::WhenGot)
            .then(send(SMUGGLED))
            .once(),
    ])
    .await;
}
