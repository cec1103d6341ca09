//! Relaying bytes, for as long as the permit holds.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_findings::Code;
use countersign_policy::Permit;
use countersign_tls::current_time;
use countersign_x509::Peer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::shared::Shared;
use crate::stream::{Relayed, with_scratch};

/// Bytes relayed in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    /// From the side that connected.
    pub(crate) sent: u64,
    /// To the side that connected.
    pub(crate) received: u64,
}

/// Why a relay ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both sides finished.
    Finished,
    /// One side broke; the other was reset.
    Broken {
        /// Whether it was the side that we connected to.
        far: bool,
        /// How.
        error: io::Error,
    },
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Read but not written; empty unless the writer is slower.
    pending: Vec<u8>,
    written: usize,
    total: u64,
    eof: bool,
    done: bool,
    /// Written since the last flush that finished. Kept between polls: a TLS writer may hold bytes
    /// that nothing else would push out.
    dirty: bool,
}

enum Side {
    Reader(io::Error),
    Writer(io::Error),
}

impl Half {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while self.written < self.pending.len() {
                match Pin::new(&mut *writer).poll_write(cx, &self.pending[self.written..]) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(Side::Writer(io::ErrorKind::WriteZero.into())));
                    }
                    Poll::Ready(Ok(n)) => self.written += n,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(Side::Writer(e))),
                    Poll::Pending => return Poll::Pending,
                }
                self.dirty = true;
            }
            if !self.pending.is_empty() {
                // Freed, not kept: an idle connection holds no buffer.
                self.pending = Vec::new();
                self.written = 0;
            }
            if self.eof {
                return match Pin::new(&mut *writer).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => {
                        self.done = true;
                        Poll::Ready(Ok(()))
                    }
                    // The other side is gone already: nothing was lost that it wanted.
                    Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::NotConnected => {
                        self.done = true;
                        Poll::Ready(Ok(()))
                    }
                    Poll::Ready(Err(e)) => Poll::Ready(Err(Side::Writer(e))),
                    Poll::Pending => Poll::Pending,
                };
            }
            let step = with_scratch(|scratch| {
                let mut buf = ReadBuf::new(scratch);
                match Pin::new(&mut *reader).poll_read(cx, &mut buf) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(Side::Reader(e))),
                    Poll::Ready(Ok(())) => {}
                }
                let data = buf.filled();
                if data.is_empty() {
                    self.eof = true;
                    return Poll::Ready(Ok(()));
                }
                self.total += data.len() as u64;
                let mut at = 0;
                while at < data.len() {
                    match Pin::new(&mut *writer).poll_write(cx, &data[at..]) {
                        Poll::Ready(Ok(0)) => {
                            return Poll::Ready(Err(Side::Writer(io::ErrorKind::WriteZero.into())));
                        }
                        Poll::Ready(Ok(n)) => at += n,
                        Poll::Ready(Err(e)) => return Poll::Ready(Err(Side::Writer(e))),
                        Poll::Pending => {
                            self.pending = data[at..].to_vec();
                            break;
                        }
                    }
                }
                self.dirty = true;
                Poll::Ready(Ok(()))
            });
            match step {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    if self.dirty {
                        match Pin::new(&mut *writer).poll_flush(cx) {
                            Poll::Ready(Ok(())) => self.dirty = false,
                            Poll::Ready(Err(e)) => return Poll::Ready(Err(Side::Writer(e))),
                            Poll::Pending => {}
                        }
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Relays between `near` (which connected) and `far` until both have finished. `to_far` was read from
/// `near` already and goes first.
pub(crate) async fn relay<A: Relayed, B: Relayed>(
    near: &mut A,
    far: &mut B,
    to_far: Vec<u8>,
    count: &mut Volume,
) -> End {
    let mut up = Half { total: to_far.len() as u64, pending: to_far, ..Half::default() };
    let mut down = Half::default();
    let result = std::future::poll_fn(|cx| {
        let mut pending = false;
        if !up.done {
            match up.poll(cx, near, far) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(side)) => return Poll::Ready(Err((side, false))),
                Poll::Pending => pending = true,
            }
        }
        if !down.done {
            match down.poll(cx, far, near) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(side)) => return Poll::Ready(Err((side, true))),
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(Ok(())) }
    })
    .await;
    count.sent += up.total;
    count.received += down.total;
    match result {
        Ok(()) => End::Finished,
        Err((side, reading_far)) => {
            // Whichever side broke, the other must not take it for a proper end.
            let (far_broke, error) = match side {
                Side::Reader(e) => (reading_far, e),
                Side::Writer(e) => (!reading_far, e),
            };
            if far_broke {
                near.reset_on_close();
            } else {
                far.reset_on_close();
            }
            End::Broken { far: far_broke, error }
        }
    }
}

/// A permit and the peer it was given to, taking the place of those that [`forward`] began with.
#[derive(Default)]
pub(crate) struct Renewal {
    next: Mutex<Option<(Permit, Peer)>>,
    told: Notify,
}

impl Renewal {
    /// Puts a new permit in place of the old one: the connection it was for is closed.
    pub(crate) fn put(&self, permit: Permit, peer: Peer) {
        *self.next.lock().unwrap_or_else(|e| e.into_inner()) = Some((permit, peer));
        self.told.notify_one();
    }

    /// Has `still` asked again: what is under way has changed.
    pub(crate) fn ask_again(&self) {
        self.told.notify_one();
    }

    /// The new permit, or nothing if it is only to be asked again.
    async fn next(&self) -> Option<(Permit, Peer)> {
        self.told.notified().await;
        self.next.lock().unwrap_or_else(|e| e.into_inner()).take()
    }
}

/// Runs `work` under a permit: until it finishes, the peer's certificate ends, its root leaves the
/// bundle, or `still` says no. The permit is the proof that a decision was made; there is no other way to
/// get bytes relayed.
///
/// `still` is asked at each change of policy, and again when the time that it gives has passed.
pub(crate) async fn forward<T>(
    permit: Permit,
    peer: Option<&Peer>,
    shared: &Shared,
    renewal: Option<&Renewal>,
    still: impl Fn() -> Result<Option<Duration>, Code>,
    work: impl Future<Output = T>,
) -> Result<T, Code> {
    let mut credentials = shared.credentials.subscribe();
    let mut policies = shared.policies_changed.subscribe();
    credentials.mark_unchanged();
    policies.mark_unchanged();
    let mut peer = peer.cloned();
    // Changes between the handshake and the subscription must not slip through.
    if !is_trusted(peer.as_ref(), shared) {
        return Err(Code::PermitWithdrawn);
    }
    let ask = tokio::time::sleep(still()?.unwrap_or(LONG));
    tokio::pin!(work, ask);
    let end = tokio::time::sleep(life(&permit));
    tokio::pin!(end);
    loop {
        tokio::select! {
            // The ends first: a connection that never pauses must not outrun them.
            biased;
            () = &mut end => return Err(Code::ConnectionOutlivedCertificate),
            () = &mut ask => {
                let again = still()?.unwrap_or(LONG);
                ask.as_mut().reset(Instant::now() + again);
            }
            Ok(()) = credentials.changed() => {
                if !is_trusted(peer.as_ref(), shared) {
                    return Err(Code::PermitWithdrawn);
                }
            }
            Ok(()) = policies.changed() => {
                let again = still()?.unwrap_or(LONG);
                ask.as_mut().reset(Instant::now() + again);
            }
            next = async {
                match renewal {
                    Some(renewal) => renewal.next().await,
                    None => std::future::pending().await,
                }
            } => {
                if let Some((permit, renewed)) = next {
                    if !is_trusted(Some(&renewed), shared) {
                        return Err(Code::PermitWithdrawn);
                    }
                    peer = Some(renewed);
                    end.as_mut().reset(Instant::now() + life(&permit));
                } else {
                    let again = still()?.unwrap_or(LONG);
                    ask.as_mut().reset(Instant::now() + again);
                }
            }
            out = &mut work => return Ok(out),
        }
    }
}

/// Longer than any connection lives.
const LONG: Duration = Duration::from_secs(365 * 86_400);

/// How long a permit still holds.
fn life(permit: &Permit) -> Duration {
    match permit.not_after() {
        // Valid through its last second.
        Some(end) => end.since(current_time()) + Duration::from_secs(1),
        None => LONG,
    }
}

/// Whether we still have an identity ourselves, and the root that the peer's chain ends at is still in
/// the bundle of its trust domain.
fn is_trusted(peer: Option<&Peer>, shared: &Shared) -> bool {
    let Some(peer) = peer else { return true };
    shared.credentials.current().is_some_and(|now| match peer {
        Peer::Spiffe(peer) => {
            let mut roots = now.store.roots(peer.id().trust_domain()).iter();
            roots.any(|r| r.sha256 == *peer.authority_sha256())
        }
        Peer::Legacy(peer) => {
            shared.legacy.as_ref().is_some_and(|l| l.trusts(peer.authority_sha256()))
        }
    })
}
