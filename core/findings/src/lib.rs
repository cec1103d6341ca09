//! What can go wrong, as data: one catalogue of codes used by every role, log, metric, tool and page
//! of documentation, and the [`Finding`] that carries one occurrence.

mod catalogue;
mod finding;

pub use catalogue::{Code, Severity};
pub use finding::Finding;
