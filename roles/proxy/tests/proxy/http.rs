//! HTTP/1.1 through the proxy: identity headers, authorization, framing.

use std::net::SocketAddr;
use std::time::Duration;

use countersign_policy::{Mode, Until};
use countersign_proxy::{InboundOptions, ListenerOptions, PeerMode, Protocol};
use countersign_testkit::{TestIdentity, raw_tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::kit::{Kit, any, dial};

/// An HTTP server that answers each request with what it received, chunked if asked to.
pub(crate) async fn mirror() -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(mirror_one(stream));
        }
    });
    address
}

async fn mirror_one(mut stream: TcpStream) {
    let mut data: Vec<u8> = Vec::new();
    loop {
        let end = loop {
            if let Some(i) = data.windows(4).position(|w| w == b"\r\n\r\n") {
                break i + 4;
            }
            let mut buf = [0; 4096];
            match stream.read(&mut buf).await {
                Ok(n) if n > 0 => data.extend_from_slice(&buf[..n]),
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&data[..end]).into_owned();
        data.drain(..end);
        if head.contains("Transfer-Encoding: chunked") {
            while !data.ends_with(b"0\r\n\r\n") {
                let mut buf = [0; 4096];
                match stream.read(&mut buf).await {
                    Ok(n) if n > 0 => data.extend_from_slice(&buf[..n]),
                    _ => return,
                }
            }
        }
        let body = format!("{head}{}", String::from_utf8_lossy(&data));
        data.clear();
        let answer = if head.starts_with("GET /chunked") {
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            )
        } else if head.starts_with("GET /close") {
            format!("HTTP/1.0 200 OK\r\n\r\n{body}")
        } else {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        if stream.write_all(answer.as_bytes()).await.is_err() || head.starts_with("GET /close") {
            return;
        }
    }
}

pub(crate) async fn connect(kit: &Kit, address: SocketAddr, path: &str) -> TlsStream<TcpStream> {
    raw_tls::client(Some(&kit.good(path)))
        .connect(raw_tls::any_name(), dial(address).await)
        .await
        .unwrap()
}

/// Sends `request` and reads until `until` appears or the stream ends.
pub(crate) async fn ask(tls: &mut TlsStream<TcpStream>, request: &str, until: &str) -> String {
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    let mut buf = [0; 4096];
    let read = async {
        while !String::from_utf8_lossy(&out).contains(until) {
            match tls.read(&mut buf).await {
                Ok(n) if n > 0 => out.extend_from_slice(&buf[..n]),
                _ => break,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), read).await.expect("answer");
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test]
async fn the_verified_identity_replaces_what_the_caller_claims() {
    let kit = Kit::new();
    for protocol in [Protocol::Http, Protocol::Auto] {
        let proxy = kit.inbound(mirror().await, protocol).await;
        let mut tls = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
        for _ in 0..3 {
            let got = ask(
                &mut tls,
                "GET /a//b HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: URI=spiffe://evil\r\n\
                 x_forwarded-client_cert: evil\r\nEnd: 1\r\n\r\n",
                "URI=spiffe://corp.test/ns/shop/sa/web\r\n\r\n",
            )
            .await;
            assert!(got.contains("GET /a/b HTTP/1.1\r\n"), "{got}");
            assert!(got.contains("By=spiffe://corp.test/proxy;Hash="), "{got}");
            assert!(!got.contains("evil"), "{got}");
        }
    }
}

#[tokio::test]
async fn bodies_keep_their_framing_in_both_directions() {
    let kit = Kit::new();
    let inbound = kit.inbound(mirror().await, Protocol::Http).await;
    let outbound = kit.outbound(inbound.addresses[0], "/proxy", Protocol::Http).await;
    let mut client = dial(outbound.addresses[0]).await;
    let body = "5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n";
    for part in [
        "POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        &body[..7],
        &body[7..],
    ] {
        client.write_all(part.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let mut got = String::new();
    let mut buf = [0; 4096];
    while !got.ends_with(body) {
        let n = client.read(&mut buf).await.unwrap();
        assert!(n > 0, "{got}");
        got.push_str(std::str::from_utf8(&buf[..n]).unwrap());
    }
    client.write_all(b"GET /chunked HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut got = String::new();
    while !got.ends_with("\r\n0\r\n\r\n") {
        let n = client.read(&mut buf).await.unwrap();
        assert!(n > 0, "{got}");
        got.push_str(std::str::from_utf8(&buf[..n]).unwrap());
    }
    client.write_all(b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let rest = crate::kit::read_all(&mut client).await.unwrap();
    let text = String::from_utf8(rest).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("GET /close"), "{text}");
}

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: default}
spec:
  rules:
  - from: [{source: {principals: [corp.test/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], paths: [/public/*]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: never, namespace: default}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ['*/secret']}}]
";

#[tokio::test]
async fn each_request_is_decided_by_itself() {
    let kit = Kit::new();
    let strict = PeerMode::Fixed(Mode::Strict);
    let proxy = kit.inbound_with(mirror().await, Protocol::Http, strict, &[POLICY]).await;
    let mut web = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(ask(&mut web, &get("/public/a"), "\r\n\r\nGET").await.contains("200 OK"));
    let refused = ask(&mut web, &get("/private"), "}").await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("CS3002"), "{refused}");
    let refused = ask(&mut web, &get("/public/secret"), "}").await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("CS3001"), "{refused}");
    let refused = ask(&mut web, &get("/public/x/..%2f..%2fprivate"), "}").await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "the normalised path counts: {refused}");
    assert!(ask(&mut web, &get("/public/b"), "\r\n\r\nGET").await.contains("200 OK"), "still open");
    let post = "POST /public/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    assert!(ask(&mut web, post, "}").await.starts_with("HTTP/1.1 403 "));
    let mut other = connect(&kit, proxy.addresses[0], "/ns/shop/sa/other").await;
    assert!(ask(&mut other, &get("/public/a"), "}").await.contains("CS3002"));
}

#[tokio::test]
async fn smuggling_attempts_get_400_and_never_reach_the_application() {
    let kit = Kit::new();
    let proxy = kit.inbound(mirror().await, Protocol::Http).await;
    for request in [
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n",
        "GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
        let got = ask(&mut tls, request, "}").await;
        assert!(got.starts_with("HTTP/1.1 400 ") && got.contains("CS2203"), "{request:?}: {got}");
    }
    // A broken chunk: what came before may be out, but the upstream never gets the rest.
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    let request =
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n";
    let got = ask(&mut tls, request, "}").await;
    assert!(!got.contains("200 OK"), "{got}");
}

#[tokio::test]
async fn http2_on_a_detected_port_is_refused() {
    let kit = Kit::new();
    let proxy = kit.inbound(mirror().await, Protocol::Auto).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    let got = ask(&mut tls, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "never").await;
    assert_eq!(got, "");
    assert_eq!(kit.records.code().await, "CS2205");
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let kit = Kit::new();
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut s, _) = listener.accept().await.unwrap();
        let mut buf = [0; 2048];
        let n = s.read(&mut buf).await.unwrap();
        let head = String::from_utf8_lossy(&buf[..n]).into_owned();
        assert!(
            head.contains("Connection: Upgrade\r\n") && head.contains("Upgrade: websocket\r\n"),
            "{head}"
        );
        assert!(!head.contains("early"), "bytes behind the request wait for the upgrade");
        s.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            .await
            .unwrap();
        let (mut r, mut w) = s.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    });
    let proxy = kit.inbound(address, Protocol::Http).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
    let got = ask(&mut tls, request, "early").await;
    assert!(got.starts_with("HTTP/1.1 101 ") && got.ends_with("early"), "{got}");
    assert_eq!(ask(&mut tls, "more", "more").await, "more");
}

/// An origin that reads a request, says so, and never answers; the receiver hears how the connection ended.
async fn silent() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<&'static str>) {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                let _ = s.read(&mut buf).await;
                tell.send("asked").unwrap();
                while matches!(s.read(&mut buf).await, Ok(n) if n > 0) {}
                let _ = tell.send("gone");
            });
        }
    });
    (address, heard)
}

#[tokio::test]
async fn a_client_that_breaks_off_frees_the_origin() {
    let kit = Kit::new();
    let (origin, mut heard) = silent().await;
    let inbound = kit.inbound(origin, Protocol::Http).await;
    let outbound = kit.outbound(inbound.addresses[0], "/proxy", Protocol::Http).await;
    let mut client = dial(outbound.addresses[0]).await;
    client.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(heard.recv().await, Some("asked"));
    client.set_zero_linger().unwrap();
    drop(client);
    let gone = tokio::time::timeout(Duration::from_secs(5), heard.recv()).await;
    assert_eq!(gone.expect("the origin hears of it"), Some("gone"));
}

#[tokio::test]
async fn a_client_that_closes_its_half_gets_its_answer() {
    let kit = Kit::new();
    let inbound = kit.inbound(mirror().await, Protocol::Http).await;
    let outbound = kit.outbound(inbound.addresses[0], "/proxy", Protocol::Http).await;
    let mut client = dial(outbound.addresses[0]).await;
    client.write_all(b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let got = String::from_utf8(crate::kit::read_all(&mut client).await.unwrap()).unwrap();
    assert!(got.starts_with("HTTP/1.1 200 OK") && got.contains("GET /half"), "{got}");
}

/// Sends a request over `client` and returns the certificate hash that the origin was told.
async fn caller_hash(client: &mut TcpStream) -> String {
    client.write_all(b"GET /who HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut got = String::new();
    let mut buf = [0; 4096];
    while !got.contains("URI=") {
        let n = client.read(&mut buf).await.unwrap();
        assert!(n > 0, "{got}");
        got.push_str(std::str::from_utf8(&buf[..n]).unwrap());
    }
    got.split("Hash=").nth(1).unwrap()[..64].to_owned()
}

#[tokio::test]
async fn a_kept_connection_moves_to_the_next_certificate_between_requests() {
    let kit = Kit::new();
    let inbound = kit.inbound(mirror().await, Protocol::Http).await;
    let outbound = kit.outbound(inbound.addresses[0], "/proxy", Protocol::Http).await;
    let mut client = dial(outbound.addresses[0]).await;
    let first = caller_hash(&mut client).await;
    assert_eq!(caller_hash(&mut client).await, first, "one connection for both");
    kit.rotate("/proxy");
    for _ in 0..250 {
        if caller_hash(&mut client).await != first {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the old certificate is still in use");
}

#[tokio::test]
async fn plaintext_connections_end_with_the_permissive_period() {
    let kit = Kit::new();
    for protocol in [Protocol::Tcp, Protocol::Http] {
        let end = countersign_tls::current_time() + Duration::from_secs(2);
        let mode = PeerMode::Fixed(Mode::Permissive { until: Until::Time(end) });
        let (origin, mut heard) = silent().await;
        let inbound = kit.inbound_with(origin, protocol, mode, &[]).await;
        let mut client = dial(inbound.addresses[0]).await;
        client.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert_eq!(heard.recv().await, Some("asked"));
        let cut = crate::kit::read_all(&mut client).await;
        assert!(cut.is_err(), "{protocol:?} was not cut but closed");
        assert!(countersign_tls::current_time() >= end, "{protocol:?} was cut early");
        assert_eq!(kit.records.code().await, "CS2103");
    }
}

#[tokio::test]
async fn tokens_are_verified_and_stay_with_the_proxy() {
    let kit = Kit::new();
    let issuer = countersign_testkit::TokenIssuer::new("https://idp.test");
    let policies = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, namespace: default}}\n\
         spec: {{jwtRules: [{{issuer: '{}', jwks: '{}', outputClaimToHeaders: [{{header: X-Sub, claim: sub}}]}}]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: members, namespace: default}}\n\
         spec: {{rules: [{{from: [{{source: {{requestPrincipals: ['https://idp.test/alice']}}}}]}}]}}\n",
        issuer.name,
        issuer.jwks()
    );
    let strict = PeerMode::Fixed(Mode::Strict);
    let proxy = kit.inbound_with(mirror().await, Protocol::Http, strict, &[&policies]).await;
    let now = countersign_tls::current_time();
    let get = |query: &str, field: &str| {
        format!("GET /a{query} HTTP/1.1\r\nHost: x\r\nX-Sub: mallory\r\n{field}\r\n")
    };
    let bearer = |t: &str| format!("Authorization: Bearer {t}\r\n");
    let good = issuer.token(now, &serde_json::json!({}));
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    for (query, field) in
        [(String::new(), bearer(&good)), (format!("?a=1&access_token={good}&b=2"), String::new())]
    {
        let got = ask(&mut tls, &get(&query, &field), "URI=").await;
        assert!(got.starts_with("HTTP/1.1 200") && got.contains("x-sub: alice\r\n"), "{got}");
        assert!(!got.contains(&good) && !got.contains("mallory"), "{got}");
        assert!(query.is_empty() || got.contains("GET /a?a=1&b=2 HTTP/1.1"), "{got}");
    }
    let none = ask(&mut tls, &get("", ""), "}").await;
    assert!(
        none.starts_with("HTTP/1.1 403 ") && none.contains("CS3002"),
        "no token, no identity: {none}"
    );
    let bob = issuer.token(now, &serde_json::json!({"sub": "bob"}));
    assert!(ask(&mut tls, &get("", &bearer(&bob)), "}").await.contains("CS3002"));
    let forged = countersign_testkit::TokenIssuer::new("https://idp.test");
    let forged = forged.token(now, &serde_json::json!({}));
    let refused = ask(&mut tls, &get("", &bearer(&forged)), "}").await;
    assert!(refused.starts_with("HTTP/1.1 401 ") && refused.contains("CS1104"), "{refused}");
    assert!(refused.contains("WWW-Authenticate: Bearer"), "{refused}");
}

/// A client that keeps its connection is told in time that its certificate's end is near.
#[tokio::test]
async fn an_answer_near_the_end_of_the_clients_certificate_ends_the_connection() {
    let kit = Kit::new();
    let proxy = kit.inbound(mirror().await, Protocol::Http).await;
    let now = countersign_tls::current_time();
    let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (begin, life, closes) in [(now, 3600, false), (now - Duration::from_secs(90), 97, true)] {
        let svid = kit.ca.issue_at("/web", begin, life);
        let identity = TestIdentity { chain: svid.chain, key: svid.key };
        let mut tls = raw_tls::client(Some(&identity))
            .connect(raw_tls::any_name(), dial(proxy.addresses[0]).await)
            .await
            .unwrap();
        let answer = ask(&mut tls, get, "URI=").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(answer.to_lowercase().contains("connection: close"), closes, "{answer}");
    }
}

#[tokio::test]
async fn audit_policies_report_and_decide_nothing() {
    let kit = Kit::new();
    let policies = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: watch, namespace: default}\n\
         spec: {action: AUDIT, rules: [{to: [{operation: {paths: [/a]}}]}]}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: trial, namespace: default, annotations: {istio.io/dry-run: 'true'}}\n\
         spec: {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}\n";
    let strict = PeerMode::Fixed(Mode::Strict);
    let proxy = kit.inbound_with(mirror().await, Protocol::Http, strict, &[policies]).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    for path in ["/a", "/b"] {
        let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(ask(&mut tls, &get, "URI=").await.starts_with("HTTP/1.1 200"), "{path}");
    }
    let audits = kit.records.of("audit", 3).await;
    let reports: Vec<&str> = audits.iter().map(|r| r["message"].as_str().unwrap()).collect();
    let (trial, watch) = ("policy default/trial matches", "policy default/watch matches");
    assert_eq!(reports, [trial, watch, trial]);
}

#[tokio::test]
async fn nobody_passes_by_a_header_that_he_made_up() {
    let kit = Kit::new();
    let issuer = countersign_testkit::TokenIssuer::new("idp");
    let policies = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, namespace: default}}\n\
         spec: {{jwtRules: [{{issuer: idp, jwks: '{}', outputClaimToHeaders: [{{header: x-role, claim: role}}]}}]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: admins, namespace: default}}\n\
         spec: {{rules: [{{when: [{{key: 'request.headers[x-role]', values: [admin]}}]}}, \
         {{when: [{{key: 'request.headers[x-forwarded-client-cert]', values: ['*']}}]}}]}}\n",
        issuer.jwks()
    );
    let strict = PeerMode::Fixed(Mode::Strict);
    let proxy = kit.inbound_with(mirror().await, Protocol::Http, strict, &[&policies]).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    let now = countersign_tls::current_time();
    let bearer = |role: &str| {
        let token = issuer.token(now, &serde_json::json!({"role": role}));
        format!("Authorization: Bearer {token}\r\n")
    };
    for spoofed in [
        "X-Role: admin\r\n".to_owned(),
        "X_Role: admin\r\n".to_owned(),
        "X-Forwarded-Client-Cert: By=spiffe://evil\r\n".to_owned(),
        format!("X-Role: admin\r\n{}", bearer("user")),
    ] {
        let got = ask(&mut tls, &format!("GET / HTTP/1.1\r\nHost: x\r\n{spoofed}\r\n"), "}").await;
        assert!(got.starts_with("HTTP/1.1 403 ") && got.contains("CS3002"), "{spoofed}: {got}");
    }
    let real = format!("GET / HTTP/1.1\r\nHost: x\r\nx-role: user\r\n{}\r\n", bearer("admin"));
    let got = ask(&mut tls, &real, "URI=").await;
    assert!(got.starts_with("HTTP/1.1 200") && got.contains("x-role: admin\r\n"), "{got}");
    assert!(!got.contains("x-role: user"), "{got}");
}

#[tokio::test]
async fn methods_are_in_capitals() {
    let kit = Kit::new();
    let proxy = kit.inbound(mirror().await, Protocol::Http).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    let got = ask(&mut tls, "delete / HTTP/1.1\r\nHost: x\r\n\r\n", "}").await;
    assert!(got.starts_with("HTTP/1.1 400 "), "{got}");
}

#[tokio::test]
async fn what_a_lenient_parser_takes_for_http_is_not_relayed_as_bytes() {
    let kit = Kit::new();
    let proxy = kit.inbound(mirror().await, Protocol::Auto).await;
    for start in [" GET / HTTP/1.1", "GET\u{c}/ HTTP/1.1", "GET\u{b}/ HTTP/1.1", "\tGET / HTTP/1.1"]
    {
        let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
        let got = ask(&mut tls, &format!("{start}\r\nHost: x\r\n\r\n"), "}").await;
        assert!(got.starts_with("HTTP/1.1 400 "), "{start:?}: {got}");
    }
}

#[tokio::test]
async fn interim_responses_come_to_an_end() {
    let kit = Kit::new();
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut s, _) = listener.accept().await.unwrap();
        let _ = s.read(&mut [0; 2048]).await;
        while s.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n").await.is_ok() {}
    });
    let proxy = kit.inbound(address, Protocol::Http).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    let got = ask(&mut tls, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "never").await;
    assert!(got.matches("103 Early Hints").count() <= 32, "{}", got.len());
    assert_eq!(kit.records.code().await, "CS2203");
}

#[tokio::test]
async fn what_a_token_allows_ends_with_it() {
    let kit = Kit::new();
    let issuer = countersign_testkit::TokenIssuer::new("idp");
    let policies = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, namespace: default}}\n\
         spec: {{jwtRules: [{{issuer: idp, jwks: '{}'}}]}}\n",
        issuer.jwks()
    );
    let (origin, mut heard) = silent().await;
    let strict = PeerMode::Fixed(Mode::Strict);
    let proxy = kit.inbound_with(origin, Protocol::Http, strict, &[&policies]).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    // It has ended, but for the leeway: two seconds are left.
    let end = countersign_tls::current_time().secs() - 58;
    let token = issuer.token(countersign_tls::current_time(), &serde_json::json!({"exp": end}));
    let request = format!("GET /slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(heard.recv().await, Some("asked"));
    let gone = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await;
    assert_eq!(gone.expect("it is cut"), Some("gone"));
    assert_eq!(kit.records.code().await, "CS1105");
}

#[tokio::test]
async fn policy_files_are_watched_and_the_last_good_set_stays() {
    let kit = Kit::new();
    let file = kit.dir.path().join("policy.yaml");
    let policy = |path: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: default}}\n\
             spec: {{rules: [{{to: [{{operation: {{paths: [{path}]}}}}]}}]}}\n"
        )
    };
    std::fs::write(&file, policy("/a")).unwrap();
    let listener = ListenerOptions::Inbound(InboundOptions {
        listen: any(),
        forward: mirror().await.to_string(),
        mode: PeerMode::Fixed(Mode::Strict),
        allow: None,
        protocol: Protocol::Http,
    });
    let mut options = kit.options(vec![listener]);
    options.policy_files = vec![file.clone()];
    let proxy = kit.start(options).await.unwrap();
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(ask(&mut tls, &get("/b"), "}").await.contains("CS3002"));
    std::fs::write(&file, policy("/bb, /b")).unwrap();
    for _ in 0..100 {
        if ask(&mut tls, &get("/b"), "\r\n\r\n").await.starts_with("HTTP/1.1 200") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    assert!(
        ask(&mut tls, &get("/b"), "URI=").await.starts_with("HTTP/1.1 200"),
        "it was read again"
    );
    // A file that cannot be understood changes nothing but the metric.
    std::fs::write(&file, "kind: [").unwrap();
    for _ in 0..100 {
        if proxy.metrics.encode().contains("countersign_policy_current 0") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(proxy.metrics.encode().contains("countersign_policy_current 0"));
    assert!(ask(&mut tls, &get("/b"), "URI=").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn ap_18_the_address_that_trusted_proxies_tell() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: office, namespace: default}\n\
         spec: {rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}]}\n";
    for (hops, allowed) in [(0, false), (1, false), (2, true), (3, false)] {
        let kit = Kit::new();
        let listener =
            countersign_proxy::ListenerOptions::Inbound(countersign_proxy::InboundOptions {
                listen: any(),
                forward: mirror().await.to_string(),
                mode: PeerMode::Fixed(Mode::Strict),
                allow: None,
                protocol: Protocol::Http,
            });
        let mut options = kit.options(vec![listener]);
        options.policies = vec![("test.yaml".into(), policy.into())];
        options.mesh.trusted_hops = hops;
        let proxy = kit.start(options).await.unwrap();
        let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
        let get = "GET /a HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.7, 198.51.100.1\r\nConnection: close\r\n\r\n";
        let got = ask(&mut tls, get, "\u{0}").await;
        assert_eq!(got.starts_with("HTTP/1.1 200"), allowed, "{hops} hops: {got}");
    }
}
