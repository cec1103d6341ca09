//! How far the clocks of the connected agents are off. A host whose clock is wrong refuses certificates that work
//! everywhere else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use countersign_wire::proto::countersign::server::v1::AgentClock;

/// By agent; with the stream that said so.
#[derive(Default)]
pub(crate) struct Clocks {
    by_agent: Mutex<BTreeMap<String, (u64, i64)>>,
    next: std::sync::atomic::AtomicU64,
}

/// An agent's clock, for as long as its stream is open.
pub(crate) struct Told {
    clocks: Arc<Clocks>,
    agent: String,
    stream: u64,
}

impl Clocks {
    /// Keeps what an agent said: `theirs` and `ours` in milliseconds since 1970. `None` if it did not say.
    pub(crate) fn told(self: &Arc<Self>, agent: &str, theirs: i64, ours: i64) -> Option<Told> {
        if theirs <= 0 {
            return None;
        }
        let stream = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let ahead = theirs.saturating_sub(ours);
        self.locked().insert(agent.to_owned(), (stream, ahead));
        Some(Told { clocks: Arc::clone(self), agent: agent.to_owned(), stream })
    }

    pub(crate) fn list(&self) -> Vec<AgentClock> {
        let all = self.locked();
        let clocks = all.iter().map(|(agent, (_, ahead_ms))| AgentClock {
            agent_id: agent.clone(),
            ahead_ms: *ahead_ms,
        });
        clocks.collect()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (u64, i64)>> {
        self.by_agent.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let mut all = self.clocks.locked();
        // A newer stream of the same agent may have said something since.
        if all.get(&self.agent).is_some_and(|(stream, _)| *stream == self.stream) {
            all.remove(&self.agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_known_while_its_newest_stream_is_open() {
        let clocks = Arc::new(Clocks::default());
        assert!(clocks.told("a", 0, 5).is_none(), "it did not say");
        let first = clocks.told("a", 61_000, 1_000).unwrap();
        let second = clocks.told("a", 1_000, 3_500).unwrap();
        drop(first);
        let known = AgentClock { agent_id: "a".into(), ahead_ms: -2_500 };
        assert_eq!(clocks.list(), [known]);
        let _other = clocks.told("b", i64::MAX, -1).unwrap();
        assert_eq!(clocks.list().len(), 2);
        drop(second);
        assert_eq!(clocks.list().len(), 1);
    }
}
