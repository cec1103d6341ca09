//! Certificates made on the spot: right ones by the CA that was given, and each kind of wrong one. Keys live as
//! long as the probe and are written nowhere.

use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{PrivateKeyDer, SpiffeId, UnixTime};
use countersign_tls::probe::ProbeIdentity;
use countersign_x509::{CertInfo, RevocationList};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber,
};

/// For whom a certificate is made, and what is wrong with it.
#[derive(Clone, Debug)]
pub(crate) struct Story<'a> {
    pub(crate) id: Option<&'a SpiffeId>,
    pub(crate) dns: Option<&'a str>,
    /// A certificate to be like, names and all, instead of `id` and `dns`.
    pub(crate) like: Option<&'a CertInfo>,
    pub(crate) flaw: Flaw,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    Expired,
    NotYetValid,
    /// CA:TRUE, with everything else that a leaf needs: only the flag is judged.
    CaAsLeaf,
    /// Code signing only.
    WrongUsage,
    /// Ends soon.
    EndsIn(Duration),
}

/// Somebody who issues.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What to send besides the leaf.
    above: Vec<Vec<u8>>,
    /// Its subject key identifier, by which its revocation lists are told to be its own.
    key_id: Vec<u8>,
    now: UnixTime,
}

fn broken(what: &str, e: impl std::fmt::Display) -> Finding {
    Finding::new(Code::InvalidValue, format!("{what}: {e}"))
}

impl Authority {
    /// The CA whose certificates the other end trusts; `certificates` begin with the one that issues.
    pub(crate) fn given(
        certificates: &[Vec<u8>],
        key: &PrivateKeyDer,
        now: UnixTime,
    ) -> Result<Self, Finding> {
        let first = certificates
            .first()
            .ok_or_else(|| Finding::new(Code::InvalidValue, "the CA file holds no certificate"))?;
        let pair = KeyPair::try_from(key.expose_pkcs8()).map_err(|e| broken("the CA's key", e))?;
        let info = CertInfo::parse(first).map_err(|e| broken("the CA's certificate", e))?;
        if !info.is_ca {
            let what = format!("`{}` is no CA: servers refuse what it signs", info.display_name());
            return Err(Finding::new(Code::InvalidValue, what)
                .hint("give the certificate that issues, with CA:TRUE, and its key"));
        }
        if info.spki_der != pair.subject_public_key_info() {
            let what = "the CA's key and certificate do not belong together";
            return Err(Finding::new(Code::KeyCertificateMismatch, what));
        }
        let issuer = Issuer::from_ca_cert_der(&first.clone().into(), pair)
            .map_err(|e| broken("the CA's certificate", e))?;
        let key_id = info.ski.clone().unwrap_or_default();
        Ok(Self { issuer, above: certificates.to_vec(), key_id, now })
    }

    /// A CA that nobody trusts; it has the names of `like`, if there is one.
    pub(crate) fn impostor(like: Option<&[u8]>, now: UnixTime) -> Result<Self, Finding> {
        let fail = |e: rcgen::Error| Finding::new(Code::InternalError, e.to_string());
        let key = KeyPair::generate().map_err(fail)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(like) = like.and_then(|der| CertInfo::parse(der).ok()) {
            name_like(&mut params.distinguished_name, &like);
        }
        if params.distinguished_name.iter().next().is_none() {
            params.distinguished_name.push(DnType::CommonName, "countersign probe CA");
        }
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date(now - Duration::from_secs(86_400));
        params.not_after = date(now + Duration::from_secs(86_400));
        let above = vec![params.self_signed(&key).map_err(fail)?.der().to_vec()];
        let issuer = Issuer::new(params, key);
        Ok(Self { issuer, above, key_id: Vec::new(), now })
    }

    /// A certificate by this authority.
    pub(crate) fn issue(&self, story: &Story<'_>) -> Result<ProbeIdentity, Finding> {
        let fail = |e: rcgen::Error| Finding::new(Code::InternalError, e.to_string());
        let key = KeyPair::generate().map_err(fail)?;
        let params = params(story, self.now)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(fail)?;
        let mut chain = vec![leaf.der().to_vec()];
        chain.extend(self.above.iter().cloned());
        Ok(ProbeIdentity { chain, key: PrivateKeyDer::new(key.serialize_der()) })
    }
}

impl Authority {
    /// A revocation list with `certificate` on it, besides those of `already`. DER.
    pub(crate) fn revoke(
        &self,
        certificate: &[u8],
        already: Option<&RevocationList>,
    ) -> Result<Vec<u8>, Finding> {
        let info = CertInfo::parse(certificate).map_err(|e| broken("the certificate", e))?;
        let entry = |serial: &[u8], since: UnixTime| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: date(since),
            reason_code: None,
            invalidity_date: None,
        };
        let mut revoked_certs = vec![entry(&bytes_of(&info.serial), self.now - BACKDATE)];
        for (serial, since) in already.iter().flat_map(|list| &list.revoked) {
            revoked_certs.push(entry(serial, *since));
        }
        // Whoever leaves it in place must not find everybody locked out soon.
        let lasts = self.now + LIST_LASTS;
        let next_update = already.and_then(|list| list.next_update).filter(|t| *t > self.now);
        let number = u64::try_from(self.now.secs()).unwrap_or_default();
        let list = CertificateRevocationListParams {
            this_update: date(self.now - BACKDATE),
            next_update: date(next_update.unwrap_or(lasts)),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::PreSpecified(self.key_id.clone()),
        };
        let signed = list.signed_by(&self.issuer).map_err(|e| match e {
            rcgen::Error::IssuerNotCrlSigner => {
                Finding::new(Code::InvalidValue, "the CA may not sign revocation lists")
                    .hint("give a CA whose key usage has cRLSign")
            }
            e => broken("a revocation list", e),
        })?;
        Ok(signed.der().to_vec())
    }
}

/// For clocks that lag.
const BACKDATE: Duration = Duration::from_secs(60);

/// The life of a list that takes the place of none.
const LIST_LASTS: Duration = Duration::from_secs(30 * 86_400);

/// Of hexadecimal digits.
fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    let pairs = digits.filter_map(|pair| std::str::from_utf8(pair).ok());
    pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

/// A certificate that vouches for itself.
pub(crate) fn self_signed(story: &Story<'_>, now: UnixTime) -> Result<ProbeIdentity, Finding> {
    let fail = |e: rcgen::Error| Finding::new(Code::InternalError, e.to_string());
    let key = KeyPair::generate().map_err(fail)?;
    let leaf = params(story, now)?.self_signed(&key).map_err(fail)?;
    Ok(ProbeIdentity {
        chain: vec![leaf.der().to_vec()],
        key: PrivateKeyDer::new(key.serialize_der()),
    })
}

fn params(story: &Story<'_>, now: UnixTime) -> Result<CertificateParams, Finding> {
    let hour = Duration::from_secs(3600);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    match story.like {
        Some(like) => name_like(&mut params.distinguished_name, like),
        None => {
            let last = story.id.and_then(|id| id.as_str().rsplit('/').next()).or(story.dns);
            let last = last.unwrap_or("countersign-probe");
            params.distinguished_name.push(DnType::CommonName, last);
        }
    }
    params.not_before = date(now - hour);
    params.not_after = date(now + hour);
    params.use_authority_key_identifier_extension = true;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let ia5 = |text: &str| Ia5String::try_from(text).map_err(|e| broken("a name", e));
    for (uri, dns) in story.like.iter().map(|like| (&like.uri_sans, &like.dns_sans)) {
        for uri in uri {
            params.subject_alt_names.push(SanType::URI(ia5(uri)?));
        }
        for dns in dns {
            params.subject_alt_names.push(SanType::DnsName(ia5(dns)?));
        }
    }
    let (id, dns) = match story.like {
        Some(_) => (None, None),
        None => (story.id, story.dns),
    };
    if let Some(id) = id {
        params.subject_alt_names.push(SanType::URI(ia5(id.as_str())?));
    }
    if let Some(name) = dns {
        params.subject_alt_names.push(match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(ia5(name)?),
        });
    }
    match story.flaw {
        Flaw::None => {}
        Flaw::Expired => {
            params.not_before = date(now - hour - hour);
            params.not_after = date(now - hour);
        }
        Flaw::NotYetValid => {
            params.not_before = date(now + hour);
            params.not_after = date(now + hour + hour);
        }
        Flaw::CaAsLeaf => {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        Flaw::WrongUsage => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        }
        Flaw::EndsIn(life) => params.not_after = date(now + life),
    }
    Ok(params)
}

fn name_like(name: &mut rcgen::DistinguishedName, like: &CertInfo) {
    for (kind, value) in &like.subject_attributes {
        let kind = match kind.as_str() {
            "CN" => DnType::CommonName,
            "O" => DnType::OrganizationName,
            "OU" => DnType::OrganizationalUnitName,
            "C" => DnType::CountryName,
            _ => continue,
        };
        name.push(kind, value.as_str());
    }
}

fn date(t: UnixTime) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(t.secs()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}
