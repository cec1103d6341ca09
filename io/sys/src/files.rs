//! Whether files have changed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Remembers how files were. Make it before they are read, so that no change in between is missed.
pub struct FileWatch(Vec<Stamp>);

/// When a file was changed last and how long it is; `None` for one that is not there.
type Stamp = Option<(SystemTime, u64)>;

impl FileWatch {
    /// As they are now.
    pub fn new(files: &[PathBuf]) -> Self {
        Self(files.iter().map(|f| stamp(f)).collect())
    }

    /// Waits until one of the files that `list` names is another than when it was last looked at, or another
    /// file is named.
    pub async fn changed(&mut self, list: impl Fn() -> Vec<PathBuf>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = Self::new(&list());
            if now.0 != self.0 {
                *self = now;
                return;
            }
        }
    }
}

/// Followed through links: what is mounted changes by moving one.
fn stamp(file: &Path) -> Stamp {
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}
