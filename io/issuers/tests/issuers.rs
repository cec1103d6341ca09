//! Real servers on loopback that publish keys, and what becomes of that.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_issuers::{IssuerOptions, Issuers, MAX_SOURCES};
use countersign_policy::{KeyLocation, KeySource};
use countersign_telemetry::Metrics;
use countersign_testkit::{Story, TestCa, TokenIssuer, raw_tls};
use countersign_tls::current_time;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers by path with whatever is set at the moment.
struct Idp {
    port: u16,
    roots: Vec<Vec<u8>>,
    pages: Arc<Mutex<Vec<(&'static str, String)>>>,
    hits: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Idp {
    async fn start(secure: bool) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ca = TestCa::new("idp.test", current_time());
        let acceptor = secure.then(|| raw_tls::web_server(&ca.story(Story::Localhost, "/unused")));
        let pages: Arc<Mutex<Vec<(&'static str, String)>>> = Arc::default();
        let hits = Arc::new(AtomicUsize::new(0));
        let (shown, counted) = (Arc::clone(&pages), Arc::clone(&hits));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let pages = shown.lock().unwrap().clone();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    match acceptor {
                        None => answer(stream, &pages).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                answer(stream, &pages).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, roots: vec![ca.root], pages, hits, server }
    }

    fn show(&self, pages: &[(&'static str, String)]) {
        *self.pages.lock().unwrap() = pages.to_vec();
    }

    fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://localhost:{}{path}", self.port)
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, pages: &[(&'static str, String)]) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let text = match pages.iter().find(|(p, _)| *p == path) {
        Some((_, body)) => {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
    };
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn source(location: &KeyLocation) -> KeySource {
    let timeout = Duration::from_secs(5);
    KeySource { issuer: "idp".into(), location: location.clone(), timeout }
}

fn loopback() -> IssuerOptions {
    IssuerOptions {
        addresses: vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()],
        ..IssuerOptions::default()
    }
}

/// What is known of `location` after the first attempt.
async fn first(
    options: IssuerOptions,
    location: &KeyLocation,
) -> (Arc<Issuers>, Result<(), String>) {
    let issuers = Arc::new(Issuers::new(&options, Arc::new(Metrics::new())).unwrap());
    tokio::spawn(Arc::clone(&issuers).run());
    issuers.want(vec![source(location)]);
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        match issuers.published().at(location) {
            Ok(_) => return (issuers, Ok(())),
            Err("they have not been fetched yet") => {}
            Err(why) => return (issuers.clone(), Err(why.to_owned())),
        }
    }
    panic!("nothing was tried");
}

#[tokio::test]
async fn keys_come_over_https_directly_or_by_discovery() {
    let idp = Idp::start(true).await;
    let jwks = TokenIssuer::new("idp").jwks();
    let issuer = idp.url("https", "/realm");
    let metadata =
        serde_json::json!({"issuer": issuer, "jwks_uri": idp.url("https", "/keys")}).to_string();
    idp.show(&[("/keys", jwks), ("/realm/.well-known/openid-configuration", metadata)]);
    let options = || IssuerOptions { roots: idp.roots.clone(), ..loopback() };
    let direct = KeyLocation::Jwks(idp.url("https", "/keys"));
    assert_eq!(first(options(), &direct).await.1, Ok(()));
    assert_eq!(first(options(), &KeyLocation::Discovery(issuer)).await.1, Ok(()));

    // Discovery leads nowhere that a document could not lead to.
    for (path, uri, why) in [
        ("/plain", idp.url("http", "/keys"), "plaintext"),
        ("/user", format!("https://u:p@localhost:{}/keys", idp.port), "user name"),
        ("/meta", "https://169.254.169.254/keys".to_owned(), "link-local"),
    ] {
        let issuer = idp.url("https", path);
        let text = serde_json::json!({"issuer": issuer, "jwks_uri": uri}).to_string();
        let page = format!("{path}/.well-known/openid-configuration");
        idp.show(&[(Box::leak(page.into_boxed_str()), text)]);
        let got = first(options(), &KeyLocation::Discovery(issuer)).await.1.unwrap_err();
        assert!(got.contains(why), "{got}");
    }
    idp.show(&[("/keys", TokenIssuer::new("idp").jwks())]);
    let nobody = KeyLocation::Jwks(idp.url("https", "/other"));
    assert!(first(options(), &nobody).await.1.unwrap_err().contains("404"));
    let address = KeyLocation::Jwks(format!("https://127.0.0.1:{}/keys", idp.port));
    let why = first(options(), &address).await.1.unwrap_err();
    assert!(why.contains("certificate"), "the server is another than was named: {why}");
    let stranger = first(loopback(), &direct).await.1.unwrap_err();
    assert!(stranger.contains("UnknownIssuer"), "not a root of this host: {stranger}");
}

#[tokio::test]
async fn ra_6_what_only_this_host_reaches_is_not_asked() {
    let idp = Idp::start(false).await;
    idp.show(&[("/keys", TokenIssuer::new("idp").jwks())]);
    let location = KeyLocation::Jwks(idp.url("http", "/keys"));
    let plain = first(loopback(), &location).await.1.unwrap_err();
    assert!(plain.contains("replace the keys"), "{plain}");
    let anywhere = IssuerOptions { plaintext: true, ..IssuerOptions::default() };
    let local = first(anywhere, &location).await.1.unwrap_err();
    assert!(local.contains("loopback"), "{local}");
    assert_eq!(idp.hits.load(Ordering::Relaxed), 0, "nobody was connected to");
    let both = IssuerOptions { plaintext: true, ..loopback() };
    assert_eq!(first(both, &location).await.1, Ok(()));
}

#[tokio::test]
async fn an_issuer_without_keys_has_none_and_others_keep_theirs() {
    let idp = Idp::start(false).await;
    idp.show(&[("/keys", TokenIssuer::new("idp").jwks())]);
    let location = KeyLocation::Jwks(idp.url("http", "/keys"));
    let options = IssuerOptions { plaintext: true, ..loopback() };
    let (issuers, outcome) = first(options, &location).await;
    assert_eq!(outcome, Ok(()));
    // Whoever asks for too many places does not push out those that are there.
    let mut many: Vec<KeySource> = (0..2 * MAX_SOURCES)
        .map(|i| source(&KeyLocation::Jwks(format!("http://127.0.0.1:9/{i}"))))
        .collect();
    many.push(source(&location));
    issuers.want(many.clone());
    assert!(issuers.published().at(&location).is_ok());
    let why = issuers.published().at(&many[2 * MAX_SOURCES - 1].location).unwrap_err().to_owned();
    assert!(why.contains("more than"), "{why}");
    issuers.want(vec![source(&location)]);
    let why = issuers.published().at(&many[2 * MAX_SOURCES - 1].location).unwrap_err().to_owned();
    assert!(!why.contains("more than"), "what nobody wants is forgotten: {why}");
    idp.show(&[("/keys", "{\"keys\": []}".to_owned())]);
    tokio::time::sleep(Duration::from_millis(5100)).await;
    issuers.renew(&location).await;
    let why = issuers.published().at(&location).unwrap_err().to_owned();
    assert!(why.contains("no key"), "it may have been robbed of them: {why}");
}

#[tokio::test]
async fn a_new_key_is_fetched_on_demand_and_not_too_often() {
    let idp = Idp::start(false).await;
    let (old, new) = (TokenIssuer::new("idp"), TokenIssuer::new("idp"));
    idp.show(&[("/keys", old.jwks())]);
    let location = KeyLocation::Jwks(idp.url("http", "/keys"));
    let options = IssuerOptions { plaintext: true, ..loopback() };
    let (issuers, outcome) = first(options, &location).await;
    assert_eq!(outcome, Ok(()));
    let now = current_time();
    let verifies = |by: &TokenIssuer| {
        let keys = issuers.published();
        keys.at(&location).unwrap().verify(&by.token(now, &serde_json::json!({})), now).is_ok()
    };
    assert!(verifies(&old) && !verifies(&new));
    idp.show(&[("/keys", new.jwks())]);
    for _ in 0..50 {
        issuers.renew(&location).await;
    }
    assert_eq!(idp.hits.load(Ordering::Relaxed), 1, "it was asked a moment ago");
    tokio::time::sleep(Duration::from_millis(5100)).await;
    issuers.renew(&location).await;
    assert!(verifies(&new) && !verifies(&old), "the issuer's new key counts, the old one is gone");
    assert_eq!(idp.hits.load(Ordering::Relaxed), 2);

    // Another wish for the same place keeps what is known.
    issuers.want(vec![KeySource { timeout: Duration::from_secs(1), ..source(&location) }]);
    assert!(verifies(&new));
    // While it is down, its last keys count.
    idp.server.abort();
    tokio::time::sleep(Duration::from_millis(5100)).await;
    issuers.renew(&location).await;
    assert!(verifies(&new));
    // What nobody wants any more is forgotten.
    issuers.want(Vec::new());
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if issuers.published().at(&location).is_err() {
            return;
        }
    }
    panic!("it is still known");
}
