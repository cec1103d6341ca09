//! Flags for clients that have certificates but no SPIFFE ID.

use std::path::PathBuf;

use clap::Args;
use countersign_proxy::LegacyOptions;
use countersign_x509::LegacyName;

/// Clients of an older PKI.
#[derive(Args, Clone, Debug)]
pub(crate) struct LegacyFlags {
    /// Roots in PEM of a CA whose clients have no SPIFFE ID, watched for change. It vouches for those named with
    /// --legacy-allow and nobody else
    #[arg(long, value_name = "FILE", requires = "legacy_allow")]
    legacy_ca: Option<PathBuf>,
    /// A client without a SPIFFE ID that may connect: CN=NAME, DNS=NAME or SPKI=sha256:HEX, compared whole; repeat
    /// for more. Policies find it by `source.certificate.*`
    #[arg(long, value_name = "NAME", requires = "legacy_ca")]
    legacy_allow: Vec<LegacyName>,
}

impl LegacyFlags {
    pub(crate) fn options(&self) -> Option<LegacyOptions> {
        let allowed = self.legacy_allow.clone();
        self.legacy_ca.clone().map(|roots| LegacyOptions { roots, allowed })
    }
}
