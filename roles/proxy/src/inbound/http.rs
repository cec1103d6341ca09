//! HTTP/1.1 from a peer: every request is decided by itself, and again when policies change under it.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_policy::{
    Authenticated, Authorizer, HttpRequest, Normalization, Permit, PolicySet, Request, Token,
    Workload,
};
use countersign_telemetry::Direction;
use countersign_tls::current_time;
use countersign_x509::{PeerIdentity, hex};
use tokio::net::TcpStream;

use super::{Inbound, Policies, dial, source_of};
use crate::forward::{Renewal, Volume, forward};
use crate::http1::{self, Exchange, Next, RequestHead};
use crate::shared::no_identity_yet;
use crate::stream::Relayed;

impl Inbound<'_> {
    /// Serves HTTP until the connection ends. `false`: it broke, and the close must show that.
    pub(super) async fn http<C: Relayed>(
        &self,
        client: &mut C,
        peer: Option<&Arc<PeerIdentity>>,
        early: Vec<u8>,
        count: &mut Volume,
    ) -> bool {
        let exchange = HttpInbound {
            connection: self,
            peer,
            identity: self.forwarded_client_cert(peer),
            renewal: Renewal::default(),
            head: Mutex::new(Vec::new()),
        };
        let draining = self.shared.draining.subscribe();
        // Each request is decided by itself; the permit here bounds the connection's life.
        let permit = match exchange.connection_permit() {
            Ok(permit) => permit,
            Err(finding) => {
                self.note(peer, &finding);
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

    /// Envoy's form: who vouches, and what was verified.
    fn forwarded_client_cert(&self, peer: Option<&Arc<PeerIdentity>>) -> Option<String> {
        let peer = peer?;
        let mut out = String::with_capacity(256);
        if let Some(own) = self.shared.credentials.current() {
            let _ = write!(out, "By={};", own.id);
        }
        let subject = peer.leaf().subject.replace(['"', '\\'], "");
        let _ = write!(
            out,
            "Hash={};Subject=\"{subject}\";URI={}",
            hex(&peer.leaf().sha256),
            peer.id()
        );
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

struct HttpInbound<'a> {
    connection: &'a Inbound<'a>,
    peer: Option<&'a Arc<PeerIdentity>>,
    /// What the application is told about the peer.
    identity: Option<String>,
    /// Wakes whoever watches over the permit, when a request begins whose token ends some time.
    renewal: Renewal,
    /// The head of the request under way; empty between requests.
    head: Mutex<Vec<u8>>,
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
            destination_ip: self.connection.local.ip(),
            destination_port: self.connection.local.port(),
            sni: None,
            http: None,
            token: None,
        });
        let result = decision.permit().map_err(|d| d.finding());
        if let Err(finding) = &result {
            self.connection.shared.metrics.decided(Direction::Inbound, Some(finding.code));
        }
        result
    }

    /// Between requests only the mode counts; the next request is judged when it comes.
    fn still_permitted(&self) -> Result<Option<Duration>, Code> {
        let head = self.head.lock().unwrap_or_else(|e| e.into_inner());
        match RequestHead::parse(&head, self.normalization()) {
            Ok(Some(head)) => {
                let policies = self.connection.policies();
                let authenticated = authenticate(&policies, &head).map_err(|e| e.code)?;
                let edits = authenticated.as_deref();
                let token = edits.and_then(|a| a.token.as_ref());
                let fields = head.judged(edits);
                let http = Some(parts(&head, &fields));
                let left = self.connection.still_permitted(&policies, self.peer, http, token)?;
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

/// What the request's token proves, if policies ask for tokens.
fn authenticate(
    policies: &Policies,
    head: &RequestHead<'_>,
) -> Result<Option<Box<Authenticated>>, Finding> {
    let Some(policies) = policies.as_ref().filter(|p| p.expects_tokens()) else {
        return Ok(None);
    };
    policies
        .authenticate(&parts(head, &head.fields), head.query(), current_time())
        .map(|a| Some(Box::new(a)))
}

fn parts<'a>(head: &'a RequestHead<'_>, fields: &'a [(&'a str, &'a str)]) -> HttpRequest<'a> {
    HttpRequest { method: head.method, host: head.host, path: head.path(), headers: fields }
}

impl Exchange for HttpInbound<'_> {
    type Upstream = TcpStream;

    fn judge(&self, request: &RequestHead<'_>) -> Next<'_> {
        let policies = self.connection.policies();
        let authenticated = match authenticate(&policies, request) {
            Ok(authenticated) => authenticated,
            Err(finding) => {
                self.connection.shared.metrics.decided(Direction::Inbound, Some(finding.code));
                return Next::Refuse(finding);
            }
        };
        let edits = authenticated.as_deref();
        let token = edits.and_then(|a| a.token.as_ref());
        let judged = request.needs_judged(edits).then(|| request.judged(edits));
        let fields = judged.as_deref().unwrap_or(&request.fields);
        match self.connection.permit(&policies, self.peer, Some(parts(request, fields)), token) {
            Ok(_permit) => Next::Forward(self.identity.as_deref(), authenticated),
            Err(finding) => Next::Refuse(finding),
        }
    }

    fn connect(&self) -> impl Future<Output = Result<TcpStream, Finding>> + Send {
        dial(&self.connection.options.forward)
    }

    fn under_way(&self, head: Option<&[u8]>) {
        if head.is_some() && self.expects_tokens() {
            self.renewal.ask_again();
        }
        let mut slot = self.head.lock().unwrap_or_else(|e| e.into_inner());
        slot.clear();
        slot.extend_from_slice(head.unwrap_or_default());
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
