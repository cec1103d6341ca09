//! Who speaks at a place, and to whom: a server or a client, on the network or on this host alone. By the names that
//! the code around it uses.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use crate::gate::{MOST, is_word, words};
use crate::scope::innermost;
use crate::source::{Source, blank};

impl Source<'_> {
    /// `network`, `loopback` or both: whom the addresses in the function around a place, else in the file, let in.
    /// Empty where none is written there.
    pub(crate) fn address(&self, at: &Range<usize>) -> &'static str {
        static NETWORK: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r#"["'](?:0\.0\.0\.0|\[::\]|::)?:(?:[1-9]\d{1,4}["']|%[dvs]|["']\s*[+,.]|\{|\$)|["'](?:0\.0\.0\.0|\[?::\]?)["':]|"#,
                r"INADDR_ANY|in6addr_any|IPAddress\.(?:IPv6)?Any\b|ListenAnyIP|UNSPECIFIED|AnyIP\b"
            ))
            .ok()
        });
        static LOOPBACK: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r"127\.0\.0\.1|localhost|\[?::1\]?:|unix:|unix-abstract:|vsock:|bufconn|InProcess|in-process|",
                r#"(?i:loopback)|\.sock\b|["']unix["']"#
            ))
            .ok()
        });
        let part = self.function_around(at).map_or(0..self.text.len(), |f| f.range.clone());
        let text = self.text.get(part).unwrap_or_default();
        let is = |r: &LazyLock<Option<Regex>>| r.as_ref().is_some_and(|r| r.is_match(text));
        match (is(&NETWORK), is(&LOOPBACK)) {
            (true, true) => "network loopback",
            (true, false) => "network",
            (false, true) => "loopback",
            (false, false) => "",
        }
    }

    /// `server`, `client` or both, as far as the code around a place tells: what the variable is made of that its
    /// statement is about, else its function, else its class, else the file. Empty where nothing tells.
    pub(crate) fn role(&self, at: &Range<usize>) -> &'static str {
        static SERVER: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r"ServerSocket|\bforServer\s*\(|\bHttps?Server\b|SslContextFactory\.Server|UseClientMode\s*\(\s*false|",
                r"useClientMode\s*=\s*false|TlsServerCredentials|NettyServerBuilder|\bServerBuilder\b|HttpServerOptions|",
                r"ServerBootstrap|\bUndertow\b|WebServerFactory|embeddedServer|AuthenticateAsServer|",
                r"SslServerAuthenticationOptions|\bUseHttps\b|ConfigureHttpsDefaults|HttpsConnectionAdapterOptions|",
                r"\bclass\s+\w*Server\b|\bTcpListener\b|\bHttpListener\b|TransportListener|[nN]eedClientAuth|[wW]antClientAuth|",
                r"ClientCertificateRequired|ClientCertificateMode|createSecureServer|https?2?\.createServer\s*\(|",
                r"tls\.createServer\s*\(|\bSSLServer\b|stream_socket_server|WEBrick|\b(?:Ssl|Tls)Acceptor\b"
            ))
            .ok()
        });
        static CLIENT: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r"UseClientMode\s*\(\s*true|useClientMode\s*=\s*true|\bforClient\s*\(|HttpsURLConnection|OkHttp|",
                r"HttpClient|RestTemplate|WebClient|\bSSLSocketFactory\b|\bcreateSocket\s*\(|SslContextFactory\.Client|",
                r"ChannelBuilder|\bforAddress\s*\(|AuthenticateAsClient|SslClientAuthenticationOptions|",
                r"ServicePointManager|HttpWebRequest|WebSocketClient|ClientWebSocket|SmtpClient|SocketsHttpHandler|",
                r"TlsChannelCredentials|\bTcpClient\b|openConnection|MqttClient|ConnectionFactory|\bengine\s*\{|\bhttps\s*\{|",
                r"TLSConfig|SSLSocketFactory|getSocketFactory|ConnectAsync|BaseAddress|SmtpTransport|LdapConnection|",
                r"tls\.connect\s*\(|https\.(?:request|get|Agent)\b|\baxios\b|Net::HTTP|stream_socket_client|curl_init|Faraday|",
                r"\b(?:Ssl|Tls)Connector\b"
            ))
            .ok()
        });
        let parts = [
            self.function_around(at).map(|f| f.range.clone()),
            innermost(&self.parts.classes, at),
            Some(0..self.code.len()),
        ];
        // What is another arm's says nothing of this one.
        let code = blank(&self.code, &self.excluded(at));
        let is = |r: &LazyLock<Option<Regex>>, part: Range<usize>| {
            let text = code.get(part).unwrap_or_default();
            r.as_ref().is_some_and(|r| r.is_match(text))
        };
        if let Some(role) = self.role_of_variable(at) {
            return role;
        }
        for part in parts.into_iter().flatten() {
            match (is(&SERVER, part.clone()), is(&CLIENT, part)) {
                (true, true) => return "server client",
                (true, false) => return "server",
                (false, true) => return "client",
                (false, false) => {}
            }
        }
        ""
    }

    /// The role of what a statement calls or sets something on, if that was made for one of them only.
    fn role_of_variable(&self, at: &Range<usize>) -> Option<&'static str> {
        static SERVER: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r"(?i)acceptor|server_?(?:config|context|method|hello|builder|socket|options)|tls_?server\b|protocol_tls_server|",
                r"purpose\.client_auth|(?:TLSv1(?:_2)?|SSLv23|TLS|DTLS)_server_method|tlsv\d+_server|sslv23_server|mode::server|for_?server\b|",
                r"server_?side\s*=\s*true"
            ))
            .ok()
        });
        static CLIENT: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r"(?i)connector|client_?(?:config|context|method|builder|socket|options)|tls_?client\b|protocol_tls_client|",
                r"purpose\.server_auth|(?:TLSv1(?:_2)?|SSLv23|TLS|DTLS)_client_method|tlsv\d+_client|sslv23_client|mode::client|for_?client\b"
            ))
            .ok()
        });
        let statement = innermost(&self.parts.statements, at)?;
        let head = self.code.get(statement.start..at.start)?.trim_start();
        let name: &str = head.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?;
        if name.is_empty() || matches!(name, "self" | "this" | "return" | "let" | "if" | "auto") {
            return None;
        }
        let rest = head[name.len()..].trim_start();
        if !(rest.starts_with('.') || rest.starts_with("->")) {
            return None;
        }
        let made = self.made(name, at)?;
        let is = |r: &LazyLock<Option<Regex>>| r.as_ref().is_some_and(|r| r.is_match(&made));
        match (is(&SERVER), is(&CLIENT)) {
            (true, false) => Some("server"),
            (false, true) => Some("client"),
            _ => None,
        }
    }

    /// The statement that makes a local variable: the last before a place that assigns to it.
    fn made(&self, name: &str, at: &Range<usize>) -> Option<String> {
        let own = self.function_around(at)?.range.clone();
        let part = self.code.get(own.start..at.start)?;
        let assigned = words(part, name)
            .take(MOST)
            .filter(|w| {
                let rest = part[w.end..].trim_start();
                let head = rest.split('=').next().unwrap_or_default();
                (rest.starts_with(":=") || rest.contains('=') && head.len() < 60)
                    && !rest.starts_with("==")
                    && head.bytes().all(|b| is_word(b) || b" :<>&*".contains(&b))
            })
            .last()?;
        let word = own.start + assigned.start..own.start + assigned.end;
        let statement = innermost(&self.parts.statements, &word)?;
        self.text.get(statement).map(str::to_owned)
    }
}
