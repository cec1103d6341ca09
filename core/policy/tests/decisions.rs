//! Istio's rules by their ids, on identities that were really verified.

#![allow(clippy::unwrap_used)]
use std::net::{IpAddr, Ipv4Addr};

use countersign_findings::Code;
use countersign_identity::{BundleSet, UnixTime};
use countersign_policy::{
    Attributes, Caller, CertificateFacts, HttpRequest, Labels, Mesh, Mode, NoIdentity, Outcome,
    PolicySet, Request, Semantics, Source, Token, Until, Verdict, Workload, parse,
};
use countersign_testkit::TestCa;
use countersign_x509::{CertificateDer, Crls, PeerIdentity, PeerRole, TrustStore};
use proptest::prelude::*;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn peer(trust_domain: &str, path: &str) -> PeerIdentity {
    let ca = TestCa::new(trust_domain, NOW);
    let store = TrustStore::new(&BundleSet::collect([ca.bundle()]).unwrap(), 1).unwrap();
    let svid = ca.issue(path);
    let chain: Vec<CertificateDer<'_>> = svid.chain.iter().map(|c| c.as_slice().into()).collect();
    (*store.verify(&chain, PeerRole::Client, NOW, &Crls::default()).unwrap()).clone()
}

fn workload() -> Workload {
    Workload {
        trust_domain: "corp.test".parse().unwrap(),
        namespace: "shop".into(),
        labels: Some(Labels::from([("app".into(), "api".into())])),
        mesh: Mesh::default(),
    }
}

fn istio() -> Workload {
    Workload { mesh: Mesh { semantics: Semantics::Istio, ..Mesh::default() }, ..workload() }
}

fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{action: {action}, rules: {rules}}}\n---\n"
    )
}

fn set_for(text: &str, workload: &Workload) -> PolicySet {
    PolicySet::compile(&parse(text, "test").unwrap(), workload, 7)
}

fn set(text: &str) -> PolicySet {
    set_for(text, &workload())
}

fn request<'a>(source: Source<'a>, http: Option<HttpRequest<'a>>) -> Request<'a> {
    Request {
        source,
        source_ip: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
        remote_ip: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
        destination_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        destination_port: 8080,
        sni: None,
        http,
        token: None,
        external: None,
    }
}

fn get(path: &'static str) -> HttpRequest<'static> {
    HttpRequest { method: "GET", host: "api:8080", path, headers: &[("X-A", "1"), ("x-a", "2")] }
}

fn code(set: &PolicySet, r: &Request<'_>) -> Option<Code> {
    set.decide(r).permit().err().map(|d| d.code)
}

#[test]
fn ap_3_order_of_actions() {
    let web = peer("corp.test", "/ns/shop/sa/web");
    let tcp = request(Source::Peer(&web), None);
    let none = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\n";
    assert_eq!(code(&set(none), &tcp), None, "no ALLOW: everything is granted");
    let allow =
        policy("a", "ALLOW", "[{from: [{source: {principals: [corp.test/ns/shop/sa/web]}}]}]");
    assert_eq!(code(&set(&allow), &tcp), None);
    let deny = policy("d", "DENY", "[{to: [{operation: {ports: [\"8080\"]}}]}]");
    assert_eq!(code(&set(&format!("{allow}{deny}")), &tcp), Some(Code::DeniedByPolicy));
    let other = policy("o", "ALLOW", "[{from: [{source: {principals: [corp.test/x]}}]}]");
    assert_eq!(code(&set(&other), &tcp), Some(Code::NotAllowedByPolicy));
    assert_eq!(code(&set(&format!("{other}{allow}")), &tcp), None, "AP-4: a union");
    let audit = policy("u", "AUDIT", "[{}]");
    let audited = set(&audit);
    assert_eq!(code(&audited, &tcp), None);
    assert_eq!(audited.audited(&tcp).into_iter().collect::<Vec<_>>(), ["shop/u"]);
}

#[test]
fn ap_6_absent_attributes() {
    let plain = request(Source::Unauthenticated { reason: NoIdentity::Plaintext }, None);
    let positive = policy("p", "ALLOW", "[{from: [{source: {principals: ['*']}}]}]");
    assert_eq!(code(&set(&positive), &plain), Some(Code::NotAllowedByPolicy));
    let negative = policy("n", "DENY", "[{from: [{source: {notPrincipals: ['*']}}]}]");
    assert_eq!(code(&set(&negative), &plain), Some(Code::DeniedByPolicy));
    let web = peer("corp.test", "/ns/shop/sa/web");
    assert_eq!(code(&set(&negative), &request(Source::Peer(&web), None)), None);
}

#[test]
fn ap_7_empty_specs_and_rules() {
    let web = peer("corp.test", "/ns/shop/sa/web");
    let tcp = request(Source::Peer(&web), None);
    let empty = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: e, namespace: shop}\nspec: {}\n";
    assert_eq!(code(&set(empty), &tcp), Some(Code::NotAllowedByPolicy));
    assert_eq!(code(&set(&policy("a", "ALLOW", "[{}]")), &tcp), None);
    assert_eq!(code(&set(&policy("d", "DENY", "[{}]")), &tcp), Some(Code::DeniedByPolicy));
    assert!(parse(&policy("d", "DENY", "[]"), "t").is_err());
    for bad in [
        "[{from: []}]",
        "[{from: [{source: {}}]}]",
        "[{to: [{operation: {}}]}]",
        "[{when: [{key: source.ip}]}]",
        "[null]",
    ] {
        assert!(parse(&policy("a", "ALLOW", bad), "t").is_err(), "{bad}");
    }
}

#[test]
fn ap_10_http_only_fields_on_tcp() {
    let web = peer("corp.test", "/ns/shop/sa/web");
    let tcp = request(Source::Peer(&web), None);
    let allow = policy("a", "ALLOW", "[{to: [{operation: {methods: [GET]}}]}]");
    assert_eq!(code(&set(&allow), &tcp), Some(Code::NotAllowedByPolicy), "an ALLOW only shrinks");
    let deny = policy("d", "DENY", "[{to: [{operation: {methods: [POST], ports: [\"8080\"]}}]}]");
    assert_eq!(code(&set(&deny), &tcp), Some(Code::DeniedByPolicy), "a DENY never narrows");
    let not = policy("n", "DENY", "[{to: [{operation: {notMethods: [POST]}}]}]");
    assert_eq!(code(&set(&not), &tcp), Some(Code::DeniedByPolicy));
    assert!(set(&deny).needs_http());
}

#[test]
fn ap_15_16_namespaces_mean_the_local_trust_domain_when_they_grant() {
    let allow = set(&policy("a", "ALLOW", "[{from: [{source: {namespaces: [shop]}}]}]"));
    let deny = set(&policy("d", "DENY", "[{from: [{source: {namespaces: [shop]}}]}]"));
    let case = |td: &str, path: &str, set: &PolicySet| {
        code(set, &request(Source::Peer(&peer(td, path)), None))
    };
    assert_eq!(case("corp.test", "/ns/shop/sa/web", &allow), None);
    assert_eq!(case("evil.test", "/ns/shop/sa/web", &allow), Some(Code::NotAllowedByPolicy));
    assert_eq!(case("evil.test", "/ns/shop/sa/web", &deny), Some(Code::DeniedByPolicy));
    assert_eq!(
        case("corp.test", "/ns/bar/sa/q/ns/shop/z", &allow),
        Some(Code::NotAllowedByPolicy),
        "no injection"
    );
    let account =
        set(&policy("s", "ALLOW", "[{from: [{source: {serviceAccounts: [web, other/x]}}]}]"));
    assert_eq!(case("corp.test", "/ns/shop/sa/web", &account), None);
    assert_eq!(case("corp.test", "/ns/other/sa/x", &account), None);
    assert_eq!(case("corp.test", "/ns/other/sa/web", &account), Some(Code::NotAllowedByPolicy));
    let domain = set(&policy(
        "t",
        "ALLOW",
        "[{from: [{source: {trustDomains: ['*.test'], namespaces: [shop]}}]}]",
    ));
    assert_eq!(case("corp.test", "/ns/shop/sa/web", &domain), None);
}

#[test]
fn http_fields_and_conditions() {
    let web = peer("corp.test", "/ns/shop/sa/web");
    let at = |path| request(Source::Peer(&web), Some(get(path)));
    let allow = |rules: &str, path| code(&set(&policy("a", "ALLOW", rules)), &at(path)).is_none();
    assert!(allow(
        "[{to: [{operation: {paths: [/a/*], methods: [GET], hosts: ['api:8080']}}]}]",
        "/a/b"
    ));
    assert!(!allow("[{to: [{operation: {paths: [/a/*], notPaths: ['*/secret']}}]}]", "/a/secret"));
    assert!(allow("[{to: [{operation: {paths: ['/a/{*}/c']}}]}]", "/a/b/c"));
    assert!(
        allow("[{when: [{key: 'request.headers[x-a]', values: ['2']}]}]", "/"),
        "each value by itself"
    );
    assert!(!allow("[{when: [{key: 'request.headers[x-b]', values: ['*']}]}]", "/"));
    assert!(allow("[{when: [{key: source.ip, values: [10.0.0.0/8]}]}]", "/"));
    assert!(!allow("[{when: [{key: source.ip, notValues: [10.0.0.0/8]}]}]", "/"));
    for bad in [
        "[{when: [{key: request.header, values: [a]}]}]",
        "[{when: [{key: 'request.auth.claims', values: [a]}]}]",
        "[{when: [{key: 'request.headers[a b]', values: [a]}]}]",
        "[{when: [{key: 'request.headers[:path]', values: [a]}]}]",
        "[{when: [{key: 'experimental.envoy.filters.a.b[c]', values: [a]}]}]",
        "[{when: [{key: destination.port, values: ['65536']}]}]",
        "[{when: [{key: destination.port, values: ['+80']}]}]",
        "[{when: [{key: remote.ip, values: ['10.0.0.0/33']}]}]",
        "[{from: [{source: {principals: ['spiffe://corp.test/a']}}]}]",
        "[{from: [{source: {principals: ['a*b']}}]}]",
        "[{from: [{source: {serviceAccounts: ['a*']}}]}]",
        "[{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]",
        "[{from: [{source: {trustDomains: [a/b]}}]}]",
        "[{to: [{operation: {paths: ['/a/{*}x']}}]}]",
    ] {
        assert!(parse(&policy("a", "ALLOW", bad), "t").is_err(), "{bad}");
    }
}

fn attributes<'a>(caller: Caller<'a>, http: Option<HttpRequest<'a>>) -> Attributes<'a> {
    Attributes {
        caller,
        certificate: None,
        source_ip: Some([10, 1, 2, 3].into()),
        remote_ip: Some([192, 0, 2, 1].into()),
        destination_ip: Some([127, 0, 0, 1].into()),
        destination_port: Some(8080),
        sni: Some("api.corp.test"),
        http,
        token: None,
        external: None,
    }
}

fn allows(rules: &str, a: &Attributes<'_>) -> bool {
    set(&policy("a", "ALLOW", rules)).judge(a).is_allowed()
}

fn spiffe(uri: &str) -> countersign_identity::SpiffeId {
    countersign_identity::SpiffeId::parse(uri).unwrap()
}

#[test]
fn ap_5_groups_and_fields() {
    let web = spiffe("spiffe://corp.test/ns/shop/sa/web");
    let a = attributes(Caller::Identity(&web), Some(get("/a")));
    assert!(allows(
        "[{from: [{source: {principals: [x/y]}}, {source: {namespaces: [shop]}}]}]",
        &a
    ));
    assert!(!allows("[{from: [{source: {principals: [x/y], namespaces: [shop]}}]}]", &a));
    assert!(allows("[{from: [{source: {namespaces: [z, shop], notPrincipals: [x/y]}}]}]", &a));
    assert!(!allows(
        "[{from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [PUT]}}]}]",
        &a
    ));
    assert!(!allows(
        "[{to: [{operation: {methods: [GET]}}], when: [{key: source.namespace, values: [z]}]}]",
        &a
    ));
}

#[test]
fn ap_9_dry_run_is_reported_and_never_enforced() {
    let web = peer("corp.test", "/ns/shop/sa/web");
    let tcp = request(Source::Peer(&web), None);
    let dry = |action: &str| {
        policy("d", action, "[{from: [{source: {namespaces: [shop]}}]}]").replace(
            "namespace: shop}",
            "namespace: shop, annotations: {istio.io/dry-run: 'true'}}",
        )
    };
    for action in ["ALLOW", "DENY"] {
        let set = set(&dry(action));
        assert_eq!(code(&set, &tcp), None, "{action}");
        assert_eq!(set.audited(&tcp).into_iter().collect::<Vec<_>>(), ["shop/d"]);
    }
    assert!(parse(&dry("DENY").replace("'true'", "'yes'"), "t").is_err());
}

#[test]
fn ap_11_rules_are_named_as_istio_does() {
    let web = spiffe("spiffe://corp.test/ns/shop/sa/web");
    let set = set(&policy("p", "ALLOW", "[{from: [{source: {principals: [x/y]}}]}, {}]"));
    match set.judge(&attributes(Caller::Identity(&web), None)) {
        Verdict::Allow(Some(rule)) => assert_eq!(rule.to_string(), "ns[shop]-policy[p]-rule[1]"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ap_14_one_spiffe_id_or_nobody() {
    let names = ["only.dns.name".to_owned()];
    let two = ["spiffe://corp.test/a".to_owned(), "spiffe://corp.test/ns/shop/sa/web".to_owned()];
    let any = policy("a", "ALLOW", "[{from: [{source: {principals: ['*']}}]}]");
    let web = policy("a", "ALLOW", "[{from: [{source: {principals: ['*/sa/web']}}]}]");
    let istio = istio();
    for (text, names, compat) in
        [(&any, &names[..], true), (&web, &two, true), (&web, &names, false)]
    {
        let a = attributes(Caller::Names(names), None);
        assert!(!set(text).judge(&a).is_allowed(), "strict: {names:?}");
        assert_eq!(set_for(text, &istio).judge(&a).is_allowed(), compat, "istio: {names:?}");
    }
}

#[test]
fn ap_16_a_rule_that_names_trust_domains_means_them() {
    let foreign = spiffe("spiffe://partner.test/ns/shop/sa/web");
    let a = attributes(Caller::Identity(&foreign), None);
    assert!(!allows("[{from: [{source: {namespaces: [shop]}}]}]", &a));
    assert!(allows("[{from: [{source: {namespaces: [shop], trustDomains: [partner.test]}}]}]", &a));
    assert!(allows("[{from: [{source: {namespaces: [shop], principals: [partner.test/*]}}]}]", &a));
    assert!(!allows("[{from: [{source: {namespaces: [shop], principals: ['*']}}]}]", &a));
    assert!(allows(
        "[{from: [{source: {serviceAccounts: [web]}}], when: [{key: source.trustDomain, values: [partner.test]}]}]",
        &a
    ));
    assert!(!allows("[{from: [{source: {serviceAccounts: [web]}}]}]", &a));
    let istio = istio();
    let text = policy("a", "ALLOW", "[{from: [{source: {namespaces: [shop]}}]}]");
    assert!(set_for(&text, &istio).judge(&a).is_allowed(), "Istio does not look");
}

#[test]
fn ap_17_aliases_count_as_the_local_trust_domain() {
    let old = spiffe("spiffe://old.test/ns/shop/sa/web");
    let a = attributes(Caller::Identity(&old), None);
    let aliases = vec!["old.test".parse().unwrap()];
    let aliased = Workload { mesh: Mesh { aliases, ..Mesh::default() }, ..workload() };
    for rules in [
        "[{from: [{source: {principals: [corp.test/ns/shop/sa/web]}}]}]",
        "[{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]",
        "[{from: [{source: {namespaces: [shop]}}]}]",
        "[{from: [{source: {trustDomains: [corp.test]}}]}]",
        "[{when: [{key: source.principal, values: [corp.test/ns/shop/sa/web]}]}]",
    ] {
        let text = policy("a", "ALLOW", rules);
        assert!(!set(&text).judge(&a).is_allowed(), "{rules}");
        assert!(set_for(&text, &aliased).judge(&a).is_allowed(), "{rules}");
    }
    let not =
        policy("d", "DENY", "[{from: [{source: {notPrincipals: [corp.test/ns/shop/sa/web]}}]}]");
    assert!(set_for(&not, &aliased).judge(&a).is_allowed(), "notPrincipals too");
}

#[test]
fn ap_18_19_addresses_and_ports() {
    let a = attributes(Caller::Nobody, None);
    for (field, hit, miss) in [
        ("ipBlocks", "10.0.0.0/8", "192.0.2.0/24"),
        ("remoteIpBlocks", "192.0.2.0/24", "10.0.0.0/8"),
    ] {
        assert!(allows(&format!("[{{from: [{{source: {{{field}: [{hit}]}}}}]}}]"), &a));
        assert!(!allows(&format!("[{{from: [{{source: {{{field}: [{miss}]}}}}]}}]"), &a));
    }
    for (key, hit, miss) in [
        ("source.ip", "10.1.2.3", "192.0.2.1"),
        ("remote.ip", "192.0.2.1", "10.1.2.3"),
        ("destination.ip", "127.0.0.0/8", "10.0.0.0/8"),
        ("destination.port", "8080", "80"),
        ("connection.sni", "'*.corp.test'", "corp.test"),
    ] {
        assert!(
            allows(
                &format!("[{{when: [{{key: {key}, values: [{hit}]}}]}}]")
                    .replace("[8080]", "['8080']"),
                &a
            ),
            "{key}"
        );
        assert!(
            !allows(
                &format!("[{{when: [{{key: {key}, values: [{miss}]}}]}}]")
                    .replace("[80]", "['80']"),
                &a
            ),
            "{key}"
        );
    }
    // What is not known does not match.
    let unknown = Attributes { source_ip: None, destination_port: None, sni: None, ..a };
    assert!(!allows("[{when: [{key: source.ip, values: [0.0.0.0/0]}]}]", &unknown));
    assert!(!allows("[{when: [{key: connection.sni, values: ['*']}]}]", &unknown));
}

#[test]
fn ap_20_21_hosts_and_methods() {
    let host = |host| HttpRequest { host, ..get("/") };
    let deny = set(&policy("d", "DENY", "[{to: [{operation: {hosts: [api.test]}}]}]"));
    let web = spiffe("spiffe://corp.test/ns/shop/sa/web");
    let at = |h| attributes(Caller::Identity(&web), Some(h));
    for h in ["api.test", "API.test:8443", "api.test."] {
        assert!(!deny.judge(&at(host(h))).is_allowed(), "{h}");
    }
    let rules = "[{to: [{operation: {hosts: [api.test]}}]}]";
    assert!(allows(rules, &at(host("Api.Test"))) && !allows(rules, &at(host("api.test:8443"))));
    let rules = "[{to: [{operation: {methods: [GET]}}]}]";
    assert!(allows(rules, &at(get("/"))));
    assert!(!allows(rules, &at(HttpRequest { method: "get", ..get("/") })), "case counts");
    assert!(allows("[{when: [{key: 'request.headers[:method]', values: [GET]}]}]", &at(get("/"))));
}

#[test]
fn request_tokens() {
    let claims = serde_json::json!({
        "iss": "https://idp.test", "sub": "alice", "aud": ["a", "b"], "azp": "app",
        "groups": ["dev"], "realm": {"role": "admin"}, "scope": "read write"
    });
    let token = Token { claims: claims.as_object().unwrap().clone(), space_delimited: vec![] };
    let a = Attributes { token: Some(&token), ..attributes(Caller::Nobody, Some(get("/"))) };
    for (key, hit, miss) in [
        ("request.auth.principal", "https://idp.test/alice", "https://idp.test/bob"),
        ("request.auth.audiences", "b", "c"),
        ("request.auth.presenter", "app", "b"),
        ("request.auth.claims[groups]", "dev", "ops"),
        ("request.auth.claims[realm][role]", "admin", "user"),
        ("request.auth.claims[scope]", "write", "read write"),
    ] {
        let rules = |v: &str| format!("[{{when: [{{key: '{key}', values: ['{v}']}}]}}]");
        assert!(allows(&rules(hit), &a), "{key}");
        assert!(!allows(&rules(miss), &a), "{key}");
        let none = Attributes { token: None, ..a };
        assert!(!allows(&rules("*"), &none), "{key}");
    }
    assert!(allows("[{from: [{source: {requestPrincipals: ['https://idp.test/*']}}]}]", &a));
    assert!(!allows("[{from: [{source: {notRequestPrincipals: ['*']}}]}]", &a));
}

#[test]
fn tcp_drops_an_allow_whole_even_where_one_alternative_is_not_about_http() {
    let web = spiffe("spiffe://corp.test/ns/shop/sa/web");
    let tcp = attributes(Caller::Identity(&web), None);
    let rules = "[{from: [{source: {namespaces: [shop]}}, {source: {requestPrincipals: ['*']}}]}]";
    assert!(!allows(rules, &tcp));
    let deny = |rules: &str| !set(&policy("d", "DENY", rules)).judge(&tcp).is_allowed();
    assert!(deny("[{from: [{source: {namespaces: [x]}}, {source: {requestPrincipals: ['*']}}]}]"));
    assert!(!deny("[{from: [{source: {namespaces: [x], requestPrincipals: ['*']}}]}]"));
    assert!(deny("[{to: [{operation: {ports: ['8080'], notMethods: [GET]}}]}]"));
    assert!(!deny("[{to: [{operation: {ports: ['80'], notMethods: [GET]}}]}]"));
}

#[test]
fn an_explanation_goes_through_every_rule() {
    let web = spiffe("spiffe://corp.test/ns/shop/sa/web");
    let text = policy("n", "DENY", "[{to: [{operation: {ports: ['80']}}]}]")
        + &policy(
            "w",
            "ALLOW",
            "[{to: [{operation: {methods: [PUT]}}]}, {from: [{source: {namespaces: [shop]}}]}]",
        )
        + &policy("e", "ALLOW", "[]");
    let set = set(&text);
    let explained = set.explain(&attributes(Caller::Identity(&web), Some(get("/"))));
    let of = |policy: &str, rule| {
        let step = explained.steps.iter().find(|s| &*s.policy == policy && s.rule == rule);
        step.unwrap().outcome.clone()
    };
    assert_eq!(explained.steps.len(), 4);
    assert_eq!(explained.steps[0].policy.as_ref(), "shop/n", "in the order in which they count");
    let missed = |field: &str, wanted: &str, presented: &str| Outcome::Missed {
        field: field.into(),
        wanted: vec![wanted.into()],
        presented: Some(presented.into()),
    };
    assert_eq!(of("shop/n", Some(0)), missed("ports", "80", "8080"));
    assert_eq!(of("shop/w", Some(0)), missed("methods", "PUT", "GET"));
    assert_eq!(of("shop/w", Some(1)), Outcome::Matched);
    assert_eq!(of("shop/e", None), Outcome::NoRules);
    assert!(explained.verdict.is_allowed());
    let tcp = set.explain(&attributes(Caller::Identity(&web), None));
    assert!(tcp.steps.iter().any(|s| s.outcome == Outcome::HttpOnly { field: "methods".into() }));
}

#[test]
fn a_refusal_names_the_closest_rule_and_field() {
    let web = peer("corp.test", "/ns/shop/sa/web");
    let text = policy("far", "ALLOW", "[{from: [{source: {principals: [x.test/y]}}]}]")
        + &policy(
            "near",
            "ALLOW",
            "[{from: [{source: {principals: [corp.test/ns/shop/sa/web]}}], to: [{operation: {methods: [PUT]}}]}]",
        );
    let denial =
        set(&text).decide(&request(Source::Peer(&web), Some(get("/")))).permit().unwrap_err();
    assert_eq!(denial.policy.as_deref(), Some("shop/near"));
    assert_eq!((denial.rule, denial.field.as_deref()), (Some(0), Some("methods")));
}

const WITH_SELECTOR: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: s, namespace: shop}\nspec: {action: ACTION, selector: {matchLabels: {app: LABEL}}, rules: [{}]}\n";

#[test]
fn ap_1_selectors_and_unknown_labels() {
    let web = peer("corp.test", "/ns/shop/sa/web");
    let tcp = request(Source::Peer(&web), None);
    let text =
        |action: &str, label: &str| WITH_SELECTOR.replace("ACTION", action).replace("LABEL", label);
    assert_eq!(code(&set(&text("DENY", "api")), &tcp), Some(Code::DeniedByPolicy));
    assert_eq!(code(&set(&text("DENY", "web")), &tcp), None);
    let unknown = Workload { labels: None, ..workload() };
    assert_eq!(code(&set_for(&text("DENY", "web"), &unknown), &tcp), Some(Code::DeniedByPolicy));
    assert_eq!(
        code(&set_for(&text("ALLOW", "api"), &unknown), &tcp),
        Some(Code::NotAllowedByPolicy)
    );
    let elsewhere = Workload { namespace: "other".into(), ..workload() };
    assert_eq!(code(&set_for(&text("DENY", "api"), &elsewhere), &tcp), None);
}

#[test]
fn pa_1_to_6_modes() {
    let doc = |name: &str, ns: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {spec}\n---\n"
        )
    };
    let mode = |text: &str, port| set(text).mode(port);
    let permissive = Some(Mode::Permissive { until: Until::Never });
    let mesh = doc("m", "istio-system", "{mtls: {mode: STRICT}}");
    let ns = doc("n", "shop", "{mtls: {mode: PERMISSIVE}}");
    let own = doc(
        "w",
        "shop",
        "{selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: PERMISSIVE}}}",
    );
    assert_eq!(mode(&mesh, 1), Some(Mode::Strict));
    assert_eq!(mode(&format!("{mesh}{ns}"), 1), permissive, "PA-4: the nearer level wins");
    assert_eq!(mode(&format!("{mesh}{ns}{own}"), 1), Some(Mode::Strict));
    assert_eq!(mode(&format!("{mesh}{ns}{own}"), 9090), permissive, "PA-5");
    let root_selector =
        doc("r", "istio-system", "{selector: {matchLabels: {app: api}}, mtls: {mode: PERMISSIVE}}");
    assert_eq!(mode(&format!("{mesh}{root_selector}"), 1), Some(Mode::Strict), "PA-2");
    let disabled = doc("d", "shop", "{mtls: {mode: DISABLE}}");
    assert_eq!(mode(&disabled, 1), permissive, "PA-11: never switched off, only not demanded");
    for bad in [
        "{portLevelMtls: {80: {mode: STRICT}}}",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {}}",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {70000: {mode: STRICT}}}",
        "{selector: {matchLabels: {a: '*'}}}",
        "{mtls: {mode: strict}}",
    ] {
        assert!(parse(&doc("x", "shop", bad), "t").is_err(), "PA-6: {bad}");
    }
}

#[test]
fn places_and_nearest_names() {
    let text = "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  acton: DENY\n";
    let e = parse(text, "p.yaml").unwrap_err();
    assert_eq!(e.code, Code::UnknownField);
    assert_eq!(e.place.as_deref(), Some("p.yaml:7:3"));
    assert_eq!(e.hint, "did you mean `action`?");
    assert!(parse("--- {kind: X}\n", "t").is_err(), "nothing behind the marker is lost");
    assert!(parse("", "t").is_err());
}

fn field() -> impl Strategy<Value = String> {
    let of = |name: &'static str, values: &'static [&'static str]| {
        proptest::collection::vec(proptest::sample::select(values), 1..3)
            .prop_map(move |v| format!("{name}: ['{}']", v.join("', '")))
    };
    const IDS: &[&str] =
        &["corp.test/ns/shop/sa/web", "corp.test/ns/shop/*", "*/sa/web", "*", "corp.test/ns/s*"];
    const NS: &[&str] = &["shop", "s*", "bank", "*"];
    prop_oneof![
        of("s principals", IDS),
        of("s notPrincipals", IDS),
        of("s namespaces", NS),
        of("s notNamespaces", NS),
        of("s serviceAccounts", &["web", "shop/web", "bank/web"]),
        of("s trustDomains", &["corp.test", "*.test", "other.test"]),
        of("s ipBlocks", &["10.0.0.0/8", "192.0.2.1"]),
        of("s requestPrincipals", &["*"]),
        of("o ports", &["8080", "80"]),
        of("o notPorts", &["8080", "80"]),
        of("o methods", &["GET", "P*"]),
        of("o paths", &["/a", "/a/*", "/b/*", "*/c", "/{*}/c"]),
        of("o notPaths", &["/a", "/a/*"]),
        of("o hosts", &["api:8080", "api"]),
    ]
}

fn rule() -> impl Strategy<Value = String> {
    let group = || proptest::collection::vec(field(), 0..3);
    (group(), group()).prop_map(|(a, b)| {
        let mut out = Vec::new();
        for (kind, list, key) in [("s ", "from", "source"), ("o ", "to", "operation")] {
            let groups: Vec<String> = [&a, &b]
                .iter()
                .filter_map(|g| {
                    let mut seen = std::collections::BTreeMap::new();
                    for f in g.iter().filter_map(|f| f.strip_prefix(kind)) {
                        seen.entry(f.split(':').next().unwrap()).or_insert(f);
                    }
                    if seen.contains_key("serviceAccounts") {
                        seen.retain(|name, _| *name != "principals" && *name != "namespaces");
                    }
                    let fields: Vec<&str> = seen.into_values().collect();
                    (!fields.is_empty()).then(|| format!("{{{key}: {{{}}}}}", fields.join(", ")))
                })
                .collect();
            if !groups.is_empty() {
                out.push(format!("{list}: [{}]", groups.join(", ")));
            }
        }
        format!("{{{}}}", out.join(", "))
    })
}

fn rules() -> impl Strategy<Value = String> {
    proptest::collection::vec(rule(), 1..5).prop_map(|r| format!("[{}]", r.join(", ")))
}

fn policies() -> impl Strategy<Value = Vec<String>> {
    let action = proptest::sample::select(&["ALLOW", "DENY", "AUDIT"][..]);
    proptest::collection::vec((action, rules()), 0..8).prop_map(|list| {
        list.iter().enumerate().map(|(i, (a, r))| policy(&format!("p{i}"), a, r)).collect()
    })
}

/// A request, as plain values that attributes can borrow from.
fn requests() -> impl Strategy<Value = (Option<&'static str>, bool, &'static str, &'static str)> {
    (
        proptest::sample::select(
            &[
                None,
                Some("spiffe://corp.test/ns/shop/sa/web"),
                Some("spiffe://corp.test/ns/shop/sa/web/ns/bank/x"),
                Some("spiffe://other.test/ns/shop/sa/web"),
                Some("spiffe://corp.test/ns/bank/sa/web"),
                Some("spiffe://corp.test/web"),
            ][..],
        ),
        any::<bool>(),
        proptest::sample::select(&["GET", "POST", "PUT"][..]),
        proptest::sample::select(&["/a", "/a/c", "/b/x", "/c", "/"][..]),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The index finds what looking at every rule finds, explaining agrees with deciding, the order of
    /// documents does not matter, and one more DENY never allows more: in both semantics.
    #[test]
    fn engine(list in policies(), deny in rules(), (id, http, method, path) in requests(), semantics: bool) {
        let workload = if semantics { istio() } else { workload() };
        let id = id.map(spiffe);
        let caller = id.as_ref().map_or(Caller::Nobody, Caller::Identity);
        let a = attributes(caller, http.then_some(HttpRequest { method, host: "api:8080", path, headers: &[] }));
        let compile = |list: &[String]| {
            let text = list.concat() + "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\n";
            set_for(&text, &workload)
        };
        let set = compile(&list);
        let verdict = set.judge(&a);
        prop_assert_eq!(verdict.is_allowed(), set.judge_linearly(&a).is_allowed());
        let explained = set.explain(&a);
        prop_assert_eq!(&explained.verdict, &verdict);
        let matched = |action| explained.steps.iter().any(|s| s.action == action && s.outcome == Outcome::Matched);
        let enforced = explained.steps.iter().any(|s| s.action == countersign_policy::Action::Allow);
        let by_trace = !matched(countersign_policy::Action::Deny)
            && (!enforced || matched(countersign_policy::Action::Allow));
        prop_assert_eq!(verdict.is_allowed(), by_trace);
        let mut reversed = list.clone();
        reversed.reverse();
        prop_assert_eq!(&compile(&reversed).judge(&a), &verdict);
        reversed.push(policy("zz", "DENY", &deny));
        prop_assert!(verdict.is_allowed() || !compile(&reversed).judge(&a).is_allowed());
    }

    /// Strict allows nothing that Istio's semantics would refuse.
    #[test]
    fn strict_is_stricter(list in policies(), (id, http, method, path) in requests()) {
        let id = id.map(spiffe);
        let caller = id.as_ref().map_or(Caller::Nobody, Caller::Identity);
        let a = attributes(caller, http.then_some(HttpRequest { method, host: "api:8080", path, headers: &[] }));
        let text = list.concat() + "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\n";
        let istio = set_for(&text, &istio());
        if set(&text).judge(&a).is_allowed() {
            prop_assert!(istio.judge(&a).is_allowed(), "{:?}", istio.judge(&a));
        }
    }
}

#[test]
fn pn_6_paths_that_refuse_are_in_the_normal_form_of_requests() {
    let web = spiffe("spiffe://corp.test/ns/shop/sa/web");
    let at = |path| attributes(Caller::Identity(&web), Some(HttpRequest { path, ..get("/") }));
    for written in [
        "/a%2Fb",
        "/a//b",
        "/x/../a/b",
        "/%61/b",
        "/a\\\\b",
        "/a%2f*",
        "*%2fb",
        "/%61/{*}",
        "/a%2Fb/{**}",
    ] {
        let rules = format!("[{{to: [{{operation: {{paths: [\"{written}\"]}}}}]}}]");
        let deny = set(&policy("d", "DENY", &rules));
        let path = if written.ends_with("{**}") { "/a/b/c" } else { "/a/b" };
        assert!(!deny.judge(&at(path)).is_allowed(), "{written}");
        let except = rules.replace("paths", "notPaths");
        assert!(!allows(&except, &at(path)), "{written}");
        // Where it grants, the text counts: strict allows nothing that Istio would not.
        if written.starts_with('/') && !written.contains(['*', '{']) {
            assert!(!allows(&rules, &at(path)), "{written}");
        }
    }
    // The beginning of a name is not a dot segment.
    let deny = set(&policy("d", "DENY", "[{to: [{operation: {paths: ['/a/..*']}}]}]"));
    assert!(!deny.judge(&at("/a/..b")).is_allowed() && deny.judge(&at("/b")).is_allowed());
}

#[test]
fn ap_13_presence_of_hosts_and_authority() {
    let web = spiffe("spiffe://corp.test/ns/shop/sa/web");
    let host = |host| attributes(Caller::Identity(&web), Some(HttpRequest { host, ..get("/") }));
    let deny = set(&policy("d", "DENY", "[{to: [{operation: {hosts: ['*']}}]}]"));
    assert!(!deny.judge(&host("")).is_allowed());
    let rules = "[{when: [{key: 'request.headers[:authority]', values: [api.test]}]}]";
    assert!(allows(rules, &host("api.test")) && !allows(rules, &host("API.test")), "the text");
    let deny = set(&policy("d", "DENY", rules));
    assert!(!deny.judge(&host("API.test:80")).is_allowed(), "where it refuses, the host");
}

#[test]
fn a_trust_domain_is_no_workload() {
    let root = spiffe("spiffe://corp.test");
    let a = attributes(Caller::Identity(&root), None);
    assert!(!allows("[{from: [{source: {trustDomains: [corp.test]}}]}]", &a));
}

#[test]
fn mapped_blocks_are_what_they_map() {
    let a = attributes(Caller::Nobody, None);
    assert!(allows("[{from: [{source: {ipBlocks: ['::ffff:10.0.0.0/104']}}]}]", &a));
    let wide = "[{from: [{source: {ipBlocks: ['::ffff:10.0.0.0/90']}}]}]";
    assert!(parse(&policy("a", "ALLOW", wide), "t").is_err());
}

#[test]
fn pa_5_ports_of_documents_that_may_be_for_others() {
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: ns, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n---\n\
        apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: other, namespace: shop}\n\
        spec: {selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: PERMISSIVE}}}\n";
    let unknown = Workload { labels: None, ..workload() };
    assert_eq!(set_for(text, &unknown).mode(9090), Some(Mode::Strict));
}

#[test]
fn building_the_index_is_bounded() {
    // Every rule has many values of every attribute: copied into every branch this would not end.
    let list = |make: &dyn Fn(usize) -> String, i: usize| {
        let all: Vec<String> = (0..32).map(|k| make((i * 7 + k * 5) % 52)).collect();
        format!("[{}]", all.join(", "))
    };
    let rules: Vec<String> = (0..300)
        .map(|i| {
            format!(
                "{{from: [{{source: {{principals: {}}}}}], to: [{{operation: {{paths: {}, ports: {}}}}}]}}",
                list(&|k| format!("corp.test/w{k}"), i),
                list(&|k| format!("/p{k}"), i),
                list(&|k| format!("'{}'", 8000 + k), i)
            )
        })
        .collect();
    let set = set(&policy("big", "ALLOW", &format!("[{}]", rules.join(", "))));
    let id = spiffe("spiffe://corp.test/w0");
    let a = attributes(Caller::Identity(&id), Some(HttpRequest { path: "/p5", ..get("/") }));
    assert_eq!(set.judge(&a).is_allowed(), set.judge_linearly(&a).is_allowed());
}

#[test]
fn conditions_on_the_callers_certificate() {
    let web = spiffe("spiffe://corp.test/ns/shop/sa/web");
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let subject = [pair("CN", "web-1"), pair("OU", "shop"), pair("OU", "payments")];
    let extensions = [pair("1.3.6.1.4.1.99999.1", "prod")];
    let facts = CertificateFacts {
        subject: &subject,
        extensions: &extensions,
        dns_names: &["web.corp.test".to_owned()],
        spki_sha256: Some([0xab; 32]),
    };
    let with = Attributes { certificate: Some(facts), ..attributes(Caller::Identity(&web), None) };
    let without = attributes(Caller::Identity(&web), None);
    let pin = "ab".repeat(32);
    for (key, hit, miss) in [
        ("subject[OU]", "payments", "bank"),
        ("subject[cn]", "web-*", "api-*"),
        ("extension[1.3.6.1.4.1.99999.1]", "prod", "dev"),
        ("dns", "*.corp.test", "corp.test"),
        ("spki", &format!("sha256:{pin}"), &format!("sha256:{}", "cd".repeat(32))),
        (
            "spki",
            "sha256/q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=",
            "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        ),
    ] {
        let rules =
            |v: &str| format!("[{{when: [{{key: 'source.certificate.{key}', values: ['{v}']}}]}}]");
        assert!(allows(&rules(hit), &with), "{key} {hit}");
        assert!(!allows(&rules(miss), &with), "{key} {miss}");
        assert!(!allows(&rules(hit), &without), "{key}: absent");
    }
    for bad in ["subject[XX]", "extension[1]", "extension[a.b]", "serial", "subject"] {
        let rules = format!("[{{when: [{{key: 'source.certificate.{bad}', values: [a]}}]}}]");
        assert!(parse(&policy("a", "ALLOW", &rules), "t").is_err(), "{bad}");
    }
    let rules = "[{when: [{key: source.certificate.spki, values: ['*']}]}]";
    assert!(parse(&policy("a", "ALLOW", rules), "t").is_err(), "a pin is no pattern");
}
