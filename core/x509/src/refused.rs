//! The other side of a refusal: a peer has ended the handshake with an alert, and what we presented tells why.

use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;

use crate::{CertInfo, ChainCause, chain_closes};

/// What we present: a chain, leaf first, and the roots of our own trust domain (DER). Nothing is proven by it.
#[derive(Clone, Debug)]
pub struct Presented {
    chain: Vec<Vec<u8>>,
    roots: Vec<Vec<u8>>,
}

impl Presented {
    /// Of a chain that has been checked to be ours.
    pub fn new(chain: Vec<Vec<u8>>, roots: Vec<Vec<u8>>) -> Self {
        Self { chain, roots }
    }

    /// Why a peer may have answered with `alert` (RFC 8446 section 6.2, in CamelCase) at `now`. The alert says what
    /// the peer found; our own certificates say whether they or something on its side are the reason.
    pub fn refused(&self, alert: &str, now: UnixTime) -> Option<Finding> {
        let certs: Vec<CertInfo> =
            self.chain.iter().filter_map(|der| CertInfo::parse(der).ok()).collect();
        let leaf = certs.first()?;
        let said = format!("the peer refused our certificate (TLS alert {alert})");
        let name = leaf.uri_sans.first().cloned().unwrap_or_else(|| leaf.display_name());
        let (why, hint) = match alert {
            "CertificateExpired" => dates(&certs, now),
            "UnknownCA" => self.authority(leaf, now),
            "AccessDenied" => (
                format!("it does not expect `{name}` there"),
                "add this identity to those that the peer expects (`--peer-id`, `--allow`, its policies), or use the one it expects"
                    .to_owned(),
            ),
            "CertificateRevoked" => (
                format!("serial {} is on its revocation list", leaf.serial),
                "find out who revoked it and why; a new certificate needs a new serial and, after a theft, a new key"
                    .to_owned(),
            ),
            "DecryptError" => (
                "our handshake signature does not verify with it".to_owned(),
                "check that nothing between the two ends changes the handshake, and that the peer was not shown another certificate"
                    .to_owned(),
            ),
            "UnsupportedCertificate" => (
                format!("it takes no certificate of this kind: key {}, usages {}", leaf.key_type, usages(leaf)),
                "compare with what the peer demands: clients need clientAuth, servers serverAuth, and a key type that both know"
                    .to_owned(),
            ),
            "BadCertificate" | "CertificateUnknown" => match self.authority(leaf, now) {
                // The only thing that can be seen from here.
                (why, hint) if why.starts_with("our chain") => (why, hint),
                _ => (
                    format!("`{name}` is sound as far as can be seen from here"),
                    "look at the peer's log for the same moment: it says what it expected and what it was shown"
                        .to_owned(),
                ),
            },
            _ => return None,
        };
        let presented = format!(
            "`{name}`, serial {}, issued by `{}`, valid {} to {}",
            leaf.serial, leaf.issuer, leaf.not_before, leaf.not_after
        );
        let text = format!("{said}: {why}");
        Some(Finding::new(Code::RefusedByPeer, text).presented(presented).hint(hint))
    }

    fn authority(&self, leaf: &CertInfo, now: UnixTime) -> (String, String) {
        match chain_closes(&self.chain, &self.roots, now) {
            Err(ChainCause::MissingIntermediate { issuer }) => (
                format!("our chain lacks the intermediate `{issuer}`"),
                format!(
                    "send the certificate of `{issuer}` behind the leaf, in the file of `--cert`"
                ),
            ),
            _ => {
                // While a CA changes there are several; ours is the one that the chain ends in.
                let ours = |root: &&Vec<u8>| {
                    chain_closes(&self.chain, std::slice::from_ref(*root), now).is_ok()
                };
                let root = self.roots.iter().find(ours).and_then(|der| CertInfo::parse(der).ok());
                let root = root.map_or_else(String::new, |root| {
                    let print = crate::hex(&root.sha256);
                    format!(", below root `{}` sha256:{}", root.display_name(), &print[..16])
                });
                (
                    format!("it does not trust the authority `{}`{root}", leaf.issuer),
                    "give the peer our trust bundle, or get a certificate of an authority that it trusts; compare `countersign bundle show` on both hosts"
                        .to_owned(),
                )
            }
        }
    }
}

/// Which certificate has ended or not begun; if none, clocks differ.
fn dates(certs: &[CertInfo], now: UnixTime) -> (String, String) {
    for cert in certs {
        if cert.not_after < now {
            return (
                format!("`{}` expired at {}", cert.display_name(), cert.not_after),
                "it has not been renewed in time: check this host's agent (`countersign status`), or replace the file"
                    .to_owned(),
            );
        }
        if cert.not_before > now {
            return (
                format!("`{}` is valid only from {}", cert.display_name(), cert.not_before),
                "compare this host's clock with the issuer's".to_owned(),
            );
        }
    }
    let (from, to) = certs.first().map(|c| (c.not_before, c.not_after)).unwrap_or_default();
    (
        format!("by this clock it is valid, from {from} to {to}: the two clocks differ"),
        "compare the clocks of both hosts (`countersign check` does); SVIDs are back-dated by only 10 s"
            .to_owned(),
    )
}

fn usages(leaf: &CertInfo) -> String {
    match &leaf.extended_key_usage {
        Some(usages) if !usages.is_empty() => usages.join(", "),
        _ => "any".to_owned(),
    }
}
