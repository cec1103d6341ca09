//! The CA hierarchy: root → intermediate → signing CA → leaves, and the JWT key. Everything rolls over
//! without a restart; what replaces an authority is published before it signs.

mod issue;
mod make;
mod manager;

pub(crate) use issue::{IssueRequest, Issued, IssuedJwt};
pub(crate) use make::bootstrap;
pub(crate) use manager::{AuthorityManager, Lives};
