//! Clients of the server's admin socket and the agent's socket.

use std::path::{Path, PathBuf};

use countersign_findings::{Code, Finding};
use countersign_identity::SpiffeId;
use countersign_wire::dial;
use countersign_wire::join::JoinString;
use countersign_wire::proto::countersign::node::v1::node_client::NodeClient;
use countersign_wire::proto::countersign::server::v1 as own;
use countersign_wire::proto::countersign::server::v1::admin_client::AdminClient;
use countersign_wire::proto::spire::api::server::agent::v1::agent_client::AgentClient;
use countersign_wire::proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use countersign_wire::proto::spire::api::server::entry::v1::entry_client::EntryClient;
use countersign_wire::proto::spire::api::server::{agent, bundle, entry};
use countersign_wire::rpc::{Channel, Status};
use countersign_wire::status::to_finding;

/// Records of the journal in one answer, as servers allow.
const JOURNAL_PAGE: u32 = 1000;

/// The server's admin socket.
pub(crate) struct Server {
    channel: Channel,
    socket: PathBuf,
}

impl Server {
    pub(crate) fn new(data_dir: &Path) -> Self {
        let socket = data_dir.join("server").join("admin.sock");
        Self { channel: dial::unix(socket.clone()), socket }
    }

    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn entries(&self) -> EntryClient<Channel> {
        EntryClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn agents(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone())
    }

    pub(crate) fn bundles(&self) -> BundleClient<Channel> {
        BundleClient::new(self.channel.clone())
    }

    /// What a failed call means for the user.
    pub(crate) fn refused(&self, status: &Status) -> Finding {
        unreachable_or(status, Code::ServerUnreachable, "server", &self.socket)
    }

    /// Every entry that `filter` selects, page by page.
    pub(crate) async fn list_entries(
        &self,
        filter: Option<entry::v1::list_entries_request::Filter>,
    ) -> Result<Vec<countersign_wire::proto::spire::api::types::Entry>, Finding> {
        let mut out = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = entry::v1::ListEntriesRequest {
                filter: filter.clone(),
                output_mask: None,
                page_size: 500,
                page_token,
            };
            let answer =
                self.entries().list_entries(request).await.map_err(|s| self.refused(&s))?;
            let answer = answer.into_inner();
            out.extend(answer.entries);
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                return Ok(out);
            }
        }
    }

    /// The policies that the server has.
    pub(crate) async fn list_policies(&self) -> Result<own::PolicySet, Finding> {
        let answer = self.admin().list_policies(own::ListPoliciesRequest {}).await;
        Ok(answer.map_err(|s| self.refused(&s))?.into_inner())
    }

    /// The newest `most` records of the journal, and whether its hash chain over them holds.
    pub(crate) async fn journal(
        &self,
        most: u32,
    ) -> Result<(Vec<own::journal_response::Record>, bool), Finding> {
        let (mut records, mut intact) = (Vec::new(), true);
        loop {
            let left = most.saturating_sub(u32::try_from(records.len()).unwrap_or(most));
            let before = records.last().map_or(0, |r: &own::journal_response::Record| r.number);
            if left == 0 || before == 1 {
                return Ok((records, intact));
            }
            let limit = left.min(JOURNAL_PAGE);
            let answer = self.admin().journal(own::JournalRequest { limit, before }).await;
            let answer = answer.map_err(|s| self.refused(&s))?.into_inner();
            intact &= answer.chain_intact;
            // A server that knows no pages gives the newest again.
            let older = |r: &own::journal_response::Record| before == 0 || r.number < before;
            let known = records.len();
            records.extend(answer.records.into_iter().filter(older));
            if records.len() == known {
                return Ok((records, intact));
            }
        }
    }

    /// A join string for one agent, good for `ttl_secs`. `node` is a lasting name for it: entries under
    /// that name stay when the agent has to join again under an ID of its own that is new.
    pub(crate) async fn join_string(
        &self,
        ttl_secs: i32,
        server_address: Option<String>,
        node: Option<&SpiffeId>,
    ) -> Result<(JoinString, i64), Finding> {
        let info = self
            .admin()
            .info(own::InfoRequest {})
            .await
            .map_err(|s| self.refused(&s))?
            .into_inner();
        let bundle = self
            .bundles()
            .get_bundle(bundle::v1::GetBundleRequest::default())
            .await
            .map_err(|s| self.refused(&s))?
            .into_inner();
        let bundle = countersign_wire::convert::bundle(&bundle)?;
        let token = self
            .agents()
            .create_join_token(agent::v1::CreateJoinTokenRequest {
                ttl: ttl_secs,
                token: String::new(),
                agent_id: node.map(countersign_wire::convert::from_spiffe_id),
            })
            .await
            .map_err(|s| self.refused(&s))?
            .into_inner();
        let join = JoinString {
            server: server_address.unwrap_or(info.address),
            trust_domain: bundle.trust_domain.clone(),
            roots: bundle.x509_authorities.into_iter().map(|a| a.der).collect(),
            token: token.value,
        };
        Ok((join, token.expires_at))
    }
}

/// The agent's socket.
pub(crate) struct Agent {
    channel: Channel,
    socket: PathBuf,
}

impl Agent {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { channel: dial::unix(socket.clone()), socket }
    }

    pub(crate) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    pub(crate) fn refused(&self, status: &Status) -> Finding {
        unreachable_or(status, Code::AgentUnreachable, "agent", &self.socket)
    }
}

fn unreachable_or(status: &Status, code: Code, what: &str, socket: &Path) -> Finding {
    let finding = to_finding(status, code);
    if finding.code == code {
        let source = std::error::Error::source(status).map(innermost).unwrap_or_default();
        let detail = if source.is_empty() { finding.message } else { source };
        return Finding::new(
            code,
            format!("cannot reach the {what} at `{}`: {detail}", socket.display()),
        );
    }
    finding
}

fn innermost(e: &(dyn std::error::Error + 'static)) -> String {
    match e.source() {
        Some(inner) => innermost(inner),
        None => e.to_string(),
    }
}
