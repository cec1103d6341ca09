//! An X509-SVID with its private key, as it travels from issuer to workload.

use std::fmt;

use zeroize::Zeroizing;

use crate::{BundleSet, SpiffeId};

/// A private key, unencrypted PKCS#8 DER. Wiped on drop, never printed.
#[derive(Clone)]
pub struct PrivateKeyDer(Zeroizing<Vec<u8>>);

impl PrivateKeyDer {
    /// Takes ownership of PKCS#8 bytes.
    pub fn new(pkcs8: Vec<u8>) -> Self {
        Self(Zeroizing::new(pkcs8))
    }

    /// The PKCS#8 bytes. Named so that every place that touches key material can be found.
    pub fn expose_pkcs8(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PrivateKeyDer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKeyDer(redacted)")
    }
}

/// An X509-SVID: chain (leaf first, DER), key, and the hint that tells several apart.
#[derive(Clone, Debug)]
pub struct X509Svid {
    /// The identity in the leaf.
    pub id: SpiffeId,
    /// Leaf first, then intermediates; no root.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's key.
    pub key: PrivateKeyDer,
    /// Operator's hint (Workload API §8), at most 1024 bytes; empty for none.
    pub hint: String,
}

/// What a workload holds at one moment: its SVIDs (default first) and every bundle it may use. Always
/// the full set, never a difference (Workload API §4.3).
#[derive(Clone, Debug, Default)]
pub struct X509Context {
    /// The workload's identities; the first is the default (Workload API §8).
    pub svids: Vec<X509Svid>,
    /// Own and federated trust domains.
    pub bundles: BundleSet,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_never_print() {
        let key = PrivateKeyDer::new(b"very secret".to_vec());
        assert!(!format!("{key:?}").contains("secret"));
        assert_eq!(key.expose_pkcs8(), b"very secret");
    }
}
