//! Path validation against the public x509-limbo cases, name checks off.
//!
//! What must never happen is that a path is accepted which the suite refuses. The exceptions are listed
//! with their reason; a case that leaves the list or joins it fails the test.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod suites;

use countersign_identity::UnixTime;
use countersign_x509::{CertificateDer, Crls, pem, verify_path};
use serde_json::Value;
use suites::{judge, vectors};

/// Cases, by the beginning of their names, that the suite refuses and path validation alone accepts.
const ACCEPTED_HERE: &[(&str, &str)] = &[
    // Judged elsewhere in this crate, where identity is added to the path.
    ("crl::issuer-missing-crlsign", "`TrustStore::verify` demands cRLSign of issuers of CRLs"),
    ("rfc5280::eku::ee-wrong-eku", "`spiffe_leaf` judges the leaf's extended key usage"),
    ("rfc5280::leaf-ku-keycertsign", "`spiffe_leaf` judges the leaf's key usage"),
    ("rfc5280::validity::expired-root", "`TrustStore::verify` leaves out roots that ended"),
    ("rfc5280::root-missing-basic-constraints", "`TrustStore::new` refuses roots that are no CAs"),
    // The anchor's certificate is only a carrier of name and key (RFC 5280 section 6.1.1).
    ("rfc5280::root-", "form of the anchor's certificate"),
    ("rfc5280::unknown-critical-extension-root", "form of the anchor's certificate"),
    ("rfc5280::aki::cross-signed-root-missing-aki", "form of the anchor's certificate"),
    ("rfc5280::ski::root-missing-ski", "form of the anchor's certificate"),
    ("webpki::aki::root-", "form of the anchor's certificate"),
    ("webpki::eku::root-has-eku", "form of the anchor's certificate"),
    ("webpki::forbidden-rsa-not-divisible-by-8-in-root", "form of the anchor's certificate"),
    // Rules for issuers, whose breach gives nobody a wrong identity.
    ("crl::crlnumber-", "form of the list"),
    ("rfc5280::aki::", "key identifiers only help to find a path"),
    ("rfc5280::ski::", "key identifiers only help to find a path"),
    ("rfc5280::pc::", "policy constraints' criticality"),
    ("rfc5280::nc::permitted-dns-match-noncritical", "name constraints' criticality"),
    ("rfc5280::nc::not-allowed-in-ee-", "constraints in a leaf constrain nothing"),
    ("rfc5280::serial::", "serial numbers of unusual size"),
    ("rfc5280::ca-empty-subject", "form of an issuer's name"),
    // About DNS and IP names, common names and the Web PKI's profile, which X509-SVID does not use.
    ("rfc5280::nc::invalid-dnsname-leading-period", "DNS names"),
    ("rfc5280::san::", "DNS names"),
    ("webpki::cn::", "common names"),
    ("webpki::san::", "DNS names"),
    ("webpki::nc::", "the Web PKI's profile"),
    ("webpki::eku::", "the Web PKI's profile"),
    ("webpki::malformed-aia", "the Web PKI's profile"),
    ("webpki::forbidden-", "the leaf's key is used, and judged, by the handshake"),
    // Depth is bounded by this crate, not by the caller.
    ("pathlen::max-chain-depth-", "a depth that the caller sets"),
    ("pathological::nc-dos-3", "the library's budget is larger than the suite's"),
];

fn ders(value: &Value) -> Option<Vec<Vec<u8>>> {
    value
        .as_array()?
        .iter()
        .map(|v| Some(pem::parse(v.as_str()?.as_bytes()).ok()?.remove(0).der))
        .collect()
}

fn accepts(case: &Value) -> Option<bool> {
    let roots = ders(&case["trusted_certs"])?;
    let intermediates = ders(&case["untrusted_intermediates"])?;
    let peer = pem::parse(case["peer_certificate"].as_str()?.as_bytes()).ok()?.remove(0).der;
    let lists = ders(&case["crls"])?;
    let now = match case["validation_time"].as_str() {
        Some(t) => UnixTime::parse(t)?,
        None => UnixTime::from_secs(1_735_000_000),
    };
    let roots: Vec<CertificateDer<'_>> = roots.iter().map(|r| r.as_slice().into()).collect();
    let mut anchors = Vec::new();
    for root in &roots {
        match webpki::anchor_from_trusted_cert(root) {
            Ok(anchor) => anchors.push(anchor),
            Err(_) => return Some(false),
        }
    }
    let intermediates: Vec<CertificateDer<'_>> =
        intermediates.iter().map(|c| c.as_slice().into()).collect();
    let peer = CertificateDer::from(peer.as_slice());
    let Ok(peer) = webpki::EndEntityCert::try_from(&peer) else { return Some(false) };
    let Ok(crls) = Crls::from_ders(lists.iter().map(Vec::as_slice)) else { return Some(false) };
    Some(verify_path(&peer, &anchors, &intermediates, now, &crls, None).is_ok())
}

#[test]
fn nothing_that_the_suite_refuses_is_accepted() {
    let Some(path) = vectors("limbo-without-bettertls.json") else { return };
    let doc: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let judged = doc["testcases"].as_array().unwrap().iter().map(|case| {
        let name = case["id"].as_str().unwrap();
        (name, case["expected_result"] == "SUCCESS", accepts(case))
    });
    judge(judged, ACCEPTED_HERE);
}
