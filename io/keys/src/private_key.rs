//! Key pairs in memory.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self as sig, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use countersign_identity::PrivateKeyDer;
use countersign_x509::profile::SignatureAlgorithm;

/// Kinds of keys that can be made and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum KeyAlgorithm {
    /// ECDSA P-256, the default.
    #[default]
    EcdsaP256,
    /// ECDSA P-384.
    EcdsaP384,
    /// Ed25519.
    Ed25519,
    /// RSA, 2048 bits.
    Rsa2048,
    /// RSA, 4096 bits.
    Rsa4096,
}

/// Why a key cannot be made or used. Never carries key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not PKCS#8 of a supported kind.
    #[error("not an unencrypted PKCS#8 key of a supported kind (ECDSA P-256/P-384, Ed25519, RSA)")]
    Unsupported,
    /// The library failed.
    #[error("cryptographic operation failed")]
    Crypto,
}

/// Anything that can sign for an authority: a key in memory, a sealed file, a token, a key service.
pub trait Signer: Send + Sync {
    /// Signature algorithm of certificates signed with it.
    fn algorithm(&self) -> SignatureAlgorithm;
    /// Public key, SubjectPublicKeyInfo DER.
    fn public_key_spki(&self) -> &[u8];
    /// Signs `message`.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError>;
}

enum Pair {
    Ecdsa(EcdsaKeyPair, SignatureAlgorithm),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
}

/// A private key in memory, with its PKCS#8 form for handing to workloads.
pub struct PrivateKey {
    pair: Pair,
    pkcs8: PrivateKeyDer,
    spki: Vec<u8>,
}

impl PrivateKey {
    /// Makes a new key.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, KeyError> {
        let rng = SystemRandom::new();
        let crypto = |_| KeyError::Crypto;
        let pkcs8 = match algorithm {
            KeyAlgorithm::EcdsaP256 => {
                EcdsaKeyPair::generate_pkcs8(&sig::ECDSA_P256_SHA256_ASN1_SIGNING, &rng)
                    .map_err(crypto)?
                    .as_ref()
                    .to_vec()
            }
            KeyAlgorithm::EcdsaP384 => {
                EcdsaKeyPair::generate_pkcs8(&sig::ECDSA_P384_SHA384_ASN1_SIGNING, &rng)
                    .map_err(crypto)?
                    .as_ref()
                    .to_vec()
            }
            KeyAlgorithm::Ed25519 => {
                Ed25519KeyPair::generate_pkcs8v1(&rng).map_err(crypto)?.as_ref().to_vec()
            }
            KeyAlgorithm::Rsa2048 | KeyAlgorithm::Rsa4096 => {
                let size = match algorithm {
                    KeyAlgorithm::Rsa4096 => KeySize::Rsa4096,
                    _ => KeySize::Rsa2048,
                };
                let pair = RsaKeyPair::generate(size).map_err(crypto)?;
                let der: aws_lc_rs::encoding::Pkcs8V1Der<'static> =
                    pair.as_der().map_err(crypto)?;
                der.as_ref().to_vec()
            }
        };
        Self::from_pkcs8(PrivateKeyDer::new(pkcs8))
    }

    /// Reads an unencrypted PKCS#8 key.
    pub fn from_pkcs8(pkcs8: PrivateKeyDer) -> Result<Self, KeyError> {
        let der = pkcs8.expose_pkcs8();
        let pair = if let Ok(p) =
            EcdsaKeyPair::from_pkcs8(&sig::ECDSA_P256_SHA256_ASN1_SIGNING, der)
        {
            Pair::Ecdsa(p, SignatureAlgorithm::EcdsaP256Sha256)
        } else if let Ok(p) = EcdsaKeyPair::from_pkcs8(&sig::ECDSA_P384_SHA384_ASN1_SIGNING, der) {
            Pair::Ecdsa(p, SignatureAlgorithm::EcdsaP384Sha384)
        } else if let Ok(p) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            Pair::Ed25519(p)
        } else if let Ok(p) = RsaKeyPair::from_pkcs8(der) {
            Pair::Rsa(Box::new(p))
        } else {
            return Err(KeyError::Unsupported);
        };
        let crypto = |_| KeyError::Crypto;
        let spki: PublicKeyX509Der<'static> = match &pair {
            Pair::Ecdsa(p, _) => p.public_key().as_der().map_err(crypto)?,
            Pair::Ed25519(p) => p.public_key().as_der().map_err(crypto)?,
            Pair::Rsa(p) => p.public_key().as_der().map_err(crypto)?,
        };
        Ok(Self { spki: spki.as_ref().to_vec(), pair, pkcs8 })
    }

    /// The key as PKCS#8.
    pub fn pkcs8(&self) -> &PrivateKeyDer {
        &self.pkcs8
    }

    /// Signs for a JWS: raw `r || s` for ECDSA instead of the DER of certificates. `None` for key kinds
    /// that JWT-SVID §2.1 does not list.
    pub fn sign_jws(&self, message: &[u8]) -> Option<Result<Vec<u8>, KeyError>> {
        let rng = SystemRandom::new();
        let der = self.pkcs8.expose_pkcs8();
        match &self.pair {
            Pair::Ecdsa(_, algorithm) => {
                let kind = match algorithm {
                    SignatureAlgorithm::EcdsaP384Sha384 => &sig::ECDSA_P384_SHA384_FIXED_SIGNING,
                    _ => &sig::ECDSA_P256_SHA256_FIXED_SIGNING,
                };
                Some(
                    EcdsaKeyPair::from_pkcs8(kind, der)
                        .map_err(|_| KeyError::Unsupported)
                        .and_then(|p| p.sign(&rng, message).map_err(|_| KeyError::Crypto))
                        .map(|s| s.as_ref().to_vec()),
                )
            }
            Pair::Rsa(_) => Some(self.sign(message)),
            Pair::Ed25519(_) => None,
        }
    }
}

impl Signer for PrivateKey {
    fn algorithm(&self) -> SignatureAlgorithm {
        match &self.pair {
            Pair::Ecdsa(_, algorithm) => *algorithm,
            Pair::Ed25519(_) => SignatureAlgorithm::Ed25519,
            Pair::Rsa(_) => SignatureAlgorithm::RsaSha256,
        }
    }

    fn public_key_spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let rng = SystemRandom::new();
        match &self.pair {
            Pair::Ecdsa(p, _) => {
                p.sign(&rng, message).map(|s| s.as_ref().to_vec()).map_err(|_| KeyError::Crypto)
            }
            Pair::Ed25519(p) => Ok(p.sign(message).as_ref().to_vec()),
            Pair::Rsa(p) => {
                let mut out = vec![0; p.public_modulus_len()];
                p.sign(&sig::RSA_PKCS1_SHA256, &rng, message, &mut out)
                    .map_err(|_| KeyError::Crypto)?;
                Ok(out)
            }
        }
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey({:?})", self.algorithm())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_signs_requests_that_verify() {
        for algorithm in [
            KeyAlgorithm::EcdsaP256,
            KeyAlgorithm::EcdsaP384,
            KeyAlgorithm::Ed25519,
            KeyAlgorithm::Rsa2048,
        ] {
            let key = PrivateKey::generate(algorithm).unwrap();
            let csr = countersign_x509::csr::create(key.public_key_spki(), key.algorithm(), |m| {
                key.sign(m)
            })
            .unwrap();
            assert_eq!(countersign_x509::csr::verify(&csr).unwrap(), key.public_key_spki());
            let mut altered = csr.clone();
            *altered.last_mut().unwrap() ^= 1;
            assert!(countersign_x509::csr::verify(&altered).is_err());
            assert!(
                !format!("{key:?}")
                    .contains(&countersign_x509::hex(&key.pkcs8().expose_pkcs8()[..4]))
            );
        }
    }

    #[test]
    fn garbage_is_no_key() {
        assert_eq!(
            PrivateKey::from_pkcs8(PrivateKeyDer::new(vec![1, 2, 3])).unwrap_err(),
            KeyError::Unsupported
        );
    }
}
