//! The mTLS proxy.
//!
//! Each worker is one thread with its own runtime and listeners. A connection goes through a chain of
//! types that cannot be shortcut: a verified [`PeerIdentity`](countersign_x509::PeerIdentity) (or an explicit
//! absence) makes a [`Decision`](countersign_policy::Decision), that a [`Permit`](countersign_policy::Permit),
//! and only with a permit are bytes forwarded.

mod edges;
mod forward;
mod http1;
mod identity;
mod inbound;
mod jwt_bundles;
mod legacy;
mod options;
mod outbound;
mod policies;
mod run;
mod shared;
mod stream;

pub use edges::EdgeLog;
pub use options::{
    IdentitySource, InboundOptions, LegacyOptions, ListenerOptions, OutboundOptions, PeerMode,
    Protocol, ProxyOptions,
};
pub use run::{Proxy, RunningProxy};
