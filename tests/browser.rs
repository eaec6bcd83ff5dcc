//! Clients that nobody here has written go through a switch: a browser, the Python library `websockets`, tungstenite.
//! Who is not installed is left out, and said to be.

mod support;

use std::path::Path;
use std::process::{Command as Probe, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use socket2::{Domain, Socket, Type};
use teal::config::Color;
use teal::drain::KindReport;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;

use support::frames::account;
use support::origin::{Origin, Request, ok, read_request};
use support::proxy::{Builder, Teal};
use support::tls::Authority;
use support::{scratch, soon};

const DRAIN: &str = "health = { interval = \"1h\" }\ndrain = { timeout = \"10m\", websocket = { spread = \"200ms\" }, \
                     sse = { spread = \"200ms\", retry = \"50ms..200ms\" } }\n";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/chat.py");
const PYTHON: &str = "/usr/bin/python3";
/// A browser takes its time to start.
const BROWSERS_PATIENCE: Duration = Duration::from_secs(60);

/// A page that uses what the query names, and reports what it sees.
const PAGE: &str = r#"<!doctype html><title>a page</title><script>
let said = Promise.resolve();
const say = text => { said = said.then(() => fetch("/report", { method: "POST", body: text })).catch(() => {}); };
const states = ["connecting", "open", "closed"];
const listen = (name, path) => {
    const events = new EventSource(path);
    events.onopen = () => say(`${name} open`);
    events.onmessage = event => say(`${name} event ${event.lastEventId} ${event.data}`);
    events.onerror = () => say(`${name} error ${states[events.readyState]}`);
};
const chat = () => {
    const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/chat`);
    socket.onmessage = event => say(`chat message ${event.data}`);
    socket.onclose = event => {
        say(`chat close ${event.wasClean ? "clean" : "unclean"} ${event.code} ${event.reason}`);
        setTimeout(chat, 50);
    };
};
const seen = new Set();
new PerformanceObserver(list => list.getEntries().forEach(entry => {
    const line = `over ${entry.nextHopProtocol}: ${new URL(entry.name).pathname}`;
    if (!seen.has(line)) say(line);
    seen.add(line);
})).observe({ type: "resource", buffered: true });
const wanted = new URLSearchParams(location.search);
wanted.getAll("events").forEach(path => listen(path, path));
if (wanted.has("chat")) chat();
</script>"#;

/// What the page has seen, in order.
type Reports = Arc<Mutex<Vec<String>>>;

/// An origin with the page, and what the page uses.
async fn site(color: &'static str, reports: &Reports) -> Origin {
    let reports = reports.clone();
    Origin::raw(move |stream| serve(stream, color, reports.clone())).await
}

async fn serve(mut stream: TcpStream, color: &'static str, reports: Reports) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let target = request.line().split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = match target.split('?').next().unwrap_or_default() {
            "/" => html(),
            "/report" => {
                reports.lock().push(String::from_utf8_lossy(&request.body).into_owned());
                ok("")
            }
            "/plain-503" => b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "/chat" => {
                // Names are in lower case over HTTP/2 only.
                let version = if request.head.contains("\r\nuser-agent:") { "h2" } else { "http/1.1" };
                reports.lock().push(format!("over {version}: /chat"));
                return converse(stream, color, &request).await;
            }
            "/events" | "/away" => return tell_events(stream, color, &request).await,
            _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn html() -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{PAGE}", PAGE.len()).into_bytes()
}

/// A WebSocket that says its color and then answers what it is asked.
async fn converse(mut stream: TcpStream, color: &str, request: &Request) {
    let key = derive_accept_key(request.field("sec-websocket-key").unwrap_or_default().as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {key}\r\n\r\n"
    );
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let _ = socket.send(Message::text(color)).await;
    while let Some(Ok(message)) = socket.next().await {
        if message.is_text() && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Numbered events, from the one behind the last that the client has.
async fn tell_events(mut stream: TcpStream, color: &str, request: &Request) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let _ = stream.write_all(head.as_bytes()).await;
    let last: u64 = request.field("last-event-id").and_then(|id| id.parse().ok()).unwrap_or(0);
    for id in last + 1.. {
        let event = format!("id: {id}\ndata: {color}\n\n");
        if stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A browser with a page; it ends with the value.
struct Browser {
    child: Child,
    _home: TempDir,
}

impl Browser {
    /// `None`: there is none on this machine.
    fn open(url: &str) -> Option<Browser> {
        let path = std::env::var_os("PATH")?;
        let Some(program) = std::env::split_paths(&path).map(|dir| dir.join("chromium")).find(|file| file.is_file())
        else {
            println!("skipped: no chromium");
            return None;
        };
        let home = scratch();
        let child = Command::new(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-extensions", "--no-proxy-server"])
            .arg("--ignore-certificate-errors")
            .arg(format!("--user-data-dir={}", home.path().display()))
            .arg(url)
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("the browser starts");
        Some(Browser { child, _home: home })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It is not one process but many, which are a group of their own.
        let group = self.child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Waits until the page has reported what `is_there` looks for.
async fn reported(reports: &Reports, what: &str, is_there: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + BROWSERS_PATIENCE;
    while !is_there(&reports.lock()) {
        assert!(Instant::now() < deadline, "waited in vain until {what}: {:?}", reports.lock());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn has(line: &str) -> impl Fn(&[String]) -> bool {
    let line = line.to_owned();
    move |lines| lines.contains(&line)
}

fn app(blue: impl std::fmt::Display, green: impl std::fmt::Display) -> String {
    format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n\
         [services.app]\nblue = [\"{blue}\"]\ngreen = [\"{green}\"]\n{DRAIN}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_is_told_comes_back_and_misses_nothing() {
    let reports = Reports::default();
    let (blue, green) = (site("blue", &reports).await, site("green", &reports).await);
    let teal = Builder::new(&app(blue.address, green.address)).start().await;
    goes_through_a_switch(&teal, "http", "http/1.1", &reports).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_over_http_2_is_told_comes_back_and_misses_nothing() {
    let reports = Reports::default();
    let (blue, green) = (site("blue", &reports).await, site("green", &reports).await);
    let dir = scratch();
    let pair = Authority::new().issue(&["localhost"]).write(dir.path(), "site");
    let keys = format!("tls = {{ certificates = [{pair}] }}\n");
    let teal = Builder::new(&app(blue.address, green.address)).listener(&keys).start().await;
    // The chat by extended CONNECT (RFC 8441), which a browser uses where the proxy offers it.
    goes_through_a_switch(&teal, "https", "h2", &reports).await;
}

/// A browser with a chat and an event stream, which speaks this `version` of HTTP for everything.
async fn goes_through_a_switch(teal: &Teal, scheme: &str, version: &str, reports: &Reports) {
    let url = format!("{scheme}://{}/?chat&events=/events", teal.address);
    let Some(_browser) = Browser::open(&url) else { return };
    let number = |lines: &[String], color: &str| lines.iter().filter(|line| line.ends_with(color)).count();
    reported(reports, "both streams are open", |lines| has("chat message blue")(lines) && number(lines, " blue") > 5)
        .await;
    let record = teal.switch("app", Color::Green).await.expect("a switch");
    reported(reports, "both streams are back", |lines| has("chat message green")(lines) && number(lines, " green") > 5)
        .await;
    assert_eq!(account(&record).await, KindReport { at_switch: 1, finished: 1, ..KindReport::default() });
    let sse = record.drain().expect("a drain").report().sse;
    assert_eq!((sse.at_switch, sse.finished), (1, 1));

    let lines = reports.lock().clone();
    let closes: Vec<&String> = lines.iter().filter(|line| line.starts_with("chat close")).collect();
    assert_eq!(closes, ["chat close clean 1012 service restart"]);
    let errors: Vec<&String> = lines.iter().filter(|line| line.starts_with("/events error")).collect();
    assert_eq!(errors, ["/events error connecting"]);
    let ids = lines.iter().filter_map(|line| line.strip_prefix("/events event ")?.split(' ').next());
    let ids: Vec<u64> = ids.map(|id| id.parse().expect("a number")).collect();
    assert!(ids.iter().copied().eq(1..=ids.len() as u64), "{ids:?}");

    for path in ["/chat", "/events", "/report"] {
        let line = format!("over {version}: {path}");
        reported(reports, &line, has(&line)).await;
    }
    let is_other = |line: &String| line.starts_with("over ") && !line.contains(version);
    assert!(!reports.lock().iter().any(is_other), "{:?}", reports.lock());
}

/// Why an event stream that cannot be had is answered with 200.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_gives_up_at_a_503_but_not_when_it_is_told_to_come_back() {
    let reports = Reports::default();
    let origin = site("blue", &reports).await;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    let address = socket.local_addr().expect("a bound address").as_socket().expect("an IP address");
    let away = format!(
        "[[routes]]\npath = \"/away\"\nservice = \"away\"\n[services.away]\nblue = [\"{address}\"]\n\
         health = {{ interval = \"100ms\" }}\nqueue_timeout = \"100ms\"\ndrain = {{ sse = {{ retry = \"100ms\" }} }}\n"
    );
    let teal = Builder::new(&(app(origin.address, origin.address) + &away)).start().await;
    let url = format!("http://{}/?events=/plain-503&events=/away", teal.address);
    let Some(_browser) = Browser::open(&url) else { return };
    let tries = |lines: &[String]| lines.iter().filter(|line| *line == "/away error connecting").count();
    reported(&reports, "one has given up and the other has not", |lines| {
        has("/plain-503 error closed")(lines) && tries(lines) > 2
    })
    .await;
    socket.listen(16).expect("a bound socket");
    socket.set_nonblocking(true).expect("a socket");
    let listener = TcpListener::from_std(socket.into()).expect("a runtime");
    let late = reports.clone();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, "late", late.clone()));
        }
    });
    reported(&reports, "it is served", has("/away event 1 late")).await;
    serving.abort();
    let lines = reports.lock().clone();
    assert!(!lines.contains(&"/away error closed".to_owned()), "{lines:?}");
    let of_503: Vec<&String> = lines.iter().filter(|line| line.starts_with("/plain-503")).collect();
    assert_eq!(of_503, ["/plain-503 error closed"], "it never tried again");
}

/// One end of a chat in Python.
struct Python {
    _child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Python {
    fn start(role: &str, what: &str, compression: &str) -> Python {
        let mut child = Command::new(PYTHON)
            .args([SCRIPT, role, what, compression])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe was asked for")).lines();
        Python { _child: child, stdout }
    }

    async fn line(&mut self) -> String {
        soon("a line", self.stdout.next_line()).await.expect("a text").expect("it has not ended")
    }
}

/// Whether the library is there.
fn has_websockets() -> bool {
    let is_there = Path::new(PYTHON).exists()
        && Probe::new(PYTHON)
            .args(["-c", "import websockets"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
    if !is_there {
        println!("skipped: no {PYTHON} with the module websockets");
    }
    is_there
}

#[tokio::test]
async fn pythons_websockets_are_told_and_come_back() {
    if !has_websockets() {
        return;
    }
    for (compression, extensions) in [("deflate", "['permessage-deflate']"), ("none", "[]")] {
        let mut blue = Python::start("serve", "blue", compression);
        let mut green = Python::start("serve", "green", compression);
        let address = |port: String| format!("127.0.0.1:{port}");
        let (blue_at, green_at) = (address(blue.line().await), address(green.line().await));
        let teal = Builder::new(&app(blue_at, green_at)).start().await;
        let mut client = Python::start("talk", &teal.address.port().to_string(), compression);
        assert_eq!([client.line().await, client.line().await], ["color blue", &format!("talked {extensions}")]);
        let record = teal.switch("app", Color::Green).await.expect("a switch");
        assert_eq!(client.line().await, "closed 1012 service restart");
        assert_eq!([client.line().await, client.line().await], ["color green", &format!("talked {extensions}")]);
        assert_eq!(account(&record).await, KindReport { at_switch: 1, finished: 1, ..KindReport::default() });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tungstenites_are_told_and_come_back() {
    const COUNT: u64 = 50;
    let reports = Reports::default();
    let (blue, green) = (site("blue", &reports).await, site("green", &reports).await);
    let teal = Builder::new(&app(blue.address, green.address)).start().await;
    let address = teal.address;
    let connect = async move || {
        let stream = TcpStream::connect(address).await.expect("the proxy accepts");
        let (mut socket, _) = tokio_tungstenite::client_async("ws://a/chat", stream).await.expect("a WebSocket");
        let color = socket.next().await.expect("a message").expect("an open socket");
        (socket, color)
    };
    let mut sockets = Vec::new();
    for _ in 0..COUNT {
        let (socket, color) = connect().await;
        assert_eq!(color, Message::text("blue"));
        sockets.push(socket);
    }
    let record = teal.switch("app", Color::Green).await.expect("a switch");
    let endings = sockets.into_iter().map(async |mut socket| {
        let (mut asked, mut answered) = (0, 0);
        let close = loop {
            // Until its moment has come, all goes on; every question before that is answered.
            if socket.send(Message::text("question")).await.is_ok() {
                asked += 1;
            }
            match socket.next().await.expect("a Close first") {
                Ok(Message::Close(close)) => break close,
                Ok(_) => answered += 1,
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(80)).await;
        };
        assert!(asked - answered <= 1, "{asked} questions, {answered} answers");
        assert_eq!(close, Some(CloseFrame { code: 1012.into(), reason: "service restart".into() }));
        assert!(socket.next().await.is_none_or(|end| end.is_err()));
        assert_eq!(connect().await.1, Message::text("green"));
    });
    soon("all endings", futures_util::future::join_all(endings)).await;
    assert_eq!(account(&record).await, KindReport { at_switch: COUNT, finished: COUNT, ..KindReport::default() });
}
