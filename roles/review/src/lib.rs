//! Static review: finds flaws of mTLS and service identity in source, configuration and key material.
//!
//! A rule is one file in `rules/`: shapes are regular expressions over a file from which comments, and what
//! strings hold, have been taken out; conditions look at parts that the syntax tree marks out (the call, the
//! literal, the function, the body of a callback), so that a value made safe two lines later is safe.

mod archive;
mod comments;
mod engine;
mod gate;
mod inner;
mod issue;
mod kind;
mod layout;
mod literals;
mod material;
mod meaning;
mod paths;
mod plain;
mod project;
mod review;
mod role;
mod rule;
mod scope;
mod source;
mod suppress;
mod syntax;
mod walk;

pub use issue::{Allowed, Edit, Issue, Related};
pub use kind::Kind;
pub use review::{Options, Report, Reviewer, Unreadable, apply_edits, review};
pub use rule::{Catalogue, Class, Confidence, Example, Rule};
pub use source::Context;
