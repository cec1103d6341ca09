//! The four commands, and what a user does next.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::kit::{Home, application, eventually, free_port, get, reluctant};

fn mesh(home: &Home) -> (crate::kit::Running, String) {
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let (up, ready) = home.start(&["up", "--listen", "127.0.0.1:0"]);
    (up, ready["agent_id"].as_str().unwrap().to_owned())
}

#[test]
fn four_commands_make_a_mesh() {
    let home = Home::new();
    let out = home.run(&["init", "--trust-domain", "corp.test"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("next: "), "names the next command");
    let (_server, ready) = home.start(&["server", "--listen", "127.0.0.1:0"]);
    assert_eq!(ready["schema"], "countersign.server/v1");
    let token = home.ok(&["token"]);
    let (_agent, ready) = home.start(&["agent", "--join", token.trim()]);
    assert!(
        ready["agent_id"]
            .as_str()
            .unwrap()
            .starts_with("spiffe://corp.test/spire/agent/join_token/")
    );
    home.ok(&["status", "--wait", "10s"]);

    let app = application();
    let (inbound, outbound) = (free_port(), free_port());
    let inbound_arg = format!("127.0.0.1:{inbound}={app}");
    let edges = home.path("edges.jsonl").to_str().unwrap().to_owned();
    let _api = home.spawn(
        &[
            "run",
            "--id",
            "/ns/shop/sa/api",
            "--inbound",
            &inbound_arg,
            "--edges",
            &edges,
            "--",
            "sleep",
            "60",
        ],
        "log-api",
    );
    let outbound_arg = format!("127.0.0.1:{outbound}=127.0.0.1:{inbound},/ns/shop/sa/api");
    let _web = home.spawn(
        &["run", "--id", "/ns/shop/sa/web", "--outbound", &outbound_arg, "--", "sleep", "60"],
        "log-web",
    );
    let address = format!("127.0.0.1:{outbound}");
    let answer =
        eventually("a call", || get(&address).ok().filter(|a| a.starts_with("HTTP/1.1 200 OK")));
    assert!(answer.contains("URI=spiffe://corp.test/ns/shop/sa/web"), "{answer}");
    assert!(answer.contains("By=spiffe://corp.test/ns/shop/sa/api"), "{answer}");

    // A policy reaches the proxy at once and names itself when it refuses.
    std::fs::write(
        home.path("policy.yaml"),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: shop}\nspec: {}\n",
    )
    .unwrap();
    home.ok(&["apply", "-f", home.path("policy.yaml").to_str().unwrap()]);
    let refused =
        eventually("the policy", || get(&address).ok().filter(|a| a.starts_with("HTTP/1.1 403 ")));
    assert!(refused.contains("CS3002"), "{refused}");
    home.ok(&["policy", "delete", "AuthorizationPolicy", "shop/nobody"]);
    eventually("the policy's end", || {
        get(&address).ok().filter(|a| a.starts_with("HTTP/1.1 200 OK"))
    });

    // What was observed becomes a policy that allows exactly that.
    assert_eq!(std::fs::read_to_string(&edges).unwrap().lines().count(), 1, "each call once");
    let suggested = home.ok(&["policy", "suggest", "--edges", &edges]);
    assert!(suggested.contains("corp.test/ns/shop/sa/web"), "{suggested}");
    std::fs::write(home.path("suggested.yaml"), suggested).unwrap();
    home.ok(&["apply", "-f", home.path("suggested.yaml").to_str().unwrap()]);
    let diff = ["policy", "diff", "none", "server", "--edges", &edges];
    assert_eq!(home.run(&diff).status.code(), Some(0), "nothing observed would be cut");
    eventually("a call", || get(&address).ok().filter(|a| a.starts_with("HTTP/1.1 200 OK")));

    let journal = home.json(&["ca", "journal", "--limit", "100"]);
    assert_eq!(journal["chain_intact"], true);
    let issued: Vec<&str> = journal["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["spiffe_id"].as_str().unwrap())
        .collect();
    assert!(issued.contains(&"spiffe://corp.test/ns/shop/sa/web"), "{issued:?}");
}

#[test]
fn a_policy_cuts_what_is_under_way_and_nothing_else() {
    let home = Home::new();
    let (_up, _) = mesh(&home);
    let released = Arc::new(AtomicBool::new(false));
    let (inbound, outbound) = (free_port(), free_port());
    let inbound_arg = format!("127.0.0.1:{inbound}={}", reluctant(Arc::clone(&released)));
    let _api = home.spawn(
        &["run", "--id", "/ns/shop/sa/api", "--inbound", &inbound_arg, "--", "sleep", "60"],
        "log-api",
    );
    let outbound_arg = format!("127.0.0.1:{outbound}=127.0.0.1:{inbound},/ns/shop/sa/api");
    let _web = home.spawn(
        &["run", "--id", "/ns/shop/sa/web", "--outbound", &outbound_arg, "--", "sleep", "60"],
        "log-web",
    );
    let begin = |path: &str| {
        let mut stream =
            eventually("a connection", || TcpStream::connect(("127.0.0.1", outbound)).ok());
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
        let silent = stream.read(&mut [0; 16]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        silent.then_some(stream)
    };
    let mut held = eventually("a request under way", || begin("/held"));
    let mut kept = eventually("a request under way", || begin("/kept"));
    std::fs::write(
        home.path("policy.yaml"),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: held, namespace: shop}\n\
         spec: {action: DENY, rules: [{to: [{operation: {paths: [/held]}}]}]}\n",
    )
    .unwrap();
    home.ok(&["apply", "-f", home.path("policy.yaml").to_str().unwrap()]);
    held.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = Vec::new();
    let cut = held.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"), "{cut:?}");
    assert!(!matches!(&cut, Err(e) if e.kind() == ErrorKind::WouldBlock), "it was cut");
    assert!(home.log("log-api").contains("CS2302"), "{}", home.log("log-api"));
    released.store(true, Ordering::Relaxed);
    kept.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = [0; 64];
    let n = kept.read(&mut answer).unwrap();
    assert!(answer[..n].starts_with(b"HTTP/1.1 200 OK"), "the other one was left alone");
}

#[test]
fn run_passes_exit_codes_and_signals_on_and_leaves_nothing_behind() {
    let home = Home::new();
    let (_up, _) = mesh(&home);
    let out = home.run(&["run", "--id", "/job", "--", "sh", "-c", "exit 7"]);
    assert_eq!(out.status.code(), Some(7), "{}", String::from_utf8_lossy(&out.stderr));
    let trap = "trap 'exit 9' TERM; touch $0; while :; do sleep 0.05; done";
    let marker = home.path("started");
    let mut child = home.spawn(
        &["run", "--id", "/job", "--", "sh", "-c", trap, marker.to_str().unwrap()],
        "log-run",
    );
    eventually("the child's start", || marker.exists().then_some(()));
    child.terminate();
    assert_eq!(child.0.wait().unwrap().code(), Some(9), "{}", home.log("log-run"));
    assert_eq!(home.entries(), Vec::<serde_json::Value>::new(), "its entry is gone");
    let missing = home.run(&["run", "--id", "/job", "--", "/no/such/program"]);
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn entries_come_and_go_in_json_and_yaml() {
    let home = Home::new();
    let (_up, agent) = mesh(&home);
    let made = home.json(&[
        "entry",
        "create",
        "--spiffe-id",
        "/db",
        "--selector",
        "unix:uid:4242",
        "--dns",
        "db.test",
        "--x509-svid-ttl",
        "90s",
    ]);
    let entry = &made["entries"][0];
    assert_eq!(entry["spiffe_id"], "spiffe://corp.test/db");
    assert_eq!(entry["parent_id"], "spiffe://corp.test/node/local", "the default parent");
    assert_eq!(entry["x509_svid_ttl_seconds"], 90);
    let again = home.run(&["entry", "create", "--spiffe-id", "/db", "--selector", "unix:uid:4242"]);
    assert_eq!(again.status.code(), Some(1));
    let text = String::from_utf8(again.stderr).unwrap();
    assert!(text.contains("CS4008") && text.contains(entry["id"].as_str().unwrap()), "{text}");
    // What list prints, create takes.
    let list = home.json(&["entry", "list", "--spiffe-id", "/db"]);
    home.ok(&["entry", "delete", entry["id"].as_str().unwrap()]);
    std::fs::write(home.path("entries.json"), list.to_string()).unwrap();
    home.ok(&["entry", "create", "--data", home.path("entries.json").to_str().unwrap()]);
    assert_eq!(home.entries().len(), 1);

    let yaml = format!(
        "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterStaticEntry\nmetadata: {{name: cache}}\n\
         spec:\n  spiffeID: spiffe://corp.test/cache\n  parentID: {agent}\n  selectors: [\"unix:uid:4243\"]\n  x509SVIDTTL: 30m\n"
    );
    std::fs::write(home.path("cache.yaml"), &yaml).unwrap();
    let file = home.path("cache.yaml");
    let file = file.to_str().unwrap();
    assert_eq!(home.json(&["apply", "-f", file])["entries_created"], 1);
    assert_eq!(home.json(&["apply", "-f", file])["entries_unchanged"], 1);
    std::fs::write(home.path("cache.yaml"), yaml.replace("30m", "31m")).unwrap();
    assert_eq!(home.json(&["apply", "-f", file])["entries_updated"], 1);
    let shown = home.json(&["entry", "list", "--spiffe-id", "/cache"]);
    assert_eq!(shown["entries"][0]["x509_svid_ttl_seconds"], 31 * 60);
}

#[test]
fn the_root_rolls_over_without_restart_or_lost_calls() {
    let home = Home::new();
    let (_up, _) = mesh(&home);
    let app = application();
    let (inbound, outbound) = (free_port(), free_port());
    let inbound_arg = format!("127.0.0.1:{inbound}={app}");
    let _api = home
        .spawn(&["run", "--id", "/api", "--inbound", &inbound_arg, "--", "sleep", "60"], "log-api");
    let outbound_arg = format!("127.0.0.1:{outbound}=127.0.0.1:{inbound},/api");
    let _web = home.spawn(
        &["run", "--id", "/web", "--outbound", &outbound_arg, "--", "sleep", "60"],
        "log-web",
    );
    let address = format!("127.0.0.1:{outbound}");
    eventually("a call", || get(&address).ok().filter(|a| a.starts_with("HTTP/1.1 200 OK")));

    let calls = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let counter = {
        let (calls, address) = (calls.clone(), address.clone());
        std::thread::spawn(move || {
            let (mut n, mut failed) = (0, Vec::new());
            while calls.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                match get(&address) {
                    Ok(a) if a.starts_with("HTTP/1.1 200 OK") => {}
                    other => failed.push(format!("{other:?}")),
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            (n, failed)
        })
    };
    let roots = || {
        let all = home.json(&["ca", "show"]);
        let roots: Vec<(String, String)> = all["authorities"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|a| a["kind"] == "root")
            .map(|a| {
                (a["state"].as_str().unwrap().into(), a["fingerprint"].as_str().unwrap().into())
            })
            .collect();
        roots
    };
    let old = roots()[0].1.clone();
    home.ok(&["ca", "root", "prepare"]);
    assert_eq!(roots().len(), 2);
    let twice = home.run(&["ca", "root", "prepare"]);
    assert!(!twice.status.success());
    // Activation at once is refused: nodes may not have heard of the new root yet.
    let early = home.run(&["ca", "root", "activate"]);
    assert!(String::from_utf8_lossy(&early.stderr).contains("CS6003"));
    std::thread::sleep(std::time::Duration::from_secs(3));
    home.ok(&["ca", "root", "activate"]);
    let new = roots().into_iter().find(|(s, _)| s == "active").unwrap().1;
    assert_ne!(old, new);
    eventually("both re-issued", || {
        let j = home.json(&["ca", "journal", "--limit", "100"]);
        let n = |id: &str| {
            j["records"].as_array().unwrap().iter().filter(|r| r["spiffe_id"] == id).count()
        };
        (n("spiffe://corp.test/web") > 1 && n("spiffe://corp.test/api") > 1).then_some(())
    });
    std::thread::sleep(std::time::Duration::from_secs(1));
    home.ok(&["ca", "root", "retire"]);
    assert_eq!(roots().len(), 1);
    std::thread::sleep(std::time::Duration::from_secs(1));
    calls.store(false, std::sync::atomic::Ordering::Relaxed);
    let (n, failed) = counter.join().unwrap();
    assert!(n > 50 && failed.is_empty(), "{n} calls, failed: {failed:?}");
}

/// An operator sees at one place what each proxy made of the policies.
#[test]
fn status_tells_which_policies_each_proxy_has() {
    let home = Home::new();
    let (_up, _) = mesh(&home);
    let app = application();
    let port = free_port();
    let arg = format!("127.0.0.1:{port}={app}");
    let proxy = home.spawn(
        &["run", "--id", "/ns/shop/sa/api", "--inbound", &arg, "--", "sleep", "60"],
        "log-api",
    );
    let reported = |wanted: &str, trouble: &str| {
        eventually("a report", || {
            let status = home.json(&["status"]);
            let list = status["agent"]["proxies"].as_array()?;
            let one = list.first().filter(|_| list.len() == 1)?;
            let ok = one["policies"] == wanted
                && one["spiffe_ids"][0] == "spiffe://corp.test/ns/shop/sa/api"
                && one["trouble"].as_str()?.contains(trouble);
            ok.then(|| one["policy_generation"].as_u64().unwrap())
        })
    };
    let before = reported("in force", "");
    // Only the proxy can tell that it knows no such engine.
    let file = home.path("custom.yaml");
    std::fs::write(
        &file,
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: ask, namespace: shop}\n\
         spec: {action: CUSTOM, provider: {name: opa}, rules: [{}]}\n",
    )
    .unwrap();
    home.ok(&["apply", "-f", file.to_str().unwrap()]);
    let after = reported("in force", "CS3007");
    assert!(after > before, "{after} > {before}");
    let table = home.ok(&["status"]);
    assert!(table.contains("proxy ") && table.contains("`opa`"), "{table}");
    // What has ended is not told of.
    drop(proxy);
    eventually("no report", || {
        home.json(&["status"])["agent"]["proxies"].as_array().filter(|l| l.is_empty()).map(|_| ())
    });
}
