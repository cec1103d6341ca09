//! What runs on this host, and what it knows.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;
use countersign_policy::Document;
use countersign_wire::convert;
use countersign_wire::proto::countersign::node::v1::{StatusRequest, StatusResponse};
use countersign_wire::proto::countersign::server::v1 as own;
use countersign_wire::proto::spire::api::server::agent::v1::ListAgentsRequest;
use countersign_wire::proto::spire::api::server::bundle::v1::GetBundleRequest;
use countersign_wire::proto::spire::api::types;
use countersign_x509::CertInfo;

use super::certificates::{self, span};
use super::files::check_policies;
use super::hosts;
use super::report::Report;
use crate::cli::policy::parse_set;
use crate::client::{Agent, Server};
use crate::paths;

/// Records of the journal that are looked at.
const RECORDS: u32 = 10_000;

/// An agent syncs every 5 s at the latest.
const SYNC_LATE: u64 = 60;

/// Checks server and agent. Gives the roots.
pub(super) async fn check(report: &mut Report, data_dir: &Path, now: UnixTime) -> Vec<Vec<u8>> {
    let server = Server::new(data_dir);
    let agent = Agent::new(paths::agent_socket(data_dir));
    let info = server.admin().info(own::InfoRequest {}).await;
    let status = agent.node().status(StatusRequest {}).await.map(|s| s.into_inner());
    report.reached_nothing = info.is_err() && status.is_err();
    let mut roots = Vec::new();
    let mut policies = None;
    let mut known_clocks = Vec::new();
    match info {
        Err(s) => report.category("server").fail("the server answers", &server.refused(&s)),
        Ok(info) => {
            let info = info.into_inner();
            let text =
                format!("the server of `{}` answers, version {}", info.trust_domain, info.version);
            report.category("server").ok(text);
            roots = anchors(report, &server, now).await;
            journal(report, &server, now).await;
            entries(report, &server, now).await;
            policies = policy(report, &server).await;
            hosts::clocks(report, &info.clocks);
            hosts::memory(report, "the server", info.memory.as_ref());
            known_clocks = info.clocks;
        }
    }
    match status {
        Err(s) => report.category("agent").fail("the agent answers", &agent.refused(&s)),
        Ok(status) => {
            node(report, &status, now);
            // The server has told of it already, if it is here.
            let is_known = known_clocks.iter().any(|c| c.agent_id == status.agent_id);
            if let (false, Some(ahead)) = (is_known, status.server_ahead_ms) {
                hosts::own_clock(report, ahead);
            }
            hosts::memory(report, "the agent", status.memory.as_ref());
            for p in &status.proxies {
                let who = format!("proxy {} ({})", p.pid, p.spiffe_ids.join(", "));
                hosts::memory(report, &who, p.memory.as_ref());
            }
            proxies(report, &status, policies);
        }
    }
    roots
}

async fn anchors(report: &mut Report, server: &Server, now: UnixTime) -> Vec<Vec<u8>> {
    let category = report.category("trust anchors");
    let bundle = match server.bundles().get_bundle(GetBundleRequest::default()).await {
        Ok(bundle) => convert::bundle(bundle.get_ref()),
        Err(s) => Err(server.refused(&s)),
    };
    let roots: Vec<Vec<u8>> = match bundle {
        Ok(bundle) => bundle.x509_authorities.into_iter().map(|a| a.der).collect(),
        Err(e) => {
            category.fail("the trust bundle can be read", &e);
            Vec::new()
        }
    };
    for root in roots.iter().filter_map(|der| CertInfo::parse(der).ok()) {
        let what = format!("root `{}`", root.display_name());
        let life = (root.not_before, root.not_after);
        certificates::check(category, &what, life, now, Code::AuthorityExpiring);
    }
    let category = report.category("authorities");
    match server.admin().authorities(own::RootRequest {}).await {
        Err(s) => category.fail("authorities can be listed", &server.refused(&s)),
        Ok(state) => {
            for a in state.into_inner().authorities.iter().filter(|a| a.state == "active") {
                let not_after = UnixTime::from_secs(a.not_after);
                let what = format!("the {} authority in use", a.kind);
                // Servers of older versions do not tell: then as if half of it were over.
                let begin = match a.not_before {
                    0 => now - not_after.since(now),
                    secs => UnixTime::from_secs(secs),
                };
                let life = (begin, not_after);
                certificates::check(category, &what, life, now, Code::AuthorityExpiring);
            }
        }
    }
    roots
}

async fn journal(report: &mut Report, server: &Server, now: UnixTime) {
    let (records, intact) = match server.journal(RECORDS).await {
        Ok(journal) => journal,
        Err(e) => return report.category("server").fail("the journal can be read", &e),
    };
    let category = report.category("server");
    if intact {
        category.ok("the journal's hash chain is intact");
    } else {
        let text = "records were altered or removed";
        let finding = Finding::new(Code::StorageFailed, text)
            .hint("keep a copy of the database, and find out who wrote to it");
        category.fail("the journal's hash chain is intact", &finding);
    }
    let latest = records.iter().map(|r| r.issued_at).max().unwrap_or(0);
    let clock = report.category("clock");
    let ahead = UnixTime::from_secs(latest).since(now).as_secs();
    if ahead > 10 {
        let text = format!("something was issued {} in this clock's future", span(ahead));
        clock.fail("this clock has not gone back", &Finding::new(Code::ClockSkew, text));
    } else {
        clock.ok("this clock has not gone back since anything was issued");
    }
    rotation(report, &records, now);
}

/// The newest certificate of each identity: does somebody still renew it?
fn rotation(report: &mut Report, records: &[own::journal_response::Record], now: UnixTime) {
    let mut newest: BTreeMap<(&str, &str), &own::journal_response::Record> = BTreeMap::new();
    for r in records.iter().filter(|r| r.kind == "x509" || r.kind == "agent") {
        let slot = newest.entry((&r.spiffe_id, &r.issued_to)).or_insert(r);
        if r.issued_at > slot.issued_at {
            *slot = r;
        }
    }
    let live: Vec<_> = newest.values().filter(|r| r.not_after > now.secs()).collect();
    let category = report.category("certificates");
    let mut late = 0;
    for r in &live {
        let life = (UnixTime::from_secs(r.issued_at), UnixTime::from_secs(r.not_after));
        if certificates::verdict(life.0, life.1, now) != super::report::Verdict::Success {
            late += 1;
            // More would only repeat it.
            if late <= 20 {
                certificates::check(category, &r.spiffe_id, life, now, Code::RotationStuck);
            }
        }
    }
    if late == 0 {
        category.ok(format!(
            "{} live certificates, none of which should have been renewed by now",
            live.len()
        ));
    } else if late > 20 {
        let finding = Finding::new(Code::RotationStuck, format!("{} more", late - 20));
        category.warn("certificates are renewed in time", &finding);
    }
    // A renewal that fails takes down one service, or all that end together.
    let mut ends: Vec<i64> = live.iter().map(|r| r.not_after).collect();
    ends.sort_unstable();
    let window = 10;
    let together = ends
        .iter()
        .enumerate()
        .map(|(i, end)| ends[i..].iter().take_while(|e| **e <= end + window).count())
        .max()
        .unwrap_or(0);
    if together >= 20 && together * 2 > ends.len() {
        let text = format!("{together} of {} end within {window} s", ends.len());
        let finding = Finding::new(Code::RotationStuck, text)
            .hint("spread the starts of services, or wait: renewals have jitter and drift apart");
        category.warn("certificates end at different times", &finding);
    } else {
        category.ok("certificates end at different times");
    }
}

async fn entries(report: &mut Report, server: &Server, now: UnixTime) {
    let entries = match server.list_entries(None).await {
        Ok(entries) => entries,
        Err(e) => return report.category("entries").fail("entries can be listed", &e),
    };
    let agents = match agents(server).await {
        Ok(agents) => agents,
        Err(e) => return report.category("entries").fail("agents can be listed", &e),
    };
    let id = |id: &Option<types::Spiffeid>| id_of(id.as_ref());
    let category = report.category("agents");
    for a in agents.iter().filter(|a| !a.banned && a.x509svid_expires_at < now.secs()) {
        let ago = span(now.since(UnixTime::from_secs(a.x509svid_expires_at)).as_secs());
        let text =
            format!("`{}` has not renewed its certificate, which ended {ago} ago", id(&a.id));
        let finding = Finding::new(Code::AgentNotAttested, text)
            .hint("if the node is gone, that is all; else join it again with `countersign token`");
        category.warn("every agent is alive", &finding);
    }
    let alive = agents.iter().filter(|a| !a.banned && a.x509svid_expires_at >= now.secs()).count();
    if alive > 0 {
        category.ok(format!("agents that are alive: {alive}"));
    } else {
        let finding = Finding::new(Code::AgentNotAttested, "no agent has joined, or none is left");
        category.warn("an agent has joined", &finding);
    }
    let category = report.category("entries");
    let mut parents: HashSet<String> = agents.iter().map(|a| id(&a.id)).collect();
    parents.extend(entries.iter().map(|e| id(&e.spiffe_id)));
    let orphans: Vec<String> = entries
        .iter()
        .filter(|e| {
            !parents.contains(&id(&e.parent_id)) && !id(&e.parent_id).contains("/spire/server")
        })
        .map(|e| format!("`{}` (parent `{}`)", id(&e.spiffe_id), id(&e.parent_id)))
        .collect();
    match orphans.as_slice() {
        [] => category.ok(format!("entries: {}, each with a parent that exists", entries.len())),
        some => {
            let shown = some.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let text = format!("{} are handed out by nobody: {shown}", some.len());
            let finding = Finding::new(Code::EntryInvalid, text)
                .hint("correct --parent-id, or let the agent of that name join");
            category.warn("every entry has a parent that exists", &finding);
        }
    }
}

/// The policies' generation, if they can be read.
async fn policy(report: &mut Report, server: &Server) -> Option<u64> {
    let set = match server.list_policies().await {
        Ok(set) => set,
        Err(e) => {
            report.category("policies").fail("policies can be listed", &e);
            return None;
        }
    };
    let generation = set.generation;
    let documents: Result<Vec<Document>, Finding> = parse_set(set);
    match documents {
        Ok(documents) => check_policies(report, &documents),
        Err(e) => report.category("policies").fail("policies are understood", &e),
    }
    Some(generation)
}

fn node(report: &mut Report, s: &StatusResponse, now: UnixTime) {
    let category = report.category("agent");
    category.ok(format!("the agent answers, version {}, `{}`", s.version, s.agent_id));
    if s.server_reachable {
        category.ok("the agent reaches the server");
    } else {
        let finding = Finding::new(Code::ServerUnreachable, s.last_error.clone());
        category.fail("the agent reaches the server", &finding);
    }
    let since = now.since(UnixTime::from_secs(s.last_sync)).as_secs();
    if s.server_reachable && since > SYNC_LATE {
        let finding =
            Finding::new(Code::RotationStuck, format!("the last sync was {} ago", span(since)));
        category.warn("the agent is in step with the server", &finding);
    }
    // Its own certificate lives a day at least and is renewed at half of that.
    let not_after = UnixTime::from_secs(s.agent_svid_not_after);
    let day = std::time::Duration::from_secs(86_400);
    let life = (not_after - day.max(not_after.since(now)), not_after);
    certificates::check(category, "the agent's own certificate", life, now, Code::RotationStuck);
}

fn proxies(report: &mut Report, s: &StatusResponse, policies: Option<u64>) {
    if s.proxies.is_empty() {
        return;
    }
    let category = report.category("proxies");
    for p in &s.proxies {
        let who = format!("proxy {} ({})", p.pid, p.spiffe_ids.join(", "));
        let description = format!("{who} decides by the newest policies");
        if p.refused {
            let finding = Finding::new(Code::PolicyUnavailable, p.trouble.clone());
            category.fail(description, &finding);
        } else if !p.trouble.is_empty() {
            let finding = Finding::new(Code::EngineMisconfigured, p.trouble.clone());
            category.warn(description, &finding);
        } else if policies.is_some_and(|newest| p.generation < newest) {
            let text =
                format!("it has generation {}, the server {}", p.generation, policies.unwrap_or(0));
            category.warn(description, &Finding::new(Code::PolicyUnavailable, text));
        } else {
            category.ok(format!("{description}, generation {}", p.generation));
        }
    }
}

/// Every agent that the server knows.
pub(in crate::cli) async fn agents(server: &Server) -> Result<Vec<types::Agent>, Finding> {
    let mut agents = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListAgentsRequest { page_size: 500, page_token, ..Default::default() };
        let answer = server.agents().list_agents(request).await;
        let answer = answer.map_err(|s| server.refused(&s))?.into_inner();
        agents.extend(answer.agents);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(agents);
        }
    }
}

/// As it is written; empty for none.
pub(in crate::cli) fn id_of(id: Option<&types::Spiffeid>) -> String {
    id.map(|i| format!("spiffe://{}{}", i.trust_domain, i.path)).unwrap_or_default()
}
