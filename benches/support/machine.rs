//! What a reader needs to know of the machine that the numbers come from.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use super::contestant::Name;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) versions: BTreeMap<String, String>,
}

impl Machine {
    pub(crate) fn here(contestants: &[Name]) -> Self {
        let version = |name: &Name| Some((name.as_str().to_owned(), name.version()?));
        Self {
            cpu: cpu().unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            versions: contestants.iter().filter_map(version).collect(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}, Linux {}", self.cores, self.cpu, self.kernel)?;
        self.versions.iter().try_for_each(|(name, version)| write!(f, ", {name} {version}"))
    }
}

fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
