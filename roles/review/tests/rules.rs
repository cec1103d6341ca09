//! Every rule finds what it says it finds, and leaves alone what only looks like it.

#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use countersign_identity::UnixTime;
use countersign_review::{Catalogue, Confidence, Issue, Reviewer};

const TODAY: &str = "2026-11-22";

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| Catalogue::built_in().unwrap());
static REVIEWER: LazyLock<Reviewer<'static>> = LazyLock::new(|| Reviewer::new(&CATALOGUE));

fn review(file: &str, code: &str) -> Vec<Issue> {
    REVIEWER.text(file, code, UnixTime::default(), TODAY).unwrap()
}

#[test]
fn every_example_of_every_rule_is_judged_as_it_says() {
    let wrong = REVIEWER.wrong_examples(|_| true, UnixTime::default(), TODAY);
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_pattern_is_a_regular_expression() {
    CATALOGUE.check(|_| true).unwrap();
}

#[test]
fn every_rule_on_text_has_an_example_of_both_kinds() {
    let by_code = [
        "mesh-permissive/istio-rule-against-strict",
        "identity-binding-absent/istio-uncovered-workload",
        "key-material-committed/pem",
        "key-material-committed/pkcs12",
        "key-material-committed/jks",
        "key-material-committed/k8s-secret",
        "long-lived-cert/cert",
        "long-lived-cert/expired",
        "weak-cert/cert",
        "weak-cert/csr",
        "weak-cert/key-mismatch",
        "weak-cert/chain",
        "plaintext-bypass/networkpolicy-gap",
        "mesh-permissive/istio-no-strict-default",
        "identity-binding-absent/shared-identity",
    ];
    for rule in CATALOGUE.rules.iter().filter(|r| !by_code.contains(&r.id.as_str())) {
        assert!(rule.examples.iter().any(|e| !e.flagged.is_empty()), "{}: no flaw", rule.id);
        assert!(rule.examples.iter().any(|e| e.flagged.is_empty()), "{}: nothing safe", rule.id);
        assert!(!rule.title.ends_with('.') && !rule.fix.is_empty(), "{}", rule.id);
    }
    assert!(CATALOGUE.rules.len() > 100, "{}", CATALOGUE.rules.len());
    assert_eq!(CATALOGUE.classes.len(), 13);
}

/// Comments and strings are not code, in any language.
#[test]
fn what_is_only_written_about_is_not_found() {
    for (file, text) in [
        (
            "a.go",
            "package a\n/* InsecureSkipVerify: true */\nvar s = \"InsecureSkipVerify: true\"\nvar r = `InsecureSkipVerify: true`\n",
        ),
        (
            "a.py",
            "\"\"\"requests.get(u, verify=False)\"\"\"\n# requests.get(u, verify=False)\ns = 'requests.get(u, verify=False)'\n",
        ),
        ("A.java", "class A { // .usePlaintext()\n String s = \".usePlaintext()\"; }\n"),
        ("a.kt", "// .usePlaintext()\nval s = \".usePlaintext()\"\n"),
        (
            "A.cs",
            "class A { /* DangerousAcceptAnyServerCertificateValidator */ string s = \"DangerousAcceptAnyServerCertificateValidator\"; }\n",
        ),
        (
            "a.ts",
            "// rejectUnauthorized: false\nconst s = 'rejectUnauthorized: false'; const t = `rejectUnauthorized: false`;\n",
        ),
        (
            "a.rs",
            "// danger_accept_invalid_certs(true)\nconst S: &str = r#\"danger_accept_invalid_certs(true)\"#;\n",
        ),
        (
            "a.c",
            "/* CURLOPT_SSL_VERIFYPEER, 0 */\nconst char *s = \"CURLOPT_SSL_VERIFYPEER, 0\";\n",
        ),
        ("a.rb", "# OpenSSL::SSL::VERIFY_NONE\ns = 'OpenSSL::SSL::VERIFY_NONE'\n"),
        (
            "a.php",
            "<?php\n// CURLOPT_SSL_VERIFYPEER, false\n$s = 'CURLOPT_SSL_VERIFYPEER, false';\n",
        ),
        ("a.yaml", "# insecure_skip_verify: true\na: b # insecureSkipVerify: true\n"),
        ("nginx.conf", "server {\n # ssl_verify_client optional;\n}\n"),
        ("server.xml", "<Server><!-- clientAuth=\"want\" --></Server>\n"),
        ("README.md", "InsecureSkipVerify: true\n"),
    ] {
        let found: Vec<String> =
            review(file, text).iter().map(|i| format!("{}:{}", i.rule, i.line)).collect();
        assert!(found.is_empty(), "{file}: {found:?}");
    }
}

#[test]
fn an_exception_needs_a_reason_and_ends_on_its_day() {
    let with = |comment: &str| {
        let code = format!(
            "package a\nvar c = tls.Config{{\n\t// {comment}\n\tInsecureSkipVerify: true,\n}}\n"
        );
        review("a.go", &code).remove(0)
    };
    let allowed = with("countersign:allow client-verify-disabled until=2026-11-22 reason=lab only");
    assert_eq!(allowed.allowed.unwrap().reason, "lab only");
    let by_rule = with("countersign:allow client-verify-disabled/go-skip-verify reason=lab only");
    assert!(by_rule.allowed.is_some());
    for (comment, part) in [
        (
            "countersign:allow client-verify-disabled until=2026-11-21 reason=lab",
            "expired-exception",
        ),
        ("countersign:allow client-verify-disabled until=2026-11-30", "without reason="),
        ("countersign:allow client-verify-disabled until=soon reason=lab", "YYYY-MM-DD"),
    ] {
        let issue = with(comment);
        assert!(
            issue.allowed.is_none() && issue.message.contains(part),
            "{comment}: {}",
            issue.message
        );
    }
    let in_string = "package a\nvar s = \"countersign:allow client-verify-disabled reason=x\"; var c = tls.Config{InsecureSkipVerify: true}\n";
    assert!(review("a.go", in_string)[0].allowed.is_none(), "anybody's word in a string");
    let no_day = with("countersign:allow client-verify-disabled until=2027-13-45 reason=lab");
    assert!(no_day.allowed.is_none());
    let other = with("countersign:allow weak-cert reason=lab only");
    assert!(other.allowed.is_none() && !other.message.contains("exception"));
}

#[test]
fn files_in_files_are_read_at_their_lines() {
    let config_map = "kind: ConfigMap\ndata:\n  nginx.conf: |\n    server {\n      listen 443 ssl;\n      ssl_verify_client optional;\n    }\n";
    let found = review("cm.yaml", config_map);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].rule.as_str(), found[0].line),
        ("server-client-auth-optional/nginx-optional", 6)
    );
}

#[test]
fn spellings_of_yaml_are_the_same_to_it() {
    for text in [
        "kind: PeerAuthentication\nspec:\n  mtls:\n    mode: PERMISSIVE # for now\n",
        "kind: PeerAuthentication\nspec:\n  mtls:\n    mode: 'PERMISSIVE'\n",
        "\"kind\": \"PeerAuthentication\"\n\"spec\":\n  \"mtls\":\n    \"mode\": \"PERMISSIVE\"\n",
        "{\"kind\": \"PeerAuthentication\", \"spec\": {\"mtls\": {\"mode\": \"PERMISSIVE\"}}}\n",
    ] {
        for file in ["a.yaml", "a.json"] {
            if file == "a.json" && !text.starts_with('{') {
                continue;
            }
            let found = review(file, text);
            assert_eq!(found.len(), 1, "{file}: {text}: {found:?}");
        }
    }
}

#[test]
fn what_another_function_does_right_excuses_nothing() {
    let go = "package a\nfunc f() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }\nfunc g(c *x509.Certificate) error {\n\t_, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: \"x\"})\n\treturn err\n}\n";
    assert_eq!(review("a.go", go)[0].rule, "client-verify-disabled/go-skip-verify");
    let grpc = "package a\nfunc m() { grpc.NewClient(\"db:443\", grpc.WithTransportCredentials(insecure.NewCredentials())) }\nfunc n() { grpc.NewClient(\"localhost:443\", grpc.WithTransportCredentials(insecure.NewCredentials())) }\n";
    let lines: Vec<usize> = review("a.go", grpc).iter().map(|i| i.line).collect();
    assert_eq!(lines, [2]);
    let py = "import ssl\nc = ssl.create_default_context()\nc.check_hostname = False\nc.verify_mode = ssl.CERT_NONE\nd = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\nd.verify_mode = ssl.CERT_REQUIRED\n";
    assert_eq!(review("a.py", py)[0].rule, "client-verify-disabled/py-verify-false");
}

#[test]
fn templates_are_read_as_far_as_they_go() {
    let helm = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: {{ include \"x.name\" . }}\nspec:\n  mtls:\n    {{- if .Values.legacy }}\n    mode: PERMISSIVE\n    {{- end }}\n";
    let found = review("templates/peer.yaml", helm);
    assert_eq!((found[0].rule.as_str(), found[0].line), ("mesh-permissive/istio-permissive", 8));
}

#[test]
fn comments_of_terraform_begin_outside_strings() {
    let text = "resource \"a\" \"b\" {\n  arn = \"arn:aws:s3:::bucket/*\"\n}\nresource \"helm_release\" \"c\" {\n  skip_tls_verify = true\n}\n";
    assert_eq!(lines_of("main.tf", text, "client-verify-disabled"), [5]);
    let hidden = text.replace("  skip", "  /* skip").replace("= true", "= true */");
    assert!(lines_of("main.tf", &hidden, "client-verify-disabled").is_empty());
}

#[test]
fn what_is_not_there_by_default_guards_nothing() {
    let dial = "function dial(target, tls = null) {\n  if (!tls) {\n    return new Client(target, grpc.credentials.createInsecure());\n  }\n  return new Client(target, grpc.credentials.createSsl(tls.ca, tls.key, tls.cert));\n}\n";
    let sure = |text: &str| {
        review("dial.js", text)
            .iter()
            .any(|i| i.rule == "insecure-channel/js-grpc" && i.confidence == Confidence::High)
    };
    assert!(sure(dial));
    assert!(!sure(&dial.replace(" = null", "")), "the caller has to say");
    let get = "def get(url, verify_ssl=None):\n    if not verify_ssl:\n        verify = False\n    return requests.get(url, verify=verify)\n";
    assert!(lines_of("get.py", get, "client-verify-disabled").contains(&3));
    let set = get.replace("    if", "    verify_ssl = conf.get(\"verify\", True)\n    if");
    assert!(
        !lines_of("get.py", &set, "client-verify-disabled").contains(&4),
        "what it is given counts"
    );
}

#[test]
fn context_lowers_and_is_told() {
    let code = "package a\nvar c = tls.Config{InsecureSkipVerify: true}\n";
    let severity = |file: &str| {
        let i = review(file, code).remove(0);
        (i.severity.as_str(), i.context.as_str())
    };
    assert_eq!(severity("client.go"), ("critical", "production"));
    assert_eq!(severity("client_test.go"), ("high", "test"));
    assert_eq!(severity("examples/client.go"), ("high", "example"));
    assert_eq!(severity("pkg/testutil.go"), ("high", "test"));
    assert_eq!(severity("deploy-testing/client.go"), ("high", "test"));
    assert_eq!(severity("latest/client.go"), ("critical", "production"));
    let inline = "fn f() {}\n#[cfg(test)]\nmod tests {\n    fn c() { b().danger_accept_invalid_certs(true); }\n}\n";
    assert_eq!(review("lib.rs", inline)[0].context.as_str(), "test");
    let all = inline.replace("cfg(test)", "cfg(all(test, feature = \"tls\"))");
    assert_eq!(review("lib.rs", &all)[0].context.as_str(), "test");
    let guarded = "class C:\n    def f(self):\n        if settings.DEBUG:\n            requests.get(u, verify=False)\n";
    assert_eq!(review("c.py", guarded)[0].severity.as_str(), "high");
}

/// The lines of a file at which a class is found.
fn lines_of(file: &str, text: &str, class: &str) -> Vec<usize> {
    review(file, text).iter().filter(|i| i.class.name == class).map(|i| i.line).collect()
}

#[test]
fn files_within_files_are_read_as_what_they_are() {
    let site = "server {\n  listen 443 ssl;\n  ssl_verify_client optional;\n}\n";
    let indented: String = site.lines().map(|l| format!("    {l}\n")).collect();
    let optional = "server-client-auth-optional";
    for (file, text, line) in [
        ("map.yaml", format!("kind: ConfigMap\ndata:\n  site.conf: |-\n{indented}"), 6),
        ("values.yaml", format!("nginx:\n  serverBlock: |\n{indented}"), 5),
        (
            "play.yml",
            format!(
                "- copy:\n    dest: /etc/nginx/a.conf\n    content: |\n  {}",
                indented.replace('\n', "\n  ")
            ),
            6,
        ),
        ("map.tf", format!("data = {{\n  \"nginx.conf\" = <<EOT\n{site}EOT\n}}\n"), 5),
        ("setup.sh", format!("cat > /etc/nginx/a.conf <<'EOF'\n{site}EOF\n"), 4),
        ("sites/shop.example.org", site.to_owned(), 3),
        ("map.json", format!("{{\n \"nginx.conf\": \"{}\"\n}}\n", site.replace('\n', "\\n")), 2),
    ] {
        assert_eq!(lines_of(file, &text, optional), [line], "{file}\n{text}");
    }
    // What documents are about is not what they are.
    assert!(review("notes.md", site).is_empty());
    // A workflow that runs a script that applies a manifest.
    let nested = "jobs:\n  a:\n    steps:\n      - run: |\n          kubectl apply -f - <<EOF\n          apiVersion: security.istio.io/v1\n          kind: PeerAuthentication\n          spec:\n            mtls:\n              mode: PERMISSIVE\n          EOF\n";
    assert_eq!(lines_of("deploy.yml", nested, "mesh-permissive"), [10]);
    // An exception in the inner file counts there.
    let allowed = nested.replace(
        "            mtls:\n",
        "            mtls:\n              # countersign:allow mesh-permissive reason=migration\n",
    );
    let issues = review("deploy.yml", &allowed);
    assert!(issues.iter().all(|i| i.class.name != "mesh-permissive" || i.allowed.is_some()));
}

#[test]
fn variables_of_the_environment_are_settings_wherever_they_are_set() {
    let class = "client-verify-disabled";
    for (file, text, line) in [
        ("pod.yaml", "env:\n- name: GIT_SSL_NO_VERIFY\n  value: \"true\"\n", 3),
        (
            "compose.yml",
            "services:\n  a:\n    environment:\n      GIT_SSL_NO_VERIFY: \"true\"\n",
            4,
        ),
        ("Dockerfile", "FROM a\nENV A_B=1 \\\n    GIT_SSL_NO_VERIFY=true\n", 3),
        ("a.service", "[Service]\nEnvironment=GIT_SSL_NO_VERIFY=true\n", 2),
    ] {
        assert!(
            lines_of(file, text, class).contains(&line),
            "{file}: {:?}",
            lines_of(file, text, class)
        );
    }
}

#[test]
fn a_line_that_goes_on_in_the_next_one_is_one() {
    let text = "FROM nginx\nRUN apk add openssl && \\\n  openssl req -x509 \\\n  -nodes -days 3650 \\\n  -keyout /etc/tls/server.key -out /etc/tls/server.pem\n";
    assert!(!lines_of("Dockerfile", text, "key-material-committed").is_empty());
    assert!(!lines_of("Dockerfile", text, "long-lived-cert").is_empty());
}
