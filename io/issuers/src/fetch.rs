//! One fetch: discovery if need be, then the keys. Bounded in time and size, without redirects.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use countersign_findings::{Code, Finding, with_causes};
use countersign_jose::{JwksError, KeySet};
use countersign_policy::{Cidr, KeyLocation, check_url};
use countersign_tls::WebClient;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::IssuerOptions;
use crate::address::refused;

/// Largest document in bytes.
const MAX_DOCUMENT: usize = 256 << 10;

/// For one address: another one may answer.
const CONNECT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Fetcher {
    /// Made when it is first needed, where it is made of what the host trusts.
    web: OnceLock<Result<WebClient, String>>,
    addresses: Vec<Cidr>,
    plaintext: bool,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// The issuer cannot be reached, or makes no sense.
    #[error("{0}")]
    Away(String),
    /// It says that there are none.
    #[error("{0}")]
    Gone(String),
}

impl Failed {
    pub(crate) fn is_away(&self) -> bool {
        matches!(self, Failed::Away(_))
    }
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Failed::Away(why)
    }
}

impl Fetcher {
    pub(crate) fn new(options: &IssuerOptions) -> Result<Self, Finding> {
        let web = OnceLock::new();
        if !options.roots.is_empty() {
            let client = WebClient::new(&options.roots).map_err(|e| {
                Finding::new(Code::InvalidValue, format!("roots for token issuers: {e}"))
            })?;
            let _ = web.set(Ok(client));
        }
        Ok(Self { web, addresses: options.addresses.clone(), plaintext: options.plaintext })
    }

    /// The keys, and how long their server takes them to be fresh.
    pub(crate) async fn fetch(
        &self,
        location: &KeyLocation,
        timeout: Duration,
    ) -> Result<(KeySet, Option<Duration>), Failed> {
        match tokio::time::timeout(timeout, self.keys(location)).await {
            Ok(result) => result,
            Err(_) => Err(Failed::Away(format!("nothing came within {} ms", timeout.as_millis()))),
        }
    }

    async fn keys(&self, location: &KeyLocation) -> Result<(KeySet, Option<Duration>), Failed> {
        let url = match location {
            KeyLocation::Jwks(url) => url.clone(),
            KeyLocation::Discovery(issuer) => {
                let (_, body) = self.get(&location.url()).await?;
                let url = jwks_uri(issuer, &body)?;
                if issuer.starts_with("https:") && !url.starts_with("https:") {
                    return Err(Failed::Away(format!(
                        "`{issuer}` keeps its keys at `{url}`, in plaintext"
                    )));
                }
                url
            }
        };
        let (headers, body) = self.get(&url).await?;
        match KeySet::parse(&body) {
            Ok(keys) => Ok((keys, max_age(&headers))),
            Err(e @ JwksError::NoKeys) => Err(Failed::Gone(e.to_string())),
            Err(e) => Err(Failed::Away(e.to_string())),
        }
    }

    async fn get(&self, url: &str) -> Result<(HeaderMap, Bytes), Failed> {
        let uri: Uri = url.parse().map_err(|_| format!("`{}` is no URL", url.escape_default()))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if self.plaintext => false,
            Some("http") => {
                let why = "http: whoever is on the way could replace the keys";
                return Err(Failed::Away(why.to_owned()));
            }
            _ => return Err(format!("`{}` is no https URL", url.escape_default()).into()),
        };
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = self.dial(host, port).await?;
        if secure {
            // The whole fetch has its own limit.
            let limit = Duration::from_secs(3600);
            let web = self.web.get_or_init(|| WebClient::new(&[]).map_err(|e| e.to_string()));
            let web = web.as_ref().map_err(Clone::clone)?;
            let stream = web.connect(stream, host, limit).await.map_err(|e| e.to_string())?;
            exchange(stream, &uri).await
        } else {
            exchange(stream, &uri).await
        }
    }

    /// Names are resolved once, and what is connected to is what was judged.
    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let found = tokio::net::lookup_host((host, port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|e| format!("`{host}` cannot be resolved: {e}"))?.collect();
        let mut why = format!("`{host}` has no address");
        for address in found {
            if let Some(kind) = refused(address.ip(), &self.addresses) {
                why = format!("`{host}` is {}, {kind}, which is not asked", address.ip());
                continue;
            }
            match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(e)) => why = format!("cannot connect to {address}: {e}"),
                Err(_) => why = format!("{address} does not answer"),
            }
        }
        Err(why)
    }
}

async fn exchange<S>(stream: S, uri: &Uri) -> Result<(HeaderMap, Bytes), Failed>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let text = |e: hyper::Error| Failed::Away(with_causes(&e));
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(io).await.map_err(text)?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let authority = uri.authority().map_or("", |a| a.as_str());
    let request = Request::get(path)
        .header("host", authority)
        .header("accept", "application/json")
        .header("user-agent", "countersign")
        .body(Empty::new())
        .map_err(|e| Failed::Away(e.to_string()))?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(text)?;
        let (parts, body) = answer.into_parts();
        let what = format!("{uri} answers {}", parts.status);
        match parts.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Err(Failed::Gone(what)),
            _ => return Err(Failed::Away(what)),
        }
        let body = Limited::new(body, MAX_DOCUMENT).collect().await;
        let body = body.map_err(|e| format!("{uri}: the answer cannot be read: {e}"))?.to_bytes();
        Ok((parts.headers, body))
    };
    // The connection is driven only for as long as the answer is waited for. How it ends is no news: the answer,
    // or what kept it away, is about to be seen.
    let connection = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        never = connection => never,
    }
}

/// OpenID Connect Discovery 1.0, sections 4.2 and 4.3.
fn jwks_uri(issuer: &str, body: &[u8]) -> Result<String, String> {
    let document: Value = serde_json::from_slice(body)
        .map_err(|e| format!("the issuer's metadata is not JSON: {e}"))?;
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    // Otherwise one issuer could speak for another.
    if text("issuer") != Some(issuer) {
        let other = text("issuer").unwrap_or("nobody").escape_default().to_string();
        return Err(format!("the metadata is of `{other}`, not of `{issuer}`"));
    }
    let uri = text("jwks_uri").ok_or("the issuer's metadata names no `jwks_uri`")?;
    check_url(uri).map_err(|why| format!("the issuer's `jwks_uri` {why}"))?;
    Ok(uri.to_owned())
}

/// `Cache-Control: max-age` (RFC 9111, section 5.2.2.1).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("cache-control").iter().filter_map(|v| v.to_str().ok());
    let mut directives = values.flat_map(|v| v.split(',')).map(|d| d.trim().to_ascii_lowercase());
    let seconds = directives.find_map(|d| d.strip_prefix("max-age=")?.parse::<u64>().ok())?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_of_another_issuer_does_not_count() {
        let body = br#"{"issuer": "https://a.test", "jwks_uri": "https://a.test/keys"}"#;
        assert_eq!(jwks_uri("https://a.test", body).unwrap(), "https://a.test/keys");
        assert!(jwks_uri("https://b.test", body).unwrap_err().contains("https://a.test"));
        assert!(jwks_uri("https://a.test", br#"{"issuer": "https://a.test"}"#).is_err());
        assert!(jwks_uri("https://a.test", b"<html>").is_err());
    }

    #[test]
    fn max_age_is_read() {
        let age = |v: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("cache-control", http::HeaderValue::from_static(v));
            max_age(&headers)
        };
        assert_eq!(age("public, Max-Age=600"), Some(Duration::from_secs(600)));
        assert_eq!(age("no-store"), None);
        assert_eq!(age("max-age=x"), None);
    }
}
