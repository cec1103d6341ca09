//! From text to one checked document, by kind.

use countersign_findings::{Code, Finding};

use super::place::{Place, yaml};
use super::shapes::{Header, SelectorSpec, TargetRefSpec};
use super::{Document, Labels, authorization, peer, request, static_entry};

const KINDS: [&str; 4] =
    ["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication", "ClusterStaticEntry"];

pub(super) fn read(text: &str, origin: &str, first_line: usize) -> Result<Document, Finding> {
    let header: Header = yaml(text, origin, first_line)?;
    let group = header.api_version.split('/').next().unwrap_or_default();
    let at = || format!("{origin}:{first_line}");
    match (group, header.kind.as_str()) {
        ("security.istio.io", "PeerAuthentication") => {
            peer::read(yaml(text, origin, first_line)?, origin, first_line)
                .map(Document::PeerAuthentication)
        }
        ("security.istio.io", "AuthorizationPolicy") => {
            authorization::read(yaml(text, origin, first_line)?, origin, first_line)
                .map(Document::AuthorizationPolicy)
        }
        ("security.istio.io", "RequestAuthentication") => {
            request::read(yaml(text, origin, first_line)?, origin, first_line)
                .map(Document::RequestAuthentication)
        }
        ("spire.spiffe.io", "ClusterStaticEntry") => {
            static_entry::read(yaml(text, origin, first_line)?, origin, first_line)
                .map(Document::StaticEntry)
        }
        (_, "") => Err(Finding::new(Code::ConfigSyntax, "document has no `kind`").at(at())),
        (_, kind) => {
            let finding = Finding::new(
                Code::UnsupportedDocument,
                format!("`{kind}` of `{}` is not supported", header.api_version),
            )
            .expected(KINDS.join(" or "))
            .at(at());
            let near = KINDS.into_iter().find(|k| strsim::damerau_levenshtein(kind, k) <= 3);
            Err(match near.filter(|k| *k != kind) {
                Some(k) => finding.hint(format!("did you mean `{k}`?")),
                None => finding,
            })
        }
    }
}

pub(super) fn check_version(
    versions: &[&str],
    doc: &str,
    place: &Place<'_>,
) -> Result<(), Finding> {
    let version = doc.split('/').nth(1).unwrap_or_default();
    if versions.contains(&version) {
        Ok(())
    } else {
        Err(place.invalid("apiVersion", format!("version must be {}", versions.join(" or "))))
    }
}

pub(super) fn selector(spec: Option<SelectorSpec>, place: &Place<'_>) -> Result<Labels, Finding> {
    let labels = spec.map(|s| s.match_labels).unwrap_or_default();
    for (k, v) in &labels {
        if k.is_empty() || k.contains('*') || v.contains('*') {
            let what = "keys must not be empty, and `*` is not allowed";
            return Err(place.invalid("spec.selector.matchLabels", what));
        }
    }
    Ok(labels)
}

/// Whether the policy is attached to gateways or services, which no sidecar minds (AP-1). What it is attached
/// to is checked nevertheless.
pub(super) fn targets(
    one: Option<&TargetRefSpec>,
    many: Option<&[TargetRefSpec]>,
    has_selector: bool,
    place: &Place<'_>,
) -> Result<bool, Finding> {
    if usize::from(one.is_some()) + usize::from(many.is_some()) + usize::from(has_selector) > 1 {
        let what = "only one of targetRef, targetRefs and selector can be given";
        return Err(place.invalid("spec", what));
    }
    for (i, t) in many.unwrap_or_default().iter().chain(one).enumerate() {
        let bad =
            |field: &str, what: &str| place.invalid(&format!("spec.targetRefs[{i}].{field}"), what);
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if t.name.is_empty() {
            return Err(bad("name", "is missing"));
        }
        if t.kind.is_empty() || !t.kind.bytes().all(word) {
            return Err(bad("kind", "is not a kind"));
        }
        if !t.group.bytes().all(|b| word(b) || b == b'.') {
            return Err(bad("group", "is not an API group"));
        }
        if !t.namespace.is_empty() {
            return Err(bad("namespace", "cannot be given: targets are in the policy's namespace"));
        }
    }
    Ok(one.is_some() || many.is_some())
}
