//! The policies in force: those given directly, and those the agent tells. A set that cannot be read
//! whole is refused whole; the last good one stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_keys::read_bounded;
use countersign_lifecycle::Backoff;
use countersign_policy::{Document, MAX_INPUT, PolicySet, Workload, parse};
use countersign_sys::FileWatch;
use countersign_wire::dial;
use countersign_wire::proto::countersign::node::v1::node_client::NodeClient;
use countersign_wire::proto::countersign::node::v1::{ReportPoliciesRequest, WatchPoliciesRequest};
use countersign_wire::rpc::Code as GrpcCode;
use countersign_wire::status::to_finding;

use crate::shared::{PolicyState, Shared};
use tokio::sync::watch;

/// Documents given directly, as they are now.
pub(crate) type Given = watch::Receiver<Arc<Vec<Document>>>;

/// How often what has not changed is told again.
const AGAIN: Duration = Duration::from_secs(60);

/// Reads documents given directly: texts with their origin, and files.
pub(crate) fn read_given(
    texts: &[(String, String)],
    files: &[PathBuf],
    providers: &[String],
) -> Result<Vec<Document>, Finding> {
    let mut out = Vec::new();
    for (origin, text) in texts {
        out.extend(parse(text, origin)?);
    }
    for path in files {
        let bytes = read_bounded(path, MAX_INPUT as u64).map_err(|e| e.finding())?;
        let place = path.display().to_string();
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| Finding::new(Code::ConfigSyntax, "not UTF-8").at(place.clone()))?;
        let documents = parse(text, &place)?;
        documents.iter().try_for_each(|d| known_provider(d, providers, &place))?;
        out.extend(documents);
    }
    Ok(out)
}

/// A CUSTOM policy that names nobody we could ask would refuse every request it matches.
fn known_provider(document: &Document, known: &[String], place: &str) -> Result<(), Finding> {
    let Document::AuthorizationPolicy(p) = document else { return Ok(()) };
    let Some(name) = p.provider.as_deref().filter(|n| !known.iter().any(|k| k == n)) else {
        return Ok(());
    };
    let text =
        format!("policy {}/{}: spec.provider.name: `{name}` is not known", p.namespace, p.name);
    let finding = Finding::new(Code::EngineMisconfigured, text).at(place.to_owned());
    Err(match known {
        [] => finding,
        _ => finding.expected(known.join(" or ")),
    })
}

/// Reads everything again whenever a file changes. What cannot be read whole is refused whole.
pub(crate) async fn follow_policy_files(
    shared: Arc<Shared>,
    texts: Vec<(String, String)>,
    files: Vec<PathBuf>,
    mut watch: FileWatch,
    providers: Vec<String>,
    given: watch::Sender<Arc<Vec<Document>>>,
) {
    loop {
        watch.changed(|| files.clone()).await;
        match read_given(&texts, &files, &providers) {
            Ok(documents) => {
                tracing::info!(documents = documents.len(), "policy files were read again");
                given.send_replace(Arc::new(documents));
            }
            Err(e) => {
                shared.refuse_policies(&e, "policy files are not used, the last good set stays");
            }
        }
    }
}

impl Shared {
    /// Compiles and puts in place.
    pub(crate) fn install_policies(&self, documents: &[Document], generation: u64) {
        let Some(credentials) = self.credentials.current() else { return };
        let mut workload = Workload::of(&credentials.id);
        workload.labels.clone_from(&self.labels);
        workload.mesh.clone_from(&self.mesh);
        let set = PolicySet::compile(documents, &workload, generation);
        let mut trouble = String::new();
        for name in set.providers().filter(|p| !self.engines.names().any(|n| n == *p)) {
            trouble = format!(
                "[{}] a CUSTOM policy names the provider `{name}`, which no --providers file describes: what it matches is refused",
                Code::EngineMisconfigured
            );
            tracing::error!(code = %Code::EngineMisconfigured, "{trouble}");
        }
        self.issuers.want(set.key_sources());
        self.jwt_svids.send_if_modified(|wanted| {
            let new = set.wants_jwt_svids();
            std::mem::replace(wanted, new) != new
        });
        self.policies.store(Some(Arc::new(set)));
        self.metrics.policies(generation, true);
        self.policy_state.send_replace(PolicyState { generation, trouble, refused: false });
        self.policies_changed.send_modify(|n| *n += 1);
    }
}

impl Shared {
    /// Notes that newer policies are not used.
    fn refuse_policies(&self, why: &Finding, what: &str) {
        let generation = self.policies.load().as_ref().map_or(0, |p| p.generation());
        self.metrics.policies(generation, false);
        let trouble = why.to_string();
        self.policy_state.send_replace(PolicyState { generation, trouble, refused: true });
        tracing::error!(code = %why.code, "{what}: {why}");
    }
}

/// Tells the agent what became of the policies, so that `countersign status` can tell people.
pub(crate) async fn report_policies(socket: PathBuf, shared: Arc<Shared>) {
    let mut state = shared.policy_state.subscribe();
    let channel = dial::unix(socket);
    let mut backoff = Backoff::new(Duration::from_secs(30));
    loop {
        let PolicyState { generation, trouble, refused } = state.borrow_and_update().clone();
        if generation > 0 || !trouble.is_empty() {
            let report = ReportPoliciesRequest { generation, trouble, refused };
            match NodeClient::new(channel.clone()).report_policies(report).await {
                Ok(_) => backoff.reset(),
                // Another vendor's agent, or an older one.
                Err(e) if e.code() == GrpcCode::Unimplemented => return,
                Err(_) => {
                    let pause = backoff.pause(u32::from_be_bytes(countersign_keys::random()));
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
        }
        // Again now and then: an agent that was restarted has forgotten.
        let changed = tokio::time::timeout(AGAIN, state.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return;
        }
    }
}

/// Only the given documents: compiled as soon as the identity is known, and again if it or they change.
pub(crate) async fn follow_identity(shared: Arc<Shared>, mut given: Given) {
    let mut changes = shared.credentials.subscribe();
    let mut last = None;
    let mut generation = 1;
    loop {
        changes.borrow_and_update();
        let id = shared.credentials.current().map(|c| c.id.clone());
        if id.is_some() && id != last {
            let documents = Arc::clone(&given.borrow_and_update());
            shared.install_policies(&documents, generation);
            last = id;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            Ok(()) = given.changed() => {
                generation += 1;
                last = None;
            }
        }
    }
}

/// Given documents and the agent's.
pub(crate) async fn follow_agent(socket: PathBuf, shared: Arc<Shared>, mut given: Given) {
    let mut backoff = Backoff::new(Duration::from_secs(5));
    let mut identity = shared.credentials.subscribe();
    // The agent answers only those who have an identity.
    while shared.credentials.current().is_none() {
        if identity.changed().await.is_err() {
            return;
        }
    }
    let channel = dial::unix(socket);
    // What the agent told last.
    let mut last: Option<(Vec<Document>, u64)> = None;
    loop {
        let mut client = NodeClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let failure = match client.watch_policies(WatchPoliciesRequest {}).await {
            Err(e) if e.code() == GrpcCode::Unimplemented => {
                // Another vendor's Workload API: it has no policies to tell.
                return follow_identity(shared, given).await;
            }
            Err(e) => to_finding(&e, Code::AgentUnreachable),
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    let message = tokio::select! {
                        message = stream.message() => message,
                        // Compiled for the identity in use: a new one, or one that returns, counts.
                        changed = identity.changed() => {
                            if changed.is_err() { return }
                            if let Some((told, generation)) = &last {
                                shared.install_policies(&together(&given, told), *generation);
                            }
                            continue;
                        }
                        Ok(()) = given.changed() => {
                            given.borrow_and_update();
                            if let Some((told, generation)) = &last {
                                shared.install_policies(&together(&given, told), *generation);
                            }
                            continue;
                        }
                    };
                    match message {
                        Ok(Some(set)) => {
                            backoff.reset();
                            let parsed: Result<Vec<Vec<Document>>, Finding> = set
                                .documents
                                .iter()
                                .map(|d| {
                                    let origin = format!("{}/{}/{}", d.kind, d.namespace, d.name);
                                    parse(&d.yaml, &origin)
                                })
                                .collect();
                            match parsed {
                                Ok(parsed) => {
                                    let told: Vec<Document> =
                                        parsed.into_iter().flatten().collect();
                                    shared
                                        .install_policies(&together(&given, &told), set.generation);
                                    last = Some((told, set.generation));
                                }
                                Err(e) => {
                                    let what = "policies are not used, the last good set stays";
                                    shared.refuse_policies(&e, what);
                                }
                            }
                        }
                        Ok(None) => break Finding::new(Code::AgentUnreachable, "the stream ended"),
                        Err(e) => break to_finding(&e, Code::AgentUnreachable),
                    }
                }
            }
        };
        tracing::debug!(code = %failure.code, "policy source: {}", failure.message);
        tokio::time::sleep(backoff.pause(u32::from_be_bytes(countersign_keys::random()))).await;
    }
}

fn together(given: &Given, told: &[Document]) -> Vec<Document> {
    given.borrow().iter().chain(told).cloned().collect()
}
