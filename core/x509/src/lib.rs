//! X.509 for SPIFFE: certificate profiles and their encoding ([`profile`]), requests ([`csr`]), parsing
//! ([`CertInfo`]), PEM with places ([`pem`]), and chain validation that ends in the one type that proves
//! it ([`PeerIdentity`]).
//!
//! Path building, signatures, constraints and CRLs are `rustls-webpki`'s; the SPIFFE rules around them, the
//! caches, and telling causes apart are here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
pub use crls::Crls;
pub use rustls_pki_types::CertificateDer;

mod anchors;
mod attributes;
mod cert_info;
mod chain_error;
mod closes;
mod crls;
pub mod csr;
mod legacy;
mod peer;
pub mod pem;
pub mod profile;
mod refused;
mod revocations;
mod spiffe_rules;
mod verify;

pub use anchors::{AnchorError, TrustStore};
pub use cert_info::{CertInfo, ParseError};
pub use chain_error::{ChainCause, ChainError};
pub use closes::chain_closes;
pub use legacy::{LegacyName, LegacyPeer, LegacyTrust, Peer};
pub use peer::{PeerIdentity, PeerRole};
pub use refused::Presented;
pub use revocations::RevocationList;
pub use spiffe_rules::{spiffe_authority, spiffe_leaf};
pub use verify::{SUPPORTED_SIGNATURES, verify_path};

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// SHA-256 of bytes that come in pieces.
pub struct Sha256(aws_lc_rs::digest::Context);

impl Sha256 {
    /// Of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256))
    }

    /// Adds the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest.
    pub fn finish(self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

/// A key's pin: SHA-256 of its SubjectPublicKeyInfo as `sha256:HEX` or `sha256/BASE64` (RFC 7469 section 2.4).
pub fn parse_pin(text: &str) -> Option<[u8; 32]> {
    if let Some(base64) = text.strip_prefix("sha256/") {
        return STANDARD.decode(base64).ok()?.try_into().ok();
    }
    let digits = text.strip_prefix("sha256:").filter(|d| d.len() == 64 && d.is_ascii())?;
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let digit = |b: u8| (b as char).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(out)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
