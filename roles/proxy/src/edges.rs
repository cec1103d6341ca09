//! Which calls were made: each distinct one once, in the form that `countersign policy` reads.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::{Arc, Mutex};

use countersign_policy::Labels;
use serde_json::{Value, json};

/// Most distinct calls that are kept apart; later ones are not written.
const MOST: usize = 100_000;

/// Where distinct calls are written.
#[derive(Clone)]
pub struct EdgeLog(Arc<Inner>);

struct Inner {
    hasher: RandomState,
    state: Mutex<State>,
}

struct State {
    seen: HashSet<u64>,
    out: Box<dyn Write + Send>,
}

impl fmt::Debug for EdgeLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EdgeLog")
    }
}

/// A call that was allowed.
pub(crate) struct Edge<'a> {
    /// The caller's SPIFFE ID; `None` for plaintext.
    pub(crate) principal: Option<&'a str>,
    pub(crate) namespace: &'a str,
    pub(crate) labels: Option<&'a Labels>,
    pub(crate) port: u16,
    /// Method, host and path; `None` for TCP.
    pub(crate) http: Option<(&'a str, &'a str, &'a str)>,
}

impl EdgeLog {
    /// Writes to `out`, a line each.
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        let state = Mutex::new(State { seen: HashSet::new(), out });
        Self(Arc::new(Inner { hasher: RandomState::new(), state }))
    }

    pub(crate) fn record(&self, e: &Edge<'_>) {
        let http = e.http.map(|(method, _, path)| (method, path));
        let hash = self.0.hasher.hash_one((e.principal, e.namespace, e.labels, e.port, http));
        let mut state = self.0.state.lock().unwrap_or_else(|e| e.into_inner());
        if state.seen.len() >= MOST || !state.seen.insert(hash) {
            return;
        }
        if state.seen.len() == MOST {
            tracing::warn!("{MOST} distinct calls were written; later ones are not");
        }
        let http = e.http.map_or(
            Value::Null,
            |(method, host, path)| json!({"method": method, "host": host, "path": path}),
        );
        let line = json!({
            "source": {"principal": e.principal},
            "destination": {"namespace": e.namespace, "labels": e.labels.cloned().unwrap_or_default(), "port": e.port},
            "http": http,
        });
        if writeln!(state.out, "{line}").and_then(|()| state.out.flush()).is_err() {
            tracing::warn!("a call could not be written to the file of edges");
        }
    }
}
