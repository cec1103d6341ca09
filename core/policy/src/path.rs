//! Path normalization, the strictest of Istio's modes and to a fixpoint: `%2F`, `%5C` and unreserved
//! escapes are decoded, `\` becomes `/`, slashes are merged, dot segments resolved. What still changes
//! after that could be read in two ways and is refused.

use std::borrow::Cow;

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
    if is_plain(path) {
        return Ok(Cow::Borrowed(target));
    }
    let once = pass(path)?;
    if pass(&once)? != once {
        return Err(PathError::Ambiguous);
    }
    Ok(Cow::Owned(match query {
        Some(q) => format!("{once}?{q}"),
        None => once,
    }))
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

fn pass(path: &str) -> Result<String, PathError> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => decoded.push(b'/'),
            b'%' => {
                let value = match (
                    bytes.get(i + 1).and_then(|b| hex(*b)),
                    bytes.get(i + 2).and_then(|b| hex(*b)),
                ) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(PathError::Forbidden),
                };
                match value {
                    0 => return Err(PathError::Forbidden),
                    b'/' | b'\\' => decoded.push(b'/'),
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        decoded.push(value);
                    }
                    _ => decoded.extend_from_slice(&bytes[i..i + 3]),
                }
                i += 2;
            }
            b => decoded.push(b),
        }
        i += 1;
    }
    let decoded = String::from_utf8(decoded).map_err(|_| PathError::Forbidden)?;
    let mut out: Vec<&str> = Vec::new();
    let mut trailing = false;
    for segment in decoded.split('/').skip(1) {
        trailing = false;
        // Parameters on dot segments are ignored (`/..;x=1/`); elsewhere they belong to the segment.
        match segment.split(';').next().unwrap_or_default() {
            "." => trailing = true,
            ".." => {
                out.pop();
                trailing = true;
            }
            "" if segment.is_empty() => trailing = true,
            _ => out.push(segment),
        }
    }
    let mut joined = String::with_capacity(decoded.len());
    for segment in &out {
        joined.push('/');
        joined.push_str(segment);
    }
    if trailing || out.is_empty() {
        joined.push('/');
    }
    Ok(joined)
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
