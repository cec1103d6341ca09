//! Public vectors: Istio's path normalization as Envoy answers it, Istio's tables of what a document may say.
//! They are read in place; where they are missing the test says so, and under CI it fails.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_policy::{Normalization, normalize_as, parse};
use serde_json::Value;

fn vectors(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("COUNTERSIGN_VECTORS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors")),
        PathBuf::from,
    );
    let path = dir.join(name);
    if path.exists() {
        return Some(path);
    }
    let missing = format!("{} is missing", path.display());
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{missing}");
    eprintln!("SKIPPED: {missing}");
    None
}

#[test]
fn pn_1_to_5_every_pair_of_the_corpus() {
    let Some(path) = vectors("path-normalization.json") else { return };
    let pairs: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(pairs.len(), 345);
    for pair in pairs {
        let mode = match pair["mode"].as_str().unwrap() {
            "NONE" => Normalization::None,
            "BASE" => Normalization::Base,
            "MERGE_SLASHES" => Normalization::MergeSlashes,
            "DECODE_AND_MERGE_SLASHES" => Normalization::DecodeAndMergeSlashes,
            other => panic!("{other}"),
        };
        let input = pair["in"].as_str().unwrap();
        let got = normalize_as(input, mode).map_or_else(|_| "400".into(), |p| p.into_owned());
        assert_eq!(got, pair["envoy_1_40"].as_str().unwrap(), "{mode:?} {input}");
        // Strict is the strictest mode, or a refusal.
        if mode == Normalization::DecodeAndMergeSlashes
            && let Ok(strict) = normalize_as(input, Normalization::Strict)
        {
            assert_eq!(strict, got, "{input}");
        }
    }
}

/// Where the archive of Istio's test data was unpacked.
fn istio() -> Option<tempfile::TempDir> {
    let archive = vectors("istio-policy-testdata.tgz")?;
    let dir = tempfile::tempdir().unwrap();
    let tar = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(dir.path()).status();
    assert!(tar.unwrap().success(), "tar unpacks it");
    Some(dir)
}

fn files(dir: &Path, ending: &str) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.to_str().unwrap().ends_with(ending))
        .map(|p| {
            let name = p.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(p).unwrap())
        })
        .collect();
    out.sort();
    assert!(!out.is_empty(), "{}", dir.display());
    out
}

/// Facts of Envoy's own filters do not exist here; such a condition is refused, which is stricter.
fn without_envoy_filters(text: &str) -> String {
    let mut out = String::new();
    let mut skipping = false;
    for line in text.lines() {
        let item = line.trim_start().starts_with("- key:");
        skipping = line.contains("experimental.envoy.filters")
            || skipping && !item && line.trim_start().starts_with(['v', 'n']);
        if !skipping {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[test]
fn istios_tables_of_good_and_bad_documents() {
    let Some(dir) = istio() else { return };
    let crds = dir.path().join("pkg/config/validation/testdata/crds");
    for kind in ["authz", "peerauth", "reqauth"] {
        let valid = std::fs::read_to_string(crds.join(format!("{kind}-valid.yaml"))).unwrap();
        let valid = without_envoy_filters(&valid);
        if let Err(e) = parse(&valid, kind) {
            panic!("{kind}: {e}");
        }
        let invalid = std::fs::read_to_string(crds.join(format!("{kind}-invalid.yaml"))).unwrap();
        for document in invalid.split("\n---\n") {
            let (notes, document): (Vec<&str>, Vec<&str>) =
                document.lines().partition(|l| l.starts_with("_err:") || l.starts_with('#'));
            let document = document.join("\n");
            if document.contains("kind:") {
                assert!(parse(&document, kind).is_err(), "{notes:?}\n{document}");
            }
        }
    }
}

#[test]
fn istios_authorization_policies_are_understood() {
    let Some(dir) = istio() else { return };
    let mut read = 0;
    for protocol in ["http", "tcp"] {
        let inputs = dir.path().join("pilot/pkg/security/authz/builder/testdata").join(protocol);
        for (name, text) in files(&inputs, "-in.yaml") {
            if let Err(e) = parse(&without_envoy_filters(&text), &name) {
                panic!("{name}: {e}");
            }
            read += 1;
        }
    }
    assert!(read > 15, "{read}");
}

#[test]
fn istios_peer_authentications_are_understood() {
    let Some(dir) = istio() else { return };
    let inputs = dir.path().join("pilot/pkg/serviceregistry/ambient/testdata");
    for (name, text) in files(&inputs, "-in.yaml") {
        if let Err(e) = parse(&without_envoy_filters(&text), &name) {
            panic!("{name}: {e}");
        }
    }
}
