//! Request and response heads: parsed, judged, and written anew.

use std::mem::MaybeUninit;

use countersign_engines::Refusal;
use countersign_findings::{Code, Finding};
use countersign_policy::{
    Authenticated, Normalization, is_kept_back, judged_fields, normalize_as, percent_decoded,
};
use countersign_telemetry::ConnectionId;

use super::framing::Framing;
use super::{MAX_FIELDS, MAX_HEAD};

/// Fields that a `Connection` header must not name.
const MUST_STAY: [&str; 6] =
    ["content-length", "transfer-encoding", "host", "te", "trailer", "authorization"];

/// A refused message.
#[derive(Debug)]
pub(crate) struct Bad(pub(crate) Code, pub(crate) String);

impl Bad {
    fn malformed(what: impl Into<String>) -> Self {
        Bad(Code::MalformedHttp, what.into())
    }

    pub(crate) fn finding(&self) -> Finding {
        Finding::new(self.code(), self.1.clone())
    }

    pub(crate) fn code(&self) -> Code {
        self.0
    }

    pub(crate) fn status(&self) -> u16 {
        self.0.http_status()
    }
}

/// A parsed request head, borrowing from the read buffer.
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'a str,
    /// Normalised, with query.
    pub(crate) target: std::borrow::Cow<'a, str>,
    pub(crate) host: &'a str,
    pub(crate) fields: Vec<(&'a str, &'a str)>,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    minor: u8,
    /// Bytes of the head in the buffer.
    pub(crate) len: usize,
}

/// A parsed response head.
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
    pub(crate) len: usize,
    /// Whether the head may be passed on byte for byte.
    pub(crate) verbatim: bool,
}

fn text(value: &[u8]) -> Result<&str, Bad> {
    let text =
        std::str::from_utf8(value).map_err(|_| Bad::malformed("a header value is not text"))?;
    if text.bytes().any(|b| b < 0x20 && b != b'\t' || b == 0x7f) {
        return Err(Bad::malformed("a header value holds a control character"));
    }
    Ok(text)
}

fn incomplete(buffer: &[u8]) -> Result<(), Bad> {
    if buffer.len() >= MAX_HEAD {
        return Err(Bad(Code::HttpTooLarge, format!("header section exceeds {MAX_HEAD} bytes")));
    }
    Ok(())
}

fn parse_error(e: httparse::Error) -> Bad {
    match e {
        httparse::Error::TooManyHeaders => {
            Bad(Code::HttpTooLarge, format!("more than {MAX_FIELDS} header fields"))
        }
        httparse::Error::Version => {
            Bad(Code::HttpVersionUnsupported, "only HTTP/1.0 and HTTP/1.1 are spoken here".into())
        }
        other => Bad::malformed(format!("head is malformed: {other}")),
    }
}

/// The head ends in lines of CRLF; a bare LF is where parsers disagree.
fn check_line_ends(head: &[u8]) -> Result<(), Bad> {
    let bare =
        head.iter().enumerate().any(|(i, b)| *b == b'\n' && (i == 0 || head[i - 1] != b'\r'));
    if bare { Err(Bad::malformed("a line ends in a bare LF")) } else { Ok(()) }
}

/// The framing that the fields give (RFC 9112 §6.3), strictly.
fn body(fields: &[(&str, &str)], minor: u8) -> Result<Option<Framing>, Bad> {
    let mut length = None;
    let mut chunked = false;
    for (name, value) in fields {
        if name.eq_ignore_ascii_case("content-length") {
            if length.is_some() {
                return Err(Bad::malformed("Content-Length occurs twice"));
            }
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            length = Some(
                value
                    .parse::<u64>()
                    .ok()
                    .filter(|_| digits)
                    .ok_or_else(|| Bad::malformed("Content-Length is not a number"))?,
            );
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case("chunked") {
                return Err(Bad::malformed("Transfer-Encoding must be `chunked`, once"));
            }
            chunked = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => {
            Err(Bad::malformed("Content-Length and Transfer-Encoding contradict each other"))
        }
        (None, true) if minor == 0 => Err(Bad::malformed("HTTP/1.0 has no Transfer-Encoding")),
        (None, true) => Ok(Some(Framing::chunked())),
        (Some(n), false) => Ok(Some(Framing::length(n))),
        (None, false) => Ok(None),
    }
}

fn tokens<'a>(fields: &'a [(&str, &str)], name: &str) -> impl Iterator<Item = &'a str> {
    fields
        .iter()
        .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
        .flat_map(|(_, v)| v.split(','))
        .map(str::trim)
}

impl<'a> RequestHead<'a> {
    /// Parses the head at the beginning of `buffer`; `None` if it is not complete yet.
    pub(crate) fn parse(buffer: &'a [u8], mode: Normalization) -> Result<Option<Self>, Bad> {
        // Not initialised: most of it is never used, and clearing it would cost more than parsing.
        let mut raw = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let len = match request.parse_with_uninit_headers(buffer, &mut raw).map_err(parse_error)? {
            httparse::Status::Partial => return incomplete(buffer).map(|()| None),
            httparse::Status::Complete(len) => len,
        };
        if len > MAX_HEAD {
            return Err(Bad(
                Code::HttpTooLarge,
                format!("header section exceeds {MAX_HEAD} bytes"),
            ));
        }
        check_line_ends(&buffer[..len])?;
        let minor = request.version.unwrap_or(0);
        let method = request.method.unwrap_or_default();
        if method == "CONNECT" {
            return Err(Bad::malformed("CONNECT is not accepted here"));
        }
        // Policies name methods in capitals, and there are applications that do not mind the case.
        if method.bytes().any(|b| b.is_ascii_lowercase()) {
            return Err(Bad::malformed("the method is not in capitals"));
        }
        let target = request.path.unwrap_or_default();
        let target = normalize_as(target, mode).map_err(|e| Bad::malformed(e.to_string()))?;
        let mut fields = Vec::with_capacity(request.headers.len());
        for h in request.headers.iter() {
            fields.push((h.name, text(h.value)?));
        }
        let mut hosts = fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case("host"));
        let host = match (hosts.next(), hosts.next()) {
            (Some((_, host)), None) => *host,
            (None, _) if minor == 0 => "",
            (None, _) => return Err(Bad::malformed("Host is missing")),
            _ => return Err(Bad::malformed("Host occurs twice")),
        };
        if host.bytes().any(|b| matches!(b, b' ' | b'/' | b'@' | b',' | b'\t')) {
            return Err(Bad::malformed("Host is malformed"));
        }
        let framing = body(&fields, minor)?.unwrap_or(Framing::Done);
        // Removing one of these on the sender's word would change what the message means.
        if let Some(named) = tokens(&fields, "connection")
            .find(|t| MUST_STAY.iter().any(|m| t.eq_ignore_ascii_case(m)))
        {
            return Err(Bad::malformed(format!("Connection names `{named}`")));
        }
        let closes = tokens(&fields, "connection").any(|t| t.eq_ignore_ascii_case("close"));
        // WebSocket and nothing else: an upgrade to HTTP/2 would carry requests that nobody judges.
        let upgrade = minor == 1
            && tokens(&fields, "connection").any(|t| t.eq_ignore_ascii_case("upgrade"))
            && {
                let mut wanted = tokens(&fields, "upgrade");
                wanted.next().is_some_and(|t| t.eq_ignore_ascii_case("websocket"))
                    && wanted.next().is_none()
            };
        if upgrade && !framing.is_done() {
            return Err(Bad::malformed("an upgrade request must have no body"));
        }
        Ok(Some(Self {
            method,
            target,
            host,
            framing,
            keep_alive: minor == 1 && !closes,
            upgrade,
            fields,
            minor,
            len,
        }))
    }

    /// The fields as policies may see them: as the application will, so that nobody passes by a header that he
    /// made up himself.
    pub(crate) fn judged<'b>(
        &'b self,
        edits: Option<&'b Authenticated>,
    ) -> Vec<(&'b str, &'b str)> {
        judged_fields(&self.fields, edits)
    }

    /// Whether [`RequestHead::judged`] differs from the fields as sent.
    pub(crate) fn needs_judged(&self, edits: Option<&Authenticated>) -> bool {
        edits.is_some_and(|e| !e.add_headers.is_empty())
            || self.fields.iter().any(|(name, _)| is_kept_back(name, true, edits))
    }

    /// As the request names it.
    pub(crate) fn protocol(&self) -> &'static str {
        if self.minor == 0 { "HTTP/1.0" } else { "HTTP/1.1" }
    }

    /// The query without `?`.
    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, q)| q)
    }

    /// The path without query, as policies see it.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Writes the head for the next hop: hop-by-hop fields and identity headers removed, `identity` (a
    /// value for X-Forwarded-Client-Cert) added; `edits` are what verifying the request's token led to.
    pub(crate) fn write(
        &self,
        identity: Option<&str>,
        strip_identity: bool,
        edits: Option<&Authenticated>,
        out: &mut Vec<u8>,
    ) {
        let named: Vec<&str> = tokens(&self.fields, "connection").collect();
        out.extend_from_slice(self.method.as_bytes());
        out.push(b' ');
        match edits {
            Some(edits) if !edits.remove_parameters.is_empty() => {
                out.extend_from_slice(self.without(&edits.remove_parameters).as_bytes());
            }
            _ => out.extend_from_slice(self.target.as_bytes()),
        }
        out.extend_from_slice(if self.minor == 0 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
        for (name, value) in &self.fields {
            let dropped = is_hop_by_hop(name)
                || !self.upgrade && is_upgrade(name)
                || is_kept_back(name, strip_identity, edits)
                || named.iter().any(|n| n.eq_ignore_ascii_case(name))
                    && !name.eq_ignore_ascii_case("upgrade");
            if !dropped {
                field(name, value, out);
            }
        }
        if self.upgrade {
            out.extend_from_slice(b"Connection: Upgrade\r\n");
        }
        if let Some(value) = identity {
            field("X-Forwarded-Client-Cert", value, out);
        }
        for (name, value) in edits.iter().flat_map(|e| &e.add_headers) {
            field(name, value, out);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// The target without some query parameters.
    fn without(&self, parameters: &[String]) -> String {
        let kept: Vec<&str> = self
            .query()
            .split('&')
            .filter(|p| {
                let name = percent_decoded(p.split('=').next().unwrap_or_default());
                !parameters.contains(&name)
            })
            .collect();
        if kept.is_empty() {
            return self.path().to_owned();
        }
        format!("{}?{}", self.path(), kept.join("&"))
    }
}

fn is_upgrade(name: &str) -> bool {
    name.eq_ignore_ascii_case("upgrade") || name.eq_ignore_ascii_case("http2-settings")
}

fn is_hop_by_hop(name: &str) -> bool {
    ["connection", "keep-alive", "proxy-connection"].iter().any(|h| name.eq_ignore_ascii_case(h))
}

fn field(name: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

impl ResponseHead {
    /// Parses the response to a request of `method`; `None` if it is not complete yet.
    pub(crate) fn parse(buffer: &[u8], method: &str) -> Result<Option<Self>, Bad> {
        let mut raw = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let len = match httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut response, buffer, &mut raw)
            .map_err(parse_error)?
        {
            httparse::Status::Partial => return incomplete(buffer).map(|()| None),
            httparse::Status::Complete(len) => len,
        };
        check_line_ends(&buffer[..len])?;
        let minor = response.version.unwrap_or(0);
        let status = response.code.unwrap_or(0);
        let mut fields = Vec::with_capacity(response.headers.len());
        for h in response.headers.iter() {
            fields.push((h.name, std::str::from_utf8(h.value).unwrap_or("\u{fffd}")));
        }
        let framing = match body(&fields, minor)? {
            _ if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) => Framing::Done,
            Some(framing) => framing,
            None => Framing::UntilClose,
        };
        let closes = tokens(&fields, "connection").any(|t| t.eq_ignore_ascii_case("close"));
        let keeps = tokens(&fields, "connection").any(|t| t.eq_ignore_ascii_case("keep-alive"));
        let keep_alive = framing != Framing::UntilClose && if minor == 0 { keeps } else { !closes };
        Ok(Some(Self {
            status,
            keep_alive,
            framing,
            len,
            verbatim: minor == 1 && !fields.iter().any(|(n, _)| is_hop_by_hop(n)),
        }))
    }

    /// Writes the head for the client: hop-by-hop fields replaced by our own.
    pub(crate) fn write(&self, head: &[u8], close: bool, out: &mut Vec<u8>) {
        if self.verbatim && !close || self.status == 101 || self.status < 200 {
            out.extend_from_slice(head);
            return;
        }
        let mut lines = head.split(|b| *b == b'\n');
        if let Some(status_line) = lines.next() {
            // An answer in HTTP/1.0 becomes one in HTTP/1.1: its framing has been understood.
            out.extend_from_slice(b"HTTP/1.1");
            out.extend_from_slice(status_line.get(8..).unwrap_or_default());
            out.push(b'\n');
        }
        for line in lines {
            let name = line.split(|b| *b == b':').next().unwrap_or_default();
            let name = std::str::from_utf8(name).unwrap_or_default().trim();
            if line.len() > 1 && !is_hop_by_hop(name) {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
        }
        if close {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        300..=399 => "Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

/// Our own answer: a status with the code and the connection id, and nothing that helps a stranger.
pub(crate) fn refusal(status: u16, code: Code, id: ConnectionId, close: bool) -> Vec<u8> {
    let reason = reason(status);
    let body = format!(
        "{{\"code\":\"{code}\",\"reason\":\"{}\",\"connection_id\":\"{id}\"}}\n",
        code.slug()
    );
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         X-Countersign-Code: {code}\r\n{}{}\r\n{body}",
        body.len(),
        if status == 401 { "WWW-Authenticate: Bearer error=\"invalid_token\"\r\n" } else { "" },
        if close { "Connection: close\r\n" } else { "" }
    )
    .into_bytes()
}

/// An engine's answer to a client that it refuses: its words, our framing.
pub(crate) fn engine_refusal(
    refusal: &Refusal,
    code: Code,
    id: ConnectionId,
    close: bool,
) -> Vec<u8> {
    let mut out =
        format!("HTTP/1.1 {} {}\r\n", refusal.status, reason(refusal.status)).into_bytes();
    for (name, value) in &refusal.headers {
        field(name, value, &mut out);
    }
    field("Content-Length", &refusal.body.len().to_string(), &mut out);
    field("X-Countersign-Code", code.as_str(), &mut out);
    field("X-Countersign-Connection-Id", &id.to_string(), &mut out);
    if close {
        field("Connection", "close", &mut out);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&refusal.body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<Option<String>, Code> {
        match RequestHead::parse(text.as_bytes(), Normalization::Strict) {
            Ok(Some(head)) => {
                let mut out = Vec::new();
                head.write(Some("URI=spiffe://a/b"), true, None, &mut out);
                Ok(Some(String::from_utf8(out).unwrap()))
            }
            Ok(None) => Ok(None),
            Err(e) => Err(e.code()),
        }
    }

    #[test]
    fn identity_headers_of_callers_are_replaced() {
        let out = request(
            "GET /a//b?q HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: URI=spiffe://evil\r\n\
             x_forwarded_client_cert: evil\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nA: b\r\n\r\n",
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            out,
            "GET /a/b?q HTTP/1.1\r\nHost: x\r\nA: b\r\nX-Forwarded-Client-Cert: URI=spiffe://a/b\r\n\r\n"
        );
    }

    #[test]
    fn only_websocket_upgrades() {
        let get = |fields: &str| request(&format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
        let h2c =
            get("Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n").unwrap().unwrap();
        assert!(!h2c.contains("Upgrade") && !h2c.contains("HTTP2-Settings"), "{h2c}");
        let both = get("Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n").unwrap().unwrap();
        assert!(!both.contains("Upgrade"), "{both}");
        let ws = get("Connection: Upgrade\r\nUpgrade: WebSocket\r\n").unwrap().unwrap();
        assert!(
            ws.contains("Connection: Upgrade\r\n") && ws.contains("Upgrade: WebSocket\r\n"),
            "{ws}"
        );
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let get = |fields: &str| request(&format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
        for fields in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1,1\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Host: y\r\n",
            "A: b\n",
            "A : b\r\n",
            " folded\r\n",
            "A: \x01\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n",
            "Connection: content-length\r\nContent-Length: 3\r\n",
            "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
            "Connection: host\r\n",
        ] {
            assert_eq!(get(fields).err(), Some(Code::MalformedHttp), "{fields:?}");
        }
        for whole in [
            "GET / HTTP/1.1\r\n\r\n",
            "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\nHost: x\n\n",
        ] {
            assert_eq!(request(whole).err(), Some(Code::MalformedHttp), "{whole:?}");
        }
        assert_eq!(request("GET / HTTP/2.0\r\n\r\n").err(), Some(Code::HttpVersionUnsupported));
        assert_eq!(request("GET / HTTP/1.1\r\nHost:"), Ok(None));
        let many = "A: b\r\n".repeat(101);
        assert_eq!(get(&many).err(), Some(Code::HttpTooLarge));
        assert_eq!(
            request(&format!("GET /{}", "a".repeat(MAX_HEAD))).err(),
            Some(Code::HttpTooLarge)
        );
    }

    #[test]
    fn responses_keep_their_framing() {
        let parse = |t: &str, m: &str| ResponseHead::parse(t.as_bytes(), m).unwrap().unwrap();
        assert_eq!(
            parse("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "GET").framing,
            Framing::Length(5)
        );
        assert!(parse("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD").framing.is_done());
        assert!(parse("HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n", "GET").framing.is_done());
        let old = parse("HTTP/1.0 200 OK\r\n\r\n", "GET");
        assert!(old.framing == Framing::UntilClose && !old.keep_alive);
        let head = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n";
        let parsed = parse(std::str::from_utf8(head).unwrap(), "GET");
        let mut out = Vec::new();
        parsed.write(head, true, &mut out);
        assert_eq!(out, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        assert!(
            ResponseHead::parse(
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                "GET"
            )
            .is_err()
        );
    }
}
