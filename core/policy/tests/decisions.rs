//! Istio's rules by their ids, on identities that were really verified.

#![allow(clippy::unwrap_used)]
use std::net::{IpAddr, Ipv4Addr};

use countersign_findings::Code;
use countersign_identity::{BundleSet, UnixTime};
use countersign_policy::{
    HttpRequest, Labels, Mode, NoIdentity, PolicySet, Request, Source, Until, Workload, parse,
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
        root_namespace: "istio-system".into(),
    }
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
        destination_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        destination_port: 8080,
        http,
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
    assert_eq!(audited.audited(&tcp).collect::<Vec<_>>(), ["shop/u"]);
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
    assert!(allow("[{to: [{operation: {paths: [/a/*], methods: [GET], hosts: [api]}}]}]", "/a/b"));
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
        "[{when: [{key: 'request.auth.claims[a]', values: [a]}]}]",
        "[{when: [{key: connection.sni, values: [a]}]}]",
        "[{from: [{source: {principals: ['spiffe://corp.test/a']}}]}]",
        "[{from: [{source: {principals: ['a*b']}}]}]",
        "[{from: [{source: {requestPrincipals: ['*']}}]}]",
        "[{from: [{source: {serviceAccounts: ['a*']}}]}]",
    ] {
        assert!(parse(&policy("a", "ALLOW", bad), "t").is_err(), "{bad}");
    }
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
    for bad in [
        "{portLevelMtls: {80: {mode: STRICT}}}",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {}}",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {70000: {mode: STRICT}}}",
        "{selector: {matchLabels: {a: '*'}}}",
        "{mtls: {mode: strict}}",
        "{mtls: {mode: DISABLE}}",
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

fn rules() -> impl Strategy<Value = String> {
    let field = prop_oneof![
        Just("from: [{source: {principals: [corp.test/ns/shop/sa/web]}}]"),
        Just("from: [{source: {notPrincipals: ['*/sa/web']}}]"),
        Just("from: [{source: {namespaces: [shop]}}]"),
        Just("to: [{operation: {methods: [GET]}}]"),
        Just("to: [{operation: {notPaths: [/a]}}]"),
        Just("to: [{operation: {ports: [\"8080\"]}}]"),
        Just("when: [{key: source.ip, notValues: [10.0.0.0/8]}]"),
    ];
    proptest::collection::vec(field, 1..3).prop_map(|fields| {
        let rules: Vec<String> = fields.iter().map(|f| format!("{{{f}}}")).collect();
        format!("[{}]", rules.join(", "))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_deny_never_allows_more_and_order_never_matters(allow in rules(), deny in rules(), http: bool) {
        let web = peer("corp.test", "/ns/shop/sa/web");
        let r = request(Source::Peer(&web), http.then(|| get("/a")));
        let (a, d) = (policy("a", "ALLOW", &allow), policy("d", "DENY", &deny));
        let without = set(&a).decide(&r).is_allowed();
        let with = set(&format!("{a}{d}")).decide(&r).is_allowed();
        prop_assert!(!with || without);
        prop_assert_eq!(set(&format!("{d}{a}")).decide(&r).is_allowed(), with);
    }
}
