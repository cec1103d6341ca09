//! From peers to the workload: who is it, may it, then relay.

mod engine;
mod http;
mod records;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use countersign_findings::{Code, Finding};
use countersign_policy::{
    Authorizer, Decision, Denial, External, HttpRequest, Mode, NoIdentity, Permit, PolicySet,
    Request, Source, Token, Until, remote_ip,
};
use countersign_sys::tune;
use countersign_telemetry::{ConnectionId, Direction, Security};
use countersign_tls::{Session, accept, current_time};
use countersign_x509::Peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::forward::{End, Volume, forward, relay};
use crate::http1::{H2_PREFACE, looks_like_request, refusal};
use crate::options::{InboundOptions, PeerMode, Protocol};
use crate::shared::{CONNECT_TIMEOUT, Place, Shared, no_identity_yet};
use crate::stream::{ReadAhead, Relayed};

/// Somebody must have spoken by then.
const FIRST_BYTE: Duration = Duration::from_secs(60);

/// First byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What was proven about a request besides who sent it.
#[derive(Clone, Copy, Default)]
struct Proof<'a> {
    token: Option<&'a Token>,
    external: Option<&'a External>,
}

/// The policies in force; `None` until they are known.
type Policies = Option<Arc<PolicySet>>;

/// One accepted connection.
struct Inbound<'a> {
    shared: &'a Arc<Shared>,
    options: &'a InboundOptions,
    from: SocketAddr,
    local: SocketAddr,
    id: ConnectionId,
    /// What the client asked for, once it has.
    sni: OnceLock<String>,
}

/// Serves one connection from accept to close.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    options: Arc<InboundOptions>,
    stream: TcpStream,
    from: SocketAddr,
    _place: Place,
) {
    let Ok(local) = stream.local_addr() else { return };
    if tune(&stream).is_err() {
        return;
    }
    let id = shared.connection_id();
    let sni = OnceLock::new();
    Inbound { shared: &shared, options: &options, from, local, id, sni }.run(stream).await;
}

impl Inbound<'_> {
    fn mode(&self) -> Mode {
        match self.options.mode {
            PeerMode::Fixed(mode) => mode,
            PeerMode::FromPolicy => self
                .shared
                .policies
                .load()
                .as_ref()
                .and_then(|p| p.mode(self.local.port()))
                .unwrap_or(Mode::Strict),
        }
    }

    async fn run(self, stream: TcpStream) {
        // A TLS client always speaks first, so one byte tells the two apart.
        let mut first = [0; 1];
        let mode = self.mode();
        let plaintext_ok = mode.accepts_plaintext(current_time());
        let speaks = stream.peek(&mut first);
        if plaintext_ok {
            // A silent client may be waiting for a server that speaks first: whoever speaks, decides.
            let speaker = self.first_speaker(&stream, speaks);
            match tokio::time::timeout(FIRST_BYTE, speaker).await.unwrap_or(Speaker::Nobody) {
                Speaker::Client if first_is_tls(&stream).await => {}
                Speaker::Client => return self.plaintext(stream, None).await,
                Speaker::Server(upstream) => return self.plaintext(stream, Some(upstream)).await,
                Speaker::Nobody => return,
            }
        } else {
            match tokio::time::timeout(self.shared.handshake_timeout, speaks).await {
                Ok(Ok(0)) | Ok(Err(_)) => return,
                Ok(Ok(_)) if first[0] == TLS_HANDSHAKE => {}
                Ok(Ok(_)) => return self.refuse_plaintext(stream, mode).await,
                Err(_) => {
                    let finding = Finding::new(
                        Code::HandshakeTimeout,
                        format!(
                            "client sent nothing for {} ms",
                            self.shared.handshake_timeout.as_millis()
                        ),
                    );
                    return self.refuse(&finding);
                }
            }
        }
        self.tls(stream).await;
    }

    fn plaintext_refusal(&self, mode: Mode) -> Finding {
        match mode {
            Mode::Permissive { .. } => Finding::new(
                Code::PermissiveEnded,
                "plaintext refused: the PERMISSIVE period has ended",
            ),
            Mode::Strict => Finding::new(
                Code::PlaintextOnStrict,
                format!("plaintext refused: port {} is STRICT", self.local.port()),
            ),
        }
        .expected("mTLS")
        .presented("plaintext")
    }

    async fn refuse_plaintext(&self, mut stream: TcpStream, mode: Mode) {
        let finding = self.plaintext_refusal(mode);
        self.refuse(&finding);
        let mut head = [0; 1024];
        let n = match tokio::time::timeout(Duration::from_secs(1), stream.read(&mut head)).await {
            Ok(Ok(n)) => n,
            _ => 0,
        };
        // An HTTP client gets an answer that people can read; others only the close.
        if looks_like_request(&head[..n]) == Some(true) {
            let _ = stream.write_all(&refusal(403, finding.code, self.id, true)).await;
        }
        let _ = stream.shutdown().await;
        let _ = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut head)).await;
    }

    async fn first_speaker(
        &self,
        client: &TcpStream,
        speaks: impl Future<Output = std::io::Result<usize>>,
    ) -> Speaker {
        tokio::pin!(speaks);
        // Most clients have spoken by now; the upstream is dialled only for those that have not.
        tokio::select! {
            biased;
            spoke = &mut speaks => return Speaker::of_client(spoke),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        let allowed = self.tcp_allowed(None).await;
        if !allowed {
            return Speaker::of_client(speaks.await);
        }
        let Ok(upstream) = self.connect().await else { return Speaker::of_client(speaks.await) };
        let mut byte = [0; 1];
        tokio::select! {
            spoke = &mut speaks => Speaker::of_client(spoke),
            spoke = upstream.peek(&mut byte) => match spoke {
                Ok(n) if n > 0 => Speaker::Server(upstream),
                _ => Speaker::of_client(client.peek(&mut byte).await),
            },
        }
    }

    async fn connect(&self) -> Result<TcpStream, Finding> {
        dial(&self.options.forward).await
    }

    /// The policies in force, to be taken once for all that is decided about one request: what verified its
    /// token must be what judges it.
    fn policies(&self) -> Policies {
        self.shared.policies.load_full()
    }

    fn decide(
        &self,
        policies: &Policies,
        source: &Source<'_>,
        http: Option<HttpRequest<'_>>,
        proof: Proof<'_>,
    ) -> Outcome {
        // The mode may have changed, or its end passed, since the connection was accepted.
        if let Source::Unauthenticated { .. } = source {
            let mode = self.mode();
            if !mode.accepts_plaintext(current_time()) {
                return Outcome::PlaintextEnded(mode);
            }
        }
        let Some(policies) = policies else { return Outcome::NotReady };
        let authorizer = Authorizer::new(self.options.allow.clone(), Arc::clone(policies));
        Outcome::Decided(authorizer.decide(&self.request(*source, http, proof)))
    }

    async fn tls(&self, stream: TcpStream) {
        let Some(credentials) = self.shared.credentials.current() else {
            return self.refuse(&no_identity_yet());
        };
        let session =
            accept(ReadAhead::new(stream), &credentials, self.shared.handshake_timeout).await;
        let Session { mut stream, peer, info } = match session {
            Ok(session) => session,
            Err(e) => return self.refuse(&credentials.explain(&e).at(self.from.to_string())),
        };
        self.shared.metrics.handshake_succeeded(Direction::Inbound, info.duration);
        if let Some(name) = &info.server_name {
            let _ = self.sni.set(name.clone());
        }
        self.note_handshake(&peer, &info);
        let clean = self.established(&mut stream, Some(&peer), None).await;
        // A proper close after a break would pass for the end of the data.
        if clean {
            let _ = tokio::time::timeout(Duration::from_millis(500), stream.shutdown()).await;
        }
    }

    async fn plaintext(&self, mut stream: TcpStream, upstream: Option<TcpStream>) {
        self.established(&mut stream, None, upstream).await;
    }

    /// Decides and relays, by protocol. `false`: it broke, and the close must show that.
    async fn established<C: Relayed>(
        &self,
        client: &mut C,
        peer: Option<&Peer>,
        upstream: Option<TcpStream>,
    ) -> bool {
        let security = if peer.is_some() { Security::Mtls } else { Security::Plaintext };
        let begun = Instant::now();
        self.shared.metrics.connection_opened(Direction::Inbound, security);
        let mut count = Volume::default();
        let clean = match self.options.protocol {
            Protocol::Tcp => self.tcp(client, peer, Vec::new(), upstream, &mut count).await,
            Protocol::Http => self.http(client, peer, Vec::new(), &mut count).await,
            Protocol::Auto => self.auto(client, peer, upstream, &mut count).await,
        };
        let life = begun.elapsed();
        self.shared.metrics.connection_closed(
            Direction::Inbound,
            security,
            life,
            count.sent + count.received,
        );
        self.note_closed(peer, life, &count);
        clean
    }

    /// Whoever speaks first shows what is spoken.
    async fn auto<C: Relayed>(
        &self,
        client: &mut C,
        peer: Option<&Peer>,
        upstream: Option<TcpStream>,
        count: &mut Volume,
    ) -> bool {
        let mut early = Vec::new();
        let mut far = upstream;
        if far.is_some() {
            return self.tcp(client, peer, early, far, count).await;
        }
        // Judged only once the client has been silent for a moment, and not twice.
        let mut may_dial = true;
        let deadline = tokio::time::Instant::now() + FIRST_BYTE;
        loop {
            let verdict = if early.starts_with(&H2_PREFACE[..early.len().min(H2_PREFACE.len())])
                && !early.is_empty()
            {
                (early.len() >= H2_PREFACE.len()).then_some(Spoken::Http2)
            } else {
                looks_like_request(&early)
                    .map(|http| if http { Spoken::Http1 } else { Spoken::Other })
            };
            match verdict {
                Some(Spoken::Http1) => return self.http(client, peer, early, count).await,
                Some(Spoken::Other) => return self.tcp(client, peer, early, far, count).await,
                Some(Spoken::Http2) => {
                    // Relayed as bytes it could carry any identity header past us.
                    let finding = Finding::new(
                        Code::HttpVersionUnsupported,
                        "HTTP/2 on a port whose protocol is detected",
                    );
                    self.note(peer, &finding);
                    return true;
                }
                None => {}
            }
            let mut buf = [0; 2048];
            let mut byte = [0; 1];
            tokio::select! {
                read = client.read(&mut buf) => match read {
                    Ok(n) if n > 0 => early.extend_from_slice(&buf[..n]),
                    _ if early.is_empty() => return true,
                    _ => return self.tcp(client, peer, early, far, count).await,
                },
                () = tokio::time::sleep_until(deadline) => return true,
                () = tokio::time::sleep(Duration::from_millis(20)),
                    if far.is_none() && early.is_empty() && may_dial =>
                {
                    may_dial = false;
                    if !self.tcp_allowed(peer).await {
                        continue;
                    }
                    far = self.connect().await.ok();
                    if far.is_none() {
                        return self.tcp(client, peer, early, None, count).await;
                    }
                }
                spoke = async {
                    match &far {
                        Some(far) => far.peek(&mut byte).await,
                        None => std::future::pending().await,
                    }
                } => {
                    let _ = spoke;
                    return self.tcp(client, peer, early, far, count).await;
                }
            }
        }
    }

    async fn tcp<C: Relayed>(
        &self,
        client: &mut C,
        peer: Option<&Peer>,
        early: Vec<u8>,
        upstream: Option<TcpStream>,
        count: &mut Volume,
    ) -> bool {
        let policies = self.policies();
        let reply = self.consult(&policies, peer, None, Proof::default()).await;
        let proof = Proof { token: None, external: reply.as_ref().map(|r| &r.external) };
        let permit = match self.permit(&policies, peer, None, proof) {
            Ok(permit) => permit,
            Err(finding) => {
                self.note(peer, &finding);
                return true;
            }
        };
        let mut far = match upstream {
            Some(far) => far,
            None => match self.connect().await {
                Ok(far) => far,
                Err(finding) => {
                    self.note(peer, &finding);
                    return true;
                }
            },
        };
        let still = || self.still_permitted(&self.policies(), peer, None, proof);
        let work = relay(client, &mut far, early, count);
        match forward(permit, peer, self.shared, None, still, work).await {
            Ok(End::Finished) => true,
            Ok(End::Broken { far, error }) => {
                tracing::debug!(connection = %self.id, far, "connection broke: {error}");
                false
            }
            Err(code) => {
                self.cut(peer, code);
                client.reset_on_close();
                false
            }
        }
    }

    /// Decides, counts the decision, and yields the permit.
    fn permit(
        &self,
        policies: &Policies,
        peer: Option<&Peer>,
        http: Option<HttpRequest<'_>>,
        proof: Proof<'_>,
    ) -> Result<Permit, Finding> {
        self.audit(policies, peer, http, proof);
        let result = match self.decide(policies, &source_of(peer), http, proof) {
            Outcome::PlaintextEnded(mode) => Err(self.plaintext_refusal(mode)),
            Outcome::NotReady => {
                Err(Finding::new(Code::PolicyUnavailable, "no policy has been loaded yet"))
            }
            Outcome::Decided(decision) => {
                decision.permit().map_err(|denial: Denial| denial.finding())
            }
        };
        self.shared.metrics.decided(Direction::Inbound, result.as_ref().err().map(|f| f.code));
        if result.is_ok() {
            self.record_edge(peer, http);
        }
        result
    }

    fn request<'a>(
        &'a self,
        source: Source<'a>,
        http: Option<HttpRequest<'a>>,
        proof: Proof<'a>,
    ) -> Request<'a> {
        Request {
            source,
            source_ip: self.from.ip(),
            remote_ip: match http {
                Some(h) => remote_ip(self.from.ip(), h.headers, self.shared.mesh.trusted_hops),
                None => self.from.ip(),
            },
            destination_ip: self.local.ip(),
            destination_port: self.local.port(),
            sni: self.sni.get().map(String::as_str),
            http,
            token: proof.token,
            external: proof.external,
        }
    }

    /// Whether what is under way may go on, and until when that holds: plaintext, as long as the mode
    /// lets it; everything, as long as the policies do.
    fn still_permitted(
        &self,
        policies: &Policies,
        peer: Option<&Peer>,
        http: Option<HttpRequest<'_>>,
        proof: Proof<'_>,
    ) -> Result<Option<Duration>, Code> {
        let left = self.plaintext_left(peer)?;
        match self.decide(policies, &source_of(peer), http, proof) {
            Outcome::Decided(d) if d.is_allowed() => Ok(left),
            Outcome::PlaintextEnded(_) => Err(Code::PermissiveEnded),
            _ => Err(Code::PermitWithdrawn),
        }
    }

    /// How long an unauthenticated caller may still be served; `None` is for ever.
    fn plaintext_left(&self, peer: Option<&Peer>) -> Result<Option<Duration>, Code> {
        if peer.is_some() {
            return Ok(None);
        }
        match self.mode() {
            Mode::Permissive { until: Until::Time(end) } => {
                let left = end.since(current_time());
                if left.is_zero() { Err(Code::PermissiveEnded) } else { Ok(Some(left)) }
            }
            Mode::Permissive { .. } => Ok(None),
            Mode::Strict => Err(Code::PermitWithdrawn),
        }
    }
}

enum Spoken {
    Http1,
    Http2,
    Other,
}

enum Speaker {
    Client,
    Server(TcpStream),
    Nobody,
}

impl Speaker {
    fn of_client(spoke: std::io::Result<usize>) -> Self {
        match spoke {
            Ok(n) if n > 0 => Speaker::Client,
            _ => Speaker::Nobody,
        }
    }
}

async fn first_is_tls(stream: &TcpStream) -> bool {
    let mut first = [0; 1];
    matches!(stream.peek(&mut first).await, Ok(1) if first[0] == TLS_HANDSHAKE)
}

enum Outcome {
    NotReady,
    PlaintextEnded(Mode),
    Decided(Decision),
}

impl Outcome {
    fn is_allowed(&self) -> bool {
        matches!(self, Outcome::Decided(d) if d.is_allowed())
    }
}

fn source_of(peer: Option<&Peer>) -> Source<'_> {
    match peer {
        Some(Peer::Spiffe(peer)) => Source::Peer(peer),
        Some(Peer::Legacy(peer)) => Source::Legacy(peer),
        None => Source::Unauthenticated { reason: NoIdentity::Plaintext },
    }
}

fn who(peer: Option<&Peer>, from: SocketAddr) -> String {
    peer.map_or_else(|| from.to_string(), |p| p.name().to_owned())
}

/// Dials the workload or a peer.
pub(crate) async fn dial(address: &str) -> Result<TcpStream, Finding> {
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            let _ = tune(&stream);
            Ok(stream)
        }
        Ok(Err(e)) => Err(Finding::new(
            Code::UpstreamUnreachable,
            format!("cannot connect to {address}: {e}"),
        )
        .at(address.to_owned())),
        Err(_) => Err(Finding::new(
            Code::UpstreamTimeout,
            format!("{address} did not accept within {} s", CONNECT_TIMEOUT.as_secs()),
        )
        .at(address.to_owned())),
    }
}
