//! Processes that `countersign run` vouches for: while its stream is open, its whole process tree carries
//! the selector `countersign:run:<nonce>`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use countersign_identity::Selector;
use countersign_sys::{PeerProcess, is_descendant};

/// Most runs on one node.
const MAX_RUNS: usize = 4096;

#[derive(Default)]
pub(crate) struct Runs(Mutex<HashMap<String, PeerProcess>>);

/// Ends the run when dropped.
pub(crate) struct RunGuard {
    runs: Arc<Runs>,
    nonce: String,
}

impl Runs {
    /// Ties `nonce` to `process` and its descendants; `None` if the nonce is taken or there are too
    /// many runs.
    pub(crate) fn hold(self: &Arc<Self>, nonce: &str, process: PeerProcess) -> Option<RunGuard> {
        let mut runs = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if runs.len() >= MAX_RUNS || runs.contains_key(nonce) {
            return None;
        }
        runs.insert(nonce.to_owned(), process);
        Some(RunGuard { runs: Arc::clone(self), nonce: nonce.to_owned() })
    }

    /// The run selectors that `process` carries.
    pub(crate) fn selectors_of(&self, process: &PeerProcess) -> Vec<Selector> {
        let runs = self.0.lock().unwrap_or_else(|e| e.into_inner());
        runs.iter()
            .filter(|(_, root)| {
                root.still_alive().is_ok()
                    && is_descendant(process.pid, root.pid, root.start_time())
            })
            .filter_map(|(nonce, _)| Selector::new("countersign", &format!("run:{nonce}")).ok())
            .collect()
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        self.runs.0.lock().unwrap_or_else(|e| e.into_inner()).remove(&self.nonce);
    }
}
