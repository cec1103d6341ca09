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
/// Connections that are kept for what comes after.
const RESERVE: usize = 8;

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
        let published = match ca.revoke(leaf, how.extends.as_ref()) {
            Ok(list) => publisher.publish(&list, &serial).await,
            Err(e) => Err(e),
        };
        if let Err(e) = published {
            report.case("revocation/full", Outcome::Unclear, e.message.clone());
            report.failed = Some(e);
            return Ok(());
        }
        let (full, still) = self.until_refused(&revoked, &control, how.within).await;
        // A server that refuses everybody, or is not there, has not understood the list.
        if full.asked.outcome != Outcome::Accepted && still.asked.outcome != Outcome::Accepted {
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

    /// Servers read lists anew when they are told to, or now and then; and while one starts anew nobody is answered,
    /// which is no refusal. So `revoked` has to be refused while `control` is served. Gives what each got last.
    async fn until_refused(
        &self,
        revoked: &ProbeIdentity,
        control: &ProbeIdentity,
        within: Duration,
    ) -> (Attempt, Attempt) {
        let end = Instant::now() + within;
        // A long time is not filled with connections.
        let pause = AGAIN.max(within / 20);
        let refused = |a: &Attempt| {
            matches!(a.asked.outcome, Outcome::Refused | Outcome::RefusedByApplication)
        };
        loop {
            let first = self.attempt(Some(revoked), &[], None).await;
            let still = self.attempt(Some(control), &[], None).await;
            if refused(&first) && still.asked.outcome == Outcome::Accepted {
                // Again, as it may have begun to serve in between.
                let again = self.attempt(Some(revoked), &[], None).await;
                if refused(&again) {
                    return (again, still);
                }
            }
            if Instant::now() + pause > end || self.dialer.left() < RESERVE {
                return (first, still);
            }
            tokio::time::sleep(pause).await;
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
            // A session that is not resumed has been judged again, if there was a connection at all.
            outcome = match (resumed, again.asked.outcome) {
                (false, Outcome::RefusedByApplication) => (Outcome::Refused, evidence),
                (_, outcome) => (outcome, evidence),
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
            None => {
                let what = "there is no connection of another certificate to compare with";
                return report.case("revocation/open", Outcome::Unclear, what);
            }
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
