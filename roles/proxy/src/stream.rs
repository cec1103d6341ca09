//! What streams need beside reading and writing: read-ahead under TLS, a scratch buffer, resets.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The TLS library reads 4 KiB at a time. While data flows in bulk this reads 64 KiB from the socket at
/// once and hands it out in pieces; while it does not, no buffer is held.
pub(crate) struct ReadAhead {
    stream: TcpStream,
    buffer: Vec<u8>,
    taken: usize,
    bulk: bool,
}

/// Size of a worker's scratch buffer.
const SCRATCH: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// Lends this worker's read buffer. One suffices for all connections, because what was read is written
/// on or set aside before anything else runs.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| work(buffer))
}

const AHEAD: usize = 64 << 10;

impl ReadAhead {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), taken: 0, bulk: false }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.taken == this.buffer.len() && this.bulk {
            this.buffer.resize(AHEAD, 0);
            this.taken = AHEAD;
            let mut ahead = ReadBuf::new(&mut this.buffer);
            let result = Pin::new(&mut this.stream).poll_read(cx, &mut ahead);
            let filled = ahead.filled().len();
            match result {
                Poll::Ready(Ok(())) if filled > 0 => {
                    this.buffer.truncate(filled);
                    this.taken = 0;
                    this.bulk = filled > buf.remaining();
                }
                other => {
                    this.buffer = Vec::new();
                    this.taken = 0;
                    this.bulk = false;
                    return other;
                }
            }
        }
        if this.taken < this.buffer.len() {
            let n = buf.remaining().min(this.buffer.len() - this.taken);
            buf.put_slice(&this.buffer[this.taken..this.taken + n]);
            this.taken += n;
            if this.taken == this.buffer.len() && !this.bulk {
                this.buffer = Vec::new();
                this.taken = 0;
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.bulk = buf.remaining() == 0 && buf.filled().len() - before >= 4096;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A stream with a way to end it by reset, so that truncation is visible to the far end.
pub(crate) trait Resettable {
    /// Makes the coming close a reset.
    fn reset_on_close(&self);
}

fn linger_zero(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

impl Resettable for TcpStream {
    fn reset_on_close(&self) {
        linger_zero(self);
    }
}

impl Resettable for countersign_tls::ServerStream<ReadAhead> {
    fn reset_on_close(&self) {
        linger_zero(self.get_ref().0.tcp());
    }
}

impl Resettable for countersign_tls::ClientStream<ReadAhead> {
    fn reset_on_close(&self) {
        linger_zero(self.get_ref().0.tcp());
    }
}

/// Everything that can be relayed.
pub(crate) trait Relayed: AsyncRead + AsyncWrite + Unpin + Resettable + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Resettable + Send> Relayed for T {}
