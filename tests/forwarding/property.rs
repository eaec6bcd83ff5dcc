//! Whatever requests a connection carries and however both sides cut them into packets, each arrives as it was sent and
//! gets the answer that is meant for it.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;

use crate::support::body;
use crate::support::client::Client;
use crate::support::origin::{Origin, read_request};
use crate::support::proxy::{Builder, Teal};
use crate::support::soon;

#[derive(Clone, Debug)]
enum Framing {
    Empty,
    Length(usize),
    Chunked(Vec<usize>),
}

impl Framing {
    fn length(&self) -> usize {
        match self {
            Framing::Empty => 0,
            Framing::Length(length) => *length,
            Framing::Chunked(sizes) => sizes.iter().sum(),
        }
    }

    /// The fields that announce the body, the empty line, and the body.
    fn encode(&self) -> Vec<u8> {
        match self {
            Framing::Empty => b"\r\n".to_vec(),
            Framing::Length(length) => {
                [format!("Content-Length: {length}\r\n\r\n").as_bytes(), &body::body(*length)].concat()
            }
            Framing::Chunked(sizes) => {
                let mut bytes = b"Transfer-Encoding: chunked\r\n\r\n".to_vec();
                let mut at = 0;
                for size in sizes {
                    bytes.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                    bytes.extend_from_slice(&body::body(at + size)[at..]);
                    bytes.extend_from_slice(b"\r\n");
                    at += size;
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
                bytes
            }
        }
    }
}

fn framing() -> impl Strategy<Value = Framing> {
    let size = prop_oneof![6 => 1usize..40, 2 => 1usize..5_000, 1 => 1usize..70_000];
    prop_oneof![
        2 => Just(Framing::Empty),
        2 => size.clone().prop_map(Framing::Length),
        2 => prop::collection::vec(size, 0..5).prop_map(Framing::Chunked),
    ]
}

/// A request, the answer that it asks for, and how large the pieces are in which that is written.
fn exchange() -> impl Strategy<Value = (Framing, Framing, usize)> {
    (framing(), framing(), prop_oneof![1usize..30, 1_000usize..100_000])
}

/// Answers in the pieces that the request asks for, with the body that the request asks for.
async fn obedient() -> Origin {
    Origin::raw(|mut stream| async move {
        let mut buffer = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut buffer).await {
            body::check(0, &request.body);
            let number = |name: &str| request.field(name).expect("an order").parse::<usize>().expect("a number");
            let sizes =
                request.field("x-chunks").map(|sizes| sizes.split(' ').filter_map(|size| size.parse().ok()).collect());
            let framing = sizes.map_or_else(|| Framing::Length(number("x-length")), Framing::Chunked);
            let head = format!("HTTP/1.1 200 OK\r\nX-Got: {} {}\r\n", request.line(), request.body.len());
            let answer = [head.as_bytes(), &framing.encode()].concat();
            // Small pieces only at the beginning: the rest of a large body would take for ever.
            let (first, rest) = answer.split_at(answer.len().min(number("x-piece") * 50));
            for piece in first.chunks(number("x-piece")).chain([rest]) {
                if stream.write_all(piece).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

fn request(place: usize, (sent, wanted, piece): &(Framing, Framing, usize)) -> Vec<u8> {
    let wanted = match wanted {
        Framing::Chunked(sizes) => {
            format!("X-Chunks: {}", sizes.iter().map(|size| format!("{size} ")).collect::<String>())
        }
        other => format!("X-Length: {}", other.length()),
    };
    let head = format!("POST /{place} HTTP/1.1\r\nHost: a\r\n{wanted}\r\nX-Piece: {piece}\r\n");
    [head.as_bytes(), &sent.encode()].concat()
}

async fn run(teal: &Teal, exchanges: &[(Framing, Framing, usize)], cuts: &[Index]) -> Result<(), TestCaseError> {
    let bytes: Vec<u8> = exchanges.iter().enumerate().flat_map(|(place, exchange)| request(place, exchange)).collect();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([bytes.len()]).collect();
    cuts.sort_unstable();
    let (reader, mut writer) = Client::connect(teal.address).await.stream.into_split();
    let sending = tokio::spawn(async move {
        let mut at = 0;
        for cut in cuts {
            writer.write_all(&bytes[at..cut]).await.expect("the proxy reads");
            tokio::task::yield_now().await;
            at = cut;
        }
        writer
    });
    let (mut reader, mut buffer) = (reader, Vec::new());
    for (place, (sent, wanted, _)) in exchanges.iter().enumerate() {
        let answer = soon("an answer", read_request(&mut reader, &mut buffer)).await.expect("a whole answer");
        let got = format!("X-Got: POST /{place} HTTP/1.1 {}", sent.length());
        prop_assert!(answer.head.lines().any(|line| line == got), "{:?} instead of {got:?}", answer.head);
        prop_assert_eq!(answer.body.len(), wanted.length());
        body::check(0, &answer.body);
    }
    drop(sending.await.expect("all was sent"));
    prop_assert!(buffer.is_empty(), "more than was asked for");
    Ok(())
}

#[test]
fn each_request_gets_its_own_answer_however_the_bytes_are_cut() {
    let runtime = Runtime::new().expect("a runtime");
    let (_origin, teal) = runtime.block_on(async {
        let origin = obedient().await;
        let teal = Builder::app(&[&origin]).start().await;
        (origin, teal)
    });
    let strategy = (prop::collection::vec(exchange(), 1..8), prop::collection::vec(any::<Index>(), 0..40));
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    let result = runner.run(&strategy, |(exchanges, cuts)| runtime.block_on(run(&teal, &exchanges, &cuts)));
    result.unwrap_or_else(|error| panic!("{error}"));
}
