//! Sealing of data at rest: AES-256-GCM under a key that never leaves the node.
//!
//! What it protects: a copy of the sealed file alone (backup, stolen volume snapshot without the seal
//! key). What it does not: someone who can read both files as the same user.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::file::{KeyFileError, read_bounded, write_atomic};

/// A sealing key of one data directory.
pub struct SealKey(LessSafeKey);

/// Why sealed data cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The key file does not hold 32 bytes.
    #[error("seal key `{0}` is not 32 bytes long")]
    BadKey(String),
    /// Sealed under another key, for another purpose, or altered.
    #[error("sealed data cannot be opened: it was sealed on another node or altered")]
    Tampered,
}

impl SealKey {
    /// Reads the 32-byte key at `path`, or makes one there (mode 0600).
    pub fn load_or_create(path: &Path) -> Result<Self, SealError> {
        let bytes = match read_bounded(path, 64) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(e) if e.is_not_found() => {
                let fresh = Zeroizing::new(crate::random::<32>().to_vec());
                write_atomic(path, &fresh, 0o600)?;
                fresh
            }
            Err(e) => return Err(e.into()),
        };
        Self::from_bytes(&bytes).ok_or_else(|| SealError::BadKey(path.display().to_string()))
    }

    /// Takes a 32-byte key.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).ok()?;
        Some(Self(LessSafeKey::new(key)))
    }

    /// Seals `plain` for one `purpose`; opened only for the same purpose.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce = crate::random::<NONCE_LEN>();
        let mut body = plain.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(purpose.as_bytes()),
                &mut body,
            )
            .map_err(|_| SealError::Tampered)?;
        let mut out = nonce.to_vec();
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// Opens what [`SealKey::seal`] made.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Tampered)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Tampered)?;
        let mut body = Zeroizing::new(body.to_vec());
        let len = self
            .0
            .open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut body)
            .map_err(|_| SealError::Tampered)?
            .len();
        body.truncate(len);
        Ok(body)
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_with_the_same_key_and_purpose() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        let key = SealKey::load_or_create(&path).unwrap();
        let sealed = key.seal("cache", b"svid").unwrap();
        assert!(!sealed.windows(4).any(|w| w == b"svid"));
        let again = SealKey::load_or_create(&path).unwrap();
        assert_eq!(&**again.open("cache", &sealed).unwrap(), b"svid");
        assert!(again.open("other", &sealed).is_err());
        assert!(SealKey::from_bytes(&[7; 32]).unwrap().open("cache", &sealed).is_err());
        let mut altered = sealed.clone();
        altered[14] ^= 1;
        assert!(again.open("cache", &altered).is_err());
        assert!(again.open("cache", b"short").is_err());
    }
}
