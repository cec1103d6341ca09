//! Parts of configuration files: comments, blocks, keys. Tolerant of templates, because much of what is
//! deployed is one.

use std::ops::Range;

use crate::kind::Kind;

/// Comments.
pub(crate) fn comments(kind: Kind, text: &str) -> Vec<Range<usize>> {
    match kind {
        Kind::Json => json_comments(text),
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
            out.extend(slashes(text));
            out
        }
        _ => hashes(text, kind),
    }
}

/// `#` outside of quotes, at the start of a line or behind a blank; `;` and `!` in properties.
fn hashes(text: &str, kind: Kind) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start();
        let whole = bare.starts_with('#')
            || kind == Kind::Properties && (bare.starts_with('!') || bare.starts_with(';'));
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

/// `//` and `/* */` outside of strings, as JSON with comments has them.
fn json_comments(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    let mut in_string = false;
    while i < bytes.len() {
        match (in_string, bytes[i]) {
            (true, b'\\') => i += 1,
            (_, b'"') => in_string = !in_string,
            // A string ends with its line, whatever was forgotten.
            (true, b'\n') => in_string = false,
            (false, b'/') if bytes.get(i + 1) == Some(&b'/') => {
                let end = text[i..].find('\n').map_or(text.len(), |n| i + n);
                out.push(i..end);
                i = end;
            }
            (false, b'/') if bytes.get(i + 1) == Some(&b'*') => {
                let end = text[i..].find("*/").map_or(text.len(), |n| i + n + 2);
                out.push(i..end);
                i = end;
            }
            _ => {}
        }
        i += 1;
    }
    out
}

fn slashes(text: &str) -> Vec<Range<usize>> {
    let mut out = between(text, "/*", "*/");
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with("//") {
            out.push(start..start + line.trim_end_matches('\n').len());
        }
        start += line.len();
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

/// The innermost block around a match.
pub(crate) fn block(kind: Kind, text: &str, at: &Range<usize>) -> Option<Range<usize>> {
    match kind {
        Kind::Yaml => Some(mapping(text, at)),
        Kind::HaProxy => Some(section(text, at)),
        Kind::Apache => enclosing_element(text, at),
        Kind::Xml => Some(tag(text, at)),
        Kind::Properties | Kind::Shell | Kind::Dockerfile | Kind::Systemd => None,
        Kind::Toml => Some(table(text, at)),
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

/// The keys that lead to a place in YAML, outermost first, its own last: `spec.mtls.mode`.
pub(crate) fn keys(text: &str, at: usize) -> String {
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

/// `<VirtualHost …>` to its end.
fn enclosing_element(text: &str, at: &Range<usize>) -> Option<Range<usize>> {
    let start = text[..at.start].rfind("<VirtualHost")?;
    let end = text[start..].find("</VirtualHost>").map_or(text.len(), |i| start + i);
    (end >= at.end).then_some(start..end)
}

/// The XML tag around a match, from `<` to `>`.
pub(crate) fn tag(text: &str, at: &Range<usize>) -> Range<usize> {
    let start = text[..at.start].rfind('<').unwrap_or(0);
    let end = text[at.end..].find('>').map_or(text.len(), |i| at.end + i + 1);
    start..end
}

/// Files that a script writes: `cat > peer.yaml <<EOF`, `kubectl apply -f - <<EOF`; with the line on which they begin.
pub(crate) fn heredocs(text: &str) -> Vec<(String, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = Vec::new();
    let mut i = 0;
    while i < lines.len() {
        let line = lines[i];
        i += 1;
        let Some((before, after)) = line.split_once("<<").filter(|(_, a)| !a.starts_with('<'))
        else {
            continue;
        };
        let word = after.trim_start_matches(['-', '~']).trim_start();
        let word: String = word
            .trim_start_matches(['"', '\'', '\\'])
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        let Some(length) = lines[i..].iter().position(|l| l.trim() == word) else { continue };
        if word.is_empty() {
            continue;
        }
        let body: String = lines[i..i + length].iter().map(|l| format!("{l}\n")).collect();
        let rest = after.split_once(word.as_str()).map_or("", |(_, rest)| rest);
        let named = [before, rest].into_iter().find_map(|part| {
            let (_, target) = part
                .rsplit_once(['>', ' '])
                .filter(|_| part.contains(['>']) || part.contains("tee "))?;
            let name = target.trim().trim_matches(['"', '\'', ';', '{']);
            name.contains('.').then(|| name.rsplit('/').next().unwrap_or_default().to_owned())
        });
        let name = named.unwrap_or_else(|| {
            let name = if body.contains("apiVersion:") { "applied.yaml" } else { "" };
            name.to_owned()
        });
        if !name.is_empty() {
            out.push((name, body, i + 1));
        }
        i += length + 1;
    }
    out
}

/// Files within a YAML file: block scalars whose key is a file's name. `(name, text, line of its first line)`.
pub(crate) fn embedded(text: &str) -> Vec<(String, String, usize)> {
    let mut out = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    let mut i = 0;
    while i < lines.len() {
        let line = lines[i];
        let bare = line.trim_end();
        let header = bare.rsplit_once(':').filter(|(_, v)| {
            let v = v.trim();
            v.starts_with('|') && v.len() <= 3
        });
        let Some((key, _)) = header else {
            i += 1;
            continue;
        };
        let key = key.trim().trim_start_matches("- ").trim_matches(['"', '\'']);
        let depth = line.len() - line.trim_start().len();
        let mut body = Vec::new();
        let mut j = i + 1;
        while j < lines.len() {
            let deep = lines[j].len() - lines[j].trim_start().len();
            if !lines[j].trim().is_empty() && deep <= depth {
                break;
            }
            body.push(lines[j]);
            j += 1;
        }
        if key.contains('.') && !key.contains(' ') && !body.is_empty() {
            let cut = body
                .iter()
                .filter(|l| !l.trim().is_empty())
                .map(|l| l.len() - l.trim_start().len())
                .min()
                .unwrap_or(0);
            let text: String =
                body.iter().map(|l| format!("{}\n", l.get(cut..).unwrap_or_default())).collect();
            out.push((key.to_owned(), text, i + 2));
        }
        i = j;
    }
    out
}
