//! Clients without a SPIFFE ID: who is let in, and that nobody else is.

#![allow(clippy::unwrap_used)]
use countersign_findings::Code;
use countersign_identity::UnixTime;
use countersign_testkit::{Story, TestCa, TestIdentity};
use countersign_x509::{CertInfo, CertificateDer, LegacyName, LegacyTrust, hex};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn trust(ca: &TestCa, allowed: &[&str]) -> LegacyTrust {
    let allowed = allowed.iter().map(|n| n.parse().unwrap()).collect();
    LegacyTrust::new(std::slice::from_ref(&ca.root), allowed).unwrap()
}

fn verify(trust: &LegacyTrust, identity: &TestIdentity) -> Result<String, Code> {
    let chain: Vec<CertificateDer<'_>> =
        identity.chain.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
    trust.verify(&chain, NOW).map(|p| p.name().to_owned()).map_err(|e| e.code())
}

#[test]
fn listed_names_are_let_in() {
    let ca = TestCa::new("old.test", NOW);
    let peer = ca.legacy(&["old-billing"], &["Billing.Corp.Test", "b2.corp.test"], &[]);
    let pin = format!("SPKI=sha256:{}", hex(&CertInfo::parse(&peer.chain[0]).unwrap().spki_sha256));
    for name in ["CN=old-billing", "DNS=billing.corp.test", "DNS=B2.corp.test", &pin] {
        let got = verify(&trust(&ca, &["CN=somebody", name]), &peer).unwrap();
        assert_eq!(got.to_lowercase(), name.to_lowercase());
    }
    for name in ["CN=old-billing2", "CN=billing.corp.test", "DNS=old-billing", "DNS=corp.test"] {
        let refused = verify(&trust(&ca, &[name]), &peer);
        assert_eq!(refused.unwrap_err(), Code::IdentityNotAllowed, "{name}");
    }
    let upper = ca.legacy(&["Old-Billing"], &[], &[]);
    assert!(verify(&trust(&ca, &["CN=old-billing"]), &upper).is_err(), "a CN is compared exactly");
    let two = ca.legacy(&["old-billing", "admin"], &[], &[]);
    for name in ["CN=old-billing", "CN=admin"] {
        assert!(verify(&trust(&ca, &[name]), &two).is_err(), "which of two counts is open");
    }
}

#[test]
fn only_what_the_legacy_ca_vouches_for_and_in_its_time() {
    let (ca, other) = (TestCa::new("old.test", NOW), TestCa::new("old.test", NOW));
    let names = ["CN=old-billing", "DNS=web.test"];
    let stranger = other.legacy(&["old-billing"], &[], &[]);
    let refused = verify(&trust(&ca, &names), &stranger).unwrap_err();
    assert!(matches!(refused, Code::UnknownAuthority | Code::BadSignature), "{refused}");
    assert!(verify(&trust(&ca, &names), &ca.story(Story::NoUriSan, "/x")).is_ok());
    for (story, code) in [
        (Story::Expired, Code::CertificateExpired),
        (Story::NotYetValid, Code::CertificateNotYetValid),
        (Story::CaAsLeaf, Code::CaUsedAsLeaf),
        (Story::ServerOnlyEku, Code::WrongExtendedKeyUsage),
        (Story::NoDigitalSignature, Code::WrongKeyUsage),
        (Story::LeafMaySignCertificates, Code::WrongKeyUsage),
    ] {
        let refused = verify(&trust(&ca, &names), &ca.story(story, "/x"));
        assert_eq!(refused.unwrap_err(), code, "{story:?}");
    }
    let mail = ca.limited_to(Story::ServerOnlyEku).legacy(&["old-billing"], &[], &[]);
    let refused = verify(&trust(&ca, &names), &mail);
    assert_eq!(refused.unwrap_err(), Code::WrongExtendedKeyUsage, "an authority for servers");
    let trust = trust(&ca, &names);
    let peer = ca.legacy(&["old-billing"], &[], &[]);
    assert!(verify(&trust, &peer).is_ok());
    trust.replace_roots(std::slice::from_ref(&other.root)).unwrap();
    assert!(verify(&trust, &peer).is_err() && verify(&trust, &stranger).is_ok());
    assert!(
        trust.replace_roots(&[]).is_err() && trust.replace_roots(&[peer.chain[0].clone()]).is_err()
    );
    assert!(verify(&trust, &stranger).is_ok(), "what cannot be used changes nothing");
}

#[test]
fn whoever_claims_a_spiffe_id_is_judged_by_that() {
    let ca = TestCa::new("old.test", NOW);
    for uri in ["spiffe://corp.test/web", "SPIFFE://corp.test/web", "spiffe:x"] {
        let leaf = ca.legacy(&["old-billing"], &[], &["https://a.test/", uri]);
        assert!(!LegacyTrust::concerns(&leaf.chain[0]), "{uri}");
    }
    let web = ca.legacy(&["old-billing"], &[], &["https://a.test/"]);
    assert!(LegacyTrust::concerns(&web.chain[0]));
    assert!(!LegacyTrust::concerns(b"no certificate"));
}

#[test]
fn names_that_name_nobody_exactly() {
    for bad in ["", "x", "CN=", "CN=*", "DNS=*.corp.test", "SPKI=sha256:00", "O=corp", "CN=a\nb"] {
        assert!(bad.parse::<LegacyName>().is_err(), "{bad:?}");
    }
    let ca = TestCa::new("old.test", NOW);
    assert!(LegacyTrust::new(&[ca.root], Vec::new()).is_err(), "nobody is named");
}
