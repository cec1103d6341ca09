//! PeerAuthentication.

use std::collections::BTreeMap;

use countersign_findings::Finding;

use super::place::Place;
use super::read::{check_version, selector};
use super::shapes::{Doc, MtlsSpec, PeerSpec};
use super::{PeerAuthentication, mode, until};

pub(super) fn read(
    doc: Doc<PeerSpec>,
    origin: &str,
    line: usize,
) -> Result<PeerAuthentication, Finding> {
    let place =
        Place { origin, line, title: format!("PeerAuthentication `{}`", doc.metadata.name) };
    check_version(&["v1", "v1beta1"], &doc.api_version, &place)?;
    let spec = doc.spec.unwrap_or_default();
    let end = doc
        .metadata
        .annotations
        .get("countersign.dev/permissive-until")
        .map(|t| {
            until(t).map_err(|e| {
                place.invalid("metadata.annotations[countersign.dev/permissive-until]", e)
            })
        })
        .transpose()?;
    let read = |path: &str, m: &MtlsSpec| match &m.mode {
        None => Ok(None),
        Some(text) => mode(text, end).map_err(|e| place.invalid(path, e)),
    };
    let selector = selector(spec.selector, &place)?;
    let mut port_modes = BTreeMap::new();
    if let Some(ports) = &spec.port_level_mtls {
        if selector.is_empty() {
            return Err(place.invalid("spec.portLevelMtls", "needs a selector"));
        }
        if ports.is_empty() {
            return Err(place.invalid("spec.portLevelMtls", "is empty"));
        }
        for (port, m) in ports {
            let path = format!("spec.portLevelMtls.{port}");
            let port = u16::try_from(*port)
                .ok()
                .filter(|p| *p > 0)
                .ok_or_else(|| place.invalid(&path, "port must be 1 to 65535"))?;
            port_modes.insert(port, read(&path, m)?);
        }
    }
    Ok(PeerAuthentication {
        mode: spec.mtls.as_ref().map_or(Ok(None), |m| read("spec.mtls.mode", m))?,
        name: doc.metadata.name,
        namespace: doc.metadata.namespace.unwrap_or_else(|| "default".into()),
        created: doc.metadata.creation_timestamp,
        selector,
        port_modes,
    })
}
