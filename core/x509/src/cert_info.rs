//! What a certificate says, extracted once.

use countersign_identity::UnixTime;
use der::{Decode, Encode};
use x509_cert::Certificate;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, NameConstraints,
    SubjectAltName, SubjectKeyIdentifier,
};

use crate::{attributes, hex, sha256};

/// The facts of one certificate. Parsed, not judged: an expired or self-made certificate has them too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertInfo {
    /// Serial number, lower-case hexadecimal without leading zero octet.
    pub serial: String,
    /// Subject in RFC 4514 form, most specific part first.
    pub subject: String,
    /// Issuer in RFC 4514 form.
    pub issuer: String,
    /// Subject, DER; what path building compares.
    pub subject_der: Vec<u8>,
    /// Issuer, DER.
    pub issuer_der: Vec<u8>,
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity.
    pub not_after: UnixTime,
    /// URI SANs, as written.
    pub uri_sans: Vec<String>,
    /// DNS SANs, as written.
    pub dns_sans: Vec<String>,
    /// IP SANs, printed.
    pub ip_sans: Vec<String>,
    /// Number of SANs of other kinds.
    pub other_sans: usize,
    /// Whether the SAN extension is critical.
    pub san_critical: bool,
    /// `basicConstraints.cA`.
    pub is_ca: bool,
    /// `basicConstraints.pathLenConstraint`.
    pub path_len: Option<u8>,
    /// Key usage, if the extension is there.
    pub key_usage: Option<KeyUsageFacts>,
    /// Extended key usages as dotted OIDs, if the extension is there.
    pub extended_key_usage: Option<Vec<String>>,
    /// Whether there are name constraints.
    pub has_name_constraints: bool,
    /// Subject key identifier.
    pub ski: Option<Vec<u8>>,
    /// Authority key identifier.
    pub aki: Option<Vec<u8>>,
    /// SubjectPublicKeyInfo, DER.
    pub spki_der: Vec<u8>,
    /// `ecdsa-p256`, `rsa-2048`, … or the OID.
    pub key_type: String,
    /// Signature algorithm, named or as OID.
    pub signature_algorithm: String,
    /// Subject attributes that are text, by short name (`CN`, `O`, `OU`) or OID, in order.
    pub subject_attributes: Vec<(String, String)>,
    /// Number of common names in the subject, those included that are not text.
    pub common_names: usize,
    /// Extensions that X.509 does not define, by OID: their text, or their bytes in hex.
    pub private_extensions: Vec<(String, String)>,
    /// SHA-256 of SubjectPublicKeyInfo: the pin of its key.
    pub spki_sha256: [u8; 32],
    /// SHA-256 of the whole certificate.
    pub sha256: [u8; 32],
}

/// The key usage bits that matter to SPIFFE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUsageFacts {
    /// `digitalSignature`.
    pub digital_signature: bool,
    /// `keyCertSign`.
    pub key_cert_sign: bool,
    /// `cRLSign`.
    pub crl_sign: bool,
    /// Whether the extension is critical.
    pub critical: bool,
}

/// The bytes are not an X.509 v3 certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate: {0}")]
pub struct ParseError(pub(crate) String);

impl CertInfo {
    /// `id-kp-serverAuth`.
    pub const SERVER_AUTH: &'static str = "1.3.6.1.5.5.7.3.1";
    /// `id-kp-clientAuth`.
    pub const CLIENT_AUTH: &'static str = "1.3.6.1.5.5.7.3.2";
    /// `anyExtendedKeyUsage`.
    pub const ANY_USAGE: &'static str = "2.5.29.37.0";

    /// Parses one DER certificate; trailing bytes are an error.
    pub fn parse(der: &[u8]) -> Result<Self, ParseError> {
        let fail = |e: der::Error| ParseError(e.to_string());
        let cert = Certificate::from_der(der).map_err(fail)?;
        let tbs = cert.tbs_certificate();
        let san = tbs.get_extension::<SubjectAltName>().map_err(fail)?;
        let mut uri_sans = Vec::new();
        let mut dns_sans = Vec::new();
        let mut ip_sans = Vec::new();
        let mut other_sans = 0;
        let san_critical = san.as_ref().is_some_and(|(critical, _)| *critical);
        for name in san.iter().flat_map(|(_, san)| &san.0) {
            match name {
                GeneralName::UniformResourceIdentifier(uri) => uri_sans.push(uri.to_string()),
                GeneralName::DnsName(dns) => dns_sans.push(dns.to_string()),
                GeneralName::IpAddress(ip) => ip_sans.push(print_ip(ip.as_bytes())),
                _ => other_sans += 1,
            }
        }
        let constraints = tbs.get_extension::<BasicConstraints>().map_err(fail)?;
        let key_usage =
            tbs.get_extension::<KeyUsage>().map_err(fail)?.map(|(critical, ku)| KeyUsageFacts {
                digital_signature: ku.digital_signature(),
                key_cert_sign: ku.key_cert_sign(),
                crl_sign: ku.crl_sign(),
                critical,
            });
        let extended_key_usage = tbs
            .get_extension::<ExtendedKeyUsage>()
            .map_err(fail)?
            .map(|(_, eku)| eku.0.iter().map(ToString::to_string).collect());
        let spki = tbs.subject_public_key_info();
        let spki_der = spki.to_der().map_err(fail)?;
        Ok(Self {
            subject_attributes: attributes::subject(tbs),
            common_names: attributes::common_names(tbs),
            private_extensions: attributes::private_extensions(tbs),
            spki_sha256: sha256(&spki_der),
            serial: hex(strip_leading_zero(tbs.serial_number().as_bytes())),
            subject: tbs.subject().to_string(),
            issuer: tbs.issuer().to_string(),
            subject_der: tbs.subject().to_der().map_err(fail)?,
            issuer_der: tbs.issuer().to_der().map_err(fail)?,
            not_before: to_time(&tbs.validity().not_before),
            not_after: to_time(&tbs.validity().not_after),
            uri_sans,
            dns_sans,
            ip_sans,
            other_sans,
            san_critical,
            is_ca: constraints.as_ref().is_some_and(|(_, bc)| bc.ca),
            path_len: constraints.and_then(|(_, bc)| bc.path_len_constraint),
            key_usage,
            extended_key_usage,
            has_name_constraints: tbs.get_extension::<NameConstraints>().map_err(fail)?.is_some(),
            ski: tbs
                .get_extension::<SubjectKeyIdentifier>()
                .map_err(fail)?
                .map(|(_, ski)| ski.0.as_bytes().to_vec()),
            aki: tbs
                .get_extension::<AuthorityKeyIdentifier>()
                .map_err(fail)?
                .and_then(|(_, aki)| aki.key_identifier)
                .map(|id| id.as_bytes().to_vec()),
            spki_der,
            key_type: key_type(spki),
            signature_algorithm: signature_name(&cert.signature_algorithm().oid.to_string()),
            sha256: sha256(der),
        })
    }

    /// Whether issuer and subject are the same name: a root, or a certificate made by itself.
    pub fn is_self_issued(&self) -> bool {
        self.subject_der == self.issuer_der
    }

    /// Names the certificate for people: its SPIFFE ID if it has one, else its subject.
    pub fn display_name(&self) -> String {
        match self.uri_sans.as_slice() {
            [one] => one.clone(),
            _ if self.subject.is_empty() => format!("serial {}", self.serial),
            _ => self.subject.clone(),
        }
    }

    /// Whether the certificate was issued by a key with this identifier, as far as identifiers tell.
    pub fn may_be_issued_by(&self, issuer: &CertInfo) -> bool {
        self.issuer_der == issuer.subject_der
            && match (&self.aki, &issuer.ski) {
                (Some(aki), Some(ski)) => aki == ski,
                _ => true,
            }
    }
}

pub(crate) fn to_time(t: &x509_cert::time::Time) -> UnixTime {
    UnixTime::from_secs(i64::try_from(t.to_unix_duration().as_secs()).unwrap_or(i64::MAX))
}

fn strip_leading_zero(bytes: &[u8]) -> &[u8] {
    match bytes {
        [0, rest @ ..] if !rest.is_empty() => rest,
        _ => bytes,
    }
}

fn print_ip(octets: &[u8]) -> String {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        std::net::Ipv4Addr::from(v4).to_string()
    } else if let Ok(v6) = <[u8; 16]>::try_from(octets) {
        std::net::Ipv6Addr::from(v6).to_string()
    } else {
        format!("0x{}", hex(octets))
    }
}

pub(crate) fn key_type(spki: &x509_cert::spki::SubjectPublicKeyInfoOwned) -> String {
    match spki.algorithm.oid.to_string().as_str() {
        "1.2.840.10045.2.1" => {
            let curve = spki
                .algorithm
                .parameters
                .as_ref()
                .and_then(|p| p.decode_as::<der::asn1::ObjectIdentifier>().ok())
                .map(|o| o.to_string());
            match curve.as_deref() {
                Some("1.2.840.10045.3.1.7") => "ecdsa-p256".into(),
                Some("1.3.132.0.34") => "ecdsa-p384".into(),
                Some("1.3.132.0.35") => "ecdsa-p521".into(),
                Some(other) => format!("ecdsa-{other}"),
                None => "ecdsa".into(),
            }
        }
        "1.2.840.113549.1.1.1" => {
            // RSAPublicKey ::= SEQUENCE { modulus INTEGER, … }: the modulus' length is the key's.
            #[derive(der::Sequence)]
            struct RsaPublicKey {
                modulus: der::asn1::Uint,
                _exponent: der::asn1::Uint,
            }
            RsaPublicKey::from_der(spki.subject_public_key.raw_bytes())
                .map(|k| format!("rsa-{}", k.modulus.as_bytes().len() * 8))
                .unwrap_or_else(|_| "rsa".into())
        }
        "1.3.101.112" => "ed25519".into(),
        other => other.to_owned(),
    }
}

pub(crate) fn signature_name(oid: &str) -> String {
    match oid {
        "1.2.840.10045.4.3.2" => "ecdsa-sha256",
        "1.2.840.10045.4.3.3" => "ecdsa-sha384",
        "1.2.840.10045.4.3.4" => "ecdsa-sha512",
        "1.2.840.10045.4.1" => "ecdsa-sha1",
        "1.2.840.113549.1.1.5" => "rsa-sha1",
        "1.2.840.113549.1.1.11" => "rsa-sha256",
        "1.2.840.113549.1.1.12" => "rsa-sha384",
        "1.2.840.113549.1.1.13" => "rsa-sha512",
        "1.2.840.113549.1.1.10" => "rsa-pss",
        "1.3.101.112" => "ed25519",
        other => other,
    }
    .to_owned()
}
