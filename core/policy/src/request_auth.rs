//! RequestAuthentication: whose tokens count, where they are, and what they prove (RA-1 to RA-6).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_findings::{Code, Finding};
use countersign_identity::TrustDomain;
use countersign_identity::UnixTime;
use countersign_jose::{JwtError, KeySet, unverified_claims, validate};
use serde_json::{Map, Value};

use crate::decision::HttpRequest;
use crate::issuer_keys::{KeyLocation, KeySource, PublishedKeys};
use crate::token::Token;
use crate::workload::Workload;
use crate::{Document, Labels};

/// Which tokens requests to some workloads may carry.
#[derive(Clone, Debug)]
pub struct RequestAuthentication {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels a workload must have; empty for all.
    pub selector: Labels,
    /// Whether it is attached to gateways or services: no sidecar minds it.
    pub for_gateways: bool,
    pub(crate) rules: Vec<Arc<JwtRule>>,
}

impl RequestAuthentication {
    pub(crate) fn key_locations(&self) -> Vec<(String, KeyLocation)> {
        let of = |rule: &Arc<JwtRule>| match &rule.keys {
            Keys::Published(location, _) => Some((rule.issuer.clone(), location.clone())),
            Keys::Inline(_) | Keys::TrustDomain(_) => None,
        };
        self.rules.iter().filter_map(of).collect()
    }
}

/// The tokens of one issuer.
#[derive(Clone, Debug)]
pub(crate) struct JwtRule {
    pub(crate) issuer: String,
    /// Any of these will do; every audience if there are none.
    pub(crate) audiences: Vec<String>,
    pub(crate) keys: Keys,
    pub(crate) locations: Vec<Location>,
    /// Whether the application sees the token too.
    pub(crate) forward: bool,
    pub(crate) payload_header: Option<String>,
    /// Header field and path of the claim.
    pub(crate) claim_headers: Vec<(String, Vec<String>)>,
    pub(crate) space_delimited: Vec<String>,
    pub(crate) required: bool,
}

/// What a token's signature is verified with.
#[derive(Clone, Debug)]
pub(crate) enum Keys {
    /// Written into the document.
    Inline(Arc<KeySet>),
    /// Fetched from the issuer, within some time.
    Published(KeyLocation, Duration),
    /// Those of a trust bundle: the tokens are JWT-SVIDs.
    TrustDomain(TrustDomain),
}

/// Where a token may be. Names of header fields are in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    Header { name: String, prefix: String },
    Parameter(String),
    Cookie(String),
}

/// A request is refused because of its token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRefused {
    /// Why.
    pub finding: Finding,
    /// Newer keys from there might make a difference: the issuer may have changed them.
    pub newer_keys: Option<KeyLocation>,
}

/// A request whose tokens have been looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Authenticated {
    /// What the token says; `None` if there is none.
    pub token: Option<Token>,
    /// Header fields that must not reach the application, in lower case: the token's, and those that only a
    /// verified token may fill.
    pub remove_headers: Vec<String>,
    /// Query parameters that must not reach the application.
    pub remove_parameters: Vec<String>,
    /// Header fields that are set from the token.
    pub add_headers: Vec<(String, String)>,
}

/// The rules that concern one workload, by issuer.
#[derive(Debug, Default)]
pub(crate) struct Authenticator {
    rules: Vec<Selected>,
}

#[derive(Debug)]
struct Selected {
    rule: Arc<JwtRule>,
    /// Whether it is meant for the workload for sure. Where that is not known, its tokens are verified and the bad
    /// ones refused, but the good ones give no identity.
    certain: bool,
}

enum Found {
    Missing,
    Valid(Map<String, Value>, Vec<Location>),
    Invalid(TokenRefused),
}

impl From<Finding> for TokenRefused {
    fn from(finding: Finding) -> Self {
        Self { finding, newer_keys: None }
    }
}

impl Authenticator {
    /// RA-1: all that select the workload, together.
    pub(crate) fn new(documents: &[Document], workload: &Workload) -> Self {
        let mut rules = Vec::new();
        for document in documents {
            let Document::RequestAuthentication(r) = document else { continue };
            let in_scope =
                r.namespace == workload.namespace || r.namespace == workload.mesh.root_namespace;
            let selected = workload.has_labels(&r.selector);
            if !r.for_gateways && in_scope && selected != Some(false) {
                let certain = selected == Some(true);
                let all = r.rules.iter().map(|rule| Selected { rule: Arc::clone(rule), certain });
                rules.extend(all);
            }
        }
        rules.sort_by(|a, b| a.rule.issuer.cmp(&b.rule.issuer));
        Self { rules }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Places that keys are wanted from, each once, with the most time that one of the rules gives it.
    pub(crate) fn key_sources(&self) -> Vec<KeySource> {
        let mut sources: BTreeMap<&KeyLocation, KeySource> = BTreeMap::new();
        for Selected { rule, .. } in &self.rules {
            let Keys::Published(location, timeout) = &rule.keys else { continue };
            let source = sources.entry(location).or_insert_with(|| KeySource {
                issuer: rule.issuer.clone(),
                location: location.clone(),
                timeout: *timeout,
            });
            source.timeout = source.timeout.max(*timeout);
        }
        sources.into_values().collect()
    }

    /// Whether JWT-SVIDs are taken.
    pub(crate) fn wants_jwt_svids(&self) -> bool {
        self.rules.iter().any(|s| matches!(s.rule.keys, Keys::TrustDomain(_)))
    }

    /// RA-3: a token that is valid for one rule passes; without any token the request passes without a request
    /// identity, unless a rule requires one; otherwise it is refused.
    pub(crate) fn authenticate(
        &self,
        http: &HttpRequest<'_>,
        query: &str,
        now: UnixTime,
        published: &PublishedKeys,
    ) -> Result<Authenticated, TokenRefused> {
        let mut out = Authenticated::default();
        for Selected { rule, .. } in &self.rules {
            out.remove_headers.extend(rule.payload_header.clone());
            out.remove_headers.extend(rule.claim_headers.iter().map(|(name, _)| name.clone()));
        }
        if is_preflight(http) {
            return Ok(out);
        }
        let mut refused: Option<TokenRefused> = None;
        let mut refuse = |e: TokenRefused| match &mut refused {
            // The rule whose issuer the token names knows best what is wrong with it.
            Some(first) if first.newer_keys.is_some() || e.newer_keys.is_none() => {}
            slot => *slot = Some(e),
        };
        let mut valid = None;
        for Selected { rule, certain } in &self.rules {
            match rule.find(http, query, now, published) {
                Found::Missing if rule.required => {
                    let what = format!("a token of `{}` is required", rule.issuer);
                    refuse(Finding::new(Code::JwtMalformed, what).into());
                }
                Found::Missing => {}
                Found::Invalid(e) => refuse(e),
                Found::Valid(..) if !certain => {
                    let what = "the token is of an issuer that may be meant for another workload: tell \
                                the proxy its labels with --label";
                    refuse(Finding::new(Code::JwtKeyUnknown, what).into());
                }
                Found::Valid(claims, locations) => {
                    if valid.is_none() {
                        valid = Some((rule, claims, locations));
                    }
                }
            }
        }
        let Some((rule, claims, locations)) = valid else {
            return match refused {
                Some(e) => Err(e),
                None => Ok(out),
            };
        };
        rule.output(&claims, &mut out);
        if !rule.forward {
            for location in locations {
                match location {
                    Location::Header { name, .. } => out.remove_headers.push(name),
                    Location::Parameter(name) => out.remove_parameters.push(name),
                    // A cookie is one of several in a field; the application may need the others.
                    Location::Cookie(_) => {}
                }
            }
        }
        out.token = Some(Token { claims, space_delimited: rule.space_delimited.clone() });
        Ok(out)
    }
}

/// A browser asks before it sends the token.
fn is_preflight(http: &HttpRequest<'_>) -> bool {
    let has = |name: &str| http.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    http.method == "OPTIONS" && has("origin") && has("access-control-request-method")
}

impl JwtRule {
    fn find(
        &self,
        http: &HttpRequest<'_>,
        query: &str,
        now: UnixTime,
        published: &PublishedKeys,
    ) -> Found {
        let mut token: Option<Cow<'_, str>> = None;
        let mut locations: Vec<Location> = Vec::new();
        for location in &self.locations {
            for found in location.tokens(http, query) {
                match &token {
                    None => token = Some(found),
                    Some(first) if *first == found => {}
                    // RA-4 leaves it open which of them counts.
                    Some(_) => {
                        let what =
                            "the request carries several tokens; which of them counts is open";
                        return Found::Invalid(Finding::new(Code::JwtMalformed, what).into());
                    }
                }
                if !locations.contains(location) {
                    locations.push(location.clone());
                }
            }
        }
        let Some(token) = token else { return Found::Missing };
        match self.verify(&token, now, published) {
            Ok(claims) => Found::Valid(claims, locations),
            Err(e) => Found::Invalid(e),
        }
    }

    fn verify(
        &self,
        token: &str,
        now: UnixTime,
        published: &PublishedKeys,
    ) -> Result<Map<String, Value>, TokenRefused> {
        let other_issuer = || {
            Finding::new(Code::JwtKeyUnknown, "the token is of another issuer")
                .expected(self.issuer.clone())
        };
        let claims = match &self.keys {
            Keys::Inline(keys) => keys.verify(token, now).map_err(|e| e.finding())?,
            Keys::TrustDomain(domain) => {
                return self.verify_svid(domain, token, now, published).map_err(Into::into);
            }
            Keys::Published(location, _) => {
                // Nobody's keys are fetched for a token that names somebody else, or nobody.
                let claimed = unverified_claims(token);
                let claimed = claimed.as_ref().and_then(|c| c.get("iss")).and_then(Value::as_str);
                if claimed != Some(&self.issuer) {
                    return Err(other_issuer().into());
                }
                let newer_keys = || Some(location.clone());
                let keys = published.at(location).map_err(|why| TokenRefused {
                    finding: Finding::new(
                        Code::IssuerKeysUnavailable,
                        format!("the keys of `{}` are not known: {why}", self.issuer),
                    )
                    .at(location.to_string()),
                    newer_keys: newer_keys(),
                })?;
                keys.verify(token, now).map_err(|e| TokenRefused {
                    finding: e.finding(),
                    newer_keys: newer_keys()
                        .filter(|_| matches!(e, JwtError::NoKey { .. } | JwtError::Signature)),
                })?
            }
        };
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        if issuer != self.issuer {
            return Err(other_issuer().into());
        }
        if !self.audiences.is_empty() && self.audience_of(&claims).is_none() {
            return Err(self.other_audience().into());
        }
        Ok(claims)
    }

    /// A JWT-SVID, with what that standard demands beyond a signature. Its issuer is the trust domain, whatever the
    /// token says: whoever signs for a domain must not speak for another issuer.
    fn verify_svid(
        &self,
        domain: &TrustDomain,
        token: &str,
        now: UnixTime,
        published: &PublishedKeys,
    ) -> Result<Map<String, Value>, Finding> {
        // Unverified: it only says which of our audiences the verification is to demand.
        let audience = unverified_claims(token).and_then(|c| self.audience_of(&c));
        let audience = audience.ok_or_else(|| self.other_audience())?;
        let bundles = published.bundles().ok_or_else(|| {
            let what = "the trust bundles' JWT keys are not known: a Workload API has to tell them";
            Finding::new(Code::IssuerKeysUnavailable, what)
        })?;
        let svid = validate(token, audience, bundles, now).map_err(|e| e.finding())?;
        if !svid.id.is_member_of(domain) {
            let what = "the JWT-SVID is of another trust domain";
            return Err(Finding::new(Code::JwtKeyUnknown, what)
                .expected(self.issuer.clone())
                .presented(svid.id.to_string()));
        }
        let mut claims = svid.claims;
        claims.insert("iss".to_owned(), Value::String(self.issuer.clone()));
        Ok(claims)
    }

    /// The first of the rule's audiences that a token is for.
    fn audience_of(&self, claims: &Map<String, Value>) -> Option<&str> {
        let presented: Vec<&str> = match claims.get("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        self.audiences.iter().map(String::as_str).find(|a| presented.contains(a))
    }

    fn other_audience(&self) -> Finding {
        Finding::new(Code::JwtAudienceMismatch, "the token is for another audience")
            .expected(self.audiences.join(", "))
    }

    fn output(&self, claims: &Map<String, Value>, out: &mut Authenticated) {
        if let Some(name) = &self.payload_header {
            let payload = URL_SAFE_NO_PAD.encode(Value::Object(claims.clone()).to_string());
            out.add_headers.push((name.clone(), payload));
        }
        for (name, path) in &self.claim_headers {
            let Some((first, inner)) = path.split_first() else { continue };
            // A claim's name may hold dots itself.
            let whole = claims.get(&path.join("."));
            let nested = || inner.iter().try_fold(claims.get(first)?, |v, name| v.get(name));
            let text = match whole.or_else(nested) {
                Some(Value::String(s)) => s.clone(),
                Some(Value::Number(n)) => n.to_string(),
                Some(Value::Bool(b)) => b.to_string(),
                _ => continue,
            };
            // What goes into a header must not end it.
            if text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
                out.add_headers.push((name.clone(), text));
            }
        }
    }
}

/// `%XX` decoded; what is no escape stays.
pub fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).and_then(|b| (*b as char).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match (bytes[i], digit(i + 1), digit(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high << 4 | low).unwrap_or_default());
                i += 3;
            }
            (b, ..) => {
                out.push(b);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn decoded(text: &str) -> Cow<'_, str> {
    if text.contains('%') { Cow::Owned(percent_decoded(text)) } else { Cow::Borrowed(text) }
}

impl Location {
    /// Every token there, one after another.
    fn tokens<'a>(
        &'a self,
        http: &'a HttpRequest<'_>,
        query: &'a str,
    ) -> Box<dyn Iterator<Item = Cow<'a, str>> + 'a> {
        let fields = |name: &'a str| {
            http.headers
                .iter()
                .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.trim())
        };
        match self {
            Location::Header { name, prefix } => Box::new(
                fields(name)
                    .filter_map(|v| v.strip_prefix(prefix.as_str()))
                    .map(str::trim)
                    .filter(|t| !t.is_empty())
                    .map(Cow::Borrowed),
            ),
            // As the application reads them, names and values decoded.
            Location::Parameter(name) => Box::new(
                query
                    .split('&')
                    .filter_map(|p| p.split_once('='))
                    .filter(move |(n, v)| !v.is_empty() && decoded(n) == name.as_str())
                    .map(|(_, v)| decoded(v)),
            ),
            Location::Cookie(name) => Box::new(
                fields("cookie")
                    .flat_map(|v| v.split(';'))
                    .filter_map(|c| c.trim().split_once('='))
                    .filter(move |(n, v)| n == name && !v.is_empty())
                    .map(|(_, v)| Cow::Borrowed(v)),
            ),
        }
    }
}
