//! The command as users run it: separate processes, real sockets, kills and restarts.

#![allow(clippy::unwrap_used)]
#![allow(unreachable_pub, missing_docs)]

mod check;
mod kit;
mod mesh;
mod outages;
mod symptoms;
mod workload_api;
