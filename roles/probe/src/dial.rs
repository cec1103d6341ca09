//! Connections, counted and bounded, up to where TLS begins.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign_tls::probe::{ProbeClient, Probed};
use countersign_tls::{ClientStream, HandshakeError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::options::Protocol;

/// A stream of whatever kind.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connections at once: a probe is no load test.
const AT_ONCE: usize = 8;

/// Opens connections to one target.
pub(crate) struct Dialer {
    pub(crate) protocol: Protocol,
    pub(crate) timeout: Duration,
    most: usize,
    made: AtomicUsize,
    places: Semaphore,
}

/// Why there is no TLS session.
#[derive(Debug)]
pub(crate) enum Failed {
    /// No TCP connection, or no more of them.
    NoConnection(String),
    /// The protocol's own way into TLS is not there.
    NoTls(String),
    /// The handshake.
    Handshake(HandshakeError),
}

impl Dialer {
    pub(crate) fn new(protocol: Protocol, timeout: Duration, most: usize) -> Self {
        let (made, places) = (AtomicUsize::new(0), Semaphore::new(AT_ONCE));
        Self { protocol, timeout, most, made, places }
    }

    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed).min(self.most)
    }

    /// How many may still be made.
    pub(crate) fn left(&self) -> usize {
        self.most.saturating_sub(self.made.load(Ordering::Relaxed))
    }

    /// Whether a connection was wanted that could not be had.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.made.load(Ordering::Relaxed) > self.most
    }

    /// A place among those that connect at the same time.
    pub(crate) async fn place(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
    }

    /// A plain connection.
    pub(crate) async fn tcp(&self, address: &str) -> Result<TcpStream, String> {
        if self.made.fetch_add(1, Ordering::Relaxed) >= self.most {
            return Err(format!("the limit of {} connections is reached", self.most));
        }
        let dial = TcpStream::connect(address);
        match tokio::time::timeout(self.timeout, dial).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(e)) => Err(format!("cannot connect to {address}: {e}")),
            Err(_) => Err(format!("{address} did not accept within {} s", self.timeout.as_secs())),
        }
    }

    /// A connection on which TLS may begin.
    pub(crate) async fn before_tls(&self, address: &str) -> Result<TcpStream, Failed> {
        let mut stream = self.tcp(address).await.map_err(Failed::NoConnection)?;
        let begin = begin(self.protocol, &mut stream);
        match tokio::time::timeout(self.timeout, begin).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(why)) => Err(Failed::NoTls(why)),
            Err(_) => Err(Failed::NoTls("nothing came in time".into())),
        }
    }

    /// A TLS session, in which nothing was judged by us, and perhaps not yet by the server.
    pub(crate) async fn tls(
        &self,
        address: &str,
        client: &ProbeClient,
    ) -> Result<Probed<ClientStream<TcpStream>>, Failed> {
        let stream = self.before_tls(address).await?;
        client.connect(stream, self.timeout).await.map_err(Failed::Handshake)
    }
}

/// The protocol's own words in front of TLS.
async fn begin(protocol: Protocol, stream: &mut TcpStream) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    match protocol {
        Protocol::Postgres => {
            // SSLRequest: length 8, code 1234.5679 (PostgreSQL, "Message Formats").
            stream.write_all(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]).await.map_err(text)?;
            match stream.read_u8().await.map_err(text)? {
                b'S' => Ok(()),
                _ => Err("PostgreSQL offers no TLS".into()),
            }
        }
        Protocol::Smtp => {
            smtp(stream, None).await?;
            smtp(stream, Some("EHLO probe.invalid\r\n")).await?;
            let reply = smtp(stream, Some("STARTTLS\r\n")).await?;
            if reply.starts_with("220") {
                Ok(())
            } else {
                Err(format!("SMTP offers no TLS: {reply}"))
            }
        }
        Protocol::Mysql => mysql(stream).await,
        _ => Ok(()),
    }
}

/// Says something, if there is something to say, and reads the last line of the reply (RFC 5321 section 4.2).
pub(crate) async fn smtp<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    say: Option<&str>,
) -> Result<String, String> {
    let text = |e: std::io::Error| e.to_string();
    if let Some(say) = say {
        stream.write_all(say.as_bytes()).await.map_err(text)?;
        stream.flush().await.map_err(text)?;
    }
    for _ in 0..64 {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") && line.len() < 1024 {
            line.push(stream.read_u8().await.map_err(text)?);
        }
        if line.get(3) != Some(&b'-') {
            return Ok(String::from_utf8_lossy(&line).trim().to_owned());
        }
    }
    Err("the reply has no end".into())
}

/// Capabilities: protocol 4.1, TLS, secure connection, plugin authentication.
pub(crate) const MYSQL_CAPABILITIES: u32 = 0x200 | MYSQL_TLS | 0x8000 | 0x8_0000;
/// CLIENT_SSL.
pub(crate) const MYSQL_TLS: u32 = 0x800;

/// The server's greeting, then SSLRequest (MySQL, "Connection Phase").
async fn mysql(stream: &mut TcpStream) -> Result<(), String> {
    let greeting = mysql_packet(stream).await?;
    if greeting.first() != Some(&10) {
        return Err("not a MySQL server, or it refuses this host".into());
    }
    // Behind version text, connection id, salt and filler: the lower capabilities.
    let version = greeting.iter().skip(1).position(|b| *b == 0).map_or(greeting.len(), |i| i + 2);
    let at = version + 4 + 8 + 1;
    let capabilities = match greeting.get(at..at + 2) {
        Some(b) => u16::from_le_bytes([b[0], b[1]]),
        None => return Err("the MySQL greeting is cut off".into()),
    };
    if u32::from(capabilities) & MYSQL_TLS == 0 {
        return Err("MySQL offers no TLS".into());
    }
    let mut request = vec![32, 0, 0, 1];
    request.extend_from_slice(&MYSQL_CAPABILITIES.to_le_bytes());
    request.extend_from_slice(&(1_u32 << 24).to_le_bytes());
    request.push(33);
    request.extend_from_slice(&[0; 23]);
    stream.write_all(&request).await.map_err(|e| e.to_string())
}

/// One packet, at most 64 KiB.
pub(crate) async fn mysql_packet<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, String> {
    let text = |e: std::io::Error| e.to_string();
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.map_err(text)?;
    let length = usize::from(head[0]) | usize::from(head[1]) << 8 | usize::from(head[2]) << 16;
    if length > 1 << 16 {
        return Err("the packet is too long for what was asked".into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(text)?;
    Ok(body)
}
