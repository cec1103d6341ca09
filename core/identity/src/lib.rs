//! Identities as values: a [`TrustDomain`], [`SpiffeId`], [`Selector`] or [`Bundle`] that exists is
//! well formed. Everything else in the workspace relies on that and never re-checks a string.

mod bundle;
mod dns_name;
mod entry;
mod selector;
mod spiffe_id;
mod svid;
mod time;
mod trust_domain;

pub use bundle::{Bundle, BundleError, BundleSet, JwtAuthority, X509Authority};
pub use dns_name::{DnsName, DnsNameError};
pub use entry::{Entry, EntryError};
pub use selector::{Selector, SelectorError, SelectorSet};
pub use spiffe_id::{IdError, SpiffeId};
pub use svid::{PrivateKeyDer, X509Context, X509Svid};
pub use time::UnixTime;
pub use trust_domain::{TrustDomain, TrustDomainError};
