//! STRICT and PERMISSIVE, resolved from PeerAuthentication.

use countersign_identity::UnixTime;

use crate::{PeerAuthentication, Workload};

/// How long plaintext is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Until a time.
    Time(UnixTime),
    /// For ever, said in so many words.
    Never,
}

/// What an inbound port accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only mTLS.
    Strict,
    /// mTLS, and plaintext until the given end.
    Permissive {
        /// The end.
        until: Until,
    },
}

impl Mode {
    /// Whether plaintext is accepted at `now`.
    pub fn accepts_plaintext(self, now: UnixTime) -> bool {
        match self {
            Mode::Strict => false,
            Mode::Permissive { until: Until::Never } => true,
            Mode::Permissive { until: Until::Time(end) } => now < end,
        }
    }
}

/// The mode that documents give `port` of `workload` (PA-1 to PA-5); `None` where none of them speaks.
pub(crate) fn resolve(
    documents: &[PeerAuthentication],
    workload: &Workload,
    port: u16,
) -> Option<Mode> {
    let levels: [&dyn Fn(&PeerAuthentication) -> bool; 3] = [
        // PA-2: a selector in the root namespace is not mesh-wide.
        &|d| d.selector.is_empty() && d.namespace == workload.mesh.root_namespace,
        &|d| {
            d.selector.is_empty()
                && d.namespace == workload.namespace
                && d.namespace != workload.mesh.root_namespace
        },
        &|d| {
            !d.selector.is_empty()
                && d.namespace == workload.namespace
                && d.namespace != workload.mesh.root_namespace
                && workload.has_labels(&d.selector) != Some(false)
        },
    ];
    let mut mode = None;
    for (i, level) in levels.iter().enumerate() {
        // PA-3: the oldest wins; ties by name.
        let winner = documents
            .iter()
            .filter(|d| level(d))
            .min_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
        if let Some(d) = winner {
            // PA-5: ports count on the workload's own document only.
            let of_port = if i == 2 { d.port_modes.get(&port).copied().flatten() } else { None };
            match workload.has_labels(&d.selector) {
                // It may be meant for another workload: STRICT counts, nothing else does.
                None if of_port.or(d.mode) == Some(Mode::Strict) => mode = Some(Mode::Strict),
                None => {}
                Some(_) => mode = of_port.or(d.mode).or(mode),
            }
        }
    }
    mode
}
