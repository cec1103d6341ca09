//! The certificate authority and identity server.
//!
//! [`initialise`] makes a data directory; [`Server::start`] serves it: SPIRE's server API on TCP for
//! agents, everything on a Unix socket for operators. Registry and authorities live in memory and are
//! written through to the store before a change is visible.

mod authority;
mod caller;
mod clocks;
mod init;
mod registry;
mod serve;
mod services;
mod shared;

pub use init::{DataDir, InitOptions, Initialised, initialise};
pub use serve::{RunningServer, Server, ServerOptions};
