//! Serving RPCs over streams that someone else accepted, with what is known about the caller attached.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_findings::with_causes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

/// A stream with what is known about its other end; handlers find `I` in the request's extensions.
pub struct WithCaller<S, I> {
    stream: S,
    caller: I,
    /// The connection's place under a limit, given back when the stream is dropped.
    _place: Option<Box<dyn Send + Sync>>,
    end: Option<Pin<Box<Sleep>>>,
}

impl<S, I> WithCaller<S, I> {
    /// Attaches `caller` to `stream`.
    pub fn new(stream: S, caller: I) -> Self {
        Self { stream, caller, _place: None, end: None }
    }

    /// Keeps `place` until the stream is dropped.
    pub fn holding(self, place: impl Send + Sync + 'static) -> Self {
        Self { _place: Some(Box::new(place)), ..self }
    }

    /// Ends the connection after `life`, whatever goes on over it.
    pub fn ending_after(self, life: Duration) -> Self {
        Self { end: Some(Box::pin(tokio::time::sleep(life))), ..self }
    }
}

impl<S, I: Clone + Send + Sync + 'static> Connected for WithCaller<S, I> {
    type ConnectInfo = I;
    fn connect_info(&self) -> I {
        self.caller.clone()
    }
}

impl<S: AsyncRead + Unpin, I: Unpin> AsyncRead for WithCaller<S, I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin, I: Unpin> AsyncWrite for WithCaller<S, I> {
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

/// Serves `routes` on every stream of `incoming` until `shutdown` resolves; calls under way finish.
///
/// Bounds: 256 concurrent streams and 16 KiB of header fields per connection; keep-alive pings every
/// 60 s so that callers that vanished free what they hold.
pub async fn serve<S, I, E>(
    routes: Routes,
    incoming: impl Stream<Item = Result<WithCaller<S, I>, E>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    I: Clone + Send + Sync + Unpin + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Server::builder()
        .max_concurrent_streams(256)
        .http2_max_header_list_size(16 << 10)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await
        .map_err(|e| with_causes(&e))
}
