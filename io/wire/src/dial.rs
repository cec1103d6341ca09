//! Channels over Unix sockets and over any stream a caller can open.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};

/// Dialling may take this long before a call fails.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

fn endpoint() -> Endpoint {
    // The authority is fixed: peers are identified by certificate or by the socket's path.
    Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT)
}

/// A channel over a Unix socket; dials on first use and again whenever the connection is lost.
pub fn unix(path: PathBuf) -> Channel {
    lazily(move || {
        let path = path.clone();
        async move { UnixStream::connect(path).await }
    })
}

/// A channel over plain TCP, for what is on this host; dials on first use and again whenever the connection
/// is lost.
pub fn tcp(host: String, port: u16) -> Channel {
    lazily(move || {
        let host = host.clone();
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        }
    })
}

/// A channel over streams that `open` makes; dials on first use and again after a loss.
pub fn lazily<F, Fut, S>(open: F) -> Channel
where
    F: Fn() -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    endpoint()
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
            let opening = open();
            async move { opening.await.map(TokioIo::new) }
        }))
}
