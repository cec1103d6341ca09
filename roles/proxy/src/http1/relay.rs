//! Serving requests of one client connection over one upstream connection.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use countersign_engines::Refusal;
use countersign_findings::{Code, Finding};
use countersign_policy::{Authenticated, Normalization};
use countersign_telemetry::ConnectionId;
use countersign_tls::HandshakeError;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::buffered::Buffered;
use super::head::{RequestHead, engine_refusal, refusal};
use super::pump::{Broken, Done, Pump};
use crate::forward::{Volume, relay};
use crate::stream::{Relayed, Resettable};

/// A client may be silent this long between requests…
pub(crate) const IDLE: Duration = Duration::from_secs(300);
/// …and take this long from the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(10);

/// What happens to one request.
pub(crate) enum Next<'a> {
    /// It goes on, with this value for X-Forwarded-Client-Cert, and changed like this.
    Forward(Option<&'a str>, Option<Box<Authenticated>>),
    /// It is answered by us, or as an external engine wants it.
    Refuse(Finding, Option<Refusal>),
}

/// What a connection's owner decides and provides.
pub(crate) trait Exchange {
    type Upstream: Relayed;

    /// Judges a request. May ask others; nearly always it is done at once.
    fn judge<'s>(&'s self, request: &RequestHead<'_>) -> impl Future<Output = Next<'s>> + Send;

    /// Opens the connection to the other side.
    fn connect(&self) -> impl Future<Output = Result<Self::Upstream, Finding>> + Send;

    /// Whether the connection that [`Exchange::connect`] opened last should carry no further request,
    /// because what it rests on is about to end.
    fn is_stale(&self) -> bool {
        false
    }

    /// Whether the client's connection is about to end: it is told so with the answer, and can make another one in
    /// time, instead of finding this one closed under its next request.
    fn ends_soon(&self) -> bool {
        false
    }

    /// Told the head of each request that goes on, and `None` when its exchange is over: what is under
    /// way may have to be judged again.
    fn under_way(&self, _head: Option<&[u8]>) {}

    /// What it means that the other side has refused us.
    fn explain(&self, refused: &HandshakeError) -> Finding {
        refused.finding()
    }

    /// Told of each request that was refused.
    fn refused(&self, finding: &Finding);

    /// How paths are normalised.
    fn normalization(&self) -> Normalization;

    /// Whether callers' identity headers are removed.
    fn strips_identity(&self) -> bool;
}

/// How serving ended, and what it amounted to.
pub(crate) struct HttpEnd {
    pub(crate) requests: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Failures after the handshake that deserve a record.
    pub(crate) failure: Option<Finding>,
    /// Whether the client's connection was closed properly; otherwise an answer was cut off.
    pub(crate) clean: bool,
}

enum Outcome {
    KeepAlive,
    Close,
    Upgraded,
}

/// Serves `client` until it is done. `early` was read from it already. When `draining` becomes true the
/// request under way is finished and the connection closed.
pub(crate) async fn serve<C: Relayed, E: Exchange>(
    client: &mut C,
    early: Vec<u8>,
    exchange: &E,
    id: ConnectionId,
    mut draining: watch::Receiver<bool>,
) -> HttpEnd {
    let mut end = HttpEnd { requests: 0, sent: 0, received: 0, failure: None, clean: true };
    let mut client = Buffered::new(client, early);
    let mut upstream: Option<Buffered<E::Upstream>> = None;
    let mut idle = Idle::new();
    while matches!(idle.wait_for_head(&mut client, &mut upstream, &mut draining).await, Ok(true)) {
        let close_after = *draining.borrow() || exchange.ends_soon();
        match one(&mut client, &mut upstream, exchange, id, close_after, &mut end).await {
            Ok(Outcome::KeepAlive) => exchange.under_way(None),
            Ok(Outcome::Close) => break,
            Ok(Outcome::Upgraded) => {
                if let Some(far) = upstream.take() {
                    upgraded(&mut client, far, &mut end).await;
                }
                exchange.under_way(None);
                return end;
            }
            Err(finding) => {
                end.failure = Some(finding);
                break;
            }
        }
    }
    exchange.under_way(None);
    if end.clean {
        let _ = client.io.shutdown().await;
    }
    end
}

/// Both sides speak something else from here on; what was read of it already goes first.
async fn upgraded<C: Relayed, U: Relayed>(
    client: &mut Buffered<&mut C>,
    mut far: Buffered<U>,
    end: &mut HttpEnd,
) {
    let answer = far.bytes().to_vec();
    if client.io.write_all(&answer).await.is_ok() {
        let early = client.bytes().to_vec();
        let mut count = Volume::default();
        let _ = relay(&mut *client.io, &mut far.io, early, &mut count).await;
        end.sent += count.sent;
        end.received += count.received + answer.len() as u64;
    }
}

/// Waiting between requests.
struct Idle {
    /// Armed once and moved on when it fires too early: a timer for every request would cost more than
    /// parsing it.
    alarm: Pin<Box<Sleep>>,
}

impl Idle {
    fn new() -> Self {
        Self { alarm: Box::pin(tokio::time::sleep(IDLE)) }
    }

    /// Waits until a request head has begun. `false`: the client is done, idle too long, or the proxy is
    /// draining.
    async fn wait_for_head<C: Relayed, U: Relayed>(
        &mut self,
        client: &mut Buffered<&mut C>,
        upstream: &mut Option<Buffered<U>>,
        draining: &mut watch::Receiver<bool>,
    ) -> io::Result<bool> {
        if !client.bytes().is_empty() {
            return Ok(true);
        }
        let deadline = Instant::now() + IDLE;
        loop {
            tokio::select! {
                // An upstream that closes between requests is opened anew for the next one; looked at
                // first, so that a request that arrives together with the close does not go there.
                biased;
                _ = async {
                    match upstream.as_mut() {
                        Some(far) => far.fill().await,
                        None => std::future::pending().await,
                    }
                } => *upstream = None,
                filled = client.fill() => return filled,
                () = &mut self.alarm => {
                    if Instant::now() >= deadline {
                        return Ok(false);
                    }
                    self.alarm.as_mut().reset(deadline);
                }
                _ = draining.wait_for(|d| *d) => return Ok(false),
            }
        }
    }
}

async fn answer<C: Relayed>(
    client: &mut Buffered<&mut C>,
    status: u16,
    code: Code,
    id: ConnectionId,
    close: bool,
) {
    say(client, &refusal(status, code, id, close), close).await;
}

async fn say<C: Relayed>(client: &mut Buffered<&mut C>, answer: &[u8], close: bool) {
    let _ = client.io.write_all(answer).await;
    let _ = client.io.flush().await;
    if close {
        // Reading what still comes lets the answer arrive before the close does.
        let _ = client.io.shutdown().await;
        let drain = async {
            for _ in 0..64 {
                client.clear();
                if !client.fill().await.unwrap_or(false) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(200), drain).await;
    }
}

async fn one<C: Relayed, E: Exchange>(
    client: &mut Buffered<&mut C>,
    upstream: &mut Option<Buffered<E::Upstream>>,
    exchange: &E,
    id: ConnectionId,
    close_after: bool,
    end: &mut HttpEnd,
) -> Result<Outcome, Finding> {
    // The head, complete. Its fields borrow from the buffer, so it is parsed again once it is whole;
    // nearly always it arrives in one read and is parsed once.
    let deadline = Instant::now() + HEAD;
    let mut out = Vec::with_capacity(1024);
    let (method, framing, keep_alive, upgrade, len);
    let next = loop {
        match RequestHead::parse(client.bytes(), exchange.normalization()) {
            Ok(Some(head)) => {
                let next = exchange.judge(&head).await;
                if let Next::Forward(identity, edits) = &next {
                    let strips = exchange.strips_identity();
                    head.write(*identity, strips, edits.as_deref(), &mut out);
                }
                // All that matters of the method once the head is written.
                method = if head.method == "HEAD" { "HEAD" } else { "" };
                keep_alive = head.keep_alive && !close_after;
                upgrade = head.upgrade;
                len = head.len;
                framing = head.framing;
                break next;
            }
            Ok(None) => {}
            Err(bad) => {
                answer(client, bad.status(), bad.code(), id, true).await;
                return Err(bad.finding());
            }
        }
        match tokio::time::timeout_at(deadline, client.fill()).await {
            Ok(Ok(true)) => {}
            Ok(_) => return Ok(Outcome::Close),
            Err(_) => {
                return Err(Finding::new(
                    Code::MalformedHttp,
                    format!("request head did not arrive within {} s", HEAD.as_secs()),
                ));
            }
        }
    };
    end.requests += 1;
    if let Next::Refuse(finding, by_engine) = next {
        client.consume(len);
        // A body that nobody reads cannot be told from the next request.
        let close = !framing.is_done() || !keep_alive;
        exchange.refused(&finding);
        let mut told = match &by_engine {
            Some(r) => engine_refusal(r, finding.code, id, close),
            None => refusal(finding.code.http_status(), finding.code, id, close),
        };
        if method == "HEAD" {
            // Its answer has no body: what came of one would pass for the next answer.
            let head = told.windows(4).position(|w| w == b"\r\n\r\n").map_or(told.len(), |i| i + 4);
            told.truncate(head);
        }
        say(client, &told, close).await;
        return Ok(if close { Outcome::Close } else { Outcome::KeepAlive });
    }
    exchange.under_way(Some(&client.bytes()[..len]));
    client.consume(len);
    let mut far = match reusable(upstream, exchange).await {
        Some(far) => far,
        None => match exchange.connect().await {
            Ok(stream) => Buffered::new(stream, Vec::new()),
            Err(finding) => {
                let status = if finding.code == Code::UpstreamTimeout { 504 } else { 502 };
                answer(client, status, finding.code, id, true).await;
                return Err(finding);
            }
        },
    };
    let mut pump = Pump::new(out, framing, method, keep_alive, upgrade);
    let result = std::future::poll_fn(|cx| pump.poll(cx, client, &mut far)).await;
    let (sent, received) = pump.written();
    end.sent += sent;
    end.received += received;
    let failure = match result {
        Ok(Done::Upgraded) => {
            *upstream = Some(far);
            return Ok(Outcome::Upgraded);
        }
        Ok(Done::Complete { near, far: keeps }) => {
            if keeps {
                *upstream = Some(far);
            }
            return Ok(if near { Outcome::KeepAlive } else { Outcome::Close });
        }
        Err(Broken::Near) => {
            // Whoever works on the answer need not go on.
            far.io.reset_on_close();
            return Ok(Outcome::Close);
        }
        Err(Broken::Far(finding)) => finding,
        Err(Broken::Refused(error)) => exchange.explain(&error),
    };
    if pump.has_begun_answering() {
        // Half an answer is out: only a reset says that it is not whole.
        client.io.reset_on_close();
        end.clean = false;
    } else {
        answer(client, 502, failure.code, id, true).await;
    }
    Err(failure)
}

/// The connection of the request before, unless another one should take its place.
async fn reusable<E: Exchange>(
    upstream: &mut Option<Buffered<E::Upstream>>,
    exchange: &E,
) -> Option<Buffered<E::Upstream>> {
    let mut far = upstream.take()?;
    if !exchange.is_stale() {
        return Some(far);
    }
    let _ = tokio::time::timeout(Duration::from_millis(100), far.io.shutdown()).await;
    None
}
