//! What to probe, with what, and within which bounds.

use std::time::Duration;

use countersign_findings::Finding;
use countersign_identity::{PrivateKeyDer, SpiffeId};
use countersign_tls::probe::ProbeIdentity;
use countersign_x509::RevocationList;

/// What is spoken over TLS, and how TLS begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP, by what ALPN chooses; bytes if no HTTP comes back.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC: asks `grpc.health.v1.Health/Check`.
    Grpc,
    /// Bytes.
    Tcp,
    /// PostgreSQL, after its SSLRequest.
    Postgres,
    /// MySQL, after its SSLRequest.
    Mysql,
    /// SMTP, after STARTTLS.
    Smtp,
}

impl Protocol {
    /// What ALPN offers.
    pub(crate) fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Protocol::Auto => &[b"h2", b"http/1.1"],
            Protocol::Http => &[b"http/1.1"],
            Protocol::Http2 | Protocol::Grpc => &[b"h2"],
            Protocol::Postgres => &[b"postgresql"],
            Protocol::Tcp | Protocol::Mysql | Protocol::Smtp => &[],
        }
    }

    pub(crate) fn is_http(self) -> bool {
        matches!(self, Protocol::Auto | Protocol::Http | Protocol::Http2)
    }
}

/// A CA with its key, to make certificates with that the other end trusts.
#[derive(Clone, Debug)]
pub struct CaFiles {
    /// DER, the issuing one first.
    pub certificates: Vec<Vec<u8>>,
    /// PKCS#8.
    pub key: PrivateKeyDer,
}

/// Revoking a certificate while a session and connections of it are alive.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// The list in force, whose entries are taken over.
    pub extends: Option<RevocationList>,
    /// How long the server may take to refuse the certificate.
    pub within: Duration,
}

/// Brings a revocation list to the server.
pub trait Publisher {
    /// `list` is DER; `serial`, hexadecimal, is the certificate that it is about. Returns when the server has it.
    fn publish(&mut self, list: &[u8], serial: &str) -> impl Future<Output = Result<(), Finding>>;
}

/// How to probe a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// HOST:PORT.
    pub target: String,
    /// The name sent as SNI, and looked for in the certificate; the target's host if `None`.
    pub server_name: Option<String>,
    /// What is spoken.
    pub protocol: Protocol,
    /// The CA that the server trusts for clients.
    pub ca: Option<CaFiles>,
    /// The identity that may call.
    pub id: Option<SpiffeId>,
    /// A client certificate that is right.
    pub right: Option<ProbeIdentity>,
    /// A client certificate of the right CA, of somebody who may not call.
    pub other: Option<ProbeIdentity>,
    /// A client certificate that has been revoked.
    pub revoked: Option<ProbeIdentity>,
    /// Whether, and how, a certificate made here is revoked while it is in use.
    pub revocation: Option<Revocation>,
    /// Roots (DER) of the server's certificate.
    pub roots: Vec<Vec<u8>>,
    /// Who the server must be.
    pub server_id: Option<SpiffeId>,
    /// What HTTP requests ask for.
    pub path: String,
    /// Other ports, where the same must not be had for less.
    pub also: Vec<String>,
    /// For each connection and each answer.
    pub timeout: Duration,
    /// At most.
    pub max_connections: usize,
    /// What cannot be shown to be refused is wrong too.
    pub strict: bool,
}

impl ServerOptions {
    /// Everything else as most want it.
    pub fn new(target: String) -> Self {
        Self {
            target,
            server_name: None,
            protocol: Protocol::Auto,
            ca: None,
            id: None,
            right: None,
            other: None,
            revoked: None,
            revocation: None,
            roots: Vec::new(),
            server_id: None,
            path: "/".into(),
            also: Vec::new(),
            timeout: Duration::from_secs(5),
            max_connections: 100,
            strict: false,
        }
    }

    /// The target without its port and without brackets.
    pub(crate) fn host(&self) -> &str {
        let host = self.target.rsplit_once(':').map_or(self.target.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn name(&self) -> &str {
        self.server_name.as_deref().unwrap_or_else(|| self.host())
    }
}
