//! The configuration of the demo, as an operator would write it: a sample to start from.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// How long the streams of the old color, and whatever else it serves, may run on. Short, so that the demo is too.
pub(super) const WEB_DRAIN: Duration = Duration::from_secs(2);

/// The same for the API, which has requests only: longer than any of them takes on a busy machine.
pub(super) const API_DRAIN: Duration = Duration::from_secs(10);

/// What the configuration of the demo depends on.
pub(super) struct Sample<'a> {
    pub(super) state_dir: &'a Path,
    pub(super) listen: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) blue: SocketAddr,
    pub(super) green: SocketAddr,
}

impl Sample<'_> {
    /// The whole file.
    pub(super) fn written(&self) -> String {
        format!(
            r#"state_dir = {state_dir}
shutdown_timeout = "1s"

[admin]
listen = "{admin}"

[[listeners]]
listen = "{listen}"
{web}{api}
[[routes]]
path = "/"
service = "web"

[[routes]]
path = "/api"
service = "api"
"#,
            state_dir = toml::Value::from(self.state_dir.display().to_string()),
            admin = self.admin,
            listen = self.listen,
            web = self.service("web", WEB_DRAIN),
            api = self.service("api", API_DRAIN),
        )
    }

    fn service(&self, name: &str, drain_timeout: Duration) -> String {
        format!(
            r#"
[services.{name}]
blue   = ["{}"]
green  = ["{}"]
health = {{ path = "/healthz", interval = "500ms" }}
drain  = {{ timeout = "{}s" }}
"#,
            self.blue,
            self.green,
            drain_timeout.as_secs(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn means_what_it_says() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let sample = Sample {
            state_dir: Path::new("/tmp/a \"quoted\" folder"),
            listen: at(1),
            admin: at(2),
            blue: at(3),
            green: at(4),
        };
        let config = config::parse(&sample.written(), Path::new("demo.toml")).unwrap();
        assert_eq!(config.state_dir, sample.state_dir);
        let services: Vec<_> =
            config.services.values().map(|service| (&*service.name, service.drain.timeout)).collect();
        assert_eq!(services, [("api", API_DRAIN), ("web", WEB_DRAIN)]);
    }
}
