//! Key files and atomic writes.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use countersign_findings::{Code, Finding};
use countersign_identity::PrivateKeyDer;
use countersign_x509::pem;

use crate::PrivateKey;

/// What is wrong with a file that holds, or should hold, a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read `{path}`: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write `{path}`: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Group or others may read it.
    #[error("private key `{path}` has mode {mode:04o}: others can read it", path = .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is larger than any such file should be.
    #[error("`{path}` has more than {limit} bytes", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// It is not PEM, or holds no usable private key.
    #[error("`{path}`: {detail}", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

impl KeyFileError {
    /// Whether the file simply is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, KeyFileError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The catalogue's view.
    pub fn finding(&self) -> Finding {
        let code = match self {
            KeyFileError::Read { .. } | KeyFileError::TooLarge { .. } => Code::FileUnreadable,
            KeyFileError::Write { .. } => Code::StorageFailed,
            KeyFileError::TooOpen { .. } => Code::KeyFileTooOpen,
            KeyFileError::Malformed { .. } => Code::PemMalformed,
        };
        let finding = Finding::new(code, self.to_string());
        match self {
            KeyFileError::TooOpen { path, mode } => finding
                .expected("mode 0600")
                .presented(format!("mode {mode:04o}"))
                .hint(format!("run `chmod 600 {}`", path.display())),
            KeyFileError::Write { path, source } if source.kind() == io::ErrorKind::NotFound => {
                let dir = path.parent().unwrap_or(path);
                finding.hint(format!("make the directory `{}` first", dir.display()))
            }
            _ => finding,
        }
    }
}

/// Reads at most `limit` bytes; a larger file is an error.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, KeyFileError> {
    let fail = |source| KeyFileError::Read { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(fail)?;
    let mut out = Vec::new();
    file.take(limit + 1).read_to_end(&mut out).map_err(fail)?;
    if out.len() as u64 > limit {
        return Err(KeyFileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(out)
}

/// Reads an unencrypted PKCS#8 private key in PEM. Refuses files that group or others can read.
pub fn read_private_key(path: &Path) -> Result<PrivateKey, KeyFileError> {
    let meta = fs::metadata(path)
        .map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::TooOpen { path: path.to_owned(), mode });
    }
    let malformed = |detail: String| KeyFileError::Malformed { path: path.to_owned(), detail };
    let text = zeroize::Zeroizing::new(read_bounded(path, 1 << 20)?);
    let blocks = pem::parse(&text).map_err(|e| malformed(e.to_string()))?;
    let block = blocks
        .into_iter()
        .find(|b| b.label.ends_with("PRIVATE KEY"))
        .ok_or_else(|| malformed("no `PRIVATE KEY` block found".into()))?;
    if block.label != "PRIVATE KEY" {
        return Err(malformed(format!(
            "line {}: `{}` is not unencrypted PKCS#8; convert it with `openssl pkcs8 -topk8 -nocrypt`",
            block.line, block.label
        )));
    }
    PrivateKey::from_pkcs8(PrivateKeyDer::new(block.der)).map_err(|e| malformed(e.to_string()))
}

/// Writes a file so that a reader or a crash sees the old contents or the new, never a part: a
/// temporary file in the same directory, synced, renamed over the target.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyFileError> {
    let fail = |source| KeyFileError::Write { path: path.to_owned(), source };
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let tmp = dir.join(format!(
        ".{}.{}",
        path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default(),
        crate::random_hex::<6>()
    ));
    let result = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&tmp, path)?;
        fs::File::open(dir)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    result.map_err(fail)
}

/// Creates a directory that only the owner may enter; missing parents are made as usual, because others
/// may have to pass through them.
pub fn create_dir_private(path: &Path) -> Result<(), KeyFileError> {
    let fail = |source| KeyFileError::Write { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(fail),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::KeyAlgorithm;

    #[test]
    fn group_readable_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let text = pem::encode("PRIVATE KEY", key.pkcs8().expose_pkcs8());
        write_atomic(&path, text.as_bytes(), 0o600).unwrap();
        assert!(read_private_key(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let err = read_private_key(&path).unwrap_err();
        assert_eq!(err.finding().code, Code::KeyFileTooOpen);
    }

    #[test]
    fn errors_name_file_and_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        assert!(read_private_key(&path).unwrap_err().is_not_found());
        write_atomic(&path, pem::encode("EC PRIVATE KEY", b"x").as_bytes(), 0o600).unwrap();
        let text = read_private_key(&path).unwrap_err().to_string();
        assert!(text.contains("line 1") && text.contains("pkcs8 -topk8"), "{text}");
        assert!(matches!(read_bounded(&path, 3), Err(KeyFileError::TooLarge { .. })));
    }
}
