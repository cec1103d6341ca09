//! `countersign apply`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use countersign_findings::{Code, Finding};
use countersign_identity::{Entry, TrustDomain};
use countersign_policy::{Document, Mode, StaticEntry, Until};
use countersign_wire::convert;
use countersign_wire::proto::countersign::server::v1 as own;
use countersign_wire::proto::spire::api::server::entry::v1 as api;
use countersign_wire::rpc::Code as GrpcCode;
use serde::Serialize;

use super::Global;
use super::documents::{Source, load};
use super::entry::{EntryJson, trust_domain};
use crate::client::Server;
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct Apply {
    /// A file or a directory of *.yaml and *.yml; repeat for more
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Only check; change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize, Default)]
struct Applied {
    entries_created: usize,
    entries_updated: usize,
    entries_unchanged: usize,
    policies_created: u32,
    policies_updated: u32,
    policies_unchanged: u32,
    dry_run: bool,
}

impl Apply {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let sources = load(&self.files)?;
        for s in &sources {
            warn(s);
        }
        let mut done = Applied { dry_run: self.dry_run, ..Applied::default() };
        let server = Server::new(&global.data_dir()?);
        let mut entries = Vec::new();
        let mut policies = Vec::new();
        let td = trust_domain(&server).await?;
        for s in sources {
            match &s.document {
                Document::StaticEntry(e) => entries.push(entry(e, &s.place, &td)?),
                d => policies.push(own::PolicyDocument {
                    kind: d.kind().to_owned(),
                    namespace: d.namespace().to_owned(),
                    name: d.name().to_owned(),
                    yaml: s.yaml,
                }),
            }
        }
        if !self.dry_run {
            if !policies.is_empty() {
                let request = own::ApplyPoliciesRequest { documents: policies };
                let answer = server
                    .admin()
                    .apply_policies(request)
                    .await
                    .map_err(|s| server.refused(&s))?
                    .into_inner();
                done.policies_created = answer.created;
                done.policies_updated = answer.updated;
                done.policies_unchanged = answer.unchanged;
            }
            for e in entries {
                apply_entry(&server, e, &mut done).await?;
            }
        }
        match global.output {
            Format::Json => output::json("countersign.apply/v1", &done)?,
            Format::Table if self.dry_run => {
                output::note("all documents are good; nothing was changed")
            }
            Format::Table => {
                output::table(
                    &["KIND", "CREATED", "UPDATED", "UNCHANGED"],
                    &[
                        vec![
                            "entries".into(),
                            done.entries_created.to_string(),
                            done.entries_updated.to_string(),
                            done.entries_unchanged.to_string(),
                        ],
                        vec![
                            "policies".into(),
                            done.policies_created.to_string(),
                            done.policies_updated.to_string(),
                            done.policies_unchanged.to_string(),
                        ],
                    ],
                )?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// PERMISSIVE without an end is accepted, because users have it, and said aloud each time.
fn warn(source: &Source) {
    if let Document::PeerAuthentication(d) = &source.document {
        let forever = |m: &Option<Mode>| *m == Some(Mode::Permissive { until: Until::Never });
        if forever(&d.mode) || d.port_modes.values().any(forever) {
            let finding = Finding::new(
                Code::PermissiveWithoutEnd,
                format!("PeerAuthentication `{}` accepts plaintext for ever", d.name),
            )
            .at(source.place.clone())
            .hint("set the annotation countersign.dev/permissive-until to a time");
            output::note(&format!("warning{finding}"));
        }
    }
}

fn entry(e: &StaticEntry, place: &str, td: &TrustDomain) -> Result<Entry, Finding> {
    let json = EntryJson {
        id: String::new(),
        spiffe_id: e.spiffe_id.clone(),
        parent_id: e.parent_id.clone(),
        selectors: e.selectors.clone(),
        x509_svid_ttl_seconds: e.x509_svid_ttl.unwrap_or(0),
        jwt_svid_ttl_seconds: e.jwt_svid_ttl.unwrap_or(0),
        dns_names: e.dns_names.clone(),
        federates_with: e.federates_with.clone(),
        admin: e.admin,
        downstream: e.downstream,
        store_svid: e.store_svid,
        hint: e.hint.clone(),
        expires_at: None,
        revision: 0,
        created_at: None,
    };
    let entry = json.entry(place)?;
    entry
        .check(td)
        .map_err(|err| Finding::new(Code::EntryInvalid, err.to_string()).at(place.to_owned()))?;
    Ok(entry)
}

/// Creates the entry, or brings a similar one up to date.
async fn apply_entry(server: &Server, e: Entry, done: &mut Applied) -> Result<(), Finding> {
    let request =
        api::BatchCreateEntryRequest { entries: vec![convert::from_entry(&e)], output_mask: None };
    let result = server
        .entries()
        .batch_create_entry(request)
        .await
        .map_err(|s| server.refused(&s))?
        .into_inner()
        .results
        .pop()
        .unwrap_or_default();
    let status = result.status.unwrap_or_default();
    if status.code == GrpcCode::Ok as i32 {
        done.entries_created += 1;
        return Ok(());
    }
    if status.code != GrpcCode::AlreadyExists as i32 {
        return Err(Finding::new(Code::EntryInvalid, status.message).at(e.spiffe_id.to_string()));
    }
    let there = convert::entry(&result.entry.unwrap_or_default())?;
    let wanted =
        Entry { id: there.id.clone(), revision: there.revision, created_at: there.created_at, ..e };
    if wanted == there {
        done.entries_unchanged += 1;
        return Ok(());
    }
    let request = api::BatchUpdateEntryRequest {
        entries: vec![convert::from_entry(&wanted)],
        input_mask: None,
        output_mask: None,
    };
    let call = server.entries();
    let answer = tokio::time::timeout(Duration::from_secs(30), async move {
        let mut call = call;
        call.batch_update_entry(request).await
    })
    .await
    .map_err(|_| Finding::new(Code::ServerUnreachable, "the server did not answer in 30 s"))?
    .map_err(|s| server.refused(&s))?;
    let status = answer.into_inner().results.pop().and_then(|r| r.status).unwrap_or_default();
    if status.code != GrpcCode::Ok as i32 {
        return Err(
            Finding::new(Code::EntryInvalid, status.message).at(wanted.spiffe_id.to_string())
        );
    }
    done.entries_updated += 1;
    Ok(())
}
