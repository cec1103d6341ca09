//! Whether the same can be had without TLS, on the port itself or on a neighbour.

use countersign_tls::probe::{Offer, ProbeClient};

use super::Target;
use crate::ask::{Asked, ask, mysql};
use crate::dial::{mysql_packet, smtp};
use crate::options::Protocol;
use crate::report::{Outcome, Report};

impl Target<'_> {
    pub(super) async fn plaintext(&self, report: &mut Report, right: Option<u16>) {
        let asked = self.plain(&self.options.target, right).await;
        if asked.outcome == Outcome::Accepted {
            report.found("plaintext-bypass/live-same-port", asked.evidence.clone());
        }
        report.case("plaintext/same-port", asked.outcome, asked.evidence);
        for address in &self.options.also {
            let asked = self.plain(address, right).await;
            let evidence = format!("{address}: {}", asked.evidence);
            if asked.outcome == Outcome::Accepted {
                report.found("plaintext-bypass/live-neighbour", evidence.clone());
            }
            report.case("plaintext/neighbour", asked.outcome, evidence);
            if asked.outcome == Outcome::Accepted {
                continue;
            }
            // Or TLS, without a certificate.
            let alpn = self.options.protocol.alpn();
            let Ok(client) = ProbeClient::new(None, self.options.name(), alpn, Offer::Both) else {
                continue;
            };
            let Ok(session) = self.dialer.tls(address, &client).await else { continue };
            let stream = Box::new(session.stream);
            let question = self.question(&[], None);
            let asked =
                ask(stream, self.options.protocol, session.alpn.as_deref(), &question).await;
            let asked = content(asked, right);
            let evidence = format!("{address}, TLS without a certificate: {}", asked.evidence);
            if asked.outcome == Outcome::Accepted {
                report.found("plaintext-bypass/live-neighbour", evidence.clone());
            }
            report.case("anonymous/neighbour", asked.outcome, evidence);
        }
    }

    async fn plain(&self, address: &str, right: Option<u16>) -> Asked {
        let _place = self.dialer.place().await;
        let mut stream = match self.dialer.tcp(address).await {
            Ok(stream) => stream,
            Err(why) => return Asked::new(Outcome::Unclear, why),
        };
        if self.options.protocol == Protocol::Smtp {
            // The greeting comes before anything is said.
            let greeting = smtp(&mut stream, None);
            if tokio::time::timeout(self.options.timeout, greeting).await.is_err() {
                return Asked::new(Outcome::Unclear, "no greeting came");
            }
        }
        let protocol = match self.options.protocol {
            // Without TLS there is no ALPN, and HTTP/2 by prior knowledge is gRPC's habit only.
            Protocol::Http2 => Protocol::Http,
            Protocol::Mysql => {
                let login = async {
                    mysql_packet(&mut stream).await?;
                    Ok::<_, String>(mysql(Box::new(stream), 1).await)
                };
                return match tokio::time::timeout(self.options.timeout, login).await {
                    Ok(Ok(asked)) => asked,
                    Ok(Err(how)) => Asked::new(Outcome::Refused, how),
                    Err(_) => Asked::new(Outcome::Unclear, "nothing came in time"),
                };
            }
            other => other,
        };
        let asked = ask(Box::new(stream), protocol, None, &self.question(&[], None)).await;
        if protocol == Protocol::Tcp && asked.text.is_empty() && asked.outcome == Outcome::Accepted
        {
            return Asked { outcome: Outcome::Unclear, ..asked };
        }
        content(asked, right)
    }
}

/// A redirect, or a page that says no, is not the service.
fn content(asked: Asked, right: Option<u16>) -> Asked {
    match asked.status {
        Some(status) if !(200..300).contains(&status) && Some(status) != right => {
            Asked { outcome: Outcome::RefusedByApplication, ..asked }
        }
        _ => asked,
    }
}
