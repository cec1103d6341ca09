//! The rules that X509-SVID adds to RFC 5280, for leaves and for authorities.

use countersign_identity::SpiffeId;

use crate::{CertInfo, ChainCause, PeerRole};

/// Checks a leaf against X509-SVID §2–§5.2 and returns its SPIFFE ID.
///
/// Order matters for diagnosis: what the certificate *is* (a CA, no SVID) comes before what it may do.
pub fn spiffe_leaf(cert: &CertInfo, role: PeerRole) -> Result<SpiffeId, ChainCause> {
    if cert.is_ca {
        return Err(ChainCause::CaUsedAsLeaf);
    }
    let uri = match cert.uri_sans.as_slice() {
        [] => {
            return Err(ChainCause::NoSpiffeId { subject: cert.display_name() });
        }
        [one] => one,
        several => return Err(ChainCause::SeveralUriSans(several.to_vec())),
    };
    let id = SpiffeId::parse(uri)
        .map_err(|e| ChainCause::MalformedSpiffeId { uri: uri.clone(), detail: e.to_string() })?;
    if id.is_trust_domain() {
        return Err(ChainCause::MalformedSpiffeId {
            uri: uri.clone(),
            detail: "a workload's id has a path (X509-SVID section 3.1)".into(),
        });
    }
    let Some(usage) = cert.key_usage else {
        return Err(ChainCause::WrongKeyUsage(
            "leaf has no key usage extension (X509-SVID section 4.3)",
        ));
    };
    if usage.key_cert_sign || usage.crl_sign {
        return Err(ChainCause::WrongKeyUsage(
            "leaf may sign certificates or CRLs (X509-SVID section 4.3)",
        ));
    }
    if !usage.digital_signature {
        return Err(ChainCause::WrongKeyUsage(
            "leaf lacks digitalSignature (X509-SVID section 4.3)",
        ));
    }
    if let Some(present) = &cert.extended_key_usage {
        let (oid, needed) = match role {
            PeerRole::Client => (CertInfo::CLIENT_AUTH, "clientAuth"),
            PeerRole::Server => (CertInfo::SERVER_AUTH, "serverAuth"),
        };
        if !present.iter().any(|u| u == oid || u == CertInfo::ANY_USAGE) {
            return Err(ChainCause::WrongExtendedKeyUsage { needed, present: present.clone() });
        }
    }
    Ok(id)
}

/// Checks a certificate that signs others against X509-SVID §3.2, §4.1, §4.3.
pub fn spiffe_authority(cert: &CertInfo) -> Result<(), ChainCause> {
    if !cert.is_ca {
        return Err(ChainCause::Constraint(format!(
            "`{}` issued a certificate but is no CA",
            cert.display_name()
        )));
    }
    // RFC 5280 §4.2.1.3 lets a CA leave the extension out; §4.3 of X509-SVID does not.
    if !cert.key_usage.is_some_and(|u| u.key_cert_sign) {
        return Err(ChainCause::WrongKeyUsage(
            "an issuing certificate lacks keyCertSign (X509-SVID section 4.3)",
        ));
    }
    for uri in &cert.uri_sans {
        if SpiffeId::parse(uri).is_ok_and(|id| !id.is_trust_domain()) {
            return Err(ChainCause::Constraint(format!(
                "signing certificate carries the workload id `{uri}` (X509-SVID section 3.2)"
            )));
        }
    }
    Ok(())
}
