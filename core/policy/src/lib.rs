//! Authorization for service identities: documents in the YAML that users already have ([`parse`]),
//! compiled for one workload ([`PolicySet`]), decided per connection or request ([`Decision`]).
//!
//! Semantics are Istio's sidecar's, stricter where Istio fails open: what is unknown or unsupported is
//! refused when it is loaded, never skipped; namespaces and service accounts are compared as parsed
//! segments within the local trust domain; a pattern never silently crosses a path boundary in favour of
//! the caller.
//!
//! The witnesses: a [`Decision`] needs a proven identity or an explicit [`Source::Unauthenticated`]; a
//! [`Permit`] comes only out of a decision; the proxy forwards only with a permit.

mod compiled;
mod decision;
mod document;
mod modes;
mod path;
mod pattern;

pub use compiled::{AllowList, Authorizer, PolicySet, Workload};
pub use decision::{Decision, Denial, HttpRequest, NoIdentity, Permit, Request, Source};
pub use document::{
    Action, AuthorizationPolicy, Document, Labels, MAX_INPUT, PeerAuthentication, StaticEntry,
    parse, parse_each,
};
pub use modes::{Mode, Until};
pub use path::{PathError, normalize};
