//! CPU of one full mTLS handshake, connect to the workload included.

use std::net::SocketAddr;

use countersign_proxy::Protocol;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::kit::{Kit, bare, dial, own_cpu_us, show};

const ROUNDS: usize = 9;
const PER_ROUND: usize = 200;

async fn handshakes(connectors: &[TlsConnector], address: SocketAddr) {
    for connector in connectors {
        let stream = dial(address).await.expect("connect");
        let name = ServerName::try_from("proxy.test").expect("name");
        let mut tls = connector.connect(name, stream).await.expect("handshake");
        // One byte there and back: in TLS 1.3 only then is the client known to be accepted.
        tls.write_all(b"x").await.expect("write");
        tls.read_u8().await.expect("read");
        let _ = tls.shutdown().await;
    }
}

pub(crate) async fn run() {
    let kit = Kit::new();
    let echo = bare("origin", |mut s| async move {
        let (mut r, mut w) = s.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    });
    let proxy = kit.inbound(echo, Protocol::Tcp).await;
    let yardstick = kit.bare_inbound(echo);
    println!(
        "\nfull mTLS handshake, X25519MLKEM768, P-256 leaf and intermediate ({PER_ROUND} a round)"
    );
    for (title, distinct) in
        [("one client certificate", false), ("a new certificate each time", true)]
    {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let connectors: Vec<TlsConnector> = if distinct {
                (0..PER_ROUND).map(|_| kit.client(&kit.ca.issue("/web"))).collect()
            } else {
                vec![kit.client(&kit.ca.issue("/web")); PER_ROUND]
            };
            let before = own_cpu_us("bare-in");
            handshakes(&connectors, yardstick).await;
            floor.push((own_cpu_us("bare-in") - before) / PER_ROUND as f64);
            let before = own_cpu_us("proxy-");
            handshakes(&connectors, proxy.addresses[0]).await;
            ours.push((own_cpu_us("proxy-") - before) / PER_ROUND as f64);
        }
        println!(" {title}:");
        let floor = show("bare rustls acceptor", "us CPU", &mut floor);
        let ours = show("proxy inbound", "us CPU", &mut ours);
        println!("  ratio {:.2}  (promised: at most 1.30)", ours / floor);
    }
}
