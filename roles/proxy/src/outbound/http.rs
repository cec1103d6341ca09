//! HTTP/1.1 to a peer. Connections are renewed between requests, before what they rest on ends.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign_findings::Finding;
use countersign_identity::UnixTime;
use countersign_policy::Normalization;
use countersign_telemetry::Direction;
use countersign_tls::{HandshakeError, current_time};
use countersign_x509::{Peer, PeerIdentity};
use tokio::net::TcpStream;

use super::{Opened, Outbound, PeerStream};
use crate::forward::{Renewal, Volume, forward};
use crate::http1::{self, Exchange, IDLE, Next, RequestHead};
use crate::stream::Resettable;

impl Outbound<'_> {
    pub(super) async fn http(&self, client: &mut TcpStream, count: &mut Volume) {
        // Opened before the first request: the permit that bounds the connection needs the peer.
        let Opened { stream, peer, permit, generation } = match self.open().await {
            Ok(opened) => opened,
            Err(finding) => return self.tell(client, finding.code).await,
        };
        let link = Link::new(&peer, generation, None);
        let exchange = HttpOutbound {
            connection: self,
            renewal: Renewal::default(),
            state: Mutex::new((Some(stream), link)),
            told: AtomicBool::new(false),
        };
        let draining = self.shared.draining.subscribe();
        let renewal = Some(&exchange.renewal);
        let work = http1::serve(client, Vec::new(), &exchange, self.id, draining);
        let peer = Peer::Spiffe(peer);
        match forward(permit, Some(&peer), self.shared, renewal, || Ok(None), work).await {
            Ok(end) => {
                count.sent += end.sent;
                count.received += end.received;
                self.shared.metrics.http_requests(Direction::Outbound, end.requests);
                let told = exchange.told.load(Ordering::Relaxed);
                if let Some(finding) = end.failure.filter(|_| !told) {
                    self.note(&finding);
                }
            }
            Err(code) => {
                self.cut(code);
                client.reset_on_close();
            }
        }
    }
}

/// What the connection in use rests on.
struct Link {
    generation: u64,
    leaf_sha256: [u8; 32],
    /// From then on the next request goes over a new connection.
    fresh_until: UnixTime,
}

impl Link {
    /// `before` is the one that this one replaces. A peer that shows the same certificate again has not
    /// got its next one yet; asking anew for each request would not help it.
    fn new(peer: &PeerIdentity, generation: u64, before: Option<&Link>) -> Self {
        let leaf_sha256 = peer.leaf().sha256;
        let same = before.is_some_and(|b| b.leaf_sha256 == leaf_sha256);
        let life = peer.not_after().since(peer.not_before());
        // A quarter of a short life; of a long one, more than an idle connection may last.
        let margin = if same { std::time::Duration::ZERO } else { (life / 4).min(IDLE * 2) };
        Self { generation, leaf_sha256, fresh_until: peer.not_after() - margin }
    }
}

struct HttpOutbound<'a> {
    connection: &'a Outbound<'a>,
    renewal: Renewal,
    /// The connection opened ahead of the first request, and what the latest one rests on.
    state: Mutex<(Option<PeerStream>, Link)>,
    /// Whether a connection could not be opened, which has been told then and ends this one.
    told: AtomicBool,
}

impl Exchange for HttpOutbound<'_> {
    type Upstream = PeerStream;

    async fn judge<'s>(&'s self, _: &RequestHead<'_>) -> Next<'s> {
        Next::Forward(None, None)
    }

    async fn connect(&self) -> Result<PeerStream, Finding> {
        let first = self.state.lock().unwrap_or_else(|e| e.into_inner()).0.take();
        if let Some(stream) = first {
            return Ok(stream);
        }
        // Opened anew: the peer proves itself and is decided upon again, and what comes out of that is
        // what the connection rests on from here.
        let Opened { stream, peer, permit, generation } = self
            .connection
            .open()
            .await
            .inspect_err(|_| self.told.store(true, Ordering::Relaxed))?;
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        state.1 = Link::new(&peer, generation, Some(&state.1));
        drop(state);
        self.renewal.put(permit, Peer::Spiffe(peer));
        Ok(stream)
    }

    fn is_stale(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let own = self.connection.shared.credentials.current();
        own.is_none_or(|c| c.store.generation() != state.1.generation)
            || current_time() >= state.1.fresh_until
    }

    fn explain(&self, refused: &HandshakeError) -> Finding {
        self.connection.explain(refused)
    }

    fn refused(&self, finding: &Finding) {
        self.connection.note(finding);
    }

    fn normalization(&self) -> Normalization {
        self.connection.shared.mesh.normalization
    }

    fn strips_identity(&self) -> bool {
        false
    }
}
