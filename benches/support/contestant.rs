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
use super::tls::{self, Handshakes, Identity, Tls};

/// Sockets that the row of idle WebSockets opens; limits are set for as many and some more.
pub(crate) const MOST_CONNECTIONS: usize = 6_000;
/// The service, and the host, that every row but that of the routes asks for.
pub(crate) const HOST: &str = "h0.example.com";

const READY: Duration = Duration::from_secs(15);
const PATHS_PER_HOST: usize = 100;
/// How a good answer begins.
const ANSWER: &[u8; 12] = b"HTTP/1.1 200";

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

/// What a contestant is set up for.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    pub(crate) origin: SocketAddr,
    /// The origin speaks HTTP/2 in plain text.
    pub(crate) is_h2c: bool,
    /// With more than one it knows as many, by host and path ([`route`]), and answers no other request.
    pub(crate) routes: usize,
    /// Clients come by TLS, and may speak HTTP/2.
    pub(crate) identity: Option<&'a Identity>,
    /// Where its files are.
    pub(crate) folder: &'a Path,
}

impl<'a> Setup<'a> {
    /// HTTP/1.1 without TLS, and one route.
    pub(crate) fn plain(origin: SocketAddr, folder: &'a Path) -> Self {
        Self { origin, is_h2c: false, routes: 1, identity: None, folder }
    }
}

impl Contestant {
    /// Starts a contestant on a core and waits for its first answer.
    pub(crate) fn start(name: Name, core: usize, setup: &Setup<'_>) -> Result<Self> {
        let folder = setup.folder.join(name.as_str());
        fs::create_dir_all(&folder)?;
        let setup = &Setup { folder: &folder, ..*setup };
        let [address, admin] = free_addresses()?;
        let arguments = match name {
            Name::Teal => teal(address, admin, setup)?,
            Name::Nginx => nginx(address, setup)?,
            Name::Haproxy => haproxy(address, setup)?,
            Name::Relay => ["--relay".into(), address.to_string().into(), setup.origin.to_string().into()].into(),
        };
        let program = name.program().with_context(|| format!("{} is not installed", name.as_str()))?;
        let mut process = Process::start(core, &program, &arguments, &folder.join("output"))?;
        match setup.identity {
            None => wait_until_ready(name, address, &mut process)?,
            Some(identity) => wait_for_tls(name, address, identity, &mut process)?,
        }
        Ok(Self { name, address, process })
    }
}

/// The host and path of one of many routes.
pub(crate) fn route(number: usize) -> (String, String) {
    (format!("h{}.example.com", number / PATHS_PER_HOST), format!("/p{}", number % PATHS_PER_HOST))
}

/// An address that nothing listens on at the moment.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let [address] = free_addresses()?;
    Ok(address)
}

/// Several of them: asked for one by one, they might be the same.
pub(crate) fn free_addresses<const COUNT: usize>() -> Result<[SocketAddr; COUNT]> {
    let mut held = Vec::with_capacity(COUNT);
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); COUNT];
    for address in &mut addresses {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}

/// Waits for the first 200; fails with what the process printed if it ends before, or takes too long.
pub(crate) fn wait_until_ready(name: Name, address: SocketAddr, process: &mut Process) -> Result<()> {
    wait_for(name, process, || answers(address))
}

/// As [`wait_until_ready`].
fn wait_for_tls(name: Name, address: SocketAddr, identity: &Identity, process: &mut Process) -> Result<()> {
    let tls = Tls::new(identity, "http/1.1", Handshakes::Full)?;
    let request = client::get(HOST, "/p0", "close");
    wait_for(name, process, || tls::begins(address, &tls, &request, ANSWER).unwrap_or(false))
}

fn wait_for(name: Name, process: &mut Process, is_ready: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + READY;
    while !is_ready() {
        if process.has_ended() || Instant::now() > deadline {
            bail!("{} does not answer:\n{}", name.as_str(), process.printed());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn answers(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut head = [0; ANSWER.len()];
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.write_all(&client::get(HOST, "/p0", "close")).is_ok()
        && stream.read_exact(&mut head).is_ok()
        && head == *ANSWER
}

fn teal(address: SocketAddr, admin: SocketAddr, setup: &Setup<'_>) -> Result<Vec<OsString>> {
    let tls = |identity: &Identity| {
        format!("tls = {{ certificates = [{{ cert = {:?}, key = {:?} }}] }}\n", identity.cert, identity.key)
    };
    let mut config = format!(
        "state_dir = {:?}\nworkers = 1\n\
         [admin]\nlisten = \"{admin}\"\n\
         [limits]\nconnections = {MOST_CONNECTIONS}\n\
         [[listeners]]\nlisten = \"{address}\"\n{}\
         [services.app]\nactive = \"blue\"\nblue = [\"{}\"]\ngreen = []\nprotocol = \"{}\"\n",
        setup.folder.join("state"),
        setup.identity.map(tls).unwrap_or_default(),
        setup.origin,
        if setup.is_h2c { "h2c" } else { "http1" },
    );
    if setup.routes == 1 {
        config += "[[routes]]\npath = \"/\"\nservice = \"app\"\n";
    } else {
        for (host, path) in (0..setup.routes).map(route) {
            writeln!(config, "[[routes]]\nhost = \"{host}\"\npath = \"{path}\"\nservice = \"app\"")?;
        }
    }
    let file = written(setup.folder, "teal.toml", &config)?;
    Ok(["run".into(), "--config".into(), file].into())
}

fn nginx(address: SocketAddr, setup: &Setup<'_>) -> Result<Vec<OsString>> {
    let pass = if setup.is_h2c { "grpc_pass grpc" } else { "proxy_pass http" };
    let tls = |identity: &Identity| {
        let (cert, key) = (identity.cert.to_string_lossy(), identity.key.to_string_lossy());
        (" ssl http2", format!("ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;"))
    };
    let (listen, tls) = setup.identity.map(tls).unwrap_or_default();
    let servers = if setup.routes == 1 {
        format!("server {{ listen {address}{listen} backlog=4096; {tls} location / {{ {pass}://app; }} }}\n")
    } else {
        nginx_servers(address, setup.routes)?
    };
    let config = format!(
        "daemon off; master_process off; worker_processes 1; worker_rlimit_nofile {files};\n{common}\
         upstream app {{ server {origin}; {kept} }}\n{servers}}}\n",
        files = 2 * MOST_CONNECTIONS + 200,
        common = nginx_common(setup.folder),
        origin = setup.origin,
        kept = NGINX_KEPT,
    );
    let file = written(setup.folder, "nginx.conf", &config)?;
    Ok(nginx_arguments(setup.folder, file))
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
         grpc_set_header X-Forwarded-For $proxy_add_x_forwarded_for; grpc_set_header X-Forwarded-Proto $scheme;\n\
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

fn haproxy(address: SocketAddr, setup: &Setup<'_>) -> Result<Vec<OsString>> {
    let choice = if setup.routes == 1 {
        "default_backend app".to_owned()
    } else {
        let mut map = String::new();
        for (host, path) in (0..setup.routes).map(route) {
            writeln!(map, "{host}{path} app")?;
        }
        format!("use_backend %[base,map_beg({})]", written(setup.folder, "routes.map", &map)?.display())
    };
    let tls = |identity: &Identity| (format!(" ssl crt {} alpn h2,http/1.1", identity.both.display()), "https");
    let (tls, scheme) = setup.identity.map(tls).unwrap_or((String::new(), "http"));
    let protocol = if setup.is_h2c { " proto h2" } else { "" };
    let config = format!(
        "{HAPROXY_COMMON}frontend in\n  bind {address} backlog 4096{tls}\n  \
         http-request set-header X-Forwarded-Proto {scheme}\n  {choice}\n\
         backend app\n  server origin {}{protocol} check\n",
        setup.origin
    );
    Ok(["-db".into(), "-f".into(), written(setup.folder, "haproxy.cfg", &config)?].into())
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
