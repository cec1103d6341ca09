//! Facts of a certificate that only policies care about: subject attributes and private extensions, as text.

use der::asn1::{Ia5StringRef, PrintableStringRef, Utf8StringRef};
use der::{Any, Decode, Tag, Tagged};
use x509_cert::TbsCertificate;

use crate::hex;

/// Most attributes, and most extensions, that are kept.
const MOST: usize = 32;
/// Longest value that is kept, in bytes.
const LONGEST: usize = 4096;

/// Names of attribute types as RFC 4514 and common usage have them.
const NAMES: [(&str, &str); 10] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.5", "SERIALNUMBER"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "TITLE"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
];

/// The text of a DER value, if it is some kind of string, a boolean or a small number.
fn text(any: &Any) -> Option<String> {
    match any.tag() {
        Tag::Utf8String => any.decode_as::<Utf8StringRef<'_>>().ok().map(|s| s.to_string()),
        Tag::PrintableString => {
            any.decode_as::<PrintableStringRef<'_>>().ok().map(|s| s.to_string())
        }
        Tag::Ia5String => any.decode_as::<Ia5StringRef<'_>>().ok().map(|s| s.to_string()),
        Tag::Boolean => any.decode_as::<bool>().ok().map(|b| b.to_string()),
        Tag::Integer => any.decode_as::<i64>().ok().map(|n| n.to_string()),
        _ => None,
    }
}

/// `(type, value)` of every subject attribute that is text; the type by its short name, or as OID.
pub(crate) fn subject(tbs: &TbsCertificate) -> Vec<(String, String)> {
    tbs.subject()
        .iter()
        .filter_map(|a| {
            let oid = a.oid.to_string();
            let name = NAMES.iter().find(|(o, _)| *o == oid).map_or(oid.as_str(), |(_, n)| n);
            let value = text(&a.value).filter(|v| v.len() <= LONGEST)?;
            Some((name.to_owned(), value))
        })
        .take(MOST)
        .collect()
}

/// How many common names the subject has, of whatever kind of string.
pub(crate) fn common_names(tbs: &TbsCertificate) -> usize {
    tbs.subject().iter().filter(|a| a.oid.to_string() == NAMES[0].0).count()
}

/// `(OID, value)` of every extension that X.509 itself does not define: its text, or its bytes in hex.
pub(crate) fn private_extensions(tbs: &TbsCertificate) -> Vec<(String, String)> {
    let standard = |oid: &str| oid.starts_with("2.5.29.") || oid.starts_with("1.3.6.1.5.5.7.1.");
    tbs.extensions()
        .into_iter()
        .flatten()
        .map(|e| (e.extn_id.to_string(), e.extn_value.as_bytes()))
        .filter(|(oid, bytes)| !standard(oid) && bytes.len() <= LONGEST)
        .map(|(oid, bytes)| {
            let plain = || {
                let text = std::str::from_utf8(bytes).ok()?;
                (!text.chars().any(char::is_control)).then(|| text.to_owned())
            };
            let value = Any::from_der(bytes).ok().and_then(|any| text(&any)).or_else(plain);
            (oid, value.unwrap_or_else(|| hex(bytes)))
        })
        .take(MOST)
        .collect()
}
