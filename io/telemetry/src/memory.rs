//! The memory of processes, looked at now and then.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use countersign_lifecycle::{Growth, MemoryTrend};
use countersign_sys::resident_bytes;

/// How often to look.
pub const MEMORY_EVERY: Duration = Duration::from_secs(60);

/// What was seen of one process.
#[derive(Debug)]
pub struct MemoryWatch {
    pid: i32,
    since: Instant,
    trend: Mutex<MemoryTrend>,
}

impl MemoryWatch {
    /// Begins with a first look.
    pub fn new(pid: i32) -> Self {
        let watch = Self { pid, since: Instant::now(), trend: Mutex::default() };
        watch.look();
        watch
    }

    /// Measures once.
    pub fn look(&self) {
        if let Some(bytes) = resident_bytes(self.pid) {
            let mut trend = self.trend.lock().unwrap_or_else(|e| e.into_inner());
            trend.record(self.since.elapsed(), bytes);
        }
    }

    /// Bytes at the latest look, 0 if the system does not tell; and the growth, if there is one.
    pub fn seen(&self) -> (u64, Option<Growth>) {
        let trend = self.trend.lock().unwrap_or_else(|e| e.into_inner());
        (trend.latest(), trend.growth())
    }
}
