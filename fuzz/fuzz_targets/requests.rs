//! Requests of any shape against policies that use every field: the index agrees with looking at every rule, strict
//! allows nothing that Istio refuses, and an explanation comes to the same verdict.
#![no_main]
use std::sync::LazyLock;

use countersign_identity::{SpiffeId, TrustDomain};
use countersign_policy::{
    Attributes, Caller, HttpRequest, Mesh, Normalization, PolicySet, Semantics, Workload,
    normalize_as, parse,
};

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: ['corp.test/ns/shop/*', '*/sa/web'], notNamespaces: [bank]}}]
    to: [{operation: {methods: [GET, 'P*'], paths: ['/a/*', '/{*}/b', '/x/{**}'], notPaths: ['*/secret']}}]
  - from: [{source: {namespaces: ['s*'], ipBlocks: [10.0.0.0/8]}}]
    to: [{operation: {hosts: ['*.corp.test', api], ports: ['80', '8080']}}]
    when: [{key: 'request.headers[x-a]', values: ['1', 'v*']}, {key: connection.sni, notValues: [no.test]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ['/admin*'], notMethods: [GET]}}]
  - from: [{source: {notPrincipals: ['*']}}]
    to: [{operation: {ports: ['8080']}}]
";

fn set(semantics: Semantics) -> PolicySet {
    let workload = Workload {
        trust_domain: TrustDomain::new("corp.test").expect("name"),
        namespace: "shop".into(),
        labels: None,
        mesh: Mesh { semantics, normalization: Normalization::Base, ..Mesh::default() },
    };
    PolicySet::compile(&parse(POLICIES, "fuzz").expect("policies"), &workload, 1)
}

static SETS: LazyLock<[PolicySet; 2]> =
    LazyLock::new(|| [set(Semantics::Strict), set(Semantics::Istio)]);

libfuzzer_sys::fuzz_target!(|data: (
    Option<&str>,
    u16,
    [u8; 4],
    Option<(&str, &str, &str, &str)>,
    &str
)| {
    let (id, port, ip, http, sni) = data;
    let id = id.and_then(|id| SpiffeId::parse(id).ok());
    let path = match http {
        Some((_, _, path, _)) => match normalize_as(path, Normalization::Base) {
            Ok(path) => path.split('?').next().unwrap_or_default().to_owned(),
            Err(_) => return,
        },
        None => String::new(),
    };
    let headers: Vec<(&str, &str)> = http
        .iter()
        .flat_map(|(.., fields)| fields.lines().filter_map(|l| l.split_once(':')))
        .collect();
    let a = Attributes {
        caller: id.as_ref().map_or(Caller::Nobody, Caller::Identity),
        certificate: None,
        source_ip: Some(ip.into()),
        remote_ip: Some(ip.into()),
        destination_ip: None,
        destination_port: Some(port),
        sni: (!sni.is_empty()).then_some(sni),
        http: http.map(|(method, host, ..)| HttpRequest {
            method,
            host,
            path: &path,
            headers: &headers,
        }),
        token: None,
        external: None,
    };
    let [strict, istio] = &*SETS;
    for set in [strict, istio] {
        assert_eq!(set.judge(&a).is_allowed(), set.judge_linearly(&a).is_allowed());
        assert_eq!(set.explain(&a).verdict, set.judge(&a));
    }
    assert!(!strict.judge(&a).is_allowed() || istio.judge(&a).is_allowed(), "strict is laxer");
});
