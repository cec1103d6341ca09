//! One request, one answer, and no more than is needed of it.

use std::io;
use std::pin::Pin;

use bytes::Bytes;
use countersign_tls::probe::alert_of;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dial::Io;

/// As much of an answer as is looked at.
pub(crate) const MOST: usize = 64 << 10;

/// An answer, head and body as one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Of gRPC, if there is one.
    pub(crate) grpc_status: Option<u32>,
    pub(crate) text: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The other end closed, with or without an alert or reset.
    Closed(String),
    /// Something came that is not HTTP.
    NotHttp(Vec<u8>),
}

pub(crate) fn closed(e: &io::Error) -> NoAnswer {
    NoAnswer::Closed(match alert_of(e) {
        Some(alert) => format!("TLS alert {alert}"),
        None if e.kind() == io::ErrorKind::UnexpectedEof => "closed without a word".into(),
        None => e.to_string(),
    })
}

/// Sends `request` as it stands, and reads one answer of HTTP/1.
pub(crate) async fn http1(stream: &mut dyn Io, request: &[u8]) -> Result<Answer, NoAnswer> {
    // A server that has refused already may reset; what it said comes first.
    let sent = async {
        stream.write_all(request).await?;
        stream.flush().await
    }
    .await;
    let mut data = Vec::new();
    let mut buf = [0; 4096];
    loop {
        match whole(&data) {
            Whole::Yes(status) => {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Ok(Answer { status, grpc_status: None, text });
            }
            Whole::NotHttp => return Err(NoAnswer::NotHttp(data)),
            Whole::NotYet if data.len() > MOST => return Err(NoAnswer::NotHttp(data)),
            Whole::NotYet => {}
        }
        match stream.read(&mut buf).await {
            Ok(n) if n > 0 => data.extend_from_slice(&buf[..n]),
            ended => {
                // An answer may end with the connection.
                if let Some((status, _)) = head(&data) {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Ok(Answer { status, grpc_status: None, text });
                }
                return Err(match (ended, sent) {
                    _ if !data.is_empty() => NoAnswer::NotHttp(data),
                    (Err(e), _) | (Ok(_), Err(e)) => closed(&e),
                    (Ok(_), Ok(())) => NoAnswer::Closed("closed without an answer".into()),
                });
            }
        }
    }
}

enum Whole {
    Yes(u16),
    NotYet,
    NotHttp,
}

/// Status and length of the head, once it is whole.
fn head(data: &[u8]) -> Option<(u16, usize)> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(data) {
        Ok(httparse::Status::Complete(n)) => Some((response.code?, n)),
        _ => None,
    }
}

fn whole(data: &[u8]) -> Whole {
    if data.is_empty() {
        return Whole::NotYet;
    }
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut response = httparse::Response::new(&mut fields);
    let (status, n) = match response.parse(data) {
        Ok(httparse::Status::Complete(n)) => (response.code.unwrap_or(0), n),
        Ok(httparse::Status::Partial) => return Whole::NotYet,
        Err(_) => return Whole::NotHttp,
    };
    let body = &data[n..];
    let field = |name: &str| {
        let found = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
        found.map(|h| String::from_utf8_lossy(h.value).trim().to_ascii_lowercase())
    };
    let done = if status == 204 || status == 304 {
        true
    } else if field("transfer-encoding").is_some_and(|t| t.contains("chunked")) {
        body.ends_with(b"0\r\n\r\n")
    } else {
        let length = field("content-length").and_then(|l| l.parse::<usize>().ok());
        length.is_some_and(|length| body.len() >= length.min(MOST))
    };
    if done { Whole::Yes(status) } else { Whole::NotYet }
}

/// A connection of HTTP/2.
pub(crate) struct Http2 {
    sender: SendRequest<Full<Bytes>>,
    /// Runs the connection; only while something is asked.
    connection: Pin<Box<dyn Future<Output = NoAnswer> + Send>>,
}

fn gone(e: hyper::Error) -> NoAnswer {
    let text = countersign_findings::with_causes(&e);
    NoAnswer::Closed(match text.rsplit_once("received fatal alert: ") {
        Some((_, alert)) => format!("TLS alert {alert}"),
        None => text,
    })
}

impl Http2 {
    pub(crate) async fn open(stream: Box<dyn Io>) -> Result<Self, NoAnswer> {
        let io = TokioIo::new(stream);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.map_err(gone)?;
        let connection = async {
            match connection.await {
                Ok(()) => NoAnswer::Closed("closed without an answer".into()),
                Err(e) => gone(e),
            }
        };
        Ok(Self { sender, connection: Box::pin(connection) })
    }

    /// One request; gRPC's health check if `grpc`.
    pub(crate) async fn ask(
        &mut self,
        authority: &str,
        path: &str,
        fields: &[(&str, &str)],
        grpc: bool,
    ) -> Result<Answer, NoAnswer> {
        let path = if grpc { "/grpc.health.v1.Health/Check" } else { path };
        let mut request = Request::builder()
            .method(if grpc { "POST" } else { "GET" })
            .uri(format!("https://{authority}{path}"))
            .version(Version::HTTP_2);
        if grpc {
            request = request.header("content-type", "application/grpc").header("te", "trailers");
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        // An empty message: a flag and four bytes of length.
        let body = if grpc { Bytes::from_static(&[0; 5]) } else { Bytes::new() };
        let request = request.body(Full::new(body)).map_err(|e| NoAnswer::Closed(e.to_string()))?;
        let sender = &mut self.sender;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(gone)?;
            Ok(read(answer).await)
        };
        tokio::select! {
            biased;
            answer = exchange => answer,
            why = &mut self.connection => Err(why),
        }
    }
}

async fn read(answer: Response<Incoming>) -> Answer {
    let (head, body) = answer.into_parts();
    let mut text = format!("HTTP/2 {}\r\n", head.status.as_u16());
    let show = |text: &mut String, fields: &http::HeaderMap| {
        for (name, value) in fields {
            let value = String::from_utf8_lossy(value.as_bytes());
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    };
    show(&mut text, &head.headers);
    let status = |fields: &http::HeaderMap| {
        fields.get("grpc-status").and_then(|v| v.to_str().ok()?.parse::<u32>().ok())
    };
    let mut grpc_status = status(&head.headers);
    if let Ok(body) = Limited::new(body, MOST).collect().await {
        if let Some(trailers) = body.trailers() {
            show(&mut text, trailers);
            grpc_status = grpc_status.or_else(|| status(trailers));
        }
        text.push_str("\r\n");
        text.push_str(&String::from_utf8_lossy(&body.to_bytes()));
    }
    Answer { status: head.status.as_u16(), grpc_status, text }
}
