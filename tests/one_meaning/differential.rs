//! The same rows through nginx and HAProxy, where they are installed: where is teal stricter, and where are they?
//!
//! Nothing here depends on what they do with a row, for every version of them does something else. With
//! `TEAL_WRITE_TABLE=FILE` the differences are written: between the markers of FILE if it has them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::row::{NEXT, Row, forwarded, get, got, row};
use crate::stage::{Recorder, find};
use crate::support::{PATIENCE, scratch};
use crate::tables;

/// Who says nothing for so long waits for more.
const QUIET: Duration = Duration::from_millis(250);
const BEGIN: &str = "<!-- one meaning: begin -->\n";
const END: &str = "<!-- one meaning: end -->";

/// Another proxy, on a unix socket of its own, in front of an origin of its own. Ended on drop.
struct Peer {
    name: String,
    child: Child,
    socket: PathBuf,
    recorder: Recorder,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// Both are set up as in the benchmarks, as somebody would who knows them well. `None` if it is not installed.
    async fn start(program: &str, folder: &Path) -> Option<Peer> {
        let path = find_program(program)?;
        let (recorder, socket) = (Recorder::start().await, folder.join(format!("{program}.sock")));
        let config = match program {
            "nginx" => nginx(folder, &socket, &recorder),
            _ => haproxy(&socket, &recorder),
        };
        let file = folder.join(format!("{program}.conf"));
        fs::write(&file, config).expect("the config is written");
        let log = File::create(folder.join(format!("{program}.log"))).expect("a log");
        let mut command = Command::new(&path);
        match program {
            "nginx" => command.arg("-p").arg(folder).args(["-e", "stderr", "-c"]).arg(&file),
            _ => command.args(["-db", "-f"]).arg(&file),
        };
        let output = log.try_clone().expect("a log");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn().expect("it starts");
        let name = format!("{} {}", if program == "nginx" { "nginx" } else { "HAProxy" }, version(&path));
        let peer = Peer { name, child, socket, recorder };
        peer.ready().await;
        Some(peer)
    }

    async fn ready(&self) {
        let listening = async {
            while UnixStream::connect(&self.socket).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, listening).await.unwrap_or_else(|_| panic!("{} does not start", self.name));
        let plain = row("RFC 9110 §5", "plain request", get("X: 1"), forwarded(got("X: 1")));
        // It may accept before it is ready to answer.
        let begun = Instant::now();
        loop {
            let outcome = self.perform(&plain).await;
            if outcome.is_forwarded && outcome.has(b"\r\nx: 1\r\n") {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{}: {outcome:?}", self.name);
        }
    }

    async fn perform(&self, row: &Row) -> Outcome {
        self.recorder.forget();
        self.recorder.answer_next(row.answer.map(|(given, _)| given));
        let mut stream = UnixStream::connect(&self.socket).await.expect("it accepts");
        let mut answer = Vec::new();
        // It may close before it has got everything.
        let _ = timeout(PATIENCE, stream.write_all(&[&row.sent, NEXT.as_bytes()].concat())).await;
        let ends = loop {
            match timeout(QUIET, stream.read_buf(&mut answer)).await {
                Ok(Ok(count)) if count > 0 => {}
                Ok(_) => break true,
                Err(_) => break false,
            }
        };
        self.judge(row, &answer, ends)
    }

    /// Something that the origin has got only the beginning of is passed on if nobody says that it is wrong.
    fn judge(&self, row: &Row, answer: &[u8], ends: bool) -> Outcome {
        let received = self.recorder.news();
        let requests = self.recorder.requests();
        let is_next = |request: &&Vec<u8>| request.starts_with(b"GET /next ");
        let refusal = statuses(answer).into_iter().find(|status| status.starts_with(['4', '5']));
        let is_begun = row.passed_on() == 0 && !received.is_empty() && !received.starts_with(b"GET /next ");
        let whole = requests.iter().filter(|request| !is_next(request)).count();
        let aim = if row.is_refused() { row.passed_on() + 1 } else { row.passed_on() };
        let cell = match refusal {
            Some(status) => status,
            None if ends => "closes".to_owned(),
            None => "waits".to_owned(),
        };
        let is_forwarded = whole >= aim || (is_begun && cell.starts_with(['c', 'w']));
        Outcome { is_forwarded, goes_on: requests.iter().any(|request| is_next(&request)), cell, received }
    }
}

/// What a peer made of a row.
#[derive(Debug)]
struct Outcome {
    /// All of it; of what teal refuses, at least something that teal does not pass on.
    is_forwarded: bool,
    /// The next request has reached the origin.
    goes_on: bool,
    /// What it did instead.
    cell: String,
    received: Vec<u8>,
}

impl Outcome {
    /// Whether this, in lower case, has reached the origin: HAProxy writes names in lower case.
    fn has(&self, part: &[u8]) -> bool {
        find(&self.received.to_ascii_lowercase(), part).is_some()
    }

    fn as_str(&self) -> &str {
        if self.is_forwarded { "forwards" } else { &self.cell }
    }
}

/// The statuses of all answers in `bytes`, none of which has such a line in its body.
fn statuses(bytes: &[u8]) -> Vec<String> {
    let starts = bytes.windows(12).filter(|window| window.starts_with(b"HTTP/1.") && window[8] == b' ');
    starts.map(|start| String::from_utf8_lossy(&start[9..]).into_owned()).collect()
}

fn nginx(folder: &Path, socket: &Path, recorder: &Recorder) -> String {
    let (origin, socket) = (recorder.origin.address, socket.display());
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/{kind};", folder.display()))
        .join(" ");
    format!(
        "daemon off; master_process off; worker_processes 1; pid {}/pid; error_log stderr crit;\n\
         events {{ worker_connections 500; }}\nhttp {{\n{temporary}\naccess_log off;\n\
         map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
         proxy_http_version 1.1; proxy_request_buffering off;\n\
         proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         proxy_set_header X-Forwarded-Proto $scheme;\n\
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;\n\
         upstream app {{ server {origin}; keepalive 16; }}\n\
         server {{ listen unix:{socket}; location / {{ proxy_pass http://app; }} }}\n}}\n",
        folder.display()
    )
}

fn haproxy(socket: &Path, recorder: &Recorder) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 500\n  tune.bufsize 65536\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\n  \
         timeout http-request 10s\n  option http-keep-alive\n  http-reuse always\n  option forwardfor\n\
         frontend in\n  bind unix@{}\n  http-request set-header X-Forwarded-Proto http\n  default_backend app\n\
         backend app\n  server origin {}\n",
        socket.display(),
        recorder.origin.address
    )
}

/// Many systems keep servers outside a user's `PATH`.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("-v").output().expect("it can be asked for its version");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let is_version = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
    text.split(['/', ' ', '\n', '-']).find(is_version).unwrap_or("?").to_owned()
}

/// A row and what each peer made of it.
struct Compared {
    table: &'static str,
    row: Row,
    outcomes: Vec<Outcome>,
}

impl Compared {
    fn is_stricter(&self) -> bool {
        self.row.is_refused() && self.outcomes.iter().any(|outcome| outcome.is_forwarded)
    }

    fn is_laxer(&self) -> bool {
        !self.row.is_refused() && self.row.passed_on() > 0 && self.outcomes.iter().any(|outcome| !outcome.is_forwarded)
    }

    /// Whether teal reads no further where a peer does.
    fn ends(&self) -> bool {
        let is_last = !self.row.is_refused() && self.row.passed_on() > 0 && !self.row.expected.goes_on;
        is_last && self.outcomes.iter().any(|outcome| outcome.goes_on)
    }

    /// Which peers pass on what teal drops.
    fn kept(&self) -> Vec<bool> {
        let gone = self.row.gone.map(str::to_ascii_lowercase);
        let has = |outcome: &Outcome| gone.as_ref().is_some_and(|gone| outcome.has(gone.as_bytes()));
        self.outcomes.iter().map(has).collect()
    }
}

#[tokio::test]
async fn nginx_and_haproxy_get_the_same_rows() {
    let folder = scratch();
    let mut peers = Vec::new();
    for program in ["nginx", "haproxy"] {
        match Peer::start(program, folder.path()).await {
            Some(peer) => peers.push(peer),
            None => println!("skipped: no {program}"),
        }
    }
    let mut compared = Vec::new();
    for (table, rows) in tables() {
        for row in rows {
            let mut outcomes = Vec::new();
            for peer in &peers {
                outcomes.push(peer.perform(&row).await);
            }
            compared.push(Compared { table, row, outcomes });
        }
    }
    // Whatever they made of the rows, they are still there.
    for peer in &peers {
        peer.ready().await;
    }
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    if let Some(file) = std::env::var_os("TEAL_WRITE_TABLE").filter(|_| !peers.is_empty()) {
        write(Path::new(&file), &report(&names, &compared));
    }
}

/// Puts the text between the markers of the file, or in the place of the file.
fn write(file: &Path, text: &str) {
    let before = fs::read_to_string(file).unwrap_or_default();
    let parts = before.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = parts.unwrap_or(("", "\n"));
    fs::write(file, format!("{head}{BEGIN}{text}{END}{tail}")).expect("the table is written");
}

fn report(names: &[&str], compared: &[Compared]) -> String {
    let mut text = format!(
        "{} rows of bytes, through {}, each set up as in the benchmarks.\n",
        compared.len(),
        names.join(" and ")
    );
    let mut section = |title: &str, is_in: fn(&Compared) -> bool, teal: Cell, peer: fn(&Compared, usize) -> &str| {
        let rows: Vec<&Compared> = compared.iter().filter(|one| is_in(one)).collect();
        let _ = write!(text, "\n### {title}: {}\n{}", rows.len(), table(names, &rows, teal, peer));
    };
    section("Refused by teal, passed on by others", Compared::is_stricter, refusal, |one, peer| {
        one.outcomes[peer].as_str()
    });
    section(
        "Dropped by teal, passed on by others",
        |one| one.kept().contains(&true),
        |_| "drops".to_owned(),
        |one, peer| if one.kept()[peer] { "passes on" } else { "drops" },
    );
    section(
        "The last request for teal, followed by another one for others",
        Compared::ends,
        |_| "ends".to_owned(),
        |one, peer| if one.outcomes[peer].goes_on { "goes on" } else { "ends" },
    );
    section(
        "Passed on by teal, refused by others",
        Compared::is_laxer,
        |_| "forwards".to_owned(),
        |one, peer| one.outcomes[peer].as_str(),
    );
    text + "\n"
}

type Cell = fn(&Compared) -> String;

fn refusal(one: &Compared) -> String {
    one.row.expected.statuses.last().map_or_else(String::new, u16::to_string)
}

/// One line for each row; rows that differ only in what stands behind the colon of their names share one.
fn table(names: &[&str], rows: &[&Compared], teal: Cell, cell: fn(&Compared, usize) -> &str) -> String {
    let mut text = String::new();
    let mut lines: Vec<(&str, String, &str, String, usize)> = Vec::new();
    for one in rows {
        let cells: Vec<&str> = (0..names.len()).map(|peer| cell(one, peer)).collect();
        let cells = format!("{} | {}", teal(one), cells.join(" | "));
        let name = one.row.name.split(": ").next().unwrap_or_default().replace('|', "\\|");
        match lines.iter_mut().find(|line| (line.0, &line.1, &line.3) == (one.table, &name, &cells)) {
            Some(line) => line.4 += 1,
            None => lines.push((one.table, name, one.row.reference, cells, 1)),
        }
    }
    let mut group = "";
    for (table, name, reference, cells, count) in lines {
        if table != group {
            group = table;
            let rule = "---|".repeat(names.len() + 2);
            let _ = write!(text, "\n| {table} | Reference | teal | {} |\n|---|{rule}\n", names.join(" | "));
        }
        let times = if count > 1 { format!(" ({count})") } else { String::new() };
        let _ = writeln!(text, "| {name}{times} | {reference} | {cells} |");
    }
    text
}
