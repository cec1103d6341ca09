//! Clients without a SPIFFE ID, through the real proxy.

use std::time::Duration;

use countersign_policy::{AllowList, Mode, Semantics};
use countersign_proxy::{
    InboundOptions, LegacyOptions, ListenerOptions, PeerMode, Protocol, RunningProxy,
};
use countersign_testkit::{TestCa, TestIdentity, raw_tls};
use countersign_tls::current_time;
use countersign_x509::pem;
use tokio::io::AsyncReadExt;

use crate::http::{ask, connect, mirror};
use crate::kit::{Kit, any, dial};

const GET: &str =
    "GET /a HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: URI=spiffe://corp.test/admin\r\n\r\n";

async fn proxy(kit: &Kit, old: &TestCa, policy: &str) -> RunningProxy {
    let roots = kit.dir.path().join("legacy.pem");
    std::fs::write(&roots, pem::encode("CERTIFICATE", &old.root)).unwrap();
    let listener = ListenerOptions::Inbound(InboundOptions {
        listen: any(),
        forward: mirror().await.to_string(),
        mode: PeerMode::Fixed(Mode::Strict),
        allow: None,
        protocol: Protocol::Http,
    });
    let mut options = kit.options(vec![listener]);
    options.policies = vec![("test.yaml".into(), policy.into())];
    let allowed = vec!["CN=old-billing".parse().unwrap(), "DNS=old.corp.test".parse().unwrap()];
    options.legacy = Some(LegacyOptions { roots, allowed });
    kit.start(options).await.unwrap()
}

/// What a client gets that comes with `identity`.
async fn get(proxy: &RunningProxy, identity: &TestIdentity) -> String {
    let stream = dial(proxy.addresses[0]).await;
    match raw_tls::client(Some(identity)).connect(raw_tls::any_name(), stream).await {
        Ok(mut tls) => ask_quietly(&mut tls).await,
        Err(_) => String::new(),
    }
}

async fn ask_quietly(tls: &mut tokio_rustls::client::TlsStream<tokio::net::TcpStream>) -> String {
    use tokio::io::AsyncWriteExt;
    let mut out = vec![0; 4096];
    if tls.write_all(GET.as_bytes()).await.is_err() {
        return String::new();
    }
    let n = tls.read(&mut out).await.unwrap_or(0);
    String::from_utf8_lossy(&out[..n]).into_owned()
}

/// The first refusal that is recorded after so many records, waiting for it.
async fn refusal_after(kit: &Kit, seen: usize) -> serde_json::Value {
    for _ in 0..250 {
        let records = kit.records.all();
        if let Some(r) = records.iter().skip(seen).find(|r| r["result"] == "failure") {
            return r.clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no refusal in {:?}", kit.records.all())
}

#[tokio::test]
async fn listed_clients_come_in_and_have_no_principal() {
    let kit = Kit::new();
    let old = TestCa::new("old.test", current_time());
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: members, namespace: default}\n\
         spec: {rules: [{from: [{source: {principals: ['*']}}]}, {when: [{key: 'source.certificate.subject[CN]', values: [old-billing]}]}]}\n";
    let proxy = proxy(&kit, &old, policy).await;
    let billing = old.legacy(&["old-billing"], &[], &[]);
    let got = get(&proxy, &billing).await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    let told =
        got.lines().find(|l| l.to_lowercase().starts_with("x-forwarded-client-cert")).unwrap();
    assert!(told.contains("CN=old-billing") && !told.contains("URI="), "{told}");
    // Listed, but no rule of the policies is about it.
    let listed = get(&proxy, &old.legacy(&["x"], &["old.corp.test"], &[])).await;
    assert!(listed.starts_with("HTTP/1.1 403") && listed.contains("CS3002"), "{listed}");
    let denied = refusal_after(&kit, 0).await;
    assert_eq!(denied["code"], "CS3002");
    assert_eq!(denied["source_workload"], "DNS=old.corp.test");
    // Those with a SPIFFE ID come as ever.
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    assert!(ask(&mut tls, GET, "URI=").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_listed_client_is_no_principal_whatever_its_names_say() {
    let kit = Kit::new();
    let old = TestCa::new("old.test", current_time());
    let admin = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: admin, namespace: default}\n\
         spec: {rules: [{from: [{source: {principals: ['corp.test/ns/prod/sa/admin', '*']}}, {source: {namespaces: [prod]}}]}]}\n";
    let roots = kit.dir.path().join("legacy.pem");
    std::fs::write(&roots, pem::encode("CERTIFICATE", &old.root)).unwrap();
    let claim = "spiffe://corp.test/ns/prod/sa/admin";
    let claims = old.legacy(&["old-billing"], &[claim], &["https://x/ns/prod/sa/admin"]);
    for semantics in [Semantics::Strict, Semantics::Istio] {
        for (allow, code) in
            [(None, "CS3002"), (Some("CN=old-billing"), "CS3002"), (Some(""), "CS3003")]
        {
            let listener = ListenerOptions::Inbound(InboundOptions {
                listen: any(),
                forward: mirror().await.to_string(),
                mode: PeerMode::Fixed(Mode::Strict),
                allow: allow.map(|name| {
                    let legacy = vec![name.to_owned()];
                    std::sync::Arc::new(AllowList { ids: Vec::new(), legacy })
                }),
                protocol: Protocol::Http,
            });
            let mut options = kit.options(vec![listener]);
            options.policies = vec![("test.yaml".into(), admin.into())];
            options.mesh.semantics = semantics;
            let allowed = vec!["CN=old-billing".parse().unwrap()];
            options.legacy = Some(LegacyOptions { roots: roots.clone(), allowed });
            let running = kit.start(options).await.unwrap();
            let seen = kit.records.all().len();
            let got = get(&running, &claims).await;
            assert!(!got.starts_with("HTTP/1.1 200"), "{semantics:?} {allow:?}: {got}");
            let denied = refusal_after(&kit, seen).await;
            assert_eq!(denied["code"], code, "{semantics:?} {allow:?}");
        }
    }
}

#[tokio::test]
async fn nobody_else_gets_in_by_the_legacy_ca() {
    let kit = Kit::new();
    let old = TestCa::new("corp.test", current_time());
    let anybody = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: all, namespace: default}\nspec: {rules: [{}]}\n";
    let running = proxy(&kit, &old, anybody).await;
    let id = "spiffe://corp.test/web";
    for (identity, code) in [
        (old.legacy(&["mallory"], &[], &[]), "CS3003"),
        (old.legacy(&["old-billing"], &[], &[id]), "CS1"),
        (TestCa::new("old.test", current_time()).legacy(&["old-billing"], &[], &[]), "CS1"),
        (kit.ca.legacy(&["old-billing"], &[], &[]), "CS1"),
    ] {
        let seen = kit.records.all().len();
        assert_eq!(get(&running, &identity).await, "", "{code}");
        let refused = refusal_after(&kit, seen).await;
        let got = refused["code"].as_str().unwrap();
        assert!(got.starts_with(code), "{got}, not {code}: {refused}");
    }
    // A SPIFFE ID that the trust domain's own CA issued, from the same kit, is another matter.
    assert!(get(&running, &kit.good("/web")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_legacy_root_that_goes_takes_its_connections_along() {
    let kit = Kit::new();
    let old = TestCa::new("old.test", current_time());
    let anybody = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: all, namespace: default}\nspec: {rules: [{}]}\n";
    let running = proxy(&kit, &old, anybody).await;
    let billing = old.legacy(&["old-billing"], &[], &[]);
    let stream = dial(running.addresses[0]).await;
    let mut tls =
        raw_tls::client(Some(&billing)).connect(raw_tls::any_name(), stream).await.unwrap();
    assert!(ask_quietly(&mut tls).await.starts_with("HTTP/1.1 200"));
    let next = TestCa::new("old.test", current_time());
    let path = kit.dir.path().join("legacy.pem");
    std::fs::write(&path, pem::encode("CERTIFICATE", &next.root)).unwrap();
    let mut byte = [0; 1];
    let end = tokio::time::timeout(Duration::from_secs(5), tls.read(&mut byte)).await;
    assert!(end.expect("cut").is_err(), "reset, not closed");
    assert_eq!(get(&running, &billing).await, "");
    let new = next.legacy(&["old-billing"], &[], &[]);
    assert!(get(&running, &new).await.starts_with("HTTP/1.1 200"));
}
