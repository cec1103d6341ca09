//! `countersign ca`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use countersign_findings::Finding;
use countersign_identity::UnixTime;
use countersign_wire::proto::countersign::server::v1 as own;
use serde_json::json;

use super::Global;
use crate::client::Server;
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct CaCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show every authority
    Show,
    /// Make and use a new signing CA at once
    Rotate,
    /// Roll the root over: prepare, activate, retire
    Root {
        #[command(subcommand)]
        step: Step,
    },
    /// Show what was issued, newest first
    Journal {
        /// How many records
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
}

#[derive(Subcommand)]
enum Step {
    /// Make a new root and publish it; nothing is signed with it yet
    Prepare,
    /// Sign with the prepared root; agents replace what hangs below the old one
    Activate,
    /// Remove old roots from the bundle; what still hangs below them is trusted no more
    Retire,
}

impl CaCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let server = Server::new(&global.data_dir()?);
        let mut admin = server.admin();
        let request = own::RootRequest {};
        let (answer, next) = match self.command {
            Command::Show => (admin.authorities(request).await, None),
            Command::Rotate => (admin.rotate_signing_ca(request).await, None),
            Command::Root { step: Step::Prepare } => (
                admin.prepare_root(request).await,
                Some(
                    "let the bundle reach every node (`countersign bundle show`), then `countersign ca root activate`",
                ),
            ),
            Command::Root { step: Step::Activate } => (
                admin.activate_root(request).await,
                Some("when every SVID has been replaced, `countersign ca root retire`"),
            ),
            Command::Root { step: Step::Retire } => (admin.retire_root(request).await, None),
            Command::Journal { limit } => return journal(&server, limit, global.output).await,
        };
        let state = answer.map_err(|s| server.refused(&s))?.into_inner();
        match global.output {
            Format::Json => {
                let all: Vec<_> = state
                    .authorities
                    .iter()
                    .map(|a| {
                        json!({
                            "kind": a.kind, "state": a.state, "fingerprint": a.fingerprint,
                            "not_after": UnixTime::from_secs(a.not_after).to_string(),
                            "key_online": a.online,
                        })
                    })
                    .collect();
                output::json("countersign.authorities/v1", &json!({ "authorities": all }))?;
            }
            Format::Table => {
                let rows: Vec<Vec<String>> = state
                    .authorities
                    .into_iter()
                    .map(|a| {
                        let until = UnixTime::from_secs(a.not_after).to_string();
                        vec![a.kind, a.state, until, a.fingerprint]
                    })
                    .collect();
                output::table(&["KIND", "STATE", "UNTIL", "FINGERPRINT OR KEY ID"], &rows)?;
            }
        }
        if let Some(next) = next {
            output::next(next);
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn journal(server: &Server, limit: u32, format: Format) -> Result<ExitCode, Finding> {
    let (records, intact) = server.journal(limit).await?;
    let time = |secs: i64| UnixTime::from_secs(secs).to_string();
    match format {
        Format::Json => {
            let records: Vec<_> = records
                .iter()
                .map(|r| {
                    json!({
                        "number": r.number, "kind": r.kind, "spiffe_id": r.spiffe_id,
                        "serial": r.serial, "issued_at": time(r.issued_at),
                        "not_after": time(r.not_after), "issued_to": r.issued_to,
                    })
                })
                .collect();
            output::json(
                "countersign.journal/v1",
                &json!({"chain_intact": intact, "records": records}),
            )?;
        }
        Format::Table => {
            let rows: Vec<Vec<String>> = records
                .into_iter()
                .map(|r| {
                    vec![
                        r.number.to_string(),
                        time(r.issued_at),
                        r.kind,
                        r.spiffe_id,
                        time(r.not_after),
                        r.serial,
                    ]
                })
                .collect();
            output::table(&["NO", "ISSUED", "KIND", "SPIFFE ID", "UNTIL", "SERIAL"], &rows)?;
        }
    }
    if intact {
        Ok(ExitCode::SUCCESS)
    } else {
        output::note("error: the journal's hash chain is broken: records were altered or removed");
        Ok(ExitCode::from(1))
    }
}
