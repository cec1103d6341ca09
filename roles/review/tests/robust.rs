//! Whatever a file holds, it is reviewed without a panic, and an edit never cuts a character in two.

#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use countersign_identity::UnixTime;
use countersign_review::{Catalogue, Issue, Reviewer, apply_edits};
use proptest::prelude::*;

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| Catalogue::built_in().unwrap());
static REVIEWER: LazyLock<Reviewer<'static>> = LazyLock::new(|| Reviewer::new(&CATALOGUE));

const NAMES: [&str; 26] = [
    "a.go",
    "a.py",
    "A.java",
    "a.kt",
    "A.cs",
    "a.js",
    "a.ts",
    "a.rs",
    "a.c",
    "a.cpp",
    "a.rb",
    "a.php",
    "a.yaml",
    "a.json",
    "a.toml",
    "a.properties",
    "a.xml",
    "nginx.conf",
    "httpd.conf",
    "haproxy.cfg",
    "Caddyfile",
    "Dockerfile",
    "a.sh",
    "a.service",
    "a.tf",
    "gunicorn.conf.py",
];

/// Pieces of the examples, so that much of what comes up is nearly code.
fn piece() -> impl Strategy<Value = String> {
    let code: Vec<String> = CATALOGUE
        .rules
        .iter()
        .flat_map(|r| &r.examples)
        .flat_map(|e| e.code.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    prop_oneof![
        6 => proptest::sample::select(code),
        1 => "\\PC{0,20}",
        1 => proptest::sample::select(vec![
            "{".to_owned(), "}".into(), "\"".into(), "'''".into(), "é\u{1f600}".into(), "/*".into(), "---".into(),
            "x.yaml: |".into(), "  key: |".into(), "countersign:allow x until=2020-01-01 reason=y".into(),
            "-----BEGIN PRIVATE KEY-----".into(), "-----END PRIVATE KEY-----".into(), "{{ x }}".into(), "\r".into(),
            "x: {{ y | default \"no\" }}".into(), "x: \"${Y:-no}\"".into(), "- --flag".into(), "- \"no\"".into(), "{{ default \"é\" .x".into(),
            "{{- if .é }}".into(), "{{ else }}".into(), "{{ end }}".into(), "{% if é %}".into(), "{% endif %}".into(), "<% if é %>".into(), "<% end %>".into(),
            "import stdtls \"crypto/tls\"".into(), "é stdtls.Config{".into(), "if é { return }".into(), ["skipTLSVerify", ": true,"].concat(),
            "*/".into(), "/*/".into(), "\"\"\"".into(), "`".into(), "//".into(), "#".into(), "\\".into(), "cat > a.yaml <<EOF".into(),
            "EOF".into(), "  run: |".into(), "- name: A_B".into(), "  value: \"true\"".into(), "ENV A_B=1 \\".into(),
            "a: \"server {\\n ssl_verify_client optional;\\n proxy_pass x;\\n}\"".into(),
        ]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_text_breaks_it(
        name in proptest::sample::select(NAMES.to_vec()),
        pieces in proptest::collection::vec((piece(), 0usize..8), 0..60),
        newline in proptest::sample::select(vec!["\n", "\r\n", " "]),
    ) {
        let text: String = pieces.iter().map(|(p, depth)| format!("{}{p}{newline}", " ".repeat(*depth))).collect();
        let issues = REVIEWER.text(name, &text, UnixTime::default(), "2026-11-22").unwrap_or_default();
        let lines = text.lines().count().max(1);
        for i in &issues {
            prop_assert!(i.line <= lines && i.line >= 1, "{}:{} of {lines}", i.rule, i.line);
            prop_assert!(i.end_line >= i.line);
        }
        let all: Vec<&Issue> = issues.iter().collect();
        let fixed = apply_edits(&text, &all);
        // What was rewritten is not found again in the same place by the same rule.
        prop_assert!(fixed.len() <= text.len() + all.len() * 32);
    }

    #[test]
    fn no_bytes_break_the_readers_of_key_material(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let dir = tempfile::tempdir().unwrap();
        let headers: [&[u8]; 4] = [&[], &[0xfe, 0xed, 0xfe, 0xed], &[0xce, 0xce, 0xce, 0xce], &[0x30, 0x82, 0x02, 0x00, 0x02, 0x01, 0x03]];
        for (n, header) in headers.iter().enumerate() {
            let data = [header, bytes.as_slice()].concat();
            std::fs::write(dir.path().join(format!("{n}.p12")), data).unwrap();
        }
        let options = countersign_review::Options {
            paths: vec![dir.path().to_owned()],
            everything: true,
            now: UnixTime::default(),
            today: "2026-11-22".into(),
            threads: 1,
        };
        let report = countersign_review::review(&CATALOGUE, &options, &|_, _| {}).unwrap();
        prop_assert!(report.issues.iter().all(|i| i.line == 0));
    }
}

/// Much of the same is looked through once, not once for each.
#[test]
fn repetition_is_no_way_to_keep_it_busy() {
    for (name, line) in [
        ("a.sh", "cat <<A\n"),
        ("a.sh", "x <<EOF \\\n"),
        ("a.yaml", "  run: |\n"),
        ("a.yaml", "- name: A_B\n"),
        ("a.tf", "a = <<E {\n"),
        ("Dockerfile", "ENV A_B=1 \\\n"),
        ("unknown", "server {\n"),
    ] {
        let text = line.repeat(100_000);
        let issues = REVIEWER.text(name, &text, UnixTime::default(), "2026-11-22").unwrap();
        assert!(issues.iter().all(|i| i.line <= 100_000), "{name}");
    }
}
