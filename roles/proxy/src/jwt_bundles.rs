//! The trust domains' JWT keys, followed for as long as policies want JWT-SVIDs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{BundleSet, TrustDomain};
use countersign_issuers::Issuers;
use countersign_jose::jwt_bundle_from_jwks;
use countersign_lifecycle::Backoff;
use countersign_wire::dial;
use countersign_wire::proto::spiffe::JwtBundlesResponse;
use countersign_wire::rpc::{Channel, Code as GrpcCode};
use countersign_wire::status::to_finding;
use countersign_wire::workload::watch_jwt_bundles;
use tokio::sync::watch;

/// Follows the Workload API's stream whenever and as long as it is `wanted`.
pub(crate) async fn follow_jwt_bundles(
    socket: PathBuf,
    issuers: Arc<Issuers>,
    mut wanted: watch::Receiver<bool>,
) {
    let channel = dial::unix(socket);
    loop {
        if wanted.wait_for(|w| *w).await.is_err() {
            return;
        }
        let mut stopped = wanted.clone();
        tokio::select! {
            // An implementation without JWT: nothing will ever come.
            () = follow(&channel, &issuers) => return,
            stopped = stopped.wait_for(|w| !*w) => {
                issuers.set_bundles(None);
                if stopped.is_err() {
                    return;
                }
            }
        }
    }
}

async fn follow(channel: &Channel, issuers: &Issuers) {
    let mut backoff = Backoff::new(Duration::from_secs(5));
    loop {
        let failure = match watch_jwt_bundles(channel.clone()).await {
            Err(status) if status.code() == GrpcCode::Unimplemented => {
                tracing::error!("the Workload API has no JWT bundles: JWT-SVIDs are refused");
                return;
            }
            Err(status) => {
                // No longer entitled: what was told before is withdrawn.
                if status.code() == GrpcCode::PermissionDenied {
                    issuers.set_bundles(None);
                }
                to_finding(&status, Code::AgentUnreachable)
            }
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(message)) => {
                        backoff.reset();
                        issuers.set_bundles(Some(bundles(&message)));
                    }
                    Ok(None) => break Finding::new(Code::AgentUnreachable, "the stream ended"),
                    Err(status) => break to_finding(&status, Code::AgentUnreachable),
                }
            },
        };
        // The last keys stay in use meanwhile, as the identity does.
        tracing::debug!(code = %failure.code, "JWT bundles: {}", failure.message);
        tokio::time::sleep(backoff.pause(u32::from_be_bytes(countersign_keys::random()))).await;
    }
}

/// A bundle that cannot be read is left out: it must not take the others, or our own rotation, with it.
fn bundles(message: &JwtBundlesResponse) -> BundleSet {
    let mut set = BundleSet::default();
    for (id, jwks) in &message.bundles {
        let bundle = TrustDomain::from_name_or_id(id)
            .map_err(|e| e.to_string())
            .and_then(|td| jwt_bundle_from_jwks(&td, jwks).map_err(|e| e.to_string()));
        match bundle {
            Ok(bundle) => set.set(bundle),
            Err(e) => {
                tracing::error!("the JWT bundle of `{}` is not used: {e}", id.escape_default())
            }
        }
    }
    set
}
