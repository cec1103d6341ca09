//! `countersign status`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;
use countersign_tls::current_time;
use countersign_wire::proto::countersign::node::v1::StatusRequest;
use countersign_wire::proto::countersign::server::v1::InfoRequest;
use serde_json::{Value, json};

use super::Global;
use crate::client::{Agent, Server};
use crate::output::{self, Format};
use crate::paths;

#[derive(Args)]
pub(crate) struct StatusCommand {
    /// Keep trying for this long until everything is well
    #[arg(long, value_parser = super::parse_duration, value_name = "DURATION")]
    wait: Option<Duration>,
}

impl StatusCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let data_dir = global.data_dir()?;
        let deadline = self.wait.map(|w| tokio::time::Instant::now() + w);
        let (server, agent, well) = loop {
            let server = server_status(&Server::new(&data_dir)).await;
            let agent = agent_status(&Agent::new(paths::agent_socket(&data_dir))).await;
            let well = server["running"] == true
                && agent["running"] == true
                && agent["server_reachable"] == true;
            match deadline {
                Some(at) if !well && tokio::time::Instant::now() < at => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                _ => break (server, agent, well),
            }
        };
        match global.output {
            Format::Json => output::json(
                "countersign.status/v1",
                &json!({"ok": well, "server": server, "agent": agent}),
            )?,
            Format::Table => {
                let mut rows = Vec::new();
                for (part, value) in [("server", &server), ("agent", &agent)] {
                    for (k, v) in value.as_object().into_iter().flatten() {
                        if k == "proxies" {
                            rows.extend(v.as_array().into_iter().flatten().map(proxy_row));
                            continue;
                        }
                        let text = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                        rows.push(vec![part.to_owned(), k.replace('_', " "), text]);
                    }
                }
                output::table(&["PART", "WHAT", "VALUE"], &rows)?;
            }
        }
        if well {
            return Ok(ExitCode::SUCCESS);
        }
        let code = if server["running"] == true {
            Code::AgentUnreachable
        } else {
            Code::ServerUnreachable
        };
        Err(Finding::new(code, "not everything is well"))
    }
}

/// What became of the policies in one proxy.
fn proxy_row(proxy: &Value) -> Vec<String> {
    let ids: Vec<&str> =
        proxy["spiffe_ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let trouble = proxy["trouble"].as_str().unwrap_or_default();
    let generation = &proxy["policy_generation"];
    let state = match (trouble, proxy["policies"] == "refused") {
        ("", _) => format!("policies of generation {generation} in force"),
        (why, false) => format!("policies of generation {generation} in force, but {why}"),
        (why, true) => format!("policies refused, generation {generation} stays: {why}"),
    };
    vec![format!("proxy {}", proxy["pid"]), ids.join(", "), state]
}

async fn server_status(server: &Server) -> Value {
    match server.admin().info(InfoRequest {}).await {
        Ok(info) => {
            let i = info.into_inner();
            let uptime = current_time().since(UnixTime::from_secs(i.started_at)).as_secs();
            json!({
                "running": true, "trust_domain": i.trust_domain, "version": i.version,
                "address": i.address, "uptime_seconds": uptime, "entries": i.entries,
                "agents": i.agents, "policies": i.policies, "issued": i.issued,
                "memory_bytes": i.memory.unwrap_or_default().bytes,
            })
        }
        Err(s) => json!({"running": false, "error": server.refused(&s).message}),
    }
}

async fn agent_status(agent: &Agent) -> Value {
    match agent.node().status(StatusRequest {}).await {
        Ok(status) => {
            let s = status.into_inner();
            json!({
                "running": true, "id": s.agent_id, "version": s.version,
                "certificate_until": UnixTime::from_secs(s.agent_svid_not_after).to_string(),
                "entries": s.entries, "svids": s.svids, "streams": s.streams,
                "server_reachable": s.server_reachable, "last_error": s.last_error,
                "last_sync": UnixTime::from_secs(s.last_sync).to_string(),
                "policy_generation": s.policy_generation,
                "memory_bytes": s.memory.unwrap_or_default().bytes,
                "server_ahead_ms": s.server_ahead_ms,
                "proxies": s.proxies.iter().map(|p| json!({
                    "pid": p.pid, "spiffe_ids": p.spiffe_ids, "policy_generation": p.generation,
                    "policies": if p.refused { "refused" } else { "in force" },
                    "trouble": p.trouble,
                    "memory_bytes": p.memory.unwrap_or_default().bytes,
                })).collect::<Vec<_>>(),
            })
        }
        Err(s) => json!({"running": false, "error": agent.refused(&s).message}),
    }
}
