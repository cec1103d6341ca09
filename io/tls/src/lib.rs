//! TLS with SPIFFE identities. The only crate that names rustls.
//!
//! [`Credentials`] is one immutable generation of (certificate, key, trust) with its TLS configurations
//! built once; [`LiveCredentials`] swaps generations under running listeners. A handshake ends in a
//! [`Session`] with the peer's [`PeerIdentity`](countersign_x509::PeerIdentity), or in a
//! [`HandshakeError`] that knows its code.

mod credentials;
mod error;
mod handshake;
pub mod probe;
mod verifier;
mod web;

pub use credentials::{ClientSide, CredentialError, Credentials, LiveCredentials, TlsOptions};
pub use error::HandshakeError;
pub use handshake::{
    ClientStream, HandshakeInfo, ServerStream, Session, accept, accept_optional, connect,
    connect_bootstrap, current_time, current_time_ms, presented_chain,
};
pub use verifier::PeerMatcher;
pub use web::WebClient;
