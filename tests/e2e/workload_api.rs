//! The Workload Endpoint's and the Workload API's sections, on a running agent. Each test is named after
//! its section.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use countersign_wire::dial;
use countersign_wire::proto::spiffe as api;
use countersign_wire::proto::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_wire::rpc::{Channel, Code, Request, Status};
use countersign_wire::workload::{request, to_context};
use countersign_x509::{CertInfo, pem::split_der};
use serde_json::Value;

use crate::kit::{Home, Running, application, eventually, free_port};

/// An agent that knows these identities for whoever runs the tests.
struct Agent {
    home: Home,
    _up: Running,
    socket: PathBuf,
}

fn agent(identities: &[&str]) -> Agent {
    let home = Home::new();
    home.ok(&["init", "--trust-domain", "corp.test"]);
    let (up, ready) = home.start(&["up", "--listen", "127.0.0.1:0"]);
    let socket = PathBuf::from(ready["agent_socket"].as_str().unwrap());
    let agent = Agent { home, _up: up, socket };
    for id in identities {
        agent.entry(id, id);
    }
    agent
}

impl Agent {
    fn entry(&self, id: &str, hint: &str) {
        let uid = format!("unix:uid:{}", rustix::process::getuid().as_raw());
        self.home.ok(&["entry", "create", "--spiffe-id", id, "--selector", &uid, "--hint", hint]);
    }

    fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(dial::unix(self.socket.clone()))
    }

    /// The set with this many identities.
    async fn set_of(&self, n: usize) -> api::X509svidResponse {
        let mut client = self.client();
        for _ in 0..200 {
            if let Ok(stream) = client.fetch_x509svid(request(api::X509svidRequest {})).await
                && let Ok(Some(set)) = stream.into_inner().message().await
                && set.svids.len() == n
            {
                return set;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never {n} identities");
    }
}

fn code<T>(result: Result<T, Status>) -> Code {
    match result {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_endpoint_3_every_call_needs_the_header() {
    let agent = agent(&["/a"]);
    agent.set_of(1).await;
    let mut c = agent.client();
    assert_eq!(code(c.fetch_x509svid(api::X509svidRequest {}).await), Code::InvalidArgument);
    assert_eq!(code(c.fetch_x509_bundles(api::X509BundlesRequest {}).await), Code::InvalidArgument);
    assert_eq!(code(c.fetch_jwt_bundles(api::JwtBundlesRequest {}).await), Code::InvalidArgument);
    let jwt = api::JwtsvidRequest { audience: vec!["x".into()], spiffe_id: String::new() };
    assert_eq!(code(c.fetch_jwtsvid(jwt).await), Code::InvalidArgument);
    let validate = api::ValidateJwtsvidRequest { audience: "x".into(), svid: "y".into() };
    assert_eq!(code(c.validate_jwtsvid(validate).await), Code::InvalidArgument);
    // The value is case-sensitive.
    let mut wrong = Request::new(api::X509svidRequest {});
    wrong.metadata_mut().insert("workload.spiffe.io", "True".parse().unwrap());
    assert_eq!(code(c.fetch_x509svid(wrong).await), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_endpoint_6_no_identity_is_permission_denied() {
    let agent = agent(&[]);
    let mut c = agent.client();
    let x509 = c.fetch_x509svid(request(api::X509svidRequest {})).await;
    assert_eq!(code(x509), Code::PermissionDenied);
    let ask = api::JwtsvidRequest { audience: vec!["x".into()], spiffe_id: String::new() };
    assert_eq!(code(c.fetch_jwtsvid(request(ask)).await), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_api_4_3_each_message_is_the_complete_set() {
    let agent = agent(&["/a"]);
    agent.set_of(1).await;
    let mut stream =
        agent.client().fetch_x509svid(request(api::X509svidRequest {})).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().svids.len(), 1, "at once");
    agent.entry("/b", "b");
    let set = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap();
    let ids: HashSet<String> =
        set.unwrap().unwrap().svids.into_iter().map(|s| s.spiffe_id).collect();
    let expected = ["spiffe://corp.test/a", "spiffe://corp.test/b"];
    assert_eq!(ids, expected.into_iter().map(str::to_owned).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_api_4_4_what_is_withdrawn_is_told() {
    let agent = agent(&["/a"]);
    agent.set_of(1).await;
    let mut stream =
        agent.client().fetch_x509svid(request(api::X509svidRequest {})).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let id = agent.home.entries()[0]["id"].clone();
    agent.home.ok(&["entry", "delete", id.as_str().unwrap()]);
    let end = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap();
    assert_eq!(code(end), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_api_4_5_empty_mandatory_fields_are_invalid() {
    let agent = agent(&["/a"]);
    agent.set_of(1).await;
    let mut c = agent.client();
    for audience in [vec![], vec![String::new()]] {
        let ask = api::JwtsvidRequest { audience, spiffe_id: String::new() };
        assert_eq!(code(c.fetch_jwtsvid(request(ask)).await), Code::InvalidArgument);
    }
    for (audience, svid) in [("", "x"), ("x", "")] {
        let ask = api::ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
        assert_eq!(code(c.validate_jwtsvid(request(ask)).await), Code::InvalidArgument);
    }
    let ask = api::JwtsvidRequest { audience: vec!["x".into()], spiffe_id: "spiffe://A B".into() };
    assert_eq!(code(c.fetch_jwtsvid(request(ask)).await), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_api_5_2_shape_of_x509_svids() {
    let agent = agent(&["/a", "/b"]);
    let set = agent.set_of(2).await;
    let hints: HashSet<&str> = set.svids.iter().map(|s| s.hint.as_str()).collect();
    assert_eq!(hints, HashSet::from(["/a", "/b"]), "a hint is unique within a response");
    for svid in &set.svids {
        let chain = split_der(&svid.x509_svid).unwrap();
        let leaf = CertInfo::parse(&chain[0]).unwrap();
        assert_eq!(leaf.uri_sans, std::slice::from_ref(&svid.spiffe_id), "leaf first");
        for (lower, upper) in chain.iter().zip(&chain[1..]) {
            let upper = CertInfo::parse(upper).unwrap();
            assert!(upper.is_ca);
            assert_eq!(CertInfo::parse(lower).unwrap().issuer, upper.subject);
        }
        assert!(!split_der(&svid.bundle).unwrap().is_empty());
    }
    // The key is PKCS#8 and belongs to the leaf: reading it as credentials checks both.
    let context = to_context(set).unwrap();
    for svid in &context.svids {
        let options = countersign_tls::TlsOptions::default();
        countersign_tls::Credentials::new(svid, &context.bundles, 1, options).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_api_6_2_1_an_empty_id_asks_for_all() {
    let agent = agent(&["/a", "/b"]);
    agent.set_of(2).await;
    let mut c = agent.client();
    let ask = |id: &str| api::JwtsvidRequest { audience: vec!["x".into()], spiffe_id: id.into() };
    let all = c.fetch_jwtsvid(request(ask(""))).await.unwrap().into_inner().svids;
    assert_eq!(all.len(), 2);
    let one = c.fetch_jwtsvid(request(ask("spiffe://corp.test/b"))).await.unwrap().into_inner();
    assert_eq!(one.svids.len(), 1);
    assert_eq!(one.svids[0].spiffe_id, "spiffe://corp.test/b");
    let foreign = c.fetch_jwtsvid(request(ask("spiffe://corp.test/c"))).await;
    assert_eq!(code(foreign), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_api_6_2_2_jwt_bundles_hold_jwt_keys_only() {
    let agent = agent(&["/a"]);
    agent.set_of(1).await;
    let mut stream = agent
        .client()
        .fetch_jwt_bundles(request(api::JwtBundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    let bundles = stream.message().await.unwrap().unwrap().bundles;
    let document: Value = serde_json::from_slice(&bundles["spiffe://corp.test"]).unwrap();
    let keys = document["keys"].as_array().unwrap();
    assert!(!keys.is_empty());
    for key in keys {
        assert_eq!(key["use"], "jwt-svid");
        assert!(key["kid"].as_str().is_some_and(|k| !k.is_empty()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_api_6_2_3_validation() {
    let agent = agent(&["/a"]);
    agent.set_of(1).await;
    let mut c = agent.client();
    let ask = api::JwtsvidRequest { audience: vec!["x".into()], spiffe_id: String::new() };
    let token = c.fetch_jwtsvid(request(ask)).await.unwrap().into_inner().svids.remove(0).svid;
    let validate = |audience: &str, svid: &str| {
        request(api::ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() })
    };
    let good = c.validate_jwtsvid(validate("x", &token)).await.unwrap().into_inner();
    assert_eq!(good.spiffe_id, "spiffe://corp.test/a");
    assert!(good.claims.unwrap().fields.contains_key("exp"));
    assert_eq!(code(c.validate_jwtsvid(validate("y", &token)).await), Code::InvalidArgument);
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{signed}.{flipped}{}", &signature[1..]);
    assert_eq!(code(c.validate_jwtsvid(validate("x", &forged)).await), Code::InvalidArgument);
}

/// Calls an RPC that no generated client knows; its `grpc-status`.
async fn grpc_status(socket: &std::path::Path, rpc: &str) -> String {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    let call = http::Request::post(format!("http://localhost/SpiffeWorkloadAPI/{rpc}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("workload.spiffe.io", "true")
        .body(())
        .unwrap();
    let (answer, mut body) = sender.send_request(call, false).unwrap();
    body.send_data(vec![0; 5].into(), true).unwrap();
    let answer = answer.await.unwrap();
    driver.abort();
    answer.headers()["grpc-status"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_api_7_unknown_rpcs_are_unimplemented() {
    let agent = agent(&["/a"]);
    agent.set_of(1).await;
    for rpc in ["FetchWITSVID", "FetchWITBundles", "Nothing"] {
        assert_eq!(grpc_status(&agent.socket, rpc).await, "12", "{rpc} is UNIMPLEMENTED");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_api_8_the_default_identity_stays_first() {
    let agent = agent(&["/a", "/b", "/c"]);
    let first = agent.set_of(3).await.svids[0].spiffe_id.clone();
    for _ in 0..5 {
        assert_eq!(agent.set_of(3).await.svids[0].spiffe_id, first);
    }
    // Entries are as old as their second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    agent.entry("/d", "d");
    assert_eq!(agent.set_of(4).await.svids[0].spiffe_id, first, "a later entry comes later");
}

/// A proxy believes what the trust domain signs, for the audience that the policy names.
#[tokio::test(flavor = "multi_thread")]
async fn jwt_svids_are_tokens_for_policies() {
    let agent = agent(&["/ns/shop/sa/web"]);
    agent.set_of(1).await;
    let home = &agent.home;
    std::fs::write(
        home.path("jwt.yaml"),
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt, namespace: shop}\n\
         spec: {jwtRules: [{issuer: 'spiffe://corp.test', audiences: [api], outputClaimToHeaders: [{header: x-sub, claim: sub}]}]}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\n\
         spec: {rules: [{when: [{key: 'request.auth.claims[sub]', values: ['spiffe://corp.test/ns/shop/sa/web']}]}]}\n",
    )
    .unwrap();
    home.ok(&["apply", "-f", home.path("jwt.yaml").to_str().unwrap()]);
    let (inbound, outbound, app) = (free_port(), free_port(), application());
    let inbound_arg = format!("127.0.0.1:{inbound}={app}");
    let api = ["run", "--id", "/ns/shop/sa/api", "--inbound", &inbound_arg, "--", "sleep", "60"];
    let _api = home.spawn(&api, "log-api");
    let outbound_arg = format!("127.0.0.1:{outbound}=127.0.0.1:{inbound},/ns/shop/sa/api");
    let web =
        ["run", "--id", "/ns/shop/sa/other", "--outbound", &outbound_arg, "--", "sleep", "60"];
    let _web = home.spawn(&web, "log-web");
    let mut c = agent.client();
    let mut token = async |audience: &str| {
        let ask = api::JwtsvidRequest { audience: vec![audience.into()], spiffe_id: String::new() };
        c.fetch_jwtsvid(request(ask)).await.unwrap().into_inner().svids.remove(0).svid
    };
    let (good, other) = (token("api").await, token("bank").await);
    let get = |token: &str| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", outbound)).ok()?;
        let field = format!("Authorization: Bearer {token}\r\n");
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{field}\r\n");
        stream.write_all(text.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        (!answer.is_empty() && !answer.starts_with("HTTP/1.1 50")).then_some(answer)
    };
    let answer = eventually("the token is believed", || {
        get(&good).filter(|a| a.starts_with("HTTP/1.1 200"))
    });
    assert!(answer.contains("x-sub: spiffe://corp.test/ns/shop/sa/web"), "{answer}");
    let refused = get(&other).unwrap();
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("CS1106"), "{refused}");
    let mut forged = good.clone();
    forged.replace_range(good.len() - 6.., "AAAAAA");
    assert!(get(&forged).unwrap().contains("CS1104"));
    assert!(get("").unwrap().contains("CS3002"), "no token, no identity");
}
