//! Making authorities.

use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{PrivateKeyDer, TrustDomain, UnixTime};
use countersign_keys::{KeyAlgorithm, PrivateKey, SealKey, Signer};
use countersign_store::{AuthorityKind, AuthorityRecord, AuthorityStatus};
use countersign_x509::profile::{BACKDATE_SECS, CertSpec, Profile};
use countersign_x509::{CertInfo, hex, pem};

use crate::init::{InitOptions, Initialised};

/// An authority with its key, if that is at hand.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) record: AuthorityRecord,
    pub(crate) key: Option<Arc<PrivateKey>>,
    /// Facts of its certificate; `None` for JWT keys.
    pub(crate) info: Option<CertInfo>,
}

impl Authority {
    /// Reads a stored authority, opening its key.
    pub(crate) fn load(record: AuthorityRecord, seal: &SealKey) -> Result<Self, Finding> {
        let broken = |what: String| Finding::new(Code::StorageFailed, what);
        let key = if record.sealed_key.is_empty() {
            None
        } else {
            let pkcs8 = seal
                .open(&purpose(record.kind), &record.sealed_key)
                .map_err(|e| broken(format!("{} key: {e}", record.kind.as_str())))?;
            let key = PrivateKey::from_pkcs8(PrivateKeyDer::new(pkcs8.to_vec()))
                .map_err(|e| broken(format!("{} key: {e}", record.kind.as_str())))?;
            Some(Arc::new(key))
        };
        let info = match record.chain.first() {
            None => None,
            Some(der) => Some(CertInfo::parse(der).map_err(|e| broken(e.to_string()))?),
        };
        Ok(Self { record, key, info })
    }
}

fn purpose(kind: AuthorityKind) -> String {
    format!("countersign-authority-{}", kind.as_str())
}

fn internal(e: impl std::fmt::Display) -> Finding {
    Finding::new(Code::InternalError, e.to_string())
}

/// Makes a certificate authority of `kind` under `issuer` (`None`: self-signed).
pub(crate) fn make_ca(
    kind: AuthorityKind,
    trust_domain: &TrustDomain,
    issuer: Option<&Authority>,
    ttl: Duration,
    seal: Option<&SealKey>,
    now: UnixTime,
) -> Result<Authority, Finding> {
    let (profile, title) = match kind {
        AuthorityKind::Root => (Profile::Root, "Root"),
        AuthorityKind::Intermediate => (Profile::Intermediate, "Intermediate"),
        AuthorityKind::Signing | AuthorityKind::Jwt => (Profile::ServerCa, "Signing CA"),
    };
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(internal)?;
    let signer = match issuer {
        None => &key,
        Some(a) => a.key.as_deref().ok_or_else(|| {
            Finding::new(
                Code::RootOffline,
                format!("the key of the {} that must sign is not at hand", a.record.kind.as_str()),
            )
        })?,
    };
    let id = trust_domain.id();
    let serial = countersign_keys::random();
    // A distinct name per authority: chains are found by name, and names that repeat mislead people.
    let common_name = format!("{trust_domain} {title} {}", &hex(&serial)[..8]);
    let spec = CertSpec {
        profile,
        serial,
        id: &id,
        dns_names: &[],
        common_name: &common_name,
        not_before: now - Duration::from_secs(BACKDATE_SECS),
        not_after: now + ttl,
        spki_der: key.public_key_spki(),
        issuer: issuer.and_then(|a| a.info.as_ref()),
        signature_algorithm: signer.algorithm(),
    };
    let tbs = spec.to_be_signed().map_err(internal)?;
    let cert = tbs.assemble(&signer.sign(tbs.bytes()).map_err(internal)?).map_err(internal)?;
    let info = CertInfo::parse(&cert).map_err(internal)?;
    let mut chain = vec![cert];
    if let Some(issuer) = issuer.filter(|a| a.record.kind != AuthorityKind::Root) {
        chain.extend(issuer.record.chain.iter().cloned());
    }
    let sealed_key = match seal {
        Some(seal) => seal.seal(&purpose(kind), key.pkcs8().expose_pkcs8()).map_err(internal)?,
        None => Vec::new(),
    };
    let record = AuthorityRecord {
        kind,
        status: AuthorityStatus::Prepared,
        chain,
        public_key: key.public_key_spki().to_vec(),
        key_id: hex(&info.sha256),
        sealed_key,
        published_at: now,
        not_after: info.not_after,
    };
    Ok(Authority { record, key: Some(Arc::new(key)), info: Some(info) })
}

/// Makes a JWT signing key.
pub(crate) fn make_jwt_key(
    ttl: Duration,
    seal: &SealKey,
    now: UnixTime,
) -> Result<Authority, Finding> {
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(internal)?;
    let sealed_key =
        seal.seal(&purpose(AuthorityKind::Jwt), key.pkcs8().expose_pkcs8()).map_err(internal)?;
    let record = AuthorityRecord {
        kind: AuthorityKind::Jwt,
        status: AuthorityStatus::Prepared,
        chain: Vec::new(),
        public_key: key.public_key_spki().to_vec(),
        key_id: countersign_keys::random_hex::<16>(),
        sealed_key,
        published_at: now,
        not_after: now + ttl,
    };
    Ok(Authority { record, key: Some(Arc::new(key)), info: None })
}

pub(crate) struct Bootstrap {
    pub(crate) records: Vec<AuthorityRecord>,
    pub(crate) root_key_pem: String,
    pub(crate) root_pem: String,
    pub(crate) summary: Initialised,
}

/// The first root and intermediate of a trust domain. The root's key is returned, not stored with the
/// others, so that it can be taken offline.
pub(crate) fn bootstrap(
    trust_domain: &TrustDomain,
    options: InitOptions,
    seal: &SealKey,
    now: UnixTime,
) -> Result<Bootstrap, Finding> {
    let mut root = make_ca(AuthorityKind::Root, trust_domain, None, options.root_ttl, None, now)?;
    let mut intermediate = make_ca(
        AuthorityKind::Intermediate,
        trust_domain,
        Some(&root),
        options.intermediate_ttl,
        Some(seal),
        now,
    )?;
    root.record.status = AuthorityStatus::Active;
    intermediate.record.status = AuthorityStatus::Active;
    let summary = Initialised {
        root_fingerprint: root.record.key_id.clone(),
        root_not_after: root.record.not_after,
        intermediate_not_after: intermediate.record.not_after,
    };
    let root_key_pem = root
        .key
        .as_ref()
        .map(|k| pem::encode("PRIVATE KEY", k.pkcs8().expose_pkcs8()))
        .unwrap_or_default();
    Ok(Bootstrap {
        root_key_pem,
        root_pem: pem::encode("CERTIFICATE", &root.record.chain[0]),
        records: vec![root.record, intermediate.record],
        summary,
    })
}
