//! What engines say, made safe to act upon.

use countersign_policy::{Edits, settable_header};

use crate::Refusal;

/// Most header fields in an answer.
const MAX_FIELDS: usize = 50;
/// Longest value, and longest body, in bytes.
const MAX_VALUE: usize = 8 << 10;
const MAX_BODY: usize = 64 << 10;

/// Adds a field to be set or appended. Fields that nobody may set are passed over, as Envoy does; a value
/// that would end the field fails the answer.
pub(crate) fn edit(edits: &mut Edits, name: &str, value: &str, append: bool) -> Result<(), String> {
    let Some(name) = settable_header(name) else { return Ok(()) };
    check_value(&name, value)?;
    let list = if append { &mut edits.append } else { &mut edits.set };
    list.push((name, value.to_owned()));
    if edits.set.len() + edits.append.len() > MAX_FIELDS {
        return Err(format!("it sets more than {MAX_FIELDS} header fields"));
    }
    Ok(())
}

/// Adds a field to be removed.
pub(crate) fn remove(edits: &mut Edits, name: &str) -> Result<(), String> {
    edits.remove.extend(settable_header(name));
    if edits.remove.len() > MAX_FIELDS {
        return Err(format!("it removes more than {MAX_FIELDS} header fields"));
    }
    Ok(())
}

/// What a refused client is told; a status that would not refuse becomes 403.
pub(crate) fn refusal<'a>(
    status: i64,
    headers: impl Iterator<Item = (&'a str, &'a str)>,
    body: &[u8],
) -> Refusal {
    let status = u16::try_from(status).ok().filter(|s| (300..600).contains(s)).unwrap_or(403);
    let headers = headers
        .filter_map(|(n, v)| Some((settable_header(n)?, v.to_owned())))
        .filter(|(n, v)| check_value(n, v).is_ok())
        .take(MAX_FIELDS)
        .collect();
    Refusal { status, headers, body: body[..body.len().min(MAX_BODY)].to_vec() }
}

fn check_value(name: &str, value: &str) -> Result<(), String> {
    if value.len() > MAX_VALUE {
        return Err(format!("its value for `{name}` is longer than {MAX_VALUE} bytes"));
    }
    if value.bytes().any(|b| b != b'\t' && (b < 0x20 || b == 0x7f)) {
        return Err(format!("its value for `{name}` holds a control character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_cannot_forge_what_frames_or_names_a_request() {
        let mut edits = Edits::default();
        for name in ["Host", "content-length", "X-Forwarded-Client-Cert", "a b", ":path", ""] {
            edit(&mut edits, name, "x", false).unwrap();
            remove(&mut edits, name).unwrap();
        }
        assert!(edits.is_empty(), "{edits:?}");
        assert!(edit(&mut edits, "x-a", "1\r\nx-b: 2", false).is_err());
        edit(&mut edits, "X-A", "1", true).unwrap();
        assert_eq!(edits.append, [("x-a".to_owned(), "1".to_owned())]);
        for n in 0..MAX_FIELDS - 1 {
            edit(&mut edits, &format!("x-{n}"), "", false).unwrap();
        }
        assert!(edit(&mut edits, "x-last", "", false).is_err());
    }

    #[test]
    fn a_refusal_refuses() {
        for status in [0, 200, 204, 101, 700, -1] {
            assert_eq!(refusal(status, [].into_iter(), b"").status, 403);
        }
        let r = refusal(302, [("Location", "/login"), ("Connection", "x")].into_iter(), b"go");
        assert_eq!((r.status, r.headers.len(), r.body.as_slice()), (302, 1, &b"go"[..]));
    }
}
