//! Why a workload has its identity, or has not: from the entry to the delivery.

use std::process::ExitCode;

use countersign_findings::{Code, Finding};
use countersign_identity::{SpiffeId, UnixTime};
use countersign_tls::current_time;
use countersign_wire::proto::countersign::node::v1::StatusRequest;
use countersign_wire::proto::spire::api::types;

use crate::cli::Global;
use crate::cli::check::certificates::{self, span};
use crate::cli::check::live::{agents, id_of};
use crate::cli::check::report::{Category, Report, Verdict};
use crate::cli::entry::{id_or_path, trust_domain};
use crate::client::{Agent, Server};
use crate::output::{self, Format};
use crate::paths;

/// Records of the journal that are looked at.
const RECORDS: u32 = 10_000;

pub(super) async fn run(text: &str, global: &Global) -> Result<ExitCode, Finding> {
    let data_dir = global.data_dir()?;
    let server = Server::new(&data_dir);
    let id = id_or_path(text, &trust_domain(&server).await?)?;
    let now = current_time();
    let mut report = Report::default();
    let entries: Vec<types::Entry> = server
        .list_entries(None)
        .await?
        .into_iter()
        .filter(|e| id_of(e.spiffe_id.as_ref()) == id.as_str())
        .collect();
    registered(report.category("1 entry"), &id, &entries, now);
    let agents = agents(&server).await?;
    attested(report.category("2 agent"), &entries, &agents, &server, now).await?;
    issued(report.category("3 certificate"), &id, &server, now).await?;
    delivered(report.category("4 delivery"), &id, &Agent::new(paths::agent_socket(&data_dir)))
        .await;
    match global.output {
        Format::Json => output::json("countersign.why-id/v1", &report)?,
        Format::Table => report.print(false)?,
    }
    Ok(match report.worst() {
        Verdict::Error => ExitCode::from(10),
        _ => ExitCode::SUCCESS,
    })
}

fn registered(category: &mut Category, id: &SpiffeId, entries: &[types::Entry], now: UnixTime) {
    if entries.is_empty() {
        let finding =
            Finding::new(Code::EntryNotFound, format!("no entry gives `{id}` to anybody")).hint(
                format!(
                    "countersign entry create --spiffe-id {} --selector unix:uid:UID",
                    id.path()
                ),
            );
        return category.fail("an entry exists", &finding);
    }
    for e in entries {
        let selectors: Vec<String> =
            e.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
        let what = format!("entry {}: for processes with {}", e.id, selectors.join(" and "));
        if e.expires_at != 0 && e.expires_at < now.secs() {
            let ago = span(now.since(UnixTime::from_secs(e.expires_at)).as_secs());
            let finding = Finding::new(Code::EntryInvalid, format!("it ended {ago} ago"))
                .hint("make a new one, or one without an end");
            category.fail(what, &finding);
        } else {
            category.ok(what);
        }
    }
}

/// Somebody must hand it out: an agent, by its own ID or by a lasting name of its node.
async fn attested(
    category: &mut Category,
    entries: &[types::Entry],
    agents: &[types::Agent],
    server: &Server,
    now: UnixTime,
) -> Result<(), Finding> {
    let all = server.list_entries(None).await?;
    for e in entries {
        let parent = id_of(e.parent_id.as_ref());
        let mut names = vec![parent.clone()];
        names.extend(
            all.iter()
                .filter(|n| id_of(n.spiffe_id.as_ref()) == parent)
                .map(|n| id_of(n.parent_id.as_ref())),
        );
        let known: Vec<&types::Agent> = agents
            .iter()
            .filter(|a| {
                let agent = id_of(a.id.as_ref());
                // A node's name hangs below the server, and its agent has the selectors of the join.
                names.contains(&agent) || names.iter().any(|n| n.ends_with("/spire/server"))
            })
            .collect();
        let what = format!("entry {}: an agent hands it out", e.id);
        match known.iter().find(|a| !a.banned && a.x509svid_expires_at >= now.secs()) {
            Some(a) => category.ok(format!("{what}: `{}`", id_of(a.id.as_ref()))),
            None => {
                let text = match known.first() {
                    Some(a) if a.banned => format!("`{}` is banned", id_of(a.id.as_ref())),
                    Some(a) => {
                        format!("`{}` has not renewed its certificate", id_of(a.id.as_ref()))
                    }
                    None => format!("nobody is `{parent}`, which the entry names as its parent"),
                };
                let finding = Finding::new(Code::AgentNotAttested, text);
                category.fail(what, &finding);
            }
        }
    }
    Ok(())
}

async fn issued(
    category: &mut Category,
    id: &SpiffeId,
    server: &Server,
    now: UnixTime,
) -> Result<(), Finding> {
    let (records, _) = server.journal(RECORDS).await?;
    let newest = records
        .iter()
        .filter(|r| r.kind == "x509" && r.spiffe_id == id.as_str())
        .max_by_key(|r| r.issued_at);
    match newest {
        None => {
            let text = "none was issued, as far as the journal was read: no agent has asked";
            let finding = Finding::new(Code::NoIdentityIssued, text)
                .hint("agents ask ahead for every entry below them: look at the agent's log");
            category.fail("a certificate was issued", &finding);
        }
        Some(r) => {
            let life = (UnixTime::from_secs(r.issued_at), UnixTime::from_secs(r.not_after));
            let what = format!("certificate {} for `{}`", r.serial, r.issued_to);
            certificates::check(category, &what, life, now, Code::RotationStuck);
        }
    }
    Ok(())
}

async fn delivered(category: &mut Category, id: &SpiffeId, agent: &Agent) {
    let status = match agent.node().status(StatusRequest {}).await {
        Ok(status) => status.into_inner(),
        Err(s) => return category.warn("this host's agent answers", &agent.refused(&s)),
    };
    let users: Vec<String> = status
        .proxies
        .iter()
        .filter(|p| p.spiffe_ids.iter().any(|i| i == id.as_str()))
        .map(|p| p.pid.to_string())
        .collect();
    match users.as_slice() {
        [] => {
            let text = "no proxy on this host uses it; other clients are not told apart";
            let finding = Finding::new(Code::NoIdentityIssued, text)
                .hint("as the workload: `countersign id fetch` shows what it gets, and why not");
            category.warn("somebody uses it here", &finding);
        }
        pids => category.ok(format!("proxies that use it here: {}", pids.join(", "))),
    }
}
