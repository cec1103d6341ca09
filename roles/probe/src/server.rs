//! Probing a server: what it asks for, what it accepts, what it presents.

mod certificate;
mod clients;
mod framing;
mod headers;
mod plaintext;
mod revocation;
mod scan;

use countersign_findings::{Code, Finding};
use countersign_identity::{SpiffeId, TrustDomain, UnixTime};
use countersign_tls::probe::{Offer, ProbeClient, ProbeIdentity};

use crate::ask::{Asked, Question, ask};
use crate::dial::{Dialer, Failed};
use crate::options::{Publisher, ServerOptions};
use crate::report::{Outcome, Report};

/// One target, as it is probed.
struct Target<'a> {
    options: &'a ServerOptions,
    dialer: Dialer,
    now: UnixTime,
    /// Who may call, or somebody, if nobody is named.
    id: SpiffeId,
}

/// An attempt to get an answer over TLS.
struct Attempt {
    asked: Asked,
    /// Whether a certificate was asked for.
    was_asked: bool,
    chain: Vec<Vec<u8>>,
    negotiated: Option<String>,
}

/// Finds out what a server accepts. It is sent no secrets, and nothing it says is believed. `publisher` brings it the
/// revocation list, where one is to be tried.
pub async fn probe_server(
    options: &ServerOptions,
    publisher: &mut impl Publisher,
    now: UnixTime,
) -> Result<Report, Finding> {
    let somebody = || {
        TrustDomain::new("countersign-probe.invalid")
            .map_err(|e| e.to_string())
            .and_then(|td| SpiffeId::from_path(&td, "/probe").map_err(|e| e.to_string()))
            .map_err(|e| Finding::new(Code::InternalError, e))
    };
    let id = match &options.id {
        Some(id) => id.clone(),
        None => somebody()?,
    };
    let dialer = Dialer::new(options.protocol, options.timeout, options.max_connections);
    let target = Target { options, dialer, now, id };
    let mut report = Report::new(options.target.clone());
    // One connection first: is anybody there at all?
    drop(target.dialer.tcp(&options.target).await.map_err(|why| {
        Finding::new(Code::UpstreamUnreachable, why)
            .at(options.target.clone())
            .hint("check the name and the port, and that something listens there")
    })?);
    let first = target.attempt(None, &[], None).await;
    if first.chain.is_empty() {
        return target.without_handshake(report, first.asked).await;
    }
    report.negotiated.clone_from(&first.negotiated);
    target.certificate(&mut report, &first.chain);
    let right = target.clients(&mut report, first).await?;
    target.plaintext(&mut report, right.as_ref().and_then(|r| r.status)).await;
    target.scan(&mut report).await;
    if options.protocol.is_http() {
        target.headers(&mut report).await?;
        target.framing(&mut report, right.as_ref()).await;
    }
    // Last, as it changes what the server knows.
    target.revocation(&mut report, publisher).await?;
    if options.strict {
        report.expect_strict();
    }
    report.connections = target.dialer.made();
    if target.dialer.is_exhausted() {
        let what = "what comes after the last connection: raise --max-connections";
        report.not_tried.push(what.into());
    }
    Ok(report.finished())
}

impl Target<'_> {
    /// No handshake got as far as a certificate: it is no TLS, or only a version that no library speaks any more.
    async fn without_handshake(&self, mut report: Report, first: Asked) -> Result<Report, Finding> {
        self.plaintext(&mut report, None).await;
        self.scan(&mut report).await;
        let says = |id: &str| report.outcome(id) == Some(Outcome::Accepted);
        let versions = ["protocol/tls10", "protocol/tls11", "protocol/tls12", "protocol/tls13"];
        let speaks = versions.into_iter().any(says);
        if !speaks && !says("plaintext/same-port") {
            let at = self.options.target.clone();
            // Whoever answers with an alert speaks TLS, and is not content.
            return Err(match first.evidence.starts_with("TLS alert") {
                true => Finding::new(Code::HandshakeFailed, first.evidence)
                    .hint("give the name that the server expects with --server-name"),
                false => Finding::new(Code::PeerNotTls, first.evidence)
                    .hint("say with --protocol how TLS begins there (postgres, mysql, smtp)"),
            }
            .at(at));
        }
        report.case("protocol/tls", Outcome::Refused, first.evidence);
        report.not_tried.push("all that comes after a handshake: there was none".into());
        if self.options.strict {
            report.expect_strict();
        }
        report.connections = self.dialer.made();
        Ok(report.finished())
    }

    fn question<'q>(
        &'q self,
        fields: &'q [(&'q str, &'q str)],
        raw: Option<&'q str>,
    ) -> Question<'q> {
        let (host, path) = (self.options.name(), self.options.path.as_str());
        Question { host, path, fields, raw, keep: false, timeout: self.options.timeout }
    }

    fn client(
        &self,
        identity: Option<&ProbeIdentity>,
        offer: Offer,
    ) -> Result<ProbeClient, String> {
        let alpn = self.options.protocol.alpn();
        ProbeClient::new(identity, self.options.name(), alpn, offer).map_err(|e| e.to_string())
    }

    /// One connection with `identity`, and one question.
    async fn attempt(
        &self,
        identity: Option<&ProbeIdentity>,
        fields: &[(&str, &str)],
        raw: Option<&str>,
    ) -> Attempt {
        match self.client(identity, Offer::Both) {
            Ok(client) => self.attempt_as(&client, fields, raw).await,
            Err(why) => Attempt {
                asked: Asked::new(Outcome::Unclear, why),
                was_asked: false,
                chain: Vec::new(),
                negotiated: None,
            },
        }
    }

    async fn attempt_as(
        &self,
        client: &ProbeClient,
        fields: &[(&str, &str)],
        raw: Option<&str>,
    ) -> Attempt {
        let _place = self.dialer.place().await;
        let (asked, negotiated) = match self.dialer.tls(&self.options.target, client).await {
            Ok(session) => {
                let info = &session.info;
                let group = if info.group.is_empty() { "" } else { " " };
                let resumed = if info.resumed { " resumed" } else { "" };
                let text =
                    format!("{} {}{group}{}{resumed}", info.version, info.cipher, info.group);
                let alpn = session.alpn;
                let question = self.question(fields, raw);
                let stream = Box::new(session.stream);
                let asked = ask(stream, self.options.protocol, alpn.as_deref(), &question).await;
                (asked, Some(text))
            }
            Err(failed) => (failure(failed), None),
        };
        Attempt { asked, was_asked: client.was_asked(), chain: client.presented(), negotiated }
    }
}

fn failure(failed: Failed) -> Asked {
    use countersign_tls::HandshakeError as E;
    match failed {
        Failed::NoConnection(why) | Failed::NoTls(why) => Asked::new(Outcome::Unclear, why),
        Failed::Handshake(e @ E::Timeout(_)) => Asked::new(Outcome::Unclear, e.to_string()),
        Failed::Handshake(E::Alert(alert, _)) => {
            Asked::new(Outcome::Refused, format!("TLS alert {alert}"))
        }
        Failed::Handshake(e) => Asked::new(Outcome::Refused, e.to_string()),
    }
}
