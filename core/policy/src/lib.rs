//! Authorization for service identities: documents in the YAML that users already have ([`parse`]),
//! compiled for one workload ([`PolicySet`]), decided per connection or request ([`Decision`]).
//!
//! Semantics are Istio's sidecar's, stricter where Istio fails open: what is unknown or unsupported is
//! refused when it is loaded, never skipped; namespaces and service accounts are compared as parsed
//! segments within the local trust domain; a pattern never silently crosses a path boundary in favour of
//! the caller. [`Semantics::Istio`] gives Istio's own.
//!
//! The witnesses: a [`Decision`] needs a proven identity or an explicit [`Source::Unauthenticated`]; a
//! [`Permit`] comes only out of a decision; the proxy forwards only with a permit. Previews work on
//! [`Attributes`], which may be made up, and get a [`Verdict`], which permits nothing.

mod authorizer;
mod certificate;
mod decision;
mod document;
mod explain;
mod external;
mod fields;
mod identity;
mod index;
mod issuer_keys;
mod lint;
mod matcher;
mod modes;
mod path;
mod pattern;
mod remote;
mod request_auth;
mod rule;
mod set;
mod token;
mod workload;

pub use authorizer::{AllowList, Authorizer};
pub use certificate::CertificateFacts;
pub use decision::{
    Attributes, Caller, Decision, Denial, HttpRequest, NoIdentity, Permit, Request, RuleName,
    Source, Verdict,
};
pub use document::{
    Document, Engine, HttpCheck, Labels, MAX_INPUT, NamePattern, PeerAuthentication, Provider,
    StaticEntry, Target, parse, parse_each, parse_providers,
};
pub use explain::{Explanation, Outcome, Step};
pub use external::{Answer, Consultation, Edits, External, settable_header};
pub use fields::{is_kept_back, judged_fields};
pub use issuer_keys::{KeyLocation, KeySource, PublishedKeys, check_url};
pub use lint::lint;
pub use matcher::Semantics;
pub use modes::{Mode, Until};
pub use path::{Normalization, PathError, normalize, normalize_as};
pub use pattern::Cidr;
pub use remote::remote_ip;
pub use request_auth::{Authenticated, RequestAuthentication, TokenRefused, percent_decoded};
pub use rule::{Action, AuthorizationPolicy};
pub use set::PolicySet;
pub use token::Token;
pub use workload::{Mesh, Workload};
