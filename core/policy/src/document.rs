//! Documents in YAML, read strictly: an unknown field, a bad value or an unsupported feature refuses the
//! whole document, with its place and the nearest known name.

mod authorization;
mod peer;
mod place;
mod provider;
mod read;
mod request;
mod shapes;
mod static_entry;

use crate::issuer_keys::KeyLocation;
use std::collections::BTreeMap;

use countersign_findings::{Code, Finding};
use countersign_identity::UnixTime;

use crate::modes::{Mode, Until};
use crate::request_auth::RequestAuthentication;
use crate::rule::AuthorizationPolicy;

pub use provider::{Engine, HttpCheck, NamePattern, Provider, Target, parse_providers};
pub(crate) use request::header_name;

/// Workload labels.
pub type Labels = BTreeMap<String, String>;

/// A document that was understood completely.
#[derive(Clone, Debug)]
pub enum Document {
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication(PeerAuthentication),
    /// `security.istio.io` AuthorizationPolicy.
    AuthorizationPolicy(AuthorizationPolicy),
    /// `security.istio.io` RequestAuthentication.
    RequestAuthentication(RequestAuthentication),
    /// `spire.spiffe.io` ClusterStaticEntry.
    StaticEntry(StaticEntry),
}

impl Document {
    /// The kind, as written in YAML.
    pub fn kind(&self) -> &'static str {
        match self {
            Document::PeerAuthentication(_) => "PeerAuthentication",
            Document::AuthorizationPolicy(_) => "AuthorizationPolicy",
            Document::RequestAuthentication(_) => "RequestAuthentication",
            Document::StaticEntry(_) => "ClusterStaticEntry",
        }
    }

    /// Where it has keys fetched from, by issuer.
    pub fn key_locations(&self) -> Vec<(String, KeyLocation)> {
        match self {
            Document::RequestAuthentication(r) => r.key_locations(),
            _ => Vec::new(),
        }
    }

    /// Its namespace; empty for cluster-scoped kinds.
    pub fn namespace(&self) -> &str {
        match self {
            Document::PeerAuthentication(d) => &d.namespace,
            Document::AuthorizationPolicy(d) => &d.namespace,
            Document::RequestAuthentication(d) => &d.namespace,
            Document::StaticEntry(_) => "",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Document::PeerAuthentication(d) => &d.name,
            Document::AuthorizationPolicy(d) => &d.name,
            Document::RequestAuthentication(d) => &d.name,
            Document::StaticEntry(d) => &d.name,
        }
    }
}

/// mTLS modes for a mesh, a namespace or a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// `creationTimestamp`, if given.
    pub created: Option<String>,
    /// Labels a workload must have; empty for all.
    pub selector: Labels,
    /// The mode; `None` inherits.
    pub mode: Option<Mode>,
    /// Modes of single ports; `None` inherits.
    pub port_modes: BTreeMap<u16, Option<Mode>>,
}

/// A registration entry in SPIRE's controller manager's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticEntry {
    /// Name.
    pub name: String,
    /// `spiffe://…`.
    pub spiffe_id: String,
    /// `spiffe://…`.
    pub parent_id: String,
    /// `type:value` each.
    pub selectors: Vec<String>,
    /// Seconds.
    pub x509_svid_ttl: Option<u64>,
    /// Seconds.
    pub jwt_svid_ttl: Option<u64>,
    /// DNS SANs.
    pub dns_names: Vec<String>,
    /// Trust domains.
    pub federates_with: Vec<String>,
    /// May administer the server.
    pub admin: bool,
    /// May get a CA certificate.
    pub downstream: bool,
    /// Tells several SVIDs apart.
    pub hint: String,
    /// Exported to a secret store.
    pub store_svid: bool,
}

/// Largest file in bytes.
pub const MAX_INPUT: usize = 16 << 20;

/// Reads every document in `text`; `origin` names the file in errors. All or nothing.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Document>, Finding> {
    Ok(parse_each(text, origin)?.into_iter().map(|(document, _)| document).collect())
}

/// As [`parse`], each document with the text it was read from.
pub fn parse_each<'a>(text: &'a str, origin: &str) -> Result<Vec<(Document, &'a str)>, Finding> {
    if text.len() > MAX_INPUT {
        return Err(Finding::new(Code::ConfigSyntax, "more than 16 MiB").at(origin.to_owned()));
    }
    let mut out = Vec::new();
    // YAML allows content behind the marker; splitting by lines would lose it without a word.
    if let Some(i) = text.lines().position(|l| {
        l.strip_prefix("--- ").is_some_and(|r| !r.trim().is_empty() && !r.trim().starts_with('#'))
    }) {
        return Err(Finding::new(Code::ConfigSyntax, "content behind `---`; begin a new line")
            .at(format!("{origin}:{}", i + 1)));
    }
    for (first_line, part) in split(text) {
        let blank = part.lines().all(|l| {
            let l = l.trim();
            l.is_empty() || l.starts_with('#')
        });
        if !blank {
            out.push((read::read(part, origin, first_line)?, part));
        }
    }
    if out.is_empty() {
        return Err(Finding::new(Code::NothingToExamine, "no document found").at(origin.to_owned()));
    }
    Ok(out)
}

/// Documents with the number of their first line. A `---` at the beginning of a line always separates.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    let (mut start, mut first_line) = (0, 1);
    let mut position = 0;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare == "..." {
            out.push((first_line, &text[start..position]));
            start = position + line.len();
            first_line = i + 2;
        }
        position += line.len();
    }
    out.push((first_line, &text[start..]));
    out
}

pub(crate) fn mode(text: &str, until: Option<Until>) -> Result<Option<Mode>, String> {
    match text {
        "UNSET" => Ok(None),
        "STRICT" => Ok(Some(Mode::Strict)),
        // Users have PERMISSIVE without an end today; it is accepted and stays a finding.
        "PERMISSIVE" => Ok(Some(Mode::Permissive { until: until.unwrap_or(Until::Never) })),
        // As Istio's own proxies without sidecars do (PA-11): authentication is never switched off, only not
        // demanded.
        "DISABLE" => Ok(Some(Mode::Permissive { until: until.unwrap_or(Until::Never) })),
        other => Err(format!("`{other}` is not a mode; use STRICT, PERMISSIVE, DISABLE or UNSET")),
    }
}

pub(crate) fn until(text: &str) -> Result<Until, String> {
    if text == "never" {
        return Ok(Until::Never);
    }
    UnixTime::parse(text)
        .map(Until::Time)
        .ok_or_else(|| format!("`{text}` is neither an RFC 3339 time nor `never`"))
}
