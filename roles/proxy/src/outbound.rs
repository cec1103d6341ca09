//! From the workload to a peer: prove ourselves, make the peer prove itself, then relay.

mod http;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign_findings::{Code, Finding};
use countersign_policy::{AllowList, Authorizer, Permit, PolicySet, Request, Source, Workload};
use countersign_sys::tune;
use countersign_telemetry::{ConnectionId, Direction, HandshakeRecord, Security};
use countersign_tls::{
    ClientSide, ClientStream, HandshakeError, HandshakeInfo, PeerMatcher, connect,
};
use countersign_x509::{Peer, PeerIdentity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::forward::{End, Volume, forward, relay};
use crate::http1::{looks_like_request, refusal};
use crate::inbound::dial;
use crate::options::{OutboundOptions, Protocol};
use crate::shared::{Place, Shared, no_identity_yet};
use crate::stream::{ReadAhead, Resettable};

type PeerStream = ClientStream<ReadAhead>;

/// A listener's options with the client configuration of the current credentials.
pub(crate) struct OutboundListener {
    pub(crate) options: OutboundOptions,
    client: Mutex<Option<(u64, Arc<ClientSide>)>>,
}

impl OutboundListener {
    pub(crate) fn new(options: OutboundOptions) -> Self {
        Self { options, client: Mutex::new(None) }
    }

    /// One configuration per generation of credentials: resumption works across connections, and a new
    /// generation starts afresh.
    fn client(&self, shared: &Shared) -> Result<(Arc<ClientSide>, u64), Finding> {
        let credentials = shared.credentials.current().ok_or_else(no_identity_yet)?;
        let key = credentials.store.generation();
        let mut slot = self.client.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((of, client)) = &*slot
            && *of == key
        {
            return Ok((Arc::clone(client), key));
        }
        let client = credentials
            .client(PeerMatcher::Ids(self.options.peer_ids.clone()), &[])
            .map_err(|e| e.finding())?;
        *slot = Some((key, Arc::clone(&client)));
        Ok((client, key))
    }
}

/// A connection to a peer that may be used.
struct Opened {
    stream: PeerStream,
    peer: Arc<PeerIdentity>,
    permit: Permit,
    /// Of the credentials it was opened with.
    generation: u64,
}

struct Outbound<'a> {
    shared: &'a Arc<Shared>,
    listener: &'a OutboundListener,
    from: SocketAddr,
    id: ConnectionId,
}

/// Serves one connection from accept to close.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    listener: Arc<OutboundListener>,
    mut stream: TcpStream,
    from: SocketAddr,
    _place: Place,
) {
    if tune(&stream).is_err() {
        return;
    }
    let id = shared.connection_id();
    let this = Outbound { shared: &shared, listener: &listener, from, id };
    let begun = Instant::now();
    shared.metrics.connection_opened(Direction::Outbound, Security::Mtls);
    let mut count = Volume::default();
    match listener.options.protocol {
        Protocol::Http => this.http(&mut stream, &mut count).await,
        Protocol::Tcp | Protocol::Auto => this.tcp(&mut stream, &mut count).await,
    }
    let life = begun.elapsed();
    shared.metrics.connection_closed(
        Direction::Outbound,
        Security::Mtls,
        life,
        count.sent + count.received,
    );
    if shared.log.is_on() {
        shared.log.write(HandshakeRecord {
            event: "connection_closed",
            connection_id: id.to_string(),
            direction: "outbound",
            source_workload: this.source(),
            destination_workload: listener.options.upstream.clone(),
            result: "success",
            duration_ms: life.as_secs_f64() * 1000.0,
            bytes_sent: Some(count.sent),
            bytes_received: Some(count.received),
            ..HandshakeRecord::default()
        });
    }
}

impl Outbound<'_> {
    fn source(&self) -> String {
        match self.shared.credentials.current() {
            Some(c) => c.id.to_string(),
            None => self.from.to_string(),
        }
    }

    fn explain(&self, error: &HandshakeError) -> Finding {
        match self.shared.credentials.current() {
            Some(own) => own.explain(error),
            None => error.finding(),
        }
    }

    fn note(&self, finding: &Finding) {
        self.shared.note(
            "request_denied",
            Direction::Outbound,
            self.id,
            self.source(),
            self.listener.options.upstream.clone(),
            finding,
        );
    }

    fn cut(&self, code: Code) {
        self.shared.metrics.cut(code);
        self.note(&Finding::new(code, code.title()));
    }

    /// Dials the peer, makes it prove itself, and decides. What fails has been told when it returns.
    async fn open(&self) -> Result<Opened, Finding> {
        let told = |finding: Finding| {
            self.shared.note(
                "connect",
                Direction::Outbound,
                self.id,
                self.source(),
                self.listener.options.upstream.clone(),
                &finding,
            );
            finding
        };
        let (client, generation) = self.listener.client(self.shared).map_err(told)?;
        let upstream = &self.listener.options.upstream;
        let stream = ReadAhead::new(dial(upstream).await.map_err(told)?);
        match connect(stream, &client, self.shared.handshake_timeout).await {
            Ok(session) => {
                self.shared.metrics.handshake_succeeded(Direction::Outbound, session.info.duration);
                self.note_handshake(&session.peer, &session.info);
                let permit = self.permit(&session.peer).map_err(told)?;
                Ok(Opened { stream: session.stream, peer: session.peer, permit, generation })
            }
            Err(e) => {
                let finding = self.explain(&e).at(upstream.clone());
                self.shared.refuse(
                    Direction::Outbound,
                    self.id,
                    self.source(),
                    upstream.clone(),
                    &finding,
                );
                Err(finding)
            }
        }
    }

    fn note_handshake(&self, peer: &Arc<PeerIdentity>, info: &HandshakeInfo) {
        if self.shared.log.is_on() {
            self.shared.log.write(HandshakeRecord {
                event: "handshake",
                connection_id: self.id.to_string(),
                direction: "outbound",
                source_workload: self.source(),
                destination_workload: peer.id().to_string(),
                source_identity: Some(self.source()),
                destination_identity: Some(peer.id().to_string()),
                result: "success",
                tls_version: info.version.to_owned(),
                key_exchange: info.group.clone(),
                resumed: info.resumed,
                duration_ms: info.duration.as_secs_f64() * 1000.0,
                ..HandshakeRecord::default()
            });
        }
    }

    /// The same chain as inbound: the verified peer is decided upon, the decision yields the permit.
    fn permit(&self, peer: &PeerIdentity) -> Result<Permit, Finding> {
        let list = Arc::new(AllowList::of(self.listener.options.peer_ids.clone()));
        let nothing = PolicySet::compile(&[], &Workload::of(peer.id()), 0);
        let listen = self.listener.options.listen;
        let decision = Authorizer::new(Some(list), Arc::new(nothing)).decide(&Request {
            source: Source::Peer(peer),
            source_ip: self.from.ip(),
            remote_ip: self.from.ip(),
            destination_ip: listen.ip(),
            destination_port: listen.port(),
            sni: None,
            http: None,
            token: None,
            external: None,
        });
        let result = decision.permit().map_err(|d| d.finding());
        self.shared.metrics.decided(Direction::Outbound, result.as_ref().err().map(|f| f.code));
        result
    }

    async fn tcp(&self, client: &mut TcpStream, count: &mut Volume) {
        let Opened { stream: mut far, peer, permit, .. } = match self.open().await {
            Ok(opened) => opened,
            Err(finding) => return self.tell(client, finding.code).await,
        };
        let before = *count;
        let work = relay(client, &mut far, Vec::new(), count);
        let spiffe = Peer::Spiffe(Arc::clone(&peer));
        match forward(permit, Some(&spiffe), self.shared, None, || Ok(None), work).await {
            Ok(End::Finished) => {
                let _ = tokio::time::timeout(Duration::from_millis(500), far.shutdown()).await;
            }
            Ok(End::Broken { far: true, error }) => {
                let refused = HandshakeError::of_established(&error);
                if let Some(e) = refused {
                    // The peer's verdict on our certificate arrives after our side was done.
                    let finding = self.explain(&e).at(self.listener.options.upstream.clone());
                    self.shared.refuse(
                        Direction::Outbound,
                        self.id,
                        self.source(),
                        peer.id().to_string(),
                        &finding,
                    );
                    if count.received == before.received {
                        return self.tell(client, finding.code).await;
                    }
                }
                tracing::debug!(connection = %self.id, "connection broke: {error}");
            }
            Ok(End::Broken { error, .. }) => {
                tracing::debug!(connection = %self.id, "client broke off: {error}");
            }
            Err(code) => {
                self.cut(code);
                client.reset_on_close();
                far.reset_on_close();
            }
        }
    }

    /// Tells an HTTP client why; others only see the connection close.
    async fn tell(&self, client: &mut TcpStream, code: Code) {
        let mut head = [0; 4096];
        let read = tokio::time::timeout(Duration::from_millis(200), client.read(&mut head)).await;
        if let Ok(Ok(n)) = read
            && looks_like_request(&head[..n]) == Some(true)
        {
            let _ = client.write_all(&refusal(502, code, self.id, true)).await;
        }
        let _ = client.shutdown().await;
    }
}
