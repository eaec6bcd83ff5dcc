//! One connection of the admin API: HTTP/1.1, with a bound on everything that a client can be slow at.

use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::admin::gate::Local;

/// For a request head to arrive, and for an idle connection to be used again.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Octets of a request head.
const LONGEST_HEAD: usize = 32 * 1024;
/// How long a client may take nothing of an answer.
const TAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves a connection until either side ends it; when `stop` is cancelled, after the answer under way.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    local: Option<SocketAddr>,
    router: Router,
    stop: CancellationToken,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Local(local));
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(Patient { stream, stalled: None }), service);
    let mut connection = std::pin::pin!(connection);
    // What goes wrong with a connection is its client's affair.
    let _ = tokio::select! {
        result = &mut connection => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
}

/// A stream that breaks when its peer takes nothing for too long.
struct Patient<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: Unpin> Patient<S> {
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = write(Pin::new(&mut self.stream), cx) {
            self.stalled = None;
            return Poll::Ready(result);
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(TAKE_TIMEOUT)));
        stalled.as_mut().poll(cx).map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.watch(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(cx, |stream, cx| stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watch(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use crate::admin::extract::JsonBody;

    use super::*;

    /// What a client gets that sends `said` and then nothing, and how long it has to wait for the end.
    async fn told(said: &str) -> (String, Duration) {
        let (ours, mut theirs) = duplex(4096);
        let router = Router::new().route("/", post(async |_: JsonBody<()>| "done"));
        let began = Instant::now();
        let serving = tokio::spawn(serve(ours, None, router, CancellationToken::new()));
        theirs.write_all(said.as_bytes()).await.expect("it fits into the pipe");
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.expect("an end in order");
        serving.await.expect("no panic");
        (answer, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_is_waited_for_and_then_given_up() {
        for said in ["", "POST / HT"] {
            let (answer, took) = told(said).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
            assert!((HEAD_TIMEOUT..HEAD_TIMEOUT * 2).contains(&took), "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_body_is_waited_for_and_then_refused() {
        let said = "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
        let (answer, took) = told(said).await;
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("urn:teal:too-slow"), "{answer}");
        assert!(took < HEAD_TIMEOUT, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_is_closed_when_it_is_not_used_again() {
        let (answer, took) = told("POST / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        assert!((HEAD_TIMEOUT..HEAD_TIMEOUT * 2).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (ours, theirs) = duplex(1024);
        let mut stream = Patient { stream: ours, stalled: None };
        let error = stream.write_all(&[0; 2048]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_that_takes_something_now_and_then_is_served() {
        let (ours, mut theirs) = duplex(1024);
        let mut stream = Patient { stream: ours, stalled: None };
        let reader = tokio::spawn(async move {
            let mut piece = [0; 1024];
            for _ in 0..4 {
                sleep(TAKE_TIMEOUT * 2 / 3).await;
                theirs.read_exact(&mut piece).await.expect("a piece");
            }
        });
        stream.write_all(&[0; 4096]).await.expect("the reader takes all of it");
        reader.await.expect("the reader ends");
    }
}
