//! Finds out what a live endpoint really accepts, with certificates made on the spot: of a server, which clients it
//! lets in; of a client, which servers it believes. Bounded in connections and time, sends no secrets, changes
//! nothing, and needs no more than a few dozen connections.

mod ask;
mod client;
mod dial;
mod forge;
mod hello;
mod http;
mod options;
mod report;
mod server;

pub use client::{ClientOptions, ClientProbe, Driver, Ended};
pub use options::{CaFiles, Protocol, Publisher, Revocation, ServerOptions};
pub use report::{Case, Found, Outcome, Report};
pub use server::probe_server;
