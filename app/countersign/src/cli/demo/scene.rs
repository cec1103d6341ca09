//! The scene: CA, server, agent, sidecars and services, all real, talking over real sockets.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign_agent::{Agent, AgentOptions, RunningAgent};
use countersign_findings::{Code, Finding};
use countersign_identity::{
    Bundle, BundleSet, Entry, Selector, SelectorSet, SpiffeId, TrustDomain, X509Svid,
};
use countersign_keys::{KeyAlgorithm, PrivateKey, Signer};
use countersign_proxy::{
    IdentitySource, InboundOptions, ListenerOptions, OutboundOptions, PeerMode, Protocol, Proxy,
    ProxyOptions, RunningProxy,
};
use countersign_server::{DataDir, InitOptions, RunningServer, Server, ServerOptions, initialise};
use countersign_telemetry::AccessLog;
use countersign_tls::{
    Credentials, HandshakeError, PeerMatcher, TlsOptions, connect, current_time,
};
use countersign_wire::proto::countersign::server::v1 as own;
use countersign_x509::CertInfo;
use countersign_x509::profile::{CertSpec, Profile};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Row, services};
use crate::cli::entry::create;
use crate::client;

pub(super) const TRUST_DOMAIN: &str = "demo.test";

const WEB: &str = "/ns/shop/sa/web";
const API: &str = "/ns/shop/sa/api";
const BATCH: &str = "/ns/shop/sa/batch";
/// Lives of the certificates shown: short, so that rotation is seen.
const TTL: Duration = Duration::from_secs(6);

const POLICY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: api-callers
  namespace: shop
spec:
  rules:
    - from:
        - source:
            principals: [demo.test/ns/shop/sa/web]
      to:
        - operation:
            methods: [GET]
";

/// What is shown, in order.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Allowed,
    Plaintext,
    Unauthorized,
    WrongCa,
    NoCertificate,
    Rotation,
}

pub(super) const STEPS: &[Step] = &[
    Step::Allowed,
    Step::Plaintext,
    Step::Unauthorized,
    Step::WrongCa,
    Step::NoCertificate,
    Step::Rotation,
];

/// Access log records, kept for the rows.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<Vec<u8>>>);

impl Write for Records {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Records {
    fn clear(&self) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }

    /// The first record that `wanted` picks, waiting for it a little.
    async fn find(&self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        for _ in 0..50 {
            let bytes = self.0.lock().unwrap_or_else(|e| e.into_inner()).clone();
            let found = bytes
                .split(|b| *b == b'\n')
                .filter_map(|l| serde_json::from_slice::<Value>(l).ok())
                .find(|v| wanted(v));
            if found.is_some() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

pub(super) struct Scene {
    pub(super) dir: PathBuf,
    pub(super) root: String,
    server: RunningServer,
    agent: RunningAgent,
    api: RunningProxy,
    web: RunningProxy,
    batch: RunningProxy,
    api_records: Records,
    bundle: Bundle,
    _cleanup: Cleanup,
}

/// Removes the directory, however the demo ends.
struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn internal(e: impl std::fmt::Display) -> Finding {
    Finding::new(Code::InternalError, e.to_string())
}

fn id(path: &str) -> Result<SpiffeId, Finding> {
    SpiffeId::parse(&format!("spiffe://{TRUST_DOMAIN}{path}")).map_err(internal)
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn sidecar(
    socket: &Path,
    path: &str,
    listener: ListenerOptions,
    log: AccessLog,
) -> Result<RunningProxy, Finding> {
    let source = IdentitySource::WorkloadApi {
        socket: socket.to_owned(),
        id: Some(id(path)?),
        with_policies: true,
    };
    let mut options = ProxyOptions::new(source, vec![listener]);
    options.drain_timeout = Duration::from_secs(1);
    Proxy::start(options, log).await
}

async fn outbound(socket: &Path, path: &str, api: SocketAddr) -> Result<RunningProxy, Finding> {
    let listener = ListenerOptions::Outbound(OutboundOptions {
        listen: any_port(),
        upstream: api.to_string(),
        peer_ids: vec![id(API)?],
        protocol: Protocol::Http,
    });
    sidecar(socket, path, listener, AccessLog::off()).await
}

impl Scene {
    pub(super) async fn start() -> Result<Self, Finding> {
        let dir = std::env::temp_dir()
            .join(format!("countersign-demo-{}", countersign_keys::random_hex::<6>()));
        countersign_keys::create_dir_private(&dir).map_err(|e| e.finding())?;
        let cleanup = Cleanup(dir.clone());
        let td = TrustDomain::new(TRUST_DOMAIN).map_err(internal)?;
        let data = DataDir::new(&dir);
        let made = initialise(&data, &td, InitOptions::default(), current_time()).await?;
        let mut options = ServerOptions::new(data);
        options.listen = any_port();
        let server = Server::start(options).await?;
        let admin = client::Server::new(&dir);
        let (join, _) = admin.join_string(60, None, None).await?;
        let bundle = join.bundle();
        let socket = dir.join("agent.sock");
        let mut agent = Agent::start(AgentOptions {
            data_dir: dir.join("agent"),
            socket: socket.clone(),
            join: Some(join),
            server: None,
        })
        .await?;

        let policy = own::PolicyDocument {
            kind: "AuthorizationPolicy".into(),
            namespace: "shop".into(),
            name: "api-callers".into(),
            yaml: POLICY.into(),
        };
        admin
            .admin()
            .apply_policies(own::ApplyPoliciesRequest { documents: vec![policy] })
            .await
            .map_err(|s| admin.refused(&s))?;
        let agent_id = SpiffeId::parse(&agent.id).map_err(internal)?;
        let uid = Selector::new("unix", &format!("uid:{}", countersign_sys::own_uid()))
            .map_err(internal)?;
        let mut entries = Vec::new();
        for path in [WEB, API, BATCH] {
            let selectors = SelectorSet::from_iter([uid.clone()]);
            let mut entry = Entry::new(id(path)?, agent_id.clone(), selectors);
            entry.x509_svid_ttl = Some(TTL);
            entries.push(entry);
        }
        create(&admin, &entries).await?;
        agent.ready().await;

        let app = TcpListener::bind(any_port()).await.map_err(internal)?;
        let app_address = app.local_addr().map_err(internal)?;
        tokio::spawn(services::serve(app));
        let api_records = Records::default();
        let inbound = ListenerOptions::Inbound(InboundOptions {
            listen: any_port(),
            forward: app_address.to_string(),
            mode: PeerMode::FromPolicy,
            allow: None,
            protocol: Protocol::Auto,
        });
        let log = AccessLog::to(Box::new(api_records.clone()));
        let api = sidecar(&socket, API, inbound, log).await?;
        let web = outbound(&socket, WEB, api.addresses[0]).await?;
        let batch = outbound(&socket, BATCH, api.addresses[0]).await?;
        for proxy in [&api, &web, &batch] {
            let ready = tokio::time::timeout(Duration::from_secs(10), proxy.ready()).await;
            if ready.is_err() {
                return Err(proxy
                    .last_error()
                    .unwrap_or_else(|| internal("a sidecar got no identity")));
            }
        }
        Ok(Self {
            dir,
            root: made.root_fingerprint,
            server,
            agent,
            api,
            web,
            batch,
            api_records,
            bundle,
            _cleanup: cleanup,
        })
    }

    pub(super) fn web_url(&self) -> String {
        format!("http://{}/", self.web.addresses[0])
    }

    pub(super) async fn stop(self) {
        tokio::join!(self.web.drain(), self.batch.drain(), self.api.drain());
        self.agent.stop().await;
        self.server.stop().await;
    }

    pub(super) async fn play(&self, step: Step) -> Row {
        self.api_records.clear();
        let result = match step {
            Step::Allowed => self.allowed().await,
            Step::Plaintext => self.plaintext().await,
            Step::Unauthorized => self.unauthorized().await,
            Step::WrongCa => self.wrong_ca().await,
            Step::NoCertificate => self.no_certificate().await,
            Step::Rotation => self.rotation().await,
        };
        result.unwrap_or_else(|(what, why)| {
            let mut row = Row::new(&what);
            row.outcome = format!("unexpected: {why}");
            row
        })
    }

    /// Fills a row from a refusal in the inbound sidecar's log.
    async fn refusal(&self, row: &mut Row, expected: Code) {
        match self.api_records.find(|r| r["result"] == "failure").await {
            Some(record) => {
                let code = record["code"].as_str().unwrap_or_default().to_owned();
                row.outcome =
                    format!("refused: {}", record["message"].as_str().unwrap_or_default());
                row.ok &= code == expected.as_str();
                row.code = Some(code);
            }
            None => {
                row.ok = false;
                row.outcome = "no refusal was recorded".into();
            }
        }
    }

    async fn allowed(&self) -> Result<Row, (String, String)> {
        let mut row = Row::new("web -> api");
        let begun = Instant::now();
        let (status, body) =
            services::get(self.web.addresses[0]).await.map_err(|e| (row.what.clone(), e))?;
        let latency = begun.elapsed().as_secs_f64() * 1000.0;
        let record = self
            .api_records
            .find(|r| r["event"] == "handshake" && r["result"] == "success")
            .await
            .ok_or((row.what.clone(), "no handshake was recorded".to_owned()))?;
        let text = |k: &str| record[k].as_str().unwrap_or_default().to_owned();
        let (source, destination) = (text("source_identity"), text("destination_identity"));
        row.ok = status == 200
            && source.ends_with(WEB)
            && destination.ends_with(API)
            && body == format!("hello {source}\n");
        row.outcome = format!(
            "mTLS {source} -> {destination}  {} {}  {latency:.1} ms",
            text("tls_version"),
            text("key_exchange")
        );
        row.source = Some(source);
        row.destination = Some(destination);
        row.tls_version = Some(text("tls_version"));
        row.key_exchange = Some(text("key_exchange"));
        row.latency_ms = Some(latency);
        Ok(row)
    }

    async fn plaintext(&self) -> Result<Row, (String, String)> {
        let mut row = Row::new("curl -> api, plaintext, STRICT");
        let (status, body) =
            services::get(self.api.addresses[0]).await.map_err(|e| (row.what.clone(), e))?;
        row.ok = status == 403 && body.contains(Code::PlaintextOnStrict.as_str());
        self.refusal(&mut row, Code::PlaintextOnStrict).await;
        Ok(row)
    }

    async fn unauthorized(&self) -> Result<Row, (String, String)> {
        let mut row = Row::new("batch -> api, not authorized");
        let (status, body) =
            services::get(self.batch.addresses[0]).await.map_err(|e| (row.what.clone(), e))?;
        row.ok = status == 403 && body.contains(Code::NotAllowedByPolicy.as_str());
        row.source = id(BATCH).ok().map(|i| i.to_string());
        self.refusal(&mut row, Code::NotAllowedByPolicy).await;
        Ok(row)
    }

    /// Dials the inbound sidecar with `credentials` and reports whether it was let in.
    async fn dial_api(&self, credentials: &Credentials) -> Result<String, String> {
        let client = credentials.client(PeerMatcher::AnyTrusted, &[]).map_err(|e| e.to_string())?;
        let stream = TcpStream::connect(self.api.addresses[0]).await.map_err(|e| e.to_string())?;
        let session = connect(stream, &client, Duration::from_secs(5)).await;
        let mut session = session.map_err(|e| e.to_string())?;
        // In TLS 1.3 the server's verdict comes after the client is done: ask, then listen.
        let _ = session.stream.write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n").await;
        let mut buf = [0; 64];
        match session.stream.read(&mut buf).await {
            Ok(n) if n > 0 => Ok("answered".into()),
            Ok(_) => Err("closed".into()),
            Err(e) => {
                Err(HandshakeError::of_established(&e).map_or(e.to_string(), |h| h.to_string()))
            }
        }
    }

    async fn wrong_ca(&self) -> Result<Row, (String, String)> {
        let mut row = Row::new("impostor -> api, wrong CA");
        let fail = |e: String| (row.what.clone(), e);
        let svid = impostor().map_err(|e| fail(e.message))?;
        let bundles = BundleSet::collect([self.bundle.clone()]).map_err(|e| fail(e.to_string()))?;
        let credentials = Credentials::new(&svid, &bundles, 0, TlsOptions::default())
            .map_err(|e| fail(e.to_string()))?;
        row.ok = self.dial_api(&credentials).await.is_err();
        self.refusal(&mut row, Code::UnknownAuthority).await;
        Ok(row)
    }

    async fn no_certificate(&self) -> Result<Row, (String, String)> {
        let mut row = Row::new("anonymous -> api, no certificate");
        let fail = |e: String| (row.what.clone(), e);
        let bundles = BundleSet::collect([self.bundle.clone()]).map_err(|e| fail(e.to_string()))?;
        let stream =
            TcpStream::connect(self.api.addresses[0]).await.map_err(|e| fail(e.to_string()))?;
        let session = countersign_tls::connect_bootstrap(
            stream,
            &bundles,
            PeerMatcher::AnyTrusted,
            &[],
            Duration::from_secs(5),
        )
        .await;
        row.ok = match session {
            Err(_) => true,
            Ok(mut s) => {
                let _ = s.stream.write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n").await;
                !matches!(s.stream.read(&mut [0; 64]).await, Ok(n) if n > 0)
            }
        };
        self.refusal(&mut row, Code::NoClientCertificate).await;
        Ok(row)
    }

    /// Calls without pause until both sidecars have changed certificates twice.
    async fn rotation(&self) -> Result<Row, (String, String)> {
        let mut row = Row::new("web -> api, rotating under traffic");
        let (mut requests, mut failed) = (0, 0);
        let mut changes = [0u64; 2];
        let mut last = [self.web.serial(), self.api.serial()];
        let deadline = Instant::now() + TTL * 4;
        let mut why = String::new();
        while Instant::now() < deadline && changes.iter().any(|c| *c < 2) {
            requests += 1;
            match services::get(self.web.addresses[0]).await {
                Ok((200, _)) => {}
                Ok((status, body)) => {
                    failed += 1;
                    why = format!("{status} {}", body.trim());
                }
                Err(e) => {
                    failed += 1;
                    why = e;
                }
            }
            for (i, now) in [self.web.serial(), self.api.serial()].into_iter().enumerate() {
                if now != last[i] {
                    changes[i] += 1;
                    last[i] = now;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rotations = changes[0].min(changes[1]);
        row.ok = failed == 0 && rotations >= 2;
        row.outcome = format!(
            "certificates of both ends changed {rotations} times, {requests} requests, {failed} failed"
        );
        if failed > 0 {
            row.outcome = format!("{} (last: {why})", row.outcome);
        }
        row.requests = Some(requests);
        row.failed_requests = Some(failed);
        row.rotations = Some(rotations);
        Ok(row)
    }
}

/// A certificate for web's name from a CA that nobody trusts.
fn impostor() -> Result<X509Svid, Finding> {
    let ca_key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(internal)?;
    let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(internal)?;
    let td = TrustDomain::new(TRUST_DOMAIN).map_err(internal)?;
    let (ca_id, leaf_id) = (td.id(), id(WEB)?);
    let now = current_time();
    let issue = |profile, subject: &SpiffeId, spki: &[u8], issuer: Option<&CertInfo>| {
        let spec = CertSpec {
            profile,
            serial: countersign_keys::random(),
            id: subject,
            dns_names: &[],
            common_name: "impostor",
            not_before: now - Duration::from_secs(10),
            not_after: now + Duration::from_secs(3600),
            spki_der: spki,
            issuer,
            signature_algorithm: ca_key.algorithm(),
        };
        let tbs = spec.to_be_signed().map_err(internal)?;
        tbs.assemble(&ca_key.sign(tbs.bytes()).map_err(internal)?).map_err(internal)
    };
    let ca = issue(Profile::Root, &ca_id, ca_key.public_key_spki(), None)?;
    let info = CertInfo::parse(&ca).map_err(internal)?;
    let leaf = issue(Profile::Leaf, &leaf_id, key.public_key_spki(), Some(&info))?;
    Ok(X509Svid { id: leaf_id, chain: vec![leaf], key: key.pkcs8().clone(), hint: String::new() })
}
