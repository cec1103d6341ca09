//! `countersign review`: what it prints, writes and leaves with.

use std::process::{Command, Output};

use serde_json::Value;

use crate::kit::Home;

const BAD: &str = "package a\n\nvar c = tls.Config{\n\tInsecureSkipVerify: true,\n}\n";

fn put(home: &Home, name: &str, text: &str) -> String {
    let path = home.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn review(home: &Home, args: &[&str]) -> Output {
    let mut all = vec!["review"];
    all.extend(args);
    home.run(&all)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(home: &Home, args: &[&str]) -> Value {
    let out = review(home, &[args, &["-o", "json"]].concat());
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out.stderr)))
}

#[test]
fn findings_have_their_place_and_their_exit_code() {
    let home = Home::new();
    let tree = home.path("tree").to_str().unwrap().to_owned();
    put(&home, "tree/client.go", BAD);
    put(&home, "tree/peer_test.go", BAD);
    put(&home, "tree/node_modules/x/index.js", "x({rejectUnauthorized: false})\n");
    let out = review(&home, &[&tree]);
    assert_eq!(out.status.code(), Some(10));
    let table = text(&out.stdout);
    assert!(
        table.contains("client.go:4 ") && table.contains(" client-verify-disabled/go-skip-verify "),
        "{table}"
    );
    assert!(table.lines().nth(1).unwrap().starts_with("critical "), "{table}");
    assert!(
        table.contains("high ") && table.contains("peer_test.go:4"),
        "a test weighs less: {table}"
    );
    assert!(!table.contains("node_modules"), "{table}");
    assert!(
        text(&out.stderr).contains("2 files, 10 lines: 1 critical, 1 high"),
        "{}",
        text(&out.stderr)
    );
    for (args, code) in [
        (vec!["--fail-on", "never"], 0),
        (vec!["--skip", "client-verify-disabled"], 0),
        (vec!["--only", "weak-cert"], 0),
        (vec!["--everything", "--only", "client-verify-disabled/js-reject-false"], 10),
    ] {
        let args: Vec<&str> = args.into_iter().chain([tree.as_str()]).collect();
        assert_eq!(review(&home, &args).status.code(), Some(code), "{args:?}");
    }
    let value = json(&home, &[&tree]);
    assert_eq!(value["schema"], "countersign.review/v1");
    let first = &value["findings"][0];
    assert_eq!(first["class"], "client-verify-disabled");
    assert_eq!(
        (&first["line"], &first["column"], &first["cwe"][0]),
        (&4.into(), &22.into(), &295.into())
    );
    assert_eq!(first["evidence"], "InsecureSkipVerify: true,");
}

#[test]
fn what_cannot_be_read_never_passes() {
    let home = Home::new();
    let big = put(&home, "big.go", &"// x\n".repeat(1 << 20));
    let out = review(&home, &[&big]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("unreadable: ") && text(&out.stderr).contains("4 MiB"));
    let some = review(&home, &["/nonexistent", &put(&home, "a.go", BAD)]);
    assert_eq!(some.status.code(), Some(10), "what can be read is reviewed");
    assert!(text(&some.stderr).contains("unreadable: /nonexistent"), "{}", text(&some.stderr));
    let missing = review(&home, &["/nonexistent"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("CS5005"), "{}", text(&missing.stderr));
    std::fs::create_dir_all(home.path("empty")).unwrap();
    let nothing = review(&home, &[home.path("empty").to_str().unwrap()]);
    assert_eq!(nothing.status.code(), Some(3));
    assert!(text(&nothing.stderr).contains("CS5016"), "{}", text(&nothing.stderr));
    let unknown = review(&home, &["--only", "client-verify-disabld", &big]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("did you mean `client-verify-disabled`?"));
    assert_eq!(review(&home, &[]).status.code(), Some(2));
}

#[test]
fn a_baseline_hides_what_was_there_and_not_what_is_new() {
    let home = Home::new();
    let file = put(&home, "tree/client.go", BAD);
    let tree = home.path("tree").to_str().unwrap().to_owned();
    let list = home.path("baseline.json").to_str().unwrap().to_owned();
    assert_eq!(review(&home, &["--write-baseline", &list, &tree]).status.code(), Some(0));
    assert_eq!(review(&home, &["--baseline", &list, &tree]).status.code(), Some(0));
    // The line moves: it is the same finding. A second one like it is not.
    std::fs::write(&file, BAD.replace("package a\n", "package a\n\n// more\n")).unwrap();
    assert_eq!(review(&home, &["--baseline", &list, &tree]).status.code(), Some(0));
    std::fs::write(&file, format!("{BAD}{}", BAD.replace("package a\n", ""))).unwrap();
    let out = review(&home, &["--baseline", &list, &tree]);
    assert_eq!(out.status.code(), Some(10));
    assert_eq!(text(&out.stdout).lines().count(), 2, "one is new: {}", text(&out.stdout));
    std::fs::write(&list, "{}").unwrap();
    let one = home.path("tree/client.go").to_str().unwrap().to_owned();
    std::fs::write(&file, BAD).unwrap();
    assert_eq!(review(&home, &["--write-baseline", &list, &tree]).status.code(), Some(0));
    assert_eq!(
        review(&home, &["--baseline", &list, &one]).status.code(),
        Some(0),
        "one file of it"
    );
    std::fs::write(&list, "{}").unwrap();
    let broken = review(&home, &["--baseline", &list, &tree]);
    assert_eq!(broken.status.code(), Some(2), "{}", text(&broken.stderr));
}

#[test]
fn fixes_are_only_made_where_they_are_safe() {
    let home = Home::new();
    let go = put(&home, "tree/client.go", &format!("{BAD}// é InsecureSkipVerify: true\n"));
    let yaml = put(
        &home,
        "tree/peer.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  mtls: {mode: PERMISSIVE}\n",
    );
    let java = put(&home, "tree/C.java", "class C { Object c = b.usePlaintext(); }\n");
    let tree = home.path("tree").to_str().unwrap().to_owned();
    let out = review(&home, &["--fix", &tree]);
    assert!(text(&out.stderr).contains("fixed "), "{}", text(&out.stderr));
    let now = |p: &str| std::fs::read_to_string(p).unwrap();
    assert_eq!(
        now(&go),
        format!("{}// é InsecureSkipVerify: true\n", BAD.replace("true", "false"))
    );
    assert!(now(&yaml).contains("mode: STRICT"));
    assert!(now(&java).contains("usePlaintext"), "nobody but its owner can mend that");
    let left = json(&home, &[&tree]);
    assert_eq!(left["findings"].as_array().unwrap().len(), 1, "{left}");
}

#[test]
fn since_reports_only_what_a_change_brings() {
    let home = Home::new();
    let tree = home.path("tree").to_str().unwrap().to_owned();
    put(&home, "tree/old.go", BAD);
    put(&home, "tree/both.go", BAD);
    let git = |args: &[&str]| {
        let out = Command::new("git")
            .args([
                "-C",
                &tree,
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@t",
                "-c",
                "commit.gpgsign=false",
            ])
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "a"]);
    assert_eq!(review(&home, &["--since", "HEAD", &tree]).status.code(), Some(0));
    put(&home, "tree/new.go", BAD);
    put(&home, "tree/both.go", &format!("{BAD}{}", BAD.replace("package a\n", "")));
    let value = json(&home, &["--since", "HEAD", &tree]);
    let places: Vec<String> = value["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| {
            format!("{}:{}", f["path"].as_str().unwrap().rsplit('/').next().unwrap(), f["line"])
        })
        .collect();
    assert_eq!(places, ["both.go:8", "new.go:4"]);
    let bad = review(&home, &["--since", "no-such-revision", &tree]);
    assert!(text(&bad.stderr).contains("--since"), "{}", text(&bad.stderr));
    assert_eq!(bad.status.code(), Some(2));
    // A line that is taken away, a name that git would quote, a file that only moves.
    let safe = "import ssl\nc = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\nc.verify_mode = ssl.CERT_REQUIRED\nc.load_cert_chain('a')\n";
    put(&home, "tree/sérvér.py", safe);
    git(&["add", "."]);
    git(&["commit", "-qm", "b"]);
    put(&home, "tree/sérvér.py", &safe.replace("c.verify_mode = ssl.CERT_REQUIRED\n", ""));
    git(&["mv", "old.go", "moved.go"]);
    let value = json(&home, &["--since", "HEAD", &tree]);
    let rules: Vec<&str> =
        value["findings"].as_array().unwrap().iter().map(|f| f["rule"].as_str().unwrap()).collect();
    assert_eq!(rules, ["server-client-auth-absent/py-context-server"], "{value}");
}

#[test]
fn exceptions_are_counted_and_can_be_shown() {
    let home = Home::new();
    let file = put(
        &home,
        "client.go",
        &BAD.replace(
            "\tInsecure",
            "\t// countersign:allow client-verify-disabled reason=lab only\n\tInsecure",
        ),
    );
    let out = review(&home, &[&file]);
    assert_eq!(out.status.code(), Some(0));
    assert!(text(&out.stderr).contains("1 allowed by exceptions"), "{}", text(&out.stderr));
    let shown = review(&home, &["--show-allowed", &file]);
    assert_eq!(shown.status.code(), Some(0), "still allowed");
    assert!(text(&shown.stdout).contains("(allowed: lab only)"));
}

#[test]
fn reports_for_machines() {
    let home = Home::new();
    put(&home, "tree/client & co.go", BAD);
    put(&home, "tree/big.py", &"#\n".repeat(3 << 20));
    let tree = home.path("tree").to_str().unwrap().to_owned();
    let sarif: Value =
        serde_json::from_slice(&review(&home, &["--format", "sarif", &tree]).stdout).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let run = &sarif["runs"][0];
    let result = &run["results"][0];
    assert_eq!(result["ruleId"], "client-verify-disabled/go-skip-verify");
    let rule = &run["tool"]["driver"]["rules"][result["ruleIndex"].as_u64().unwrap() as usize];
    assert_eq!(rule["id"], result["ruleId"]);
    assert_eq!(rule["properties"]["class"], "client-verify-disabled");
    assert!(
        rule["properties"]["tags"]
            .as_array()
            .unwrap()
            .contains(&"class:client-verify-disabled".into())
    );
    let place = &result["locations"][0]["physicalLocation"];
    assert!(place["artifactLocation"]["uri"].as_str().unwrap().ends_with("client%20&%20co.go"));
    assert_eq!(place["region"]["startLine"], 4);
    assert_eq!(
        result["fixes"][0]["artifactChanges"][0]["replacements"][0]["insertedContent"]["text"],
        "false"
    );
    assert_eq!(run["invocations"][0]["executionSuccessful"], false, "one file could not be read");
    let junit = text(&review(&home, &["--format", "junit", &tree]).stdout);
    assert!(junit.contains("tests=\"2\" failures=\"1\" errors=\"1\""), "{junit}");
    assert!(junit.contains("client &amp; co.go"), "{junit}");
    let markdown = text(&review(&home, &["--format", "markdown", &tree]).stdout);
    assert!(
        markdown.contains("| 5. Client side | client accepts any server | **fail**, 1 |"),
        "{markdown}"
    );
    assert!(markdown.contains("| 6. Mesh policy |") && markdown.contains("| pass |"), "{markdown}");
    assert!(markdown.contains("## Could not be read"), "{markdown}");
}

#[test]
fn key_material_is_found_whatever_it_is_called() {
    let home = Home::new();
    let ca = countersign_testkit::TestCa::new(
        "corp.test",
        countersign_identity::UnixTime::parse("2026-11-22T00:00:00Z").unwrap(),
    );
    let svid = ca.issue("/web");
    let pem = countersign_x509::pem::encode("PRIVATE KEY", svid.key.expose_pkcs8());
    put(&home, "tree/notes.txt", &format!("our key:\n{pem}"));
    put(&home, "tree/config.js", &format!("const key = {:?};\n", pem));
    put(
        &home,
        "tree/placeholder.pem",
        "-----BEGIN PRIVATE KEY-----\n<your key>\n-----END PRIVATE KEY-----\n",
    );
    let value =
        json(&home, &["--only", "key-material-committed", home.path("tree").to_str().unwrap()]);
    let found = value["findings"].as_array().unwrap();
    assert_eq!(found.len(), 2, "{value}");
    let secret: String = pem.lines().nth(1).unwrap().chars().take(30).collect();
    assert!(!value.to_string().contains(&secret), "the report must not carry the key");
}

#[test]
fn what_is_passed_over_is_told() {
    let home = Home::new();
    put(&home, "tree/src/a.go", "package a\n");
    put(&home, "tree/vendor/b.go", "package b\nvar c = &tls.Config{InsecureSkipVerify: true}\n");
    let tree = home.path("tree").to_str().unwrap().to_owned();
    let out = review(&home, &[&tree]);
    assert_eq!(out.status.code(), Some(0));
    let note = text(&out.stderr);
    assert!(note.contains("not looked at: ") && note.contains("tree/vendor"), "{note}");
    let value = json(&home, &[&tree]);
    assert_eq!(value["skipped"].as_array().unwrap().len(), 1, "{value}");
    put(&home, "tree/src/bad.go", BAD);
    put(&home, "tree/.countersignignore", "bad.go\n");
    let value = json(&home, &[&tree]);
    assert_eq!(value["findings"].as_array().unwrap().len(), 0, "{value}");
    assert!(value["skipped"].to_string().contains(".countersignignore"), "{value}");
    std::fs::remove_file(home.path("tree/src/bad.go")).unwrap();
    let all = json(&home, &["--everything", &tree]);
    assert_eq!(all["skipped"].as_array().unwrap().len(), 0);
    assert_eq!(all["findings"].as_array().unwrap().len(), 1, "{all}");
    let rule = json(&home, &["--explain", "client-verify-disabled/go-skip-verify"]);
    assert!(rule["examples"].as_array().unwrap().len() > 1, "{rule}");
}

#[test]
fn rules_explain_themselves() {
    let home = Home::new();
    let out = text(&review(&home, &["--explain", "client-verify-disabled/go-skip-verify"]).stdout);
    for part in
        ["severity critical", "CWE-295", "Why:", "Fix:", "Found in client.go", "Not found in"]
    {
        assert!(out.contains(part), "{part}: {out}");
    }
    let list = text(&review(&home, &["--list-rules"]).stdout);
    assert!(list.lines().count() > 100, "{}", list.lines().count());
    let unknown = review(&home, &["--explain", "client-verify-disabled/go-skip-verfy"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("did you mean"));
}

const OWN_RULE: &str = r#"
title = "the old client"
kinds = ["python"]
fix = "Use billing.v2."
[[shape]]
match = '\bbilling\.v1\.(?P<at>connect)\('
[[example]]
file = "a.py"
flagged = [1]
code = "billing.v1.connect(host)\n"
[[example]]
file = "a.py"
code = "billing.v2.connect(host)\n"
"#;

#[test]
fn rules_of_ones_own_join_the_built_in_ones() {
    let home = Home::new();
    put(&home, "rules/insecure-channel/py-billing.toml", OWN_RULE);
    put(&home, "tree/a.py", "import billing\nbilling.v1.connect(host)\n");
    put(&home, "tree/b.go", BAD);
    let (rules, tree) = (home.path("rules"), home.path("tree"));
    let (rules, tree) = (rules.to_str().unwrap(), tree.to_str().unwrap());
    let found = json(&home, &["--rules", rules, tree]);
    let ids: Vec<&str> =
        found["findings"].as_array().unwrap().iter().map(|f| f["rule"].as_str().unwrap()).collect();
    assert!(ids.contains(&"insecure-channel/py-billing"), "{ids:?}");
    assert!(ids.iter().any(|id| id.starts_with("client-verify-disabled/go-")), "{ids:?}");
    let explained = review(&home, &["--rules", rules, "--explain", "insecure-channel/py-billing"]);
    assert!(text(&explained.stdout).contains("Use billing.v2."));
    let tested = review(&home, &["--rules", rules, "--test-rules"]);
    assert_eq!(tested.status.code(), Some(0), "{}", text(&tested.stdout));
    assert!(text(&tested.stderr).contains("2 of 2 examples"), "{}", text(&tested.stderr));
    // What is wrong in one is told with its place, and nothing is reviewed.
    let wrong = OWN_RULE.replace("flagged = [1]", "flagged = [2]");
    put(&home, "rules/insecure-channel/py-billing.toml", &wrong);
    let tested = review(&home, &["--rules", rules, "--test-rules"]);
    assert_eq!(tested.status.code(), Some(10));
    assert!(text(&tested.stdout).contains("expected [2], found [1]"), "{}", text(&tested.stdout));
    // What has no examples was not tested, and what lies elsewhere is no rule.
    let bare = OWN_RULE.split("[[example]]").next().unwrap();
    put(&home, "rules/insecure-channel/py-billing.toml", bare);
    let tested = review(&home, &["--rules", rules, "--test-rules"]);
    assert_eq!(tested.status.code(), Some(10));
    let told = text(&tested.stdout);
    assert!(told.contains("py-billing: no example of the flaw"), "{told}");
    assert!(told.contains("py-billing: no example of what only looks like it"), "{told}");
    put(&home, "rules/stray.toml", OWN_RULE);
    let stray = review(&home, &["--rules", rules, tree]);
    assert_eq!(stray.status.code(), Some(2));
    assert!(text(&stray.stderr).contains("stray.toml"), "{}", text(&stray.stderr));
    std::fs::remove_file(home.path("rules/stray.toml")).unwrap();
    for (text_of, expected) in [
        (OWN_RULE.replace("connect)", "connect"), "py-billing"),
        (OWN_RULE.replace("title", "titel"), "py-billing.toml"),
        (OWN_RULE.replace("python", "pascal"), "`pascal` is not a kind of file"),
    ] {
        put(&home, "rules/insecure-channel/py-billing.toml", &text_of);
        let refused = review(&home, &["--rules", rules, tree]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains(expected), "{}", text(&refused.stderr));
        assert!(refused.stdout.is_empty(), "{}", text(&refused.stdout));
    }
    let nowhere = review(&home, &["--rules", "nowhere", tree]);
    assert_eq!(nowhere.status.code(), Some(2));
}

/// The tool on its own source.
#[test]
fn this_repository_passes() {
    let home = Home::new();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let out = review(&home, &[root]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
}
