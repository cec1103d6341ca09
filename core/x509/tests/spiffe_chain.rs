//! X509-SVID sections and the causes that must be told apart, on real certificates.

#![allow(clippy::unwrap_used)]
use std::time::Duration;

use countersign_findings::Code;
use countersign_identity::{Bundle, BundleSet, UnixTime};
use countersign_testkit::{Story, TestCa, TestIdentity};
use countersign_x509::{CertInfo, ChainError, Crls, PeerIdentity, PeerRole, TrustStore};
use rustls_pki_types::CertificateDer;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn ca() -> TestCa {
    TestCa::new("corp.test", NOW)
}

fn store(ca: &TestCa) -> TrustStore {
    TrustStore::new(&BundleSet::collect([ca.bundle()]).unwrap(), 1)
        .unwrap()
        .with_known_issuers(std::slice::from_ref(&ca.intermediate))
}

fn verify_at(
    store: &TrustStore,
    chain: &[Vec<u8>],
    role: PeerRole,
    now: UnixTime,
) -> Result<PeerIdentity, ChainError> {
    let ders: Vec<CertificateDer<'_>> =
        chain.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
    store.verify(&ders, role, now, &Crls::default()).map(|p| (*p).clone())
}

fn verdict(story: Story) -> Result<PeerIdentity, ChainError> {
    let ca = ca();
    let TestIdentity { chain, .. } = ca.story(story, "/ns/shop/sa/web");
    verify_at(&store(&ca), &chain, PeerRole::Client, NOW)
}

fn code(story: Story) -> Code {
    verdict(story).expect_err(&format!("{story:?}")).code()
}

#[test]
fn x509_svid_5_1_good_chain_is_accepted_from_both_encoders() {
    assert!(verdict(Story::Good).is_ok());
    let ca = ca();
    let svid = ca.issue("/ns/shop/sa/web");
    let peer = verify_at(&store(&ca), &svid.chain, PeerRole::Server, NOW).unwrap();
    assert_eq!(peer.id(), &svid.id);
    assert_eq!(peer.not_after(), NOW + Duration::from_secs(3600));
    assert_eq!(peer.authority_sha256(), &countersign_x509::sha256(&ca.root));
}

#[test]
fn x509_svid_2_exactly_one_uri_san() {
    assert_eq!(code(Story::TwoUriSans), Code::SeveralUriSans);
    assert_eq!(code(Story::NoUriSan), Code::NoSpiffeId);
    assert_eq!(code(Story::NotASpiffeUri), Code::MalformedSpiffeId);
}

#[test]
fn x509_svid_3_1_leaf_path_is_not_root() {
    assert_eq!(code(Story::RootPath), Code::MalformedSpiffeId);
}

#[test]
fn x509_svid_3_1_the_uri_is_critical_where_the_subject_is_empty() {
    let leaf = CertInfo::parse(&ca().issue("/ns/shop/sa/web").chain[0]).unwrap();
    // The profile never leaves the subject empty, so that the extension need not be critical.
    assert!(!leaf.subject.is_empty() && !leaf.san_critical);
    assert_eq!(leaf.uri_sans, ["spiffe://corp.test/ns/shop/sa/web"]);
}

#[test]
fn x509_svid_3_2_a_ca_never_authenticates() {
    assert_eq!(code(Story::CaAsLeaf), Code::CaUsedAsLeaf);
    let ca = ca();
    let own = [ca.intermediate.clone()];
    let err = verify_at(&store(&ca), &own, PeerRole::Client, NOW).unwrap_err();
    assert_eq!(err.code(), Code::CaUsedAsLeaf);
}

#[test]
fn x509_svid_4_3_key_usage() {
    assert_eq!(code(Story::NoDigitalSignature), Code::WrongKeyUsage);
    assert_eq!(code(Story::LeafMaySignCertificates), Code::WrongKeyUsage);
    assert_eq!(code(Story::LeafMaySignCrls), Code::WrongKeyUsage);
    assert_eq!(code(Story::NoKeyUsage), Code::WrongKeyUsage);
}

#[test]
fn x509_svid_4_1_basic_constraints() {
    assert_eq!(code(Story::CaAsLeaf), Code::CaUsedAsLeaf);
    let ca = ca();
    assert!(CertInfo::parse(&ca.intermediate).unwrap().is_ca);
    assert!(!CertInfo::parse(&ca.issue("/a").chain[0]).unwrap().is_ca);
    // A leaf in an authority's place signs nothing.
    let leaf = ca.issue("/a");
    let bundle = Bundle::of_x509(ca.bundle().trust_domain, [leaf.chain[0].clone()]);
    let refused = BundleSet::collect([bundle]).map(|set| TrustStore::new(&set, 1));
    let trusted = refused
        .ok()
        .and_then(Result::ok)
        .is_some_and(|store| verify_at(&store, &leaf.chain, PeerRole::Client, NOW).is_ok());
    assert!(!trusted);
}

#[test]
fn x509_svid_5_2_what_a_validator_checks() {
    for (story, expected) in [
        (Story::CaAsLeaf, Code::CaUsedAsLeaf),
        (Story::LeafMaySignCertificates, Code::WrongKeyUsage),
        (Story::LeafMaySignCrls, Code::WrongKeyUsage),
        (Story::NotASpiffeUri, Code::MalformedSpiffeId),
        (Story::RootPath, Code::MalformedSpiffeId),
        (Story::TwoUriSans, Code::SeveralUriSans),
    ] {
        assert_eq!(code(story), expected, "{story:?}");
    }
}

#[test]
fn x509_svid_4_4_extended_key_usage_fits_the_role() {
    assert_eq!(code(Story::WrongEku), Code::WrongExtendedKeyUsage);
    assert_eq!(code(Story::ServerOnlyEku), Code::WrongExtendedKeyUsage);
    assert!(verdict(Story::ClientOnlyEku).is_ok());
}

#[test]
fn causes_are_told_apart() {
    assert_eq!(code(Story::Expired), Code::CertificateExpired);
    assert_eq!(code(Story::NotYetValid), Code::CertificateNotYetValid);
    assert_eq!(code(Story::WrongCa), Code::UnknownAuthority);
    assert_eq!(code(Story::MissingIntermediate), Code::MissingIntermediate);
    assert_eq!(code(Story::WrongTrustDomain), Code::WrongTrustDomain);
}

#[test]
fn a_missing_intermediate_is_named() {
    let err = verdict(Story::MissingIntermediate).unwrap_err();
    assert!(err.to_string().contains("Test Intermediate"), "{err}");
    let finding = err.finding();
    assert!(finding.trusted.unwrap().contains("corp.test"));
    assert!(finding.presented.unwrap().contains("spiffe://corp.test/ns/shop/sa/web"));
}

#[test]
fn skew_is_measured() {
    let hint = verdict(Story::NotYetValid).unwrap_err().finding().hint;
    assert!(hint.contains("1800 s"), "{hint}");
}

#[test]
fn empty_garbage_and_endless_chains() {
    let ca = ca();
    let store = store(&ca);
    let empty = verify_at(&store, &[], PeerRole::Client, NOW).unwrap_err();
    assert_eq!(empty.code(), Code::NoClientCertificate);
    let garbage = verify_at(&store, &[vec![1, 2, 3]], PeerRole::Client, NOW).unwrap_err();
    assert_eq!(garbage.code(), Code::MalformedCertificate);
    let long = vec![ca.issue("/a").chain[0].clone(); 50];
    let long = verify_at(&store, &long, PeerRole::Client, NOW).unwrap_err();
    assert_eq!(long.code(), Code::ChainConstraintViolated);
}

#[test]
fn the_cache_never_outlives_time_or_role() {
    let ca = ca();
    let store = store(&ca);
    let svid = ca.issue("/a");
    let at = |role, secs| verify_at(&store, &svid.chain, role, NOW + Duration::from_secs(secs));
    assert!(at(PeerRole::Client, 0).is_ok());
    assert!(at(PeerRole::Client, 3600).is_ok(), "last second");
    assert_eq!(at(PeerRole::Client, 3601).unwrap_err().code(), Code::CertificateExpired);
    let early = verify_at(&store, &svid.chain, PeerRole::Client, NOW - Duration::from_secs(60));
    assert_eq!(early.unwrap_err().code(), Code::CertificateNotYetValid);
    // A leaf cached for one role is judged anew for the other.
    let client_only = ca.story(Story::ClientOnlyEku, "/b").chain;
    assert!(verify_at(&store, &client_only, PeerRole::Client, NOW).is_ok());
    let err = verify_at(&store, &client_only, PeerRole::Server, NOW).unwrap_err();
    assert_eq!(err.code(), Code::WrongExtendedKeyUsage);
}

#[test]
fn a_remembered_intermediate_does_not_vouch_for_forgeries() {
    let ca = ca();
    let store = store(&ca);
    assert!(verify_at(&store, &ca.issue("/a").chain, PeerRole::Client, NOW).is_ok());
    // Same issuer name, wrong key, our genuine intermediate appended.
    let mut forged = ca.story(Story::WrongCa, "/b").chain;
    forged[1].clone_from(&ca.intermediate);
    assert!(verify_at(&store, &forged, PeerRole::Client, NOW).is_err());
    // A genuine leaf with one bit of its signature turned.
    let mut altered = ca.issue("/c").chain;
    *altered[0].last_mut().unwrap() ^= 1;
    let err = verify_at(&store, &altered, PeerRole::Client, NOW).unwrap_err();
    assert_eq!(err.code(), Code::BadSignature);
}

#[test]
fn federation_4_2_only_the_named_trust_domains_roots_count() {
    let (a, b) = (ca(), TestCa::new("other.test", NOW));
    let store = TrustStore::new(&BundleSet::collect([a.bundle(), b.bundle()]).unwrap(), 1).unwrap();
    // Names `other.test` but chains to corp.test's root.
    let chain = a.story(Story::WrongTrustDomain, "/x").chain;
    assert!(verify_at(&store, &chain, PeerRole::Client, NOW).is_err());
    let impostor = TestCa { trust_domain: b.trust_domain.clone(), ..ca() };
    let chain = impostor.issue("/x").chain;
    let err = verify_at(&store, &chain, PeerRole::Client, NOW).unwrap_err();
    assert_eq!(err.code(), Code::UnknownAuthority);
}

#[test]
fn an_svid_never_outlives_its_ca() {
    let ca = ca();
    let svid = ca.issue_at("/a", NOW, 10 * 365 * 86_400);
    let leaf = CertInfo::parse(&svid.chain[0]).unwrap();
    let issuer = CertInfo::parse(&ca.intermediate).unwrap();
    assert_eq!(leaf.not_after, issuer.not_after);
}

#[test]
fn profiles_match_the_standard() {
    let ca = ca();
    let leaf = CertInfo::parse(&ca.issue("/ns/shop/sa/web").chain[0]).unwrap();
    assert!(!leaf.is_ca && leaf.path_len.is_none());
    let usage = leaf.key_usage.unwrap();
    assert!(usage.critical && usage.digital_signature && !usage.key_cert_sign && !usage.crl_sign);
    assert_eq!(
        leaf.extended_key_usage.as_deref(),
        Some([CertInfo::SERVER_AUTH.to_owned(), CertInfo::CLIENT_AUTH.to_owned()].as_slice())
    );
    for der in [&ca.root, &ca.intermediate] {
        let info = CertInfo::parse(der).unwrap();
        let usage = info.key_usage.unwrap();
        assert!(info.is_ca && usage.critical && usage.key_cert_sign);
        assert_eq!(info.uri_sans, ["spiffe://corp.test"], "section 3.2: a CA's id has no path");
    }
}

#[test]
fn crls_revoke_and_their_absence_is_not_trusted() {
    use rcgen::{
        CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
        SerialNumber,
    };
    let ca = ca();
    let svid = ca.issue("/a");
    let serial = CertInfo::parse(&svid.chain[0]).unwrap().serial;
    let bytes: Vec<u8> = (0..serial.len() / 2)
        .map(|i| u8::from_str_radix(&serial[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let date = |t: UnixTime| time::OffsetDateTime::from_unix_timestamp(t.secs()).unwrap();
    let list =
        |cert: &[u8], key: &countersign_keys::PrivateKey, revoked: Vec<RevokedCertParams>| {
            let key = KeyPair::try_from(key.pkcs8().expose_pkcs8()).unwrap();
            let issuer = Issuer::from_ca_cert_der(&cert.to_vec().into(), key).unwrap();
            CertificateRevocationListParams {
                this_update: date(NOW),
                next_update: date(NOW + Duration::from_secs(600)),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: revoked,
                key_identifier_method: KeyIdMethod::Sha256,
            }
            .signed_by(&issuer)
            .unwrap()
            .der()
            .to_vec()
        };
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(bytes),
        revocation_time: date(NOW),
        reason_code: None,
        invalidity_date: None,
    };
    let of_root = list(&ca.root, &ca.root_key, vec![]);
    let of_intermediate = list(&ca.intermediate, &ca.intermediate_key, vec![revoked]);
    let empty = list(&ca.intermediate, &ca.intermediate_key, vec![]);
    let check = |lists: &[&Vec<u8>], now| {
        let crls = Crls::from_ders(lists.iter().map(|l| l.as_slice())).unwrap();
        let ders: Vec<CertificateDer<'_>> =
            svid.chain.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
        store(&ca).verify(&ders, PeerRole::Client, now, &crls).map(|_| ()).map_err(|e| e.code())
    };
    assert_eq!(check(&[&of_root, &of_intermediate], NOW), Err(Code::CertificateRevoked));
    assert_eq!(check(&[&of_root, &empty], NOW), Ok(()));
    assert_eq!(check(&[&of_root], NOW), Err(Code::RevocationUnknown));
    let later = NOW + Duration::from_secs(601);
    assert_eq!(check(&[&of_root, &empty], later), Err(Code::RevocationUnknown), "stale list");
}
