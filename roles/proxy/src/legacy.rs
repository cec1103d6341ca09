//! The CA of clients without a SPIFFE ID, from a file that is watched for change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_findings::{Code, Finding};
use countersign_sys::FileWatch;
use countersign_tls::LiveCredentials;
use countersign_x509::{LegacyName, LegacyTrust};

use crate::identity::read_certificates;

pub(crate) fn legacy_trust(roots: &Path, allowed: Vec<LegacyName>) -> Result<LegacyTrust, Finding> {
    LegacyTrust::new(&read_certificates(roots)?, allowed)
        .map_err(|e| Finding::new(Code::InvalidValue, e).at(roots.display().to_string()))
}

/// Puts new roots in place. Connections that rest on one that is gone are cut.
pub(crate) async fn follow_legacy_roots(
    path: PathBuf,
    mut watch: FileWatch,
    trust: Arc<LegacyTrust>,
    live: Arc<LiveCredentials>,
) {
    loop {
        watch.changed(|| vec![path.clone()]).await;
        let replaced = read_certificates(&path).and_then(|roots| {
            trust.replace_roots(&roots).map_err(|e| Finding::new(Code::InvalidValue, e))
        });
        match replaced {
            Ok(()) => {
                tracing::info!("legacy roots were read again");
                live.touch();
            }
            Err(e) => {
                tracing::error!(code = %e.code, "legacy roots are not used, the last good ones stay: {e}");
            }
        }
    }
}
