//! CUSTOM policies: external engines over HTTP and gRPC, and what happens without their answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use countersign_policy::{Mode, Provider, parse_providers};
use countersign_proxy::{InboundOptions, ListenerOptions, PeerMode, Protocol, RunningProxy};
use countersign_wire::proto::envoy::config::core::v3 as core;
use countersign_wire::proto::envoy::service::auth::v3 as auth;
use countersign_wire::proto::google::rpc::Status as RpcStatus;
use countersign_wire::rpc::{Request, Response, Routes, Status};
use countersign_wire::serve::{WithCaller, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;

use crate::http::{ask, connect, mirror};
use crate::kit::{Kit, any, echo, read_all};

const CUSTOM: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: default}
spec:
  action: CUSTOM
  provider: {name: engine}
  rules: [{to: [{operation: {paths: ['/asked*']}}]}]
";

fn provider(body: &str) -> Vec<Provider> {
    parse_providers(&format!("extensionProviders:\n- name: engine\n  {body}"), "test").unwrap()
}

async fn proxy(
    kit: &Kit,
    forward: SocketAddr,
    protocol: Protocol,
    providers: Vec<Provider>,
    policy: &str,
) -> RunningProxy {
    let listener = ListenerOptions::Inbound(InboundOptions {
        listen: any(),
        forward: forward.to_string(),
        mode: PeerMode::Fixed(Mode::Strict),
        allow: None,
        protocol,
    });
    let mut options = kit.options(vec![listener]);
    options.policies = vec![("test.yaml".into(), policy.into())];
    options.providers = providers;
    kit.start(options).await.unwrap()
}

/// An engine over HTTP: gives `answer` to everybody, and keeps what it was asked.
async fn http_engine(answer: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut data = Vec::new();
                let mut buf = [0; 4096];
                while let Ok(n) = stream.read(&mut buf).await {
                    data.extend_from_slice(&buf[..n]);
                    if n == 0 {
                        return;
                    }
                    if data.windows(4).any(|w| w == b"\r\n\r\n") {
                        kept.lock().unwrap().push(String::from_utf8_lossy(&data).into_owned());
                        data.clear();
                        if answer.is_empty() {
                            continue;
                        }
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    (address, asked)
}

fn http_provider(address: SocketAddr, more: &str) -> Vec<Provider> {
    provider(&format!(
        "envoyExtAuthzHttp: {{service: 127.0.0.1, port: {}, timeout: 0.3s{more}}}",
        address.port()
    ))
}

fn get(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer t\r\nX-Secret: s\r\nEnd: 1\r\n\r\n"
    )
}

#[tokio::test]
async fn an_http_engine_allows_and_changes_the_request() {
    let kit = Kit::new();
    let (engine, asked) = http_engine(
        "HTTP/1.1 200 OK\r\nX-User: ann\r\nX-Other: no\r\nX-Forwarded-Client-Cert: URI=spiffe://evil\r\n\
         X-Envoy-Auth-Headers-To-Remove: authorization\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let more = ", pathPrefix: /check, headersToUpstreamOnAllow: [x-user, x-forwarded-*]";
    let proxy =
        proxy(&kit, mirror().await, Protocol::Http, http_provider(engine, more), CUSTOM).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
    for path in ["/free", "/asked?q=1"] {
        let got = ask(&mut tls, &get(path), "sa/web\r\n").await;
        assert!(got.starts_with("HTTP/1.1 200"), "{got}");
        let is_asked = path != "/free";
        assert_eq!(got.contains("x-user: ann\r\n"), is_asked, "{got}");
        assert_eq!(got.contains("Bearer t"), !is_asked, "{got}");
        assert!(!got.contains("X-Other") && !got.contains("evil"), "{got}");
    }
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 1, "only what the policy matches: {asked:?}");
    assert!(asked[0].starts_with("GET /check/asked?q=1 HTTP/1.1\r\n"), "{asked:?}");
    assert!(asked[0].contains("host: shop") && asked[0].contains("Bearer t"), "{asked:?}");
    assert!(!asked[0].to_lowercase().contains("x-secret"), "told more than it should: {asked:?}");
}

#[tokio::test]
async fn an_http_engine_refuses_in_its_own_words() {
    let kit = Kit::new();
    let (engine, _) = http_engine(
        "HTTP/1.1 401 Nope\r\nWWW-Authenticate: Basic\r\nContent-Length: 6\r\n\r\nlog in",
    )
    .await;
    let proxy =
        proxy(&kit, mirror().await, Protocol::Http, http_provider(engine, ""), CUSTOM).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
    let got = ask(&mut tls, &get("/asked"), "log in").await;
    assert!(got.starts_with("HTTP/1.1 401 "), "{got}");
    assert!(got.contains("www-authenticate: Basic\r\n"), "{got}");
    assert!(got.contains("X-Countersign-Code: CS3005\r\n"), "{got}");
    assert_eq!(kit.records.code().await, "CS3005");
    // To HEAD the same without the body, or the next answer could not be told from it.
    let head = get("/asked").replace("GET", "HEAD");
    let got = ask(&mut tls, &head, "\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 401 ") && !got.contains("log in"), "{got}");
    let got = ask(&mut tls, &get("/free"), "sa/web\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
}

#[tokio::test]
async fn without_an_answer_nothing_passes() {
    for (answer, status) in [
        ("", "503"),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "503"),
        ("nonsense\r\n\r\n", "503"),
        ("HTTP/1.1 200 OK\r\nX-User: a\u{1}b\r\nContent-Length: 0\r\n\r\n", "503"),
    ] {
        let kit = Kit::new();
        let (engine, _) = http_engine(answer).await;
        let more = ", statusOnError: \"503\", headersToUpstreamOnAllow: [x-user]";
        let proxy =
            proxy(&kit, mirror().await, Protocol::Http, http_provider(engine, more), CUSTOM).await;
        let mut tls = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
        let got = ask(&mut tls, &get("/asked"), "\r\n\r\n").await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{answer:?}: {got}");
        assert!(got.contains("X-Countersign-Code: CS3006"), "{answer:?}: {got}");
    }
    // Nobody listens there at all.
    let kit = Kit::new();
    let nobody = TcpListener::bind(any()).await.unwrap().local_addr().unwrap();
    let proxy =
        proxy(&kit, mirror().await, Protocol::Http, http_provider(nobody, ""), CUSTOM).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
    let got = ask(&mut tls, &get("/asked"), "\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 403 ") && got.contains("CS3006"), "{got}");
    let metrics = proxy.metrics.encode();
    assert!(
        metrics.contains(r#"countersign_engine_checks_total{provider="engine",result="failed"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_provider_that_nobody_describes_refuses_the_file_or_the_request() {
    let kit = Kit::new();
    let file = kit.dir.path().join("custom.yaml");
    std::fs::write(&file, CUSTOM).unwrap();
    let mut options = kit.options(Vec::new());
    options.policy_files = vec![file];
    let e = kit.start(options).await.err().expect("refused").to_string();
    assert!(e.contains("CS3007") && e.contains("`engine` is not known"), "{e}");
    // Told by the agent, or in a text, it is refused where it matches.
    let proxy = proxy(&kit, mirror().await, Protocol::Http, Vec::new(), CUSTOM).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
    let got = ask(&mut tls, &get("/asked"), "\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 403 ") && got.contains("CS3007"), "{got}");
}

/// An engine over gRPC that keeps what it was asked.
struct Grpc {
    asked: Arc<Mutex<Vec<auth::CheckRequest>>>,
    answer: auth::CheckResponse,
}

#[async_trait]
impl auth::authorization_server::Authorization for Grpc {
    async fn check(
        &self,
        request: Request<auth::CheckRequest>,
    ) -> Result<Response<auth::CheckResponse>, Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        Ok(Response::new(self.answer.clone()))
    }
}

async fn grpc_engine(
    answer: auth::CheckResponse,
) -> (Vec<Provider>, Arc<Mutex<Vec<auth::CheckRequest>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let service = Grpc { asked: Arc::clone(&asked), answer };
    let listener = TcpListener::bind(any()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let routes = Routes::new(auth::authorization_server::AuthorizationServer::new(service));
    let incoming = TcpListenerStream::new(listener).map(|s| s.map(|s| WithCaller::new(s, ())));
    tokio::spawn(async move {
        let _ = serve(routes, incoming, std::future::pending()).await;
    });
    (provider(&format!("envoyExtAuthzGrpc: {{service: 127.0.0.1, port: {port}}}")), asked)
}

fn header(key: &str, value: &str, append: bool) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append: Some(append),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_grpc_engine_is_told_who_calls_what() {
    let kit = Kit::new();
    let ok = auth::OkHttpResponse {
        headers: vec![header("X-Secret", "more", true), header("X-User", "ann", false)],
        headers_to_remove: vec!["authorization".into(), "host".into()],
        ..Default::default()
    };
    let (providers, asked) = grpc_engine(auth::CheckResponse {
        status: Some(RpcStatus::default()),
        http_response: Some(auth::check_response::HttpResponse::OkResponse(ok)),
    })
    .await;
    // What it sets is judged like any other header field.
    let policy = format!(
        "{CUSTOM}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: users, namespace: default}}\nspec:\n  rules:\n  - when: [{{key: 'request.headers[x-user]', values: [ann]}}]\n"
    );
    let proxy = proxy(&kit, mirror().await, Protocol::Auto, providers, &policy).await;
    let mut tls = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
    let got = ask(&mut tls, &get("/asked/./x?q=1"), "x-user: ann\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    assert!(got.contains("x-secret: s\r\nx-secret: more\r\n"), "{got}");
    assert!(got.contains("Host: shop\r\n") && !got.contains("Bearer"), "{got}");
    let got = ask(&mut tls, &get("/free"), "\r\n\r\n").await;
    assert!(got.contains("CS3002"), "not asked, so no x-user: {got}");
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 1);
    let a = asked[0].attributes.as_ref().unwrap();
    let (source, destination) = (a.source.as_ref().unwrap(), a.destination.as_ref().unwrap());
    assert_eq!(source.principal, "spiffe://corp.test/ns/shop/sa/web");
    assert_eq!(destination.principal, "spiffe://corp.test/proxy");
    let Some(core::address::Address::SocketAddress(to)) =
        &destination.address.as_ref().unwrap().address
    else {
        panic!("no address")
    };
    let port = core::socket_address::PortSpecifier::PortValue(proxy.addresses[0].port().into());
    assert_eq!((to.address.as_str(), to.port_specifier.clone()), ("127.0.0.1", Some(port)));
    let request = a.request.as_ref().unwrap();
    assert!(request.time.as_ref().unwrap().seconds > 1_700_000_000);
    let http = request.http.as_ref().unwrap();
    assert_eq!((http.method.as_str(), http.path.as_str()), ("GET", "/asked/x?q=1"));
    assert_eq!((http.host.as_str(), http.protocol.as_str(), http.size), ("shop", "HTTP/1.1", -1));
    assert_eq!(http.headers[":path"], "/asked/x?q=1");
    assert_eq!(http.headers["authorization"], "Bearer t");
}

#[tokio::test]
async fn a_grpc_engine_judges_tcp_connections_too() {
    for (code, allowed) in [(0, true), (7, false)] {
        let kit = Kit::new();
        let (providers, asked) = grpc_engine(auth::CheckResponse {
            status: Some(RpcStatus { code, message: "no".into(), details: Vec::new() }),
            http_response: None,
        })
        .await;
        let policy = CUSTOM.replace("[{to: [{operation: {paths: ['/asked*']}}]}]", "[{}]");
        let proxy = proxy(&kit, echo().await, Protocol::Tcp, providers, &policy).await;
        let mut tls = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
        tls.write_all(b"hello").await.unwrap();
        tls.shutdown().await.unwrap();
        let got = read_all(&mut tls).await.unwrap_or_default();
        assert_eq!(got == b"hellobye", allowed, "{}", String::from_utf8_lossy(&got));
        if !allowed {
            assert_eq!(kit.records.code().await, "CS3005");
        }
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 1);
        assert!(asked[0].attributes.as_ref().unwrap().request.as_ref().unwrap().http.is_none());
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_waits_for_the_engine() {
    let kit = Kit::new();
    let (providers, asked) = grpc_engine(auth::CheckResponse {
        status: Some(RpcStatus { code: 7, ..Default::default() }),
        http_response: None,
    })
    .await;
    let policy = CUSTOM.replace("[{to: [{operation: {paths: ['/asked*']}}]}]", "[{}]");
    let greeter = TcpListener::bind(any()).await.unwrap();
    let address = greeter.local_addr().unwrap();
    let proxy = proxy(&kit, address, Protocol::Auto, providers, &policy).await;
    let _tls = connect(&kit, proxy.addresses[0], "/ns/shop/sa/web").await;
    for _ in 0..100 {
        if !asked.lock().unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(asked.lock().unwrap().len(), 1);
    let dialled = tokio::time::timeout(Duration::from_millis(200), greeter.accept()).await;
    assert!(dialled.is_err(), "the workload was dialled for a caller that the engine refuses");
}
