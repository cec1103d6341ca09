//! Answers Envoy's external authorization (`envoy.service.auth.v3.Authorization/Check`) by the same policies,
//! and with the same reasons, as the proxy.
//!
//! What Envoy says about the caller is taken for true: it verified the certificate. With the certificate
//! itself (`include_peer_certificate`) more can be judged: several URI SANs, subject attributes, key pins.

mod answer;
mod question;
mod serve;

pub use serve::{Authz, AuthzOptions, Listen, RunningAuthz};
