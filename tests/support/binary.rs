//! The real program, in a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::client::{Answer, Client};
use super::soon;

/// A running `teal run`, killed when it is dropped.
pub struct Binary {
    child: Child,
    /// Kept open, so that the program may write.
    _stdout: Lines<BufReader<ChildStdout>>,
    /// Of the first listener.
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

/// `teal run`, to be started.
pub fn teal_run(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_teal"));
    command.args(["run", "--config"]).arg(config).env("RUST_LOG", "off");
    command
}

impl Binary {
    /// Waits until it is ready.
    pub async fn start(mut command: Command) -> Binary {
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe was asked for")).lines();
        let ready = soon("ready", stdout.next_line()).await.expect("a line").expect("it does not end at once");
        let address = |key: &str| {
            let value = ready.split(' ').find_map(|word| word.strip_prefix(key)).expect("a known line");
            value.split(',').next().and_then(|first| first.parse().ok()).expect("a TCP address")
        };
        Binary { child, address: address("http="), admin: address("admin="), _stdout: stdout }
    }

    pub fn pid(&self) -> Pid {
        let id = self.child.id().expect("it was not waited for");
        Pid::from_raw(id.try_into().expect("a process id")).expect("a process id")
    }

    /// What it logs, if its standard error was made a pipe; the first time that it is asked for.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Resolves when it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        soon("the end of the process", self.child.wait()).await.expect("it can be waited for")
    }

    /// Calls the admin API.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        Client::connect(self.admin).await.ask(call(self.admin, method, path, body)).await
    }
}

/// A request to the admin API.
pub fn call(admin: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}
