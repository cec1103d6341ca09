//! Header fields as rules see them: as the application will, so that nobody passes by one that he made up.

use crate::request_auth::Authenticated;

/// Identity headers that only a proxy may set; whatever a caller sends of them is dropped.
const IDENTITY_HEADERS: [&str; 1] = ["x-forwarded-client-cert"];

/// `X_Forwarded_Client_Cert` is the same header to many applications.
fn same_header(name: &str, header: &str) -> bool {
    let fold = |b: u8| if b == b'_' { b'-' } else { b.to_ascii_lowercase() };
    name.len() == header.len() && name.bytes().zip(header.bytes()).all(|(a, b)| fold(a) == fold(b))
}

/// Whether a field of that name never gets past us: a caller's word about identities, or what only a verified
/// token may fill.
pub fn is_kept_back(name: &str, strip_identity: bool, edits: Option<&Authenticated>) -> bool {
    strip_identity && IDENTITY_HEADERS.iter().any(|h| same_header(name, h))
        || edits.is_some_and(|e| {
            let set = e.add_headers.iter().map(|(n, _)| n);
            e.remove_headers.iter().chain(set).any(|h| same_header(name, h))
        })
}

/// The fields that rules are judged by: without those that only a proxy may set, and with those that the
/// verified token fills.
pub fn judged_fields<'a>(
    fields: &[(&'a str, &'a str)],
    edits: Option<&'a Authenticated>,
) -> Vec<(&'a str, &'a str)> {
    let mut out: Vec<(&str, &str)> =
        fields.iter().copied().filter(|(name, _)| !is_kept_back(name, true, edits)).collect();
    out.extend(edits.iter().flat_map(|e| &e.add_headers).map(|(n, v)| (n.as_str(), v.as_str())));
    out
}
