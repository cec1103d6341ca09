//! Deciding about requests that nobody made: flags, requests as JSON, compiled sets by destination.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use clap::Args;
use countersign_findings::{Code, Finding};
use countersign_identity::{BundleSet, SpiffeId, TrustDomain};
use countersign_jose::{JwksError, KeySet, jwt_bundle_from_jwks};
use countersign_keys::read_bounded;
use countersign_policy::{
    Answer, Attributes, Authenticated, Caller, CertificateFacts, Denial, Document, External,
    HttpRequest, KeyLocation, Labels, MAX_INPUT, Mesh, PolicySet, PublishedKeys, Token,
    TokenRefused, Verdict, Workload, judged_fields, normalize_as, remote_ip,
};
use countersign_tls::current_time;
use countersign_x509::{LegacyName, hex};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use countersign_server::DataDir;

use super::super::documents::load;
use super::super::semantics::{SemanticsFlags, trust_domain};
use super::super::{Global, invalid};

/// Largest file of requests in bytes.
const MAX_REQUESTS: u64 = 1 << 30;

/// In which mesh.
#[derive(Args, Clone)]
pub(crate) struct MeshFlags {
    /// The local trust domain [default: the data directory's, else cluster.local]
    #[arg(long, value_name = "NAME")]
    pub(crate) trust_domain: Option<String>,
    #[command(flatten)]
    pub(crate) semantics: SemanticsFlags,
    /// Keys (JWKS) of a token issuer whose keys policies fetch, which previews do not; repeat for more
    #[arg(long, value_name = "ISSUER=FILE")]
    pub(crate) issuer_keys: Vec<String>,
}

impl MeshFlags {
    /// With the data directory's trust domain where none was given.
    pub(crate) fn settled(mut self, global: &Global) -> Self {
        if self.trust_domain.is_none()
            && let Ok(dir) = global.data_dir()
            && let Ok(td) = DataDir::new(&dir).trust_domain()
        {
            self.trust_domain = Some(td.to_string());
        }
        self
    }
}

/// A set of documents that answers requests.
pub(crate) struct Preview {
    documents: Vec<Document>,
    trust_domain: TrustDomain,
    mesh: Mesh,
    keys: PublishedKeys,
    /// One compiled set for each destination that was asked about.
    sets: RefCell<HashMap<(String, Option<Labels>), Rc<PolicySet>>>,
}

impl Preview {
    pub(crate) fn new(documents: Vec<Document>, flags: &MeshFlags) -> Result<Self, Finding> {
        Ok(Self {
            keys: issuer_keys(&documents, &flags.issuer_keys)?,
            documents,
            trust_domain: trust_domain(flags.trust_domain.as_deref().unwrap_or("cluster.local"))?,
            mesh: flags.semantics.mesh()?,
            sets: RefCell::default(),
        })
    }

    pub(crate) fn of_files(paths: &[PathBuf], flags: &MeshFlags) -> Result<Self, Finding> {
        Self::new(load(paths)?.into_iter().map(|s| s.document).collect(), flags)
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The namespaces that policies are for.
    pub(crate) fn namespaces(&self) -> BTreeSet<&str> {
        self.documents.iter().map(Document::namespace).collect()
    }

    pub(crate) fn set(&self, destination: &Destination) -> Rc<PolicySet> {
        let labels = (!destination.labels_unknown).then(|| destination.labels.clone());
        let key = (destination.namespace.clone(), labels);
        let mut sets = self.sets.borrow_mut();
        Rc::clone(sets.entry(key).or_insert_with_key(|(namespace, labels)| {
            let workload = Workload {
                trust_domain: self.trust_domain.clone(),
                namespace: namespace.clone(),
                labels: labels.clone(),
                mesh: self.mesh.clone(),
            };
            Rc::new(PolicySet::compile(&self.documents, &workload, 1))
        }))
    }

    /// What the mesh would say: mode, path and policies.
    pub(crate) fn judge(&self, request: &Request) -> Verdict {
        match self.with(request, |set, a| set.judge(a)) {
            Ok(verdict) => verdict,
            Err(denial) => Verdict::Deny(denial),
        }
    }

    /// Runs `work` on the request's attributes, unless it is refused before any policy counts.
    pub(crate) fn with<T>(
        &self,
        request: &Request,
        work: impl FnOnce(&PolicySet, &Attributes<'_>) -> T,
    ) -> Result<T, Denial> {
        let set = self.set(&request.destination);
        if let Some(query) = &request.http
            && set.expects_tokens()
            && request.token.is_none()
        {
            return self.with_verified_token(request, query, &set, work);
        }
        let token = request.token.clone().map(Token::of_claims);
        self.with_claims(request, token, None, &set, work)
    }

    /// As the proxy does it: the request's own token is verified.
    fn with_verified_token<T>(
        &self,
        request: &Request,
        http: &Http,
        set: &PolicySet,
        work: impl FnOnce(&PolicySet, &Attributes<'_>) -> T,
    ) -> Result<T, Denial> {
        let headers: Vec<(&str, &str)> =
            http.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let (path, query) = http.path.split_once('?').unwrap_or((&http.path, ""));
        let parts = HttpRequest { method: &http.method, host: &http.host, path, headers: &headers };
        match set.authenticate(&parts, query, current_time(), &self.keys) {
            Ok(done) => self.with_claims(request, done.token.clone(), Some(&done), set, work),
            Err(TokenRefused { finding: e, .. }) => {
                Err(refused(e.code, format!("{}: {}", e.code.http_status(), e.message)))
            }
        }
    }

    fn with_claims<T>(
        &self,
        request: &Request,
        token: Option<Token>,
        edits: Option<&Authenticated>,
        set: &PolicySet,
        work: impl FnOnce(&PolicySet, &Attributes<'_>) -> T,
    ) -> Result<T, Denial> {
        let id = request.source.id(&self.trust_domain);
        let names = request.source.names(&self.trust_domain);
        let caller = match (&id, names.as_slice(), &request.source.legacy) {
            (Some(id), ..) => Caller::Identity(id),
            (None, _, Some(name)) => Caller::Legacy(name),
            (None, [], None) => Caller::Nobody,
            (None, names, None) => Caller::Names(names),
        };
        if let Caller::Nobody = caller
            && let Some(mode) = request.destination.port.and_then(|p| set.mode(p))
            && !mode.accepts_plaintext(current_time())
        {
            return Err(refused(
                Code::PlaintextOnStrict,
                "plaintext refused: the port is STRICT".into(),
            ));
        }
        if request.http.as_ref().is_some_and(|h| h.method.bytes().any(|b| b.is_ascii_lowercase())) {
            return Err(refused(Code::MalformedHttp, "400: the method is not in capitals".into()));
        }
        let path = match &request.http {
            None => None,
            Some(http) => match normalize_as(&http.path, self.mesh.normalization) {
                Ok(path) => Some(path.split('?').next().unwrap_or_default().to_owned()),
                Err(e) => return Err(refused(Code::MalformedHttp, format!("400: {e}"))),
            },
        };
        let headers: Vec<(&str, &str)> = request
            .http
            .iter()
            .flat_map(|h| h.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())))
            .collect();
        let headers = judged_fields(&headers, edits);
        // Previews ask nobody: what the engine would say is supposed, or it counts as not asked.
        let external = request.external.and_then(|allows| {
            let answer =
                if allows { Answer::Allowed } else { Answer::Denied("as supposed".to_owned()) };
            Some(External { provider: set.providers().next()?.into(), answer })
        });
        let facts = request.source.cert.as_ref().map(Certificate::facts).transpose()?;
        let a = Attributes {
            caller,
            certificate: match (&facts, &request.source.cert) {
                (Some(facts), Some(cert)) => Some(CertificateFacts {
                    subject: &facts.0,
                    extensions: &facts.1,
                    dns_names: &cert.dns_sans,
                    spki_sha256: facts.2,
                }),
                _ => None,
            },
            source_ip: request.source.ip,
            remote_ip: request.source.remote_ip.or_else(|| {
                request.source.ip.map(|ip| remote_ip(ip, &headers, self.mesh.trusted_hops))
            }),
            destination_ip: request.destination.ip,
            destination_port: request.destination.port,
            sni: request.sni.as_deref(),
            http: request.http.as_ref().map(|h| HttpRequest {
                method: &h.method,
                host: &h.host,
                path: path.as_deref().unwrap_or_default(),
                headers: &headers,
            }),
            token: token.as_ref(),
            external: external.as_ref(),
        };
        Ok(work(set, &a))
    }
}

/// The keys that were given. Nothing is fetched; whatever else a policy would fetch is unknown, and says so.
fn issuer_keys(documents: &[Document], given: &[String]) -> Result<PublishedKeys, Finding> {
    let mut keys = PublishedKeys::default();
    let mut bundles: Option<BundleSet> = None;
    let locations: Vec<(String, KeyLocation)> =
        documents.iter().flat_map(Document::key_locations).collect();
    for (issuer, location) in &locations {
        let why = format!("previews fetch nothing: give --issuer-keys {issuer}=FILE");
        keys.insert(location.clone(), Err(why));
    }
    for text in given {
        let (issuer, path) = text
            .rsplit_once('=')
            .ok_or_else(|| invalid(format!("--issuer-keys: `{text}` is not ISSUER=FILE")))?;
        let bytes = read_bounded(Path::new(path), MAX_INPUT as u64).map_err(|e| e.finding())?;
        let bad =
            |e: JwksError| Finding::new(Code::ConfigSyntax, e.to_string()).at(path.to_owned());
        if issuer.starts_with("spiffe://") {
            let domain = TrustDomain::from_name_or_id(issuer)
                .map_err(|e| invalid(format!("--issuer-keys: `{issuer}`: {e}")))?;
            let bundle = jwt_bundle_from_jwks(&domain, &bytes).map_err(bad)?;
            bundles.get_or_insert_default().set(bundle);
            continue;
        }
        let set = Arc::new(KeySet::parse(&bytes).map_err(bad)?);
        let mut places = locations.iter().filter(|(of, _)| of == issuer).peekable();
        if places.peek().is_none() {
            let text = format!("--issuer-keys: no policy fetches keys of `{issuer}`");
            return Err(invalid(text));
        }
        for (_, location) in places {
            keys.insert(location.clone(), Ok(Arc::clone(&set)));
        }
    }
    keys.set_bundles(bundles);
    Ok(keys)
}

/// A request that never gets as far as the policies.
fn refused(code: Code, message: String) -> Denial {
    Denial { code, policy: None, rule: None, field: None, message }
}

/// A request as JSON.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default)]
    pub(crate) source: Source,
    #[serde(default = "unnamed_destination")]
    pub(crate) destination: Destination,
    #[serde(default)]
    pub(crate) http: Option<Http>,
    #[serde(default)]
    pub(crate) sni: Option<String>,
    /// Claims of a verified token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Map<String, Value>>,
    /// What an external engine would say, where a CUSTOM policy asks one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) external: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Source {
    /// With or without `spiffe://`; absent for plaintext.
    #[serde(default)]
    pub(crate) principal: Option<String>,
    #[serde(default)]
    pub(crate) ip: Option<IpAddr>,
    /// From where originally, as trusted proxies tell; the same as `ip` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remote_ip: Option<IpAddr>,
    /// The certificate, instead of a principal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cert: Option<Certificate>,
    /// The name by which a proxy lets it in without a SPIFFE ID (`--legacy-allow`); with `cert`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) legacy: Option<String>,
}

impl Source {
    /// A client without a SPIFFE ID, of whose certificate nothing is known but that name.
    pub(crate) fn of_legacy(name: &LegacyName) -> Self {
        let mut cert = Certificate::default();
        match name {
            LegacyName::CommonName(cn) => {
                cert.subject = format!("CN={}", cn.replace([',', '+'], " "));
            }
            LegacyName::DnsName(dns) => cert.dns_sans = vec![dns.clone()],
            LegacyName::KeyPin(pin) => cert.spki_sha256 = Some(hex(pin)),
        }
        Self { legacy: Some(name.to_string()), cert: Some(cert), ..Self::default() }
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Certificate {
    #[serde(default, alias = "uri", alias = "uris")]
    pub(crate) uri_sans: Vec<String>,
    #[serde(default, alias = "dns", alias = "dns_names")]
    pub(crate) dns_sans: Vec<String>,
    /// As RFC 4514 writes it: `CN=web,OU=shop`.
    #[serde(default)]
    pub(crate) subject: String,
    /// Private extensions by OID, their values as text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) extensions: BTreeMap<String, String>,
    /// SHA-256 of SubjectPublicKeyInfo, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spki_sha256: Option<String>,
}

/// Subject attributes, private extensions, key pin.
type Facts = (Vec<(String, String)>, Vec<(String, String)>, Option<[u8; 32]>);

impl Certificate {
    fn facts(&self) -> Result<Facts, Denial> {
        let bad = |what: String| refused(Code::InvalidValue, what);
        let subject = self
            .subject
            .split([',', '+'])
            .filter_map(|part| part.split_once('='))
            .map(|(n, v)| (n.trim().to_ascii_uppercase(), v.trim().to_owned()))
            .collect();
        let extensions = self.extensions.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let pin = match &self.spki_sha256 {
            None => None,
            Some(text) => {
                let digits: Option<Vec<u8>> = (text.len() == 64 && text.is_ascii())
                    .then(|| (0..32).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()))
                    .and_then(Iterator::collect);
                let bytes = digits.and_then(|d| d.try_into().ok());
                Some(
                    bytes
                        .ok_or_else(|| bad(format!("spki_sha256 `{text}` is not 64 hex digits")))?,
                )
            }
        };
        Ok((subject, extensions, pin))
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Destination {
    #[serde(default = "default_namespace")]
    pub(crate) namespace: String,
    /// Known to be none where absent.
    #[serde(default)]
    pub(crate) labels: Labels,
    /// Set where they are not known, as for a proxy that was not told any.
    #[serde(skip)]
    pub(crate) labels_unknown: bool,
    #[serde(default)]
    pub(crate) ip: Option<IpAddr>,
    #[serde(default)]
    pub(crate) port: Option<u16>,
}

fn default_namespace() -> String {
    "default".into()
}

fn unnamed_destination() -> Destination {
    Destination { namespace: default_namespace(), ..Destination::default() }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Http {
    pub(crate) method: String,
    #[serde(default)]
    pub(crate) host: String,
    /// As sent, with or without query.
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) headers: Vec<(String, String)>,
}

const SCHEME: &str = "spiffe://";

impl Source {
    /// What Envoy would take for the principals: URI SANs, else DNS SANs, else the subject.
    fn names(&self, td: &TrustDomain) -> Vec<String> {
        match (&self.principal, &self.cert) {
            (Some(p), _) if p.is_empty() => Vec::new(),
            (Some(p), _) if p.contains("://") => vec![p.clone()],
            (Some(p), _) if p.starts_with('/') => vec![format!("{SCHEME}{td}{p}")],
            (Some(p), _) => vec![format!("{SCHEME}{p}")],
            (None, Some(cert)) if !cert.uri_sans.is_empty() => cert.uri_sans.clone(),
            (None, Some(cert)) if !cert.dns_sans.is_empty() => cert.dns_sans.clone(),
            (None, Some(cert)) => vec![cert.subject.clone()],
            (None, None) => Vec::new(),
        }
    }

    /// The SPIFFE ID, if there is exactly one.
    fn id(&self, td: &TrustDomain) -> Option<SpiffeId> {
        match self.names(td).as_slice() {
            [only] => SpiffeId::parse(only).ok(),
            _ => None,
        }
    }
}

/// A request with its place in its file.
pub(crate) struct Line {
    pub(crate) number: usize,
    pub(crate) request: Result<Request, Finding>,
}

/// A request, or what is wrong with it and in which column.
fn read_request(line: &[u8]) -> Result<Request, (String, usize)> {
    let request: Request = serde_json::from_slice(line).map_err(|e| {
        let text = e.to_string();
        let text = text.split(" at line ").next().unwrap_or_default();
        let text = text
            .replace("expected struct", "expected an object for")
            .replace("`, expected one of", "`; known are");
        (text, e.column())
    })?;
    match request.source.principal.as_deref() {
        None | Some("") => {}
        Some(p) if p.contains('/') => {}
        Some(p) => {
            return Err((format!("principal `{p}` is neither an ID nor a path"), 1));
        }
    }
    Ok(request)
}

/// Requests, one JSON document a line; `-` is standard input.
pub(crate) fn requests(path: &Path) -> Result<Vec<Line>, Finding> {
    let bytes = if path == Path::new("-") {
        use std::io::Read;
        let mut out = Vec::new();
        std::io::stdin()
            .take(MAX_REQUESTS)
            .read_to_end(&mut out)
            .map_err(|e| Finding::new(Code::FileUnreadable, format!("standard input: {e}")))?;
        out
    } else {
        read_bounded(path, MAX_REQUESTS).map_err(|e| e.finding())?.to_vec()
    };
    let out: Vec<Line> = bytes
        .split(|b| *b == b'\n')
        .enumerate()
        .filter(|(_, l)| !l.trim_ascii().is_empty())
        .map(|(i, l)| Line {
            number: i + 1,
            request: read_request(l).map_err(|(text, column)| {
                Finding::new(Code::ConfigSyntax, text)
                    .at(format!("{}:{}:{column}", path.display(), i + 1))
                    .hint("`countersign policy decide --help` shows a request")
            }),
        })
        .collect();
    if out.is_empty() {
        return Err(Finding::new(Code::NothingToExamine, "the file holds no request")
            .at(path.display().to_string())
            .hint("write one JSON document a line"));
    }
    Ok(out)
}

/// Requests of which none may be malformed.
pub(crate) fn all_requests(path: &Path) -> Result<Vec<Request>, Finding> {
    requests(path)?.into_iter().map(|l| l.request).collect()
}

/// A request in a few words.
pub(crate) fn describe(request: &Request) -> String {
    let names = match &request.source.principal {
        Some(p) => vec![p.clone()],
        None => request.source.cert.iter().flat_map(|c| c.uri_sans.clone()).collect(),
    };
    let from = if names.is_empty() { "plaintext".to_owned() } else { names.join("+") };
    let from = from.strip_prefix(SCHEME).unwrap_or(&from);
    let d = &request.destination;
    let labels: Vec<String> = d.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("/{}", labels.join(",")) };
    let port = d.port.map(|p| format!(":{p}")).unwrap_or_default();
    let what = request.http.as_ref().map(|h| format!("  {} {}", h.method, h.path));
    format!("{from} -> {}{labels}{port}{}", d.namespace, what.unwrap_or_else(|| "  TCP".into()))
}
