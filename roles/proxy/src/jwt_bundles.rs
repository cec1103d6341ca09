//! The trust domains' JWT keys, followed for as long as policies want JWT-SVIDs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{BundleSet, TrustDomain};
use countersign_issuers::Issuers;
use countersign_jose::bundle_from_jwks;
use countersign_lifecycle::Backoff;
use countersign_wire::dial;
use countersign_wire::proto::spiffe::JwtBundlesResponse;
use countersign_wire::status::to_finding;
use countersign_wire::workload::watch_jwt_bundles;
use tokio::sync::watch;

/// Follows the Workload API's stream once `wanted`.
pub(crate) async fn follow_jwt_bundles(
    socket: PathBuf,
    issuers: Arc<Issuers>,
    mut wanted: watch::Receiver<bool>,
) {
    if wanted.wait_for(|w| *w).await.is_err() {
        return;
    }
    let channel = dial::unix(socket);
    let mut backoff = Backoff::new(Duration::from_secs(5));
    loop {
        let failure = match watch_jwt_bundles(channel.clone()).await {
            Err(status) => to_finding(&status, Code::AgentUnreachable),
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(message)) => match bundles(&message) {
                        Ok(bundles) => {
                            backoff.reset();
                            issuers.set_bundles(bundles);
                        }
                        Err(e) => tracing::error!(code = %e.code, "JWT bundles are not used: {e}"),
                    },
                    Ok(None) => break Finding::new(Code::AgentUnreachable, "the stream ended"),
                    Err(status) => break to_finding(&status, Code::AgentUnreachable),
                }
            },
        };
        // The last keys stay in use meanwhile.
        tracing::debug!(code = %failure.code, "JWT bundles: {}", failure.message);
        tokio::time::sleep(backoff.pause(u32::from_be_bytes(countersign_keys::random()))).await;
    }
}

fn bundles(message: &JwtBundlesResponse) -> Result<BundleSet, Finding> {
    let bad = |what: String| Finding::new(Code::JwtMalformed, what).at("Workload API");
    let mut set = BundleSet::default();
    for (id, jwks) in &message.bundles {
        let domain = TrustDomain::from_name_or_id(id).map_err(|e| bad(e.to_string()))?;
        let bundle =
            bundle_from_jwks(&domain, jwks).map_err(|e| bad(format!("`{domain}`: {e}")))?;
        set.set(bundle);
    }
    Ok(set)
}
