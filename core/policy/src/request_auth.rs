//! RequestAuthentication: whose tokens count, where they are, and what they prove (RA-1 to RA-6).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;
use countersign_jose::KeySet;
use serde_json::{Map, Value};

use crate::decision::HttpRequest;
use crate::set::Workload;
use crate::token::Token;
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

/// The tokens of one issuer.
#[derive(Clone, Debug)]
pub(crate) struct JwtRule {
    pub(crate) issuer: String,
    /// Any of these will do; every audience if there are none.
    pub(crate) audiences: Vec<String>,
    pub(crate) keys: Arc<KeySet>,
    pub(crate) locations: Vec<Location>,
    /// Whether the application sees the token too.
    pub(crate) forward: bool,
    pub(crate) payload_header: Option<String>,
    /// Header field and path of the claim.
    pub(crate) claim_headers: Vec<(String, Vec<String>)>,
    pub(crate) space_delimited: Vec<String>,
    pub(crate) required: bool,
}

/// Where a token may be. Names of header fields are in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    Header { name: String, prefix: String },
    Parameter(String),
    Cookie(String),
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
    rules: Vec<Arc<JwtRule>>,
}

enum Found {
    Missing,
    Valid(Map<String, Value>, Location),
    Invalid(Finding),
}

impl Authenticator {
    /// RA-1: all that select the workload, together. Where its labels are not known, a selector counts: tokens
    /// are then verified that nobody asked for, which harms nobody whose token is good.
    pub(crate) fn new(documents: &[Document], workload: &Workload) -> Self {
        let mut rules: Vec<Arc<JwtRule>> = documents
            .iter()
            .filter_map(|d| match d {
                Document::RequestAuthentication(r) => Some(r),
                _ => None,
            })
            .filter(|r| !r.for_gateways)
            .filter(|r| {
                r.namespace == workload.namespace || r.namespace == workload.mesh.root_namespace
            })
            .filter(|r| workload.has_labels(&r.selector) != Some(false))
            .flat_map(|r| r.rules.iter().cloned())
            .collect();
        rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        Self { rules }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// RA-3: a token that is valid for one rule passes; without any token the request passes without a request
    /// identity, unless a rule requires one; otherwise it is refused.
    pub(crate) fn authenticate(
        &self,
        http: &HttpRequest<'_>,
        query: &str,
        now: UnixTime,
    ) -> Result<Authenticated, Finding> {
        let mut out = Authenticated::default();
        for rule in &self.rules {
            out.remove_headers.extend(rule.payload_header.clone());
            out.remove_headers.extend(rule.claim_headers.iter().map(|(name, _)| name.clone()));
        }
        if is_preflight(http) {
            return Ok(out);
        }
        let mut refused = None;
        let mut valid = None;
        for rule in &self.rules {
            match rule.find(http, query, now) {
                Found::Missing if rule.required => {
                    let what = format!("a token of `{}` is required", rule.issuer);
                    refused.get_or_insert(Finding::new(Code::JwtMalformed, what));
                }
                Found::Missing => {}
                Found::Invalid(e) => {
                    refused.get_or_insert(e);
                }
                Found::Valid(claims, location) => {
                    if valid.is_none() {
                        valid = Some((rule, claims, location));
                    }
                }
            }
        }
        let Some((rule, claims, location)) = valid else {
            return match refused {
                Some(e) => Err(e),
                None => Ok(out),
            };
        };
        rule.output(&claims, &mut out);
        if !rule.forward {
            match location {
                Location::Header { name, .. } => out.remove_headers.push(name),
                Location::Parameter(name) => out.remove_parameters.push(name),
                // A cookie is one of several in a field; the application may need the others.
                Location::Cookie(_) => {}
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
    fn find(&self, http: &HttpRequest<'_>, query: &str, now: UnixTime) -> Found {
        let mut tokens: Vec<(String, &Location)> = Vec::new();
        for location in &self.locations {
            for token in location.tokens(http, query) {
                if !tokens.iter().any(|(t, _)| *t == token) {
                    tokens.push((token, location));
                }
            }
        }
        match tokens.as_slice() {
            [] => Found::Missing,
            [(token, location)] => match self.verify(token, now) {
                Ok(claims) => Found::Valid(claims, (*location).clone()),
                Err(e) => Found::Invalid(e),
            },
            // RA-4 leaves it open which of them counts.
            _ => Found::Invalid(Finding::new(
                Code::JwtMalformed,
                "the request carries several tokens; which of them counts is open",
            )),
        }
    }

    fn verify(&self, token: &str, now: UnixTime) -> Result<Map<String, Value>, Finding> {
        let claims = self.keys.verify(token, now).map_err(|e| e.finding())?;
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        if issuer != self.issuer {
            return Err(Finding::new(Code::JwtKeyUnknown, "the token is of another issuer")
                .expected(self.issuer.clone()));
        }
        if !self.audiences.is_empty() {
            let presented: Vec<&str> = match claims.get("aud") {
                Some(Value::String(one)) => vec![one],
                Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
                _ => Vec::new(),
            };
            if !presented.iter().any(|a| self.audiences.iter().any(|w| w == a)) {
                return Err(Finding::new(
                    Code::JwtAudienceMismatch,
                    "the token is for another audience",
                )
                .expected(self.audiences.join(", ")));
            }
        }
        Ok(claims)
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

impl Location {
    fn tokens(&self, http: &HttpRequest<'_>, query: &str) -> Vec<String> {
        let fields = |name: &str| {
            http.headers
                .iter()
                .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.trim())
                .collect::<Vec<&str>>()
        };
        match self {
            Location::Header { name, prefix } => fields(name)
                .into_iter()
                .filter_map(|v| v.strip_prefix(prefix.as_str()))
                .map(|t| t.trim().to_owned())
                .filter(|t| !t.is_empty())
                .collect(),
            Location::Parameter(name) => query
                .split('&')
                .filter_map(|p| p.split_once('='))
                .filter(|(n, _)| n == name)
                .map(|(_, v)| v.to_owned())
                .filter(|t| !t.is_empty())
                .collect(),
            Location::Cookie(name) => fields("cookie")
                .into_iter()
                .flat_map(|v| v.split(';'))
                .filter_map(|c| c.trim().split_once('='))
                .filter(|(n, _)| n == name)
                .map(|(_, v)| v.to_owned())
                .filter(|t| !t.is_empty())
                .collect(),
        }
    }
}
