//! Wire contracts: generated types and services ([`proto`]), their conversion to core types
//! ([`convert`]), serving and dialling ([`serve`], [`dial`]). The only crate that names tonic and prost.

pub mod convert;
pub mod dial;
mod hpack_filter;
pub mod join;
pub mod proto;
mod redact;
pub mod rpc;
pub mod serve;
pub mod status;
pub mod workload;

pub use hpack_filter::{AuthorityFilter, filter_for_fuzzing};
