//! Probing a client: it is made to connect again and again, to a server that shows it another certificate each
//! time. Whoever goes on talking has believed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_findings::{Code, Finding, Severity};
use countersign_identity::{SpiffeId, UnixTime};
use countersign_tls::probe::{ProbeIdentity, ProbeServer, Probed, alert_of};
use countersign_tls::{HandshakeError, ServerStream};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
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
    /// Makes the client connect. Does not wait for it.
    fn connect(&mut self, case: &str) -> impl Future<Output = Result<(), Finding>>;
    /// Resolves when what [`Driver::connect`] began has come to its end; never, if nobody can tell.
    fn ended(&mut self) -> impl Future<Output = Ended>;
    /// Whether [`Driver::ended`] ever resolves.
    fn tells(&self) -> bool;
    /// Ends it, with all that it began.
    fn stop(&mut self) -> impl Future<Output = ()>;
}

/// How a run of the client ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whether it says that it went well.
    pub well: bool,
    /// In words: the exit code, and the last thing it said.
    pub how: String,
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

    /// Shows every certificate to one run of the client each.
    pub async fn run(self, driver: &mut impl Driver) -> Result<Report, Finding> {
        let mut report = Report::new(self.address()?.to_string());
        let mut presents = None;
        let (mut right_ended_well, mut right_talked) = (false, false);
        for (case, identity) in &self.cases {
            let server = ProbeServer::new(identity, &[b"h2", b"http/1.1"])
                .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
            driver.connect(case).await?;
            let Run { seen, ended } = self.once(server, driver).await;
            driver.stop().await;
            report.connections += seen.len();
            let is_right = *case == "server/right";
            if is_right {
                right_ended_well = ended.as_ref().is_some_and(|e| e.well);
                presents = seen.iter().find(|s| !s.client_chain.is_empty()).cloned();
            }
            // What the command says of itself counts only if it is content with what is right: it may want another
            // answer than ours.
            let told = ended.as_ref().filter(|_| right_ended_well).map(|e| e.well);
            let (mut outcome, mut evidence) = judged(&seen, told, self.options.timeout);
            if is_right {
                right_talked = outcome == Outcome::Accepted && seen.iter().any(Seen::talks);
            } else if outcome == Outcome::Unclear && right_talked && !seen.is_empty() {
                // It has something to say to who is right, and said nothing: it judges names by itself.
                outcome = Outcome::Refused;
            }
            if let Some(ended) = &ended {
                evidence = format!("{evidence}; the command {}", ended.how);
            }
            if is_right && outcome != Outcome::Accepted {
                let what = match seen.is_empty() {
                    true => "the client does not connect with TLS",
                    false => "the client refuses a certificate that is right",
                };
                return Err(Finding::new(Code::HandshakeFailed, format!("{what}: {evidence}")).hint(
                    "give the CA that it trusts (--ca-cert, --ca-key), the name it dials (--server-name) and the SPIFFE ID it expects (--id)",
                ));
            }
            if outcome == Outcome::Accepted
                && let Some(rule) = rule_of(case)
            {
                // Usual among web clients; X509-SVID section 4.1 forbids it.
                let mild = *case == "server/ca-as-leaf" && self.options.id.is_none();
                report.found_as(rule, mild.then_some(Severity::Low), evidence.clone());
            }
            report.case(case, outcome, evidence);
        }
        let chain = presents.map(|s| s.client_chain).unwrap_or_default();
        let (outcome, evidence) = match chain.first() {
            Some(leaf) => {
                let who = countersign_x509::CertInfo::parse(leaf);
                let who = who.map_or_else(|e| e.to_string(), |c| c.display_name());
                (Outcome::Accepted, format!("presents `{who}` when asked"))
            }
            None => (Outcome::Refused, "presents no certificate when asked".into()),
        };
        report.case("client/certificate", outcome, evidence);
        if self.options.strict {
            report.expect_strict();
        }
        Ok(report.finished())
    }

    /// Serves every connection of one run with the same certificate, until the run has ended.
    async fn once(&self, server: ProbeServer, driver: &mut impl Driver) -> Run {
        let timeout = self.options.timeout;
        let deadline = tokio::time::sleep(timeout);
        tokio::pin!(deadline);
        let mut looks = tokio::task::JoinSet::new();
        let mut run = Run { seen: Vec::new(), ended: None };
        loop {
            tokio::select! {
                Ok((stream, _)) = self.listener.accept(), if looks.len() < MAX_AT_ONCE => {
                    looks.spawn(look(server.clone(), stream, timeout));
                }
                Some(Ok(seen)) = looks.join_next() => {
                    run.seen.extend(seen);
                    // Without a command nobody says when it is over: the first connection counts.
                    if !driver.tells() && !run.seen.is_empty() {
                        return run;
                    }
                }
                ended = driver.ended(), if run.ended.is_none() => {
                    run.ended = Some(ended);
                    // What it sent last may still be on its way.
                    deadline.as_mut().reset(tokio::time::Instant::now() + GRACE);
                }
                () = &mut deadline => break,
            }
            if run.ended.is_some() && looks.is_empty() && !run.seen.is_empty() {
                break;
            }
        }
        // A connection that nobody has closed so far is one that stands.
        while let Ok(Some(Ok(seen))) = tokio::time::timeout(GRACE, looks.join_next()).await {
            run.seen.extend(seen);
        }
        run
    }
}

/// Connections of one run that are looked at together.
const MAX_AT_ONCE: usize = 16;

/// For what is on its way when a run has ended.
const GRACE: Duration = Duration::from_millis(300);

struct Run {
    /// Connections on which TLS was begun.
    seen: Vec<Seen>,
    ended: Option<Ended>,
}

/// What all connections of a run come to: whoever believed once has believed.
fn judged(seen: &[Seen], well: Option<bool>, timeout: Duration) -> (Outcome, String) {
    let find = |wanted: Outcome| seen.iter().find(|s| s.outcome == wanted);
    let talked = find(Outcome::Accepted);
    let closed = find(Outcome::Unclear);
    match (talked.or(closed), well) {
        (Some(s), Some(true)) => (Outcome::Accepted, s.evidence.clone()),
        // It may judge for itself after the handshake, and say so only in its exit code.
        (Some(s), Some(false)) => (Outcome::Refused, s.evidence.clone()),
        (Some(s), None) => (s.outcome, s.evidence.clone()),
        (None, _) => match seen.first() {
            Some(s) => (Outcome::Refused, s.evidence.clone()),
            None => (Outcome::Unclear, format!("nobody began TLS within {} s", timeout.as_secs())),
        },
    }
}

#[derive(Clone)]
struct Seen {
    outcome: Outcome,
    evidence: String,
    client_chain: Vec<Vec<u8>>,
}

impl Seen {
    fn talks(&self) -> bool {
        self.outcome == Outcome::Accepted
    }

    fn refused(evidence: impl Into<String>) -> Self {
        Self { outcome: Outcome::Refused, evidence: evidence.into(), client_chain: Vec::new() }
    }
}

/// `None` where no TLS was begun: somebody only looked whether the port is open.
async fn look(server: ProbeServer, stream: TcpStream, timeout: Duration) -> Option<Seen> {
    let mut first = [0; 1];
    match tokio::time::timeout(timeout, stream.peek(&mut first)).await {
        Ok(Ok(1)) if first[0] == 0x16 => {}
        _ => return None,
    }
    let Probed { mut stream, client_chain, info, alpn } = match server.accept(stream, timeout).await
    {
        Ok(session) => session,
        Err(HandshakeError::Alert(alert, _)) => {
            return Some(Seen::refused(format!("TLS alert {alert}")));
        }
        Err(e) => return Some(Seen::refused(e.to_string())),
    };
    // A client that is not content says so in place of its last message. One that judges for itself does later.
    let mut buf = vec![0; 4096];
    let version = info.version;
    Some(match tokio::time::timeout(timeout, stream.read(&mut buf)).await {
        Ok(Ok(0)) => {
            let evidence = format!("shakes hands and closes without a word, {version}");
            Seen { outcome: Outcome::Unclear, evidence, client_chain }
        }
        Ok(Ok(n)) => {
            buf.truncate(n);
            let answer = answer(stream, buf, alpn.as_deref() == Some(b"h2"));
            let _ = tokio::time::timeout(Duration::from_secs(2), answer).await;
            let evidence = format!("goes on talking, {version}");
            Seen { outcome: Outcome::Accepted, evidence, client_chain }
        }
        Ok(Err(e)) => match alert_of(&e) {
            Some(alert) => Seen::refused(format!("TLS alert {alert}")),
            // Its last message has come, so TLS itself was content; what it thought then, its exit code may tell.
            None => {
                let evidence = format!("shakes hands and breaks off, {version}");
                Seen { outcome: Outcome::Unclear, evidence, client_chain }
            }
        },
        Err(_) => {
            let evidence = format!("stays connected, {version}");
            Seen { outcome: Outcome::Accepted, evidence, client_chain }
        }
    })
}

/// Answers what looks like HTTP with an empty page, so that a client can end well.
async fn answer(mut stream: ServerStream<TcpStream>, begun: Vec<u8>, h2: bool) {
    use http_body_util::Empty;
    let service = hyper::service::service_fn(|_| async {
        Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<bytes::Bytes>::new()))
    });
    if h2 {
        let io = TokioIo::new(Begun { begun, at: 0, stream });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
        return;
    }
    if begun.windows(4).any(|w| w == b"\r\n\r\n") {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(answer.as_bytes()).await;
    }
    let _ = stream.shutdown().await;
    let _ = stream.read(&mut [0; 64]).await;
}

/// A stream of which the beginning was read already.
struct Begun {
    begun: Vec<u8>,
    at: usize,
    stream: ServerStream<TcpStream>,
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.begun[self.at..];
        if rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        self.at += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
