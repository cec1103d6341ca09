//! The node agent: proves the node to the server, workloads to itself, and hands identities out over the
//! SPIFFE Workload API and Envoy's SDS on one socket. What it holds is sealed on disk, so that a restart
//! while the server is away serves identities at once.

mod cache;
mod proxies;
mod runs;
mod selectors;
mod serve;
mod server;
mod services;
mod state;
mod sync;

pub use serve::{Agent, AgentOptions, RunningAgent};
