//! Private keys: generation, signing behind the [`Signer`] trait, key files with guarded permissions,
//! and sealing of data at rest. Randomness for the whole program comes from here.

mod file;
mod private_key;
mod seal;

pub use file::{KeyFileError, create_dir_private, read_bounded, read_private_key, write_atomic};
pub use private_key::{KeyAlgorithm, KeyError, PrivateKey, Signer};
pub use seal::{SealError, SealKey};

/// Fills an array with bytes from the operating system's generator.
///
/// # Panics
/// If the operating system has no randomness to give; nothing safe can be done then.
#[allow(clippy::expect_used)]
pub fn random<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    aws_lc_rs::rand::fill(&mut out).expect("the operating system provides randomness");
    out
}

/// A random token of `N` bytes, lower-case hexadecimal.
pub fn random_hex<const N: usize>() -> String {
    countersign_x509::hex(&random::<N>())
}
