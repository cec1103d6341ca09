//! The symptoms of mTLS guides, each reproduced with two proxies on real sockets, and what each side says of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use countersign_testkit::{Story, TestCa, TestIdentity};
use countersign_tls::current_time;
use countersign_x509::pem;
use serde_json::Value;

use crate::kit::{Home, Running, application, eventually, free_port, get, other_clock};

/// One host: a directory with its files, and a clock that may be off.
struct Host {
    home: Home,
    clock: i64,
}

impl Host {
    fn new(identity: &TestIdentity, roots: &[&[u8]]) -> Self {
        let host = Self { home: Home::new(), clock: 0 };
        host.identity(identity);
        let roots: String = roots.iter().map(|r| pem::encode("CERTIFICATE", r)).collect();
        fs::write(host.home.path("bundle.pem"), roots).unwrap();
        host
    }

    fn identity(&self, identity: &TestIdentity) {
        let chain: String = identity.chain.iter().map(|c| pem::encode("CERTIFICATE", c)).collect();
        fs::write(self.home.path("cert.pem"), chain).unwrap();
        let key = self.home.path("key.pem");
        fs::write(&key, pem::encode("PRIVATE KEY", identity.key.expose_pkcs8())).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(&["proxy"]);
        command.args(args).args(["-o", "json", "--protocol", "http", "--handshake-timeout", "1s"]);
        for (flag, file) in [
            ("--cert", "cert.pem"),
            ("--key", "key.pem"),
            ("--bundle", "bundle.pem"),
            ("--access-log", "records"),
        ] {
            command.arg(flag).arg(self.home.path(file));
        }
        if self.clock != 0 {
            command.env("LD_PRELOAD", other_clock()).env("CLOCK_AHEAD", self.clock.to_string());
        }
        command
    }

    fn spawn(&self, args: &[&str], listen: &str) -> Running {
        let log = fs::File::create(self.home.path("log")).unwrap();
        let mut child = self.command(args).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let running = Running(child);
        assert!(!line.is_empty(), "{listen}: {}", self.home.log("log"));
        running
    }

    fn inbound(&self, port: u16, app: SocketAddr) -> Running {
        let (listen, app) = (format!("127.0.0.1:{port}"), app.to_string());
        self.spawn(
            &[
                "inbound",
                "--listen",
                &listen,
                "--forward",
                &app,
                "--allow",
                "spiffe://corp.test/web",
            ],
            &listen,
        )
    }

    fn outbound(&self, upstream: u16) -> (Running, String) {
        let (listen, upstream) =
            (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{upstream}"));
        let running = self.spawn(
            &[
                "outbound",
                "--listen",
                &listen,
                "--upstream",
                &upstream,
                "--peer-id",
                "spiffe://corp.test/api",
            ],
            &listen,
        );
        (running, listen)
    }

    fn records(&self) -> Vec<Value> {
        let text = self.home.log("records");
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

/// What the first line says with which a proxy refuses: its text and its hint.
fn refusal(host: &Host, who: &str) -> String {
    let line = |log: String| log.lines().find(|l| l.contains("refused: ")).map(str::to_owned);
    let found = eventually(&format!("{who} says why: {}", host.home.log("log")), || {
        line(host.home.log("log"))
    });
    assert!(found.contains("hint="), "{who} says what to do: {found}");
    found
}

fn says(host: &Host, who: &str, words: &[&str]) {
    let line = refusal(host, who);
    for word in words {
        assert!(line.contains(word), "{who} does not say {word:?}: {line}");
    }
}

struct World {
    ca: TestCa,
    app: SocketAddr,
}

impl World {
    fn new() -> Self {
        Self { ca: TestCa::new("corp.test", current_time()), app: application() }
    }

    fn host(&self, story: Story, path: &str) -> Host {
        Host::new(&self.ca.story(story, path), &[&self.ca.root])
    }

    /// A client and a server that differ from good ones in what their stories say.
    fn hosts(&self, client: Story, server: Story) -> (Host, Host) {
        (self.host(client, "/web"), self.host(server, "/api"))
    }

    /// Runs both, lets the client call, and looks at what each side says first.
    fn check(&self, client: &Host, server: &Host, client_says: &[&str], server_says: &[&str]) {
        let port = free_port();
        let _in = server.inbound(port, self.app);
        let (_out, at) = client.outbound(port);
        let answer = get(&at).unwrap();
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        says(client, "the client", client_says);
        says(server, "the server", server_says);
    }
}

#[test]
fn good_hosts_call_each_other() {
    let world = World::new();
    let (client, server) = world.hosts(Story::Good, Story::Good);
    let port = free_port();
    let _in = server.inbound(port, world.app);
    let (_out, at) = client.outbound(port);
    assert!(get(&at).unwrap().contains("URI=spiffe://corp.test/web"));
}

#[test]
fn connection_refused() {
    let world = World::new();
    let client = world.host(Story::Good, "/web");
    let port = free_port();
    let (_out, at) = client.outbound(port);
    assert!(get(&at).unwrap().contains("X-Countersign-Code: CS2201"));
    says(&client, "the client", &["CS2201", "refused", "listens at that address"]);
    // On the server's host nothing runs that could say anything: the check does.
    let out = client.home.run(&["check", "--short", "--listener", &format!("127.0.0.1:{port}")]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("CS2201") && text.contains("hint: "), "{text}");
}

#[test]
fn certificate_unknown() {
    let world = World::new();
    let (client, server) = world.hosts(Story::Good, Story::WrongCa);
    let distrusts = ["CS2006", "it does not trust the authority", "countersign bundle show"];
    world.check(&client, &server, &["CS1003", "is not in the trust bundle"], &distrusts);
    let (client, server) = world.hosts(Story::WrongCa, Story::Good);
    world.check(&client, &server, &distrusts, &["CS1003", "is not in the trust bundle"]);
}

#[test]
fn expired() {
    let world = World::new();
    let (client, server) = world.hosts(Story::Good, Story::Expired);
    let own = ["CS2006", "expired at", "not been renewed in time"];
    world.check(&client, &server, &["CS1001", "`spiffe://corp.test/api` expired at"], &own);
    let (client, server) = world.hosts(Story::Expired, Story::Good);
    world.check(&client, &server, &own, &["CS1001", "`spiffe://corp.test/web` expired at"]);
}

#[test]
fn clock_skew() {
    let world = World::new();
    let (mut client, server) = world.hosts(Story::Good, Story::Good);
    client.clock = -86_400;
    let other = ["CS2006", "by this clock it is valid", "compare the clocks"];
    world.check(&client, &server, &["CS1002", "is valid only from", "compare the clocks"], &other);
    let (client, mut server) = world.hosts(Story::Good, Story::Good);
    server.clock = 86_400;
    world.check(&client, &server, &other, &["CS1001", "expired at", "both clocks agree"]);
}

#[test]
fn handshake_timeout() {
    let world = World::new();
    let (client, server) = world.hosts(Story::Good, Story::Good);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_out, at) = client.outbound(silent.local_addr().unwrap().port());
    assert!(get(&at).unwrap().contains("X-Countersign-Code: CS2002"));
    says(&client, "the client", &["CS2002", "did not finish within 1000 ms"]);
    let port = free_port();
    let _in = server.inbound(port, world.app);
    let _says_nothing = TcpStream::connect(("127.0.0.1", port)).unwrap();
    says(&server, "the server", &["CS2002", "client sent nothing for 1000 ms"]);
}

#[test]
fn identity_mismatch() {
    let world = World::new();
    let (client, server) = (world.host(Story::Good, "/web"), world.host(Story::Good, "/other"));
    let unexpected = ["CS2006", "it does not expect `spiffe://corp.test/other`", "--peer-id"];
    world.check(
        &client,
        &server,
        &["CS1006", "`spiffe://corp.test/other`", "--peer-id"],
        &unexpected,
    );
    // A client that may not call is told so over HTTP.
    let (client, server) = (world.host(Story::Good, "/stranger"), world.host(Story::Good, "/api"));
    let port = free_port();
    let _in = server.inbound(port, world.app);
    let (_out, at) = client.outbound(port);
    let answer = get(&at).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("X-Countersign-Code: CS3003"));
    says(&server, "the server", &["CS3003", "`spiffe://corp.test/stranger`", "--allow"]);
}

#[test]
fn key_and_certificate_mismatch() {
    let world = World::new();
    let host = world.host(Story::Good, "/web");
    let other = world.ca.story(Story::Good, "/web");
    fs::write(host.home.path("key.pem"), pem::encode("PRIVATE KEY", other.key.expose_pkcs8()))
        .unwrap();
    for side in [
        ["inbound", "--listen", "127.0.0.1:0", "--forward", "127.0.0.1:1", "--quiet", "--quiet"],
        [
            "outbound",
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            "127.0.0.1:1",
            "--peer-id",
            "spiffe://corp.test/api",
        ],
    ] {
        let out = host.command(&side).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.contains("CS1010") && text.contains("do not belong together"), "{text}");
    }
    // The files alone.
    let file = |name: &str| host.home.path(name).to_str().unwrap().to_owned();
    let out = host.home.run(&[
        "check",
        "--short",
        &file("cert.pem"),
        &file("key.pem"),
        &file("bundle.pem"),
    ]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("CS1010") && text.contains("hint: "), "{text}");
}

#[test]
fn missing_intermediate() {
    let world = World::new();
    let (client, server) = world.hosts(Story::Good, Story::MissingIntermediate);
    let own =
        ["CS2006", "our chain lacks the intermediate `CN=Test Intermediate", "behind the leaf"];
    let theirs = ["CS1004", "CN=Test Intermediate"];
    world.check(&client, &server, &theirs, &own);
    let (client, server) = world.hosts(Story::MissingIntermediate, Story::Good);
    world.check(&client, &server, &own, &theirs);
}

#[test]
fn works_from_one_host_and_not_from_another() {
    let world = World::new();
    let (good, server) = world.hosts(Story::Good, Story::Good);
    // The other host has a bundle from before the authority was changed.
    let before = TestCa::new("corp.test", current_time());
    let stale = Host::new(&world.ca.story(Story::Good, "/web"), &[&before.root]);
    let port = free_port();
    let _in = server.inbound(port, world.app);
    let (_out, at) = good.outbound(port);
    assert!(get(&at).unwrap().starts_with("HTTP/1.1 200"));
    let (_out, at) = stale.outbound(port);
    assert!(get(&at).unwrap().contains("X-Countersign-Code: CS1003"));
    let print =
        |root: &[u8]| countersign_x509::hex(&countersign_x509::sha256(root))[..16].to_owned();
    // Both name the root, so that the two bundles can be told apart.
    says(&stale, "the stale host", &["CS1003", "trusted=", &print(&before.root)]);
    says(
        &server,
        "the server",
        &["CS2006", "does not trust the authority", &print(&world.ca.root)],
    );
}

#[test]
fn intermittent_failures() {
    let world = World::new();
    let (client, good) = world.hosts(Story::Good, Story::Good);
    let expired = world.host(Story::Expired, "/api");
    let ports = [free_port(), free_port()];
    let _in = [good.inbound(ports[0], world.app), expired.inbound(ports[1], world.app)];
    let (_out, at) = client.outbound(alternating(ports));
    let answers: Vec<bool> =
        (0..6).map(|_| get(&at).unwrap().starts_with("HTTP/1.1 200")).collect();
    assert_eq!(answers.iter().filter(|a| **a).count(), 3, "{answers:?}");
    // The instance that is to blame is named by its certificate, every time.
    let chain = fs::read(expired.home.path("cert.pem")).unwrap();
    let leaf = countersign_x509::pem::certificates(&chain).unwrap().remove(0);
    let serial = countersign_x509::CertInfo::parse(&leaf).unwrap().serial;
    says(&client, "the client", &["CS1001", &serial]);
    // Records are written a little later than answers.
    eventually("three failures of that instance are told", || {
        let records = client.records();
        let failures =
            records.iter().filter(|r| r["event"] == "handshake" && r["result"] == "failure");
        let all: Vec<&Value> = failures.collect();
        let of_it = |r: &&&Value| r["presented"].as_str().unwrap().contains(&serial);
        (all.len() == 3 && all.iter().filter(of_it).count() == 3).then_some(())
    });
    says(&expired, "the instance", &["CS2006", "expired at"]);
    assert!(!good.home.log("log").contains("refused: "), "{}", good.home.log("log"));
}

/// A load balancer for bytes: one connection here, the next there.
fn alternating(ports: [u16; 2]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (near, port) in listener.incoming().flatten().zip(ports.into_iter().cycle()) {
            let far = TcpStream::connect(("127.0.0.1", port)).unwrap();
            for (mut from, mut to) in
                [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)]
            {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    port
}
