//! Istio's rules by their ids, one small example each: selection, levels, what a document may say, paths.

#![allow(clippy::unwrap_used)]
use countersign_identity::SpiffeId;
use countersign_policy::{
    Attributes, Caller, HttpRequest, Labels, Mesh, Mode, Normalization, PolicySet, Until, Workload,
    normalize_as, parse,
};

fn set(text: &str) -> PolicySet {
    let workload = Workload {
        trust_domain: "corp.test".parse().unwrap(),
        namespace: "shop".into(),
        labels: Some(Labels::from([("app".into(), "api".into())])),
        mesh: Mesh::default(),
    };
    PolicySet::compile(&parse(text, "test").unwrap(), &workload, 1)
}

fn peer(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn authz(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn allows(text: &str, path: &str) -> bool {
    let id = SpiffeId::parse("spiffe://corp.test/ns/shop/sa/web").unwrap();
    set(text)
        .judge(&Attributes {
            caller: Caller::Identity(&id),
            certificate: None,
            source_ip: None,
            remote_ip: None,
            destination_ip: None,
            destination_port: Some(80),
            sni: None,
            http: Some(HttpRequest { method: "GET", host: "api", path, headers: &[] }),
            token: None,
            external: None,
        })
        .is_allowed()
}

const PERMISSIVE: Option<Mode> = Some(Mode::Permissive { until: Until::Never });
const STRICT: &str = "{mtls: {mode: STRICT}}";
const OPEN: &str = "{mtls: {mode: PERMISSIVE}}";

fn mode(documents: &[String]) -> Option<Mode> {
    set(&documents.concat()).mode(80)
}

#[test]
fn pa_1_scope_by_namespace_and_selector() {
    let mesh = peer("m", "istio-system", OPEN);
    assert_eq!(mode(&[mesh.clone(), peer("n", "bank", STRICT)]), PERMISSIVE, "another namespace");
    assert_eq!(mode(&[mesh.clone(), peer("n", "shop", STRICT)]), Some(Mode::Strict));
    let empty = "{selector: {matchLabels: {}}, mtls: {mode: STRICT}}";
    assert_eq!(mode(&[mesh.clone(), peer("n", "shop", empty)]), Some(Mode::Strict));
    for (label, expected) in [("api", Some(Mode::Strict)), ("web", PERMISSIVE)] {
        let one =
            format!("{{selector: {{matchLabels: {{app: {label}}}}}, mtls: {{mode: STRICT}}}}");
        assert_eq!(mode(&[mesh.clone(), peer("w", "shop", &one)]), expected, "{label}");
        assert_eq!(
            mode(&[mesh.clone(), peer("w", "bank", &one)]),
            PERMISSIVE,
            "own namespace only"
        );
    }
}

#[test]
fn pa_2_a_selector_in_the_root_namespace_counts_for_nobody() {
    let one = "{selector: {matchLabels: {app: api}}, mtls: {mode: PERMISSIVE}}";
    let documents = [peer("m", "istio-system", STRICT), peer("r", "istio-system", one)];
    assert_eq!(mode(&documents), Some(Mode::Strict));
}

#[test]
fn pa_3_the_oldest_of_a_level_counts_whole() {
    let at = |name: &str, year: u32, spec: &str| {
        let time = format!("creationTimestamp: '{year}-01-01T00:00:00Z', name: {name}");
        peer(name, "shop", spec).replace(&format!("name: {name}"), &time)
    };
    let documents = [at("a", 2025, OPEN), at("b", 2024, STRICT)];
    assert_eq!(mode(&documents), Some(Mode::Strict), "whatever its name and place");
    assert_eq!(
        mode(&[at("b", 2025, OPEN), at("a", 2025, STRICT)]),
        Some(Mode::Strict),
        "ties: name"
    );
    assert_eq!(mode(&[at("a", 2024, "{mtls: {}}"), at("b", 2025, STRICT)]), None, "not merged");
}

#[test]
fn pa_4_nearer_levels_overwrite_where_they_say_something() {
    let one = |mode: &str| format!("{{selector: {{matchLabels: {{app: api}}}}{mode}}}");
    let (mesh, namespace) = (peer("m", "istio-system", STRICT), peer("n", "shop", OPEN));
    assert_eq!(mode(&[mesh.clone(), namespace.clone()]), PERMISSIVE);
    let strict = peer("w", "shop", &one(", mtls: {mode: STRICT}"));
    assert_eq!(mode(&[mesh.clone(), namespace, strict]), Some(Mode::Strict));
    for unset in ["", ", mtls: {}", ", mtls: {mode: UNSET}"] {
        let silent = peer("w", "shop", &one(unset));
        assert_eq!(mode(&[mesh.clone(), silent]), Some(Mode::Strict), "inherited: {unset}");
    }
}

#[test]
fn pa_5_ports_of_the_workloads_own_document() {
    let own = "{selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: PERMISSIVE}, 81: {mode: UNSET}}}";
    let set = set(&peer("w", "shop", own));
    assert_eq!(
        (set.mode(80), set.mode(81), set.mode(82)),
        (PERMISSIVE, Some(Mode::Strict), Some(Mode::Strict))
    );
}

#[test]
fn pa_6_what_a_document_may_say() {
    for bad in [
        "{portLevelMtls: {80: {mode: STRICT}}}",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {}}",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {mode: STRICT}}}",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {70000: {mode: STRICT}}}",
        "{selector: {matchLabels: {'': b}}}",
        "{selector: {matchLabels: {'a*': b}}}",
        "{selector: {matchLabels: {a: 'b*'}}}",
        "{mtls: {mode: strict}}",
    ] {
        assert!(parse(&peer("x", "shop", bad), "t").is_err(), "{bad}");
    }
}

#[test]
fn pa_11_disable_is_only_not_demanded() {
    assert_eq!(mode(&[peer("d", "shop", "{mtls: {mode: DISABLE}}")]), PERMISSIVE);
}

#[test]
fn ap_2_deny_comes_before_allow_whatever_the_order() {
    let allow = authz("a", "shop", "{rules: [{}]}");
    let deny = authz("d", "shop", "{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}");
    for text in [format!("{allow}{deny}"), format!("{deny}{allow}")] {
        assert!(allows(&text, "/") && !allows(&text, "/x"));
    }
}

#[test]
fn ap_4_policies_of_one_action_are_a_union() {
    let of = |name: &str, namespace: &str, path: &str| {
        authz(
            name,
            namespace,
            &format!("{{rules: [{{to: [{{operation: {{paths: [{path}]}}}}]}}]}}"),
        )
    };
    let text =
        [of("a", "shop", "/a"), of("b", "shop", "/b"), of("r", "istio-system", "/r")].concat();
    for (path, expected) in [("/a", true), ("/b", true), ("/r", true), ("/c", false)] {
        assert_eq!(allows(&text, path), expected, "{path}");
    }
}

#[test]
fn ap_8_what_is_empty_is_an_error() {
    for bad in [
        "{rules: [{from: []}]}",
        "{rules: [{to: []}]}",
        "{rules: [{from: [{source: {}}]}]}",
        "{rules: [{to: [{operation: {}}]}]}",
        "{rules: [null]}",
        "{rules: [{when: [{key: source.ip}]}]}",
        "{action: DENY}",
        "{rules: [{to: [{operation: {methods: ['']}}]}]}",
    ] {
        assert!(parse(&authz("x", "shop", bad), "t").is_err(), "{bad}");
    }
}

#[test]
fn ap_23_path_templates() {
    let with = |path: &str| {
        authz("x", "shop", &format!("{{rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]}}"))
    };
    for good in ["/{*}", "/a/{*}/b", "/{**}", "/a/{*}/{**}", "/a-b.c_d~e%20/{*}", "/{**}/x"] {
        assert!(parse(&with(good), "t").is_ok(), "{good}");
    }
    for bad in ["/{**}/{*}", "/{**}/{**}", "/a{*}", "/{*}b", "/{a}", "/{*", "/*/{*}", "/{***}"] {
        assert!(parse(&with(bad), "t").is_err(), "{bad}");
    }
}

#[test]
fn ap_24_custom_rules_know_no_identity() {
    let custom = |rule: &str| {
        authz("x", "shop", &format!("{{action: CUSTOM, provider: {{name: p}}, rules: [{rule}]}}"))
    };
    for good in [
        "{from: [{source: {ipBlocks: [10.0.0.0/8], remoteIpBlocks: [10.0.0.1]}}]}",
        "{to: [{operation: {paths: [/a], methods: [GET], hosts: [a], ports: ['80']}}]}",
        "{when: [{key: 'request.headers[x]', values: [a]}, {key: source.ip, values: [10.0.0.1]}]}",
    ] {
        assert!(parse(&custom(good), "t").is_ok(), "{good}");
    }
    for bad in [
        "{from: [{source: {principals: [a]}}]}",
        "{from: [{source: {namespaces: [a]}}]}",
        "{from: [{source: {serviceAccounts: [a]}}]}",
        "{from: [{source: {requestPrincipals: [a]}}]}",
        "{when: [{key: source.principal, values: [a]}]}",
        "{when: [{key: source.namespace, values: [a]}]}",
        "{when: [{key: 'request.auth.claims[a]', values: [a]}]}",
    ] {
        assert!(parse(&custom(bad), "t").is_err(), "{bad}");
    }
}

fn normal(path: &str, mode: Normalization) -> Option<String> {
    normalize_as(path, mode).ok().map(|p| p.into_owned())
}

#[test]
fn pn_2_order_of_the_steps() {
    let path = "/a%2F..%2F%2Fb//c%5Cd";
    for (mode, expected) in [
        (Normalization::None, path),
        (Normalization::Base, "/a%2F..%2F%2Fb//c%5Cd"),
        (Normalization::MergeSlashes, "/a%2F..%2F%2Fb/c%5Cd"),
        (Normalization::DecodeAndMergeSlashes, "/b/c/d"),
    ] {
        assert_eq!(normal(path, mode).as_deref(), Some(expected), "{mode:?}");
    }
}

#[test]
fn pn_3_base_decodes_what_is_unreserved_once() {
    for (path, expected) in [
        ("/%61%2e%2d%5f%7e", "/a.-_~"),
        ("/%2561", "/%2561"),
        ("/a\\b", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("/%2f%5c%c0%ae;x", "/%2f%5c%c0%ae;x"),
        ("/A", "/A"),
    ] {
        assert_eq!(normal(path, Normalization::Base).as_deref(), Some(expected), "{path}");
    }
}

#[test]
fn pn_4_what_no_path_may_hold() {
    for path in ["/a%00", "/a#b"] {
        assert_eq!(normal(path, Normalization::Base), None, "{path}");
    }
    assert_eq!(normal("/a/../b?x=/../y", Normalization::Base).as_deref(), Some("/b?x=/../y"));
}

#[test]
fn pn_5_parameters_do_not_hide_dot_segments() {
    for (path, expected) in [("/a/..;x=1/admin", "/admin"), ("/.;/x", "/x"), ("/data;x", "/data;x")]
    {
        assert_eq!(normal(path, Normalization::Base).as_deref(), Some(expected), "{path}");
    }
}

/// What the hot path costs is not for a clock to say; that it allocates nothing is for a count.
#[test]
fn an_allowed_decision_allocates_nothing() {
    let text: String = (0..100)
        .map(|i| {
            let rule = format!(
                "{{from: [{{source: {{principals: [corp.test/ns/shop/sa/web], namespaces: [shop]}}}}], to: [{{operation: {{paths: ['/{i}/*'], methods: [GET], ports: ['80']}}}}]}}"
            );
            authz(&format!("p{i}"), "shop", &format!("{{rules: [{rule}]}}"))
        })
        .collect();
    let deny =
        authz("d", "shop", "{action: DENY, rules: [{to: [{operation: {paths: [/secret*]}}]}]}");
    let set = set(&format!("{text}{deny}"));
    let id = SpiffeId::parse("spiffe://corp.test/ns/shop/sa/web").unwrap();
    let a = Attributes {
        caller: Caller::Identity(&id),
        certificate: None,
        source_ip: Some([10, 0, 0, 1].into()),
        remote_ip: Some([10, 0, 0, 1].into()),
        destination_ip: None,
        destination_port: Some(80),
        sni: None,
        http: Some(HttpRequest { method: "GET", host: "api", path: "/73/x", headers: &[] }),
        token: None,
        external: None,
    };
    assert!(set.judge(&a).is_allowed());
    let count = allocation_counter::measure(|| {
        for _ in 0..100 {
            assert!(std::hint::black_box(&set).judge(std::hint::black_box(&a)).is_allowed());
        }
    });
    assert_eq!(count.count_total, 0, "{count:?}");
}
