//! Serving requests of one client connection over one upstream connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_telemetry::ConnectionId;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;

use super::framing::Framing;
use super::head::{RequestHead, ResponseHead, refusal};
use crate::stream::Relayed;

/// A client may be silent this long between requests…
const IDLE: Duration = Duration::from_secs(300);
/// …and take this long from the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(10);
const READ: usize = 16 << 10;

/// A stream with what was read from it and not used yet.
struct Buffered<S> {
    io: S,
    data: Vec<u8>,
    at: usize,
    eof: bool,
}

impl<S: AsyncRead + Unpin> Buffered<S> {
    fn new(io: S, data: Vec<u8>) -> Self {
        Self { io, data, at: 0, eof: false }
    }

    fn bytes(&self) -> &[u8] {
        &self.data[self.at..]
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
        if self.at == self.data.len() {
            self.at = 0;
            if self.data.capacity() > READ * 4 {
                self.data = Vec::new();
            } else {
                self.data.clear();
            }
        }
    }

    /// Reads once more; `false` at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.at > 0 {
            self.data.drain(..self.at);
            self.at = 0;
        }
        let len = self.data.len();
        self.data.resize(len + READ, 0);
        let mut buf = ReadBuf::new(&mut self.data[len..]);
        let result = Pin::new(&mut self.io).poll_read(cx, &mut buf);
        let n = buf.filled().len();
        self.data.truncate(len + n);
        ready!(result)?;
        self.eof |= n == 0;
        Poll::Ready(Ok(n > 0))
    }

    async fn fill(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }
}

/// What happens to one request.
pub(crate) enum Next {
    /// It goes on, with this value for X-Forwarded-Client-Cert.
    Forward(Option<String>),
    /// It is answered by us.
    Refuse(Finding),
}

/// What a connection's owner decides and provides.
pub(crate) trait Exchange {
    type Upstream: Relayed;

    /// Judges a request.
    fn judge(&self, method: &str, host: &str, path: &str, fields: &[(&str, &str)]) -> Next;

    /// Opens the connection to the other side.
    fn connect(&self) -> impl Future<Output = Result<Self::Upstream, Finding>> + Send;

    /// Told of each request that was refused.
    fn refused(&self, finding: &Finding);

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
    loop {
        match wait_for_head(&mut client, &mut upstream, &mut draining).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(_) => break,
        }
        let close_after = *draining.borrow();
        let result = one(&mut client, &mut upstream, exchange, id, close_after, &mut end).await;
        match result {
            Ok(Outcome::KeepAlive) => {}
            Ok(Outcome::Close) => break,
            Ok(Outcome::Upgraded) => {
                if let Some(mut far) = upstream.take() {
                    let rest = far.bytes().to_vec();
                    if client.io.write_all(&rest).await.is_ok() {
                        let early = client.bytes().to_vec();
                        let mut count = crate::forward::Relayed2::default();
                        let _ =
                            crate::forward::relay(&mut *client.io, &mut far.io, early, &mut count)
                                .await;
                        end.sent += count.sent;
                        end.received += count.received + rest.len() as u64;
                    }
                }
                return end;
            }
            Err(finding) => {
                end.failure = Some(finding);
                break;
            }
        }
    }
    if end.clean {
        let _ = client.io.shutdown().await;
    }
    end
}

/// Waits until a request head has begun and is complete. `false`: the client is done, idle too long, or
/// the proxy is draining.
async fn wait_for_head<C: Relayed, U: Relayed>(
    client: &mut Buffered<&mut C>,
    upstream: &mut Option<Buffered<U>>,
    draining: &mut watch::Receiver<bool>,
) -> io::Result<bool> {
    if client.bytes().is_empty() {
        let idle = tokio::time::sleep(IDLE);
        tokio::pin!(idle);
        loop {
            let mut far_closed = false;
            let filled = tokio::select! {
                // An upstream that closes between requests is opened anew for the next one; looked at
                // first, so that a request that arrives together with the close does not go there.
                biased;
                far = async {
                    match upstream.as_mut() {
                        Some(far) => far.fill().await,
                        None => std::future::pending().await,
                    }
                } => {
                    let _ = far;
                    far_closed = true;
                    None
                }
                filled = client.fill() => Some(filled?),
                () = &mut idle => return Ok(false),
                changed = draining.wait_for(|d| *d) => {
                    let _ = changed;
                    return Ok(false);
                }
            };
            if far_closed {
                *upstream = None;
                continue;
            }
            match filled {
                Some(true) => break,
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}

async fn answer<C: Relayed>(
    client: &mut Buffered<&mut C>,
    status: u16,
    code: Code,
    id: ConnectionId,
    close: bool,
) {
    let _ = client.io.write_all(&refusal(status, code, id, close)).await;
    let _ = client.io.flush().await;
    if close {
        // Reading what still comes lets the answer arrive before the close does.
        let _ = client.io.shutdown().await;
        let drain = async {
            for _ in 0..64 {
                client.data.clear();
                client.at = 0;
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
    let deadline = tokio::time::Instant::now() + HEAD;
    let mut out = Vec::with_capacity(1024);
    let (method_is_head, framing, keep_alive, upgrade, len);
    let next = loop {
        match RequestHead::parse(client.bytes()) {
            Ok(Some(head)) => {
                let next = exchange.judge(head.method, head.host, head.path(), &head.fields);
                if let Next::Forward(identity) = &next {
                    head.write(identity.as_deref(), exchange.strips_identity(), &mut out);
                }
                method_is_head = head.method == "HEAD";
                framing = head.framing.clone();
                keep_alive = head.keep_alive && !close_after;
                upgrade = head.upgrade;
                len = head.len;
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
    client.consume(len);
    end.requests += 1;
    if let Next::Refuse(finding) = next {
        let status = if finding.code == Code::PolicyUnavailable { 503 } else { 403 };
        // A body that nobody reads cannot be told from the next request.
        let close = !framing.is_done() || !keep_alive;
        exchange.refused(&finding);
        answer(client, status, finding.code, id, close).await;
        return Ok(if close { Outcome::Close } else { Outcome::KeepAlive });
    }
    let mut far = match upstream.take() {
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
    let method = if method_is_head { "HEAD" } else { "" };
    let mut pump = Pump {
        request: framing,
        to_far: out,
        to_far_at: 0,
        response: None,
        to_near: Vec::new(),
        to_near_at: 0,
        method,
        client_keeps: keep_alive,
        upgrade,
        sent: 0,
        received: 0,
        near_dirty: false,
        far_dirty: false,
        begun: false,
    };
    let result = std::future::poll_fn(|cx| pump.poll(cx, client, &mut far)).await;
    end.sent += pump.sent;
    end.received += pump.received;
    match result {
        Ok(Done::Upgraded) => {
            *upstream = Some(far);
            Ok(Outcome::Upgraded)
        }
        Ok(Done::Complete { near, far: keeps }) => {
            if keeps {
                *upstream = Some(far);
            }
            Ok(if near { Outcome::KeepAlive } else { Outcome::Close })
        }
        Err(Broken::Near) => Ok(Outcome::Close),
        Err(Broken::Far(finding)) => {
            if pump.begun {
                // Half an answer is out: only a reset says that it is not whole.
                client.io.reset_on_close();
                end.clean = false;
            } else {
                answer(client, 502, finding.code, id, true).await;
            }
            Err(finding)
        }
    }
}

/// One request and its response, both directions at once.
struct Pump<'a> {
    request: Framing,
    to_far: Vec<u8>,
    to_far_at: usize,
    /// `None` until the final response's head.
    response: Option<(Framing, bool)>,
    to_near: Vec<u8>,
    to_near_at: usize,
    method: &'a str,
    client_keeps: bool,
    upgrade: bool,
    sent: u64,
    received: u64,
    near_dirty: bool,
    far_dirty: bool,
    /// Whether anything of the response has been passed on.
    begun: bool,
}

enum Done {
    Complete { near: bool, far: bool },
    Upgraded,
}

enum Broken {
    Near,
    Far(Finding),
}

fn far_broke(e: &io::Error) -> Broken {
    let finding = match countersign_tls::HandshakeError::of_established(e) {
        // In TLS 1.3 a server judges our certificate after the handshake; this is where it shows.
        Some(tls) => tls.finding(),
        None => Finding::new(Code::UpstreamUnreachable, format!("upstream broke off: {e}")),
    };
    Broken::Far(finding)
}

fn poll_write_out<S: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    io: &mut S,
    data: &mut Vec<u8>,
    at: &mut usize,
    count: &mut u64,
) -> Poll<io::Result<()>> {
    while *at < data.len() {
        let n = ready!(Pin::new(&mut *io).poll_write(cx, &data[*at..]))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        *at += n;
        *count += n as u64;
    }
    data.clear();
    *at = 0;
    Poll::Ready(Ok(()))
}

impl Pump<'_> {
    fn poll<C: Relayed, U: Relayed>(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut Buffered<&mut C>,
        far: &mut Buffered<U>,
    ) -> Poll<Result<Done, Broken>> {
        loop {
            let mut progress = false;
            match self.poll_request(cx, near, far) {
                Poll::Ready(Ok(true)) => progress = true,
                Poll::Ready(Ok(false)) | Poll::Pending => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            }
            match self.poll_response(cx, near, far) {
                Poll::Ready(Ok(Some(done))) => return Poll::Ready(Ok(done)),
                Poll::Ready(Ok(None)) => progress = true,
                Poll::Pending => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// Head and body towards the far side; `true` if something moved, `false` when all of it is out.
    fn poll_request<C: Relayed, U: Relayed>(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut Buffered<&mut C>,
        far: &mut Buffered<U>,
    ) -> Poll<Result<bool, Broken>> {
        let mut moved = false;
        loop {
            // Head and the first of the body travel in one write.
            if !self.request.is_done() && self.to_far.len() - self.to_far_at < READ {
                let n = self
                    .request
                    .advance(near.bytes())
                    .map_err(|what| Broken::Far(Finding::new(Code::MalformedHttp, what)))?;
                if n > 0 {
                    self.to_far.extend_from_slice(&near.bytes()[..n]);
                    near.consume(n);
                }
            }
            if self.to_far_at < self.to_far.len() {
                let written = poll_write_out(
                    cx,
                    &mut far.io,
                    &mut self.to_far,
                    &mut self.to_far_at,
                    &mut self.sent,
                );
                match ready!(written) {
                    Ok(()) => {}
                    Err(e) => return Poll::Ready(Err(far_broke(&e))),
                }
                moved = true;
                self.far_dirty = true;
                continue;
            }
            if self.far_dirty {
                match Pin::new(&mut far.io).poll_flush(cx) {
                    Poll::Ready(Ok(())) => self.far_dirty = false,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(far_broke(&e))),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.request.is_done() {
                return Poll::Ready(Ok(moved));
            }
            match ready!(near.poll_fill(cx)) {
                Ok(true) => moved = true,
                _ => return Poll::Ready(Err(Broken::Near)),
            }
        }
    }

    /// Response heads and body towards the near side.
    fn poll_response<C: Relayed, U: Relayed>(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut Buffered<&mut C>,
        far: &mut Buffered<U>,
    ) -> Poll<Result<Option<Done>, Broken>> {
        loop {
            if let Some((framing, _)) = &mut self.response
                && !framing.is_done()
                && self.to_near.len() - self.to_near_at < READ
            {
                let n = framing
                    .advance(far.bytes())
                    .map_err(|what| Broken::Far(Finding::new(Code::MalformedHttp, what)))?;
                if n > 0 {
                    self.to_near.extend_from_slice(&far.bytes()[..n]);
                    far.consume(n);
                }
            }
            if self.to_near_at < self.to_near.len() {
                self.begun = true;
                let written = poll_write_out(
                    cx,
                    &mut *near.io,
                    &mut self.to_near,
                    &mut self.to_near_at,
                    &mut self.received,
                );
                if ready!(written).is_err() {
                    return Poll::Ready(Err(Broken::Near));
                }
                self.near_dirty = true;
                continue;
            }
            if let Some((framing, keeps)) = &self.response
                && framing.is_done()
            {
                if self.near_dirty {
                    if ready!(Pin::new(&mut *near.io).poll_flush(cx)).is_err() {
                        return Poll::Ready(Err(Broken::Near));
                    }
                    self.near_dirty = false;
                }
                // A request whose body the far side did not want ends both connections.
                let whole = self.request.is_done() && self.to_far.is_empty();
                return Poll::Ready(Ok(Some(Done::Complete {
                    near: whole && self.client_keeps,
                    far: whole && *keeps && far.bytes().is_empty(),
                })));
            }
            if self.response.is_none() && !far.bytes().is_empty() {
                match ResponseHead::parse(far.bytes(), self.method) {
                    Err(bad) => return Poll::Ready(Err(Broken::Far(bad.finding()))),
                    Ok(None) => {}
                    Ok(Some(head)) => {
                        if head.status == 101 && !self.upgrade {
                            return Poll::Ready(Err(Broken::Far(Finding::new(
                                Code::MalformedHttp,
                                "upstream switched protocols without being asked",
                            ))));
                        }
                        let interim = head.status < 200 && head.status != 101;
                        if !interim {
                            self.client_keeps &= head.framing != Framing::UntilClose;
                        }
                        let close = !interim && !self.client_keeps;
                        head.write(&far.bytes()[..head.len], close, &mut self.to_near);
                        far.consume(head.len);
                        if head.status == 101 {
                            self.begun = true;
                            self.response = Some((Framing::UntilClose, false));
                            // Written out by the caller's relay, which takes over both streams.
                            let written = poll_write_out(
                                cx,
                                &mut *near.io,
                                &mut self.to_near,
                                &mut self.to_near_at,
                                &mut self.received,
                            );
                            return match written {
                                Poll::Ready(Ok(())) => Poll::Ready(Ok(Some(Done::Upgraded))),
                                _ => Poll::Ready(Err(Broken::Near)),
                            };
                        }
                        if !interim {
                            self.response = Some((head.framing, head.keep_alive));
                        }
                        continue;
                    }
                }
            }
            if self.near_dirty {
                match Pin::new(&mut *near.io).poll_flush(cx) {
                    Poll::Ready(Ok(())) => self.near_dirty = false,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Near)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match ready!(far.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) => match &mut self.response {
                    Some((framing @ Framing::UntilClose, _)) => *framing = Framing::Done,
                    Some(_) => {
                        return Poll::Ready(Err(Broken::Far(Finding::new(
                            Code::UpstreamUnreachable,
                            "upstream closed in the middle of its answer",
                        ))));
                    }
                    None => {
                        return Poll::Ready(Err(Broken::Far(Finding::new(
                            Code::UpstreamUnreachable,
                            "upstream closed without an answer",
                        ))));
                    }
                },
                Err(e) => return Poll::Ready(Err(far_broke(&e))),
            }
        }
    }
}
