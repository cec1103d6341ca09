//! After the handshake: something that wants an answer, because in TLS 1.3 a server judges the client's
//! certificate only after the client is done. What comes back decides.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dial::{Io, MYSQL_CAPABILITIES, MYSQL_TLS, mysql_packet, smtp};
use crate::http::{Answer, Http2, MOST, NoAnswer, closed, http1};
use crate::options::Protocol;
use crate::report::Outcome;

/// What came of asking.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) outcome: Outcome,
    pub(crate) evidence: String,
    /// The whole answer, where there is one.
    pub(crate) text: String,
    /// Of HTTP.
    pub(crate) status: Option<u16>,
}

impl Asked {
    pub(crate) fn new(outcome: Outcome, evidence: impl Into<String>) -> Self {
        Self { outcome, evidence: evidence.into(), text: String::new(), status: None }
    }

    fn of_closed(why: NoAnswer) -> Self {
        match why {
            NoAnswer::Closed(how) => Self::new(Outcome::Refused, how),
            NoAnswer::NotHttp(data) if data.first() == Some(&0x15) => {
                Self::new(Outcome::Refused, "answers with a TLS alert")
            }
            NoAnswer::NotHttp(data) => {
                let text = String::from_utf8_lossy(&data).into_owned();
                let evidence = format!("answers, not in HTTP: {}", brief(&text));
                Self { text, ..Self::new(Outcome::Accepted, evidence) }
            }
        }
    }

    pub(crate) fn of_http(answer: Answer) -> Self {
        let refusing = matches!(answer.status, 400 | 401 | 403 | 495 | 496);
        // gRPC: permission denied, unauthenticated.
        let refusing = refusing || matches!(answer.grpc_status, Some(7 | 16));
        let outcome = if refusing { Outcome::RefusedByApplication } else { Outcome::Accepted };
        let evidence = match answer.grpc_status {
            Some(grpc) => format!("HTTP {}, gRPC status {grpc}", answer.status),
            None => format!("HTTP {}", answer.status),
        };
        Self { outcome, evidence, status: Some(answer.status), text: answer.text }
    }
}

/// The beginning of a text, in one line of printable characters.
pub(crate) fn brief(text: &str) -> String {
    let line: String =
        text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("`{}`", line.trim())
}

/// What to say.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) fields: &'a [(&'a str, &'a str)],
    /// Instead of a GET, where HTTP/1 is spoken.
    pub(crate) raw: Option<&'a str>,
    /// Whether the connection is to stay.
    pub(crate) keep: bool,
    pub(crate) timeout: Duration,
}

impl Question<'_> {
    fn get(&self) -> String {
        if let Some(raw) = self.raw {
            return raw.to_owned();
        }
        let mut out = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: countersign-probe\r\nAccept: */*\r\n",
            self.path, self.host
        );
        if !self.keep {
            out.push_str("Connection: close\r\n");
        }
        for (name, value) in self.fields {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        out.push_str("\r\n");
        out
    }
}

/// Asks over an established connection, TLS or plaintext.
pub(crate) async fn ask(
    stream: Box<dyn Io>,
    protocol: Protocol,
    alpn: Option<&[u8]>,
    question: &Question<'_>,
) -> Asked {
    let talk = async {
        match (protocol, alpn) {
            (Protocol::Grpc | Protocol::Http2, _) | (Protocol::Auto, Some(b"h2")) => {
                match Http2::open(stream).await {
                    Ok(mut http2) => over_http2(&mut http2, protocol, question).await,
                    Err(why) => Asked::of_closed(why),
                }
            }
            (Protocol::Auto | Protocol::Http, _) => {
                let mut stream = stream;
                let get = question.get();
                http1(&mut *stream, get.as_bytes())
                    .await
                    .map_or_else(Asked::of_closed, Asked::of_http)
            }
            (Protocol::Tcp, _) => bytes(&mut { stream }).await,
            (Protocol::Postgres, _) => postgres(stream).await,
            (Protocol::Mysql, _) => mysql(stream, 2).await,
            (Protocol::Smtp, _) => mail(stream).await,
        }
    };
    in_time(question.timeout, talk).await
}

async fn in_time(limit: Duration, talk: impl Future<Output = Asked>) -> Asked {
    match tokio::time::timeout(limit, talk).await {
        Ok(asked) => asked,
        Err(_) => {
            let text = format!("nothing came within {} s", limit.as_secs());
            Asked::new(Outcome::Unclear, text)
        }
    }
}

async fn over_http2(http2: &mut Http2, protocol: Protocol, question: &Question<'_>) -> Asked {
    let grpc = protocol == Protocol::Grpc;
    http2
        .ask(question.host, question.path, question.fields, grpc)
        .await
        .map_or_else(Asked::of_closed, Asked::of_http)
}

/// A connection that has been answered and is kept.
pub(crate) enum Held {
    Http1(Box<dyn Io>),
    Http2(Http2),
    Bytes(Box<dyn Io>),
}

impl Held {
    /// Asks, and keeps the connection if it was answered and stays; `None` where that cannot be told.
    pub(crate) async fn open(
        mut stream: Box<dyn Io>,
        protocol: Protocol,
        alpn: Option<&[u8]>,
        question: &Question<'_>,
    ) -> Option<Self> {
        let mut held = match (protocol, alpn) {
            (Protocol::Grpc | Protocol::Http2, _) | (Protocol::Auto, Some(b"h2")) => {
                let open = tokio::time::timeout(question.timeout, Http2::open(stream)).await;
                Held::Http2(open.ok()?.ok()?)
            }
            (Protocol::Auto | Protocol::Http, _) => Held::Http1(stream),
            (Protocol::Tcp, _) => {
                // A server that has refused closes; one that has not waits, or says something.
                let mut buf = [0; 1024];
                let quiet = Duration::from_millis(500);
                if let Ok(Ok(0) | Err(_)) = tokio::time::timeout(quiet, stream.read(&mut buf)).await
                {
                    return None;
                }
                return Some(Held::Bytes(stream));
            }
            _ => return None,
        };
        let asked = held.again(protocol, question).await;
        let head = asked.text.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
        let stays = asked.outcome == Outcome::Accepted
            && asked.status.is_some()
            && !head.contains("connection: close")
            && !head.starts_with("http/1.0")
            // Of a longer answer the rest is still to come.
            && asked.text.len() < MOST;
        stays.then_some(held)
    }

    /// Asks once more.
    pub(crate) async fn again(&mut self, protocol: Protocol, question: &Question<'_>) -> Asked {
        let talk = async {
            match self {
                Held::Http1(stream) => http1(&mut **stream, question.get().as_bytes())
                    .await
                    .map_or_else(Asked::of_closed, Asked::of_http),
                Held::Http2(http2) => over_http2(http2, protocol, question).await,
                Held::Bytes(stream) => bytes(stream).await,
            }
        };
        in_time(question.timeout, talk).await
    }
}

/// A protocol that is not known: whoever speaks or stays has accepted, whoever closes has refused.
async fn bytes(stream: &mut Box<dyn Io>) -> Asked {
    let mut buf = [0; 1024];
    let quiet = Duration::from_millis(500);
    for line in [None, Some("countersign-probe\r\n")] {
        if let Some(line) = line {
            let _ = stream.write_all(line.as_bytes()).await;
            let _ = stream.flush().await;
        }
        match tokio::time::timeout(quiet, stream.read(&mut buf)).await {
            Ok(Ok(0)) => return Asked::new(Outcome::Refused, "closed without a word"),
            Ok(Ok(n)) if buf[0] == 0x15 && n <= 7 => {
                return Asked::new(Outcome::Refused, "answers with a TLS alert");
            }
            Ok(Ok(n)) => {
                let text = String::from_utf8_lossy(&buf[..n]).into_owned();
                let evidence = format!("answers {}", brief(&text));
                return Asked { text, ..Asked::new(Outcome::Accepted, evidence) };
            }
            Ok(Err(e)) => return Asked::of_closed(closed(&e)),
            Err(_) => {}
        }
    }
    Asked::new(Outcome::Accepted, "stays connected, and waits")
}

async fn mail(mut stream: Box<dyn Io>) -> Asked {
    let talk = async {
        smtp(&mut stream, Some("EHLO probe.invalid\r\n")).await?;
        let reply = smtp(&mut stream, Some("MAIL FROM:<probe@probe.invalid>\r\n")).await?;
        let _ = smtp(&mut stream, Some("QUIT\r\n")).await;
        Ok::<String, String>(reply)
    };
    match talk.await {
        Ok(reply) if reply.starts_with('2') => {
            Asked::new(Outcome::Accepted, format!("takes mail: {}", brief(&reply)))
        }
        Ok(reply) => Asked::new(Outcome::RefusedByApplication, format!("says {}", brief(&reply))),
        Err(how) => Asked::new(Outcome::Refused, how),
    }
}

/// StartupMessage of protocol 3.0; the answer is `R` (authentication goes on) or `E`.
async fn postgres(mut stream: Box<dyn Io>) -> Asked {
    let body = b"\0\x03\0\0user\0countersign\0database\0postgres\0\0";
    let mut message = u32::try_from(body.len() + 4).unwrap_or(0).to_be_bytes().to_vec();
    message.extend_from_slice(body);
    let sent = stream.write_all(&message).await;
    let _ = stream.flush().await;
    let mut buf = [0; 1024];
    match (stream.read(&mut buf).await, sent) {
        (Ok(n), _) if n > 8 && buf[0] == b'R' => {
            let how = u32::from_be_bytes([buf[5], buf[6], buf[7], buf[8]]);
            let how = match how {
                0 => "lets in",
                _ => "goes on to ask for a password",
            };
            Asked::new(Outcome::Accepted, how)
        }
        (Ok(n), _) if n > 0 && buf[0] == b'E' => {
            let text = String::from_utf8_lossy(&buf[5..n.max(5)]).replace('\0', " ");
            Asked::new(Outcome::RefusedByApplication, format!("says {}", brief(&text)))
        }
        (Ok(n), _) if n > 0 => Asked::new(Outcome::Refused, "answers with something else"),
        (Ok(_), _) => Asked::new(Outcome::Refused, "closed without an answer"),
        (Err(e), _) => Asked::of_closed(closed(&e)),
    }
}

/// A login without a password; the answer is OK, a wish for more, or an error. Packets are numbered: the greeting was
/// 0, an SSLRequest takes 1.
pub(crate) async fn mysql(mut stream: Box<dyn Io>, number: u8) -> Asked {
    // A server that reads the wish for TLS begins a handshake.
    let without_tls = number == 1;
    let capabilities = MYSQL_CAPABILITIES & if without_tls { !MYSQL_TLS } else { !0 };
    let mut body = capabilities.to_le_bytes().to_vec();
    body.extend_from_slice(&(1_u32 << 24).to_le_bytes());
    body.push(33);
    body.extend_from_slice(&[0; 23]);
    body.extend_from_slice(b"countersign\0\0mysql_native_password\0");
    let mut message = vec![u8::try_from(body.len()).unwrap_or(0), 0, 0, number];
    message.extend_from_slice(&body);
    let _ = stream.write_all(&message).await;
    let _ = stream.flush().await;
    match mysql_packet(&mut stream).await {
        Ok(packet) => match packet.first() {
            Some(0xff) => {
                let text =
                    String::from_utf8_lossy(packet.get(3..).unwrap_or_default()).into_owned();
                Asked::new(Outcome::RefusedByApplication, format!("says {}", brief(&text)))
            }
            Some(0) => Asked::new(Outcome::Accepted, "lets in"),
            _ => Asked::new(Outcome::Accepted, "goes on to ask for a password"),
        },
        Err(how) => Asked::new(Outcome::Refused, how),
    }
}
