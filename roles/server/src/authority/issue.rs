//! What the authorities sign for others: leaves and tokens, each in the journal before it is handed out.

use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{DnsName, SpiffeId, UnixTime};
use countersign_jose::SigningRequest;
use countersign_keys::{PrivateKey, Signer};
use countersign_store::{AuthorityKind, AuthorityStatus, JournalRecord};
use countersign_telemetry::Outcome;
use countersign_x509::profile::{BACKDATE_SECS, CertSpec, Profile, SignatureAlgorithm};
use countersign_x509::{CertInfo, hex, sha256};

use super::AuthorityManager;

/// One leaf to issue.
pub(crate) struct IssueRequest {
    pub(crate) id: SpiffeId,
    pub(crate) spki: Vec<u8>,
    pub(crate) dns_names: Vec<DnsName>,
    pub(crate) ttl: Duration,
    pub(crate) kind: &'static str,
    pub(crate) issued_to: String,
}

/// An issued, journalled leaf.
pub(crate) struct Issued {
    pub(crate) id: SpiffeId,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) not_after: UnixTime,
    pub(crate) serial: String,
}

/// An issued, journalled token.
pub(crate) struct IssuedJwt {
    pub(crate) token: String,
    pub(crate) issued_at: UnixTime,
    pub(crate) expires_at: UnixTime,
}

impl AuthorityManager {
    /// Issues leaves. They are in the journal before this returns.
    pub(crate) async fn issue(
        &self,
        requests: Vec<IssueRequest>,
        now: UnixTime,
    ) -> Result<Vec<Issued>, Finding> {
        let current = self.current();
        let kind = requests.first().map_or("x509", |r| r.kind);
        let sign = move || -> Result<(Vec<Issued>, Vec<JournalRecord>), Finding> {
            let signing = current
                .find(AuthorityKind::Signing, AuthorityStatus::Active)
                .filter(|a| a.record.not_after > now)
                .ok_or_else(|| {
                    Finding::new(Code::AuthorityExpiring, "no signing CA is valid at this time")
                })?;
            let (Some(key), Some(info)) = (&signing.key, &signing.info) else {
                return Err(Finding::new(Code::InternalError, "the signing CA has no key"));
            };
            let mut out = Vec::with_capacity(requests.len());
            let mut records = Vec::with_capacity(requests.len());
            for request in requests {
                let issued = sign_leaf(
                    request.id,
                    &request.spki,
                    &request.dns_names,
                    request.ttl,
                    key,
                    info,
                    &signing.record.chain,
                    now,
                )?;
                records.push(JournalRecord {
                    kind: request.kind,
                    spiffe_id: issued.id.clone(),
                    serial: issued.serial.clone(),
                    issued_at: now,
                    not_after: issued.not_after,
                    issued_to: request.issued_to,
                });
                out.push(issued);
            }
            Ok((out, records))
        };
        let (out, records) = tokio::task::spawn_blocking(sign)
            .await
            .map_err(|e| Finding::new(Code::InternalError, e.to_string()))??;
        let n = out.len() as u64;
        match self.store.append_journal(records).await {
            Ok(()) => {
                self.metrics.issued(kind, Outcome::Success, n);
                Ok(out)
            }
            Err(e) => {
                self.metrics.issued(kind, Outcome::Failure, n);
                Err(e.finding())
            }
        }
    }

    /// Issues a JWT-SVID; journalled by the hash of the token.
    pub(crate) async fn issue_jwt(
        &self,
        id: &SpiffeId,
        audience: &[String],
        ttl: Duration,
        issued_to: String,
        now: UnixTime,
    ) -> Result<IssuedJwt, Finding> {
        let current = self.current();
        let authority = current
            .find(AuthorityKind::Jwt, AuthorityStatus::Active)
            .filter(|a| a.record.not_after > now)
            .ok_or_else(|| Finding::new(Code::AuthorityExpiring, "no JWT key is valid now"))?;
        let key = authority
            .key
            .as_ref()
            .ok_or_else(|| Finding::new(Code::InternalError, "the JWT key is missing"))?;
        let algorithm = match key.algorithm() {
            SignatureAlgorithm::EcdsaP384Sha384 => "ES384",
            SignatureAlgorithm::RsaSha256 => "RS256",
            _ => "ES256",
        };
        // A token never outlives the key that vouches for it.
        let expires_at = (now + ttl).min(authority.record.not_after);
        let request =
            SigningRequest::new(id, audience, now, expires_at, &authority.record.key_id, algorithm)
                .map_err(|e| e.finding())?;
        let signature = key
            .sign_jws(request.bytes())
            .and_then(Result::ok)
            .ok_or_else(|| Finding::new(Code::InternalError, "cannot sign"))?;
        let token = request.assemble(&signature);
        self.store
            .append_journal(vec![JournalRecord {
                kind: "jwt",
                spiffe_id: id.clone(),
                serial: hex(&sha256(token.as_bytes())),
                issued_at: now,
                not_after: expires_at,
                issued_to,
            }])
            .await
            .map_err(|e| e.finding())?;
        self.metrics.issued("jwt", Outcome::Success, 1);
        Ok(IssuedJwt { token, issued_at: now, expires_at })
    }
}

#[allow(clippy::too_many_arguments)]
fn sign_leaf(
    id: SpiffeId,
    spki: &[u8],
    dns_names: &[DnsName],
    ttl: Duration,
    key: &PrivateKey,
    issuer: &CertInfo,
    issuer_chain: &[Vec<u8>],
    now: UnixTime,
) -> Result<Issued, Finding> {
    let bad = |e: &dyn std::fmt::Display| Finding::new(Code::CsrInvalid, e.to_string());
    let spec = CertSpec {
        profile: Profile::Leaf,
        serial: countersign_keys::random(),
        id: &id,
        dns_names,
        common_name: "",
        not_before: now - Duration::from_secs(BACKDATE_SECS),
        not_after: now + ttl,
        spki_der: spki,
        issuer: Some(issuer),
        signature_algorithm: key.algorithm(),
    };
    let tbs = spec.to_be_signed().map_err(|e| bad(&e))?;
    let signature = key.sign(tbs.bytes()).map_err(|e| bad(&e))?;
    let leaf = tbs.assemble(&signature).map_err(|e| bad(&e))?;
    let mut chain = vec![leaf];
    chain.extend(issuer_chain.iter().cloned());
    Ok(Issued { id, chain, not_after: tbs.not_after, serial: tbs.serial })
}
