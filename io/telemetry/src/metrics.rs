//! The metric catalogue. Labels are closed sets; nothing a stranger sends becomes a label value.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use countersign_findings::Code;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Which way a connection goes, seen from the proxy's workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a peer to the workload.
    Inbound,
    /// From the workload to a peer.
    Outbound,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Both ends proved themselves.
    Mtls,
    /// Nothing was proved (PERMISSIVE).
    Plaintext,
}

/// How something ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Well.
    Success,
    /// With a code.
    Failure,
}

/// A listener's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Only mTLS.
    Strict,
    /// mTLS or plaintext.
    Permissive,
}

macro_rules! label_text {
    ($($ty:ident { $($variant:ident => $text:literal),* })*) => {$(
        impl $ty {
            /// As a label value and in logs.
            pub const fn as_str(self) -> &'static str {
                match self { $( $ty::$variant => $text, )* }
            }
        }
    )*};
}

label_text! {
    Direction { Inbound => "inbound", Outbound => "outbound" }
    Security { Mtls => "mtls", Plaintext => "plaintext" }
    Outcome { Success => "success", Failure => "failure" }
    Mode { Strict => "strict", Permissive => "permissive" }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handshake {
    direction: &'static str,
    outcome: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Connection {
    direction: &'static str,
    security: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Authorization {
    direction: &'static str,
    decision: &'static str,
    code: &'static str,
}

/// What asking an external engine led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineResult {
    /// It allows.
    Allowed,
    /// It refuses.
    Denied,
    /// It gave no answer.
    Failed,
    /// It cannot be asked.
    Misconfigured,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Check {
    /// From the operator's own file, or `unknown`: bounded.
    provider: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Identity {
    spiffe_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
    outcome: &'static str,
}

type F64Gauge = Gauge<f64, AtomicU64>;

/// Every metric, with the handles that hot paths use.
pub struct Metrics {
    registry: Registry,
    classic_success: Counter,
    classic_failure: Family<Reason, Counter>,
    classic_duration: Histogram,
    classic_validation: Family<ResultLabel, Counter>,
    classic_connection: Histogram,
    classic_expiration: Family<Identity, Gauge<i64, AtomicI64>>,
    handshakes: Family<Handshake, Counter>,
    handshake_duration: Family<Way, Histogram>,
    opened: Family<Connection, Counter>,
    closed: Family<Connection, Counter>,
    open: Family<Connection, Gauge>,
    authorizations: Family<Authorization, Counter>,
    engine_checks: Family<Check, Counter>,
    engine_duration: Histogram,
    cut: Family<Reason, Counter>,
    audited: Counter,
    bytes: Family<Way, Counter>,
    requests: Family<Way, Counter>,
    rotations: Family<Kind, Counter>,
    issued: Family<Kind, Counter>,
    remaining: F64Gauge,
    memory: Gauge,
    policy_generation: Gauge,
    policy_current: Gauge,
    streams: Gauge,
    attestations: Family<Kind, Counter>,
    key_fetches: Family<ResultLabel, Counter>,
}

const DURATIONS: [f64; 12] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0];
const LIFETIMES: [f64; 8] = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 86_400.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A catalogue with every family registered.
    pub fn new() -> Self {
        let mut r = Registry::default();
        let durations = || Histogram::new(DURATIONS);
        let m = Self {
            classic_success: Counter::default(),
            classic_failure: Family::default(),
            classic_duration: durations(),
            classic_validation: Family::default(),
            classic_connection: Histogram::new(LIFETIMES),
            classic_expiration: Family::default(),
            handshakes: Family::default(),
            handshake_duration: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            opened: Family::default(),
            closed: Family::default(),
            open: Family::default(),
            authorizations: Family::default(),
            engine_checks: Family::default(),
            engine_duration: Histogram::new([
                0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
            ]),
            cut: Family::default(),
            audited: Counter::default(),
            bytes: Family::default(),
            requests: Family::default(),
            rotations: Family::default(),
            issued: Family::default(),
            remaining: F64Gauge::default(),
            memory: Gauge::default(),
            policy_generation: Gauge::default(),
            policy_current: Gauge::default(),
            streams: Gauge::default(),
            attestations: Family::default(),
            key_fetches: Family::default(),
            registry: Registry::default(),
        };
        // Names that alert rules in the field already use.
        r.register(
            "mtls_handshake_success",
            "Handshakes that succeeded",
            m.classic_success.clone(),
        );
        r.register(
            "mtls_handshake_failure",
            "Handshakes that failed, by reason",
            m.classic_failure.clone(),
        );
        r.register_with_unit(
            "mtls_handshake_duration",
            "Time a handshake took",
            Unit::Seconds,
            m.classic_duration.clone(),
        );
        r.register(
            "mtls_certificate_validation",
            "Peer certificates judged",
            m.classic_validation.clone(),
        );
        r.register_with_unit(
            "mtls_connection_duration",
            "Life of mTLS connections",
            Unit::Seconds,
            m.classic_connection.clone(),
        );
        r.register(
            "certificate_expiration_seconds",
            "End of own certificates, seconds since the epoch",
            m.classic_expiration.clone(),
        );
        // Our own, in base units.
        r.register("countersign_proxy_handshakes", "TLS handshakes", m.handshakes.clone());
        r.register_with_unit(
            "countersign_proxy_handshake_duration",
            "Time a handshake took",
            Unit::Seconds,
            m.handshake_duration.clone(),
        );
        r.register("countersign_proxy_connections_opened", "Connections begun", m.opened.clone());
        r.register("countersign_proxy_connections_closed", "Connections ended", m.closed.clone());
        r.register("countersign_proxy_connections_open", "Connections now open", m.open.clone());
        r.register("countersign_proxy_authorizations", "Decisions", m.authorizations.clone());
        r.register(
            "countersign_engine_checks",
            "Questions to external engines",
            m.engine_checks.clone(),
        );
        r.register_with_unit(
            "countersign_engine_check_duration",
            "Time an external engine took",
            Unit::Seconds,
            m.engine_duration.clone(),
        );
        r.register(
            "countersign_proxy_connections_cut",
            "Live connections ended because their authority ended",
            m.cut.clone(),
        );
        r.register_with_unit(
            "countersign_proxy_relayed",
            "Payload relayed",
            Unit::Bytes,
            m.bytes.clone(),
        );
        r.register(
            "countersign_proxy_audited",
            "AUDIT and tried-out policies that matched",
            m.audited.clone(),
        );
        r.register("countersign_proxy_http_requests", "HTTP requests relayed", m.requests.clone());
        r.register(
            "countersign_svid_rotations",
            "Renewals of own or workloads' SVIDs",
            m.rotations.clone(),
        );
        r.register("countersign_issued", "Certificates and tokens issued", m.issued.clone());
        r.register(
            "countersign_svid_lifetime_remaining_ratio",
            "Least remaining part of the life of any SVID held",
            m.remaining.clone(),
        );
        // The name that every exporter uses.
        r.register(
            "process_resident_memory_bytes",
            "Memory in use that is not swapped out",
            m.memory.clone(),
        );
        r.register(
            "countersign_policy_generation",
            "Generation of the policy set in force",
            m.policy_generation.clone(),
        );
        r.register(
            "countersign_policy_current",
            "1 if the newest policy set received is in force, 0 if it was refused",
            m.policy_current.clone(),
        );
        r.register(
            "countersign_workload_api_streams",
            "Open Workload API and SDS streams",
            m.streams.clone(),
        );
        r.register(
            "countersign_attestations",
            "Attestations of nodes and workloads",
            m.attestations.clone(),
        );
        r.register(
            "countersign_issuer_key_fetches",
            "Attempts to fetch the keys of token issuers",
            m.key_fetches.clone(),
        );
        m.policy_current.set(1);
        Self { registry: r, ..m }
    }

    /// A handshake that succeeded.
    pub fn handshake_succeeded(&self, direction: Direction, took: Duration) {
        self.classic_success.inc();
        self.classic_duration.observe(took.as_secs_f64());
        self.classic_validation.get_or_create(&ResultLabel { result: "success" }).inc();
        self.handshakes
            .get_or_create(&Handshake {
                direction: direction.as_str(),
                outcome: "success",
                code: "",
            })
            .inc();
        self.handshake_duration
            .get_or_create(&Way { direction: direction.as_str() })
            .observe(took.as_secs_f64());
    }

    /// A handshake that failed, or a connection refused before one.
    pub fn handshake_failed(&self, direction: Direction, code: Code) {
        self.classic_failure.get_or_create(&Reason { reason: code.slug() }).inc();
        if (1000..2000).contains(&(code as u16)) {
            self.classic_validation.get_or_create(&ResultLabel { result: "failure" }).inc();
        }
        self.handshakes
            .get_or_create(&Handshake {
                direction: direction.as_str(),
                outcome: "failure",
                code: code.as_str(),
            })
            .inc();
    }

    /// A connection whose relaying began.
    pub fn connection_opened(&self, direction: Direction, security: Security) {
        let labels = Connection { direction: direction.as_str(), security: security.as_str() };
        self.opened.get_or_create(&labels).inc();
        self.open.get_or_create(&labels).inc();
    }

    /// Its end.
    pub fn connection_closed(
        &self,
        direction: Direction,
        security: Security,
        life: Duration,
        bytes: u64,
    ) {
        let labels = Connection { direction: direction.as_str(), security: security.as_str() };
        self.closed.get_or_create(&labels).inc();
        self.open.get_or_create(&labels).dec();
        if security == Security::Mtls {
            self.classic_connection.observe(life.as_secs_f64());
        }
        self.bytes.get_or_create(&Way { direction: direction.as_str() }).inc_by(bytes);
    }

    /// A decision; `None` is an allow.
    pub fn decided(&self, direction: Direction, denial: Option<Code>) {
        self.authorizations
            .get_or_create(&Authorization {
                direction: direction.as_str(),
                decision: if denial.is_some() { "deny" } else { "allow" },
                code: denial.map_or("", Code::as_str),
            })
            .inc();
    }

    /// An external engine was asked.
    pub fn engine_asked(&self, provider: &str, result: EngineResult, took: Duration) {
        let (provider, result) = match result {
            EngineResult::Allowed => (provider, "allowed"),
            EngineResult::Denied => (provider, "denied"),
            EngineResult::Failed => (provider, "failed"),
            // Its name comes from a policy and may be anything.
            EngineResult::Misconfigured => ("unknown", "misconfigured"),
        };
        self.engine_checks.get_or_create(&Check { provider: provider.to_owned(), result }).inc();
        self.engine_duration.observe(took.as_secs_f64());
    }

    /// A live connection that was ended.
    pub fn cut(&self, code: Code) {
        self.cut.get_or_create(&Reason { reason: code.slug() }).inc();
    }

    /// An AUDIT or tried-out policy that matched.
    pub fn audited(&self) {
        self.audited.inc();
    }

    /// HTTP requests relayed on one connection.
    pub fn http_requests(&self, direction: Direction, n: u64) {
        self.requests.get_or_create(&Way { direction: direction.as_str() }).inc_by(n);
    }

    /// A renewal of `kind` (`agent`, `workload`, `proxy`, `authority`).
    pub fn rotated(&self, kind: &'static str, outcome: Outcome) {
        self.rotations.get_or_create(&Kind { kind, outcome: outcome.as_str() }).inc();
    }

    /// `n` things of `kind` issued.
    pub fn issued(&self, kind: &'static str, outcome: Outcome, n: u64) {
        self.issued.get_or_create(&Kind { kind, outcome: outcome.as_str() }).inc_by(n);
    }

    /// An attestation of a `node` or a `workload`.
    pub fn attested(&self, kind: &'static str, outcome: Outcome) {
        self.attestations.get_or_create(&Kind { kind, outcome: outcome.as_str() }).inc();
    }

    /// An attempt to fetch a token issuer's keys.
    pub fn keys_fetched(&self, outcome: Outcome) {
        self.key_fetches.get_or_create(&ResultLabel { result: outcome.as_str() }).inc();
    }

    /// The end of one of our own certificates. The caller bounds the set of identities.
    pub fn own_certificate(&self, spiffe_id: &str, not_after: i64) {
        self.classic_expiration
            .get_or_create(&Identity { spiffe_id: spiffe_id.to_owned() })
            .set(not_after);
    }

    /// An identity that is no longer held.
    pub fn forget_certificate(&self, spiffe_id: &str) {
        self.classic_expiration.remove(&Identity { spiffe_id: spiffe_id.to_owned() });
    }

    /// Least remaining ratio of life, 0..=1.
    pub fn lifetime_remaining(&self, ratio: f64) {
        self.remaining.set(ratio);
    }

    /// Memory in use, bytes.
    pub fn memory(&self, bytes: u64) {
        self.memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The policy set in force, and whether it is the newest received.
    pub fn policies(&self, generation: u64, current: bool) {
        self.policy_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.policy_current.set(i64::from(current));
    }

    /// One more or one less open stream.
    pub fn stream(&self, opened: bool) {
        if opened {
            self.streams.inc();
        } else {
            self.streams.dec();
        }
    }

    /// Everything in OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        let _ = prometheus_client::encoding::text::encode(&mut out, &self.registry);
        out
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_and_own_names_appear() {
        let m = Metrics::new();
        m.handshake_succeeded(Direction::Inbound, Duration::from_millis(3));
        m.handshake_failed(Direction::Inbound, Code::CertificateExpired);
        m.connection_opened(Direction::Outbound, Security::Mtls);
        m.connection_closed(Direction::Outbound, Security::Mtls, Duration::from_secs(1), 10);
        m.own_certificate("spiffe://a.test/web", 5);
        let text = m.encode();
        for line in [
            "mtls_handshake_success_total 1",
            "mtls_handshake_failure_total{reason=\"certificate_expired\"} 1",
            "mtls_handshake_duration_seconds_count 1",
            "mtls_connection_duration_seconds_count 1",
            "mtls_certificate_validation_total{result=\"failure\"} 1",
            "certificate_expiration_seconds{spiffe_id=\"spiffe://a.test/web\"} 5",
            "countersign_proxy_relayed_bytes_total{direction=\"outbound\"} 10",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        m.forget_certificate("spiffe://a.test/web");
        assert!(!m.encode().contains("spiffe://a.test/web"));
    }
}
