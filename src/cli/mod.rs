//! The command line: what was typed, who does it, and the exit code that says how it went.
//!
//! One file for each group of commands. `run`, `demo` and `check` work on their own; all others talk to a running proxy
//! through the admin API. Facts go to standard output, everything else to standard error.

mod check;
mod client;
mod drain;
mod place;
mod receipt;
mod run;
mod status;
mod switch;
mod table;
mod terminal;

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use serde::Serialize;

use crate::config::Problems;
use crate::demo;

use client::{ClientError, Problem};
use place::Place;
use terminal::{Paint, Style, err, harmless, out};

/// Reverse proxy for blue/green releases: health-checked, atomic switches that drop nothing
#[derive(clap::Parser, Debug)]
#[command(name = "teal", version, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused or failed, 2 usage or bad config, 3 switched, but not drained in \
                          time, 4 conflict, 5 the proxy cannot be reached";

/// What may stand before the command as well as behind it.
#[derive(clap::Args, Debug)]
struct Global {
    /// Config file [default: $TEAL_CONFIG, else ./teal.toml, else /etc/teal/teal.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    config: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

/// How a command finds the running proxy. Not global to clap: the `--admin` of `demo` is another one.
#[derive(clap::Args, Clone, Debug)]
struct Remote {
    /// Address of the admin API, such as 127.0.0.1:9900 or unix:/run/teal/admin.sock [default: $TEAL_ADMIN, else from the
    /// config file]
    #[arg(long, value_name = "ADDR", help_heading = "Everywhere")]
    admin: Option<Place>,
    /// File with the token of the admin API [default: $TEAL_TOKEN, which holds the token, else from the config file]
    #[arg(long, value_name = "FILE", help_heading = "Everywhere")]
    token_file: Option<PathBuf>,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Run the proxy in the foreground
    Run,
    /// Show everything in one process: a small shop in two colors, load, a switch and a rollback
    Demo(demo::Options),
    /// Validate a config file
    Check(check::Options),
    /// Show colors, health, open requests and streams, and drains under way
    Status(status::Options),
    /// Make a color active
    Switch(switch::SwitchOptions),
    /// Go back to the color before the last switch
    Rollback(switch::RollbackOptions),
    /// Show the record of a switch
    Receipt(receipt::Options),
    /// Print a completion script
    Completions { shell: clap_complete::Shell },
}

/// Why a command did not end with 0.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Config(Problems),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    NotDrained(String),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let is_json = command.is_json();
    let Err(failure) = command.execute(&global) else { return ExitCode::SUCCESS };
    if let (true, Some(problem)) = (is_json, failure.problem()) {
        out(&pretty(problem));
    }
    failure.report();
    ExitCode::from(failure.exit_code())
}

impl Command {
    fn is_json(&self) -> bool {
        match self {
            Command::Status(options) => options.json,
            Command::Switch(options) => options.is_json(),
            Command::Rollback(options) => options.is_json(),
            Command::Receipt(options) => options.json,
            // What the admin API cannot refuse.
            Command::Run | Command::Demo(_) | Command::Check(_) | Command::Completions { .. } => false,
        }
    }

    fn execute(self, global: &Global) -> Result<(), Failure> {
        match self {
            Command::Run => run::run(&global.required_config_file()?),
            Command::Demo(options) => run::demo(options),
            Command::Check(options) => check::check(&global.required_config_file()?, &options),
            Command::Status(options) => status::status(global, &options),
            Command::Switch(options) => switch::switch(global, options),
            Command::Rollback(options) => switch::rollback(global, options),
            Command::Receipt(options) => receipt::receipt(global, &options),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "teal", &mut script);
                out(&String::from_utf8_lossy(&script));
                Ok(())
            }
        }
    }
}

impl Global {
    /// The file that was named, else the first that is there.
    fn config_file(&self) -> Option<PathBuf> {
        let by_default =
            || ["./teal.toml", "/etc/teal/teal.toml"].into_iter().map(PathBuf::from).find(|path| path.exists());
        self.named_config_file().or_else(by_default)
    }

    fn named_config_file(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| variable("TEAL_CONFIG").map(PathBuf::from))
    }

    fn required_config_file(&self) -> Result<PathBuf, Failure> {
        let none = "no config file: neither ./teal.toml nor /etc/teal/teal.toml is there; name one with --config";
        self.config_file().ok_or_else(|| Failure::Usage(none.to_owned()))
    }
}

/// A variable of the environment; an empty one is none.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Client(ClientError::Refused(problem)) if problem.status == 409 => 4,
            Failure::Client(ClientError::Refused(_)) | Failure::Other(_) => 1,
            Failure::Config(_) | Failure::Usage(_) => 2,
            Failure::NotDrained(_) => 3,
            Failure::Client(_) => 5,
        }
    }

    /// One clear line on standard error and maybe an advice, or one line for each problem of a file.
    fn report(&self) {
        let text = match self {
            Failure::Config(problems) => return err(&format!("{problems}\n")),
            Failure::Other(error) => chain(&**error),
            failure => failure.to_string(),
        };
        let mark = Paint::stderr().paint(Style::Bad, "teal:");
        err(&format!("{mark} {}\n", harmless(&text)));
        if let Some(advice) = self.advice() {
            err(&format!("      {advice}\n"));
        }
    }

    /// What to do now, where the message does not say it already.
    fn advice(&self) -> Option<&'static str> {
        match self {
            Failure::Client(ClientError::Connect { .. }) => Some("is it running? --admin names another address"),
            Failure::Client(ClientError::Refused(problem)) => match problem.kind.as_str() {
                "urn:teal:unauthorized" => Some("name the token with --token-file or in $TEAL_TOKEN"),
                "urn:teal:conflict" => Some("nothing was changed; `teal status` shows who switched"),
                "urn:teal:not-healthy" => Some("nothing was changed; --force switches all the same"),
                "urn:teal:empty" => Some("nothing was changed; the color needs endpoints in the config file"),
                _ => None,
            },
            _ => None,
        }
    }

    /// What the admin API said, when it was that which refused.
    fn problem(&self) -> Option<&Problem> {
        match self {
            Failure::Client(ClientError::Refused(problem)) => Some(problem),
            _ => None,
        }
    }
}

/// An error with its causes; one that its own message has in it already is not said twice.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// The document of `--json`.
fn pretty(document: &impl Serialize) -> String {
    let json = serde_json::to_string_pretty(document).expect("documents have string keys only");
    format!("{json}\n")
}

/// Runs the calls of one command.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::new)?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_cause_is_said_twice() {
        let error = anyhow::anyhow!("port in use").context("admin API: port in use").context("no start");
        assert_eq!(chain(&*error), "no start: admin API: port in use");
    }
}
