//! Kills and outages: what runs goes on, what restarts recovers by itself.

use crate::kit::{Home, application, eventually, free_port, get};

#[test]
fn the_agent_serves_identities_after_a_restart_while_the_server_is_down() {
    let home = Home::new();
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let port = free_port().to_string();
    let listen = format!("127.0.0.1:{port}");
    let (mut server, _) = home.start(&["server", "--listen", &listen]);
    let token = home.ok(&["token"]);
    let (mut agent, _) = home.start(&["agent", "--join", token.trim()]);
    let uid = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
    home.ok(&["entry", "create", "--spiffe-id", "/api", "--selector", &uid]);
    home.ok(&["entry", "create", "--spiffe-id", "/web", "--selector", &uid]);
    let app = application();
    let (inbound, outbound) = (free_port(), free_port());
    let (i, o) = (format!("127.0.0.1:{inbound}"), format!("127.0.0.1:{outbound}"));
    let app = app.to_string();
    let api =
        ["proxy", "inbound", "--listen", &i, "--forward", &app, "--id", "spiffe://corp.test/api"];
    let web = [
        "proxy",
        "outbound",
        "--listen",
        &o,
        "--upstream",
        &i,
        "--peer-id",
        "spiffe://corp.test/api",
        "--id",
        "spiffe://corp.test/web",
    ];
    let (mut api_proxy, _) = home.start(&api);
    let (_web_proxy, _) = home.start(&web);
    eventually("a call", || get(&o).ok().filter(|a| a.starts_with("HTTP/1.1 200 OK")));

    // Everything that issues is gone; what runs goes on, and what restarts gets its identity again.
    server.kill_9();
    agent.kill_9();
    assert!(get(&o).unwrap().contains("200 OK"));
    let (_agent, ready) = home.start(&["agent"]);
    assert!(ready["agent_id"].as_str().unwrap().contains("/join_token/"));
    api_proxy.kill_9();
    let (_api_proxy, _) = home.start(&api);
    eventually("a call after restarts", || {
        get(&o).ok().filter(|a| a.starts_with("HTTP/1.1 200 OK"))
    });

    // The server comes back and the agent finds it by itself.
    let (_server, _) = home.start(&["server", "--listen", &listen]);
    home.ok(&["status", "--wait", "20s"]);
    home.ok(&["entry", "create", "--spiffe-id", "/late", "--selector", &uid]);
    eventually("a new entry's SVID", || {
        let status = home.json(&["status"]);
        (status["agent"]["svids"] == 3).then_some(())
    });
}

#[test]
fn kills_at_any_moment_leave_a_directory_that_starts_again() {
    let home = Home::new();
    home.ok(&["init", "--trust-domain", "corp.test"]);
    for round in 0..6u64 {
        let (mut up, _) = home.start(&["up", "--listen", "127.0.0.1:0"]);
        let id = format!("/w{round}");
        home.ok(&["entry", "create", "--spiffe-id", &id, "--selector", "unix:uid:0"]);
        std::thread::sleep(std::time::Duration::from_millis(round * 37));
        up.kill_9();
    }
    let (_up, _) = home.start(&["up", "--listen", "127.0.0.1:0"]);
    assert_eq!(home.entries().len(), 6);
    assert_eq!(home.json(&["ca", "journal", "--limit", "1000"])["chain_intact"], true);
    // The agent kept its identity over all of it: one join, one agent.
    assert_eq!(home.json(&["status", "--wait", "20s"])["server"]["agents"], 1);
}

#[test]
fn a_join_token_admits_one_agent() {
    let home = Home::new();
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let (_server, _) = home.start(&["server", "--listen", "127.0.0.1:0"]);
    let token = home.ok(&["token"]);
    let (agent, _) = home.start(&["agent", "--join", token.trim()]);
    drop(agent);
    let other = Home::new();
    let out = other.run(&["agent", "--join", token.trim()]);
    assert_eq!(out.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&out.stderr).contains("CS4002"));
}

#[test]
fn entries_stay_when_the_agent_has_to_join_again() {
    let home = Home::new();
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let (up, first) = home.start(&["up", "--listen", "127.0.0.1:0"]);
    home.ok(&["entry", "create", "--spiffe-id", "/w", "--selector", "unix:uid:0"]);
    up.terminate();
    drop(up);
    std::fs::remove_dir_all(home.path("agent")).unwrap();
    let (_up, second) = home.start(&["up", "--listen", "127.0.0.1:0"]);
    assert_ne!(first["agent_id"], second["agent_id"]);
    let served = crate::kit::eventually("the entry at the new agent", || {
        let out = home.run(&["id", "fetch", "-o", "json"]);
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    });
    assert!(served.contains("spiffe://corp.test/w"), "{served}");
}
