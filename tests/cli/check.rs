//! `check` on files: what each says, and how the command leaves.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use countersign_identity::X509Svid;
use countersign_testkit::{Story, TestCa};
use countersign_tls::current_time;
use countersign_x509::pem;
use serde_json::Value;

use crate::kit::Home;

fn write(home: &Home, name: &str, blocks: &[(&str, &[u8])]) -> String {
    let text: String = blocks.iter().map(|(label, der)| pem::encode(label, der)).collect();
    let path: PathBuf = home.path(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

fn chain(home: &Home, name: &str, certs: &[Vec<u8>]) -> String {
    let blocks: Vec<(&str, &[u8])> = certs.iter().map(|c| ("CERTIFICATE", c.as_slice())).collect();
    write(home, name, &blocks)
}

/// Runs it, and gives the checks that did not succeed as `(result, code, description)`.
fn check(home: &Home, paths: &[&str]) -> (Option<i32>, Vec<(String, String, String)>) {
    let args: Vec<&str> = ["check", "-o", "json"].iter().chain(paths).copied().collect();
    let out = home.run(&args);
    let value: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    assert_eq!(value["schema"], "countersign.check/v1");
    let mut bad = Vec::new();
    for category in value["categories"].as_array().unwrap() {
        for c in category["checks"].as_array().unwrap() {
            let text = |name: &str| c[name].as_str().unwrap_or_default().to_owned();
            if c["result"] != "success" {
                assert!(!text("error").is_empty() && !text("hint").is_empty(), "{c}");
                bad.push((text("result"), text("code"), text("description")));
            }
        }
    }
    assert_eq!(value["success"], bad.iter().all(|(r, ..)| r != "error"));
    (out.status.code(), bad)
}

#[test]
fn files_that_are_well() {
    let home = Home::new();
    let ca = TestCa::new("corp.test", current_time());
    let X509Svid { chain: certs, key, .. } = ca.issue("/web");
    let cert = chain(&home, "cert.pem", &certs);
    let key = write(&home, "key.pem", &[("PRIVATE KEY", key.expose_pkcs8())]);
    let bundle = chain(&home, "bundle.pem", std::slice::from_ref(&ca.root));
    assert_eq!(check(&home, &[&cert, &key, &bundle]), (Some(0), Vec::new()));
    let text = home.ok(&["check", &cert, &key, &bundle]);
    assert!(text.contains("ok   ") && text.ends_with("0 failed, 0 warnings\n"), "{text}");
    let short = home.ok(&["check", "--short", &cert, &key, &bundle]);
    assert_eq!(short.lines().count(), 1, "{short}");
}

#[test]
fn each_symptom_has_its_name() {
    let home = Home::new();
    let now = current_time();
    let ca = TestCa::new("corp.test", now);
    let bundle = chain(&home, "bundle.pem", std::slice::from_ref(&ca.root));
    let story = |story: Story| chain(&home, "story.pem", &ca.story(story, "/web").chain);
    for (which, code) in [
        (Story::Expired, "CS1001"),
        (Story::NotYetValid, "CS1002"),
        (Story::MissingIntermediate, "CS1004"),
        (Story::CaAsLeaf, "CS1009"),
    ] {
        let (exit, bad) = check(&home, &[&story(which), &bundle]);
        assert_eq!(exit, Some(10), "{which:?}");
        assert!(bad.iter().any(|(r, c, _)| r == "error" && c == code), "{which:?}: {bad:?}");
    }
    // A renewal that should have come by now, and one that is overdue.
    for (left, result, exit) in [(900, "warning", 0), (100, "error", 10)] {
        let begin = now - Duration::from_secs(3600 - left);
        let late = chain(&home, "late.pem", &ca.issue_at("/web", begin, 3600).chain);
        let (got, bad) = check(&home, &[&late, &bundle]);
        assert_eq!((got, bad.len()), (Some(exit), 1), "{bad:?}");
        assert_eq!((bad[0].0.as_str(), bad[0].1.as_str()), (result, "CS6002"));
    }
    let other = TestCa::new("corp.test", now);
    let good = chain(&home, "good.pem", &ca.issue("/web").chain);
    let foreign = chain(&home, "foreign.pem", std::slice::from_ref(&other.root));
    let (_, bad) = check(&home, &[&good, &foreign]);
    assert_eq!(bad[0].1, "CS1003", "a root of that name, and another key: {bad:?}");
    // A key of another certificate, and one that everybody can read.
    let strange = ca.issue("/other");
    let key = write(&home, "key.pem", &[("PRIVATE KEY", strange.key.expose_pkcs8())]);
    let (exit, bad) = check(&home, &[&good, &key, &bundle]);
    assert_eq!((exit, bad[0].1.as_str()), (Some(10), "CS1010"), "{bad:?}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (exit, bad) = check(&home, &[&key]);
    assert_eq!((exit, bad[0].1.as_str()), (Some(10), "CS5004"), "{bad:?}");
}

#[test]
fn services_that_end_together_and_policies() {
    let home = Home::new();
    let ca = TestCa::new("corp.test", current_time());
    let bundle = chain(&home, "bundle.pem", std::slice::from_ref(&ca.root));
    let certs: Vec<String> =
        (0..3).map(|i| chain(&home, &format!("{i}.pem"), &ca.issue("/web").chain)).collect();
    let mut paths: Vec<&str> = certs.iter().map(String::as_str).collect();
    paths.push(&bundle);
    let (exit, bad) = check(&home, &paths);
    assert_eq!((exit, bad.len()), (Some(0), 1), "{bad:?}");
    assert!(bad[0].2.contains("different times"));
    let args: Vec<&str> = ["check", "--fail-on", "warning"].iter().chain(&paths).copied().collect();
    assert_eq!(home.run(&args).status.code(), Some(10));

    let policy = home.path("p.yaml");
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namespace: shop}\nspec: {rules: [{}]}\n";
    std::fs::write(&policy, text).unwrap();
    let (_, bad) = check(&home, &[policy.to_str().unwrap()]);
    assert!(bad.iter().any(|(_, code, _)| code == "CS5101"), "{bad:?}");
}

#[test]
fn what_cannot_be_read_never_passes() {
    let home = Home::new();
    for (name, text, exit, code) in [
        ("a.pem", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", 1, "CS5013"),
        ("b.pem", "nothing\n", 1, "CS5013"),
        ("c.yaml", "kind: Pod\n", 2, "CS50"),
    ] {
        std::fs::write(home.path(name), text).unwrap();
        crate::fails(&home, &["check", home.path(name).to_str().unwrap()], exit, &[code, name]);
    }
    crate::fails(&home, &["check", "/nowhere.pem"], 1, &["CS5005"]);
}
