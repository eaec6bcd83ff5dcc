//! Notices that the config file, or a file that it names, may say something new.
//!
//! Owns a watch on each parent directory, so that it sees an editor's rename and a swapped symlink of a Kubernetes
//! ConfigMap, and compares digests of the contents, so that it stays silent about everything else. Every few seconds
//! it looks even without a sign: that finds a change behind a link, a replaced directory, and every change where the
//! system cannot watch. Files that change one right after the other, such as a certificate and its key, are one change.
//! Does not parse, load or judge any of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};

use crate::config::file::LARGEST;

/// Silence after which a change counts as settled.
const SETTLED: Duration = Duration::from_millis(50);
/// The longest wait for that silence.
const RESTLESS: Duration = Duration::from_secs(1);
/// How often to look without a sign.
const LOOK: Duration = Duration::from_secs(5);

/// A watch on some files.
pub struct Watch {
    seen: Seen,
    state: State,
    look_at: Instant,
    signs: Arc<Notify>,
    directories: BTreeMap<PathBuf, Directory>,
}

/// A directory in which files are watched.
struct Directory {
    names: BTreeSet<OsString>,
    /// Of what `watcher` was set on, even if in vain: then it is not tried again every few seconds.
    identity: Option<Identity>,
    _watcher: Option<RecommendedWatcher>,
}

/// What `changed` is at. Kept over calls, so that a caller that cancels often puts nothing off for ever.
enum State {
    Calm,
    /// A sign came. `look_at` moves on with each further one, until `last`.
    Stirred {
        look_at: Instant,
        last: Instant,
    },
    /// Off this thread, as a disk can be slow.
    Looking(JoinHandle<Look>),
}

/// Device and inode.
type Identity = (u64, u64);
type Content = [u8; 32];
/// What is in each file. `None`: not readable, which is a state of its own.
type Seen = BTreeMap<PathBuf, Option<Content>>;

/// What there is at a moment.
struct Look {
    seen: Seen,
    directories: BTreeMap<PathBuf, Option<Identity>>,
}

impl Look {
    fn at(files: BTreeSet<PathBuf>) -> Look {
        let directories = files.iter().map(|path| directory(path).to_owned()).collect::<BTreeSet<_>>();
        Look {
            seen: files.into_iter().map(|path| (content(&path), path)).map(|(content, path)| (path, content)).collect(),
            directories: directories
                .into_iter()
                .map(|path| (identity(&path), path))
                .map(|(id, path)| (path, id))
                .collect(),
        }
    }
}

impl Watch {
    /// Starts to watch the file at `path`, which need not exist. Make it *before* loading the file: then no change
    /// between the two is missed. Where the system cannot watch the directory, changes are found by looking.
    ///
    /// # Errors
    /// The working directory is unknown and `path` starts there.
    pub fn new(path: &Path) -> io::Result<Watch> {
        let mut watch = Watch::without_signs();
        watch.follow([path])?;
        Ok(watch)
    }

    /// From now on watches these files, whether they exist or not; whether others than before are among them. What is in
    /// those counts as seen, so they are to be read *after* this.
    ///
    /// # Errors
    /// The working directory is unknown and one of the paths starts there.
    pub fn follow<'p>(&mut self, files: impl IntoIterator<Item = &'p Path>) -> io::Result<bool> {
        let files: BTreeSet<PathBuf> = files.into_iter().map(std::path::absolute).collect::<io::Result<_>>()?;
        let is_new = |path: &PathBuf| !self.seen.contains_key(path);
        let (new, known): (BTreeSet<_>, BTreeSet<_>) = files.into_iter().partition(is_new);
        self.seen.retain(|path, _| known.contains(path));
        let has_more = !new.is_empty();
        self.seen.append(&mut Look::at(new).seen);
        let directories = self.seen.keys().map(|path| directory(path).to_owned()).collect::<BTreeSet<_>>();
        self.rewatch(
            directories.into_iter().map(|path| (identity(&path), path)).map(|(id, path)| (path, id)).collect(),
        );
        Ok(has_more)
    }

    /// Returns when the content of any of them differs from what it was at the last return (or at the start) and has settled. A file
    /// that became unreadable differs too.
    ///
    /// Cancel-safe: how far it came is kept, so a call that is dropped loses nothing and the next one goes on.
    pub async fn changed(&mut self) {
        loop {
            match &mut self.state {
                State::Calm => self.sign().await,
                State::Stirred { .. } => self.settle().await,
                State::Looking(look) => {
                    let look = look.await;
                    self.state = State::Calm;
                    self.look_at = Instant::now() + LOOK;
                    let Ok(Look { seen, directories }) = look else { continue };
                    self.rewatch(directories);
                    if self.take_note(seen) {
                        return;
                    }
                }
            }
        }
    }

    fn without_signs() -> Watch {
        let look_at = Instant::now() + LOOK;
        Watch { seen: Seen::new(), state: State::Calm, look_at, signs: Arc::default(), directories: BTreeMap::new() }
    }

    /// Whether anything has changed; files that are watched no more do not count, nor do those that came since.
    fn take_note(&mut self, now: Seen) -> bool {
        let mut has_changed = false;
        for (path, content) in now {
            if let Some(seen) = self.seen.get_mut(&path) {
                has_changed |= *seen != content;
                *seen = content;
            }
        }
        has_changed
    }

    /// Waits for a sign or for the time to look without one.
    async fn sign(&mut self) {
        tokio::select! {
            () = self.signs.notified() => {}
            () = time::sleep_until(self.look_at) => {}
        }
        let now = Instant::now();
        self.state = State::Stirred { look_at: now + SETTLED, last: now + RESTLESS };
    }

    /// Waits for silence, or for the next sign if one comes first.
    async fn settle(&mut self) {
        let State::Stirred { look_at, last } = &mut self.state else { return };
        tokio::select! {
            () = time::sleep_until(*look_at) => {
                let files = self.seen.keys().cloned().collect();
                self.state = State::Looking(tokio::task::spawn_blocking(move || Look::at(files)));
            }
            () = self.signs.notified() => *look_at = (Instant::now() + SETTLED).min(*last),
        }
    }

    /// A watch stays with the directory that it was set on, so one that was replaced needs a new one.
    fn rewatch(&mut self, directories: BTreeMap<PathBuf, Option<Identity>>) {
        self.directories.retain(|path, _| directories.contains_key(path));
        for (path, identity) in directories {
            let files = self.seen.keys().filter(|file| directory(file) == path);
            let names: BTreeSet<_> = files.filter_map(|file| file.file_name()).map(OsString::from).collect();
            let now = self.directories.get(&path);
            if now.is_some_and(|now| now.identity == identity && now.names == names) {
                continue;
            }
            let watcher = watcher(&path, names.clone(), self.signs.clone()).map_err(|error| {
                let directory = path.display();
                tracing::warn!(%directory, %error, "cannot watch this directory of the config, looking every 5s");
            });
            self.directories.insert(path, Directory { names, identity, _watcher: watcher.ok() });
        }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn identity(directory: &Path) -> Option<Identity> {
    fs::metadata(directory).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn watcher(directory: &Path, names: BTreeSet<OsString>, signs: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // An error (such as lost events) is a sign, too: looking is cheap.
        if event.map_or(true, |event| concerns(&event, &names)) {
            signs.notify_one();
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// A name that comes, goes or changes place can be a link on the way to a file; a write concerns only the files themselves.
/// Reading makes events as well, and ours must not wake us.
fn concerns(event: &Event, names: &BTreeSet<OsString>) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Data(_)) => {
            event.paths.iter().any(|path| path.file_name().is_some_and(|name| names.contains(name)))
        }
        EventKind::Access(_) => false,
        _ => true,
    }
}

/// The digest of the file, or `None` when it cannot be read. Never waits for the writer of a pipe.
fn content(path: &Path) -> Option<Content> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut octets = Vec::new();
    File::open(path).ok()?.take(LARGEST + 1).read_to_end(&mut octets).ok()?;
    Some(Sha256::digest(&octets).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// Far above what any of these needs, below what a person waits.
    const PATIENCE: Duration = Duration::from_secs(30);
    /// Well below [`LOOK`], so that only a sign can have been the cause.
    const PROMPT: Duration = Duration::from_secs(4);

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a directory for the test")
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).expect("the test can write");
    }

    fn without_signs(path: &Path) -> Watch {
        let mut watch = Watch::without_signs();
        watch.seen = Look::at([path.to_owned()].into()).seen;
        watch
    }

    async fn prompt(watch: &mut Watch) {
        time::timeout(PROMPT, watch.changed()).await.expect("the change is noticed at once");
    }

    #[tokio::test]
    async fn a_write_is_noticed() {
        let directory = folder();
        let path = directory.path().join("teal.toml");
        write(&path, "one");
        let mut watch = Watch::new(&path).expect("a watch");
        write(&path, "two");
        prompt(&mut watch).await;
    }

    #[tokio::test]
    async fn a_rename_over_the_file_is_noticed() {
        let directory = folder();
        let path = directory.path().join("teal.toml");
        write(&path, "one");
        let mut watch = Watch::new(&path).expect("a watch");
        let aside = directory.path().join("teal.toml.swp");
        write(&aside, "two");
        fs::rename(&aside, &path).expect("the test can rename");
        prompt(&mut watch).await;
    }

    #[tokio::test]
    async fn a_swapped_config_map_is_noticed() {
        let directory = folder();
        let at = |name: &str| directory.path().join(name);
        for (version, text) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(at(version)).expect("the test can create a directory");
            write(&at(version).join("teal.toml"), text);
        }
        symlink("..1", at("..data")).expect("the test can link");
        symlink("..data/teal.toml", at("teal.toml")).expect("the test can link");
        let mut watch = Watch::new(&at("teal.toml")).expect("a watch");
        symlink("..2", at("..data_tmp")).expect("the test can link");
        fs::rename(at("..data_tmp"), at("..data")).expect("the test can rename");
        prompt(&mut watch).await;
    }

    #[tokio::test]
    async fn a_file_that_comes_and_goes_is_noticed() {
        let directory = folder();
        let path = directory.path().join("teal.toml");
        let mut watch = Watch::new(&path).expect("a watch");
        write(&path, "one");
        prompt(&mut watch).await;
        fs::remove_file(&path).expect("the test can remove");
        prompt(&mut watch).await;
    }

    #[tokio::test]
    async fn the_same_content_is_no_change() {
        let directory = folder();
        let path = directory.path().join("teal.toml");
        write(&path, "one");
        let mut watch = Watch::new(&path).expect("a watch");
        write(&path, "one");
        write(&directory.path().join("other"), "two");
        watch.signs.notified().await;
        watch.signs.notify_one();
        assert!(time::timeout(4 * SETTLED, watch.changed()).await.is_err());
        write(&path, "two");
        prompt(&mut watch).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_without_a_sign_is_found_by_looking() {
        let directory = folder();
        let path = directory.path().join("teal.toml");
        write(&path, "one");
        let mut watch = without_signs(&path);
        write(&path, "two");
        let start = Instant::now();
        time::timeout(PATIENCE, watch.changed()).await.expect("the change is found");
        assert!(start.elapsed() >= LOOK);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_loses_nothing() {
        let directory = folder();
        let path = directory.path().join("teal.toml");
        write(&path, "one");
        let mut watch = without_signs(&path);
        write(&path, "two");
        watch.signs.notify_one();
        assert!(time::timeout(SETTLED / 5, watch.changed()).await.is_err(), "dropped while it settles");
        prompt(&mut watch).await;
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_dropped_put_nothing_off() {
        let directory = folder();
        let path = directory.path().join("teal.toml");
        write(&path, "one");
        let mut watch = without_signs(&path);
        write(&path, "two");
        let often = async { while time::timeout(SETTLED / 5, watch.changed()).await.is_err() {} };
        time::timeout(2 * LOOK, often).await.expect("the change is found");
    }

    #[tokio::test(start_paused = true)]
    async fn a_restless_directory_is_looked_at_all_the_same() {
        let directory = folder();
        let path = directory.path().join("teal.toml");
        write(&path, "one");
        let mut watch = without_signs(&path);
        write(&path, "two");
        let signs = watch.signs.clone();
        let restless = async {
            loop {
                signs.notify_one();
                time::sleep(SETTLED / 2).await;
            }
        };
        tokio::select! {
            () = restless => unreachable!("it never ends"),
            changed = time::timeout(2 * RESTLESS, watch.changed()) => changed.expect("the change is found"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_directory_is_watched_again() {
        let above = folder();
        let directory = above.path().join("teal");
        let path = directory.join("teal.toml");
        fs::create_dir(&directory).expect("the test can create a directory");
        write(&path, "one");
        let mut watch = Watch::new(&path).expect("a watch");
        let before = identity(&directory);
        fs::rename(&directory, above.path().join("old")).expect("the test can rename");
        fs::create_dir(&directory).expect("the test can create a directory");
        write(&path, "two");
        time::timeout(PATIENCE, watch.changed()).await.expect("the change is found");
        let now = &watch.directories[&directory];
        assert_ne!(now.identity, before);
        assert_eq!(now.identity, identity(&directory));
        assert!(now._watcher.is_some());
    }

    #[tokio::test]
    async fn any_of_several_files_is_noticed_and_those_that_are_left_are_not() {
        let (directory, other) = (folder(), folder());
        let (config, key) = (directory.path().join("teal.toml"), other.path().join("a.key"));
        write(&config, "one");
        let mut watch = Watch::new(&config).expect("a watch");
        assert!(watch.follow([&*config, &key]).expect("a working directory"), "there is one more");
        assert!(!watch.follow([&*key, &config]).expect("a working directory"), "they are the same");
        write(&key, "one");
        prompt(&mut watch).await;
        write(&config, "two");
        prompt(&mut watch).await;
        write(&key, "two");
        write(&config, "three");
        prompt(&mut watch).await;
        assert!(time::timeout(4 * SETTLED, watch.changed()).await.is_err(), "that was one change");
        assert!(!watch.follow([&*config]).expect("a working directory"));
        write(&key, "three");
        assert!(time::timeout(4 * SETTLED, watch.changed()).await.is_err(), "nobody asks for it any more");
        assert_eq!(watch.directories.len(), 1);
    }
}
