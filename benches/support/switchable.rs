//! teal, HAProxy and nginx set up with two colors per service, and the way in which each is switched while it runs.
//!
//! teal takes one call to its admin API, HAProxy one `set map` on its stats socket, nginx a new file and `nginx -s
//! reload`. Calls that can share a connection do. A switch has succeeded when the contestant says so, not when we
//! believe so.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use teal::drain::DrainReport;
use teal::state::Receipt;

use super::contestant::{
    HAPROXY_COMMON, NGINX_KEPT, Name, free_address, free_addresses, nginx_arguments, nginx_common, wait_until_ready,
    written,
};
use super::process::Process;

const ANSWER_LIMIT: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Color {
    Blue,
    Green,
}

impl Color {
    /// The color after so many switches; all services begin with blue.
    pub(crate) fn after(switches: u64) -> Self {
        if switches.is_multiple_of(2) { Self::Blue } else { Self::Green }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }

    /// How the body of every answer of this color begins.
    pub(crate) fn initial(self) -> u8 {
        self.as_str().as_bytes()[0]
    }
}

/// Where the two colors of all services run.
#[derive(Clone, Copy)]
pub(crate) struct Colors {
    pub(crate) blue: SocketAddr,
    pub(crate) green: SocketAddr,
}

/// A contestant that runs, and that can be told to switch service `p0`, which answers below `/p0`.
pub(crate) struct Switchable {
    pub(crate) address: SocketAddr,
    switch: Switch,
    _process: Process,
}

enum Switch {
    Teal(TcpStream),
    Haproxy { stats: UnixStream, map: String },
    Nginx(NginxFiles),
}

impl Switchable {
    pub(crate) fn start(name: Name, core: usize, colors: Colors, services: usize, folder: &Path) -> Result<Self> {
        let folder = folder.join(format!("{}-{services}", name.as_str()));
        fs::create_dir_all(&folder)?;
        match name {
            Name::Teal => teal(core, colors, services, &folder),
            Name::Haproxy => haproxy(core, colors, services, &folder),
            Name::Nginx => nginx(core, colors, services, folder),
            Name::Relay => bail!("a relay has nothing to switch"),
        }
    }

    /// Returns when the contestant has confirmed the switch.
    pub(crate) fn switch(&mut self, to: Color) -> Result<()> {
        match &mut self.switch {
            Switch::Teal(admin) => switch_teal(admin, to),
            Switch::Haproxy { stats, map } => switch_haproxy(stats, map, to),
            Switch::Nginx(files) => files.switch(to),
        }
    }
}

fn running(name: Name, core: usize, arguments: &[OsString], address: SocketAddr, folder: &Path) -> Result<Process> {
    let program = name.program().with_context(|| format!("{} is not installed", name.as_str()))?;
    let mut process = Process::start(core, &program, arguments, &folder.join("output"))?;
    wait_until_ready(name, address, &mut process)?;
    Ok(process)
}

fn teal(core: usize, colors: Colors, services: usize, folder: &Path) -> Result<Switchable> {
    let [address, admin] = free_addresses()?;
    let mut config = format!(
        "state_dir = {:?}\nworkers = 1\n[admin]\nlisten = \"{admin}\"\n[limits]\nconnections = 1000\n\
         [[listeners]]\nlisten = \"{address}\"\n",
        folder.join("state"),
    );
    for n in 0..services {
        let Colors { blue, green } = colors;
        writeln!(config, "[services.p{n}]\nactive = \"blue\"\nblue = [\"{blue}\"]\ngreen = [\"{green}\"]")?;
        writeln!(config, "[[routes]]\npath = \"/p{n}\"\nservice = \"p{n}\"")?;
    }
    let arguments = ["run".into(), "--config".into(), written(folder, "teal.toml", &config)?];
    let process = running(Name::Teal, core, &arguments, address, folder)?;
    let admin = TcpStream::connect(admin)?;
    admin.set_nodelay(true)?;
    admin.set_read_timeout(Some(PATIENCE))?;
    Ok(Switchable { address, switch: Switch::Teal(admin), _process: process })
}

/// Switches service `p0` of teal over a connection to its admin API.
pub(crate) fn switch_teal(admin: &mut TcpStream, to: Color) -> Result<()> {
    let body = format!("{{\"services\":{{\"p0\":\"{}\"}},\"actor\":\"bench\"}}", to.as_str());
    let host = admin.peer_addr()?;
    let request = format!(
        "POST /v1/switch HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    admin.write_all(request.as_bytes())?;
    let answer = read_until(admin, is_whole_answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "teal refused: {answer}");
    Ok(())
}

/// The newest drain of service `p0` of teal, once it is over or after a minute.
pub(crate) fn drained_teal(admin: &mut TcpStream) -> Result<DrainReport> {
    let host = admin.peer_addr()?;
    admin.write_all(format!("GET /v1/services/p0/drain?wait=60s HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let answer = read_until(admin, is_whole_answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without an end of head")?;
    serde_json::from_str::<Receipt>(body)?.drain.context("a switch without a drain")
}

fn is_whole_answer(answer: &[u8]) -> bool {
    let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= end + 4 + length)
}

fn haproxy(core: usize, colors: Colors, services: usize, folder: &Path) -> Result<Switchable> {
    let (address, socket) = (free_address()?, folder.join("stats.sock"));
    let (mut map, mut backends) = (String::new(), String::new());
    for n in 0..services {
        writeln!(map, "p{n} p{n}_blue")?;
        writeln!(backends, "backend p{n}_blue\n  server s {} check", colors.blue)?;
        writeln!(backends, "backend p{n}_green\n  server s {} check", colors.green)?;
    }
    let map = written(folder, "active.map", &map)?.display().to_string();
    let common = HAPROXY_COMMON.replacen(
        "global\n",
        &format!("global\n  stats socket {} level admin\n  stats timeout 1h\n", socket.display()),
        1,
    );
    let config =
        format!("{common}frontend in\n  bind {address}\n  use_backend %[path,field(2,/),map_str({map})]\n{backends}");
    let arguments = ["-db".into(), "-f".into(), written(folder, "haproxy.cfg", &config)?];
    let process = running(Name::Haproxy, core, &arguments, address, folder)?;
    let mut stats = UnixStream::connect(socket)?;
    stats.set_read_timeout(Some(PATIENCE))?;
    stats.write_all(b"prompt\n")?;
    read_until(&mut stats, is_prompt)?;
    Ok(Switchable { address, switch: Switch::Haproxy { stats, map }, _process: process })
}

fn switch_haproxy(stats: &mut UnixStream, map: &str, to: Color) -> Result<()> {
    stats.write_all(format!("set map {map} p0 p0_{}\n", to.as_str()).as_bytes())?;
    let answer = read_until(stats, is_prompt)?;
    ensure!(answer.trim() == ">", "HAProxy refused: {answer}");
    Ok(())
}

fn is_prompt(answer: &[u8]) -> bool {
    answer.ends_with(b"> ")
}

struct NginxFiles {
    folder: PathBuf,
    program: PathBuf,
    address: SocketAddr,
    colors: Colors,
    services: usize,
}

fn nginx(core: usize, colors: Colors, services: usize, folder: PathBuf) -> Result<Switchable> {
    let (address, program) = (free_address()?, Name::Nginx.program().context("nginx is not installed")?);
    let files = NginxFiles { folder, program, address, colors, services };
    let arguments = files.write(Color::Blue)?;
    let process = running(Name::Nginx, core, &arguments, address, &files.folder)?;
    Ok(Switchable { address, switch: Switch::Nginx(files), _process: process })
}

impl NginxFiles {
    fn write(&self, active: Color) -> Result<Vec<OsString>> {
        let (mut upstreams, mut locations) = (String::new(), String::new());
        for n in 0..self.services {
            let color = if n == 0 { active } else { Color::Blue };
            writeln!(upstreams, "upstream p{n}_blue {{ server {}; {NGINX_KEPT} }}", self.colors.blue)?;
            writeln!(upstreams, "upstream p{n}_green {{ server {}; {NGINX_KEPT} }}", self.colors.green)?;
            writeln!(locations, "location /p{n} {{ proxy_pass http://p{n}_{}; }}", color.as_str())?;
        }
        let config = format!(
            "daemon off; worker_processes 1;\n{}{upstreams}server {{ listen {};\n{locations}}} }}\n",
            nginx_common(&self.folder),
            self.address
        );
        Ok(nginx_arguments(&self.folder, written(&self.folder, "nginx.conf", &config)?))
    }

    fn switch(&self, to: Color) -> Result<()> {
        let arguments = self.write(to)?;
        let output = Command::new(&self.program).args(arguments).args(["-s", "reload"]).output()?;
        ensure!(output.status.success(), "nginx refused: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

fn read_until(stream: &mut impl Read, is_whole: fn(&[u8]) -> bool) -> Result<String> {
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while !is_whole(&answer) {
        let read = stream.read(&mut part)?;
        ensure!(read > 0 && answer.len() < ANSWER_LIMIT, "no whole answer: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..read]);
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
