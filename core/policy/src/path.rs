//! Path normalization: Istio's four modes (PN-1 to PN-5), and by default the strictest of them to a fixpoint
//! (PN-6): what a second pass would change could be read in two ways and is refused.

use std::borrow::Cow;

/// How paths are brought into normal form before they are matched and forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Normalization {
    /// As [`Normalization::DecodeAndMergeSlashes`], and 400 for a broken escape or what a second pass would
    /// change again.
    #[default]
    Strict,
    /// Nothing is changed.
    None,
    /// Escapes of unreserved characters are decoded once, `\` becomes `/`, dot segments are resolved.
    Base,
    /// Also, slashes are merged.
    MergeSlashes,
    /// Also, `%2F` and `%5C` are slashes.
    DecodeAndMergeSlashes,
}

/// Why a path is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not starting with `/` (and not `*`).
    #[error("path does not start with `/`")]
    NotAbsolute,
    /// `%00`, `#`, control characters or a `%` that escapes nothing.
    #[error("path holds a NUL, `#`, control character or broken escape")]
    Forbidden,
    /// A second pass would change it again: something was escaped twice.
    #[error("path is ambiguous: it is escaped more than once, or hides dot segments")]
    Ambiguous,
}

/// The normal form of the path in `target` (a request target in origin form), its query kept.
pub fn normalize(target: &str) -> Result<Cow<'_, str>, PathError> {
    normalize_as(target, Normalization::Strict)
}

/// As [`normalize`], in a mode of choice.
pub fn normalize_as(target: &str, mode: Normalization) -> Result<Cow<'_, str>, PathError> {
    let (path, query) = match target.split_once('?') {
        Some((p, q)) => (p, Some(q)),
        None => (target, None),
    };
    if path == "*" && query.is_none() {
        return Ok(Cow::Borrowed(target));
    }
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    if target.bytes().any(|b| b == b'#' || b < 0x21 || b == 0x7f) {
        return Err(PathError::Forbidden);
    }
    // Most paths are already in normal form.
    if mode == Normalization::None || is_plain(path) {
        return Ok(Cow::Borrowed(target));
    }
    let once = pass(path, mode)?;
    if mode == Normalization::Strict && pass(&once, mode)? != once {
        return Err(PathError::Ambiguous);
    }
    Ok(Cow::Owned(match query {
        Some(q) => format!("{once}?{q}"),
        None => once,
    }))
}

/// The beginning or end of a path with escapes and slashes as in the normal form of `mode`; dot segments are
/// left alone, and all of it where it cannot be read.
pub(crate) fn normalize_part(part: &str, mode: Normalization) -> String {
    match mode {
        Normalization::None => part.to_owned(),
        Normalization::Base => decode(part, mode).unwrap_or_else(|_| part.to_owned()),
        _ => decode(part, mode).map_or_else(|_| part.to_owned(), |p| merge_slashes(&p)),
    }
}

fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    !bytes.contains(&b'%')
        && !bytes.contains(&b'\\')
        && !bytes.windows(2).any(|w| w == b"//" || w == b"/.")
}

fn hex(b: u8) -> Option<u8> {
    (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

fn pass(path: &str, mode: Normalization) -> Result<String, PathError> {
    let decoded = decode(path, mode)?;
    let resolved = resolve_dots(&decoded);
    Ok(match mode {
        Normalization::None | Normalization::Base => resolved,
        _ => merge_slashes(&resolved),
    })
}

fn decode(path: &str, mode: Normalization) -> Result<String, PathError> {
    let slashes = matches!(mode, Normalization::Strict | Normalization::DecodeAndMergeSlashes);
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let digit = |k| bytes.get(i + k).and_then(|b| hex(*b));
        match (bytes[i], digit(1), digit(2)) {
            (b'\\', ..) => out.push(b'/'),
            (b'%', Some(high), Some(low)) => {
                match high << 4 | low {
                    0 => return Err(PathError::Forbidden),
                    b'/' | b'\\' if slashes => out.push(b'/'),
                    b @ (b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~') => {
                        out.push(b);
                    }
                    _ => out.extend_from_slice(&bytes[i..i + 3]),
                }
                i += 2;
            }
            (b'%', ..) if mode == Normalization::Strict => return Err(PathError::Forbidden),
            (b, ..) => out.push(b),
        }
        i += 1;
    }
    String::from_utf8(out).map_err(|_| PathError::Forbidden)
}

/// RFC 3986 section 5.2.4, parameters of dot segments ignored (`/..;x=1/`); elsewhere they belong to their
/// segment (PN-5).
fn resolve_dots(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let mut ends_in_dots = false;
    for segment in path.split('/').skip(1) {
        let dots = segment.split(';').next().unwrap_or_default();
        ends_in_dots = dots == "." || dots == "..";
        if dots == ".." {
            out.pop();
        } else if dots != "." {
            out.push(segment);
        }
    }
    if ends_in_dots {
        out.push("");
    }
    format!("/{}", out.join("/"))
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn normal_forms() {
        for (input, expected) in [
            ("/", "/"),
            ("/a/b?x=%2F..", "/a/b?x=%2F.."),
            ("/a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../b", "/b"),
            ("/a%2Fb", "/a/b"),
            ("/a%5cb", "/a/b"),
            ("/a\\b", "/a/b"),
            ("/%61dmin", "/admin"),
            ("/a/..;x=1/admin", "/admin"),
            ("/.;/x", "/x"),
            ("/data;x", "/data;x"),
            ("/a/..", "/"),
            ("/a//../b", "/a/b"),
            ("/a%20b", "/a%20b"),
            ("/a/", "/a/"),
            ("*", "*"),
        ] {
            assert_eq!(normalize(input).as_deref(), Ok(expected), "{input}");
        }
    }

    #[test]
    fn refused_paths() {
        for (input, why) in [
            ("a", PathError::NotAbsolute),
            ("", PathError::NotAbsolute),
            ("/a%00", PathError::Forbidden),
            ("/a#b", PathError::Forbidden),
            ("/a%zz", PathError::Forbidden),
            ("/a b", PathError::Forbidden),
            ("/a%2", PathError::Forbidden),
        ] {
            assert_eq!(normalize(input), Err(why), "{input}");
        }
        assert_eq!(
            normalize("/%252e%252e/admin").as_deref(),
            Ok("/%252e%252e/admin"),
            "a literal %25 stays"
        );
    }

    proptest! {
        #[test]
        fn the_normal_form_is_stable(path in "/[a-c./\\\\%25fFeE;~]{0,24}") {
            if let Ok(once) = normalize(&path) {
                let again = normalize(&once).map(|c| c.into_owned());
                prop_assert_eq!(again.as_deref(), Ok(&*once));
                prop_assert!(!once.contains("//") && !once.contains("/../") && !once.contains("/./"));
            }
        }
    }
}
