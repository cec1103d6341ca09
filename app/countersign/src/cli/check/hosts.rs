//! Clocks of hosts, and the memory of processes.

use countersign_findings::{Code, Finding};
use countersign_wire::proto::countersign::server::v1::{AgentClock, Memory};
use countersign_x509::profile::BACKDATE_SECS;

use super::certificates::span;
use super::report::{Category, Report};

/// From here on a clock is worth a word, milliseconds.
const WARN_MS: u64 = 5_000;
/// Certificates begin this much before they are issued: with more, fresh ones fail.
const FAIL_MS: u64 = BACKDATE_SECS * 1000;

/// Clocks of the agents that are connected to the server.
pub(super) fn clocks(report: &mut Report, clocks: &[AgentClock]) {
    let category = report.category("clock");
    let mut off = 0;
    for c in clocks.iter().filter(|c| c.ahead_ms.unsigned_abs() > WARN_MS) {
        off += 1;
        // More would only repeat it.
        if off <= 20 {
            clock(category, &format!("the host of `{}`", c.agent_id), c.ahead_ms);
        }
    }
    match (off, clocks.len()) {
        (_, 0) => {}
        (0, n) => category.ok(format!("clocks of hosts that agree with the server's: {n}")),
        (21.., _) => {
            let finding = Finding::new(Code::ClockSkew, format!("{} hosts more", off - 20));
            let worst = clocks.iter().map(|c| c.ahead_ms.unsigned_abs()).max().unwrap_or(0);
            match worst > FAIL_MS {
                true => category.fail("the hosts' clocks agree", &finding),
                false => category.warn("the hosts' clocks agree", &finding),
            }
        }
        _ => {}
    }
}

/// This host's clock against the server's: `server_ahead_ms`, as the agent knows it.
pub(super) fn own_clock(report: &mut Report, server_ahead_ms: i64) {
    let category = report.category("clock");
    if server_ahead_ms.unsigned_abs() > WARN_MS {
        clock(category, "this host", server_ahead_ms.saturating_neg());
    } else {
        category.ok("this host's clock agrees with the server's");
    }
}

fn clock(category: &mut Category, host: &str, ahead_ms: i64) {
    let by = span(ahead_ms.unsigned_abs() / 1000);
    let text = match ahead_ms < 0 {
        true => format!(
            "{host} is {by} behind the server: certificates just issued are not valid there yet"
        ),
        false => {
            format!("{host} is {by} ahead of the server: certificates end there before their time")
        }
    };
    let finding = Finding::new(Code::ClockSkew, text);
    match ahead_ms.unsigned_abs() > FAIL_MS {
        true => category.fail("the hosts' clocks agree", &finding),
        false => category.warn("the hosts' clocks agree", &finding),
    }
}

/// What a process takes, and whether that only ever grew.
pub(super) fn memory(report: &mut Report, who: &str, memory: Option<&Memory>) {
    let Some(m) = memory.filter(|m| m.bytes > 0) else { return };
    let category = report.category("memory");
    let mib = |bytes: u64| bytes >> 20;
    if m.grew_to > m.grew_from {
        let text = format!(
            "the least it takes in an hour grew from {} to {} MiB over {}, and has not stopped",
            mib(m.grew_from),
            mib(m.grew_to),
            span(m.grew_seconds)
        );
        let what = format!("{who} does not take more and more memory");
        category.warn(what, &Finding::new(Code::MemoryGrowing, text));
    } else {
        category.ok(format!("{who} takes {} MiB", mib(m.bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(fill: impl Fn(&mut Report)) -> String {
        let mut report = Report::default();
        fill(&mut report);
        serde_json::to_string(&report).unwrap()
    }

    #[test]
    fn clocks_that_are_off_are_told_with_what_it_means() {
        let host = |ahead_ms| AgentClock { agent_id: "a".into(), ahead_ms };
        let lagging = said(|r| clocks(r, &[host(-90_000), host(100)]));
        assert!(lagging.contains("CS6001") && lagging.contains("\"success\":false"), "{lagging}");
        assert!(lagging.contains("90 s behind"), "{lagging}");
        let leading = said(|r| clocks(r, &[host(7_000)]));
        assert!(leading.contains("ahead of the server") && leading.contains("\"success\":true"));
        assert!(
            said(|r| clocks(r, &[host(300), host(-300)])).contains("agree with the server's: 2")
        );
        assert!(said(|r| own_clock(r, 60_000)).contains("this host is"));
        let many = said(|r| clocks(r, &vec![host(20_000); 30]));
        assert!(many.contains("10 hosts more"), "{many}");
    }

    #[test]
    fn memory_that_grows_is_a_warning() {
        let growing = Memory {
            bytes: 400 << 20,
            grew_from: 100 << 20,
            grew_to: 390 << 20,
            grew_seconds: 86_400,
        };
        let text = said(|r| memory(r, "the server", Some(&growing)));
        assert!(text.contains("CS6006") && text.contains("from 100 to 390 MiB"), "{text}");
        let steady = Memory { bytes: 40 << 20, ..Memory::default() };
        assert!(said(|r| memory(r, "the agent", Some(&steady))).contains("takes 40 MiB"));
        // Servers of older versions do not tell.
        assert!(!said(|r| memory(r, "the agent", Some(&Memory::default()))).contains("memory"));
    }
}
