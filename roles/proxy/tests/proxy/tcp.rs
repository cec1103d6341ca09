//! Relaying bytes: whole, half-closed, cut, drained, across rotation.

use std::time::Duration;

use countersign_findings::Code;
use countersign_policy::{Mode, Until};
use countersign_proxy::{PeerMode, Protocol};
use countersign_testkit::{TestIdentity, raw_tls};
use countersign_tls::current_time;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::kit::{Kit, any, dial, echo, read_all};

#[tokio::test]
async fn both_proxies_together_keep_every_byte_and_the_half_close() {
    let kit = Kit::new();
    let inbound = kit.inbound(echo().await, Protocol::Tcp).await;
    let outbound = kit.outbound(inbound.addresses[0], "/proxy", Protocol::Tcp).await;
    let mut client = dial(outbound.addresses[0]).await;
    let sent: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    let (mut r, mut w) = client.split();
    let copy = sent.clone();
    let (written, got) = tokio::join!(
        async move {
            w.write_all(&copy).await.unwrap();
            w.shutdown().await
        },
        async {
            let mut out = Vec::new();
            r.read_to_end(&mut out).await.map(|_| out)
        }
    );
    written.unwrap();
    let got = got.unwrap();
    assert_eq!(got.len(), sent.len() + 3);
    assert!(got.starts_with(&sent) && got.ends_with(b"bye"), "after our half-close it still spoke");
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_peers_certificate() {
    let kit = Kit::new();
    let inbound = kit.inbound(echo().await, Protocol::Tcp).await;
    let svid = kit.ca.issue_at("/short", current_time(), 3);
    let identity = TestIdentity { chain: svid.chain, key: svid.key };
    let mut tls = raw_tls::client(Some(&identity))
        .connect(raw_tls::any_name(), dial(inbound.addresses[0]).await)
        .await
        .unwrap();
    tls.write_all(b"x").await.unwrap();
    assert_eq!(tls.read_u8().await.unwrap(), b'x', "works before");
    let rest = read_all(&mut tls).await;
    assert!(rest.is_err() || rest.is_ok_and(|r| r.is_empty()), "cut");
    assert!(current_time().secs() > svid_end(&identity), "not before its last second");
    assert_eq!(kit.records.code().await, Code::ConnectionOutlivedCertificate.as_str());
}

fn svid_end(identity: &TestIdentity) -> i64 {
    countersign_x509::CertInfo::parse(&identity.chain[0]).unwrap().not_after.secs()
}

#[tokio::test]
async fn rotation_changes_the_certificate_for_new_connections_only() {
    let kit = Kit::new();
    let inbound = kit.inbound(echo().await, Protocol::Tcp).await;
    let serial_of = |tls: &tokio_rustls::client::TlsStream<tokio::net::TcpStream>| {
        let chain = tls.get_ref().1.peer_certificates().unwrap();
        countersign_x509::CertInfo::parse(&chain[0]).unwrap().serial
    };
    let connect = async || {
        raw_tls::client(Some(&kit.good("/web")))
            .connect(raw_tls::any_name(), dial(inbound.addresses[0]).await)
            .await
            .unwrap()
    };
    let mut old = connect().await;
    let before = serial_of(&old);
    let new_serial = kit.rotate("/proxy");
    for _ in 0..200 {
        if inbound.serial().as_ref() == Some(&new_serial) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let fresh = connect().await;
    assert_eq!(serial_of(&fresh), new_serial);
    assert_ne!(before, new_serial);
    old.write_all(b"y").await.unwrap();
    assert_eq!(old.read_u8().await.unwrap(), b'y', "the established connection lives on");
}

#[tokio::test]
async fn a_root_that_leaves_the_bundle_cuts_what_rests_on_it() {
    let kit = Kit::new();
    let inbound = kit.inbound(echo().await, Protocol::Tcp).await;
    let mut tls = raw_tls::client(Some(&kit.good("/web")))
        .connect(raw_tls::any_name(), dial(inbound.addresses[0]).await)
        .await
        .unwrap();
    tls.write_all(b"x").await.unwrap();
    assert_eq!(tls.read_u8().await.unwrap(), b'x');
    let other = countersign_testkit::TestCa::new("corp.test", kit.ca.now);
    let svid = other.issue("/proxy");
    crate::kit::put(kit.dir.path(), &svid.chain, svid.key.expose_pkcs8(), &[other.root]);
    let rest = read_all(&mut tls).await;
    assert!(rest.is_err() || rest.is_ok_and(|r| r.is_empty()));
    assert_eq!(kit.records.code().await, Code::PermitWithdrawn.as_str());
}

#[tokio::test]
async fn permissive_takes_both_and_does_not_stall_servers_that_speak_first() {
    let kit = Kit::new();
    let listener = TcpListener::bind(any()).await.unwrap();
    let greeter = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = s.write_all(b"220 ready\r\n").await;
                let _ = s.read(&mut [0; 1]).await;
            });
        }
    });
    let mode = PeerMode::Fixed(Mode::Permissive { until: Until::Never });
    let proxy = kit.inbound_with(greeter, Protocol::Auto, mode, &[]).await;
    let mut plain = dial(proxy.addresses[0]).await;
    let mut greeting = [0; 11];
    tokio::time::timeout(Duration::from_secs(2), plain.read_exact(&mut greeting))
        .await
        .expect("no stall")
        .unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    let mut tls = raw_tls::client(Some(&kit.good("/web")))
        .connect(raw_tls::any_name(), dial(proxy.addresses[0]).await)
        .await
        .unwrap();
    tokio::time::timeout(Duration::from_secs(2), tls.read_exact(&mut greeting))
        .await
        .expect("no stall")
        .unwrap();
}

#[tokio::test]
async fn permissive_ends_when_it_said() {
    let kit = Kit::new();
    let until = Until::Time(current_time() - Duration::from_secs(1));
    let mode = PeerMode::Fixed(Mode::Permissive { until });
    let proxy = kit.inbound_with(echo().await, Protocol::Tcp, mode, &[]).await;
    let mut plain = dial(proxy.addresses[0]).await;
    plain.write_all(b"hello").await.unwrap();
    assert_eq!(kit.records.code().await, Code::PermissiveEnded.as_str());
}

#[tokio::test]
async fn draining_lets_connections_finish() {
    let kit = Kit::new();
    let inbound = kit.inbound(echo().await, Protocol::Tcp).await;
    let address = inbound.addresses[0];
    let mut tls = raw_tls::client(Some(&kit.good("/web")))
        .connect(raw_tls::any_name(), dial(address).await)
        .await
        .unwrap();
    tls.write_all(b"a").await.unwrap();
    assert_eq!(tls.read_u8().await.unwrap(), b'a');
    let drain = tokio::spawn(inbound.drain());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "no longer listening");
    tls.write_all(b"b").await.unwrap();
    assert_eq!(tls.read_u8().await.unwrap(), b'b', "still relayed");
    drop(tls);
    tokio::time::timeout(Duration::from_secs(5), drain).await.expect("ends").unwrap();
}

#[tokio::test]
async fn an_upstreams_reset_is_a_reset() {
    let kit = Kit::new();
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            let mut b = [0; 4];
            let _ = s.read(&mut b).await;
            let _ = s.write_all(b"part").await;
            let _ = s.set_zero_linger();
        }
    });
    let inbound = kit.inbound(address, Protocol::Tcp).await;
    let outbound = kit.outbound(inbound.addresses[0], "/proxy", Protocol::Tcp).await;
    let mut client = dial(outbound.addresses[0]).await;
    client.write_all(b"go").await.unwrap();
    assert!(read_all(&mut client).await.is_err(), "truncation is not taken for an end");
}
