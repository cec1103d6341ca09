//! Tokens of an issuer that publishes its keys.

use std::sync::{Arc, Mutex};

use countersign_policy::Mode;
use countersign_proxy::{InboundOptions, ListenerOptions, PeerMode, Protocol};
use countersign_testkit::TokenIssuer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::http::{ask, connect, mirror};
use crate::kit::{Kit, any};

/// An issuer's server; its answer can be changed.
async fn server(keys: &Arc<Mutex<String>>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind(any()).await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let keys = Arc::clone(keys);
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 2048];
            let _ = stream.read(&mut head).await;
            let body = keys.lock().unwrap().clone();
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    (url, task)
}

#[tokio::test]
async fn a_token_waits_for_its_issuers_keys_and_is_refused_without_them() {
    let kit = Kit::new();
    let issuer = TokenIssuer::new("https://idp.test");
    let keys = Arc::new(Mutex::new(issuer.jwks()));
    let (url, _server) = server(&keys).await;
    let (down, gone) = server(&keys).await;
    gone.abort();
    let policy = |issuer: &str, url: &str| {
        format!(
            "{{issuer: '{issuer}', jwksUri: '{url}', outputClaimToHeaders: [{{header: X-Sub, claim: sub}}]}}"
        )
    };
    let listener = ListenerOptions::Inbound(InboundOptions {
        listen: any(),
        forward: mirror().await.to_string(),
        mode: PeerMode::Fixed(Mode::Strict),
        allow: None,
        protocol: Protocol::Http,
    });
    let mut options = kit.options(vec![listener]);
    options.policies = vec![(
        "test.yaml".into(),
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, namespace: default}}\n\
             spec: {{jwtRules: [{}, {}]}}\n",
            policy("https://idp.test", &url),
            policy("https://down.test", &down)
        ),
    )];
    options.issuers.plaintext = true;
    options.issuers.addresses = vec!["127.0.0.1".parse().unwrap()];
    let proxy = kit.start(options).await.unwrap();
    let now = countersign_tls::current_time();
    let get = |token: &str| {
        format!("GET /a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n")
    };
    let mut tls = connect(&kit, proxy.addresses[0], "/web").await;
    // The very first request may come before the keys do.
    let good = issuer.token(now, &serde_json::json!({}));
    let got = ask(&mut tls, &get(&good), "URI=").await;
    assert!(got.starts_with("HTTP/1.1 200") && got.contains("x-sub: alice\r\n"), "{got}");
    let elsewhere = TokenIssuer::new("https://down.test").token(now, &serde_json::json!({}));
    let refused = ask(&mut tls, &get(&elsewhere), "}").await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("CS3009"), "{refused}");
    let forged = TokenIssuer::new("https://idp.test").token(now, &serde_json::json!({}));
    let refused = ask(&mut tls, &get(&forged), "}").await;
    assert!(refused.starts_with("HTTP/1.1 401 ") && refused.contains("CS1104"), "{refused}");
    let metrics = proxy.metrics.encode();
    for line in ["{result=\"success\"} 1", "{result=\"failure\"}"] {
        assert!(
            metrics.contains(&format!("countersign_issuer_key_fetches_total{line}")),
            "{metrics}"
        );
    }

    // A new key of the issuer is found when the first token comes that it signed.
    let next = TokenIssuer::new("https://idp.test");
    *keys.lock().unwrap() = next.jwks();
    tokio::time::sleep(std::time::Duration::from_millis(5100)).await;
    let token = next.token(now, &serde_json::json!({}));
    let got = ask(&mut tls, &get(&token), "URI=").await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
}
