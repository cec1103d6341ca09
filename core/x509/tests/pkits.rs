//! Path validation against the Public Key Interoperability Test Suite of NIST.
//!
//! What must never happen is that a path is accepted which the suite refuses. The exceptions are listed
//! with their reason; a case that leaves the list or joins it fails the test.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod suites;

use std::path::Path;
use std::process::Command;

use countersign_identity::UnixTime;
use countersign_x509::{CertificateDer, Crls, verify_path};
use serde_json::Value;
use suites::{judge, vectors};

/// Cases, by the beginning of their names, that the suite refuses and path validation here accepts.
const ACCEPTED_HERE: &[(&str, &str)] = &[
    // Judged elsewhere in this crate, where identity is added to the path.
    ("40701_", "`spiffe_authority` demands keyCertSign of issuers"),
    ("40702_", "`spiffe_authority` demands keyCertSign of issuers"),
    // Policies say how a certificate was issued, not whose it is; X509-SVID does not use them.
    ("408", "certificate policies"),
];

/// Within the validity of the suite's certificates, which ends with 2030.
const NOW: i64 = 1_750_000_000;

/// The files that a case names, in a directory of the suite.
fn files(dir: &Path, names: &Value) -> Vec<Vec<u8>> {
    let names = names.as_array().unwrap().iter().map(|n| n.as_str().unwrap());
    names.map(|n| std::fs::read(dir.join(n)).unwrap_or_else(|e| panic!("{n}: {e}"))).collect()
}

fn accepts(root: &Path, case: &Value) -> bool {
    let anchor = std::fs::read(root.join("certs/TrustAnchorRootCertificate.crt")).unwrap();
    let anchor = CertificateDer::from(anchor);
    let anchors = [webpki::anchor_from_trusted_cert(&anchor).unwrap()];
    let peer = std::fs::read(root.join("certs").join(case["ee"].as_str().unwrap())).unwrap();
    let intermediates = files(&root.join("certs"), &case["intermediates"]);
    let mut lists = files(&root.join("crls"), &case["crls"]);
    lists.push(std::fs::read(root.join("crls/TrustAnchorRootCRL.crl")).unwrap());
    let peer = CertificateDer::from(peer.as_slice());
    let Ok(peer) = webpki::EndEntityCert::try_from(&peer) else { return false };
    let Ok(crls) = Crls::from_ders(lists.iter().map(Vec::as_slice)) else { return false };
    let intermediates: Vec<CertificateDer<'_>> =
        intermediates.iter().map(|c| c.as_slice().into()).collect();
    verify_path(&peer, &anchors, &intermediates, UnixTime::from_secs(NOW), &crls, None).is_ok()
}

#[test]
fn nothing_that_the_suite_refuses_is_accepted() {
    let Some(archive) = vectors("pkits-certs-crls.tgz") else { return };
    let Some(expected) = vectors("pkits-expected.json") else { return };
    let dir = tempfile::tempdir().unwrap();
    let tar = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(dir.path()).status();
    assert!(tar.unwrap().success(), "tar unpacks it");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(expected).unwrap()).unwrap();
    let judged = cases.iter().map(|case| {
        let name = case["test"].as_str().unwrap();
        (name, case["expect"] == "valid", Some(accepts(dir.path(), case)))
    });
    judge(judged, ACCEPTED_HERE);
}
