//! Parts of configuration files: comments, blocks, keys. Tolerant of templates, because much of what is
//! deployed is one.

use std::ops::Range;

use crate::kind::Kind;

/// Comments.
pub(crate) fn comments(kind: Kind, text: &str) -> Vec<Range<usize>> {
    match kind {
        Kind::Json => slashes(text, true),
        Kind::Toml => {
            // What stands in strings of several lines is some other file, and no setting of this one.
            let mut out = between(text, "\'\'\'", "\'\'\'");
            out.extend(between(text, "\"\"\"", "\"\"\""));
            out.extend(hashes(text, kind));
            out
        }
        Kind::Xml => between(text, "<!--", "-->"),
        Kind::Terraform => {
            let mut out = hashes(text, kind);
            out.extend(slashes(text, false));
            out
        }
        _ => hashes(text, kind),
    }
}

/// The ends of lines that go on in the next one, with the backslash that says so.
pub(crate) fn continuations(kind: Kind, text: &str) -> Vec<Range<usize>> {
    if !matches!(kind, Kind::Shell | Kind::Dockerfile | Kind::Systemd | Kind::Yaml) {
        return Vec::new();
    }
    let end = |(i, _): (usize, &str)| {
        let after = text[i + 1..].bytes().take_while(|b| matches!(b, b' ' | b'\t' | b'\r')).count();
        let newline = i + 1 + after;
        (text.as_bytes().get(newline) == Some(&b'\n')).then_some(i..newline + 1)
    };
    text.match_indices('\\').filter_map(end).collect()
}

/// `#` outside of quotes, at the start of a line or behind a blank; `;` and `!` in properties.
fn hashes(text: &str, kind: Kind) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start();
        let whole = bare.starts_with('#')
            || kind == Kind::Properties && (bare.starts_with('!') || bare.starts_with(';'))
            || kind == Kind::Shell && is_remark(bare);
        if whole {
            // What a shebang or a Dockerfile's syntax line says is nothing to find.
            out.push(start..start + line.trim_end_matches('\n').len());
        } else if kind != Kind::Properties {
            let mut quote = None;
            let mut before = b' ';
            for (i, b) in line.bytes().enumerate() {
                match quote {
                    Some(q) if b == q => quote = None,
                    Some(_) => {}
                    None if b == b'"' || b == b'\'' && before == b' ' => quote = Some(b),
                    None if b == b'#' && before.is_ascii_whitespace() => {
                        out.push(start + i..start + line.trim_end_matches('\n').len());
                        break;
                    }
                    None => {}
                }
                before = b;
            }
        }
        start += line.len();
    }
    out
}

/// Comments of Windows' command files.
fn is_remark(line: &str) -> bool {
    let word = line.split_whitespace().next().unwrap_or_default();
    line.starts_with("::") || ["rem", "@rem"].iter().any(|r| word.eq_ignore_ascii_case(r))
}

/// `/* */` and `//` outside of strings; the latter `anywhere`, or only where a line begins, where elsewhere it may be a part of an
/// address.
fn slashes(text: &str, anywhere: bool) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    let mut in_string = false;
    let mut line_begins = true;
    while i < bytes.len() {
        let next = bytes.get(i + 1);
        match (in_string, bytes[i]) {
            (true, b'\\') => i += 1,
            (_, b'"') => in_string = !in_string,
            // A string ends with its line, whatever was forgotten.
            (_, b'\n') => in_string = false,
            (false, b'/') if next == Some(&b'/') && (anywhere || line_begins) => {
                let end = text[i..].find('\n').map_or(text.len(), |n| i + n);
                out.push(i..end);
                i = end;
            }
            (false, b'/') if next == Some(&b'*') => {
                let end = text[i..].find("*/").map_or(text.len(), |n| i + n + 2);
                out.push(i..end);
                i = end - 1;
            }
            _ => {}
        }
        line_begins = match bytes.get(i) {
            Some(b'\n') => true,
            Some(b' ' | b'\t') => line_begins,
            _ => false,
        };
        i += 1;
    }
    out
}

fn between(text: &str, open: &str, close: &str) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(i) = text[at..].find(open) {
        let from = at + i;
        let inner = from + open.len();
        let to = text[inner..].find(close).map_or(text.len(), |j| inner + j + close.len());
        out.push(from..to);
        at = to;
    }
    out
}

/// The document of a YAML stream; the file elsewhere.
pub(crate) fn document(kind: Kind, text: &str, at: &Range<usize>) -> Range<usize> {
    if kind != Kind::Yaml {
        return 0..text.len();
    }
    let before = &text[..at.start];
    let start = match before.rfind("\n---") {
        Some(i) => i + 1,
        None => 0,
    };
    let end = text[at.end..].find("\n---").map_or(text.len(), |i| at.end + i + 1);
    start..end
}

/// The lines, from 1, on which the documents of a YAML stream begin, but for the first.
pub(crate) fn documents(text: &str) -> Vec<usize> {
    let begins = text.lines().enumerate().filter(|(_, l)| l.starts_with("---"));
    begins.map(|(i, _)| i + 1).collect()
}

/// The innermost block around a match.
pub(crate) fn block(kind: Kind, text: &str, at: &Range<usize>) -> Option<Range<usize>> {
    match kind {
        Kind::Yaml => Some(mapping(text, at)),
        Kind::HaProxy => Some(section(text, at)),
        Kind::Apache => enclosing_element(text, at),
        Kind::Xml => Some(tag(text, at)),
        Kind::Shell | Kind::Dockerfile => None,
        // Among them are formats with braces, and those with `[sections]`.
        Kind::Properties => braces(text, at).or_else(|| {
            text.lines().any(|l| l.trim_start().starts_with('[')).then(|| table(text, at))
        }),
        Kind::Systemd | Kind::Toml => Some(table(text, at)),
        _ => braces(text, at),
    }
}

fn braces(text: &str, at: &Range<usize>) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut start = None;
    for i in (0..at.start).rev() {
        match bytes[i] {
            b'}' => depth += 1,
            b'{' if depth == 0 => {
                start = Some(i);
                break;
            }
            b'{' => depth -= 1,
            _ => {}
        }
    }
    let start = start?;
    let mut depth = 0usize;
    for (i, b) in bytes.iter().enumerate().skip(at.end) {
        match b {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(start..i + 1),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    Some(start..text.len())
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '-']).len()
}

/// The mapping that a line of YAML belongs to: lines as deep or deeper, up to the next one less deep; or the
/// braces around it, if they are on the same line.
fn mapping(text: &str, at: &Range<usize>) -> Range<usize> {
    let line_start = text[..at.start].rfind('\n').map_or(0, |i| i + 1);
    let line_end = text[at.start..].find('\n').map_or(text.len(), |i| at.start + i);
    if let Some(flow) = braces(
        &text[line_start..line_end],
        &(at.start - line_start..at.end.min(line_end) - line_start),
    ) && text[line_start..line_end][..flow.start].trim_end().ends_with([':', '-', ',', '['])
    {
        return line_start + flow.start..line_start + flow.end;
    }
    let own = indentation(&text[line_start..line_end]);
    let mut start = line_start;
    let blank = |l: &str| l.trim().is_empty();
    let begins_item = |l: &str| l.trim_start().starts_with("- ") && indentation(l) == own;
    if !begins_item(&text[line_start..line_end]) {
        while start > 0 {
            let previous = text[..start - 1].rfind('\n').map_or(0, |i| i + 1);
            let line = &text[previous..start - 1];
            if !blank(line) {
                if indentation(line) < own || line.starts_with("---") {
                    break;
                }
                if begins_item(line) {
                    start = previous;
                    break;
                }
            }
            start = previous;
        }
    }
    let mut end = line_end;
    while end < text.len() {
        let next_end = text[end + 1..].find('\n').map_or(text.len(), |i| end + 1 + i);
        let line = &text[end + 1..next_end];
        if !blank(line) && (indentation(line) < own || begins_item(line) || line.starts_with("---"))
        {
            break;
        }
        end = next_end;
    }
    start..end
}

/// The column of a line's key behind its dashes, and the column of its first dash.
fn columns(line: &str) -> (usize, Option<usize>) {
    let spaces = line.len() - line.trim_start().len();
    let dash = line.trim_start().starts_with("- ").then_some(spaces);
    (indentation(line), dash)
}

fn key_of(line: &str) -> String {
    let bare = line.trim_start_matches([' ', '-']);
    let key = bare.split([':', '{', '[']).next().unwrap_or_default();
    key.trim().trim_matches(['"', '\'']).to_owned()
}

/// The keys that lead to a place, outermost first, its own last: `spec.mtls.mode`.
pub(crate) fn keys(kind: Kind, text: &str, at: usize) -> String {
    match kind {
        Kind::Yaml => yaml_keys(text, at),
        Kind::Toml | Kind::Systemd => {
            let head = &text[table(text, &(at..at)).start..at];
            let title = head.lines().next().unwrap_or_default().trim();
            let title = title.strip_prefix('[').map(|t| t.split(']').next().unwrap_or_default());
            let title = title.map(|t| t.trim_matches(['[', ' '])).unwrap_or_default();
            let own = brace_keys(head, text, at);
            [title, &own].iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join(".")
        }
        _ => brace_keys(&text[..at], text, at),
    }
}

/// What stands before the braces that are open at the end of `head`, and the key on the line of `at`.
fn brace_keys(head: &str, text: &str, at: usize) -> String {
    let mut open: Vec<&str> = Vec::new();
    let mut since = 0;
    let mut quote = false;
    let bytes = head.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' if quote => i += 1,
            b'"' => quote = !quote,
            b'\n' => {
                quote = false;
                since = i + 1;
            }
            _ if quote => {}
            b'{' => {
                open.push(&head[since..i]);
                since = i + 1;
            }
            b'}' => {
                open.pop();
                since = i + 1;
            }
            b',' | b';' | b'[' | b']' => since = i + 1,
            _ => {}
        }
        i += 1;
    }
    let line_end = text[at..].find('\n').map_or(text.len(), |n| at + n);
    let start = at - (head.len() - since.min(head.len()));
    let own = text[start..line_end].trim_start();
    let own = own.split([':', '=', '{', ' ']).next().unwrap_or_default();
    let mut out: Vec<String> = Vec::new();
    for part in open.into_iter().chain([own]) {
        let words = part.split([' ', '\t', ':', '=']).map(|w| w.trim_matches(['"', '\'']));
        out.extend(words.filter(|w| !w.is_empty()).map(str::to_owned));
    }
    out.join(".")
}

fn yaml_keys(text: &str, at: usize) -> String {
    let line_start = text[..at].rfind('\n').map_or(0, |i| i + 1);
    let line_end = text[at..].find('\n').map_or(text.len(), |i| at + i);
    let own = &text[line_start..line_end];
    let mut out = Vec::new();
    // In flow mappings the keys that opened braces before it on its line lead there too.
    let mut flow: Vec<String> = Vec::new();
    let mut since = 0;
    let head = &text[line_start..at];
    for (i, b) in head.bytes().enumerate() {
        match b {
            b'{' => {
                flow.push(key_of(head[since..i].trim_end().trim_end_matches(':')));
                since = i + 1;
            }
            b'}' => {
                flow.pop();
                since = i + 1;
            }
            b',' | b'[' => since = i + 1,
            _ => {}
        }
    }
    if flow.is_empty() {
        out.push(key_of(own));
    } else {
        out.push(key_of(&text[line_start + since..line_end]));
        out.extend(flow.into_iter().rev());
    }
    let (column, dash) = columns(own);
    let mut depth = dash.map_or(column, |d| d + 1);
    let mut end = line_start;
    while end > 0 {
        let start = text[..end - 1].rfind('\n').map_or(0, |i| i + 1);
        let line = &text[start..end - 1];
        end = start;
        if line.starts_with("---") {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        let (column, dash) = columns(line);
        if column < depth {
            out.push(key_of(line));
            depth = dash.map_or(column, |d| d + 1);
        } else if let Some(d) = dash.filter(|d| *d < depth && column == depth) {
            depth = d + 1;
        }
    }
    out.retain(|k| !k.is_empty());
    out.reverse();
    out.join(".")
}

const SECTIONS: [&str; 8] =
    ["global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist"];

/// A section of HAProxy's configuration.
fn section(text: &str, at: &Range<usize>) -> Range<usize> {
    let begins = |line: &str| {
        let word = line.split_whitespace().next().unwrap_or_default();
        !line.starts_with([' ', '\t']) && SECTIONS.contains(&word)
    };
    lines_between(text, at, begins)
}

fn table(text: &str, at: &Range<usize>) -> Range<usize> {
    lines_between(text, at, |line| line.trim_start().starts_with('['))
}

/// From the last line that `begins` something to the next one.
fn lines_between(text: &str, at: &Range<usize>, begins: impl Fn(&str) -> bool) -> Range<usize> {
    let (mut start, mut end, mut position) = (0, text.len(), 0);
    for line in text.split_inclusive('\n') {
        if begins(line) {
            if position <= at.start {
                start = position;
            } else {
                end = position;
                break;
            }
        }
        position += line.len();
    }
    start..end
}

/// `<VirtualHost …>` to its end; where there is none, `<Location …>` and the like.
fn enclosing_element(text: &str, at: &Range<usize>) -> Option<Range<usize>> {
    ["VirtualHost", "Location", "LocationMatch", "Directory", "Proxy"].iter().find_map(|name| {
        let start = text[..at.start].rfind(&format!("<{name} "))?;
        let close = format!("</{name}>");
        let end = text[start..].find(&close).map_or(text.len(), |i| start + i);
        (end >= at.end).then_some(start..end)
    })
}

/// The XML tag around a match, from `<` to `>`.
pub(crate) fn tag(text: &str, at: &Range<usize>) -> Range<usize> {
    let start = text[..at.start].rfind('<').unwrap_or(0);
    let end = text[at.end..].find('>').map_or(text.len(), |i| at.end + i + 1);
    start..end
}
