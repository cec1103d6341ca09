//! Metrics, the handshake record, logs, and the endpoint that serves them.

mod admin;
mod logs;
mod memory;
mod metrics;
mod record;

pub use admin::{AdminServer, Health};
pub use logs::{LogFormat, init_logs};
pub use memory::{MEMORY_EVERY, MemoryWatch};
pub use metrics::{Direction, EngineResult, Metrics, Mode, Outcome, Security};
pub use record::{AccessLog, ConnectionId, HandshakeRecord};
