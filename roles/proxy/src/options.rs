//! How a proxy runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::edges::EdgeLog;
use countersign_identity::SpiffeId;
use countersign_issuers::IssuerOptions;
use countersign_policy::{AllowList, Labels, Mesh, Mode, Provider};
use countersign_x509::LegacyName;

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 if the first bytes look like it, bytes otherwise. Does not stall protocols in which the
    /// server speaks first.
    #[default]
    Auto,
    /// Bytes.
    Tcp,
    /// HTTP/1.1.
    Http,
}

/// How peers of an inbound port must come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMode {
    /// As given, whatever policies say.
    Fixed(Mode),
    /// As PeerAuthentication says; STRICT where it says nothing.
    FromPolicy,
}

/// A port that peers reach.
#[derive(Clone, Debug)]
pub struct InboundOptions {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the workload listens, plaintext.
    pub forward: String,
    /// STRICT or PERMISSIVE.
    pub mode: PeerMode,
    /// If given, only these identities may call.
    pub allow: Option<Arc<AllowList>>,
    /// What is spoken.
    pub protocol: Protocol,
}

/// A port through which the workload reaches a peer.
#[derive(Clone, Debug)]
pub struct OutboundOptions {
    /// Where to listen, plaintext; should be loopback.
    pub listen: SocketAddr,
    /// Where the peer listens, mTLS.
    pub upstream: String,
    /// Who the peer must be.
    pub peer_ids: Vec<SpiffeId>,
    /// What is spoken.
    pub protocol: Protocol,
}

/// One listener.
#[derive(Clone, Debug)]
pub enum ListenerOptions {
    /// From peers to the workload.
    Inbound(InboundOptions),
    /// From the workload to a peer.
    Outbound(OutboundOptions),
}

impl ListenerOptions {
    /// Where it listens.
    pub fn listen(&self) -> SocketAddr {
        match self {
            ListenerOptions::Inbound(o) => o.listen,
            ListenerOptions::Outbound(o) => o.listen,
        }
    }
}

/// Where the proxy's own identity comes from.
#[derive(Clone, Debug)]
pub enum IdentitySource {
    /// A SPIFFE Workload API: ours or SPIRE's.
    WorkloadApi {
        /// Its socket.
        socket: PathBuf,
        /// Which identity to take if there are several; the first otherwise.
        id: Option<SpiffeId>,
        /// Whether the socket is a Countersign agent's, which also tells the policies.
        with_policies: bool,
    },
    /// PEM files, watched for change.
    Files {
        /// Chain, leaf first.
        cert: PathBuf,
        /// PKCS#8 key, mode 0600.
        key: PathBuf,
        /// Roots of the certificate's own trust domain.
        bundle: PathBuf,
    },
}

/// Clients that may come without a SPIFFE ID. Their CA vouches for them, and for nobody else.
#[derive(Clone, Debug)]
pub struct LegacyOptions {
    /// The roots of their CA in PEM, watched for change.
    pub roots: PathBuf,
    /// Who they are.
    pub allowed: Vec<LegacyName>,
}

/// A proxy.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// Who it is.
    pub identity: IdentitySource,
    /// What it listens on.
    pub listeners: Vec<ListenerOptions>,
    /// Policy documents given directly, in YAML with their origin; added to the agent's.
    pub policies: Vec<(String, String)>,
    /// Files of such documents, watched for change.
    pub policy_files: Vec<PathBuf>,
    /// The workload's labels, for selectors; `None` if not known.
    pub labels: Option<Labels>,
    /// How policies are to be understood.
    pub mesh: Mesh,
    /// The engines that CUSTOM policies may name.
    pub providers: Vec<Provider>,
    /// Clients that may come without a SPIFFE ID.
    pub legacy: Option<LegacyOptions>,
    /// Which token issuers may be asked for their keys.
    pub issuers: IssuerOptions,
    /// Where distinct calls that were allowed are written, if anywhere.
    pub edges: Option<EdgeLog>,
    /// Worker threads.
    pub threads: usize,
    /// Also accept TLS 1.2.
    pub tls12: bool,
    /// A handshake may take this long.
    pub handshake_timeout: Duration,
    /// Connections under way may take this long to finish when stopping.
    pub drain_timeout: Duration,
    /// Connections at once, all listeners together.
    pub max_connections: usize,
}

impl ProxyOptions {
    /// Defaults: one thread, TLS 1.3 only, 10 s handshakes, 10 s drain, 100,000 connections.
    pub fn new(identity: IdentitySource, listeners: Vec<ListenerOptions>) -> Self {
        Self {
            identity,
            listeners,
            policies: Vec::new(),
            policy_files: Vec::new(),
            labels: None,
            mesh: Mesh::default(),
            providers: Vec::new(),
            legacy: None,
            issuers: IssuerOptions::default(),
            edges: None,
            threads: 1,
            tls12: false,
            handshake_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
            max_connections: 100_000,
        }
    }
}
