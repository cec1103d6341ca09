//! `check` on what runs.

use std::io::Write;
use std::net::TcpListener;

use countersign_testkit::{Story, TestCa, TestIdentity, raw_tls};
use countersign_tls::current_time;
use countersign_x509::pem;
use serde_json::Value;

use crate::kit::{Home, Running, application, eventually, free_port, other_clock, serving};

/// The checks that did not succeed, as `result code`.
fn bad(report: &Value) -> Vec<String> {
    let all = report["categories"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|c| c["checks"].as_array().unwrap());
    all.filter(|c| c["result"] != "success")
        .map(|c| format!("{} {}", c["result"].as_str().unwrap(), c["code"].as_str().unwrap()))
        .collect()
}

/// An entry that no agent hands out.
fn orphan(home: &Home) {
    let args = ["entry", "create", "--spiffe-id", "/db", "--selector", "unix:uid:1"];
    home.ok(&[&args[..], &["--parent-id", "spiffe://corp.test/nobody"]].concat());
}

fn check(home: &Home, more: &[&str]) -> (i32, Value) {
    let args: Vec<&str> = ["check", "-o", "json"].iter().chain(more).copied().collect();
    let out = home.run(&args);
    (out.status.code().unwrap(), serde_json::from_slice(&out.stdout).unwrap())
}

#[test]
fn check_tells_what_runs_and_what_does_not() {
    let home = Home::new();
    let (exit, report) = check(&home, &[]);
    assert_eq!((exit, bad(&report)), (4, vec!["error CS4011".into(), "error CS4012".into()]));
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let (mut up, _) = home.start(&["up", "--listen", "127.0.0.1:0"]);
    let app = application();
    let port = free_port();
    let arg = format!("127.0.0.1:{port}={app}");
    let _api = home.spawn(
        &["run", "--id", "/ns/shop/sa/api", "--inbound", &arg, "--", "sleep", "60"],
        "log-api",
    );
    let listener = format!("127.0.0.1:{port}");
    // Nothing says who may call: that is worth a warning, and the only one.
    let report = eventually("everything is well", || {
        let (exit, report) = check(&home, &["--listener", &listener]);
        (exit == 0 && report.to_string().contains("\"proxies\"")).then_some(report)
    });
    assert_eq!(bad(&report), ["warning CS5101"], "{report}");
    assert_eq!(report["success"], true);
    let text = report.to_string();
    for part in [
        "trust anchors",
        "authorities",
        "clock",
        "certificates",
        "entries",
        "listeners",
        "the chain closes",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // An entry that no agent hands out; a port that is closed; one that does not speak TLS.
    orphan(&home);
    let speaker = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = speaker.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in speaker.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let closed = format!("127.0.0.1:{}", free_port());
    let (exit, report) = check(&home, &["--listener", &closed, "--listener", &plain]);
    assert_eq!(exit, 10);
    let found = bad(&report);
    for expected in ["warning CS4006", "error CS2201", "error CS2007"] {
        assert!(found.iter().any(|b| b == expected), "{expected}: {found:?}");
    }
    // A port that takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let (_, report) = check(&home, &["--listener", &address]);
    assert!(bad(&report).iter().any(|b| b == "error CS2002"), "{report}");
    up.kill_9();
    let (exit, _) = check(&home, &["--wait", "1s"]);
    assert_eq!(exit, 4);
}

/// A server that presents `identity`, until the test ends.
fn present(identity: TestIdentity) -> String {
    serving(move |listener| async move {
        let acceptor = raw_tls::web_server(&identity);
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    })
}

#[test]
fn each_symptom_of_a_port_has_its_name_and_its_fix() {
    let home = Home::new();
    let now = current_time();
    let ca = TestCa::new("corp.test", now);
    let bundle = home.path("bundle.pem");
    std::fs::write(&bundle, pem::encode("CERTIFICATE", &ca.root)).unwrap();
    let bundle = bundle.to_str().unwrap();
    let stranger = TestCa::new("corp.test", now);
    let self_signed =
        TestIdentity { chain: vec![stranger.root.clone()], key: stranger.root_key.pkcs8().clone() };
    for (what, identity, code) in [
        ("good", ca.story(Story::Good, "/api"), None),
        ("expired", ca.story(Story::Expired, "/api"), Some("CS1001")),
        ("clock skew", ca.story(Story::NotYetValid, "/api"), Some("CS1002")),
        ("unknown authority", self_signed, Some("CS1003")),
        ("an authority of the same name", ca.story(Story::WrongCa, "/api"), Some("CS1003")),
        ("missing intermediate", ca.story(Story::MissingIntermediate, "/api"), Some("CS1004")),
        ("CA as leaf", ca.story(Story::CaAsLeaf, "/api"), Some("CS1009")),
    ] {
        let address = present(identity);
        let out = home.run(&["check", "--short", "--listener", &address, bundle]);
        let text = String::from_utf8(out.stdout).unwrap();
        let Some(code) = code else {
            assert_eq!(out.status.code(), Some(0), "{what}: {text}");
            continue;
        };
        assert_eq!(out.status.code(), Some(10), "{what}: {text}");
        // The first thing that is said, below the title of the group.
        let first = text.lines().find(|l| l.starts_with("FAIL")).unwrap();
        assert!(first.contains(&format!("[{code}]")), "{what}: {text}");
        assert!(text.contains("hint: "), "{what}: {text}");
    }
}

#[test]
fn a_host_whose_clock_is_off_is_named_wherever_one_asks() {
    let home = Home::new();
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let (_server, _) = home.start(&["server", "--listen", "127.0.0.1:0"]);
    // Another host, with a directory and a clock of its own. One that lags cannot even join: see the symptoms.
    let host = Home::new();
    let join = home.ok(&["token"]);
    let log = std::fs::File::create(host.path("log")).unwrap();
    let agent = host
        .command(&["agent", "--join", join.trim()])
        .env("LD_PRELOAD", other_clock())
        .env("CLOCK_AHEAD", "45")
        .stdout(std::process::Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let _agent = Running(agent);
    let clock = |home: &Home| {
        let (_, report) = check(home, &[]);
        let groups = report["categories"].as_array().unwrap().clone();
        let clock = groups.iter().find(|c| c["categoryName"] == "clock")?;
        let checks = clock["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|c| c["result"] == "error")
    };
    let told = eventually("the server knows", || clock(&home));
    assert_eq!(told["code"], "CS6001");
    let text = told["error"].as_str().unwrap();
    assert!(text.contains("45 s ahead") || text.contains("44 s ahead"), "{text}");
    assert!(text.contains("/spire/agent/"), "{text}");
    let told = eventually("the host itself knows", || clock(&host));
    assert!(told["error"].as_str().unwrap().starts_with("this host is 4"), "{told}");
    assert!(host.log("log").contains("CS6001"), "{}", host.log("log"));
    // Both processes are looked at.
    let (_, report) = check(&home, &[]);
    assert!(report.to_string().contains("the server takes "), "{report}");
    let (_, report) = check(&host, &[]);
    assert!(report.to_string().contains("the agent takes "), "{report}");
}

#[test]
fn why_an_identity_is_there_or_is_not() {
    let home = Home::new();
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let (_up, _) = home.start(&["up", "--listen", "127.0.0.1:0"]);
    let why = |id: &str| {
        let out = home.run(&["why", id, "-o", "json"]);
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        (out.status.code().unwrap(), bad(&report))
    };
    assert_eq!(
        why("/ns/shop/sa/api"),
        (10, vec!["error CS4007".into(), "error CS4001".into(), "warning CS4001".into()])
    );
    let arg = format!("127.0.0.1:{}={}", free_port(), application());
    let run = ["run", "--id", "/ns/shop/sa/api", "--inbound", &arg, "--", "sleep", "60"];
    let _api = home.spawn(&run, "log-api");
    eventually("it is all there", || {
        (why("spiffe://corp.test/ns/shop/sa/api") == (0, Vec::new())).then_some(())
    });
    orphan(&home);
    let (exit, found) = why("/db");
    assert_eq!(exit, 10);
    assert_eq!(found[0], "error CS4004", "nobody hands it out: {found:?}");
}
