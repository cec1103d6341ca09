//! What a port takes, by PeerAuthentication's rules that concern the handshake.

use countersign_proxy::{PeerMode, Protocol, RunningProxy};
use countersign_testkit::{TestCa, TestIdentity, raw_tls};
use countersign_tls::current_time;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::kit::{Kit, dial, echo};

async fn port(kit: &Kit, mode: &str) -> RunningProxy {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: m, namespace: istio-system}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    );
    kit.inbound_with(echo().await, Protocol::Tcp, PeerMode::FromPolicy, &[&text]).await
}

async fn echoes(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> bool {
    let _ = stream.write_all(b"x").await;
    stream.read_u8().await.is_ok_and(|b| b == b'x')
}

async fn over_tls(proxy: &RunningProxy, client: TlsConnector) -> bool {
    match client.connect(raw_tls::any_name(), dial(proxy.addresses[0]).await).await {
        Ok(mut tls) => echoes(&mut tls).await,
        Err(_) => false,
    }
}

#[tokio::test]
async fn pa_7_what_each_mode_takes() {
    let kit = Kit::new();
    // DISABLE is taken for PERMISSIVE: mTLS is never switched off, only not demanded.
    for (mode, plaintext) in [("STRICT", false), ("PERMISSIVE", true), ("DISABLE", true)] {
        let proxy = port(&kit, mode).await;
        let mut plain = dial(proxy.addresses[0]).await;
        assert_eq!(echoes(&mut plain).await, plaintext, "{mode}");
        assert!(over_tls(&proxy, raw_tls::client(Some(&kit.good("/web")))).await, "{mode}");
        assert!(
            !over_tls(&proxy, raw_tls::client(None)).await,
            "{mode}: TLS without a certificate"
        );
    }
}

#[tokio::test]
async fn pa_8_tls_is_terminated_whatever_its_alpn() {
    // Istio tells its own mTLS by ALPN, which SPIFFE clients do not send, and passes other TLS through unread.
    let kit = Kit::new();
    let proxy = port(&kit, "PERMISSIVE").await;
    let stranger: TestIdentity =
        TestCa::new("corp.test", current_time()).story(countersign_testkit::Story::Good, "/web");
    assert!(over_tls(&proxy, raw_tls::client(Some(&kit.good("/web")))).await);
    assert!(!over_tls(&proxy, raw_tls::client(Some(&stranger))).await, "it is not passed through");
}

#[tokio::test]
async fn pa_9_only_trusted_domains_shake_hands() {
    let kit = Kit::new();
    let proxy = port(&kit, "STRICT").await;
    let foreign = kit.ca.story(countersign_testkit::Story::WrongTrustDomain, "/web");
    assert!(!over_tls(&proxy, raw_tls::client(Some(&foreign))).await);
    assert_eq!(kit.records.code().await, "CS1005");
}

#[tokio::test]
async fn pa_10_tls_1_3_and_1_2_only_if_wanted() {
    let kit = Kit::new();
    for (tls12, expected) in [(false, false), (true, true)] {
        let listener =
            countersign_proxy::ListenerOptions::Inbound(countersign_proxy::InboundOptions {
                listen: crate::kit::any(),
                forward: echo().await.to_string(),
                mode: PeerMode::FromPolicy,
                allow: None,
                protocol: Protocol::Tcp,
            });
        let mut options = kit.options(vec![listener]);
        options.tls12 = tls12;
        let proxy = kit.start(options).await.unwrap();
        assert!(over_tls(&proxy, raw_tls::client(Some(&kit.good("/web")))).await);
        let old = raw_tls::client_of_tls12(Some(&kit.good("/web")));
        assert_eq!(over_tls(&proxy, old).await, expected, "tls12: {tls12}");
    }
}
