//! Memory of an idle mTLS connection at the inbound side.

use countersign_proxy::Protocol;
use rustls::pki_types::ServerName;

use crate::kit::{Kit, bare, dial};

const CONNECTIONS: usize = 1000;

fn rss_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0.0)
}

async fn hold(kit: &Kit, address: std::net::SocketAddr) -> f64 {
    let connector = kit.client(&kit.ca.issue("/web"));
    let open = async || {
        let stream = dial(address).await.expect("connect");
        connector
            .connect(ServerName::try_from("proxy.test").expect("name"), stream)
            .await
            .expect("handshake")
    };
    let warm: Vec<_> = {
        let mut v = Vec::new();
        for _ in 0..50 {
            v.push(open().await);
        }
        v
    };
    let before = rss_kib();
    let mut held = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        held.push(open().await);
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let grown = rss_kib() - before;
    drop((held, warm));
    grown / CONNECTIONS as f64
}

pub(crate) async fn run() {
    let kit = Kit::new();
    let sink = bare("origin", |mut s| async move {
        let _ = tokio::io::copy(&mut s, &mut tokio::io::sink()).await;
    });
    let proxy = kit.inbound(sink, Protocol::Tcp).await;
    let yardstick = kit.bare_inbound(sink);
    println!(
        "\nidle mTLS connections, {CONNECTIONS} of them; client, origin and inbound side in one process"
    );
    let bare = hold(&kit, yardstick).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let ours = hold(&kit, proxy.addresses[0]).await;
    println!("  bare tokio + rustls relay  {bare:>7.1} KiB each, both ends and origin together");
    println!("  proxy inbound              {ours:>7.1} KiB each");
    println!("  ratio {:.2}", ours / bare);
}
