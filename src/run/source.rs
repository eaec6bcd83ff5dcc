//! The config file and the files that it names, as one thing that is read, watched and read again.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::watch::Watch;
use crate::config::{self, Config, Problems};

/// How often a file is read again at once because it names more files than before.
const MOST_ROUNDS: usize = 5;

/// Where the configuration comes from.
pub(super) struct Source {
    path: PathBuf,
    watch: Watch,
    /// The files that the newest text names.
    named: Vec<PathBuf>,
    /// Those of the config that is in effect: as long as the newest one is not, both are watched.
    in_effect: Vec<PathBuf>,
}

impl Source {
    /// # Errors
    /// As [`Watch::new`].
    pub(super) fn new(path: &Path) -> io::Result<Source> {
        let watch = Watch::new(path)?;
        Ok(Source { path: path.to_owned(), watch, named: Vec::new(), in_effect: Vec::new() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// As [`Watch::changed`].
    pub(super) async fn changed(&mut self) {
        self.watch.changed().await;
    }

    /// Reads everything, and watches from then on what was read or should have been: a bad certificate that is named for
    /// the first time can be mended, too. Blocks as [`config::load`] does.
    ///
    /// # Errors
    /// As [`config::load`].
    pub(super) fn load(&mut self) -> Result<Config, Problems> {
        let mut round = 0;
        loop {
            self.named.clear();
            let loaded = config::load_noting(&self.path, &mut self.named);
            let files = self.named.iter().chain(&self.in_effect).map(PathBuf::as_path);
            let has_more = self.watch.follow(files.chain([&*self.path])).unwrap_or_else(|error| {
                tracing::warn!(%error, "changes of certificates and keys will not be noticed");
                false
            });
            round += 1;
            // What is new may have changed after it was read and before it was watched.
            if !has_more || round == MOST_ROUNDS {
                return loaded;
            }
        }
    }

    /// What was loaded is what the proxy does now.
    pub(super) fn is_in_effect(&mut self) {
        self.in_effect.clone_from(&self.named);
    }
}
