//! From text to one checked document, by kind.

use countersign_findings::{Code, Finding};

use super::place::{Place, yaml};
use super::shapes::{Header, SelectorSpec};
use super::{Document, Labels, authorization, peer, static_entry};

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
        ("spire.spiffe.io", "ClusterStaticEntry") => {
            static_entry::read(yaml(text, origin, first_line)?, origin, first_line)
                .map(Document::StaticEntry)
        }
        (_, "") => Err(Finding::new(Code::ConfigSyntax, "document has no `kind`").at(at())),
        (_, kind) => Err(Finding::new(
            Code::UnsupportedDocument,
            format!("`{kind}` of `{}` is not supported", header.api_version),
        )
        .expected("PeerAuthentication, AuthorizationPolicy or ClusterStaticEntry")
        .at(at())),
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
