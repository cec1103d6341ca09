//! Previews of policies: what each command prints, and how it leaves.

use serde_json::{Value, json};

use crate::kit::Home;

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  rules:
  - from: [{source: {principals: [corp.test/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], paths: [/public/*]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: never, namespace: shop}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ['*/secret'], ports: ['8080']}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

fn request(who: Option<&str>, method: &str, path: &str) -> Value {
    json!({
        "source": {"principal": who, "ip": "10.0.0.1"},
        "destination": {"namespace": "shop", "labels": {"app": "api"}, "ip": "10.0.0.2", "port": 8080},
        "http": {"method": method, "host": "api", "path": path, "headers": [["accept", "*/*"]]},
        "sni": null
    })
}

const WEB: Option<&str> = Some("spiffe://corp.test/ns/shop/sa/web");
const BATCH: Option<&str> = Some("corp.test/ns/shop/sa/batch");

/// A home with the policies in `p.yaml`, and a way to write files there.
fn home() -> Home {
    let home = Home::new();
    put(&home, "p.yaml", POLICIES);
    home
}

fn put(home: &Home, name: &str, text: &str) {
    std::fs::write(home.path(name), text).unwrap();
}

fn lines(requests: &[Value]) -> String {
    requests.iter().map(|r| format!("{r}\n")).collect()
}

fn at(home: &Home, name: &str) -> String {
    home.path(name).to_str().unwrap().to_owned()
}

#[test]
fn decide() {
    let home = home();
    let requests = [
        request(WEB, "GET", "/public/a?x=1"),
        request(BATCH, "GET", "/public/a"),
        request(WEB, "GET", "/public/x/..%2f../secret"),
        request(WEB, "GET", "/public/%00"),
        request(None, "GET", "/public/a"),
        json!({"source": {"cert": {"uri_sans": ["spiffe://corp.test/a", "spiffe://corp.test/b"]}},
            "destination": {"namespace": "shop", "port": 8080}}),
    ];
    put(&home, "r.jsonl", &lines(&requests));
    let (policies, file) = (at(&home, "p.yaml"), at(&home, "r.jsonl"));
    let args = [
        "policy",
        "decide",
        "--policies",
        &policies,
        "--requests",
        &file,
        "--trust-domain",
        "corp.test",
    ];
    let out = home.ok(&args);
    let got: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let brief: Vec<(bool, Option<&str>, Option<&str>)> = got
        .iter()
        .map(|d| (d["allow"].as_bool().unwrap(), d["code"].as_str(), d["policy"].as_str()))
        .collect();
    assert_eq!(
        brief,
        [
            (true, None, Some("shop/readers")),
            (false, Some("CS3002"), Some("shop/readers")),
            (false, Some("CS3001"), Some("shop/never")),
            (false, Some("CS2203"), None),
            (false, Some("CS2101"), None),
            (false, Some("CS1007"), None),
        ],
        "{out}"
    );
    for d in &got {
        assert!(d["reason"].as_str().is_some_and(|r| !r.is_empty()), "{d}");
    }
    // A line that cannot be read keeps its place, and the exit says so.
    put(
        &home,
        "r.jsonl",
        &format!("{}{{\"bad\": 1}}\n{}", requests[0].to_string() + "\n", requests[1]),
    );
    let out = home.run(&args);
    assert_eq!(out.status.code(), Some(2));
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(text.lines().count(), 3);
    assert!(text.lines().nth(1).unwrap().contains("CS5001"), "{text}");
    assert!(String::from_utf8(out.stderr).unwrap().contains("r.jsonl:2"));
    put(&home, "r.jsonl", "\n");
    assert_eq!(home.run(&args).status.code(), Some(3));
}

#[test]
fn both_semantics() {
    let home = Home::new();
    put(
        &home,
        "p.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n\
         spec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}\n",
    );
    let foreign = request(Some("spiffe://evil.test/ns/shop/sa/web"), "GET", "/");
    put(&home, "r.jsonl", &lines(&[foreign]));
    let (policies, file) = (at(&home, "p.yaml"), at(&home, "r.jsonl"));
    let base = [
        "policy",
        "decide",
        "--policies",
        &policies,
        "--requests",
        &file,
        "--trust-domain",
        "corp.test",
    ];
    assert!(home.ok(&base).contains("\"allow\":false"));
    assert!(home.ok(&[&base[..], &["--compat", "istio"]].concat()).contains("\"allow\":true"));
    assert!(home.ok(&[&base[..], &["--alias", "evil.test"]].concat()).contains("\"allow\":true"));
}

#[test]
fn explain() {
    let home = home();
    let policies = at(&home, "p.yaml");
    let base = [
        "policy",
        "explain",
        "--policies",
        &policies,
        "--trust-domain",
        "corp.test",
        "--from",
        "/ns/shop/sa/web",
    ];
    let allowed =
        [&base[..], &["--to", "shop/app=api:8080", "--method", "GET", "--path", "/public/a"]]
            .concat();
    assert!(home.ok(&allowed).contains("ALLOWED: allowed by policy shop/readers, rule 0"));
    let denied = [
        &base[..],
        &["--to", "shop/app=api:8080", "--method", "PUT", "--path", "/public/a", "-o", "json"],
    ]
    .concat();
    let out = home.run(&denied);
    assert_eq!(out.status.code(), Some(5), "refused by policy");
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(value["schema"], "countersign.policy-explain/v1");
    assert_eq!(value["decision"]["code"], "CS3002");
    let step = &value["steps"][1];
    assert_eq!((&step["field"], &step["presented"]), (&json!("methods"), &json!("PUT")));
    let tcp = [&base[..], &["--to", "/ns/shop/sa/api:8080", "--label", "app=api"]].concat();
    let out = home.run(&tcp);
    assert_eq!(out.status.code(), Some(5));
    assert!(String::from_utf8(out.stdout).unwrap().contains("CS3001"), "a DENY never narrows");
    for (bad, what) in
        [("shop/app:80", "NAME=VALUE"), ("shop:70000", "not a port"), (":80", "no namespace")]
    {
        let out = home.run(&[&base[..], &["--to", bad]].concat());
        assert_eq!(out.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&out.stderr).contains(what), "{bad}");
    }
}

#[test]
fn cases_beside_policies() {
    let home = home();
    let case = |name: &str, who: &str, method: &str, expect: &str| {
        format!(
            "- name: {name}\n  request: {{source: {{principal: {who}}}, destination: {{namespace: shop, labels: {{app: api}}, port: 8080}}, http: {{method: {method}, path: /public/a}}}}\n  expect: {expect}\n"
        )
    };
    let head = "policies: [p.yaml]\ntrustDomain: corp.test\ncases:\n";
    let good = head.to_owned()
        + &case("reads", "corp.test/ns/shop/sa/web", "GET", "allow")
        + &case("writes", "corp.test/ns/shop/sa/web", "PUT", "deny")
        + "  code: CS3002\n  policy: shop/readers\n";
    put(&home, "t.yaml", &good);
    let file = at(&home, "t.yaml");
    home.ok(&["policy", "test", &file]);
    put(&home, "t.yaml", &good.replace("CS3002", "CS3001"));
    let junit = at(&home, "out.xml");
    let out = home.run(&["policy", "test", &file, "--junit", &junit]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stdout).contains("the code is CS3002, not CS3001"));
    let xml = std::fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("tests=\"2\" failures=\"1\""), "{xml}");
    put(&home, "t.yaml", &good.replace("expect: allow", "expect: maybe"));
    assert_eq!(home.run(&["policy", "test", &file]).status.code(), Some(2));
}

#[test]
fn suggest_and_diff() {
    let home = home();
    let edges = [
        request(WEB, "GET", "/public/a"),
        request(WEB, "POST", "/orders"),
        request(BATCH, "GET", "/public/a"),
    ];
    put(&home, "e.jsonl", &lines(&edges));
    let (old, file) = (at(&home, "p.yaml"), at(&home, "e.jsonl"));
    let suggested =
        home.ok(&["policy", "suggest", "--edges", &file, "--trust-domain", "corp.test"]);
    put(&home, "s.yaml", &suggested);
    let new = at(&home, "s.yaml");
    let args = [
        "policy",
        "diff",
        &old,
        &new,
        "--edges",
        &file,
        "--trust-domain",
        "corp.test",
        "-o",
        "json",
    ];
    let out = home.run(&args);
    assert_eq!(out.status.code(), Some(10), "something would change");
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    let changes: Vec<(&str, &str)> = value["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["change"].as_str().unwrap(), c["edge"]["http"]["path"].as_str().unwrap()))
        .collect();
    assert_eq!(changes, [("opened", "/orders"), ("opened", "/public/a")]);
    let same = ["policy", "diff", &new, &new, "--edges", &file, "--trust-domain", "corp.test"];
    assert_eq!(home.run(&same).status.code(), Some(0));
    // A combination that was not observed stays refused.
    put(&home, "e.jsonl", &lines(&[request(BATCH, "POST", "/orders")]));
    let args = [
        "policy",
        "decide",
        "--policies",
        &new,
        "--requests",
        &file,
        "--trust-domain",
        "corp.test",
    ];
    assert!(home.ok(&args).contains("\"allow\":false"));
    put(&home, "e.jsonl", &lines(&[request(None, "GET", "/")]));
    let out = home.run(&["policy", "suggest", "--edges", &file]);
    assert_eq!(out.status.code(), Some(1), "nobody in particular cannot be granted anything");
}

#[test]
fn lint() {
    let home = Home::new();
    let policy = |name: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n---\n"
        )
    };
    let source = |s: &str| format!("{{rules: [{{from: [{{source: {{{s}}}}}]}}]}}");
    let cases = [
        (policy("x", "{rules: [{}]}"), "CS5101"),
        (policy("x", "{action: DENY, rules: [{to: [{operation: {paths: [/a%00]}}]}]}"), "CS5102"),
        (policy("x", "{action: DENY, rules: [{to: [{operation: {paths: [/a/../b]}}]}]}"), "CS5106"),
        (policy("x", "{action: DENY, rules: [{to: [{operation: {methods: [get]}}]}]}"), "CS5102"),
        (policy("x", &source("namespaces: [a], notNamespaces: ['*']")), "CS5102"),
        (
            policy("a", &source("principals: [corp.test/a/*]"))
                + &policy("b", &source("principals: [corp.test/a/b]")),
            "CS5103",
        ),
        (policy("x", "{action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}"), "CS5104"),
        (policy("x", &source("principals: ['*/sa/web']")), "CS5105"),
        (policy("x", &source("namespaces: [a]")), "CS5106"),
        (
            policy("x", "{rules: [{}], action: DENY}").replace(
                "namespace: shop}",
                "namespace: shop, annotations: {istio.io/dry-run: 'true'}}",
            ),
            "CS5107",
        ),
    ];
    for (text, code) in cases {
        put(&home, "p.yaml", &text);
        let out =
            home.run(&["policy", "lint", &at(&home, "p.yaml"), "-o", "json", "--fail-on", "info"]);
        assert_eq!(out.status.code(), Some(10), "{code}");
        let value: Value = serde_json::from_slice(&out.stdout).unwrap();
        let codes: Vec<&str> = value["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["code"].as_str().unwrap())
            .collect();
        assert!(codes.contains(&code), "{code} not in {codes:?}:\n{text}");
    }
    put(&home, "p.yaml", &policy("x", &source("principals: [corp.test/a/b]")));
    let out = home.run(&["policy", "lint", &at(&home, "p.yaml"), "--fail-on", "info"]);
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn what_a_preview_says_is_what_is_enforced() {
    let home = home();
    let policies = at(&home, "p.yaml");
    // A proxy that was not told its labels: a policy with a selector switches to "nothing but what is allowed".
    let base = ["policy", "explain", "--policies", &policies, "--trust-domain", "corp.test"];
    let web = ["--from", "/ns/shop/sa/web", "--method", "GET", "--path", "/public/a"];
    let out = home.run(&[&base[..], &web, &["--to", "/ns/shop/sa/api:8080"]].concat());
    assert_eq!(out.status.code(), Some(5));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("labels are not known") && text.contains("--label"), "{text}");
    home.ok(&[&base[..], &web, &["--to", "/ns/shop/sa/api:8080", "--label", "app=api"]].concat());
    // A namespace that nobody wrote a policy for is named.
    let out = home.run(&[&base[..], &web, &["--to", "shoop:8080"]].concat());
    assert!(String::from_utf8_lossy(&out.stderr).contains("no policy is in namespace `shoop`"));
    let out =
        home.run(&[&base[..], &web, &["--to", "spiffe://other.test/ns/shop/sa/api:1"]].concat());
    assert_eq!(out.status.code(), Some(2), "of another trust domain");
    // The same name twice is one policy in a mesh, whichever came last.
    put(&home, "p.yaml", &format!("{POLICIES}---\n{POLICIES}"));
    let out = home.run(&[&base[..], &web, &["--to", "shop:8080"]].concat());
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("defined twice"));
    let file = at(&home, "p.yaml");
    for command in [&["policy", "lint", &file][..], &["apply", "--dry-run", "-f", &file]] {
        assert_eq!(home.run(command).status.code(), Some(2), "{command:?}");
    }
}

#[test]
fn tokens_of_requests_are_verified() {
    let home = Home::new();
    let issuer = countersign_testkit::TokenIssuer::new("https://idp.test");
    put(
        &home,
        "p.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, namespace: shop}}\n\
             spec: {{jwtRules: [{{issuer: '{}', jwks: '{}'}}]}}\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{rules: [{{from: [{{source: {{requestPrincipals: ['https://idp.test/alice']}}}}]}}]}}\n",
            issuer.name,
            issuer.jwks()
        ),
    );
    let now = countersign_tls::current_time();
    let with = |token: &str| {
        let mut r = request(WEB, "GET", "/");
        r["http"]["headers"] = json!([["authorization", format!("Bearer {token}")]]);
        r
    };
    let expired = issuer.token(now, &json!({"exp": now.secs() - 100}));
    let mut claimed = request(WEB, "GET", "/");
    claimed["token"] = json!({"iss": "https://idp.test", "sub": "alice"});
    let requests = [
        with(&issuer.token(now, &json!({}))),
        with(&expired),
        request(WEB, "GET", "/"),
        claimed,
        request(Some("/ns/shop/sa/web"), "GET", "/"),
    ];
    put(&home, "r.jsonl", &lines(&requests));
    let (policies, file) = (at(&home, "p.yaml"), at(&home, "r.jsonl"));
    let args = [
        "policy",
        "decide",
        "--policies",
        &policies,
        "--requests",
        &file,
        "--trust-domain",
        "corp.test",
    ];
    let out = home.ok(&args);
    let codes: Vec<Value> =
        out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["code"].clone()).collect();
    assert_eq!(
        codes,
        [json!(null), json!("CS1105"), json!("CS3002"), json!(null), json!("CS3002")]
    );
    put(&home, "r.jsonl", &lines(&[request(Some("web"), "GET", "/")]));
    assert_eq!(home.run(&args).status.code(), Some(2), "neither an ID nor a path");
}

#[test]
fn a_first_policy_is_compared_with_none() {
    let home = home();
    put(&home, "e.jsonl", &lines(&[request(BATCH, "GET", "/public/a")]));
    let (new, file) = (at(&home, "p.yaml"), at(&home, "e.jsonl"));
    let out = home.run(&[
        "policy",
        "diff",
        "none",
        &new,
        "--edges",
        &file,
        "--trust-domain",
        "corp.test",
    ]);
    assert_eq!(out.status.code(), Some(10));
    assert!(String::from_utf8_lossy(&out.stdout).contains("cut"), "{out:?}");
}

#[test]
fn previews_take_a_made_up_header_for_what_it_is() {
    let home = Home::new();
    let issuer = countersign_testkit::TokenIssuer::new("idp");
    put(
        &home,
        "p.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, namespace: shop}}\n\
             spec: {{jwtRules: [{{issuer: idp, jwks: '{}', outputClaimToHeaders: [{{header: x-role, claim: role}}]}}]}}\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{rules: [{{when: [{{key: 'request.headers[x-role]', values: [admin]}}]}}]}}\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: none, namespace: default}}\nspec: {{}}\n",
            issuer.jwks()
        ),
    );
    let mut spoofed = request(WEB, "GET", "/");
    spoofed["http"]["headers"] = json!([["X-Role", "admin"]]);
    let token = issuer.token(countersign_tls::current_time(), &json!({"role": "admin"}));
    let mut real = request(WEB, "GET", "/");
    real["http"]["headers"] = json!([["authorization", format!("Bearer {token}")]]);
    // Without a destination it is the namespace that documents are in where they name none.
    put(&home, "r.jsonl", &lines(&[spoofed, real, json!({})]));
    let (policies, file) = (at(&home, "p.yaml"), at(&home, "r.jsonl"));
    let args = [
        "policy",
        "decide",
        "--policies",
        &policies,
        "--requests",
        &file,
        "--trust-domain",
        "corp.test",
    ];
    let out = home.ok(&args);
    let allowed: Vec<bool> = out
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["allow"].as_bool().unwrap())
        .collect();
    assert_eq!(allowed, [false, true, false], "{out}");
}
