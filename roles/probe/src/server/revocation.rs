//! A certificate that is revoked while it is in use: a new connection, a resumed session, and a connection that was
//! open before all have to end.

use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_tls::probe::{Offer, ProbeClient, ProbeIdentity};
use countersign_x509::CertInfo;
use tokio::time::Instant;

use super::{Attempt, Target};
use crate::ask::{Held, Question};
use crate::forge::{Authority, Flaw, Story};
use crate::options::Publisher;
use crate::report::{Outcome, Report};

/// Between two looks at whether the server knows by now.
const AGAIN: Duration = Duration::from_secs(1);

/// What a session and a connection were made of before.
struct Before {
    sessions: Vec<ProbeClient>,
    /// Of the certificate that is revoked, and of one that is not.
    held: [Option<Held>; 2],
}

impl Target<'_> {
    /// Revokes a certificate made here, tells the server, and looks who gets in with it still.
    pub(super) async fn revocation(
        &self,
        report: &mut Report,
        publisher: &mut impl Publisher,
    ) -> Result<(), Finding> {
        let (Some(how), Some(ca)) = (&self.options.revocation, &self.options.ca) else {
            return Ok(());
        };
        if report.outcome("client/right").is_none() {
            let what = "revocation: the server does not look at client certificates";
            report.not_tried.push(what.into());
            return Ok(());
        }
        let ca = Authority::given(&ca.certificates, &ca.key, self.now)?;
        let right = self.right_leaf();
        let story = Story { id: Some(&self.id), dns: None, like: right.as_ref(), flaw: Flaw::None };
        let (revoked, control) = (ca.issue(&story)?, ca.issue(&story)?);
        let first = self.attempt(Some(&revoked), &[], None).await;
        if first.asked.outcome != Outcome::Accepted {
            let what = format!(
                "revocation: a certificate made on the spot is not accepted ({})",
                first.asked.evidence
            );
            report.not_tried.push(what);
            return Ok(());
        }
        let before = self.begin(&revoked, &control).await;
        let leaf = revoked.chain.first().map(Vec::as_slice).unwrap_or_default();
        let serial = CertInfo::parse(leaf)
            .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?
            .serial;
        let list = ca.revoke(leaf, how.extends.as_ref())?;
        if let Err(e) = publisher.publish(&list, &serial).await {
            report.case("revocation/full", Outcome::Unclear, e.message.clone());
            report.failed = Some(e);
            return Ok(());
        }
        let full = self.until_refused(&revoked, how.within).await;
        // A server that refuses everybody, or is not there, has not understood the list.
        let still = self.attempt(Some(&control), &[], None).await;
        if still.asked.outcome != Outcome::Accepted {
            let evidence = format!(
                "with another certificate, not on the list: {}; so nothing is shown",
                still.asked.evidence
            );
            report.case("revocation/full", Outcome::Unclear, evidence);
            return Ok(());
        }
        let revoked_is_taken = full.asked.outcome == Outcome::Accepted;
        let asked = full.asked;
        if revoked_is_taken {
            let evidence =
                format!("{} s after the list was there: {}", how.within.as_secs(), asked.evidence);
            report.found("server-client-cert-unverified/live-revoked", evidence);
        }
        report.case("revocation/full", asked.outcome, asked.evidence);
        self.after(report, before, revoked_is_taken).await;
        Ok(())
    }

    async fn begin(&self, revoked: &ProbeIdentity, control: &ProbeIdentity) -> Before {
        let mut sessions = Vec::new();
        for offer in [Offer::Only12, Offer::Only13] {
            let Ok(client) = self.client(Some(revoked), offer) else { continue };
            let first = self.attempt_as(&client, &[], None).await;
            if first.asked.outcome == Outcome::Accepted {
                sessions.push(client);
            }
        }
        let held = [self.hold(revoked).await, self.hold(control).await];
        Before { sessions, held }
    }

    async fn hold(&self, identity: &ProbeIdentity) -> Option<Held> {
        let client = self.client(Some(identity), Offer::Both).ok()?;
        let session = self.dialer.tls(&self.options.target, &client).await.ok()?;
        let stream = Box::new(session.stream);
        let protocol = self.options.protocol;
        Held::open(stream, protocol, session.alpn.as_deref(), &self.kept()).await
    }

    fn kept(&self) -> Question<'_> {
        Question { keep: true, ..self.question(&[], None) }
    }

    /// Servers read lists anew when they are told to, or now and then.
    async fn until_refused(&self, identity: &ProbeIdentity, within: Duration) -> Attempt {
        let end = Instant::now() + within;
        loop {
            let attempt = self.attempt(Some(identity), &[], None).await;
            // While it starts anew nobody is answered: that is no refusal.
            let done =
                matches!(attempt.asked.outcome, Outcome::Refused | Outcome::RefusedByApplication);
            if done || Instant::now() >= end || self.dialer.is_exhausted() {
                return attempt;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What was begun with the certificate before.
    async fn after(&self, report: &mut Report, before: Before, revoked_is_taken: bool) {
        let mut outcome = (Outcome::Unclear, "there was no session to resume".to_owned());
        for client in &before.sessions {
            let again = self.attempt_as(client, &[], None).await;
            let negotiated = again.negotiated.unwrap_or_default();
            let resumed = negotiated.contains("resumed");
            let how = if resumed { "" } else { " (not resumed)" };
            let evidence = format!("{negotiated}: {}{how}", again.asked.evidence);
            outcome = match resumed {
                true => (again.asked.outcome, evidence),
                false => (Outcome::Refused, evidence),
            };
            if resumed && again.asked.outcome == Outcome::Accepted {
                break;
            }
        }
        if outcome.0 == Outcome::Accepted && !revoked_is_taken {
            let rule = "server-client-cert-unverified/live-revoked-resumed";
            report.found(rule, outcome.1.clone());
        }
        report.case("revocation/resumed", outcome.0, outcome.1);
        let [Some(mut held), control] = before.held else {
            report.not_tried.push("revocation/open: the server keeps no connection open".into());
            return;
        };
        let protocol = self.options.protocol;
        let asked = held.again(protocol, &self.kept()).await;
        let others = match control {
            Some(mut held) => held.again(protocol, &self.kept()).await.outcome,
            None => Outcome::Refused,
        };
        if others != Outcome::Accepted {
            let what = "it closed connections of other certificates too";
            return report.case("revocation/open", Outcome::Unclear, what);
        }
        if asked.outcome == Outcome::Accepted && !revoked_is_taken {
            let rule = "server-client-cert-unverified/live-revoked-open";
            report.found(rule, format!("asked again on it: {}", asked.evidence));
        }
        report.case("revocation/open", asked.outcome, asked.evidence);
    }
}
