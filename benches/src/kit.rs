//! What the benchmarks share: a CA, proxies, a bare relay, CPU readings.

use std::net::SocketAddr;
use std::sync::Arc;

use countersign_identity::{SpiffeId, X509Svid};
use countersign_keys::write_atomic;
use countersign_policy::Mode;
use countersign_proxy::{
    IdentitySource, InboundOptions, ListenerOptions, OutboundOptions, PeerMode, Protocol, Proxy,
    ProxyOptions, RunningProxy,
};
use countersign_telemetry::AccessLog;
use countersign_testkit::TestCa;
use countersign_tls::current_time;
use countersign_x509::pem;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) struct Kit {
    pub(crate) ca: TestCa,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// The peer's chain is checked by the standard verifier, its name by nobody: the least a client can do.
#[derive(Debug)]
struct ChainOnly(Arc<rustls::client::WebPkiServerVerifier>);

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                // countersign:allow hostname-verify-disabled reason=a floor to measure against, which checks the chain alone
                rustls::CertificateError::NotValidForName
                // countersign:allow hostname-verify-disabled reason=as above
                | rustls::CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }
    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(m, c, d)
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(m, c, d)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn chain(svid: &X509Svid) -> Vec<CertificateDer<'static>> {
    svid.chain.iter().cloned().map(CertificateDer::from).collect()
}

fn key(svid: &X509Svid) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.expose_pkcs8().to_vec()))
}

impl Kit {
    pub(crate) fn new() -> Self {
        let kit = Self {
            ca: TestCa::new("bench.test", current_time()),
            dir: tempfile::tempdir().expect("directory"),
        };
        let svid = kit.ca.issue("/proxy");
        let text = |certs: &[Vec<u8>]| -> String {
            certs.iter().map(|c| pem::encode("CERTIFICATE", c)).collect()
        };
        let put = |name: &str, text: String, mode| {
            write_atomic(&kit.dir.path().join(name), text.as_bytes(), mode).expect("file");
        };
        put("cert.pem", text(&svid.chain), 0o644);
        put("key.pem", pem::encode("PRIVATE KEY", svid.key.expose_pkcs8()), 0o600);
        put("bundle.pem", text(std::slice::from_ref(&kit.ca.root)), 0o644);
        kit
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.ca.root.clone())).expect("root");
        Arc::new(roots)
    }

    async fn proxy(&self, listener: ListenerOptions) -> RunningProxy {
        let file = |n: &str| self.dir.path().join(n);
        let source = IdentitySource::Files {
            cert: file("cert.pem"),
            key: file("key.pem"),
            bundle: file("bundle.pem"),
        };
        let proxy = Proxy::start(ProxyOptions::new(source, vec![listener]), AccessLog::off())
            .await
            .expect("proxy");
        proxy.ready().await;
        proxy
    }

    pub(crate) async fn inbound(&self, forward: SocketAddr, protocol: Protocol) -> RunningProxy {
        self.proxy(ListenerOptions::Inbound(InboundOptions {
            listen: any(),
            forward: forward.to_string(),
            mode: PeerMode::Fixed(Mode::Strict),
            allow: None,
            protocol,
        }))
        .await
    }

    pub(crate) async fn outbound(&self, upstream: SocketAddr, protocol: Protocol) -> RunningProxy {
        self.proxy(ListenerOptions::Outbound(OutboundOptions {
            listen: any(),
            upstream: upstream.to_string(),
            peer_ids: vec![SpiffeId::parse("spiffe://bench.test/proxy").expect("id")],
            protocol,
        }))
        .await
    }

    /// A client that presents `svid` and never resumes.
    pub(crate) fn client(&self, svid: &X509Svid) -> TlsConnector {
        let provider = Arc::new(default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            self.roots(),
            Arc::clone(&provider),
        )
        .build()
        .expect("verifier");
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ChainOnly(verifier)))
            .with_client_auth_cert(chain(svid), key(svid))
            .expect("certificate");
        config.resumption = Resumption::disabled();
        TlsConnector::from(Arc::new(config))
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots(), Arc::clone(&provider))
                .build()
                .expect("verifier");
        let svid = self.ca.issue("/proxy");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain(&svid), key(&svid))
            .expect("certificate");
        config.send_tls13_tickets = 1;
        TlsAcceptor::from(Arc::new(config))
    }

    /// The yardstick: tokio, rustls with its own verifier, `copy_bidirectional`, nothing else.
    pub(crate) fn bare_inbound(&self, forward: SocketAddr) -> SocketAddr {
        let acceptor = self.acceptor();
        bare("bare-in", move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut near) = acceptor.accept(stream).await else { return };
                let Ok(mut far) = dial(forward).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        })
    }

    /// The yardstick's other half.
    pub(crate) fn bare_outbound(&self, upstream: SocketAddr) -> SocketAddr {
        let connector = self.client(&self.ca.issue("/proxy"));
        bare("bare-out", move |mut near| {
            let connector = connector.clone();
            async move {
                let Ok(far) = dial(upstream).await else { return };
                let name = ServerName::try_from("proxy.test").expect("name");
                let Ok(mut far) = connector.connect(name, far).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        })
    }
}

pub(crate) async fn dial(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Serves connections on a thread of its own, named `name`.
pub(crate) fn bare<F, Fut>(name: &str, serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind(any()).await.expect("listener");
                tell.send(listener.local_addr().expect("address")).expect("told");
                loop {
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(serve(stream));
                }
            });
        })
        .expect("thread");
    told.recv().expect("address")
}

/// CPU charged so far to the threads of `pid` whose name begins with `name`, in microseconds.
pub(crate) fn cpu_us(pid: u32, name: &str) -> f64 {
    let mut total = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |f: &str| std::fs::read_to_string(task.path().join(f)).unwrap_or_default();
        if read("comm").trim().starts_with(name) {
            let ns: f64 =
                read("schedstat").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
            total += ns / 1000.0;
        }
    }
    total
}

pub(crate) fn own_cpu_us(name: &str) -> f64 {
    cpu_us(std::process::id(), name)
}

/// The middle of `values`, with the lowest and highest.
pub(crate) fn median(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

pub(crate) fn show(what: &str, unit: &str, values: &mut [f64]) -> f64 {
    let (mid, low, high) = median(values);
    println!("  {what:<44} {mid:>9.1} {unit}  ({low:.1} to {high:.1})");
    mid
}
