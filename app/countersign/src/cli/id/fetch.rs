//! `countersign id fetch`: the identities that the Workload API gives to whoever asks.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use countersign_findings::{Code, Finding};
use countersign_identity::{X509Context, X509Svid};
use countersign_keys::write_atomic;
use countersign_wire::dial;
use countersign_wire::status::to_finding;
use countersign_wire::workload::{to_context, watch_x509};
use countersign_x509::{CertInfo, pem};
use serde::Serialize;

use super::super::{Global, invalid, parse_duration};
use crate::output::{self, Format};
use crate::paths;

#[derive(Args)]
pub(crate) struct Fetch {
    /// The Workload API [default: the agent of the data directory]
    #[arg(long, value_name = "SOCKET", env = "SPIFFE_ENDPOINT_SOCKET")]
    workload_api: Option<String>,
    /// Write svid.N.pem, svid.N.key and bundle.N.pem into this directory, N from 0
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(long, value_parser = parse_duration, default_value = "5s", value_name = "DURATION")]
    timeout: Duration,
}

#[derive(Serialize)]
struct Fetched {
    spiffe_id: String,
    serial: String,
    not_before: String,
    not_after: String,
    hint: String,
    /// The files written, if any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<String>,
}

impl Fetch {
    pub(super) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let socket = match &self.workload_api {
            Some(text) => paths::parse_socket(text).map_err(invalid)?,
            None => paths::agent_socket(&global.data_dir()?),
        };
        let context = tokio::time::timeout(self.timeout, first(socket.clone()))
            .await
            .unwrap_or_else(|_| {
                Err(Finding::new(
                    Code::AgentUnreachable,
                    format!("no answer within {} s", self.timeout.as_secs_f64()),
                ))
            })
            .map_err(|e| e.at(socket.display().to_string()))?;
        let mut all = Vec::new();
        for (i, svid) in context.svids.iter().enumerate() {
            let leaf = svid.chain.first().map(|der| CertInfo::parse(der)).transpose();
            let leaf = leaf
                .ok()
                .flatten()
                .ok_or_else(|| Finding::new(Code::MalformedCertificate, "not a certificate"))?;
            let files = match &self.write {
                Some(dir) => write(dir, i, svid, &context)?,
                None => Vec::new(),
            };
            all.push(Fetched {
                spiffe_id: svid.id.to_string(),
                serial: leaf.serial,
                not_before: leaf.not_before.to_string(),
                not_after: leaf.not_after.to_string(),
                hint: svid.hint.clone(),
                files,
            });
        }
        match global.output {
            Format::Json => {
                output::json("countersign.svids/v1", &serde_json::json!({ "svids": all }))?;
            }
            Format::Table => {
                let rows: Vec<Vec<String>> = all
                    .iter()
                    .map(|f| vec![f.spiffe_id.clone(), f.not_after.clone(), f.serial.clone()])
                    .collect();
                output::table(&["SPIFFE ID", "VALID UNTIL", "SERIAL"], &rows)?;
                for file in all.iter().flat_map(|f| &f.files) {
                    output::note(&format!("wrote {file}"));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The first message of the stream: a full set, or the refusal.
async fn first(socket: PathBuf) -> Result<X509Context, Finding> {
    let failed = |s| to_finding(&s, Code::AgentUnreachable);
    let mut stream = watch_x509(dial::unix(socket)).await.map_err(failed)?;
    let message = stream.message().await.map_err(failed)?;
    to_context(message.ok_or_else(|| Finding::new(Code::AgentUnreachable, "the stream ended"))?)
}

fn write(
    dir: &Path,
    i: usize,
    svid: &X509Svid,
    context: &X509Context,
) -> Result<Vec<String>, Finding> {
    std::fs::create_dir_all(dir).map_err(|e| {
        Finding::new(Code::StorageFailed, format!("cannot make `{}`: {e}", dir.display()))
    })?;
    let certificates = |ders: &mut dyn Iterator<Item = &Vec<u8>>| -> String {
        ders.map(|der| pem::encode("CERTIFICATE", der)).collect()
    };
    let bundle = context.bundles.bundle(svid.id.trust_domain());
    let roots = bundle.into_iter().flat_map(|b| &b.x509_authorities).map(|a| &a.der);
    let key = zeroize::Zeroizing::new(pem::encode("PRIVATE KEY", svid.key.expose_pkcs8()));
    let mut files = Vec::new();
    for (name, text, mode) in [
        (format!("svid.{i}.pem"), certificates(&mut svid.chain.iter()).as_str(), 0o644),
        (format!("svid.{i}.key"), key.as_str(), 0o600),
        (format!("bundle.{i}.pem"), certificates(&mut roots.into_iter()).as_str(), 0o644),
    ] {
        let path = dir.join(name);
        write_atomic(&path, text.as_bytes(), mode).map_err(|e| e.finding())?;
        files.push(path.display().to_string());
    }
    Ok(files)
}
