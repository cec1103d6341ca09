//! A stream with what was read from it and not used yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::stream::with_scratch;

/// Kept between requests at most; an idle connection holds no more.
const KEEP: usize = 16 << 10;

pub(super) struct Buffered<S> {
    pub(super) io: S,
    data: Vec<u8>,
    at: usize,
    eof: bool,
}

impl<S> Buffered<S> {
    pub(super) fn new(io: S, data: Vec<u8>) -> Self {
        Self { io, data, at: 0, eof: false }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.data[self.at..]
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.at += n;
        if self.at == self.data.len() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.at = 0;
        if self.data.capacity() > KEEP {
            self.data = Vec::new();
        } else {
            self.data.clear();
        }
    }

    /// Whether the end of the stream was seen.
    pub(super) fn is_at_eof(&self) -> bool {
        self.eof
    }
}

impl<S: AsyncRead + Unpin> Buffered<S> {
    /// Reads once more; `false` at the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.eof {
            return Poll::Ready(Ok(false));
        }
        // Through the worker's scratch space: the connection itself keeps only what is in use.
        with_scratch(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            if self.at > 0 {
                self.data.drain(..self.at);
                self.at = 0;
            }
            self.data.extend_from_slice(buf.filled());
            self.eof = buf.filled().is_empty();
            Poll::Ready(Ok(!self.eof))
        })
    }

    pub(super) async fn fill(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }
}
