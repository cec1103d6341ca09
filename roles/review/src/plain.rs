//! Configuration put plainly, for rules that look for `name: value` and `--flag=value`: templates and variables are what
//! their defaults say (`{{ .Values.x | default "no" }}`, `${X:-no}`), and the value of a flag that is the next item of a
//! list stands behind the flag. As long as it was, so that places in it are places in the file.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::kind::Kind;

/// The literal of a default, in quotes or bare.
const LITERAL: &str = r#"(?:"(?P<Q>[^"\n{}]*)"|'(?P<S>[^'\n{}]*)'|(?P<B>[A-Za-z0-9_./:+-]+))"#;

/// Filters that leave what they are given as it is, as far as a rule looks at it.
const KEPT: &str = r"(?:\s*\|\s*(?:quote|squote|toString|string|toYaml|lower|int|int64|bool|toBool|trim)\b[^|{}\n]{0,40})*";

static FORMS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let forms = [
        // `{{ x | default "no" }}`, `{{ x | default('no') }}`, `{{ x | default: 80 }}`.
        format!(
            r"\{{\{{-?[^{{}}\n=]*?\|\s*d(?:efault)?\s*[:(]?\s*LIT\s*(?:,\s*(?:boolean\s*=\s*)?[Tt]rue\s*)?\)*{KEPT}\s*-?\}}\}}"
        ),
        // `{{ default "no" .Values.x }}`.
        format!(
            r#"\{{\{{-?\s*\(?\s*default\s+LIT\s+\(?[\w.$]+(?:\s+[\w."$]+)*\)*{KEPT}\s*-?\}}\}}"#
        ),
        // `{{ default .Env.X "no" }}`, `{{ getenv "X" "no" }}`.
        format!(
            r#"\{{\{{-?\s*(?:default\s+\.[\w.]+|getenv\s+"\w+"|env\.Getenv\s+"\w+")\s+LIT{KEPT}\s*-?\}}\}}"#
        ),
        // `${X:-no}`, and what Spring writes, `${X:no}`.
        r"\$\{[\w.-]+:[-=]?(?P<B>|[^+?{}\n$`][^{}\n$`]*)\}".to_owned(),
    ];
    forms.iter().filter_map(|f| Regex::new(&f.replace("LIT", LITERAL)).ok()).collect()
});

/// A flag of a list, and the item behind it, which is no flag.
static LISTED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let item = r#""[^"\n-][^"\n]*"|'[^'\n-][^'\n]*'|[^\s"'#&*{\[-][^\n#:]*"#;
    Regex::new(&format!(
        r#"(?m)^[ \t]*- (?P<F>["']?--?[A-Za-z][\w.-]*["']?)[ \t]*(?P<N>\n[ \t]*- +(?P<V>{item}))[ \t]*$"#
    ))
    .ok()
});

/// An import of Go under another name.
static ALIAS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(concat!(
        r#"(?m)^[ \t]*(?:import[ \t]+)?(?P<A>[a-z]\w*)[ \t]+"(?:crypto/(?P<T>tls|x509)|net/(?P<H>http)|"#,
        r#"google\.golang\.org/grpc(?:/(?P<C>credentials(?:/(?P<I>insecure))?))?)"[ \t]*$"#
    ))
    .ok()
});

/// Go with `stdtls.Config` as `tls.Config`, blanks before it: rules know packages by the names that they have.
fn unaliased(text: Cow<'_, str>) -> Cow<'_, str> {
    let Some(regex) = ALIAS.as_ref().filter(|_| text.contains("import")) else { return text };
    let mut bytes: Option<Vec<u8>> = None;
    for found in regex.captures_iter(&text) {
        let Some(alias) = found.name("A").map(|m| m.as_str()) else { continue };
        let own =
            ["T", "H", "I", "C"].iter().find_map(|n| found.name(n)).map_or("grpc", |m| m.as_str());
        let own = if own.starts_with("credentials/") { "insecure" } else { own };
        // A shorter name has no room for the right one.
        if alias == own || alias.len() < own.len() {
            continue;
        }
        let out = bytes.get_or_insert_with(|| text.as_bytes().to_vec());
        for (at, _) in text.match_indices(alias) {
            let end = at + alias.len();
            let before = at.checked_sub(1).map(|b| text.as_bytes()[b]);
            if text.as_bytes().get(end) == Some(&b'.')
                && !before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
            {
                out[at..end].fill(b' ');
                out[end - own.len()..end].copy_from_slice(own.as_bytes());
            }
        }
    }
    owned(bytes, text)
}

/// The text as rules look at it.
pub(crate) fn plain<'t>(kind: Kind, text: Cow<'t, str>) -> Cow<'t, str> {
    if kind == Kind::Go {
        return unaliased(text);
    }
    let text = filled(kind, text);
    if kind != Kind::Yaml || !text.contains("- ") {
        return text;
    }
    let Some(listed) = LISTED.as_ref() else { return text };
    let mut bytes: Option<Vec<u8>> = None;
    for found in listed.captures_iter(&text) {
        let (Some(flag), Some(next), Some(value)) =
            (found.name("F"), found.name("N"), found.name("V"))
        else {
            continue;
        };
        let out = bytes.get_or_insert_with(|| text.as_bytes().to_vec());
        let flag_text = flag.as_str().trim_matches(['"', '\'']);
        let value_text = value.as_str().trim().trim_matches(['"', '\'']);
        let new = flag_text
            .bytes()
            .chain([b'='])
            .chain(value_text.bytes())
            .chain(std::iter::repeat(b' '));
        for (place, b) in out[flag.start()..next.end()].iter_mut().zip(new) {
            *place = b;
        }
    }
    owned(bytes, text)
}

/// A text in which what has a default is that, as long as the text was: blanks fill up, behind the quote that ends it.
fn filled<'t>(kind: Kind, text: Cow<'t, str>) -> Cow<'t, str> {
    if kind.language().is_some() || !(text.contains("{{") || text.contains("${")) {
        return text;
    }
    let mut bytes: Option<Vec<u8>> = None;
    for form in FORMS.iter() {
        for found in form.captures_iter(&text) {
            let Some(whole) = found.get(0) else { continue };
            let Some(value) = value(&found) else { continue };
            // Of what is compared with something the name says more, and of a port that is mapped.
            let after = text[whole.end()..].trim_start_matches(['"', '\'']);
            if after.starts_with(':')
                || [" =", " !=", " -eq", " -ne"].iter().any(|o| after.starts_with(o))
            {
                continue;
            }
            let out = bytes.get_or_insert_with(|| text.as_bytes().to_vec());
            let quote = text.as_bytes().get(whole.end()).copied();
            let quoted = matches!(quote, Some(b'"' | b'\''))
                && text[..whole.start()].ends_with(quote.map_or('"', char::from));
            let end = whole.end() + usize::from(quoted);
            let new = value.bytes().chain(quote.filter(|_| quoted)).chain(std::iter::repeat(b' '));
            for (place, b) in out[whole.start()..end].iter_mut().zip(new) {
                *place = b;
            }
        }
    }
    owned(bytes, text)
}

fn owned<'t>(bytes: Option<Vec<u8>>, text: Cow<'t, str>) -> Cow<'t, str> {
    match bytes.map(String::from_utf8) {
        Some(Ok(new)) => Cow::Owned(new),
        _ => text,
    }
}

/// The default, or the other of yes and no where the template turns it round.
fn value<'t>(found: &Captures<'t>) -> Option<&'t str> {
    let literal = literal(found);
    let head = found[0].split(['|', '"', '\'']).next().unwrap_or_default();
    if !head.trim_start_matches(['{', '-', ' ']).starts_with("not ") {
        return Some(literal);
    }
    match literal {
        "true" | "True" => Some("false"),
        "false" | "False" => Some("true"),
        _ => None,
    }
}

fn literal<'t>(found: &Captures<'t>) -> &'t str {
    ["Q", "S", "B"].iter().find_map(|n| found.name(n)).map_or("", |m| m.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        let out = plain(Kind::Yaml, Cow::Borrowed(text)).into_owned();
        assert_eq!(out.len(), text.len());
        out.trim_end().to_owned()
    }

    #[test]
    fn defaults_take_the_place_of_what_has_one() {
        assert_eq!(of("verify: {{ .Values.verify | default \"off\" }}"), "verify: off");
        assert_eq!(of("verify: \"{{ .Values.verify | default false }}\""), "verify: \"false\"");
        assert_eq!(of("port: {{ port.http | default: 8080 }}"), "port: 8080");
        assert_eq!(of("x: {{ lookup | default('no') | quote }}"), "x: no");
        assert_eq!(of("verify: {{ not (skip | default(false)) }}"), "verify: true");
        assert_eq!(of("verify: {{ not skip | default(true) }}"), "verify: false");
        assert_eq!(of("x: {{ default \"no\" .Values.x }}"), "x: no");
        assert_eq!(of("x: {{ default .Env.X \"no\" }}"), "x: no");
        assert_eq!(of("days=${DAYS:-3650}"), "days=3650");
        assert_eq!(of("x: '${TLS:optional}'"), "x: 'optional'");
    }

    #[test]
    fn packages_have_their_own_names() {
        let go = |text: &str| plain(Kind::Go, Cow::Borrowed(text)).into_owned();
        let text =
            "import (\n\tstdtls \"crypto/tls\"\n)\nvar c = stdtls.Config{}\nvar d = my.stdtls.X\n";
        let out = go(text);
        assert_eq!(out.len(), text.len());
        assert!(out.contains("var c =    tls.Config{}") && out.contains("my.stdtls.X"), "{out}");
        for text in [
            "import t \"crypto/tls\"\nvar c = t.Config{}",
            "import \"crypto/tls\"\nvar c = tls.Config{}",
        ] {
            assert_eq!(go(text), text);
        }
    }

    #[test]
    fn the_value_of_a_flag_stands_behind_it() {
        assert_eq!(of("- --verify\n- \"no\"\n"), "- --verify=no");
        let list = "args:\n  - \"--verify\"\n  - off\n  - --other\n";
        let plain = of(list);
        assert!(plain.starts_with("args:\n  - --verify=off") && plain.ends_with("\n  - --other"));
        for text in ["- --a\n- --b", "- --a\n- key: value", "- name\n- value", "- --a\n- [x]"] {
            assert_eq!(of(text), text);
        }
    }

    #[test]
    fn what_has_none_stays_as_it_is() {
        for text in [
            "x: {{ .Values.x }}",
            "${X}",
            "a ${X:+y}",
            "{{ if .x }}",
            "${X:-$Y}",
            "{{ range default }}",
        ] {
            assert_eq!(of(text), text);
        }
    }
}
