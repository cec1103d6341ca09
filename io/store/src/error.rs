//! Why the store refused.

use countersign_findings::{Code, Finding};

/// A failure of the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The file belongs to another trust domain.
    #[error("`{path}` holds trust domain `{presented}`, not `{expected}`")]
    OtherTrustDomain {
        /// The database file.
        path: String,
        /// The one asked for.
        expected: String,
        /// The one in the file.
        presented: String,
    },
    /// The file was written by a newer version.
    #[error("`{path}` has schema {found}; this version knows up to {known}")]
    SchemaTooNew {
        /// The database file.
        path: String,
        /// Its schema number.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The thing to change is not there.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The database failed: disk full, read-only, locked, corrupt.
    #[error("database: {0}")]
    Failed(String),
    /// A row does not hold what it should.
    #[error("database row cannot be read: {0}")]
    Corrupt(String),
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// The catalogue's view.
    pub fn finding(&self) -> Finding {
        match self {
            StoreError::OtherTrustDomain { expected, presented, .. } => {
                Finding::new(Code::OtherTrustDomain, self.to_string())
                    .expected(expected.clone())
                    .presented(presented.clone())
            }
            StoreError::SchemaTooNew { .. } => Finding::new(Code::SchemaTooNew, self.to_string()),
            StoreError::NotFound(_) => Finding::new(Code::EntryNotFound, self.to_string()),
            _ => Finding::new(Code::StorageFailed, self.to_string()),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        StoreError::Failed(e.to_string())
    }
}
