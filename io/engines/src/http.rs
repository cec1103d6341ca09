//! Engines that are asked over plain HTTP, on this host.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use countersign_findings::with_causes;
use countersign_policy::{Answer, Edits, HttpCheck, NamePattern, Target};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::rt::ReadBufCursor;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpStream, UnixStream};

use crate::grpc::with_query;
use crate::{Outcome, Question, answer};

/// Largest answer in bytes.
const MAX_ANSWER: usize = 256 << 10;

#[derive(Clone, Debug)]
pub(crate) struct Client(hyper_util::client::legacy::Client<Dial, Full<Bytes>>);

impl Client {
    pub(crate) fn new(target: &Target) -> Self {
        let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(64)
            .build(Dial(target.clone()));
        Self(client)
    }

    /// Sends a request and reads the whole, bounded answer.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let answer = self.0.request(request).await.map_err(|e| with_causes(&e))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|e| format!("its answer cannot be read: {e}"))?.to_bytes();
        Ok((parts.status, parts.headers, body))
    }

    /// Sends a request like the one to be judged: 200 allows, 5xx is no answer, anything else refuses.
    pub(crate) async fn check(&self, check: &HttpCheck, question: &Question<'_>) -> Outcome {
        let Some(http) = question.attributes.http else {
            return Err("it is asked over HTTP, and this is a TCP connection".into());
        };
        let path = format!("{}{}", check.path_prefix, with_query(http.path, question.query));
        let mut request = Request::new(Full::default());
        *request.uri_mut() = uri(&path)?;
        *request.method_mut() = Method::from_bytes(http.method.as_bytes())
            .map_err(|_| "the method cannot be told to it")?;
        let wanted = |name: &str| {
            name.eq_ignore_ascii_case("authorization")
                || check.include.iter().any(|p: &NamePattern| p.matches(name))
        };
        let fixed = check.additional.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let own = http.headers.iter().copied().filter(|(n, _)| wanted(n) && !frames(n));
        for (name, value) in [("host", http.host)].into_iter().chain(own).chain(fixed) {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| e.to_string())?;
            let value = HeaderValue::from_bytes(value.as_bytes())
                .map_err(|_| format!("the value of `{name}` cannot be told to it"))?;
            request.headers_mut().append(name, value);
        }
        let (status, headers, body) = self.send(request).await?;
        if status == StatusCode::OK {
            let mut edits = Edits::default();
            for (name, value) in &headers {
                if check.to_upstream_on_allow.iter().any(|p| p.matches(name.as_str())) {
                    let value = value.to_str().map_err(|_| format!("its `{name}` is not ASCII"))?;
                    answer::edit(&mut edits, name.as_str(), value, false)?;
                }
            }
            let removed = headers.get_all("x-envoy-auth-headers-to-remove");
            for name in removed.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')) {
                answer::remove(&mut edits, name.trim())?;
            }
            return Ok((Answer::Allowed, edits, None));
        }
        if status.is_server_error() {
            return Err(format!("it answers {status}"));
        }
        let all = check.to_downstream_on_deny.is_empty();
        let told = headers.iter().filter_map(|(n, v)| {
            let wanted = all || check.to_downstream_on_deny.iter().any(|p| p.matches(n.as_str()));
            Some((n.as_str(), v.to_str().ok().filter(|_| wanted)?))
        });
        let refusal = answer::refusal(status.as_u16().into(), told, &body);
        Ok((Answer::Denied(format!("it answers {status}")), Edits::default(), Some(refusal)))
    }
}

/// Fields that say where a message ends or goes: ours to set.
fn frames(name: &str) -> bool {
    [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "expect",
    ]
    .iter()
    .any(|n| name.eq_ignore_ascii_case(n))
}

pub(crate) fn uri(path: &str) -> Result<Uri, String> {
    Uri::builder()
        .scheme("http")
        .authority("localhost")
        .path_and_query(path)
        .build()
        .map_err(|e| format!("the path cannot be told to it: {e}"))
}

/// Opens connections to one target, whatever the URI says.
#[derive(Clone, Debug)]
struct Dial(Target);

impl tower::Service<Uri> for Dial {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move {
            match target {
                Target::Tcp(host, port) => {
                    let stream = TcpStream::connect((host.as_str(), port)).await?;
                    stream.set_nodelay(true)?;
                    Ok(Stream::Tcp(TokioIo::new(stream)))
                }
                Target::Unix(path) => {
                    Ok(Stream::Unix(TokioIo::new(UnixStream::connect(path).await?)))
                }
            }
        })
    }
}

enum Stream {
    Tcp(TokioIo<TcpStream>),
    Unix(TokioIo<UnixStream>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_flush(cx),
            Stream::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
