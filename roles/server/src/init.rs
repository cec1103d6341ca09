//! Making a data directory: root, intermediate, and the marker that it is complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{TrustDomain, UnixTime};
use countersign_keys::{KeyFileError, SealKey, create_dir_private, write_atomic};
use countersign_store::{SqliteStore, Store};

use crate::authority;

/// Where things are in a data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// A data directory at `path`; nothing is touched.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Written last by [`initialise`]; holds the trust domain's name.
    pub fn marker(&self) -> PathBuf {
        self.0.join("trust-domain")
    }

    /// The server's private directory.
    pub fn server(&self) -> PathBuf {
        self.0.join("server")
    }

    /// The root's private key. May be moved elsewhere while it is not needed.
    pub fn root_key(&self) -> PathBuf {
        self.server().join("root.key")
    }

    /// The trust bundle in PEM, for people and other tools.
    pub fn bundle(&self) -> PathBuf {
        self.0.join("bundle.pem")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.server().join("server.db")
    }

    pub(crate) fn seal_key(&self) -> PathBuf {
        self.server().join("seal.key")
    }

    /// The operators' socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.server().join("admin.sock")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.server().join("lock")
    }

    /// The trust domain this directory was initialised for.
    pub fn trust_domain(&self) -> Result<TrustDomain, Finding> {
        let path = self.marker();
        let text = fs::read_to_string(&path).map_err(|e| {
            if e.kind() == std::io::ErrorKind::NotFound {
                Finding::new(
                    Code::NotInitialised,
                    format!("`{}` is not a data directory", self.0.display()),
                )
            } else {
                Finding::new(Code::FileUnreadable, format!("cannot read `{}`: {e}", path.display()))
            }
        })?;
        TrustDomain::new(text.trim()).map_err(|e| {
            Finding::new(Code::InvalidValue, e.to_string()).at(path.display().to_string())
        })
    }
}

/// Choices at initialisation.
#[derive(Clone, Copy, Debug)]
pub struct InitOptions {
    /// Life of the root.
    pub root_ttl: Duration,
    /// Life of the intermediate.
    pub intermediate_ttl: Duration,
}

impl Default for InitOptions {
    fn default() -> Self {
        use countersign_x509::profile::Profile;
        Self {
            root_ttl: Duration::from_secs(Profile::Root.default_ttl_secs()),
            intermediate_ttl: Duration::from_secs(Profile::Intermediate.default_ttl_secs()),
        }
    }
}

/// What [`initialise`] made.
#[derive(Clone, Debug)]
pub struct Initialised {
    /// SHA-256 of the root certificate, hexadecimal.
    pub root_fingerprint: String,
    /// When the root ends.
    pub root_not_after: UnixTime,
    /// When the intermediate ends.
    pub intermediate_not_after: UnixTime,
}

/// Makes root and intermediate for `trust_domain` in `dir`. A directory that is already initialised is
/// left untouched and reported.
pub async fn initialise(
    dir: &DataDir,
    trust_domain: &TrustDomain,
    options: InitOptions,
    now: UnixTime,
) -> Result<Initialised, Finding> {
    match dir.trust_domain() {
        Ok(there) if there == *trust_domain => {
            return Err(Finding::new(
                Code::AlreadyInitialised,
                format!("`{}` is already initialised for `{there}`", dir.path().display()),
            ));
        }
        Ok(there) => {
            return Err(Finding::new(
                Code::OtherTrustDomain,
                format!("`{}` belongs to trust domain `{there}`", dir.path().display()),
            )
            .expected(trust_domain.to_string())
            .presented(there.to_string()));
        }
        Err(e) if e.code == Code::NotInitialised => {}
        Err(e) => return Err(e),
    }
    let file = |e: KeyFileError| e.finding();
    fs::create_dir_all(dir.path()).map_err(|e| {
        Finding::new(Code::StorageFailed, format!("cannot create `{}`: {e}", dir.path().display()))
    })?;
    create_dir_private(&dir.server()).map_err(file)?;
    let seal = SealKey::load_or_create(&dir.seal_key())
        .map_err(|e| Finding::new(Code::StorageFailed, e.to_string()))?;
    let store = SqliteStore::open(&dir.database(), trust_domain).map_err(|e| e.finding())?;
    let made = authority::bootstrap(trust_domain, options, &seal, now)?;
    write_atomic(&dir.root_key(), made.root_key_pem.as_bytes(), 0o600).map_err(file)?;
    store.put_authorities(made.records, 1).await.map_err(|e| e.finding())?;
    write_atomic(&dir.bundle(), made.root_pem.as_bytes(), 0o644).map_err(file)?;
    write_atomic(&dir.marker(), format!("{trust_domain}\n").as_bytes(), 0o644).map_err(file)?;
    Ok(made.summary)
}
