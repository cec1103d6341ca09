//! One request and its response, both directions at once.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use countersign_findings::{Code, Finding};
use countersign_tls::HandshakeError;
use tokio::io::AsyncWrite;

use super::buffered::Buffered;
use super::framing::Framing;
use super::head::ResponseHead;
use crate::stream::Relayed;

/// A body's first bytes travel with the head up to this much; a pipelined request is read ahead as far.
const WINDOW: usize = 16 << 10;

/// How an exchange ended well.
pub(super) enum Done {
    /// The response is out; whether each side's connection may carry another exchange.
    Complete { near: bool, far: bool },
    /// The far side switched protocols, as asked.
    Upgraded,
}

/// Which side an exchange broke on.
pub(super) enum Broken {
    Near,
    Far(Finding),
    /// In TLS 1.3 a server judges our certificate after the handshake; this is where it shows.
    Refused(HandshakeError),
}

/// A message on its way out: a head of our own writing, then body bytes straight from the other side's
/// buffer.
struct Outgoing {
    head: Vec<u8>,
    at: usize,
    framing: Framing,
    /// Bytes at the front of the buffer that belong to this message and are not out yet.
    cleared: usize,
    written: u64,
    dirty: bool,
}

enum Unwritten {
    Framing(&'static str),
    Io(io::Error),
}

impl Outgoing {
    fn new(head: Vec<u8>, framing: Framing) -> Self {
        Self { head, at: 0, framing, cleared: 0, written: 0, dirty: false }
    }

    /// Whether every byte has been written.
    fn is_out(&self) -> bool {
        self.framing.is_done() && self.cleared == 0 && self.at == self.head.len()
    }

    /// Writes what there is; ready when more must be read first, or nothing is left.
    fn poll_write<R, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Buffered<R>,
        to: &mut W,
    ) -> Poll<Result<(), Unwritten>> {
        loop {
            if self.cleared == 0 && !self.framing.is_done() {
                self.cleared = self.framing.advance(from.bytes()).map_err(Unwritten::Framing)?;
            }
            let of_head = self.at < self.head.len();
            if of_head && self.cleared > 0 && self.head.len() + self.cleared <= WINDOW {
                self.head.extend_from_slice(&from.bytes()[..self.cleared]);
                from.consume(self.cleared);
                self.cleared = 0;
            }
            let data = if of_head { &self.head[self.at..] } else { &from.bytes()[..self.cleared] };
            if data.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let n = match ready!(Pin::new(&mut *to).poll_write(cx, data)) {
                Ok(0) => return Poll::Ready(Err(Unwritten::Io(io::ErrorKind::WriteZero.into()))),
                Ok(n) => n,
                Err(e) => return Poll::Ready(Err(Unwritten::Io(e))),
            };
            self.dirty = true;
            self.written += n as u64;
            if of_head {
                self.at += n;
            } else {
                from.consume(n);
                self.cleared -= n;
            }
        }
    }

    fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        if self.dirty {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// An exchange under way. `near` sent the request, `far` answers it.
pub(super) struct Pump<'a> {
    request: Outgoing,
    response: Outgoing,
    /// Whether the final response's head has been read, and if so whether far's connection persists.
    far_keeps: Option<bool>,
    method: &'a str,
    near_keeps: bool,
    upgrade: bool,
    /// Whether anything of the response has been passed on.
    begun: bool,
    interims: u8,
}

/// Most interim responses to one request.
const MOST_INTERIMS: u8 = 32;

const LOOK_THERE: &str = "the connection was made: look at the upstream's log for the same moment";

fn malformed(what: &'static str) -> Broken {
    Broken::Far(Finding::new(Code::MalformedHttp, what))
}

fn far_broke(e: &io::Error) -> Broken {
    match HandshakeError::of_established(e) {
        Some(refused) => Broken::Refused(refused),
        None => {
            let text = format!("upstream broke off: {e}");
            Broken::Far(Finding::new(Code::UpstreamUnreachable, text).hint(LOOK_THERE))
        }
    }
}

impl<'a> Pump<'a> {
    /// For a request with this head (as it goes out) and body, made with `method`.
    pub(super) fn new(
        head: Vec<u8>,
        body: Framing,
        method: &'a str,
        keep_alive: bool,
        upgrade: bool,
    ) -> Self {
        Self {
            request: Outgoing::new(head, body),
            response: Outgoing::new(Vec::new(), Framing::Done),
            far_keeps: None,
            method,
            near_keeps: keep_alive,
            upgrade,
            begun: false,
            interims: 0,
        }
    }

    /// Bytes towards far and towards near.
    pub(super) fn written(&self) -> (u64, u64) {
        (self.request.written, self.response.written)
    }

    /// Whether anything of the response has been passed on.
    pub(super) fn has_begun_answering(&self) -> bool {
        self.begun || self.response.at > 0
    }

    pub(super) fn poll<C: Relayed, U: Relayed>(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut Buffered<&mut C>,
        far: &mut Buffered<U>,
    ) -> Poll<Result<Done, Broken>> {
        if let Poll::Ready(Err(e)) = self.poll_request(cx, near, far) {
            return Poll::Ready(Err(e));
        }
        self.poll_response(cx, near, far)
    }

    /// Head and body towards the far side; ready once nothing more is wanted from the client.
    fn poll_request<C: Relayed, U: Relayed>(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut Buffered<&mut C>,
        far: &mut Buffered<U>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            match ready!(self.request.poll_write(cx, near, &mut far.io)) {
                Ok(()) => {}
                Err(Unwritten::Framing(what)) => return Poll::Ready(Err(malformed(what))),
                Err(Unwritten::Io(e)) => return Poll::Ready(Err(far_broke(&e))),
            }
            if let Err(e) = ready!(self.request.poll_flush(cx, &mut far.io)) {
                return Poll::Ready(Err(far_broke(&e)));
            }
            let whole = self.request.is_out();
            // Read on even then: a client that breaks off must not keep the far side busy. One that only
            // closes its half still wants the answer.
            if whole && (near.is_at_eof() || near.bytes().len() >= WINDOW) {
                return Poll::Ready(Ok(()));
            }
            match ready!(near.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) if whole => return Poll::Ready(Ok(())),
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
    ) -> Poll<Result<Done, Broken>> {
        loop {
            match ready!(self.response.poll_write(cx, far, &mut *near.io)) {
                Ok(()) => {}
                Err(Unwritten::Framing(what)) => return Poll::Ready(Err(malformed(what))),
                Err(Unwritten::Io(_)) => return Poll::Ready(Err(Broken::Near)),
            }
            if let Some(far_keeps) = self.far_keeps
                && self.response.is_out()
            {
                if ready!(self.response.poll_flush(cx, &mut *near.io)).is_err() {
                    return Poll::Ready(Err(Broken::Near));
                }
                // A request whose body the far side did not want ends both connections.
                let whole = self.request.is_out();
                return Poll::Ready(Ok(Done::Complete {
                    near: whole && self.near_keeps,
                    far: whole && far_keeps && far.bytes().is_empty(),
                }));
            }
            if self.far_keeps.is_none() && !far.bytes().is_empty() {
                match ResponseHead::parse(far.bytes(), self.method) {
                    Err(bad) => return Poll::Ready(Err(Broken::Far(bad.finding()))),
                    Ok(None) => {}
                    Ok(Some(head)) if head.status == 101 => {
                        if !self.upgrade {
                            return Poll::Ready(Err(malformed(
                                "upstream switched protocols without being asked",
                            )));
                        }
                        // Goes out in front of what the relay, which takes over, passes on.
                        return Poll::Ready(Ok(Done::Upgraded));
                    }
                    Ok(Some(head)) => {
                        if head.status < 200 {
                            self.interims += 1;
                            if self.interims > MOST_INTERIMS {
                                return Poll::Ready(Err(malformed("endless interim responses")));
                            }
                        }
                        self.take_head(head, far);
                        continue;
                    }
                }
            }
            if ready!(self.response.poll_flush(cx, &mut *near.io)).is_err() {
                return Poll::Ready(Err(Broken::Near));
            }
            match ready!(far.poll_fill(cx)) {
                Ok(true) => {}
                Ok(false) if self.far_keeps.is_none() => {
                    return Poll::Ready(Err(Broken::Far(
                        Finding::new(
                            Code::UpstreamUnreachable,
                            "upstream closed without an answer",
                        )
                        .hint(LOOK_THERE),
                    )));
                }
                Ok(false) if self.response.framing == Framing::UntilClose => {
                    self.response.framing = Framing::Done;
                }
                Ok(false) => {
                    return Poll::Ready(Err(Broken::Far(
                        Finding::new(
                            Code::UpstreamUnreachable,
                            "upstream closed in the middle of its answer",
                        )
                        .hint(LOOK_THERE),
                    )));
                }
                Err(e) => return Poll::Ready(Err(far_broke(&e))),
            }
        }
    }

    fn take_head<U>(&mut self, head: ResponseHead, far: &mut Buffered<U>) {
        let interim = head.status < 200;
        // Nothing of it is pending here: what there was has been written.
        self.begun |= self.response.at > 0;
        self.response.head.clear();
        self.response.at = 0;
        if !interim {
            self.near_keeps &= head.framing != Framing::UntilClose;
        }
        let close = !interim && !self.near_keeps;
        head.write(&far.bytes()[..head.len], close, &mut self.response.head);
        far.consume(head.len);
        if !interim {
            self.response.framing = head.framing;
            self.far_keeps = Some(head.keep_alive);
        }
    }
}
