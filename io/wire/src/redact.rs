//! `Debug` for messages that carry keys or tokens: they print their names only.

use std::fmt;

use crate::proto::envoy::config::core::v3 as envoy_core;
use crate::proto::envoy::service::auth::v3 as envoy_auth;
use crate::proto::{spiffe, spire::api::types};

macro_rules! redacted {
    ($($ty:ty => $name:literal;)*) => {$(
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!($name, "(redacted)"))
            }
        }
    )*};
}

redacted! {
    spiffe::X509svid => "X509SVID";
    spiffe::Jwtsvid => "JWTSVID";
    spiffe::ValidateJwtsvidRequest => "ValidateJWTSVIDRequest";
    types::Jwtsvid => "JWTSVID";
    types::JoinToken => "JoinToken";
    types::AttestationData => "AttestationData";
    envoy_core::DataSource => "DataSource";
    envoy_core::data_source::Specifier => "DataSource.specifier";
    envoy_core::HeaderValue => "HeaderValue";
    envoy_auth::attribute_context::HttpRequest => "HttpRequest";
}
