//! What can go wrong, as data: one catalogue of codes used by every role, log, metric, tool and page
//! of documentation, and the [`Finding`] that carries one occurrence.

mod catalogue;
mod finding;
mod foreign;

pub use catalogue::{Code, Severity};
pub use finding::{Finding, with_causes};
pub use foreign::{FOREIGN, Foreign, explain};
