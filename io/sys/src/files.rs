//! Whether files have changed.

use std::path::Path;
use std::time::SystemTime;

/// When each file was changed last and how long it is, `None` for what is not there. Followed through links:
/// what is mounted changes by moving one.
pub fn stamps<P: AsRef<Path>>(files: &[P]) -> Vec<Option<(SystemTime, u64)>> {
    files
        .iter()
        .map(|f| std::fs::metadata(f).ok().and_then(|m| Some((m.modified().ok()?, m.len()))))
        .collect()
}
