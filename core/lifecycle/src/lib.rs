//! When to renew, prepare, activate and forget: decisions on a passed-in clock, no IO.

mod authority;
mod memory;
mod renewal;

pub use authority::{Action, AuthorityState, AuthorityTimeline, Policy as AuthorityPolicy};
pub use memory::{Growth, MemoryTrend};
pub use renewal::{Backoff, renewal_time};
