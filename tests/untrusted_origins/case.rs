//! One row of a table: what is asked, what the origin sends, what the client must get, and what becomes of the
//! connection to the origin.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::client::{Answer, Client, field};
use crate::support::origin::{Origin, ok, read_head};
use crate::support::proxy::{Builder, Teal};
use crate::support::soon;

pub(crate) const GET: &str = "GET /case HTTP/1.1\r\nHost: a\r\n\r\n";
pub(crate) const HEAD: &str = "HEAD /case HTTP/1.1\r\nHost: a\r\n\r\n";
pub(crate) const OLD_GET: &str = "GET /case HTTP/1.0\r\n\r\n";

const INVALID: &str = "502 the service gave an invalid answer\n";
const UNREACHABLE: &str = "502 the service cannot be reached\n";
const LATE: &str = "504 the service did not answer in time\n";
/// Interim answers that may go on before an origin has to come to the point.
const MOST_INTERIM: usize = 32;
/// Nothing is tried again, and nothing is ejected: every row sees its own origin.
const SERVICE: &str = "retries = 0\noutlier = { consecutive_errors = 0 }";

#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// The rule, or the fault of another program, that it stands for.
    source: &'static str,
    name: String,
    request: String,
    steps: Vec<Step>,
    got: Got,
    is_reused: bool,
    /// Further settings: of the listener, and of the service.
    settings: [&'static str; 2],
}

/// What the origin does once it has the head of the request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Octet by octet.
    Dribble(Vec<u8>),
    /// Waits until the client has got what it must get so far.
    WhenGot,
    Close,
    Reset,
}

/// What the client gets.
#[derive(Clone, Debug)]
pub(crate) enum Got {
    /// A 502 for an answer that cannot be understood, maybe after interim answers; then the connection ends.
    Invalid,
    /// A 502 for an origin that went before it said anything that counts.
    Unreachable,
    /// A 504.
    Late,
    /// These octets; then the connection goes on.
    Exactly(Vec<u8>),
    /// These octets; then the connection ends in order.
    Last(Vec<u8>),
    /// The first octets, and of the others as many as came through. No client may take that for a whole answer.
    Cut(Vec<u8>, Vec<u8>),
}

/// What the parties of a case tell each other.
#[derive(Default)]
struct Stage {
    /// The client has what it must get.
    got: Notify,
    /// The origin has taken all its steps.
    is_played: Notify,
    /// The connection of the case has ended.
    is_over: Notify,
    /// The number of that connection.
    connection: AtomicUsize,
}

fn case(source: &'static str, name: &str, steps: Vec<Step>, got: Got) -> Case {
    let (name, request) = (name.to_owned(), GET.to_owned());
    Case { source, name, request, steps, got, is_reused: false, settings: ["", ""] }
}

/// An answer that is none.
pub(crate) fn refused(source: &'static str, name: &str, answer: impl AsRef<[u8]>) -> Case {
    case(source, name, vec![send(answer)], Got::Invalid)
}

/// An answer that is clear; `client` is what the client gets. The connection is used again.
pub(crate) fn passes(source: &'static str, name: &str, answer: impl AsRef<[u8]>, client: impl AsRef<[u8]>) -> Case {
    let got = Got::Exactly(client.as_ref().to_vec());
    Case { is_reused: true, ..case(source, name, vec![send(answer)], got) }
}

/// An answer that begins well: the client has got `first` of it when the rest comes, and of that at most `then`.
pub(crate) fn broken(
    source: &'static str,
    name: &str,
    (answer, rest): (impl AsRef<[u8]>, impl AsRef<[u8]>),
    (first, then): (impl AsRef<[u8]>, impl AsRef<[u8]>),
) -> Case {
    let got = Got::Cut(first.as_ref().to_vec(), then.as_ref().to_vec());
    case(source, name, vec![send(answer), Step::WhenGot, send(rest)], got)
}

/// An origin that goes before it has answered.
pub(crate) fn gone(source: &'static str, name: &str, answer: impl AsRef<[u8]>, end: Step) -> Case {
    case(source, name, vec![send(answer), end], Got::Unreachable)
}

pub(crate) fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec())
}

impl Case {
    pub(crate) fn to(self, request: &str) -> Case {
        Case { request: request.to_owned(), ..self }
    }

    pub(crate) fn then(mut self, step: Step) -> Case {
        self.steps.push(step);
        self
    }

    /// The origin sends octet by octet what it would send at once.
    pub(crate) fn dribbled(mut self) -> Case {
        for step in &mut self.steps {
            if let Step::Send(bytes) = step {
                *step = Step::Dribble(std::mem::take(bytes));
            }
        }
        self
    }

    /// The connection to the origin is not used again.
    pub(crate) fn once(self) -> Case {
        Case { is_reused: false, ..self }
    }

    /// The client's connection is not used again.
    pub(crate) fn and_last(self) -> Case {
        let got = match self.got {
            Got::Exactly(bytes) => Got::Last(bytes),
            got => got,
        };
        Case { got, ..self }
    }

    pub(crate) fn late(self) -> Case {
        Case { got: Got::Late, ..self }
    }

    pub(crate) fn listener(self, keys: &'static str) -> Case {
        Case { settings: [keys, self.settings[1]], ..self }
    }

    pub(crate) fn service(self, keys: &'static str) -> Case {
        Case { settings: [self.settings[0], keys], ..self }
    }

    async fn check(self) {
        let stage = Arc::new(Stage::default());
        let origin = self.origin(stage.clone()).await;
        let [listener, service] = self.settings;
        let builder = Builder::app(&[&origin]).workers(1).listener(listener).service(SERVICE).service(service);
        let teal = builder.start().await;
        let mut client = Client::connect(teal.address).await;
        client.send(&self.request).await;
        let goes_on = self.check_answer(&mut client, &stage).await;
        soon("the origin to have its say", stage.is_played.notified()).await;
        let next = next(&teal, Client::connect(teal.address).await).await;
        let first = stage.connection.load(Ordering::SeqCst);
        if self.is_reused {
            assert_eq!(next, first, "the connection of the origin is not used again");
        } else {
            assert_ne!(next, first, "the connection of the origin is used again");
            soon("the end of the origin's connection", stage.is_over.notified()).await;
        }
        if goes_on {
            assert_eq!(self::next(&teal, client).await == first, self.is_reused);
        }
        self::next(&teal, Client::connect(teal.address).await).await;
    }

    /// Whether the client may ask again.
    async fn check_answer(&self, client: &mut Client, stage: &Stage) -> bool {
        let reply = match &self.got {
            Got::Invalid => (502, INVALID),
            Got::Unreachable => (502, UNREACHABLE),
            Got::Late => (504, LATE),
            Got::Exactly(bytes) => {
                client.expect(bytes).await;
                stage.got.notify_one();
                return true;
            }
            Got::Last(bytes) => {
                client.expect(bytes).await;
                stage.got.notify_one();
                assert_eq!(client.rest().await, (Vec::new(), true), "nothing follows the last answer");
                return false;
            }
            Got::Cut(first, then) => {
                client.expect(first).await;
                stage.got.notify_one();
                let (rest, in_order) = client.rest().await;
                assert!(then.starts_with(&rest), "{:?} was not to come", String::from_utf8_lossy(&rest));
                assert!(!looks_whole(&[&first[..], &rest].concat(), in_order), "a broken answer looks whole");
                return false;
            }
        };
        let to_head = self.request.starts_with("HEAD");
        let answer = final_answer(client, to_head).await;
        assert_eq!((answer.status, answer.text()), if to_head { (reply.0, "") } else { reply });
        stage.got.notify_one();
        let goes_on = answer.field("connection") != Some("close");
        if !goes_on {
            assert_eq!(client.rest().await, (Vec::new(), true), "nothing follows the last answer");
        }
        assert!(!goes_on || !matches!(self.got, Got::Invalid), "the client's connection ends");
        goes_on
    }

    async fn origin(&self, stage: Arc<Stage>) -> Origin {
        let (case, next_number) = (self.clone(), AtomicUsize::new(1));
        Origin::raw(move |stream| {
            serve(case.steps.clone(), stage.clone(), next_number.fetch_add(1, Ordering::SeqCst), stream)
        })
        .await
    }
}

async fn final_answer(client: &mut Client, to_head: bool) -> Answer {
    for _ in 0..=MOST_INTERIM {
        let answer = client.try_answer(to_head).await.expect("a whole answer");
        if answer.status >= 200 {
            return answer;
        }
        assert_eq!(answer.field("content-length"), None, "an interim answer has no length");
    }
    panic!("more than {MOST_INTERIM} interim answers");
}

/// Another request, answered with what was asked and the number of the origin's connection, which it gives.
async fn next(teal: &Teal, mut client: Client) -> usize {
    let path = format!("/next/{}", fastrand::u64(..));
    let mut answer = client.get(&path).await;
    // Where a row has a short `response_timeout`, a busy machine may need more than one attempt.
    while answer.status == 504 {
        client = Client::connect(teal.address).await;
        answer = client.get(&path).await;
    }
    let (asked, number) = answer.text().split_once(" on ").unwrap_or_else(|| panic!("somebody else's: {answer:?}"));
    assert_eq!(asked, path, "somebody else's answer");
    assert_eq!(answer.head, format!("HTTP/1.1 200 OK\r\nContent-Length: {}", answer.body.len()));
    assert!(client.buffer.is_empty(), "octets after the answer: {:?}", String::from_utf8_lossy(&client.buffer));
    number.parse().expect("a number")
}

/// Whether a client could take this for all of an answer.
fn looks_whole(bytes: &[u8], in_order: bool) -> bool {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let (head, body) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 4..]);
    match field(&head, "content-length").map(str::parse::<u64>) {
        Some(length) => body.len() as u64 >= length.expect("a length"),
        None if field(&head, "transfer-encoding").is_some() => body.ends_with(b"0\r\n\r\n"),
        None => in_order,
    }
}

/// Answers `/next/…` as it should, and every other request with the steps.
async fn serve(steps: Vec<Step>, stage: Arc<Stage>, number: usize, mut stream: TcpStream) {
    let mut buffer = Vec::new();
    let mut is_case = false;
    while let Some(head) = read_head(&mut stream, &mut buffer).await {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path.starts_with("/next/") {
            let _ = stream.write_all(&ok(&format!("{path} on {number}"))).await;
            continue;
        }
        assert!(!is_case, "the request of the case has come twice");
        is_case = true;
        stage.connection.store(number, Ordering::SeqCst);
        for step in &steps {
            match step {
                // The proxy may have had enough before all of it is written.
                Step::Send(bytes) => drop(stream.write_all(bytes).await),
                Step::Dribble(bytes) => {
                    for octet in bytes {
                        let _ = stream.write_all(&[*octet]).await;
                        tokio::task::yield_now().await;
                    }
                }
                Step::WhenGot => stage.got.notified().await,
                Step::Close => break,
                Step::Reset => SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket"),
            }
        }
        if let Some(Step::Close | Step::Reset) = steps.last() {
            break;
        }
        stage.is_played.notify_one();
    }
    drop(stream);
    if is_case {
        stage.is_played.notify_one();
        stage.is_over.notify_one();
    }
}

/// Checks every row, and names all that fail.
pub(crate) async fn check(cases: impl IntoIterator<Item = Case>) {
    let mut failed = Vec::new();
    for case in cases {
        let title = format!("{}: {}", case.source, case.name);
        if tokio::spawn(case.check()).await.is_err() {
            eprintln!("^ {title}");
            failed.push(title);
        }
    }
    assert!(failed.is_empty(), "{} rows fail:\n{}", failed.len(), failed.join("\n"));
}
