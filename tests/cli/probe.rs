//! `probe` against real servers: a certificate that is revoked while it is in use.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use countersign_testkit::{Story, TestCa, raw_tls};
use countersign_tls::current_time;
use countersign_x509::{CertInfo, RevocationList, hex, pem};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::kit::{Home, serving};

/// When a server looks at its revocation list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    Never,
    AtFullHandshakes,
    AtHandshakes,
    AtRequests,
}

fn revoked(list: &Path) -> HashSet<String> {
    let Ok(text) = std::fs::read(list) else { return HashSet::new() };
    let block = pem::parse(&text).unwrap().remove(0);
    let list = RevocationList::parse(&block.der).unwrap();
    list.revoked.iter().map(|(serial, _)| hex(serial)).collect()
}

/// An HTTP server, until the test ends.
fn serve(ca: &TestCa, list: PathBuf, looks: Looks) -> String {
    let acceptor = raw_tls::strict_server(&ca.story(Story::Good, "/api"), &ca.root);
    serving(move |listener| async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, list) = (acceptor.clone(), list.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let leaf = raw_tls::client_leaf(&stream).unwrap();
                let serial = CertInfo::parse(&leaf).unwrap().serial;
                let is_revoked = || revoked(&list).contains(&serial);
                let full = !raw_tls::is_resumed(&stream);
                let at_handshake = match looks {
                    Looks::Never => false,
                    Looks::AtFullHandshakes => full,
                    Looks::AtHandshakes | Looks::AtRequests => true,
                };
                if at_handshake && is_revoked() {
                    return;
                }
                let mut buf = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buf).await {
                    if looks == Looks::AtRequests && is_revoked() {
                        return;
                    }
                    let close = String::from_utf8_lossy(&buf[..n]).contains("onnection: close");
                    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
                    let _ = stream.write_all(answer.as_bytes()).await;
                    if close {
                        let _ = stream.shutdown().await;
                        return;
                    }
                }
            });
        }
    })
}

struct Files {
    cert: String,
    key: String,
    list: PathBuf,
}

fn files(home: &Home, ca: &TestCa) -> Files {
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let (cert, key) = (path("ca.pem"), path("ca.key"));
    std::fs::write(&cert, pem::encode("CERTIFICATE", &ca.intermediate)).unwrap();
    let pkcs8 = ca.intermediate_key.pkcs8();
    std::fs::write(&key, pem::encode("PRIVATE KEY", pkcs8.expose_pkcs8())).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    Files { cert, key, list: home.path("server-crl.pem") }
}

/// The cases of `revocation/`, with what came of them, and the rules of the findings that are about it.
fn probe(home: &Home, files: &Files, address: &str, command: &[&str]) -> (Value, Vec<String>) {
    let mut args = vec!["probe", address, "--server-name", "localhost", "-o", "json"];
    args.extend(["--protocol", "http", "--ca-cert", &files.cert, "--ca-key", &files.key]);
    args.extend(["--id", "spiffe://corp.test/web", "--revoke", "--revoke-within", "1s", "--"]);
    args.extend(command);
    let out = home.run(&args);
    let report: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&out.stderr)));
    let rules = report["findings"].as_array().unwrap().iter();
    let rules = rules.map(|f| f["rule"].as_str().unwrap().to_owned());
    let rules = rules.filter(|rule| rule.contains("live-revoked")).collect();
    (report, rules)
}

fn outcome(report: &Value, case: &str) -> String {
    let case = report["cases"].as_array().unwrap().iter().find(|c| c["id"] == case);
    case.map_or_else(|| "not there".into(), |c| c["outcome"].as_str().unwrap().to_owned())
}

#[test]
fn a_certificate_revoked_while_in_use_is_told_apart_by_when_the_server_looks() {
    let home = Home::new();
    let ca = TestCa::new("corp.test", current_time());
    let files = files(&home, &ca);
    let copy = format!("cp $COUNTERSIGN_PROBE_CRL {}", files.list.display());
    let command = ["sh", "-c", &copy];
    let (yes, no) = ("accepted", "refused");
    let rule = |shape: &str| format!("server-client-cert-unverified/live-revoked{shape}");
    for (looks, full, resumed, open, findings) in [
        (Looks::Never, yes, yes, yes, vec![rule("")]),
        (Looks::AtFullHandshakes, no, yes, yes, vec![rule("-resumed"), rule("-open")]),
        (Looks::AtHandshakes, no, no, yes, vec![rule("-open")]),
        (Looks::AtRequests, no, no, no, vec![]),
    ] {
        let _ = std::fs::remove_file(&files.list);
        let address = serve(&ca, files.list.clone(), looks);
        let (report, found) = probe(&home, &files, &address, &command);
        let seen =
            ["full", "resumed", "open"].map(|c| outcome(&report, &format!("revocation/{c}")));
        assert_eq!(seen, [full, resumed, open], "{looks:?}: {report:#}");
        assert_eq!(found, findings, "{looks:?}: {report:#}");
        assert!(report["connections"].as_u64().unwrap() <= 100, "{looks:?}");
    }
}

#[test]
fn a_list_in_force_is_taken_over_and_one_of_another_ca_refused() {
    let home = Home::new();
    let ca = TestCa::new("corp.test", current_time());
    let files = files(&home, &ca);
    let address = serve(&ca, files.list.clone(), Looks::AtRequests);
    let copy = format!("cp $COUNTERSIGN_PROBE_CRL {}", files.list.display());
    let _ = probe(&home, &files, &address, &["sh", "-c", &copy]);
    let first = revoked(&files.list);
    assert_eq!(first.len(), 1);
    let list = files.list.to_str().unwrap();
    let args = ["probe", &address, "--server-name", "localhost", "--protocol", "http", "--revoke"];
    let given = ["--ca-cert", &files.cert, "--ca-key", &files.key, "--crl", list];
    let mine = ["--id", "spiffe://corp.test/web", "--", "sh", "-c", &copy];
    let all: Vec<&str> = args.iter().chain(&given).chain(&mine).copied().collect();
    let out = home.run(&all);
    assert!(out.status.code() == Some(10) || out.status.code() == Some(0), "{out:?}");
    let second = revoked(&files.list);
    assert!(second.len() == 2 && second.is_superset(&first), "{first:?} {second:?}");
    // A list of somebody else; no command; a command that fails.
    let stranger = TestCa::new("other.test", current_time());
    let other = Home::new();
    let theirs = self::files(&other, &stranger);
    let given = ["--ca-cert", &theirs.cert, "--ca-key", &theirs.key, "--crl", list];
    let all: Vec<&str> = args.iter().chain(&given).chain(&["--", "true"]).copied().collect();
    crate::fails(&home, &all, 2, &["no list of"]);
    let given = ["--ca-cert", &files.cert, "--ca-key", &files.key];
    let all: Vec<&str> = args.iter().chain(&given).copied().collect();
    crate::fails(&home, &all, 2, &["COMMAND"]);
    let failing = ["--", "sh", "-c", "echo no such server >&2; exit 3"];
    let all: Vec<&str> = args.iter().chain(&given).chain(&failing).copied().collect();
    let out = home.run(&all);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{told}");
    assert!(told.contains("no such server") && told.contains("COUNTERSIGN_PROBE_CRL"), "{told}");
    let cases = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(cases.contains("client/wrong-ca"), "what was found is told all the same: {cases}");
    crate::fails(&home, &["probe", &address, "--", "true"], 2, &["--revoke"]);
}
