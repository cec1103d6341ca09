//! A canary for request smuggling: requests whose end can be read in two ways. Nothing is smuggled, since what
//! follows would be empty; but whoever answers would read on somewhere.

use super::Target;
use crate::ask::Asked;
use crate::report::{Outcome, Report};

impl Target<'_> {
    pub(super) async fn framing(&self, report: &mut Report, right: Option<&Asked>) {
        let none = report.outcome("client/none") == Some(Outcome::Accepted);
        let right = right.filter(|r| r.status.is_some());
        let Some(right) = right.filter(|r| none || r.outcome == Outcome::Accepted) else {
            report.not_tried.push("framing: nothing is answered over HTTP".into());
            return;
        };
        let identity = if none { None } else { self.right().ok() };
        let host = self.options.name();
        let path = &self.options.path;
        let head = |fields: &str| {
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n")
        };
        let both = head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n";
        let two = head("Content-Length: 0\r\nContent-Length: 5\r\n") + "hello";
        for (case, request, what) in [
            ("framing/both-lengths", &both, "Content-Length and Transfer-Encoding"),
            ("framing/two-lengths", &two, "two different Content-Length"),
        ] {
            let asked = self.attempt_http1(identity.as_ref(), request).await;
            let (outcome, evidence) = match asked.status {
                // What was refused for another reason says nothing.
                Some(status) if Some(status) == right.status || (200..300).contains(&status) => {
                    (Outcome::Accepted, format!("{what}: {}", asked.evidence))
                }
                Some(_) => (Outcome::RefusedByApplication, format!("{what}: {}", asked.evidence)),
                None => (asked.outcome, format!("{what}: {}", asked.evidence)),
            };
            if outcome == Outcome::Accepted {
                report.found("request-smuggling/live-ambiguous-framing", evidence.clone());
            }
            report.case(case, outcome, evidence);
        }
    }

    async fn attempt_http1(
        &self,
        identity: Option<&countersign_tls::probe::ProbeIdentity>,
        request: &str,
    ) -> Asked {
        use countersign_tls::probe::{Offer, ProbeClient};
        let client = ProbeClient::new(identity, self.options.name(), &[b"http/1.1"], Offer::Both);
        match client {
            Ok(client) => self.attempt_as(&client, &[], Some(request)).await.asked,
            Err(e) => Asked::new(Outcome::Unclear, e.to_string()),
        }
    }
}
