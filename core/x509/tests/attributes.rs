//! Subject attributes and private extensions, from certificates of an independent encoder.

#![allow(clippy::unwrap_used)]
use countersign_x509::{CertInfo, sha256};
use rcgen::{CertificateParams, CustomExtension, DnType, DnValue, KeyPair, PublicKeyData};

#[test]
fn what_policies_can_name() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["web.corp.test".to_owned()]).unwrap();
    let name = &mut params.distinguished_name;
    name.push(DnType::CommonName, "web-1");
    name.push(DnType::OrganizationalUnitName, DnValue::Utf8String("Zahlung, Köln".into()));
    let mut extension = |oid: &[u64], bytes: &[u8]| {
        params.custom_extensions.push(CustomExtension::from_oid_content(oid, bytes.to_vec()));
    };
    extension(&[1, 3, 6, 1, 4, 1, 99999, 1], b"\x0c\x04prod");
    extension(&[1, 3, 6, 1, 4, 1, 99999, 2], b"plain text");
    extension(&[1, 3, 6, 1, 4, 1, 99999, 3], b"\x01\x01\xff");
    extension(&[1, 3, 6, 1, 4, 1, 99999, 4], b"\x00\x01\x02");
    extension(&[1, 3, 6, 1, 4, 1, 99999, 5], &[b'a'; 5000]);
    let info = CertInfo::parse(params.self_signed(&key).unwrap().der()).unwrap();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert!(info.subject_attributes.contains(&pair("CN", "web-1")));
    assert!(info.subject_attributes.contains(&pair("OU", "Zahlung, Köln")));
    assert_eq!(
        info.private_extensions,
        [
            pair("1.3.6.1.4.1.99999.1", "prod"),
            pair("1.3.6.1.4.1.99999.2", "plain text"),
            pair("1.3.6.1.4.1.99999.3", "true"),
            pair("1.3.6.1.4.1.99999.4", "000102"),
        ],
        "what is too long is left out"
    );
    assert_eq!(info.dns_sans, ["web.corp.test"]);
    assert_eq!(info.spki_sha256, sha256(&key.subject_public_key_info()));
}
