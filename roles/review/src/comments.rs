//! Comments of source without its syntax tree: what is worth parsing is seen before anything is parsed.

use crate::kind::Kind;

/// A string that is open, and what ends it.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    /// Ends with its line at the latest.
    Quote(u8),
    /// Three of them, or a backtick: may go on for lines.
    Triple(u8),
    Tick,
}

/// Source without what looks like comments, by quotes alone: good enough to tell whether a file is worth parsing. With
/// whether that can be wrong, as there may be strings of another form.
pub(crate) fn without_comments(kind: Kind, text: &str) -> (String, bool) {
    let hash = matches!(kind, Kind::Python | Kind::Ruby | Kind::Php);
    let slashes = !matches!(kind, Kind::Python | Kind::Ruby);
    let unsure = matches!(kind, Kind::Ruby | Kind::Php) && text.contains("<<");
    let mut out = text.as_bytes().to_vec();
    // Seen once for the file: few files have any.
    let triples = text.contains("\"\"\"") || text.contains("'''");
    let mut block = false;
    let mut open: Option<Open> = None;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let bytes = line.trim_end_matches(['\n', '\r']).as_bytes();
        // Most lines have neither a comment nor the ends of what goes on.
        let may = slashes && bytes.contains(&b'/')
            || hash && bytes.contains(&b'#')
            || bytes.contains(&b'`')
            || triples && (line.contains("\"\"\"") || line.contains("'''"));
        if block && !may {
            out[start..start + bytes.len()].fill(b' ');
        }
        let mut i = if may { 0 } else { bytes.len() };
        while i < bytes.len() {
            let two = (bytes[i], bytes.get(i + 1).copied().unwrap_or(b' '));
            let triple = bytes[i..].starts_with(&[two.0; 3]);
            // In a regular expression, or an address that stands in no quotes.
            let escaped = i > 0 && matches!(bytes[i - 1], b'\\' | b':');
            if block {
                out[start + i] = b' ';
                if two == (b'*', b'/') {
                    out[start + i + 1] = b' ';
                    block = false;
                    i += 1;
                }
            } else if let Some(o) = open {
                match o {
                    Open::Quote(_) | Open::Triple(_) if two.0 == b'\\' => i += 1,
                    Open::Quote(q) if two.0 == q => open = None,
                    Open::Tick if two.0 == b'`' => open = None,
                    Open::Triple(q) if triple && two.0 == q => {
                        open = None;
                        i += 2;
                    }
                    _ => {}
                }
            } else if slashes && two == (b'/', b'*') {
                out[start + i..start + i + 2].fill(b' ');
                block = true;
                i += 1;
            } else if slashes && two == (b'/', b'/') && !escaped || hash && two.0 == b'#' {
                out[start + i..start + bytes.len()].fill(b' ');
                break;
            } else {
                open = match two.0 {
                    b'`' => Some(Open::Tick),
                    q @ (b'"' | b'\'') if triple => {
                        i += 2;
                        Some(Open::Triple(q))
                    }
                    q @ (b'"' | b'\'') => Some(Open::Quote(q)),
                    _ => None,
                };
            }
            i += 1;
        }
        open = open.filter(|o| !matches!(o, Open::Quote(_)));
        start += line.len();
    }
    // Whole characters are replaced, so what is left is text.
    match String::from_utf8(out) {
        // What never ends was none, and what came behind it was misread.
        Ok(bare) => (bare, unsure || open.is_some() || block),
        Err(_) => (text.to_owned(), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_comment_is_put_aside() {
        let of = |kind, text: &str| {
            let (bare, _) = without_comments(kind, text);
            assert_eq!(bare.len(), text.len());
            bare.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let go = "a( /* b */ c) // d\n\"http://e\" `//\n//f`";
        assert_eq!(of(Kind::Go, go), "a( c) \"http://e\" `// //f`");
        let python = "x = 1  # y\nz = '#' \n\"\"\"\n# doc\n\"\"\"\n";
        assert_eq!(of(Kind::Python, python), "x = 1 z = '#' \"\"\" # doc \"\"\"");
        assert_eq!(of(Kind::Java, "/* a\n b\n*/ c /*/ d */ e"), "c e");
        assert_eq!(of(Kind::Ruby, "a # é\nb"), "a b");
        assert_eq!(of(Kind::JavaScript, "a(/\\//, b) // c"), "a(/\\//, b)");
        assert_eq!(of(Kind::TypeScript, "<a>http://b</a> // c"), "<a>http://b</a>");
        assert!(without_comments(Kind::JavaScript, "x = /`/; y").1);
        assert!(!without_comments(Kind::JavaScript, "x = `a`; // y").1);
    }
}
