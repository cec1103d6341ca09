//! JWT-SVID and the JWKS form of bundles.
//!
//! Verification follows JWT-SVID: compact JWS only; header with nothing but `alg`, `kid`, `typ`; RS, ES
//! or PS 256/384/512; `sub` a SPIFFE ID; `aud` and `exp` present and checked; key from the bundle of the
//! trust domain that `sub` names.

mod jwks;
mod jwt;
mod request;

pub use jwks::{
    JwksError, bundle_from_jwks, bundle_to_jwks, jwt_bundle_from_jwks, jwt_keys_to_jwks,
};
pub use jwt::{JwtError, JwtSvid, LEEWAY, MAX_TOKEN, SigningRequest, validate};
pub use request::{KeySet, unverified_claims};
