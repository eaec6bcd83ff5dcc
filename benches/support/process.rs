//! Child processes pinned to one core, and what they cost in CPU time and memory.
//!
//! A bench starts every contestant through itself: `--pin CORE PROGRAM ARGS…` sets the affinity and becomes the
//! program, so that nothing needs to be installed for it. A child ends when its [`Process`] is dropped, or when the
//! bench dies.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getrlimit, kill_process, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{origin, relay};

const GRACE: Duration = Duration::from_secs(2);

/// Which core each party runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) proxy: usize,
    pub(crate) load: usize,
    pub(crate) origin: usize,
}

impl Cores {
    /// The proxy has a core for itself; load and origin share one only where there is no third.
    pub(crate) fn choose() -> Result<Self> {
        let set = sched_getaffinity(None)?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core));
        let (Some(proxy), Some(load)) = (usable.next(), usable.next()) else {
            bail!("one core for the proxy and one for the load are needed");
        };
        Ok(Self { proxy, load, origin: usable.next().unwrap_or(load) })
    }
}

/// Keeps the calling thread on one core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// Lets this process and its children open as many files as the system allows, and says how many.
pub(crate) fn raise_open_files() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is refused, the limit stays what it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Acts on the arguments with which a bench starts itself; `None` if there are none of them.
pub(crate) fn helper() -> Option<Result<()>> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        "--pin" => Some(become_pinned(arguments)),
        "--relay" => Some(relay::run(arguments)),
        "--origin" => Some(origin::run(arguments)),
        _ => None,
    }
}

fn become_pinned(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let core = arguments.next().and_then(|core| core.to_str()?.parse().ok()).context("--pin needs a core")?;
    let program = arguments.next().context("--pin needs a program")?;
    pin(core)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Err(Command::new(&program).args(arguments).exec()).with_context(|| format!("starting {}", program.display()))
}

/// A pinned child process, ended on drop.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` on `core`; what it prints goes to `log`.
    pub(crate) fn start(core: usize, program: &Path, arguments: &[OsString], log: &Path) -> Result<Self> {
        let output = File::create(log)?;
        let child = Command::new(std::env::current_exe()?)
            .arg("--pin")
            .arg(core.to_string())
            .arg(program)
            .args(arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(Self { child, log: log.to_owned() })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// CPU time of all threads, softirq work done in their context included.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for task in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            // A thread may end between the listing and the reading.
            let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let nanos = stat.split_whitespace().next().and_then(|word| word.parse().ok()).context("schedstat")?;
            total += Duration::from_nanos(nanos);
        }
        Ok(total)
    }

    /// Memory that this process alone has written to, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.bytes("smaps_rollup", "Private_Dirty:")
    }

    /// Memory in RAM, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        self.bytes("status", "VmRSS:")
    }

    /// Of that, what is not a part of a file: its program is read in as it is used.
    pub(crate) fn anonymous(&self) -> Result<u64> {
        self.bytes("status", "RssAnon:")
    }

    /// The most that [`resident`](Self::resident) has been since [`forget_peak`](Self::forget_peak).
    pub(crate) fn peak(&self) -> Result<u64> {
        self.bytes("status", "VmHWM:")
    }

    pub(crate) fn forget_peak(&self) -> Result<()> {
        // proc_pid_clear_refs(5)
        Ok(fs::write(format!("/proc/{}/clear_refs", self.id()), "5")?)
    }

    fn bytes(&self, file: &str, field: &'static str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)).context(field)?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    fn terminate(&mut self) {
        let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw) else { return };
        let deadline = Instant::now() + GRACE;
        let _ = kill_process(pid, Signal::TERM);
        while Instant::now() < deadline && !self.has_ended() {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A master must be asked first, or its workers would outlive it.
        if !self.has_ended() {
            self.terminate();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The path of an installed program; many systems keep servers outside a user's `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
