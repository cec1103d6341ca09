//! Whether identity headers that a client makes up reach the application, or are believed.

use countersign_findings::Finding;
use countersign_identity::SpiffeId;
use countersign_tls::probe::ProbeIdentity;

use super::Target;
use crate::forge::{Authority, Flaw, Story, self_signed};
use crate::report::{Outcome, Report};

/// Headers in which proxies tell whom they have verified.
const NAMES: &[&str] = &[
    "X-Forwarded-Client-Cert",
    "X-SSL-Client-S-DN",
    "X-SSL-Client-Verify",
    "X-Client-Cert",
    "X-Client-DN",
    "SSL-Client-Cert",
    "X-Forwarded-Tls-Client-Cert-Info",
    "X-Forwarded-User",
    "X-Remote-User",
    "X-Spiffe-Id",
];

impl Target<'_> {
    pub(super) async fn headers(&self, report: &mut Report) -> Result<(), Finding> {
        let accepted = |case: &str| report.outcome(case) == Some(Outcome::Accepted);
        // Whoever gets an answer anyway asks whether the header arrives.
        let with: Option<Option<ProbeIdentity>> = if accepted("client/none") {
            Some(None)
        } else if accepted("client/right") {
            Some(Some(self.right()?))
        } else {
            None
        };
        match with {
            None => report.not_tried.push("headers/reflected: nothing is answered".into()),
            Some(identity) => {
                let marker =
                    format!("marker-{}", countersign_x509::hex(&countersign_keys::random::<8>()));
                let values: Vec<(&str, String)> = NAMES
                    .iter()
                    .map(|name| (*name, format!("URI=spiffe://countersign-probe.invalid/{marker}")))
                    .collect();
                let fields: Vec<(&str, &str)> =
                    values.iter().map(|(n, v)| (*n, v.as_str())).collect();
                let asked = self.attempt(identity.as_ref(), &fields, None).await.asked;
                let line = asked.text.lines().find(|l| l.contains(&marker));
                let (outcome, evidence) = match line {
                    Some(line) => {
                        let evidence = format!("the answer holds it: {}", crate::ask::brief(line));
                        report.found("header-identity/live-reflected", evidence.clone());
                        (Outcome::Accepted, evidence)
                    }
                    None if asked.status.is_some() => {
                        (Outcome::Refused, format!("{}; it does not show", asked.evidence))
                    }
                    None => (Outcome::Unclear, asked.evidence),
                };
                report.case("headers/reflected", outcome, evidence);
            }
        }
        self.believed(report).await
    }

    /// Somebody who is refused by the application claims in a header to be somebody else.
    async fn believed(&self, report: &mut Report) -> Result<(), Finding> {
        let refused = |case: &str| report.outcome(case) == Some(Outcome::RefusedByApplication);
        let mut callers = Vec::new();
        if refused("client/other-identity") {
            callers.push(Some(self.other()?));
        }
        if refused("client/none") {
            callers.push(None);
        }
        if refused("client/self-signed") {
            let story = Story { id: Some(&self.id), dns: None, like: None, flaw: Flaw::None };
            callers.push(Some(self_signed(&story, self.now)?));
        }
        if callers.is_empty() {
            report.not_tried.push("headers/believed: nobody is refused by the application".into());
            return Ok(());
        }
        let id = self.options.id.as_ref().unwrap_or(&self.id);
        let last = id.as_str().rsplit('/').next().unwrap_or_default();
        let (uri, cn) = (format!("URI={id}"), format!("CN={last}"));
        let claims: [(&str, &[(&str, &str)]); 4] = [
            ("X-Forwarded-Client-Cert", &[("X-Forwarded-Client-Cert", &uri)]),
            (
                "X-SSL-Client-S-DN",
                &[("X-SSL-Client-S-DN", &cn), ("X-SSL-Client-Verify", "SUCCESS")],
            ),
            ("X-Forwarded-User", &[("X-Forwarded-User", last), ("X-Remote-User", last)]),
            ("X-Spiffe-Id", &[("X-Spiffe-Id", id.as_str())]),
        ];
        for identity in &callers {
            for (name, fields) in claims {
                let asked = self.attempt(identity.as_ref(), fields, None).await.asked;
                if asked.outcome == Outcome::Accepted {
                    let evidence = format!("refused without, and with {name}: {}", asked.evidence);
                    report.found("header-identity/live-believed", evidence.clone());
                    report.case("headers/believed", Outcome::Accepted, evidence);
                    return Ok(());
                }
            }
        }
        let evidence = "still refused, whatever the headers say";
        report.case("headers/believed", Outcome::Refused, evidence);
        Ok(())
    }

    /// A certificate that is let in.
    pub(super) fn right(&self) -> Result<ProbeIdentity, Finding> {
        self.of_ca(self.options.right.as_ref(), Some(&self.id))
    }

    fn other(&self) -> Result<ProbeIdentity, Finding> {
        self.of_ca(self.options.other.as_ref(), self.other_id().as_ref())
    }

    fn of_ca(
        &self,
        given: Option<&ProbeIdentity>,
        id: Option<&SpiffeId>,
    ) -> Result<ProbeIdentity, Finding> {
        let story = Story { id, dns: None, like: None, flaw: Flaw::None };
        match (given, &self.options.ca) {
            (Some(given), _) => Ok(given.clone()),
            (None, Some(ca)) => {
                Authority::given(&ca.certificates, &ca.key, self.now)?.issue(&story)
            }
            (None, None) => self_signed(&story, self.now),
        }
    }
}
