//! gRPC over HTTP/2 to the origins: calls of each kind with their trailers, through switches without a lost one.

mod support;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut};
use futures_util::stream::{self, Stream, StreamExt};
use http::uri::PathAndQuery;
use teal::config::Color;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::client::Grpc as GrpcClient;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use support::proxy::{Builder, Teal};
use support::soon;

/// Messages as they are: octets.
#[derive(Clone, Copy, Default)]
struct Octets;

impl Codec for Octets {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Octets;
    type Decoder = Octets;

    fn encoder(&mut self) -> Octets {
        Octets
    }

    fn decoder(&mut self) -> Octets {
        Octets
    }
}

impl Encoder for Octets {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Octets {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Messages = Pin<Box<dyn Stream<Item = Result<Vec<u8>, Status>> + Send>>;

/// A server that says its name before what it was told.
#[derive(Clone)]
struct Echo(&'static str);

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Octets);
            Ok(match request.uri().path() {
                "/test.Echo/Say" => grpc.unary(Say(echo), request).await,
                "/test.Echo/Count" => grpc.server_streaming(Count, request).await,
                _ => grpc.streaming(Chat(echo), request).await,
            })
        })
    }
}

struct Say(Echo);

impl UnaryService<Vec<u8>> for Say {
    type Response = Vec<u8>;
    type Future = Boxed<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let name = self.0.0;
        Box::pin(async move {
            if request.get_ref() == b"fail" {
                return Err(Status::new(Code::FailedPrecondition, "as asked"));
            }
            let mut answer = Response::new([name.as_bytes(), b":", request.get_ref()].concat());
            answer.metadata_mut().insert("x-name", name.parse().expect("a word"));
            Ok(answer)
        })
    }
}

struct Count;

impl ServerStreamingService<Vec<u8>> for Count {
    type Response = Vec<u8>;
    type ResponseStream = Messages;
    type Future = Boxed<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        Box::pin(async move {
            let messages = (0..request.get_ref().len()).map(|count| Ok(vec![0_u8; count * 1000]));
            let end = stream::once(async { Err(Status::new(Code::DataLoss, "at the end")) });
            Ok(Response::new(Box::pin(stream::iter(messages).chain(end)) as Messages))
        })
    }
}

struct Chat(Echo);

impl StreamingService<Vec<u8>> for Chat {
    type Response = Vec<u8>;
    type ResponseStream = Messages;
    type Future = Boxed<Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<Vec<u8>>>) -> Self::Future {
        let name = self.0.0;
        Box::pin(async move {
            let answers = request.into_inner().map(move |message| Ok([name.as_bytes(), b":", &message?].concat()));
            Ok(Response::new(Box::pin(answers) as Messages))
        })
    }
}

async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = Server::builder().add_service(Echo(name)).serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(serving);
    address
}

async fn proxy() -> Teal {
    let (blue, green) = (server("blue").await, server("green").await);
    let services = format!(
        "[[routes]]\npath = \"/test.Echo\"\nservice = \"app\"\n\
         [services.app]\nprotocol = \"h2c\"\nhealth = {{ interval = \"1h\" }}\n\
         blue = [\"{blue}\"]\ngreen = [\"{green}\"]\n"
    );
    Builder::new(&services).start().await
}

async fn client(teal: &Teal) -> GrpcClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", teal.address)).expect("a URI");
    let mut client = GrpcClient::new(endpoint.connect().await.expect("teal speaks HTTP/2"));
    client.ready().await.expect("a connection");
    client
}

async fn say(client: &mut GrpcClient<Channel>, what: &str) -> Result<Response<Vec<u8>>, Status> {
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = PathAndQuery::from_static("/test.Echo/Say");
    client.unary(Request::new(what.as_bytes().to_vec()), path, Octets).await
}

async fn next(answers: &mut Streaming<Vec<u8>>) -> Option<String> {
    let message = soon("a message", answers.message()).await.expect("no error");
    message.map(|message| String::from_utf8(message).expect("a text"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_has_its_answer_its_metadata_and_its_status() {
    let teal = proxy().await;
    let mut client = client(&teal).await;
    let answer = soon("the answer", say(&mut client, "hello")).await.expect("a good call");
    assert_eq!(answer.get_ref(), b"blue:hello");
    assert_eq!(answer.metadata().get("x-name").expect("a field"), "blue");
    let status = soon("the status", say(&mut client, "fail")).await.expect_err("as asked");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "as asked"));
    let large = "x".repeat(3_000_000);
    let answer = soon("the answer", say(&mut client, &large)).await.expect("a good call");
    assert_eq!(answer.get_ref().len(), large.len() + 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_answers_comes_with_the_status_behind_it() {
    let teal = proxy().await;
    let mut client = client(&teal).await;
    let path = PathAndQuery::from_static("/test.Echo/Count");
    let answers = client.server_streaming(Request::new(vec![0; 50]), path, Octets).await.expect("a good call");
    let mut answers: Streaming<Vec<u8>> = answers.into_inner();
    for count in 0..50 {
        let message = soon("a message", answers.message()).await.expect("a message").expect("not the end");
        assert_eq!(message.len(), count * 1000);
    }
    let status = soon("the end", answers.message()).await.expect_err("the status behind the stream");
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "at the end"));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_talk_and_a_switch_does_not_interrupt_them() {
    let teal = proxy().await;
    let mut client = client(&teal).await;
    let (words, listener) = mpsc::channel::<Vec<u8>>(1);
    let said = stream::unfold(listener, |mut listener| async { Some((listener.recv().await?, listener)) });
    let path = PathAndQuery::from_static("/test.Echo/Chat");
    words.send(b"first".to_vec()).await.expect("a listener");
    let answers = soon("the head", client.streaming(Request::new(said), path, Octets)).await.expect("a good call");
    let mut answers: Streaming<Vec<u8>> = answers.into_inner();
    assert_eq!(next(&mut answers).await.as_deref(), Some("blue:first"));
    teal.switch("app", Color::Green).await.expect("green is healthy");
    for word in ["second", "third"] {
        words.send(word.into()).await.expect("a listener");
        assert_eq!(next(&mut answers).await, Some(format!("blue:{word}")), "what has begun goes on");
    }
    let new = soon("the answer", say(&mut client, "new")).await.expect("a good call");
    assert_eq!(new.get_ref(), b"green:new");
    drop(words);
    assert_eq!(next(&mut answers).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_lost_in_many_switches() {
    const CLIENTS: usize = 8;
    const SWITCHES: usize = 200;
    let teal = proxy().await;
    let (is_over, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = client(&teal).await;
        let (is_over, made) = (is_over.clone(), made.clone());
        callers.push(tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let answer = soon("an answer", say(&mut client, "x")).await.expect("no call is lost");
                assert!(matches!(answer.get_ref().as_slice(), b"blue:x" | b"green:x"));
                made.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for number in 0..SWITCHES {
        let to = if number % 2 == 0 { Color::Green } else { Color::Blue };
        teal.switch("app", to).await.expect("both colors are healthy");
        // The ack means done.
        let mut late = client(&teal).await;
        let answer = soon("an answer", say(&mut late, "x")).await.expect("no call is lost");
        assert_eq!(answer.get_ref(), format!("{to}:x").as_bytes());
    }
    is_over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no caller has failed");
    }
    assert!(made.load(Ordering::Relaxed) > 0);
}
