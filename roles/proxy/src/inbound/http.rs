//! HTTP/1.1 from a peer: every request is decided by itself, and again when policies change under it.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_engines::Reply;
use countersign_findings::{Code, Finding};
use countersign_policy::{
    Authenticated, Authorizer, HttpRequest, Normalization, Permit, PolicySet, Request, Token,
    TokenRefused, Workload,
};
use countersign_telemetry::Direction;
use countersign_tls::current_time;
use countersign_x509::{Peer, hex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::engine::{Asked, edited};
use super::{Inbound, Policies, Proof, dial, source_of};
use crate::forward::{Renewal, Volume, forward};
use crate::http1::{self, Exchange, Next, RequestHead};
use crate::shared::no_identity_yet;
use crate::stream::Relayed;

impl Inbound<'_> {
    /// Serves HTTP until the connection ends. `false`: it broke, and the close must show that.
    pub(super) async fn http<C: Relayed>(
        &self,
        client: &mut C,
        peer: Option<&Peer>,
        early: Vec<u8>,
        count: &mut Volume,
    ) -> bool {
        let exchange = HttpInbound {
            connection: self,
            peer,
            identity: self.forwarded_client_cert(peer),
            renewal: Renewal::default(),
            under_way: Mutex::default(),
        };
        let draining = self.shared.draining.subscribe();
        // Each request is decided by itself; the permit here bounds the connection's life.
        let permit = match exchange.connection_permit() {
            Ok(permit) => permit,
            Err(finding) => {
                self.note(peer, &finding);
                self.refuse_connection(client, early, finding.code).await;
                return true;
            }
        };
        let still = || exchange.still_permitted();
        let work = http1::serve(client, early, &exchange, self.id, draining);
        match forward(permit, peer, self.shared, Some(&exchange.renewal), still, work).await {
            Ok(end) => {
                count.sent += end.sent;
                count.received += end.received;
                self.shared.metrics.http_requests(Direction::Inbound, end.requests);
                if let Some(finding) = end.failure {
                    self.note(peer, &finding);
                }
                end.clean
            }
            Err(code) => {
                self.cut(peer, code);
                client.reset_on_close();
                false
            }
        }
    }

    /// Answers the first request of a peer that may make none, so that its side can tell why.
    async fn refuse_connection<C: Relayed>(&self, client: &mut C, early: Vec<u8>, code: Code) {
        let mut head = [0; 4096];
        if early.is_empty() {
            // What is not asked need not be answered.
            let asked = tokio::time::timeout(Duration::from_secs(1), client.read(&mut head)).await;
            if !matches!(asked, Ok(Ok(1..))) {
                return;
            }
        }
        let _ = client.write_all(&http1::refusal(code.http_status(), code, self.id, true)).await;
        let _ = client.shutdown().await;
        // A reset for what is still coming would take the answer along.
        let drain = async { while matches!(client.read(&mut head).await, Ok(1..)) {} };
        let _ = tokio::time::timeout(Duration::from_millis(200), drain).await;
    }

    /// Envoy's form: who vouches, and what was verified.
    fn forwarded_client_cert(&self, peer: Option<&Peer>) -> Option<String> {
        let peer = peer?;
        let mut out = String::with_capacity(256);
        if let Some(own) = self.shared.credentials.current() {
            let _ = write!(out, "By={};", own.id);
        }
        // Readers that split at `;` before they look at quotes must not find an element of its making.
        let subject = peer.leaf().subject.replace(['"', '\\', ';'], "");
        let _ = write!(out, "Hash={};Subject=\"{subject}\"", hex(&peer.leaf().sha256));
        if let Some(id) = peer.id() {
            let _ = write!(out, ";URI={id}");
        }
        // Only what is a DNS name: anything else could add an element of its own to the header.
        let is_name =
            |d: &&String| d.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.*_".contains(&b));
        for dns in peer.leaf().dns_sans.iter().filter(is_name) {
            let _ = write!(out, ";DNS={dns}");
        }
        // What goes into a header must not end it.
        out.bytes().all(|b| (0x20..0x7f).contains(&b)).then_some(out)
    }
}

/// Before a client's certificate ends, its kept connections are given up with the answer.
const LAST_MOMENTS: Duration = Duration::from_secs(10);

struct HttpInbound<'a> {
    connection: &'a Inbound<'a>,
    peer: Option<&'a Peer>,
    /// What the application is told about the peer.
    identity: Option<String>,
    /// Wakes whoever watches over the permit, when a request begins whose token ends some time.
    renewal: Renewal,
    under_way: Mutex<UnderWay>,
}

/// The request under way.
#[derive(Default)]
struct UnderWay {
    /// Empty between requests.
    head: Vec<u8>,
    /// What an external engine said about it. A change of policies does not ask again; it counts as long as
    /// the policies ask the same engine.
    reply: Option<Reply>,
}

impl HttpInbound<'_> {
    fn expects_tokens(&self) -> bool {
        self.connection.shared.policies.load().as_ref().is_some_and(|p| p.expects_tokens())
    }

    /// A permit for the connection: the list of allowed peers is judged at once, policies at each
    /// request, because they may depend on it.
    fn connection_permit(&self) -> Result<Permit, Finding> {
        let Some(credentials) = self.connection.shared.credentials.current() else {
            return Err(no_identity_yet());
        };
        let nothing = PolicySet::compile(&[], &Workload::of(&credentials.id), 0);
        let list = self.connection.options.allow.clone();
        let decision = Authorizer::new(list, Arc::new(nothing)).decide(&Request {
            source: source_of(self.peer),
            source_ip: self.connection.from.ip(),
            remote_ip: self.connection.from.ip(),
            destination_ip: self.connection.local.ip(),
            destination_port: self.connection.local.port(),
            sni: None,
            http: None,
            token: None,
            external: None,
        });
        let result = decision.permit().map_err(|d| d.finding());
        if let Err(finding) = &result {
            self.connection.shared.metrics.decided(Direction::Inbound, Some(finding.code));
        }
        result
    }

    /// What the request's token proves, if policies ask for tokens.
    fn authenticate(
        &self,
        policies: &Policies,
        head: &RequestHead<'_>,
    ) -> Result<Option<Box<Authenticated>>, TokenRefused> {
        let Some(policies) = policies.as_ref().filter(|p| p.expects_tokens()) else {
            return Ok(None);
        };
        let keys = self.connection.shared.issuers.published();
        policies
            .authenticate(&parts(head, &head.fields), head.query(), current_time(), &keys)
            .map(|a| Some(Box::new(a)))
    }

    /// As [`HttpInbound::authenticate`]; where the issuer may have newer keys, they are fetched first.
    async fn authenticate_now(
        &self,
        policies: &Policies,
        head: &RequestHead<'_>,
    ) -> Result<Option<Box<Authenticated>>, Finding> {
        let result = self.authenticate(policies, head);
        let result = match &result {
            Err(TokenRefused { newer_keys: Some(location), .. })
                if self.connection.shared.issuers.renew(location).await =>
            {
                self.authenticate(policies, head)
            }
            _ => result,
        };
        result.map_err(|e| e.finding)
    }

    /// Asks the external engine about a request, if policies want that.
    async fn ask(
        &self,
        policies: &Policies,
        request: &RequestHead<'_>,
        edits: Option<&Authenticated>,
    ) -> Option<Reply> {
        // Nearly nobody has an engine, and then nothing is copied or decided here.
        policies.as_ref().filter(|p| p.providers().next().is_some())?;
        let fields = request.judged(edits);
        let asked = Asked::of(request, parts(request, &fields));
        let proof = Proof { token: edits.and_then(|a| a.token.as_ref()), external: None };
        self.connection.consult(policies, self.peer, Some(asked), proof).await
    }

    /// Between requests only the mode counts; the next request is judged when it comes.
    fn still_permitted(&self) -> Result<Option<Duration>, Code> {
        let under_way = self.under_way.lock().unwrap_or_else(|e| e.into_inner());
        match RequestHead::parse(&under_way.head, self.normalization()) {
            Ok(Some(head)) => {
                let policies = self.connection.policies();
                let reply = under_way.reply.as_ref();
                // What is under way does not wait for newer keys; they count as they are.
                let authenticated =
                    self.authenticate(&policies, &head).map_err(|e| e.finding.code)?;
                let authenticated = edited(authenticated, reply, &head);
                let edits = authenticated.as_deref();
                let token = edits.and_then(|a| a.token.as_ref());
                let fields = head.judged(edits);
                let http = Some(parts(&head, &fields));
                let proof = Proof { token, external: reply.map(|r| &r.external) };
                let left = self.connection.still_permitted(&policies, self.peer, http, proof)?;
                // What a token allows ends with it.
                let of_token = token
                    .and_then(Token::expires_at)
                    .map(|end| end.since(current_time()) + Duration::from_secs(1));
                Ok(left.into_iter().chain(of_token).min())
            }
            _ => self.connection.plaintext_left(self.peer),
        }
    }
}

fn parts<'a>(head: &'a RequestHead<'_>, fields: &'a [(&'a str, &'a str)]) -> HttpRequest<'a> {
    HttpRequest { method: head.method, host: head.host, path: head.path(), headers: fields }
}

impl Exchange for HttpInbound<'_> {
    type Upstream = TcpStream;

    async fn judge<'s>(&'s self, request: &RequestHead<'_>) -> Next<'s> {
        let policies = self.connection.policies();
        let authenticated = match self.authenticate_now(&policies, request).await {
            Ok(authenticated) => authenticated,
            Err(finding) => {
                self.connection.shared.metrics.decided(Direction::Inbound, Some(finding.code));
                return Next::Refuse(finding, None);
            }
        };
        let reply = self.ask(&policies, request, authenticated.as_deref()).await;
        let authenticated = edited(authenticated, reply.as_ref(), request);
        let edits = authenticated.as_deref();
        let judged = request.needs_judged(edits).then(|| request.judged(edits));
        let fields = judged.as_deref().unwrap_or(&request.fields);
        let proof = Proof {
            token: edits.and_then(|a| a.token.as_ref()),
            external: reply.as_ref().map(|r| &r.external),
        };
        match self.connection.permit(&policies, self.peer, Some(parts(request, fields)), proof) {
            Ok(_permit) => {
                self.under_way.lock().unwrap_or_else(|e| e.into_inner()).reply = reply;
                Next::Forward(self.identity.as_deref(), authenticated)
            }
            Err(finding) => {
                let by_engine =
                    matches!(finding.code, Code::DeniedByEngine | Code::EngineUnavailable);
                Next::Refuse(finding, reply.and_then(|r| r.refusal).filter(|_| by_engine))
            }
        }
    }

    fn connect(&self) -> impl Future<Output = Result<TcpStream, Finding>> + Send {
        dial(&self.connection.options.forward)
    }

    fn ends_soon(&self) -> bool {
        let Some(leaf) = self.peer.map(Peer::leaf) else { return false };
        // Clients get their next certificate at half of the life: whoever opens anew now has it.
        let margin = (leaf.not_after.since(leaf.not_before) / 8).min(LAST_MOMENTS);
        current_time() >= leaf.not_after - margin
    }

    fn under_way(&self, head: Option<&[u8]>) {
        if head.is_some() && self.expects_tokens() {
            self.renewal.ask_again();
        }
        let mut slot = self.under_way.lock().unwrap_or_else(|e| e.into_inner());
        slot.head.clear();
        slot.head.extend_from_slice(head.unwrap_or_default());
    }

    fn refused(&self, finding: &Finding) {
        self.connection.note(self.peer, finding);
    }

    fn normalization(&self) -> Normalization {
        self.connection.shared.mesh.normalization
    }

    fn strips_identity(&self) -> bool {
        true
    }
}
