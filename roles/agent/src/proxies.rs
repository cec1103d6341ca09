//! What the proxies on this node made of their policies.

use std::collections::HashMap;
use std::sync::Mutex;

use countersign_sys::PeerProcess;
use countersign_wire::proto::countersign::node::v1::ProxyPolicies;

/// Most proxies on one node.
const MAX_PROXIES: usize = 4096;
/// Longest account of a trouble, in characters.
const MAX_TROUBLE: usize = 500;

/// The latest report of each proxy that still runs.
#[derive(Default)]
pub(crate) struct Proxies(Mutex<HashMap<i32, (PeerProcess, ProxyPolicies)>>);

impl Proxies {
    /// Keeps a report; `false` if there are too many proxies.
    pub(crate) fn report(&self, process: PeerProcess, mut report: ProxyPolicies) -> bool {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if all.len() >= MAX_PROXIES {
            all.retain(|_, (process, _)| process.still_alive().is_ok());
        }
        if all.len() >= MAX_PROXIES && !all.contains_key(&process.pid) {
            return false;
        }
        report.trouble = report.trouble.chars().take(MAX_TROUBLE).collect();
        report.pid = process.pid;
        all.insert(process.pid, (process, report));
        true
    }

    /// Those of proxies that still run, by process.
    pub(crate) fn reports(&self) -> Vec<ProxyPolicies> {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        all.retain(|_, (process, _)| process.still_alive().is_ok());
        let mut out: Vec<ProxyPolicies> = all.values().map(|(_, report)| report.clone()).collect();
        out.sort_by_key(|r| r.pid);
        out
    }
}
