//! `countersign entry`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use countersign_findings::{Code, Finding};
use countersign_identity::{Entry, SelectorSet, SpiffeId, TrustDomain, UnixTime};
use countersign_wire::convert;
use countersign_wire::proto::spire::api::server::entry::v1 as api;
use countersign_wire::proto::spire::api::types;
use countersign_wire::rpc::Code as GrpcCode;
use serde::{Deserialize, Serialize};

use super::{Global, invalid, parse_duration};
use crate::client::{Agent, Server};
use crate::output::{self, Format};
use crate::paths;

#[derive(Args)]
pub(crate) struct EntryCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create an entry
    Create(Create),
    /// List entries
    List(List),
    /// Show one entry
    Show {
        /// Its id
        id: String,
    },
    /// Delete entries
    Delete {
        /// Their ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Args)]
struct Create {
    /// The identity, a SPIFFE ID or its path
    #[arg(long, required_unless_present = "data", value_name = "ID")]
    spiffe_id: Option<String>,
    /// Who hands it out [default: the agent on this host]
    #[arg(long, value_name = "ID")]
    parent_id: Option<String>,
    /// A fact the workload must have, for example unix:uid:1000; repeat for more
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    selectors: Vec<String>,
    /// Life of its X509-SVIDs
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    x509_svid_ttl: Option<Duration>,
    /// Life of its JWT-SVIDs
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    jwt_svid_ttl: Option<Duration>,
    /// A DNS name for the certificate; repeat for more
    #[arg(long = "dns", value_name = "NAME")]
    dns_names: Vec<String>,
    /// Tells several identities of one workload apart
    #[arg(long, default_value = "")]
    hint: String,
    /// May administer the server
    #[arg(long)]
    admin: bool,
    /// Entries as JSON, in the form `entry list -o json` prints; `-` for standard input
    #[arg(long, conflicts_with_all = ["spiffe_id", "selectors"], value_name = "FILE")]
    data: Option<PathBuf>,
}

#[derive(Args)]
struct List {
    /// Only this identity
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// Only below this parent
    #[arg(long, value_name = "ID")]
    parent_id: Option<String>,
    /// Only with these selectors, and perhaps more
    #[arg(long = "selector", value_name = "TYPE:VALUE")]
    selectors: Vec<String>,
}

/// An entry as JSON, in and out.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EntryJson {
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) spiffe_id: String,
    pub(crate) parent_id: String,
    pub(crate) selectors: Vec<String>,
    #[serde(default)]
    pub(crate) x509_svid_ttl_seconds: u64,
    #[serde(default)]
    pub(crate) jwt_svid_ttl_seconds: u64,
    #[serde(default)]
    pub(crate) dns_names: Vec<String>,
    #[serde(default)]
    pub(crate) federates_with: Vec<String>,
    #[serde(default)]
    pub(crate) admin: bool,
    #[serde(default)]
    pub(crate) downstream: bool,
    #[serde(default)]
    pub(crate) store_svid: bool,
    #[serde(default)]
    pub(crate) hint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<String>,
    #[serde(default)]
    pub(crate) revision: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created_at: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntriesJson {
    #[serde(default, rename = "schema")]
    _schema: String,
    entries: Vec<EntryJson>,
}

impl EntryJson {
    pub(crate) fn of(e: &Entry) -> Self {
        Self {
            id: e.id.clone(),
            spiffe_id: e.spiffe_id.to_string(),
            parent_id: e.parent_id.to_string(),
            selectors: e.selectors.iter().map(ToString::to_string).collect(),
            x509_svid_ttl_seconds: e.x509_svid_ttl.map_or(0, |d| d.as_secs()),
            jwt_svid_ttl_seconds: e.jwt_svid_ttl.map_or(0, |d| d.as_secs()),
            dns_names: e.dns_names.iter().map(ToString::to_string).collect(),
            federates_with: e.federates_with.iter().map(ToString::to_string).collect(),
            admin: e.admin,
            downstream: e.downstream,
            store_svid: e.store_svid,
            hint: e.hint.clone(),
            expires_at: e.expires_at.map(|t| t.to_string()),
            revision: e.revision,
            created_at: Some(e.created_at.to_string()),
        }
    }

    /// The entry; `at` names the place in errors.
    pub(crate) fn entry(&self, at: &str) -> Result<Entry, Finding> {
        let bad = |field: &str, e: &dyn std::fmt::Display| {
            Finding::new(Code::EntryInvalid, format!("{field}: {e}")).at(at.to_owned())
        };
        let id = |field: &str, text: &str| SpiffeId::parse(text).map_err(|e| bad(field, &e));
        let mut entry = Entry::new(
            id("spiffe_id", &self.spiffe_id)?,
            id("parent_id", &self.parent_id)?,
            selectors(&self.selectors).map_err(|e| bad("selectors", &e.message))?,
        );
        let ttl = |secs: u64| (secs > 0).then(|| Duration::from_secs(secs));
        entry.id.clone_from(&self.id);
        entry.x509_svid_ttl = ttl(self.x509_svid_ttl_seconds);
        entry.jwt_svid_ttl = ttl(self.jwt_svid_ttl_seconds);
        entry.dns_names = self
            .dns_names
            .iter()
            .map(|n| n.parse().map_err(|e| bad("dns_names", &e)))
            .collect::<Result<_, _>>()?;
        entry.federates_with = self
            .federates_with
            .iter()
            .map(|n| n.parse().map_err(|e| bad("federates_with", &e)))
            .collect::<Result<_, _>>()?;
        entry.admin = self.admin;
        entry.downstream = self.downstream;
        entry.store_svid = self.store_svid;
        entry.hint.clone_from(&self.hint);
        entry.expires_at = self
            .expires_at
            .as_deref()
            .map(|t| UnixTime::parse(t).ok_or_else(|| bad("expires_at", &"is not a time")))
            .transpose()?;
        Ok(entry)
    }
}

pub(crate) fn selectors(list: &[String]) -> Result<SelectorSet, Finding> {
    // What the `unix` attestor tells, written without its type: no process would ever have such a selector.
    const OF_UNIX: [&str; 8] = [
        "uid",
        "gid",
        "user",
        "group",
        "path",
        "sha256",
        "supplementary_gid",
        "supplementary_group",
    ];
    list.iter()
        .map(|s| match s.split_once(':') {
            Some((kind, _)) if OF_UNIX.contains(&kind) => {
                Err(invalid(format!("selector `{s}` has no attestor's type"))
                    .hint(format!("did you mean `unix:{s}`?")))
            }
            _ => s.parse().map_err(|e: countersign_identity::SelectorError| invalid(e.to_string())),
        })
        .collect()
}

/// A SPIFFE ID, or the path of one in `trust_domain`.
pub(crate) fn id_or_path(text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, Finding> {
    let id = if text.starts_with('/') {
        SpiffeId::from_path(trust_domain, text)
    } else {
        SpiffeId::parse(text)
    };
    id.map_err(|e| {
        invalid(e.to_string())
            .hint("write spiffe://TRUST-DOMAIN/PATH, or /PATH for this trust domain")
    })
}

/// The trust domain of the server behind `server`.
pub(crate) async fn trust_domain(server: &Server) -> Result<TrustDomain, Finding> {
    use countersign_wire::proto::countersign::server::v1::InfoRequest;
    let info = server.admin().info(InfoRequest {}).await.map_err(|s| server.refused(&s))?;
    TrustDomain::new(&info.get_ref().trust_domain).map_err(|e| invalid(e.to_string()))
}

/// Creates entries one by one as the server answers; the first refusal is the error. Entries that exist
/// already count as created when `idempotent`.
pub(crate) async fn create(server: &Server, entries: &[Entry]) -> Result<Vec<Entry>, Finding> {
    let request = api::BatchCreateEntryRequest {
        entries: entries.iter().map(convert::from_entry).collect(),
        output_mask: None,
    };
    let answer = server
        .entries()
        .batch_create_entry(request)
        .await
        .map_err(|s| server.refused(&s))?
        .into_inner();
    let mut made = Vec::new();
    for (entry, result) in entries.iter().zip(answer.results) {
        let status = result.status.unwrap_or_default();
        if status.code != GrpcCode::Ok as i32 {
            let code = if status.code == GrpcCode::AlreadyExists as i32 {
                Code::EntryExists
            } else {
                Code::EntryInvalid
            };
            let finding = Finding::new(code, status.message).at(entry.spiffe_id.to_string());
            return Err(match result.entry {
                Some(there) => finding.presented(format!("entry `{}`", there.id)),
                None => finding,
            });
        }
        made.push(convert::entry(&result.entry.unwrap_or_default())?);
    }
    Ok(made)
}

/// The parent for entries of workloads on this host: the node's lasting name if the agent joined with
/// one, else the agent's own ID.
async fn local_parent(server: &Server, data_dir: &Path) -> Result<SpiffeId, Finding> {
    use countersign_wire::proto::countersign::node::v1::StatusRequest;
    let agent = Agent::new(paths::agent_socket(data_dir));
    let status = agent.node().status(StatusRequest {}).await.map_err(|s| {
        agent.refused(&s).hint("start the agent, or name the parent with `--parent-id`")
    })?;
    let id = SpiffeId::parse(&status.get_ref().agent_id).map_err(|e| invalid(e.to_string()))?;
    let filter = api::list_entries_request::Filter {
        by_parent_id: Some(convert::from_spiffe_id(&id)),
        ..api::list_entries_request::Filter::default()
    };
    for below in server.list_entries(Some(filter)).await? {
        let entry = convert::entry(&below)?;
        let mut selectors = entry.selectors.iter();
        if let (Some(only), None) = (selectors.next(), selectors.next())
            && only.kind() == "spiffe_id"
            && only.value() == id.as_str()
        {
            return Ok(entry.spiffe_id);
        }
    }
    Ok(id)
}

fn print(entries: &[Entry], format: Format) -> Result<(), Finding> {
    match format {
        Format::Json => {
            let entries: Vec<EntryJson> = entries.iter().map(EntryJson::of).collect();
            output::json("countersign.entries/v1", &serde_json::json!({ "entries": entries }))
        }
        Format::Table => {
            let rows: Vec<Vec<String>> = entries
                .iter()
                .map(|e| {
                    vec![
                        e.id.clone(),
                        e.spiffe_id.to_string(),
                        e.parent_id.path().to_owned(),
                        e.x509_svid_ttl.map_or("default".into(), |d| format!("{} s", d.as_secs())),
                        e.selectors.to_string(),
                    ]
                })
                .collect();
            output::table(&["ID", "SPIFFE ID", "PARENT", "TTL", "SELECTORS"], &rows)
        }
    }
}

fn wire_id(text: Option<&str>, td: &TrustDomain) -> Result<Option<types::Spiffeid>, Finding> {
    text.map(|t| id_or_path(t, td).map(|id| convert::from_spiffe_id(&id))).transpose()
}

impl EntryCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let data_dir = global.data_dir()?;
        let server = Server::new(&data_dir);
        match self.command {
            Command::Create(c) => {
                let entries = match &c.data {
                    Some(path) => read(path)?,
                    None => vec![c.entry(&server, &data_dir).await?],
                };
                let made = create(&server, &entries).await?;
                print(&made, global.output)?;
            }
            Command::List(l) => {
                let td = trust_domain(&server).await?;
                let by_selectors = if l.selectors.is_empty() {
                    None
                } else {
                    Some(types::SelectorMatch {
                        selectors: convert::from_selectors(&selectors(&l.selectors)?),
                        r#match: types::selector_match::MatchBehavior::MatchSuperset as i32,
                    })
                };
                let filter = api::list_entries_request::Filter {
                    by_spiffe_id: wire_id(l.spiffe_id.as_deref(), &td)?,
                    by_parent_id: wire_id(l.parent_id.as_deref(), &td)?,
                    by_selectors,
                    ..Default::default()
                };
                let entries = server.list_entries(Some(filter)).await?;
                let entries: Vec<Entry> =
                    entries.iter().map(convert::entry).collect::<Result<_, _>>()?;
                print(&entries, global.output)?;
            }
            Command::Show { id } => {
                let request = api::GetEntryRequest { id: id.clone(), output_mask: None };
                let entry = server.entries().get_entry(request).await.map_err(|s| {
                    if s.code() == GrpcCode::NotFound {
                        Finding::new(Code::EntryNotFound, format!("entry `{id}` does not exist"))
                    } else {
                        server.refused(&s)
                    }
                })?;
                print(&[convert::entry(entry.get_ref())?], global.output)?;
            }
            Command::Delete { ids } => {
                let answer = server
                    .entries()
                    .batch_delete_entry(api::BatchDeleteEntryRequest { ids })
                    .await
                    .map_err(|s| server.refused(&s))?
                    .into_inner();
                let mut missing = Vec::new();
                for result in answer.results {
                    if result.status.unwrap_or_default().code == GrpcCode::Ok as i32 {
                        output::note(&format!("deleted {}", result.id));
                    } else {
                        missing.push(result.id);
                    }
                }
                if !missing.is_empty() {
                    return Err(Finding::new(
                        Code::EntryNotFound,
                        format!("no entry `{}`", missing.join("`, `")),
                    ));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Create {
    async fn entry(&self, server: &Server, data_dir: &Path) -> Result<Entry, Finding> {
        let td = trust_domain(server).await?;
        let spiffe_id = id_or_path(self.spiffe_id.as_deref().unwrap_or_default(), &td)?;
        let parent_id = match &self.parent_id {
            Some(text) => id_or_path(text, &td)?,
            None => local_parent(server, data_dir).await?,
        };
        let mut entry = Entry::new(spiffe_id, parent_id, selectors(&self.selectors)?);
        entry.x509_svid_ttl = self.x509_svid_ttl;
        entry.jwt_svid_ttl = self.jwt_svid_ttl;
        entry.dns_names = self
            .dns_names
            .iter()
            .map(|n| {
                n.parse().map_err(|e: countersign_identity::DnsNameError| invalid(e.to_string()))
            })
            .collect::<Result<_, _>>()?;
        entry.hint.clone_from(&self.hint);
        entry.admin = self.admin;
        Ok(entry)
    }
}

fn read(path: &Path) -> Result<Vec<Entry>, Finding> {
    let place = path.display().to_string();
    let mut text = String::new();
    let result = if path == Path::new("-") {
        std::io::stdin().take(64 << 20).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(64 << 20).read_to_string(&mut text))
    };
    result
        .map_err(|e| Finding::new(Code::FileUnreadable, format!("cannot read `{place}`: {e}")))?;
    let all: EntriesJson = serde_json::from_str(&text).map_err(|e| {
        Finding::new(Code::ConfigSyntax, e.to_string()).at(format!("{place}:{}", e.line()))
    })?;
    all.entries
        .iter()
        .enumerate()
        .map(|(i, e)| e.entry(&format!("{place}: entries[{i}]")))
        .collect()
}
