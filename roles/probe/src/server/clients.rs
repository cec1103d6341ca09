//! Which client certificates get an answer.

use std::time::Duration;

use countersign_findings::Finding;
use countersign_identity::SpiffeId;
use countersign_tls::probe::{Offer, ProbeIdentity};
use countersign_x509::CertInfo;

use super::{Attempt, Target};
use crate::ask::Asked;
use crate::forge::{Authority, Flaw, Story, self_signed};
use crate::report::{Outcome, Report};

/// How long the certificate of the resumption case lives: long enough for two handshakes.
const SHORT: Duration = Duration::from_secs(4);

/// The finding that an accepted case is.
fn rule_of(case: &str) -> Option<&'static str> {
    Some(match case {
        "self-signed" => "server-client-cert-unverified/live-self-signed",
        "wrong-ca" => "server-client-cert-unverified/live-wrong-ca",
        "expired" => "server-client-cert-unverified/live-expired",
        "not-yet-valid" => "server-client-cert-unverified/live-not-yet-valid",
        "ca-as-leaf" => "server-client-cert-unverified/live-ca-as-leaf",
        "wrong-usage" => "server-client-cert-unverified/live-wrong-usage",
        "revoked" => "server-client-cert-unverified/live-revoked",
        "other-identity" => "identity-binding-absent/live-other-identity",
        _ => return None,
    })
}

impl Target<'_> {
    /// Tries every certificate that there is or can be made. Gives what the right one got; `none` is what came
    /// without any.
    pub(super) async fn clients(
        &self,
        report: &mut Report,
        none: Attempt,
    ) -> Result<Option<Asked>, Finding> {
        report.case("client/none", none.asked.outcome, none.asked.evidence.clone());
        if !none.was_asked && none.negotiated.is_some() {
            let evidence = format!("no CertificateRequest; without one: {}", none.asked.evidence);
            report.found("server-client-auth-absent/live-not-asked", evidence);
            report.not_tried.push("client certificates: the server asks for none".into());
            return Ok(Some(none.asked));
        }
        if none.asked.outcome == Outcome::Accepted {
            let rule = "server-client-auth-optional/live-none-accepted";
            report
                .found(rule, format!("asked for a certificate, got none: {}", none.asked.evidence));
        }
        let cases = self.identities()?;
        let attempts = cases.iter().map(|(_, identity)| self.attempt(Some(identity), &[], None));
        let resumed = self.resumed();
        let (attempts, resumed) = tokio::join!(all(attempts), resumed);
        let right = cases.iter().zip(&attempts).find(|((case, _), _)| *case == "right");
        let right = right.map(|(_, attempt)| attempt.asked.clone());
        let works = right.as_ref().is_none_or(|r| r.outcome == Outcome::Accepted);
        for ((case, _), attempt) in cases.iter().zip(&attempts) {
            let Asked { outcome, evidence, .. } = &attempt.asked;
            // A refusal of everybody proves nothing about anybody.
            let unproven = !works && *case != "right" && *outcome != Outcome::Accepted;
            let (outcome, evidence) = match unproven {
                true => (
                    Outcome::Unclear,
                    format!("{evidence}; but the right one is refused too (--id, --cert)"),
                ),
                false => (*outcome, evidence.clone()),
            };
            if outcome == Outcome::Accepted
                && let Some(rule) = rule_of(case)
            {
                report.found(rule, format!("with a certificate that is {case}: {evidence}"));
            }
            report.case(&format!("client/{case}"), outcome, evidence);
        }
        self.note_missing(report);
        if let Some(resumed) = resumed {
            let full = report.outcome("client/expired") == Some(Outcome::Accepted);
            if resumed.outcome == Outcome::Accepted && !full {
                let rule = "server-client-cert-unverified/live-resumed";
                report.found(rule, resumed.evidence.clone());
            }
            report.case("client/resumed", resumed.outcome, resumed.evidence);
        }
        Ok(right)
    }

    fn note_missing(&self, report: &mut Report) {
        let o = self.options;
        if o.ca.is_none() {
            let what = "client/expired, not-yet-valid, ca-as-leaf, wrong-usage, resumed: give --ca-cert and --ca-key";
            report.not_tried.push(what.into());
            if o.other.is_none() {
                let what = "client/other-identity: give --ca-cert and --ca-key, or --other-cert and --other-key";
                report.not_tried.push(what.into());
            }
            if o.right.is_none() {
                let what =
                    "client/right: give --cert and --key; without it a refusal may have any reason";
                report.not_tried.push(what.into());
            }
        }
        if o.revoked.is_none() && o.revocation.is_none() {
            let what = "client/revoked: give --revoked-cert and --revoked-key, or let one be revoked with --revoke";
            report.not_tried.push(what.into());
        }
    }

    /// Who may not call, in the same trust domain.
    pub(super) fn other_id(&self) -> Option<SpiffeId> {
        SpiffeId::from_path(self.id.trust_domain(), "/countersign-probe/other").ok()
    }

    /// What is made differs from what is right in one thing only.
    pub(super) fn right_leaf(&self) -> Option<CertInfo> {
        CertInfo::parse(self.options.right.as_ref()?.chain.first()?).ok()
    }

    fn identities(&self) -> Result<Vec<(&'static str, ProbeIdentity)>, Finding> {
        let o = self.options;
        let right = self.right_leaf();
        let story = |flaw| Story { id: Some(&self.id), dns: None, like: right.as_ref(), flaw };
        let like = o.ca.as_ref().and_then(|ca| ca.certificates.first()).map(Vec::as_slice);
        let mut out = vec![
            ("self-signed", self_signed(&story(Flaw::None), self.now)?),
            ("wrong-ca", Authority::impostor(like, self.now)?.issue(&story(Flaw::None))?),
        ];
        if let Some(ca) = &o.ca {
            let ca = Authority::given(&ca.certificates, &ca.key, self.now)?;
            for (case, flaw) in [
                ("expired", Flaw::Expired),
                ("not-yet-valid", Flaw::NotYetValid),
                ("ca-as-leaf", Flaw::CaAsLeaf),
                ("wrong-usage", Flaw::WrongUsage),
            ] {
                out.push((case, ca.issue(&story(flaw))?));
            }
            // Without --id it is somebody's: if the server minds who calls, all is unclear, and says why.
            if o.right.is_none() {
                out.push(("right", ca.issue(&story(Flaw::None))?));
            }
            if o.other.is_none()
                && let Some(other) = self.other_id()
            {
                let story = Story { id: Some(&other), dns: None, like: None, flaw: Flaw::None };
                out.push(("other-identity", ca.issue(&story)?));
            }
        }
        let given = [("right", &o.right), ("other-identity", &o.other), ("revoked", &o.revoked)];
        for (case, identity) in given {
            out.extend(identity.clone().map(|identity| (case, identity)));
        }
        Ok(out)
    }

    /// A session that was begun with a good certificate, taken up after that has ended.
    async fn resumed(&self) -> Option<Asked> {
        let ca = self.options.ca.as_ref()?;
        let ca = Authority::given(&ca.certificates, &ca.key, self.now).ok()?;
        let flaw = Flaw::EndsIn(SHORT);
        let right = self.right_leaf();
        let story = Story { id: Some(&self.id), dns: None, like: right.as_ref(), flaw };
        let identity = ca.issue(&story).ok()?;
        let begun = tokio::time::Instant::now();
        let mut sessions = Vec::new();
        for offer in [Offer::Only12, Offer::Only13] {
            let Ok(client) = self.client(Some(&identity), offer) else { continue };
            let first = self.attempt_as(&client, &[], None).await;
            if first.asked.outcome == Outcome::Accepted {
                sessions.push(client);
            }
        }
        if sessions.is_empty() {
            let why =
                "a certificate made on the spot is not accepted, so there is no session to resume";
            return Some(Asked::new(Outcome::Unclear, why));
        }
        // A second for the clocks' fractions, and one for the end of validity, which counts as valid.
        tokio::time::sleep_until(begun + SHORT + Duration::from_secs(2)).await;
        let mut last = None;
        for client in &sessions {
            let again = self.attempt_as(client, &[], None).await;
            let negotiated = again.negotiated.unwrap_or_default();
            let evidence =
                format!("{negotiated}, after the certificate's end: {}", again.asked.evidence);
            if !negotiated.contains("resumed") {
                let asked = Asked::new(Outcome::Refused, format!("{evidence} (not resumed)"));
                last.get_or_insert(asked);
                continue;
            }
            let asked = Asked { evidence, ..again.asked };
            if asked.outcome == Outcome::Accepted {
                return Some(asked);
            }
            last = Some(asked);
        }
        last
    }
}

/// Runs attempts together; the dialer bounds how many connect at once.
async fn all<F: Future<Output = Attempt>>(attempts: impl Iterator<Item = F>) -> Vec<Attempt> {
    let mut running: Vec<_> = attempts.map(|a| (Box::pin(a), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (attempt, done) in &mut running {
            if done.is_none() {
                match attempt.as_mut().poll(cx) {
                    std::task::Poll::Ready(result) => *done = Some(result),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, done)| done).collect()
}
