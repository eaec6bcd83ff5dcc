//! The contestants and their configs: teal, nginx, HAProxy and a bare relay, one worker each, all with the same
//! promises.
//!
//! Each is set up as somebody who knows it well would: connections to the origin are kept, no access log, time limits
//! on. Where a default of a peer costs it CPU (1,000 requests per connection, spooled bodies, small buffers), the
//! better setting is used.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::client;
use super::process::{Process, find};

/// Sockets that the row of idle WebSockets opens; limits are set for as many and some more.
pub(crate) const MOST_CONNECTIONS: usize = 6_000;
/// The service, and the host, that every row but that of the routes asks for.
pub(crate) const HOST: &str = "h0.example.com";

const READY: Duration = Duration::from_secs(15);
const PATHS_PER_HOST: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Name {
    Teal,
    Nginx,
    Haproxy,
    Relay,
}

impl Name {
    pub(crate) const ALL: [Self; 4] = [Self::Teal, Self::Nginx, Self::Haproxy, Self::Relay];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Teal => "teal",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Relay => "relay",
        }
    }

    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Nginx | Self::Haproxy)
    }

    /// The program to start, if it is there.
    pub(crate) fn program(self) -> Option<PathBuf> {
        match self {
            Self::Teal => Some(env!("CARGO_BIN_EXE_teal").into()),
            Self::Nginx => find("nginx"),
            Self::Haproxy => find("haproxy"),
            Self::Relay => std::env::current_exe().ok(),
        }
    }

    /// What the program calls its version; `None` if it cannot be asked.
    pub(crate) fn version(self) -> Option<String> {
        let flag = match self {
            Self::Teal => "--version",
            Self::Nginx | Self::Haproxy => "-v",
            Self::Relay => return None,
        };
        let output = Command::new(self.program()?).arg(flag).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        text.split(['/', ' ', '\n']).find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
    }
}

/// A contestant that runs and answers.
pub(crate) struct Contestant {
    pub(crate) name: Name,
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
}

impl Contestant {
    /// Starts a contestant on a core and waits for its first answer. With `routes` above 1 it knows as many, by host
    /// and path ([`route`]), and answers no other request.
    pub(crate) fn start(name: Name, core: usize, origin: SocketAddr, routes: usize, folder: &Path) -> Result<Self> {
        let folder = folder.join(name.as_str());
        fs::create_dir_all(&folder)?;
        let address = free_address()?;
        let arguments = match name {
            Name::Teal => teal(&folder, address, origin, routes)?,
            Name::Nginx => nginx(&folder, address, origin, routes)?,
            Name::Haproxy => haproxy(&folder, address, origin, routes)?,
            Name::Relay => ["--relay".into(), address.to_string().into(), origin.to_string().into()].into(),
        };
        let program = name.program().with_context(|| format!("{} is not installed", name.as_str()))?;
        let mut process = Process::start(core, &program, &arguments, &folder.join("output"))?;
        wait_until_ready(name, address, &mut process)?;
        Ok(Self { name, address, process })
    }
}

/// The host and path of one of many routes.
pub(crate) fn route(number: usize) -> (String, String) {
    (format!("h{}.example.com", number / PATHS_PER_HOST), format!("/p{}", number % PATHS_PER_HOST))
}

/// An address that nothing listens on at the moment.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Waits for the first 200; fails with what the process printed if it ends before, or takes too long.
pub(crate) fn wait_until_ready(name: Name, address: SocketAddr, process: &mut Process) -> Result<()> {
    let deadline = Instant::now() + READY;
    while !answers(address) {
        if process.has_ended() || Instant::now() > deadline {
            bail!("{} does not answer:\n{}", name.as_str(), process.printed());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn answers(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut head = [0; 12];
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.write_all(&client::get(HOST, "/p0", "close")).is_ok()
        && stream.read_exact(&mut head).is_ok()
        && &head == b"HTTP/1.1 200"
}

fn teal(folder: &Path, address: SocketAddr, origin: SocketAddr, routes: usize) -> Result<Vec<OsString>> {
    let mut config = format!(
        "state_dir = {:?}\nworkers = 1\n\
         [admin]\nlisten = \"{}\"\n\
         [limits]\nconnections = {MOST_CONNECTIONS}\n\
         [[listeners]]\nlisten = \"{address}\"\n\
         [services.app]\nactive = \"blue\"\nblue = [\"{origin}\"]\ngreen = []\n",
        folder.join("state"),
        free_address()?,
    );
    if routes == 1 {
        config += "[[routes]]\npath = \"/\"\nservice = \"app\"\n";
    } else {
        for (host, path) in (0..routes).map(route) {
            writeln!(config, "[[routes]]\nhost = \"{host}\"\npath = \"{path}\"\nservice = \"app\"")?;
        }
    }
    let file = written(folder, "teal.toml", &config)?;
    Ok(["run".into(), "--config".into(), file].into())
}

fn nginx(folder: &Path, address: SocketAddr, origin: SocketAddr, routes: usize) -> Result<Vec<OsString>> {
    let servers = if routes == 1 {
        format!("server {{ listen {address} backlog=4096; location / {{ proxy_pass http://app; }} }}\n")
    } else {
        nginx_servers(address, routes)?
    };
    let config = format!(
        "daemon off; master_process off; worker_processes 1; worker_rlimit_nofile {files};\n{common}\
         upstream app {{ server {origin}; {kept} }}\n{servers}}}\n",
        files = 2 * MOST_CONNECTIONS + 200,
        common = nginx_common(folder),
        kept = NGINX_KEPT,
    );
    let file = written(folder, "nginx.conf", &config)?;
    Ok(nginx_arguments(folder, file))
}

/// How many idle connections to the origin nginx keeps, and that it need not renew them every 1,000 requests.
pub(crate) const NGINX_KEPT: &str = "keepalive 256; keepalive_requests 1000000000;";

/// Everything of an nginx config up to the upstreams and servers.
pub(crate) fn nginx_common(folder: &Path) -> String {
    let folder = folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {folder}/{kind};"))
        .join(" ");
    format!(
        "pid {folder}/pid; error_log stderr warn;\n\
         events {{ worker_connections {connections}; }}\n\
         http {{\n{temporary}\n\
         access_log off; tcp_nodelay on; keepalive_timeout 75s; keepalive_requests 1000000000;\n\
         server_names_hash_max_size 4096; client_max_body_size 0;\n\
         map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
         proxy_http_version 1.1; proxy_read_timeout 1h; proxy_send_timeout 1h;\n\
         proxy_request_buffering off; proxy_max_temp_file_size 0; client_body_buffer_size 128k;\n\
         proxy_buffers 4 128k; proxy_buffer_size 16k; proxy_busy_buffers_size 256k;\n\
         proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         proxy_set_header X-Forwarded-Proto $scheme;\n\
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;\n",
        connections = 2 * MOST_CONNECTIONS + 100,
    )
}

pub(crate) fn nginx_arguments(folder: &Path, file: OsString) -> Vec<OsString> {
    ["-p".into(), folder.into(), "-e".into(), "stderr".into(), "-c".into(), file].into()
}

fn nginx_servers(address: SocketAddr, routes: usize) -> Result<String> {
    let mut text = format!("server {{ listen {address} backlog=4096 default_server; return 404; }}\n");
    for (number, (host, path)) in (0..routes).map(route).enumerate() {
        if number % PATHS_PER_HOST == 0 {
            let end = if number == 0 { "" } else { "}\n" };
            writeln!(text, "{end}server {{ listen {address}; server_name {host};")?;
        }
        writeln!(text, "location {path} {{ proxy_pass http://app; }}")?;
    }
    text.push_str("}\n");
    Ok(text)
}

fn haproxy(folder: &Path, address: SocketAddr, origin: SocketAddr, routes: usize) -> Result<Vec<OsString>> {
    let choice = if routes == 1 {
        "default_backend app".to_owned()
    } else {
        let mut map = String::new();
        for (host, path) in (0..routes).map(route) {
            writeln!(map, "{host}{path} app")?;
        }
        format!("use_backend %[base,map_beg({})]", written(folder, "routes.map", &map)?.display())
    };
    let config = format!(
        "{HAPROXY_COMMON}frontend in\n  bind {address} backlog 4096\n  \
         http-request set-header X-Forwarded-Proto http\n  {choice}\n\
         backend app\n  server origin {origin} check\n"
    );
    Ok(["-db".into(), "-f".into(), written(folder, "haproxy.cfg", &config)?].into())
}

/// Everything of a HAProxy config up to the frontends; its `global` section comes first and is still open for more.
pub(crate) const HAPROXY_COMMON: &str = "global\n  nbthread 1\n  maxconn 6000\n  tune.bufsize 65536\n\
     defaults\n  mode http\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\n  timeout tunnel 1h\n  \
     timeout http-request 10s\n  timeout http-keep-alive 75s\n  option http-keep-alive\n  http-reuse always\n  \
     option forwardfor\n";

pub(crate) fn written(folder: &Path, name: &str, text: &str) -> Result<OsString> {
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(file.into())
}
