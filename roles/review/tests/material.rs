//! Keys, certificates and requests, beside each other and in images.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;

use countersign_identity::{PrivateKeyDer, UnixTime};
use countersign_keys::{KeyAlgorithm, PrivateKey, Signer};
use countersign_review::{Catalogue, Issue, Options, Report, review};
use countersign_testkit::{Story, TestCa, TestIdentity};
use countersign_x509::{csr, pem};

fn now() -> UnixTime {
    UnixTime::parse("2026-11-22T00:00:00Z").unwrap()
}

fn look(path: &Path) -> Report {
    let catalogue = Box::leak(Box::new(Catalogue::built_in().unwrap()));
    let paths = vec![path.to_owned()];
    let today = "2026-11-22".into();
    let options = Options { paths, everything: true, now: now(), today, threads: 1 };
    review(catalogue, &options, &|_, _| {}).unwrap()
}

/// Findings of `rule`, as `file: message`.
fn found(report: &Report, rule: &str) -> Vec<String> {
    let of_rule = |i: &&Issue| i.rule == rule;
    let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    report
        .issues
        .iter()
        .filter(of_rule)
        .map(|i| format!("{}: {}", name(&i.path), i.message))
        .collect()
}

fn put(dir: &Path, name: &str, text: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn chain(identity: &TestIdentity) -> String {
    identity.chain.iter().map(|c| pem::encode("CERTIFICATE", c)).collect()
}

fn key(key: &PrivateKeyDer) -> String {
    pem::encode("PRIVATE KEY", key.expose_pkcs8())
}

#[test]
fn a_key_and_the_certificate_beside_it_belong_together_or_not() {
    let ca = TestCa::new("corp.test", now());
    let (a, b) = (ca.story(Story::Good, "/a"), ca.story(Story::Good, "/b"));
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "good/tls.crt", chain(&a));
    put(dir.path(), "good/tls.key", key(&a.key));
    // As certbot lays them out, a chain without the leaf among them; and beside a CA.
    put(dir.path(), "bot/privkey.pem", key(&b.key));
    put(dir.path(), "bot/fullchain.pem", chain(&b));
    put(dir.path(), "bot/chain.pem", pem::encode("CERTIFICATE", &ca.intermediate));
    put(dir.path(), "bot/cert.pem", pem::encode("CERTIFICATE", &b.chain[0]));
    // Settings hold a CA and a key of another use.
    let settings =
        format!("ca: |\n{}jwt_key: |\n{}", pem::encode("CERTIFICATE", &a.chain[0]), key(&b.key));
    put(dir.path(), "app.yaml", settings);
    put(dir.path(), "one/both.pem", chain(&b) + &key(&b.key));
    let report = look(dir.path());
    assert!(found(&report, "weak-cert/key-mismatch").is_empty(), "{:?}", report.issues);
    put(dir.path(), "bad/tls.crt", chain(&a));
    put(dir.path(), "bad/tls.key", key(&ca.story(Story::Good, "/c").key));
    let rsa = PrivateKey::generate(KeyAlgorithm::Rsa2048).unwrap();
    put(dir.path(), "rsa/both.pem", chain(&b) + &key(rsa.pkcs8()));
    let report = look(dir.path());
    let all = found(&report, "weak-cert/key-mismatch");
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(
        all[0].starts_with("tls.key: the key in") && all[0].contains("spiffe://corp.test/a"),
        "{all:?}"
    );
    let issue = report.issues.iter().find(|i| i.rule == "weak-cert/key-mismatch").unwrap();
    assert!(issue.related[0].path.ends_with("bad/tls.crt"), "{issue:?}");
}

#[test]
fn the_key_of_a_ca_is_worse_than_others() {
    let ca = TestCa::new("corp.test", now());
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "pki/root.pem", pem::encode("CERTIFICATE", &ca.root));
    put(dir.path(), "pki/root.key", key(ca.root_key.pkcs8()));
    put(dir.path(), "pki/web.key", key(&ca.story(Story::Good, "/web").key));
    let report = look(dir.path());
    let keys: Vec<&Issue> =
        report.issues.iter().filter(|i| i.rule == "key-material-committed/pem").collect();
    let severities: Vec<&str> = keys.iter().map(|i| i.severity.as_str()).collect();
    assert_eq!(severities, ["critical", "high"]);
    assert!(keys[0].message.contains("of the CA"), "{}", keys[0].message);
}

#[test]
fn chains_close_or_say_where_they_break() {
    let ca = TestCa::new("corp.test", now());
    let good = ca.story(Story::Good, "/a");
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "good.pem", chain(&good));
    put(dir.path(), "leaf-only.pem", pem::encode("CERTIFICATE", &good.chain[0]));
    put(dir.path(), "bundle.pem", pem::encode("CERTIFICATE", &ca.root));
    let report = look(dir.path());
    assert!(found(&report, "weak-cert/chain").is_empty(), "{:?}", report.issues);
    // The root behind the leaf instead of the intermediate.
    let gap = pem::encode("CERTIFICATE", &good.chain[0]) + &pem::encode("CERTIFICATE", &ca.root);
    put(dir.path(), "gap.pem", gap);
    // The CA was made anew under the same name.
    let again = TestCa::new("corp.test", now());
    put(dir.path(), "renewed/leaf.pem", pem::encode("CERTIFICATE", &good.chain[0]));
    put(dir.path(), "renewed/ca.pem", pem::encode("CERTIFICATE", &again.intermediate));
    let all = found(&look(dir.path()), "weak-cert/chain");
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].starts_with("gap.pem: the issuer of") && all[0].contains("Test Intermediate"));
    assert!(all[1].starts_with("leaf.pem:") && all[1].contains("another"), "{all:?}");
}

#[test]
fn one_key_in_two_services_is_one_identity() {
    let ca = TestCa::new("corp.test", now());
    let (a, b) = (ca.story(Story::Good, "/a"), ca.story(Story::Good, "/b"));
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "api/tls.key", key(&a.key));
    put(dir.path(), "web/tls.key", key(&b.key));
    put(dir.path(), "api/copy-in-the-same-place.pem", key(&a.key));
    assert!(found(&look(dir.path()), "identity-binding-absent/shared-identity").is_empty());
    put(dir.path(), "web/config.yaml", format!("key: |\n  {}", key(&a.key).replace('\n', "\n  ")));
    let all = found(&look(dir.path()), "identity-binding-absent/shared-identity");
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(all[0].contains("/api") && all[0].contains("/web"), "{all:?}");
}

#[test]
fn requests_that_ask_for_what_is_weak() {
    let dir = tempfile::tempdir().unwrap();
    let ec = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let good = csr::create(ec.public_key_spki(), ec.algorithm(), |b| ec.sign(b)).unwrap();
    put(dir.path(), "good.csr", &good);
    let made = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "api.corp.test");
        change(&mut params);
        params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    };
    let uri = |text: &str| rcgen::SanType::URI(text.try_into().unwrap());
    put(
        dir.path(),
        "peer.csr",
        made(&|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
    );
    put(
        dir.path(),
        "names.csr",
        pem::encode(
            "CERTIFICATE REQUEST",
            &made(&|p| {
                p.subject_alt_names =
                    vec![uri("spiffe://corp.test/a"), uri("spiffe://corp.test/b")];
            }),
        ),
    );
    put(dir.path(), "none.csr", made(&|_| {}));
    // Kubernetes names users so; and what is to become a CA may ask for it.
    put(
        dir.path(),
        "user.csr",
        made(&|p| p.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters")),
    );
    put(
        dir.path(),
        "root-ca.csr",
        made(&|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
    );
    let all = found(&look(dir.path()), "weak-cert/csr");
    let expected = [
        ("names.csr", "asks for 2 URI SANs"),
        ("none.csr", "in no subject alternative name"),
        ("peer.csr", "asks for a CA"),
    ];
    assert_eq!(all.len(), expected.len(), "{all:?}");
    for ((file, what), said) in expected.iter().zip(&all) {
        assert!(said.starts_with(file) && said.contains(what), "{all:?}");
    }
}

/// A tar file of these.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        out.append_data(&mut header, name, *bytes).unwrap();
    }
    out.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

#[test]
fn keys_in_the_layers_of_an_image_also_those_that_are_removed_later() {
    let ca = TestCa::new("corp.test", now());
    let (kept, removed) = (ca.story(Story::Good, "/kept"), ca.story(Story::Good, "/removed"));
    let (kept, removed) = (key(&kept.key), key(&removed.key));
    let first = tar(&[
        ("etc/ssl/private/kept.key", kept.as_bytes()),
        ("root/build.key", removed.as_bytes()),
        ("usr/bin/tool", b"\x7fELF\0-----BEGIN PRIVATE KEY-----"),
    ]);
    let second = tar(&[("root/.wh.build.key", b""), ("etc/motd", b"hello")]);
    let dir = tempfile::tempdir().unwrap();
    // As `docker save` writes it: the later layer may come first in the file.
    let manifest =
        br#"[{"Config":"c.json","RepoTags":["api:1"],"Layers":["aaa/layer.tar","bbb/layer.tar"]}]"#;
    let docker = tar(&[
        ("bbb/layer.tar", &second),
        ("aaa/layer.tar", &first),
        ("c.json", b"{}"),
        ("manifest.json", manifest),
    ]);
    put(dir.path(), "docker.tar", &docker);
    // As an OCI layout, its layers compressed, the whole too.
    let digest = |bytes: &[u8]| countersign_x509::hex(&countersign_x509::sha256(bytes));
    let layers = [gzip(&first), gzip(&second)];
    let (a, b) = (digest(&layers[0]), digest(&layers[1]));
    let of_image = format!(r#"{{"layers":[{{"digest":"sha256:{a}"}},{{"digest":"sha256:{b}"}}]}}"#);
    let named = |hex: &str| format!("blobs/sha256/{hex}");
    let oci = tar(&[
        (&named(&b), &layers[1]),
        (&named(&digest(of_image.as_bytes())), of_image.as_bytes()),
        (&named(&a), &layers[0]),
        ("index.json", b"{}"),
    ]);
    put(dir.path(), "oci.tar.gz", gzip(&oci));
    let report = look(dir.path());
    assert!(report.unreadable.is_empty(), "{:?}", report.unreadable);
    for image in ["docker.tar", "oci.tar.gz"] {
        let of_it: Vec<&Issue> = report
            .issues
            .iter()
            .filter(|i| i.path.contains(image) && i.rule.ends_with("/pem"))
            .collect();
        let paths: Vec<&str> = of_it.iter().map(|i| i.path.split("!/").nth(1).unwrap()).collect();
        assert_eq!(paths, ["etc/ssl/private/kept.key", "root/build.key"], "{image}");
        assert!(!of_it[0].message.contains("removes it"), "{}", of_it[0].message);
        assert!(of_it[1].message.contains("a later layer removes it"), "{}", of_it[1].message);
    }
    // Two images with the same key share an identity.
    assert_eq!(found(&report, "identity-binding-absent/shared-identity").len(), 2);
}

/// Only what is in the file `name`.
fn of(report: &Report, name: &str) -> Vec<String> {
    let keys = report.issues.iter().filter(|i| i.rule == "key-material-committed/pem");
    let paths = keys.filter_map(|i| i.path.split_once(name).map(|(_, rest)| rest.to_owned()));
    paths.collect()
}

fn told(report: &Report) -> Vec<&str> {
    report.unreadable.iter().map(|u| u.reason.as_str()).collect()
}

#[test]
fn what_is_no_archive_or_a_damaged_one_does_not_pass() {
    let ca = TestCa::new("corp.test", now());
    let pem = key(&ca.story(Story::Good, "/a").key);
    let good = tar(&[("etc/tls.key", pem.as_bytes()), ("etc/motd", &[b'x'; 4000])]);
    let dir = tempfile::tempdir().unwrap();
    // A key before the damage is there all the same.
    put(dir.path(), "cut.tar", &good[..good.len() - 3000]);
    put(dir.path(), "layer.tar", tar(&[("x/layer.tar", &good[..good.len() - 3000])]));
    let report = look(dir.path());
    assert_eq!(of(&report, "cut.tar"), ["!/etc/tls.key"], "{:?}", report.issues);
    assert_eq!(of(&report, "layer.tar"), ["!/x/layer.tar!/etc/tls.key"]);
    assert_eq!(report.unreadable.len(), 2, "{:?}", report.unreadable);
    // No archive, whatever its name; and a blob that is a text.
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "no.tar", &pem);
    put(dir.path(), "blobs/sha256/text", &pem);
    let report = look(dir.path());
    assert_eq!(told(&report), ["no tar file, or compressed in a way that is not known"]);
    assert_eq!(of(&report, "blobs/sha256/text"), [""]);
    // A tar file from before there was a magic.
    let mut old = good.clone();
    for header in [0, 512 * (1 + pem.len().div_ceil(512))] {
        old[header + 257..header + 265].fill(0);
        old[header + 148..header + 156].fill(b' ');
        let sum: u32 = old[header..header + 512].iter().map(|b| u32::from(*b)).sum();
        old[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    put(dir.path(), "v7.tar", &old);
    assert_eq!(of(&look(dir.path()), "v7.tar"), ["!/etc/tls.key"]);
}

#[test]
fn archives_are_bounded_and_their_names_are_clean() {
    let ca = TestCa::new("corp.test", now());
    let pem = key(&ca.story(Story::Good, "/a").key);
    let dir = tempfile::tempdir().unwrap();
    // Compressed again and again.
    let mut bomb = gzip(b"x");
    for _ in 0..20 {
        bomb = gzip(&bomb);
    }
    put(dir.path(), "bomb.tar.gz", bomb);
    // A name of 3 GiB that compresses to nothing: not read into memory.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_path("././@LongLink").unwrap();
    header.set_size(3 << 30);
    header.set_cksum();
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(header.as_bytes()).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..64 {
        out.write_all(&zeros).unwrap();
    }
    put(dir.path(), "name.tar.gz", out.finish().unwrap());
    let report = look(dir.path());
    assert_eq!(report.unreadable.len(), 2, "{:?}", report.unreadable);
    assert_eq!(told(&report)[0], "compressed again and again");
    // Names that would forge lines of a report; descriptions that hold keys; archives in a layer.
    let inner = tar(&[("k.key", pem.as_bytes())]);
    let odd = tar(&[
        ("etc/x\n::error::forged tls.key", pem.as_bytes()),
        ("app/account.json", format!("{{\"private_key\": {pem:?}}}").as_bytes()),
        ("opt/backup.tar", &inner),
        ("usr/lib/python3/site-packages/test.key", pem.as_bytes()),
    ]);
    put(dir.path(), "odd.tar", &odd);
    let report = look(dir.path());
    assert!(report.issues.iter().all(|i| !i.path.contains('\n')), "{:?}", report.issues);
    let all = of(&report, "odd.tar");
    assert!(all.contains(&"!/app/account.json".to_owned()), "{all:?}");
    assert!(all.contains(&"!/opt/backup.tar!/k.key".to_owned()), "{all:?}");
    assert_eq!(all.len(), 4, "`everything` also looks at other people's: {all:?}");
}

#[test]
fn zstandard_frame_after_frame() {
    let ca = TestCa::new("corp.test", now());
    let pem = key(&ca.story(Story::Good, "/a").key);
    let whole = tar(&[("etc/motd", b"hello"), ("etc/tls.key", pem.as_bytes())]);
    let frame = |bytes: &[u8]| {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(bytes, level)
    };
    let (first, second) = whole.split_at(1024);
    let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.tar.zst", [skipped, frame(first), frame(second)].concat());
    let report = look(dir.path());
    assert_eq!(of(&report, "a.tar.zst"), ["!/etc/tls.key"], "{:?}", report.unreadable);
}
