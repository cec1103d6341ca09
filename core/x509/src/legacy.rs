//! Peers that have certificates but no SPIFFE ID: what is left of an older PKI, let in by name, one by one.
//! Their CA is trusted for these names and for nothing else; it can never vouch for a SPIFFE ID, and no
//! SPIFFE trust bundle vouches for them.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, RwLock};

use countersign_identity::UnixTime;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use webpki::EndEntityCert;

use crate::verify::{MAX_CHAIN, PathFailure};
use crate::verify::{check_validity, describe_leaf, translate, walk};
use crate::{CertInfo, ChainCause, ChainError, Crls, PeerIdentity, hex};

/// A name that lets one legacy peer in. Names are compared whole; there are no wildcards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegacyName {
    /// `CN=…`: the certificate's only common name.
    CommonName(String),
    /// `DNS=…`: one of its DNS SANs, in lower case.
    DnsName(String),
    /// `SPKI=sha256:HEX`: SHA-256 of its SubjectPublicKeyInfo.
    KeyPin([u8; 32]),
}

impl LegacyName {
    fn is_of(&self, leaf: &CertInfo) -> bool {
        match self {
            LegacyName::CommonName(name) => {
                // Which of several would count is open, also where one of them is in an old kind of string.
                let mut all = leaf.subject_attributes.iter().filter(|(kind, _)| kind == "CN");
                leaf.common_names == 1 && all.next().is_some_and(|(_, cn)| cn == name)
            }
            LegacyName::DnsName(name) => leaf.dns_sans.iter().any(|d| d.eq_ignore_ascii_case(name)),
            LegacyName::KeyPin(pin) => leaf.spki_sha256 == *pin,
        }
    }
}

impl fmt::Display for LegacyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LegacyName::CommonName(name) => write!(f, "CN={name}"),
            LegacyName::DnsName(name) => write!(f, "DNS={name}"),
            LegacyName::KeyPin(pin) => write!(f, "SPKI=sha256:{}", hex(pin)),
        }
    }
}

impl FromStr for LegacyName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (kind, value) = s
            .split_once('=')
            .ok_or_else(|| format!("`{}` is not CN=…, DNS=… or SPKI=…", s.escape_default()))?;
        if value.is_empty() || value.contains('*') || value.chars().any(char::is_control) {
            return Err(format!("`{}` names nobody exactly", s.escape_default()));
        }
        match kind {
            "CN" => Ok(LegacyName::CommonName(value.to_owned())),
            "DNS" => Ok(LegacyName::DnsName(value.to_ascii_lowercase())),
            "SPKI" => crate::parse_pin(value)
                .map(LegacyName::KeyPin)
                .ok_or_else(|| "SPKI is not sha256:HEX or sha256/BASE64".to_owned()),
            _ => Err(format!("`{}` is not CN=…, DNS=… or SPKI=…", s.escape_default())),
        }
    }
}

/// A peer without a SPIFFE ID whose chain was verified and whose name is listed: the only way to get one is
/// [`LegacyTrust::verify`].
#[derive(Clone, PartialEq, Eq)]
pub struct LegacyPeer {
    name: String,
    not_after: UnixTime,
    leaf: CertInfo,
    authority_sha256: [u8; 32],
}

impl LegacyPeer {
    /// The listed name that let it in, as it was listed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When the proof ends: the earliest `notAfter` on the path, root included.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The leaf's facts.
    pub fn leaf(&self) -> &CertInfo {
        &self.leaf
    }

    /// SHA-256 of the root that the chain ends at.
    pub fn authority_sha256(&self) -> &[u8; 32] {
        &self.authority_sha256
    }
}

impl fmt::Debug for LegacyPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "LegacyPeer({}, serial {}, until {})",
            self.name, self.leaf.serial, self.not_after
        )
    }
}

/// Whoever is at the other end, proven one way or the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// By a SPIFFE ID.
    Spiffe(Arc<PeerIdentity>),
    /// By a listed name of a certificate without one.
    Legacy(Arc<LegacyPeer>),
}

impl Peer {
    /// SPIFFE ID or listed name.
    pub fn name(&self) -> &str {
        match self {
            Peer::Spiffe(peer) => peer.id().as_str(),
            Peer::Legacy(peer) => peer.name(),
        }
    }

    /// The SPIFFE ID, if that is what was proven.
    pub fn id(&self) -> Option<&countersign_identity::SpiffeId> {
        match self {
            Peer::Spiffe(peer) => Some(peer.id()),
            Peer::Legacy(_) => None,
        }
    }

    /// The leaf's facts.
    pub fn leaf(&self) -> &CertInfo {
        match self {
            Peer::Spiffe(peer) => peer.leaf(),
            Peer::Legacy(peer) => peer.leaf(),
        }
    }
}

/// Whom to let in without a SPIFFE ID. The roots can be replaced while it is in use.
pub struct LegacyTrust {
    allowed: Vec<LegacyName>,
    roots: RwLock<Arc<Roots>>,
}

struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    infos: Vec<CertInfo>,
}

impl Roots {
    fn new(ders: &[Vec<u8>]) -> Result<Self, String> {
        let mut roots = Self { anchors: Vec::new(), infos: Vec::new() };
        for (i, der) in ders.iter().enumerate() {
            let fail = |e: &dyn fmt::Display| format!("legacy root {i}: {e}");
            let info = CertInfo::parse(der).map_err(|e| fail(&e))?;
            if !info.is_ca {
                return Err(fail(&format!("`{}` is no CA", info.display_name())));
            }
            let anchor = webpki::anchor_from_trusted_cert(&CertificateDer::from(der.as_slice()))
                .map_err(|e| fail(&e))?
                .to_owned();
            roots.anchors.push(anchor);
            roots.infos.push(info);
        }
        if roots.infos.is_empty() {
            return Err("there is no legacy root".into());
        }
        Ok(roots)
    }
}

impl LegacyTrust {
    /// Lets in those of `allowed` that `roots` (DER) vouch for.
    pub fn new(roots: &[Vec<u8>], allowed: Vec<LegacyName>) -> Result<Self, String> {
        if allowed.is_empty() {
            return Err("no legacy peer is named".into());
        }
        Ok(Self { allowed, roots: RwLock::new(Arc::new(Roots::new(roots)?)) })
    }

    /// Puts other roots in place, if all of them can be used.
    pub fn replace_roots(&self, roots: &[Vec<u8>]) -> Result<(), String> {
        let roots = Arc::new(Roots::new(roots)?);
        *self.roots.write().unwrap_or_else(|e| e.into_inner()) = roots;
        Ok(())
    }

    fn roots(&self) -> Arc<Roots> {
        Arc::clone(&self.roots.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// Whether a root is trusted now.
    pub fn trusts(&self, authority_sha256: &[u8; 32]) -> bool {
        self.roots().infos.iter().any(|r| r.sha256 == *authority_sha256)
    }

    /// Whether a leaf is for this to judge. One that claims to be a SPIFFE ID, however spelt, never is.
    pub fn concerns(leaf: &[u8]) -> bool {
        let claims = |uri: &String| {
            uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
        };
        CertInfo::parse(leaf).is_ok_and(|leaf| !leaf.uri_sans.iter().any(claims))
    }

    /// Verifies `chain` (leaf first, DER) as presented by a client at `now`.
    ///
    /// Checked: RFC 5280 path validation against the legacy roots; validity of every certificate on the path,
    /// the root included; key usage and extended key usage where they are given; that the leaf is no CA; that
    /// one of the allowed names is the leaf's.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<LegacyPeer>, ChainError> {
        let roots = self.roots();
        let refuse = |cause: ChainCause, leaf: Option<&CertInfo>| ChainError {
            trusted: match cause {
                ChainCause::UnknownAuthority { .. } | ChainCause::BadSignature => {
                    let names: Vec<String> =
                        roots.infos.iter().map(|i| format!("`{}`", i.subject)).collect();
                    format!("legacy roots: {}", names.join(", "))
                }
                _ => String::new(),
            },
            cause,
            now,
            presented: leaf.map(describe_leaf).unwrap_or_default(),
        };
        let Some(leaf_der) = chain.first() else {
            return Err(refuse(ChainCause::Empty, None));
        };
        if chain.len() > MAX_CHAIN {
            let what = format!("chain has more than {MAX_CHAIN} certificates");
            return Err(refuse(ChainCause::Constraint(what), None));
        }
        let malformed = |detail: String| ChainCause::Malformed { index: 0, detail };
        let leaf = CertInfo::parse(leaf_der).map_err(|e| refuse(malformed(e.to_string()), None))?;
        let fail = |cause: ChainCause| refuse(cause, Some(&leaf));
        may_authenticate(&leaf).map_err(fail)?;
        check_validity(&leaf, now).map_err(fail)?;
        let end_entity =
            EndEntityCert::try_from(leaf_der).map_err(|e| fail(malformed(e.to_string())))?;
        // Roots out of their own validity anchor nothing.
        let valid: Vec<(&TrustAnchor<'static>, &CertInfo)> = roots
            .anchors
            .iter()
            .zip(&roots.infos)
            .filter(|(_, info)| check_validity(info, now).is_ok())
            .collect();
        let intermediates = &chain[1..];
        let crls = Crls::default();
        let path = walk(&end_entity, &leaf, intermediates, &valid, now, &crls, may_issue).map_err(
            |failure| {
                fail(match failure {
                    PathFailure::Cause(cause) => cause,
                    PathFailure::Path(error) => {
                        let presented: Vec<CertInfo> = intermediates
                            .iter()
                            .filter_map(|der| CertInfo::parse(der).ok())
                            .collect();
                        translate(error, &leaf, &presented, now)
                    }
                })
            },
        )?;
        let Some(name) = self.allowed.iter().find(|name| name.is_of(&leaf)) else {
            let names: Vec<String> = self.allowed.iter().map(ToString::to_string).collect();
            return Err(fail(ChainCause::LegacyNotAllowed {
                subject: leaf.display_name(),
                expected: names.join(" or "),
            }));
        };
        Ok(Arc::new(LegacyPeer {
            name: name.to_string(),
            not_after: path.not_after,
            leaf,
            authority_sha256: path.authority_sha256,
        }))
    }
}

impl fmt::Debug for LegacyTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.allowed.iter().map(ToString::to_string).collect();
        write!(f, "LegacyTrust({})", names.join(", "))
    }
}

/// Older certificates often lack usages; those that are there must fit.
fn may_authenticate(leaf: &CertInfo) -> Result<(), ChainCause> {
    if leaf.is_ca {
        return Err(ChainCause::CaUsedAsLeaf);
    }
    if let Some(usage) = leaf.key_usage {
        if usage.key_cert_sign || usage.crl_sign {
            return Err(ChainCause::WrongKeyUsage("leaf may sign certificates or CRLs"));
        }
        if !usage.digital_signature {
            return Err(ChainCause::WrongKeyUsage("leaf lacks digitalSignature"));
        }
    }
    for_clients(leaf)
}

fn for_clients(cert: &CertInfo) -> Result<(), ChainCause> {
    match &cert.extended_key_usage {
        Some(present)
            if !present.iter().any(|u| u == CertInfo::CLIENT_AUTH || u == CertInfo::ANY_USAGE) =>
        {
            let present = present.clone();
            Err(ChainCause::WrongExtendedKeyUsage { needed: "clientAuth", present })
        }
        _ => Ok(()),
    }
}

fn may_issue(cert: &CertInfo) -> Result<(), ChainCause> {
    if !cert.is_ca {
        let what = format!("`{}` issued a certificate but is no CA", cert.display_name());
        return Err(ChainCause::Constraint(what));
    }
    if cert.key_usage.is_some_and(|usage| !usage.key_cert_sign) {
        return Err(ChainCause::WrongKeyUsage("an issuing certificate lacks keyCertSign"));
    }
    // An authority that is limited to servers or mail vouches for no client (RFC 5280 section 4.2.1.12).
    for_clients(cert)
}
