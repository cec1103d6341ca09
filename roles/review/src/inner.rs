//! Files within files: what a ConfigMap, a playbook or a script carries is read as what it is.

use std::collections::HashMap;

use crate::kind::Kind;

/// A text in a file, to be read as if it were one of its own.
pub(crate) struct Inner {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// The line of the file, from 1, on which it begins.
    pub(crate) first_line: usize,
    /// Whether all of it stands on that line.
    pub(crate) one_line: bool,
}

/// How deep files lie in one another: a script in a workflow that writes a ConfigMap with a site of nginx.
pub(crate) const DEPTH: usize = 4;

/// The texts in a file. Together they are no longer than it, whose size is bounded, so none is left out.
pub(crate) fn inner(kind: Kind, text: &str) -> Vec<Inner> {
    let mut out = Vec::new();
    match kind {
        Kind::Yaml => {
            scalars(text, &mut out);
            strings(text, &mut out);
            out.extend(environment(text, yaml_variables));
        }
        Kind::Json | Kind::Toml => strings(text, &mut out),
        Kind::Shell | Kind::Terraform => heredocs(text, &mut out),
        Kind::Dockerfile => {
            heredocs(text, &mut out);
            out.extend(environment(text, dockerfile_variables));
        }
        Kind::Systemd => out.extend(environment(text, systemd_variables)),
        _ => {}
    }
    out
}

/// What a text is, by the name that it has where it lies, else by itself.
fn kind_of(name: &str, text: &str) -> Option<Kind> {
    const SCRIPTS: [&str; 14] = [
        "run",
        "script",
        "scripts",
        "command",
        "commands",
        "args",
        "shell",
        "bash",
        "user_data",
        "userdata",
        "entrypoint",
        "before_script",
        "after_script",
        "cmd",
    ];
    if name.contains('.') {
        return Kind::of(name, text);
    }
    if SCRIPTS.contains(&name.to_ascii_lowercase().as_str()) {
        return Some(Kind::Shell);
    }
    let lower = name.to_ascii_lowercase();
    let named = [
        ("nginx", Kind::Nginx),
        ("haproxy", Kind::HaProxy),
        ("caddy", Kind::Caddy),
        ("apache", Kind::Apache),
        ("httpd", Kind::Apache),
        ("-snippet", Kind::Nginx),
    ];
    Kind::of("", text)
        .or_else(|| named.iter().find(|(n, _)| lower.contains(n)).map(|(_, k)| *k))
        .or_else(|| {
            let start = text.trim_start();
            match start.bytes().next() {
                Some(b'{') if text.contains('"') => Some(Kind::Json),
                Some(b'<') if start.starts_with("<?xml") => Some(Kind::Xml),
                _ if text
                    .lines()
                    .any(|l| matches!(l.trim(), "set -e" | "set -ex" | "set -euo pipefail")) =>
                {
                    Some(Kind::Shell)
                }
                _ => None,
            }
        })
}

fn bare(name: &str) -> &str {
    name.trim().trim_start_matches("- ").trim().trim_matches(['"', '\'', ';', '{', ',', '(', ')'])
}

fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

fn depth_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Block scalars of YAML: `nginx.conf: |`, `run: |`, `content: |` beside `path: /etc/nginx/nginx.conf`.
fn scalars(text: &str, out: &mut Vec<Inner>) {
    let lines: Vec<&str> = text.lines().collect();
    let mut i = 0;
    while i < lines.len() {
        let line = lines[i].trim_end();
        // `key: |-`, `- |`.
        let header = line.rsplit_once(' ').filter(|(key, v)| {
            v.starts_with(['|', '>']) && v.len() <= 3 && key.ends_with([':', '-'])
        });
        let Some((key, _)) = header else {
            i += 1;
            continue;
        };
        let depth = depth_of(line);
        let deep = |l: &&&str| l.trim().is_empty() || depth_of(l) > depth;
        let length = lines[i + 1..].iter().take_while(deep).count();
        let body = &lines[i + 1..i + 1 + length];
        let cut =
            body.iter().filter(|l| !l.trim().is_empty()).map(|l| depth_of(l)).min().unwrap_or(0);
        let inner: String =
            body.iter().map(|l| format!("{}\n", l.get(cut..).unwrap_or_default())).collect();
        let key = bare(key.trim_end_matches(':'));
        let name = match key.contains('.') {
            true => key.to_owned(),
            false => beside(&lines, i).unwrap_or_else(|| key.to_owned()),
        };
        if !inner.trim().is_empty()
            && !name.contains(' ')
            && let Some(kind) = kind_of(&name, &inner)
        {
            out.push(Inner { kind, text: inner, first_line: i + 2, one_line: false });
        }
        i += 1 + length;
    }
}

/// The name of the file that a block scalar becomes, from a key beside it.
fn beside(lines: &[&str], header: usize) -> Option<String> {
    const NAMES: [&str; 7] =
        ["path", "dest", "destination", "filename", "file", "name", "mountPath"];
    let own = lines[header];
    if !["content", "contents", "inline", "data", "text", "block"]
        .contains(&bare(own.split(':').next()?))
    {
        return None;
    }
    let column = |l: &str| l.len() - l.trim_start_matches([' ', '-']).len();
    let at = column(own);
    let is = |l: &&&str| {
        column(l) == at
            && l.split_once(':').is_some_and(|(k, v)| NAMES.contains(&bare(k)) && v.contains('.'))
    };
    let near = 12;
    let before =
        lines[header.saturating_sub(near)..header].iter().rev().take_while(|l| column(l) >= at);
    let after = lines[header + 1..]
        .iter()
        .filter(|l| column(l) <= at)
        .take(near)
        .take_while(|l| column(l) == at);
    let line = before.chain(after).find(is)?;
    Some(file_name(bare(line.split_once(':')?.1)))
}

/// Texts of several lines in one string: `"envoy.yaml": "static_resources:\n  listeners: …"`. Places in them are the
/// line of the string.
fn strings(text: &str, out: &mut Vec<Inner>) {
    for (i, line) in text.lines().enumerate() {
        if line.len() < 40 || line.matches("\\n").count() < 3 {
            continue;
        }
        let Some((key, value)) = line.split_once([':', '=']) else { continue };
        let value = value.trim().trim_end_matches(',');
        let Some(value) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else {
            continue;
        };
        let inner = value.replace("\\n", "\n").replace("\\\"", "\"").replace("\\t", "\t");
        if let Some(kind) = kind_of(bare(key), &inner) {
            out.push(Inner { kind, text: inner, first_line: i + 1, one_line: true });
        }
    }
}

/// Files that a script writes: `cat > peer.yaml <<EOF`, `kubectl apply -f - <<EOF`.
fn heredocs(text: &str, out: &mut Vec<Inner>) {
    let lines: Vec<&str> = text.lines().collect();
    // Where each line stands that may end one: looking through the rest for every `<<` would be a way to keep this busy.
    let mut ends: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.len() < 200) {
        ends.entry(line.trim()).or_default().push(i);
    }
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
        let known = ends.get(word.as_str()).map(Vec::as_slice).unwrap_or_default();
        let Some(end) = known.get(known.partition_point(|at| *at < i)) else { continue };
        let length = end - i;
        if word.is_empty() {
            continue;
        }
        let body = &lines[i..i + length];
        let rest = after.split_once(word.as_str()).map_or("", |(_, rest)| rest);
        let named = [before, rest].into_iter().find_map(|part| {
            let (_, target) = part
                .rsplit_once(['>', ' '])
                .filter(|_| part.contains(['>']) || part.contains("tee "))?;
            let name = bare(target);
            name.contains('.').then(|| file_name(name))
        });
        // Terraform: `"nginx.conf" = <<EOT`, or `content = <<EOT` beside `filename = "…"`.
        let key = before.trim().strip_suffix('=').map(|k| bare(k).to_owned());
        let found = if line.trim_start().starts_with("RUN ") && named.is_none() {
            // Commands of an image's build, a line each.
            let text: String = body.iter().map(|l| format!("RUN {l}\n")).collect();
            Some((Kind::Dockerfile, text))
        } else {
            let text: String = body.iter().map(|l| format!("{l}\n")).collect();
            kind_of(&named.or(key).unwrap_or_default(), &text).map(|kind| (kind, text))
        };
        if let Some((kind, text)) = found {
            out.push(Inner { kind, text, first_line: i + 1, one_line: false });
        }
        i += length + 1;
    }
}

/// Variables of the environment as a file of `NAME=value` in which each stands on its line.
fn environment(
    text: &str,
    variables: fn(&[&str]) -> Vec<(usize, String, String)>,
) -> Option<Inner> {
    let lines: Vec<&str> = text.lines().collect();
    let found = variables(&lines);
    if found.is_empty() {
        return None;
    }
    let mut of_line = vec![String::new(); lines.len()];
    for (line, name, value) in found {
        of_line[line] = format!("{name}={value}");
    }
    Some(Inner {
        kind: Kind::Properties,
        text: of_line.join("\n") + "\n",
        first_line: 1,
        one_line: false,
    })
}

fn is_variable(name: &str) -> bool {
    name.len() > 2
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn yaml_variables(lines: &[&str]) -> Vec<(usize, String, String)> {
    let mut out = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let content = line.trim().trim_start_matches("- ").trim();
        let Some((key, value)) = content.split_once([':', '=']) else { continue };
        let (key, value) = (bare(key), bare(value.split(" #").next().unwrap_or_default()));
        if key == "name" && is_variable(value) {
            // `value` stands before `name` if the entry begins with it, else after it.
            let near = match line.trim_start().starts_with("- ") {
                true => Some(i + 1),
                false => i.checked_sub(1),
            };
            let after = Some(i + 1).filter(|_| !line.trim_start().starts_with("- "));
            let found = near.into_iter().chain(after).find_map(|n| {
                let other = lines.get(n)?.trim();
                // The line that follows may begin another entry.
                let other = if n > i { other } else { other.strip_prefix("- ")? };
                Some((n, bare(other.trim().strip_prefix("value:")?).to_owned()))
            });
            if let Some((n, v)) = found {
                out.push((n, value.to_owned(), v));
            }
        } else if is_variable(key) && !value.is_empty() {
            out.push((i, key.to_owned(), value.to_owned()));
        }
    }
    out
}

fn dockerfile_variables(lines: &[&str]) -> Vec<(usize, String, String)> {
    let mut out = Vec::new();
    let mut goes_on = false;
    for (i, line) in lines.iter().enumerate() {
        let content = line.trim();
        let rest = content.strip_prefix("ENV ").or(goes_on.then_some(content));
        goes_on = rest.is_some() && content.ends_with('\\');
        let Some(rest) = rest else { continue };
        let pair = rest.trim_end_matches('\\').trim();
        if let Some((name, value)) = pair.split_once(['=', ' ']).filter(|(n, _)| is_variable(n)) {
            out.push((i, name.to_owned(), bare(value).to_owned()));
        }
    }
    out
}

fn systemd_variables(lines: &[&str]) -> Vec<(usize, String, String)> {
    let mut out = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let Some(rest) = line.trim().strip_prefix("Environment=") else { continue };
        if let Some((name, value)) = bare(rest).split_once('=').filter(|(n, _)| is_variable(n)) {
            out.push((i, name.to_owned(), bare(value).to_owned()));
        }
    }
    out
}
