//! What Envoy asks, checked and brought into the form that policies judge.

use std::net::IpAddr;

use countersign_findings::{Code, Finding};
use countersign_identity::SpiffeId;
use countersign_policy::{
    Attributes, Caller, CertificateFacts, HttpRequest, Normalization, Token, normalize_as,
    percent_decoded,
};
use countersign_wire::proto::envoy::config::core::v3 as core;
use countersign_wire::proto::envoy::service::auth::v3 as auth;
use countersign_x509::{CertInfo, pem};

/// One question, owned.
pub(crate) struct Question {
    names: Vec<String>,
    id: Option<SpiffeId>,
    certificate: Option<CertInfo>,
    source_ip: Option<IpAddr>,
    destination_ip: Option<IpAddr>,
    destination_port: Option<u16>,
    /// The identity that is called, if Envoy has one.
    pub(crate) destination: Option<SpiffeId>,
    sni: Option<String>,
    pub(crate) http: Option<Http>,
}

/// The request in it.
pub(crate) struct Http {
    method: String,
    host: String,
    path: String,
    pub(crate) query: String,
    fields: Vec<(String, String)>,
}

impl Http {
    pub(crate) fn fields(&self) -> Vec<(&str, &str)> {
        self.fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect()
    }

    pub(crate) fn parts<'a>(&'a self, fields: &'a [(&'a str, &'a str)]) -> HttpRequest<'a> {
        HttpRequest { method: &self.method, host: &self.host, path: &self.path, headers: fields }
    }
}

impl Question {
    /// Reads Envoy's attributes. What is malformed is refused, not guessed.
    pub(crate) fn read(
        request: auth::CheckRequest,
        normalization: Normalization,
    ) -> Result<Self, Finding> {
        let a = request.attributes.ok_or_else(|| malformed("the question has no attributes"))?;
        let source = a.source.unwrap_or_default();
        let destination = a.destination.unwrap_or_default();
        let certificate = certificate(&source.certificate)?;
        let names = match &certificate {
            Some(c) if !c.uri_sans.is_empty() => c.uri_sans.clone(),
            Some(c) if !c.dns_sans.is_empty() => c.dns_sans.clone(),
            Some(c) => vec![c.subject.clone()],
            None if source.principal.is_empty() => Vec::new(),
            None => vec![source.principal],
        };
        let id = match names.as_slice() {
            [only] => SpiffeId::parse(only).ok(),
            _ => None,
        };
        let (source_ip, _) = address(source.address)?;
        let (destination_ip, destination_port) = address(destination.address)?;
        let http = a.request.and_then(|r| r.http).map(|h| http(h, normalization)).transpose()?;
        Ok(Self {
            names,
            id,
            certificate,
            source_ip,
            destination_ip,
            destination_port,
            destination: SpiffeId::parse(&destination.principal).ok(),
            sni: a.tls_session.map(|t| t.sni).filter(|s| !s.is_empty()),
            http,
        })
    }

    /// The port that is called.
    pub(crate) fn port(&self) -> Option<u16> {
        self.destination_port
    }

    /// Whether nobody in particular calls.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.names.is_empty()
    }

    /// Who calls, for people.
    pub(crate) fn caller(&self) -> String {
        match self.names.as_slice() {
            [] => self.source_ip.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string()),
            names => names.join(", "),
        }
    }

    pub(crate) fn attributes<'a>(
        &'a self,
        http: Option<HttpRequest<'a>>,
        token: Option<&'a Token>,
    ) -> Attributes<'a> {
        Attributes {
            caller: match (&self.id, self.names.as_slice()) {
                (Some(id), _) => Caller::Identity(id),
                (None, []) => Caller::Nobody,
                (None, names) => Caller::Names(names),
            },
            certificate: self.certificate.as_ref().map(CertificateFacts::of),
            source_ip: self.source_ip,
            remote_ip: self.source_ip,
            destination_ip: self.destination_ip,
            destination_port: self.destination_port,
            sni: self.sni.as_deref(),
            http,
            token,
            external: None,
        }
    }
}

fn malformed(what: &str) -> Finding {
    Finding::new(Code::MalformedHttp, what.to_owned())
}

/// The first certificate of what Envoy sends: PEM, percent-encoded.
fn certificate(text: &str) -> Result<Option<CertInfo>, Finding> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad =
        || Finding::new(Code::MalformedCertificate, "the caller's certificate cannot be read");
    let ders = pem::certificates(percent_decoded(text).as_bytes()).map_err(|_| bad())?;
    let der = ders.first().ok_or_else(bad)?;
    CertInfo::parse(der).map(Some).map_err(|_| bad())
}

fn address(a: Option<core::Address>) -> Result<(Option<IpAddr>, Option<u16>), Finding> {
    let Some(core::Address { address: Some(core::address::Address::SocketAddress(s)) }) = a else {
        return Ok((None, None));
    };
    let ip = s.address.parse().map_err(|_| malformed("an address in the question is not an IP"))?;
    let port = match s.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(p)) => {
            Some(u16::try_from(p).map_err(|_| malformed("a port in the question is over 65535"))?)
        }
        _ => None,
    };
    Ok((Some(ip), port))
}

fn http(h: auth::attribute_context::HttpRequest, mode: Normalization) -> Result<Http, Finding> {
    if h.method.is_empty() || h.method.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err(malformed("the method is missing or not in capitals"));
    }
    let (raw, query) = h.path.split_once('?').unwrap_or((&h.path, ""));
    let path = normalize_as(raw, mode).map_err(|e| malformed(&e.to_string()))?;
    // The application gets the path that Envoy has, not the one that was judged: they must be the same.
    if mode == Normalization::Strict && path != raw {
        return Err(malformed(&format!("the path is not in normal form, which is `{path}`"))
            .hint("let Envoy normalise it first: normalize_path, merge_slashes, path_with_escaped_slashes_action"));
    }
    let mut fields: Vec<(String, String)> = match h.header_map {
        Some(map) => map
            .headers
            .into_iter()
            .map(|v| {
                let raw = String::from_utf8_lossy(&v.raw_value).into_owned();
                (v.key, if v.raw_value.is_empty() { v.value } else { raw })
            })
            .collect(),
        None => h.headers.into_iter().collect(),
    };
    fields.retain(|(name, _)| !name.starts_with(':'));
    fields.sort();
    let query = query.to_owned();
    Ok(Http { method: h.method, host: h.host, path: path.into_owned(), query, fields })
}
