//! One JSON line per connection attempt and end, written without ever blocking the data path.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{SystemTime, UNIX_EPOCH};

use countersign_findings::Code;
use serde::Serialize;

/// Names one connection in logs and in refusals: a random process part and a counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64, u64);

impl ConnectionId {
    /// A new id; `process` is random and fixed for the process' life.
    pub fn next(process: u64) -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(1);
        Self(process, COUNTER.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:x}", self.0 & 0xffff_ffff, self.1)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The record. Identities are filled in only if they were proven.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HandshakeRecord {
    /// RFC 3339, filled in when written.
    pub time: String,
    /// `handshake`, `request_denied`, `connection_closed`.
    pub event: &'static str,
    /// See [`ConnectionId`].
    pub connection_id: String,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// Source SPIFFE ID, or the address where none was proven.
    pub source_workload: String,
    /// Destination SPIFFE ID, or the address where none was proven.
    pub destination_workload: String,
    /// Proven identity of the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_identity: Option<String>,
    /// Proven identity of the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_identity: Option<String>,
    /// `success` or `failure`.
    pub result: &'static str,
    /// The code's slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<&'static str>,
    /// The code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// What happened, one line.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What would have been accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What was there instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presented: Option<String>,
    /// Which authorities were tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted: Option<String>,
    /// Negotiated TLS version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_version: String,
    /// Negotiated key exchange.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_exchange: String,
    /// Whether a session was resumed.
    pub resumed: bool,
    /// Milliseconds: of the handshake, or of the connection when it closed.
    pub duration_ms: f64,
    /// Bytes from client to server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Bytes from server to client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
}

/// Where records go. Bounded and lossy: when the writer cannot keep up, records are dropped and counted.
#[derive(Clone)]
pub struct AccessLog {
    queue: Option<SyncSender<HandshakeRecord>>,
    dropped: &'static AtomicU64,
}

static DROPPED: AtomicU64 = AtomicU64::new(0);

impl AccessLog {
    /// Records go nowhere.
    pub fn off() -> Self {
        Self { queue: None, dropped: &DROPPED }
    }

    /// Records go to `out`, from a thread of their own.
    pub fn to(mut out: Box<dyn Write + Send>) -> Self {
        let (queue, records) = sync_channel::<HandshakeRecord>(4096);
        let spawned = std::thread::Builder::new().name("access-log".into()).spawn(move || {
            let mut batch = Vec::with_capacity(16 << 10);
            while let Ok(first) = records.recv() {
                batch.clear();
                let mut next = Some(first);
                while let Some(mut record) = next.take() {
                    record.time = now();
                    if serde_json::to_writer(&mut batch, &record).is_ok() {
                        batch.push(b'\n');
                    }
                    if batch.len() < (16 << 10) {
                        next = records.try_recv().ok();
                    }
                }
                let _ = out.write_all(&batch).and_then(|()| out.flush());
            }
        });
        Self { queue: spawned.is_ok().then_some(queue), dropped: &DROPPED }
    }

    /// Whether anything is written; callers need not build records otherwise.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues one record.
    pub fn write(&self, record: HandshakeRecord) {
        if let Some(queue) = &self.queue
            && queue.try_send(record).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many records were dropped since the process began.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessLog({})", if self.is_on() { "on" } else { "off" })
    }
}

fn now() -> String {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = i64::try_from(elapsed.as_millis()).unwrap_or(0);
    jiff::Timestamp::from_millisecond(millis).map(|t| t.to_string()).unwrap_or_default()
}
