//! What the proxies on this node made of their policies.

use std::collections::HashMap;
use std::sync::Mutex;

use countersign_sys::PeerProcess;
use countersign_telemetry::MemoryWatch;
use countersign_wire::convert::from_memory;
use countersign_wire::proto::countersign::node::v1::ProxyPolicies;

/// Most proxies on one node.
const MAX_PROXIES: usize = 4096;
/// Longest account of a trouble, in characters.
const MAX_TROUBLE: usize = 500;

struct Known {
    process: PeerProcess,
    report: ProxyPolicies,
    memory: MemoryWatch,
}

/// The latest report of each proxy that still runs.
#[derive(Default)]
pub(crate) struct Proxies(Mutex<HashMap<i32, Known>>);

impl Proxies {
    /// Keeps a report; `false` if there are too many proxies.
    pub(crate) fn report(&self, process: PeerProcess, mut report: ProxyPolicies) -> bool {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if all.len() >= MAX_PROXIES {
            all.retain(|_, known| known.process.still_alive().is_ok());
        }
        if all.len() >= MAX_PROXIES && !all.contains_key(&process.pid) {
            return false;
        }
        report.trouble = report.trouble.chars().take(MAX_TROUBLE).collect();
        report.pid = process.pid;
        // The same process reports again after every change: what is known of its memory stays.
        match all.get_mut(&process.pid) {
            Some(known) if known.process.start_time() == process.start_time() => {
                known.report = report;
            }
            _ => {
                let memory = MemoryWatch::new(process.pid);
                all.insert(process.pid, Known { process, report, memory });
            }
        }
        true
    }

    /// Those of proxies that still run, by process.
    pub(crate) fn reports(&self) -> Vec<ProxyPolicies> {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        all.retain(|_, known| known.process.still_alive().is_ok());
        let reports = all.values().map(|known| ProxyPolicies {
            memory: Some(from_memory(known.memory.seen())),
            ..known.report.clone()
        });
        let mut out: Vec<ProxyPolicies> = reports.collect();
        out.sort_by_key(|r| r.pid);
        out
    }

    /// Measures the memory of each.
    pub(crate) fn look(&self) {
        let all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        all.values().for_each(|known| known.memory.look());
    }
}
