//! Bad input: one clear error with code, place and hint, the right exit code, nothing half-applied.

#![allow(clippy::unwrap_used, dead_code)]
#![allow(unreachable_pub, missing_docs)]

mod check;
#[path = "../e2e/kit.rs"]
mod kit;
mod policy;
mod probe;
mod review;

use kit::{Home, Running};

fn fails(home: &Home, args: &[&str], code: i32, words: &[&str]) {
    let out = home.run(args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?} lacks {word:?}:\n{text}");
    }
    assert!(
        out.stdout.is_empty(),
        "errors are not data: {:?}",
        String::from_utf8_lossy(&out.stdout)
    );
}

fn mesh() -> (Home, Running) {
    let home = Home::new();
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let (up, _) = home.start(&["up", "--listen", "127.0.0.1:0"]);
    (home, up)
}

#[test]
fn directories() {
    let home = Home::new();
    fails(&home, &["server"], 1, &["CS5008", "countersign init"]);
    fails(&home, &["init", "--trust-domain", "not a domain"], 2, &["CS5003", "` `"]);
    fails(&home, &["token"], 4, &["CS4011", "countersign server"]);
    let status = home.run(&["status"]);
    assert_eq!(status.status.code(), Some(4), "what it found is data all the same");
    assert!(String::from_utf8_lossy(&status.stdout).contains("cannot reach the server"));
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let before = std::fs::read(home.path("server/server.db")).unwrap();
    fails(&home, &["init", "--trust-domain", "corp.test"], 1, &["CS5009"]);
    fails(
        &home,
        &["init", "--trust-domain", "other.test"],
        1,
        &["CS5007", "other.test", "corp.test"],
    );
    assert_eq!(std::fs::read(home.path("server/server.db")).unwrap(), before, "left untouched");
    fails(&home, &["agent"], 4, &["CS4004", "countersign token"]);
    fails(&home, &["agent", "--join", "csjoin1_garbage"], 2, &["CS4013"]);
}

#[test]
fn addresses_in_use_and_second_servers() {
    let (home, _up) = mesh();
    fails(&home, &["server", "--listen", "127.0.0.1:0"], 1, &["CS5014"]);
    let other = Home::new();
    other.ok(&["init", "--trust-domain", "other.test"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    fails(&other, &["server", "--listen", &listen], 1, &["CS5006", &listen]);
    let proxy = ["proxy", "inbound", "--listen", &listen, "--forward", "127.0.0.1:1"];
    fails(&home, &proxy, 1, &["CS5006", &listen]);
}

#[test]
fn yaml() {
    let (home, _up) = mesh();
    let file = home.path("bad.yaml");
    let path = file.to_str().unwrap().to_owned();
    let good = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: good, namespace: shop}\nspec: {}\n";
    let cases: [(&str, &[&str]); 8] = [
        ("a: [", &["CS5001", "bad.yaml:"]),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n", &["CS5010", "Pod"]),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  rules:\n  - from:\n    - source:\n        principal: [a]\n",
            &["CS5002", "bad.yaml:13", "principals"],
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {action: DENIED}\n",
            &["CS5003", "DENIED"],
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  action: DENY\n  rules:\n  - to: [{operation: {ports: [\"70000\"]}}]\n",
            &["CS5003", "ports[0]", "70000"],
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  action: DENY\n  rules:\n  - from: [{source: {ipBlocks: [10.0.0.0/33]}}]\n",
            &["CS5003", "ipBlocks[0]"],
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {action: CUSTOM}\n",
            &["CS5003", "spec.provider.name", "CUSTOM"],
        ),
        (
            "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterStaticEntry\nmetadata: {name: x}\nspec: {spiffeID: 'spiffe://corp.test/a b', parentID: 'spiffe://corp.test/x', selectors: ['unix:uid:1']}\n",
            &["CS4006", "spiffe_id"],
        ),
    ];
    for (bad, words) in cases {
        std::fs::write(&file, format!("{good}---\n{bad}")).unwrap();
        let out = home.run(&["apply", "-f", &path]);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success(), "{bad}");
        for word in words {
            assert!(text.contains(word), "{bad}\nlacks {word:?}:\n{text}");
        }
        assert_eq!(
            home.json(&["policy", "list"])["policies"].as_array().unwrap().len(),
            0,
            "nothing half-applied"
        );
    }
    let empty = home.path("empty");
    std::fs::create_dir(&empty).unwrap();
    assert_eq!(home.run(&["apply", "-f", empty.to_str().unwrap()]).status.code(), Some(3));
    fails(&home, &["apply", "-f", "/no/such/file"], 1, &["CS5005"]);
}

#[test]
fn entries() {
    let (home, _up) = mesh();
    let create = |id: &str, selector: &str, words: &[&str]| {
        let out = home.run(&["entry", "create", "--spiffe-id", id, "--selector", selector]);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(matches!(out.status.code(), Some(1 | 2)), "{text}");
        for word in words {
            assert!(text.contains(word), "{text}");
        }
    };
    create("/a//b", "unix:uid:1", &["CS5003", "empty segment"]);
    create("spiffe://other.test/a", "unix:uid:1", &["CS4006", "corp.test"]);
    create("/spire/server", "unix:uid:1", &["CS4006", "reserved"]);
    create("/a", "uid", &["CS5003", "TYPE:VALUE"]);
    create("/a", "uid:1", &["CS5003", "unix:uid:1"]);
    fails(&home, &["entry", "create", "--spiffe-id", "/a"], 1, &["CS4006", "no selectors"]);
    fails(&home, &["entry", "show", "nope"], 1, &["CS4007"]);
    fails(&home, &["entry", "delete", "nope"], 1, &["CS4007"]);
    assert_eq!(home.entries().len(), 0);
}

#[test]
fn proxies() {
    let home = Home::new();
    let base = ["proxy", "inbound", "--listen", "127.0.0.1:0", "--forward"];
    let with = |extra: &[&'static str]| -> Vec<&'static str> {
        let mut v: Vec<&str> = base.to_vec();
        v.extend(extra);
        v
    };
    fails(&home, &with(&["nonsense"]), 2, &["CS5003", "HOST:PORT"]);
    fails(&home, &with(&["127.0.0.1:1", "--mode", "permissive"]), 2, &["CS2102", "--until"]);
    fails(&home, &with(&["127.0.0.1:1", "--until", "never"]), 2, &["CS5003"]);
    fails(&home, &["proxy"], 2, &["CS5003", "proxy inbound"]);
    let outbound = [
        "proxy",
        "outbound",
        "--listen",
        "0.0.0.0:0",
        "--upstream",
        "127.0.0.1:1",
        "--peer-id",
        "spiffe://a.test/b",
    ];
    fails(&home, &outbound, 2, &["CS5003", "loopback"]);
    let key = home.path("key.pem");
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    let cert = home.path("cert.pem");
    std::fs::write(&cert, "hello\n").unwrap();
    let (k, c) = (key.to_str().unwrap(), cert.to_str().unwrap());
    let files = [
        "proxy",
        "inbound",
        "--listen",
        "127.0.0.1:0",
        "--forward",
        "127.0.0.1:1",
        "--cert",
        c,
        "--key",
        k,
        "--bundle",
        c,
    ];
    fails(&home, &files, 1, &["CS5013", "cert.pem:1"]);
    let config = home.path("proxy.toml");
    std::fs::write(&config, "[[inbound]]\nlisten = \"127.0.0.1:0\"\nforwards = \"x\"\n").unwrap();
    fails(&home, &["proxy", "--config", config.to_str().unwrap()], 2, &["CS5002", "proxy.toml:3"]);
}

#[test]
fn certificates() {
    let home = Home::new();
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let bundle = home.path("bundle.pem");
    let bundle = bundle.to_str().unwrap();
    let shown = home.json(&["id", "inspect", bundle]);
    assert_eq!(shown["certificates"][0]["kind"], "root CA");
    fails(&home, &["id", "verify", bundle, "--bundle", bundle], 1, &["CS1009"]);
    fails(&home, &["id", "inspect", "/no/such/file"], 1, &["CS5005"]);
    fails(&home, &["id", "inspect", "127.0.0.1:1"], 4, &["CS2201"]);
    let junk = home.path("junk.pem");
    std::fs::write(&junk, "x\n-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n")
        .unwrap();
    fails(&home, &["id", "inspect", junk.to_str().unwrap()], 1, &["CS5013", "junk.pem:2"]);
    fails(&home, &["id", "verify", bundle, "--bundle", bundle, "--at", "soon"], 2, &["CS5003"]);
}

#[test]
fn a_disk_that_takes_nothing() {
    // A directory that cannot be written stands for a full disk: the write fails the same way.
    if rustix::process::geteuid().is_root() {
        let home = Home::new();
        let file = home.path("file");
        std::fs::write(&file, "").unwrap();
        let inside = file.join("data");
        let out = home
            .command(&["init", "--trust-domain", "a.test"])
            .env("COUNTERSIGN_DATA_DIR", &inside)
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&out.stderr).contains("CS50"), "{out:?}");
    }
}

#[test]
fn why_names_errors_of_other_stacks() {
    let home = Home::new();
    let out = home.ok(&["why", "x509: certificate signed by unknown authority"]);
    assert!(out.starts_with("CS1003  "), "{out}");
    assert!(out.contains("(Go)") && out.contains("  1. see what the port presents"), "{out}");
    let value = home.json(&[
        "why",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired",
    ]);
    assert_eq!(value["causes"][0]["code"], "CS1001");
    fails(&home, &["why", "all is well"], 3, &["CS5016", "id inspect"]);
}
