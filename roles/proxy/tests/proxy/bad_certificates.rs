//! Each kind of bad certificate is refused by both sides with a code of its own.

use countersign_findings::Code;
use countersign_proxy::Protocol;
use countersign_testkit::{Story, TestCa, TestIdentity, raw_tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::kit::{Kit, any, dial, echo, put};

const PEER: &str = "/ns/shop/sa/web";

/// Stories with the code each side must give: for a client's certificate, for a server's.
const STORIES: &[(Story, Code)] = &[
    (Story::Expired, Code::CertificateExpired),
    (Story::NotYetValid, Code::CertificateNotYetValid),
    (Story::WrongCa, Code::UnknownAuthority),
    (Story::MissingIntermediate, Code::MissingIntermediate),
    (Story::TwoUriSans, Code::SeveralUriSans),
    (Story::NoUriSan, Code::NoSpiffeId),
    (Story::CaAsLeaf, Code::CaUsedAsLeaf),
    (Story::WrongTrustDomain, Code::WrongTrustDomain),
    (Story::WrongEku, Code::WrongExtendedKeyUsage),
    (Story::NoDigitalSignature, Code::WrongKeyUsage),
];

/// A good certificate with the key of another.
fn mismatch(kit: &Kit) -> TestIdentity {
    TestIdentity { chain: kit.good(PEER).chain, key: kit.good(PEER).key }
}

async fn refused_inbound(kit: &Kit, identity: Option<&TestIdentity>) -> String {
    let proxy = kit.inbound(echo().await, Protocol::Tcp).await;
    let tls = raw_tls::client(identity)
        .connect(raw_tls::any_name(), dial(proxy.addresses[0]).await)
        .await;
    if let Ok(mut tls) = tls {
        // A TLS 1.3 client is done before the server has judged it.
        let _ = tls.write_all(b"hello").await;
        let mut buf = [0; 16];
        assert!(!matches!(tls.read(&mut buf).await, Ok(n) if n > 0), "nothing is forwarded");
    }
    kit.records.code().await
}

async fn refused_outbound(kit: &Kit, identity: &TestIdentity, expected: &str) -> String {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = raw_tls::server(identity);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut tls) = acceptor.accept(stream).await {
                let _ = tls.write_all(b"secret").await;
                let _ = tls.shutdown().await;
            }
        }
    });
    let proxy = kit.outbound(address, expected, Protocol::Tcp).await;
    let mut client = dial(proxy.addresses[0]).await;
    let mut got = Vec::new();
    let _ = client.read_to_end(&mut got).await;
    assert!(got.is_empty(), "nothing of an unproven peer is passed on: {got:?}");
    kit.records.code().await
}

#[tokio::test]
async fn by_the_inbound_side() {
    for (story, code) in STORIES {
        let kit = Kit::new();
        let identity = kit.ca.story(*story, PEER);
        assert_eq!(refused_inbound(&kit, Some(&identity)).await, code.as_str(), "{story:?}");
    }
    let kit = Kit::new();
    let code = refused_inbound(&kit, Some(&kit.ca.story(Story::ServerOnlyEku, PEER))).await;
    assert_eq!(code, Code::WrongExtendedKeyUsage.as_str());
    let kit = Kit::new();
    let code = refused_inbound(&kit, Some(&mismatch(&kit))).await;
    assert_eq!(code, Code::KeyCertificateMismatch.as_str());
    let kit = Kit::new();
    assert_eq!(refused_inbound(&kit, None).await, Code::NoClientCertificate.as_str());
}

#[tokio::test]
async fn by_the_outbound_side() {
    for (story, code) in STORIES {
        let kit = Kit::new();
        let identity = kit.ca.story(*story, PEER);
        assert_eq!(refused_outbound(&kit, &identity, PEER).await, code.as_str(), "{story:?}");
    }
    let kit = Kit::new();
    let code = refused_outbound(&kit, &kit.ca.story(Story::ClientOnlyEku, PEER), PEER).await;
    assert_eq!(code, Code::WrongExtendedKeyUsage.as_str());
    let kit = Kit::new();
    let code = refused_outbound(&kit, &mismatch(&kit), PEER).await;
    assert_eq!(code, Code::KeyCertificateMismatch.as_str());
    let kit = Kit::new();
    let code = refused_outbound(&kit, &kit.good("/somebody/else"), PEER).await;
    assert_eq!(code, Code::WrongSpiffeId.as_str());
}

#[tokio::test]
async fn good_ones_pass_both_sides() {
    let kit = Kit::new();
    let inbound = kit.inbound(echo().await, Protocol::Tcp).await;
    let mut tls = raw_tls::client(Some(&kit.ca.story(Story::Good, PEER)))
        .connect(raw_tls::any_name(), dial(inbound.addresses[0]).await)
        .await
        .unwrap();
    tls.write_all(b"hello").await.unwrap();
    let mut buf = [0; 5];
    tls.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"hello");
}

#[tokio::test]
async fn own_files_that_do_not_fit_are_an_error_at_start() {
    let kit = Kit::new();
    let bad = mismatch(&kit);
    put(kit.dir.path(), &bad.chain, bad.key.expose_pkcs8(), std::slice::from_ref(&kit.ca.root));
    let error = kit.start(kit.options(vec![])).await.err().expect("refused");
    assert_eq!(error.code, Code::KeyCertificateMismatch);
    // A bundle of another CA is no mistake that a start can see; a CA as leaf is.
    let ca = TestCa::new("corp.test", kit.ca.now).story(Story::CaAsLeaf, PEER);
    put(kit.dir.path(), &ca.chain, ca.key.expose_pkcs8(), std::slice::from_ref(&kit.ca.root));
    let error = kit.start(kit.options(vec![])).await.err().expect("refused");
    assert_eq!(error.code, Code::CaUsedAsLeaf);
}

#[tokio::test]
async fn plaintext_on_strict_and_silence() {
    let kit = Kit::new();
    let proxy = kit.inbound(echo().await, Protocol::Tcp).await;
    let mut client = dial(proxy.addresses[0]).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = crate::kit::read_all(&mut client).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    assert!(text.starts_with("HTTP/1.1 403 ") && text.contains("CS2101"), "{text}");
    assert_eq!(kit.records.code().await, Code::PlaintextOnStrict.as_str());

    let kit = Kit::new();
    let proxy = kit.inbound(echo().await, Protocol::Tcp).await;
    let _silent = dial(proxy.addresses[0]).await;
    assert_eq!(kit.records.code().await, Code::HandshakeTimeout.as_str());
}

#[tokio::test]
async fn a_plaintext_upstream_and_nobody_at_all() {
    let kit = Kit::new();
    let listener = TcpListener::bind(any()).await.unwrap();
    let plain = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            let _ = s.write_all(b"220 mail.test ready\r\n").await;
            let _ = s.read(&mut [0; 512]).await;
        }
    });
    let proxy = kit.outbound(plain, PEER, Protocol::Tcp).await;
    let _client = dial(proxy.addresses[0]).await;
    assert_eq!(kit.records.code().await, Code::PeerNotTls.as_str());

    let kit = Kit::new();
    let closed = TcpListener::bind(any()).await.unwrap().local_addr().unwrap();
    let proxy = kit.outbound(closed, PEER, Protocol::Http).await;
    let mut client = dial(proxy.addresses[0]).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = crate::kit::read_all(&mut client).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    assert!(text.starts_with("HTTP/1.1 502 ") && text.contains("CS2201"), "{text}");
}
