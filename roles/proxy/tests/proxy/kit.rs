//! A proxy from files, a CA, and a place where records end up.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_findings::Finding;
use countersign_identity::SpiffeId;
use countersign_keys::write_atomic;
use countersign_policy::Mode;
use countersign_proxy::{
    IdentitySource, InboundOptions, ListenerOptions, OutboundOptions, PeerMode, Protocol, Proxy,
    ProxyOptions, RunningProxy,
};
use countersign_telemetry::AccessLog;
use countersign_testkit::{TestCa, TestIdentity};
use countersign_tls::current_time;
use countersign_x509::pem;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Default)]
pub struct Records(Arc<Mutex<Vec<u8>>>);

impl Write for Records {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Records {
    pub fn all(&self) -> Vec<Value> {
        let bytes = self.0.lock().unwrap().clone();
        bytes.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect()
    }

    /// The records of an event, once there are `n`: they are written a little later than answers.
    pub async fn of(&self, event: &str, n: usize) -> Vec<Value> {
        for _ in 0..250 {
            let found: Vec<Value> =
                self.all().into_iter().filter(|r| r["event"] == event).collect();
            if found.len() >= n {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no {n} records of {event} in {:?}", self.all())
    }

    /// The code of the first failure, waiting for it.
    pub async fn code(&self) -> String {
        for _ in 0..250 {
            if let Some(r) = self.all().iter().find(|r| r["result"] == "failure") {
                return r["code"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        format!("no failure in {:?}", self.all())
    }
}

pub struct Kit {
    pub ca: TestCa,
    pub dir: TempDir,
    pub records: Records,
}

pub fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://corp.test{path}")).unwrap()
}

pub fn put(dir: &Path, chain: &[Vec<u8>], key: &[u8], roots: &[Vec<u8>]) {
    let text = |certs: &[Vec<u8>]| -> String {
        certs.iter().map(|c| pem::encode("CERTIFICATE", c)).collect()
    };
    write_atomic(&dir.join("cert.pem"), text(chain).as_bytes(), 0o644).unwrap();
    write_atomic(&dir.join("key.pem"), pem::encode("PRIVATE KEY", key).as_bytes(), 0o600).unwrap();
    write_atomic(&dir.join("bundle.pem"), text(roots).as_bytes(), 0o644).unwrap();
}

impl Kit {
    pub fn new() -> Self {
        let kit = Self {
            ca: TestCa::new("corp.test", current_time()),
            dir: tempfile::tempdir().unwrap(),
            records: Records::default(),
        };
        kit.rotate("/proxy");
        kit
    }

    /// Puts a fresh certificate for `path` in place.
    pub fn rotate(&self, path: &str) -> String {
        let svid = self.ca.issue(path);
        put(
            self.dir.path(),
            &svid.chain,
            svid.key.expose_pkcs8(),
            std::slice::from_ref(&self.ca.root),
        );
        countersign_x509::CertInfo::parse(&svid.chain[0]).unwrap().serial
    }

    pub fn options(&self, listeners: Vec<ListenerOptions>) -> ProxyOptions {
        let file = |n: &str| self.dir.path().join(n);
        let source = IdentitySource::Files {
            cert: file("cert.pem"),
            key: file("key.pem"),
            bundle: file("bundle.pem"),
        };
        let mut options = ProxyOptions::new(source, listeners);
        options.drain_timeout = Duration::from_secs(2);
        options.handshake_timeout = Duration::from_secs(2);
        options
    }

    pub async fn start(&self, options: ProxyOptions) -> Result<RunningProxy, Finding> {
        let proxy = Proxy::start(options, AccessLog::to(Box::new(self.records.clone()))).await?;
        tokio::time::timeout(Duration::from_secs(5), proxy.ready()).await.expect("ready");
        Ok(proxy)
    }

    pub async fn inbound(&self, forward: SocketAddr, protocol: Protocol) -> RunningProxy {
        self.inbound_with(forward, protocol, PeerMode::Fixed(Mode::Strict), &[]).await
    }

    pub async fn inbound_with(
        &self,
        forward: SocketAddr,
        protocol: Protocol,
        mode: PeerMode,
        policies: &[&str],
    ) -> RunningProxy {
        let listener = ListenerOptions::Inbound(InboundOptions {
            listen: any(),
            forward: forward.to_string(),
            mode,
            allow: None,
            protocol,
        });
        let mut options = self.options(vec![listener]);
        options.policies =
            policies.iter().map(|p| ("test.yaml".to_owned(), (*p).to_owned())).collect();
        self.start(options).await.unwrap()
    }

    pub async fn outbound(
        &self,
        upstream: SocketAddr,
        peer: &str,
        protocol: Protocol,
    ) -> RunningProxy {
        let listener = ListenerOptions::Outbound(OutboundOptions {
            listen: any(),
            upstream: upstream.to_string(),
            peer_ids: vec![id(peer)],
            protocol,
        });
        self.start(self.options(vec![listener])).await.unwrap()
    }

    pub fn good(&self, path: &str) -> TestIdentity {
        let svid = self.ca.issue(path);
        TestIdentity { chain: svid.chain, key: svid.key }
    }
}

/// Echoes bytes; a half-close is answered by the rest and a close.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut r, mut w) = stream.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
                let _ = w.write_all(b"bye").await;
                let _ = w.shutdown().await;
            });
        }
    });
    address
}

/// Everything until the end of the stream, or the error.
pub async fn read_all<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut out))
        .await
        .expect("end of stream")?;
    Ok(out)
}

pub async fn dial(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}
