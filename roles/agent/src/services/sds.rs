//! Envoy's secret discovery: state of the world and delta.
//!
//! Names: `default` (the first identity), a SPIFFE ID (that identity, or the bundle of the trust domain it
//! names), `ROOTCA` (own trust domain's bundle), a trust domain's name, `ALL` (every bundle). None means
//! everything. Names that mean nothing here are left out of the answer; they never end the stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_identity::{SelectorSet, TrustDomain, X509Context, X509Svid};
use countersign_tls::current_time;
use countersign_wire::proto::envoy::config::core::v3 as core;
use countersign_wire::proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use countersign_wire::proto::envoy::service::discovery::v3 as discovery;
use countersign_wire::proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use countersign_wire::rpc::{BoxStream, Request, Response, Status, Streaming, pack_as, value};
use countersign_x509::{hex, pem, sha256};
use tokio_stream::wrappers::ReceiverStream;

use super::{Shared, no_identity};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// Names in one stream.
const MAX_NAMES: usize = 1000;

pub(crate) struct Service(pub(crate) Arc<Shared>);

/// Whether to use Envoy's SPIFFE validator; since 1.18, unless the node says otherwise.
fn wants_spiffe_validator(node: Option<&core::Node>) -> bool {
    let Some(node) = node else { return true };
    let disabled = node
        .metadata
        .as_ref()
        .and_then(|m| m.fields.get("disable_spiffe_cert_validation"))
        .and_then(|v| v.kind.as_ref())
        .is_some_and(|k| match k {
            value::Kind::BoolValue(b) => *b,
            value::Kind::StringValue(s) => s == "true",
            _ => false,
        });
    let old = match &node.user_agent_version_type {
        Some(core::node::UserAgentVersionType::UserAgentBuildVersion(v)) => {
            v.version.as_ref().is_some_and(|v| (v.major_number, v.minor_number) < (1, 18))
        }
        _ => false,
    };
    !disabled && !old
}

fn inline(bytes: Vec<u8>) -> Option<core::DataSource> {
    Some(core::DataSource { specifier: Some(core::data_source::Specifier::InlineBytes(bytes)) })
}

fn certificate(name: &str, svid: &X509Svid) -> tls::Secret {
    let chain: String = svid.chain.iter().map(|c| pem::encode("CERTIFICATE", c)).collect();
    let key = pem::encode("PRIVATE KEY", svid.key.expose_pkcs8());
    tls::Secret {
        name: name.to_owned(),
        r#type: Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: inline(chain.into_bytes()),
            private_key: inline(key.into_bytes()),
        })),
    }
}

fn roots_pem(context: &X509Context, td: &TrustDomain) -> Vec<u8> {
    context
        .bundles
        .bundle(td)
        .map(|b| {
            b.x509_authorities
                .iter()
                .map(|a| pem::encode("CERTIFICATE", &a.der))
                .collect::<String>()
        })
        .unwrap_or_default()
        .into_bytes()
}

fn validation(
    name: &str,
    context: &X509Context,
    domains: &[&TrustDomain],
    spiffe_validator: bool,
) -> tls::Secret {
    let context = if spiffe_validator {
        let config = tls::SpiffeCertValidatorConfig {
            trust_domains: domains
                .iter()
                .map(|td| tls::spiffe_cert_validator_config::TrustDomain {
                    name: td.to_string(),
                    trust_bundle: inline(roots_pem(context, td)),
                })
                .collect(),
        };
        tls::CertificateValidationContext {
            custom_validator_config: Some(core::TypedExtensionConfig {
                name: "envoy.tls.cert_validator.spiffe".into(),
                typed_config: Some(pack_as(&config, VALIDATOR)),
            }),
            ..Default::default()
        }
    } else {
        let roots = domains.iter().flat_map(|td| roots_pem(context, td)).collect();
        tls::CertificateValidationContext { trusted_ca: inline(roots), ..Default::default() }
    };
    tls::Secret {
        name: name.to_owned(),
        r#type: Some(tls::secret::Type::ValidationContext(context)),
    }
}

/// The secret that `name` means to this workload.
fn secret(name: &str, context: &X509Context, spiffe_validator: bool) -> Option<tls::Secret> {
    let all: Vec<&TrustDomain> = context.bundles.iter().map(|b| &b.trust_domain).collect();
    match name {
        "default" => return context.svids.first().map(|s| certificate(name, s)),
        "ROOTCA" => {
            let own = context.svids.first()?.id.trust_domain();
            return Some(validation(name, context, &[own], spiffe_validator));
        }
        // Without the SPIFFE validator every root would vouch for every domain: not offered.
        "ALL" => return spiffe_validator.then(|| validation(name, context, &all, true)),
        _ => {}
    }
    if let Some(svid) = context.svids.iter().find(|s| s.id.as_str() == name) {
        return Some(certificate(name, svid));
    }
    let td = TrustDomain::from_name_or_id(name).ok()?;
    context.bundles.bundle(&td)?;
    Some(validation(name, context, &[&td], spiffe_validator))
}

/// Every secret asked for, by name; no names ask for everything.
fn secrets(
    names: &[String],
    context: &X509Context,
    spiffe_validator: bool,
) -> BTreeMap<String, tls::Secret> {
    let everything: Vec<String>;
    let names = if names.is_empty() {
        everything = context
            .svids
            .iter()
            .map(|s| s.id.to_string())
            .chain(context.bundles.iter().map(|b| b.trust_domain.id().to_string()))
            .collect();
        &everything
    } else {
        names
    };
    names
        .iter()
        .filter_map(|n| secret(n, context, spiffe_validator).map(|s| (n.clone(), s)))
        .collect()
}

fn version_of(secret: &tls::Secret) -> String {
    hex(&sha256(&pack_as(secret, SECRET).value)[..8])
}

impl Service {
    fn context(&self, attested: &SelectorSet) -> Result<X509Context, Status> {
        let state = self.0.state();
        let now = current_time();
        if state.matching(attested, now).is_empty() {
            return Err(no_identity(attested));
        }
        Ok(state.context(attested, now))
    }
}

fn nonce() -> String {
    countersign_keys::random_hex::<4>()
}

fn log_nack(detail: Option<&countersign_wire::proto::google::rpc::Status>) {
    if let Some(e) = detail {
        tracing::warn!("Envoy refused a secret: {}", e.message.escape_default());
    }
}

#[async_trait::async_trait]
impl SecretDiscoveryService for Service {
    type StreamSecretsStream = BoxStream<discovery::DiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let attested = self.0.attested(&request).await?;
        self.context(&attested)?;
        let slot = self.0.stream_slot()?;
        let service = Service(Arc::clone(&self.0));
        let mut input = request.into_inner();
        let (send, receive) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let _slot = slot;
            let mut state = service.0.state.clone();
            let mut names: Option<Vec<String>> = None;
            let mut spiffe_validator = true;
            let mut last_nonce = String::new();
            let mut last_sent: Option<BTreeMap<String, String>> = None;
            loop {
                let mut answer = tokio::select! {
                    message = input.message() => {
                        let Ok(Some(ask)) = message else { return };
                        log_nack(ask.error_detail.as_ref());
                        if names.is_none() {
                            spiffe_validator = wants_spiffe_validator(ask.node.as_ref());
                        }
                        if ask.resource_names.len() > MAX_NAMES {
                            let _ = send.send(Err(Status::invalid_argument("too many names"))).await;
                            return;
                        }
                        // An answer to an older response says nothing about the newest.
                        let stale = !ask.response_nonce.is_empty() && ask.response_nonce != last_nonce;
                        let changed = names.as_ref() != Some(&ask.resource_names);
                        if changed && !stale {
                            names = Some(ask.resource_names);
                        }
                        changed && !stale
                    }
                    changed = state.changed() => {
                        if changed.is_err() { return }
                        state.borrow_and_update();
                        false
                    }
                    () = send.closed() => return,
                };
                let Some(names) = &names else { continue };
                let context = match service.context(&attested) {
                    Ok(context) => context,
                    Err(e) => {
                        let _ = send.send(Err(e)).await;
                        return;
                    }
                };
                let secrets = secrets(names, &context, spiffe_validator);
                let versions: BTreeMap<String, String> =
                    secrets.iter().map(|(n, s)| (n.clone(), version_of(s))).collect();
                answer |= last_sent.as_ref() != Some(&versions);
                if !answer {
                    continue;
                }
                last_nonce = nonce();
                let response = discovery::DiscoveryResponse {
                    version_info: hex(&sha256(format!("{versions:?}").as_bytes())[..8]),
                    resources: secrets.values().map(|s| pack_as(s, SECRET)).collect(),
                    type_url: SECRET.into(),
                    nonce: last_nonce.clone(),
                    control_plane: Some(core::ControlPlane { identifier: "countersign".into() }),
                };
                last_sent = Some(versions);
                if send.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    type DeltaSecretsStream = BoxStream<discovery::DeltaDiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let attested = self.0.attested(&request).await?;
        self.context(&attested)?;
        let slot = self.0.stream_slot()?;
        let service = Service(Arc::clone(&self.0));
        let mut input = request.into_inner();
        let (send, receive) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let _slot = slot;
            let mut state = service.0.state.clone();
            let mut spiffe_validator = None;
            // What the client wants, and the version it has of each; `None` while it has none.
            let mut wanted: BTreeMap<String, Option<String>> = BTreeMap::new();
            loop {
                let mut fresh = Vec::new();
                tokio::select! {
                    message = input.message() => {
                        let Ok(Some(ask)) = message else { return };
                        log_nack(ask.error_detail.as_ref());
                        spiffe_validator
                            .get_or_insert_with(|| wants_spiffe_validator(ask.node.as_ref()));
                        for name in ask.resource_names_unsubscribe {
                            wanted.remove(&name);
                        }
                        for name in ask.resource_names_subscribe {
                            let has = ask.initial_resource_versions.get(&name).cloned();
                            wanted.insert(name.clone(), has);
                            fresh.push(name);
                        }
                        if wanted.len() > MAX_NAMES {
                            let _ = send.send(Err(Status::invalid_argument("too many names"))).await;
                            return;
                        }
                    }
                    changed = state.changed() => {
                        if changed.is_err() { return }
                        state.borrow_and_update();
                    }
                    () = send.closed() => return,
                }
                let Some(spiffe_validator) = spiffe_validator else { continue };
                let context = match service.context(&attested) {
                    Ok(context) => context,
                    Err(e) => {
                        let _ = send.send(Err(e)).await;
                        return;
                    }
                };
                let mut resources = Vec::new();
                let mut removed = Vec::new();
                for (name, has) in &mut wanted {
                    match secret(name, &context, spiffe_validator) {
                        Some(s) => {
                            let version = version_of(&s);
                            if has.as_ref() != Some(&version) {
                                resources.push(discovery::Resource {
                                    name: name.clone(),
                                    version: version.clone(),
                                    resource: Some(pack_as(&s, SECRET)),
                                });
                                *has = Some(version);
                            }
                        }
                        None => {
                            // Told once when asked for, and again if it went away.
                            if has.take().is_some() || fresh.contains(name) {
                                removed.push(name.clone());
                            }
                        }
                    }
                }
                if resources.is_empty() && removed.is_empty() {
                    continue;
                }
                let response = discovery::DeltaDiscoveryResponse {
                    system_version_info: String::new(),
                    resources,
                    type_url: SECRET.into(),
                    nonce: nonce(),
                    removed_resources: removed,
                    control_plane: Some(core::ControlPlane { identifier: "countersign".into() }),
                };
                if send.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn fetch_secrets(
        &self,
        request: Request<discovery::DiscoveryRequest>,
    ) -> Result<Response<discovery::DiscoveryResponse>, Status> {
        let attested = self.0.attested(&request).await?;
        let context = self.context(&attested)?;
        let ask = request.into_inner();
        if ask.resource_names.len() > MAX_NAMES {
            return Err(Status::invalid_argument("too many names"));
        }
        let secrets =
            secrets(&ask.resource_names, &context, wants_spiffe_validator(ask.node.as_ref()));
        Ok(Response::new(discovery::DiscoveryResponse {
            version_info: "1".into(),
            resources: secrets.values().map(|s| pack_as(s, SECRET)).collect(),
            type_url: SECRET.into(),
            nonce: nonce(),
            control_plane: Some(core::ControlPlane { identifier: "countersign".into() }),
        }))
    }
}
