//! The proxy as its peers see it: real sockets, real TLS, certificates by story.

#![allow(clippy::unwrap_used)]
#![allow(unreachable_pub, missing_docs)]

mod bad_certificates;
mod engines;
mod http;
mod issuers;
mod kit;
mod legacy;
mod modes;
mod tcp;
