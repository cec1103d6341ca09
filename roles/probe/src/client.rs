//! Probing a client: it is made to connect again and again, to a server that shows it another certificate each
//! time. Whoever goes on talking has believed.

use std::net::SocketAddr;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{SpiffeId, UnixTime};
use countersign_tls::HandshakeError;
use countersign_tls::probe::{ProbeIdentity, ProbeServer, Probed, alert_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::forge::{Authority, Flaw, Story, self_signed};
use crate::options::CaFiles;
use crate::report::{Outcome, Report};

/// How to probe a client.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The CA that the client trusts for servers.
    pub ca: CaFiles,
    /// The name that the client dials.
    pub name: String,
    /// The SPIFFE ID that the client expects, if it does.
    pub id: Option<SpiffeId>,
    /// How long to wait for each connection, and for what comes over it.
    pub timeout: Duration,
    /// What cannot be shown to be refused is wrong too.
    pub strict: bool,
}

/// A probe that listens.
pub struct ClientProbe {
    listener: TcpListener,
    options: ClientOptions,
    cases: Vec<(&'static str, ProbeIdentity)>,
}

/// What is asked of whoever runs the client.
pub trait Driver {
    /// Makes the client connect once. Does not wait for it.
    fn connect(&mut self, case: &str) -> impl Future<Output = Result<(), Finding>>;
    /// Ends what [`Driver::connect`] began, and says how it went, if that is known: `true` for well.
    fn done(&mut self) -> impl Future<Output = Option<bool>>;
}

/// A name that nobody dials.
const WRONG_NAME: &str = "wrong.countersign-probe.invalid";

fn rule_of(case: &str) -> Option<&'static str> {
    Some(match case {
        "server/self-signed" => "client-verify-disabled/live-self-signed",
        "server/wrong-ca" => "client-verify-disabled/live-wrong-ca",
        "server/expired" => "client-verify-disabled/live-expired",
        "server/not-yet-valid" => "client-verify-disabled/live-not-yet-valid",
        "server/ca-as-leaf" => "client-verify-disabled/live-ca-as-leaf",
        "server/wrong-usage" => "client-verify-disabled/live-wrong-usage",
        "server/wrong-name" => "hostname-verify-disabled/live-wrong-name",
        "server/wrong-id" => "hostname-verify-disabled/live-wrong-id",
        _ => return None,
    })
}

impl ClientProbe {
    /// Makes the certificates and listens on `address`.
    pub async fn listen(
        address: SocketAddr,
        options: ClientOptions,
        now: UnixTime,
    ) -> Result<Self, Finding> {
        let cases = cases(&options, now)?;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| Finding::new(Code::CannotListen, format!("{address}: {e}")))?;
        Ok(Self { listener, options, cases })
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr, Finding> {
        let address = self.listener.local_addr();
        address.map_err(|e| Finding::new(Code::CannotListen, e.to_string()))
    }

    /// Shows every certificate to one connection of the client each.
    pub async fn run(self, driver: &mut impl Driver) -> Result<Report, Finding> {
        let mut report = Report::new(self.address()?.to_string());
        let mut presents = None;
        for (case, identity) in &self.cases {
            let server = ProbeServer::new(identity, &[b"h2", b"http/1.1"])
                .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
            driver.connect(case).await?;
            let seen = self.once(&server).await;
            let went_well = driver.done().await;
            report.connections += 1;
            let (mut outcome, mut evidence) = match seen {
                None => {
                    let s = self.options.timeout.as_secs();
                    (Outcome::Unclear, format!("nobody connected within {s} s"))
                }
                Some(Seen { outcome, evidence, client_chain }) => {
                    if *case == "server/right" {
                        presents = Some(client_chain);
                    }
                    (outcome, evidence)
                }
            };
            // A client may close without an alert, and say only in its exit code that it was not content.
            if outcome == Outcome::Accepted && went_well == Some(false) && *case != "server/right" {
                outcome = Outcome::Refused;
                evidence = format!("{evidence}; but the command failed");
            }
            if *case == "server/right" && outcome != Outcome::Accepted {
                let text = format!("the client refuses a certificate that is right: {evidence}");
                return Err(Finding::new(Code::HandshakeFailed, text).hint(
                    "give the CA that it trusts (--ca-cert, --ca-key), the name it dials (--server-name) and the SPIFFE ID it expects (--id)",
                ));
            }
            if outcome == Outcome::Accepted
                && let Some(rule) = rule_of(case)
            {
                report.found(rule, evidence.clone());
            }
            report.case(case, outcome, evidence);
        }
        let (outcome, evidence) = match presents.as_deref() {
            Some([leaf, ..]) => {
                let who = countersign_x509::CertInfo::parse(leaf);
                let who = who.map_or_else(|e| e.to_string(), |c| c.display_name().to_owned());
                (Outcome::Accepted, format!("presents `{who}`"))
            }
            _ => (Outcome::Refused, "presents no certificate when asked".into()),
        };
        report.case("client/certificate", outcome, evidence);
        if self.options.strict {
            report.expect_strict();
        }
        Ok(report.finished())
    }

    async fn once(&self, server: &ProbeServer) -> Option<Seen> {
        let accept = self.listener.accept();
        let (stream, _) = tokio::time::timeout(self.options.timeout, accept).await.ok()?.ok()?;
        Some(look(server, stream, self.options.timeout).await)
    }
}

struct Seen {
    outcome: Outcome,
    evidence: String,
    client_chain: Vec<Vec<u8>>,
}

impl Seen {
    fn refused(evidence: impl Into<String>) -> Self {
        Self { outcome: Outcome::Refused, evidence: evidence.into(), client_chain: Vec::new() }
    }
}

async fn look(server: &ProbeServer, stream: TcpStream, timeout: Duration) -> Seen {
    let Probed { mut stream, client_chain, info, alpn, .. } =
        match server.accept(stream, timeout).await {
            Ok(session) => session,
            Err(HandshakeError::Alert(alert, _)) => {
                return Seen::refused(format!("TLS alert {alert}"));
            }
            Err(e) => return Seen::refused(e.to_string()),
        };
    // In TLS 1.3 the alert of a client that is not content comes right behind its handshake.
    let mut buf = [0; 4096];
    match tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buf)).await {
        Ok(Ok(0)) => Seen::refused("closes without a word"),
        Ok(Ok(n)) => {
            if alpn.as_deref() != Some(b"h2") && buf[..n].windows(4).any(|w| w == b"\r\n\r\n") {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            let _ = stream.shutdown().await;
            let evidence = format!("goes on talking, {}", info.version);
            Seen { outcome: Outcome::Accepted, evidence, client_chain }
        }
        Ok(Err(e)) => Seen::refused(match alert_of(&e) {
            Some(alert) => format!("TLS alert {alert}"),
            None => e.to_string(),
        }),
        Err(_) => {
            let evidence = format!("stays connected, {}", info.version);
            Seen { outcome: Outcome::Accepted, evidence, client_chain }
        }
    }
}

fn cases(o: &ClientOptions, now: UnixTime) -> Result<Vec<(&'static str, ProbeIdentity)>, Finding> {
    let ca = Authority::given(&o.ca.certificates, &o.ca.key, now)?;
    let impostor = Authority::impostor(o.ca.certificates.first().map(Vec::as_slice), now)?;
    let story = |flaw| Story { id: o.id.as_ref(), dns: Some(&o.name), like: None, flaw };
    let mut out = vec![
        ("server/right", ca.issue(&story(Flaw::None))?),
        ("server/self-signed", self_signed(&story(Flaw::None), now)?),
        ("server/wrong-ca", impostor.issue(&story(Flaw::None))?),
        ("server/expired", ca.issue(&story(Flaw::Expired))?),
        ("server/not-yet-valid", ca.issue(&story(Flaw::NotYetValid))?),
        ("server/ca-as-leaf", ca.issue(&story(Flaw::CaAsLeaf))?),
        ("server/wrong-usage", ca.issue(&story(Flaw::WrongUsage))?),
    ];
    match &o.id {
        // Where a SPIFFE ID is expected, names play no part (X509-SVID section 5).
        Some(id) => {
            let other = SpiffeId::from_path(id.trust_domain(), "/countersign-probe/other")
                .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
            let story =
                Story { id: Some(&other), dns: Some(&o.name), like: None, flaw: Flaw::None };
            out.push(("server/wrong-id", ca.issue(&story)?));
        }
        None => {
            let story = Story { id: None, dns: Some(WRONG_NAME), like: None, flaw: Flaw::None };
            out.push(("server/wrong-name", ca.issue(&story)?));
        }
    }
    Ok(out)
}
