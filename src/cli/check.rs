//! `teal check`: reads a config file with the code that `teal run` uses, and says what is wrong with it, all at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::cli::terminal::{counted, out};
use crate::cli::{Failure, pretty};
use crate::config::{self, Config, Problem, Problems};

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// # Errors
/// Every problem of the file.
pub(super) fn check(path: &Path, options: &Options) -> Result<(), Failure> {
    let loaded = config::load(path);
    let warnings = loaded.as_ref().map(|config| config.warnings(SystemTime::now())).unwrap_or_default();
    if options.json {
        out(&pretty(
            &loaded.as_ref().map_or_else(|problems| faults(path, problems), |config| facts(path, config, &warnings)),
        ));
    } else if let Ok(config) = &loaded {
        let warnings: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
        out(&format!("{}: ok ({})\n{warnings}", path.display(), summary(config)));
    }
    loaded.map(drop).map_err(Failure::Config)
}

fn facts(path: &Path, config: &Config, warnings: &BTreeSet<String>) -> Value {
    let listeners: Vec<_> = config.listeners.iter().map(|listener| listener.listen.to_string()).collect();
    json!({
        "file": path.display().to_string(),
        "ok": true,
        "listeners": listeners,
        "admin": config.admin.as_ref().map(|admin| admin.listen.to_string()),
        "services": config.services.keys().collect::<Vec<_>>(),
        "routes": config.routes.len(),
        "warnings": warnings,
    })
}

fn faults(path: &Path, problems: &Problems) -> Value {
    let fault = |problem: &Problem| {
        let Problem { file, line, column, message } = problem;
        json!({ "file": file.display().to_string(), "line": line, "column": column, "message": message })
    };
    let problems: Vec<_> = problems.0.iter().map(fault).collect();
    json!({ "file": path.display().to_string(), "ok": false, "problems": problems })
}

fn summary(config: &Config) -> String {
    let listeners = counted(config.listeners.len(), "listener");
    let services = counted(config.services.len(), "service");
    format!("{listeners}, {services}, {}", counted(config.routes.len(), "route"))
}
