//! Rules: one file each, read when the program starts; their shapes are regular expressions over parts of a
//! file that the syntax tree marks out.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use countersign_findings::Severity;
use regex::Regex;
use serde::Deserialize;

use crate::issue::Issue;
use crate::kind::Kind;
use crate::scope::Scope;
use crate::source::Context;

mod files {
    include!(concat!(env!("OUT_DIR"), "/rules.rs"));
}

/// How sure a rule is of what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Look at it.
    Low,
    /// Likely.
    Medium,
    /// Nearly always right.
    High,
}

impl Confidence {
    /// In lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Confidence::Low => "low",
            Confidence::Medium => "medium",
            Confidence::High => "high",
        }
    }
}

/// A class of flaws: the unit of suppression and of the checklist.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// `client-verify-disabled` and the like.
    #[serde(skip)]
    pub name: String,
    /// What it means, in one line.
    pub title: String,
    /// What an attacker gains.
    pub why: String,
    /// The safer form, in general.
    pub fix: String,
    /// CWE numbers.
    pub cwe: Vec<u16>,
    #[serde(rename = "severity")]
    severity_name: String,
    /// Where a rule names no other.
    #[serde(skip, default = "medium")]
    pub severity: Severity,
    /// The letters that name it in the report's checklist.
    pub short: String,
    /// The step of a review that it belongs to, 1 to 7.
    pub step: u8,
}

fn medium() -> Severity {
    Severity::Medium
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// `<class>/<where>-<shape>`.
    pub id: String,
    /// Its class.
    pub class: &'static Class,
    /// What is wrong, in one line.
    pub title: String,
    /// Why it matters here; the class says it in general.
    pub why: String,
    /// The safer form in this language.
    pub fix: String,
    /// How bad.
    pub severity: Severity,
    /// How sure.
    pub confidence: Confidence,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) path: Option<Lazy>,
    pub(crate) shapes: Vec<Shape>,
    /// Code that shows the flaw, and code that only looks like it.
    pub examples: Vec<Example>,
}

/// A regular expression that is compiled when it is needed first: a run looks at few kinds of files.
#[derive(Debug)]
pub(crate) struct Lazy {
    text: String,
    compiled: OnceLock<Option<Regex>>,
}

/// Most memory, in bytes, that the matcher of one pattern may keep for the states it has seen. There are thousands of
/// patterns, and few of them look at much text; with less the largest are matched in a slow way.
const MATCHER_CACHE: usize = 1 << 20;

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(pattern).dfa_size_limit(MATCHER_CACHE).build()
}

impl Lazy {
    fn new(text: String) -> Self {
        Self { text, compiled: OnceLock::new() }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// `None` for what is no regular expression, which [`Catalogue::check`] finds.
    pub(crate) fn get(&self) -> Option<&Regex> {
        self.compiled.get_or_init(|| compile(&self.text).ok()).as_ref()
    }
}

#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) pattern: Lazy,
    /// Whether what strings hold can match.
    pub(crate) in_strings: bool,
    /// Whether comments can match too.
    pub(crate) in_comments: bool,
    pub(crate) if_: Vec<Condition>,
    pub(crate) unless: Vec<Condition>,
    /// Groups of conditions; where all of one hold, nothing is wrong.
    pub(crate) except: Vec<Vec<Condition>>,
    pub(crate) severity: Option<Severity>,
    pub(crate) confidence: Option<Confidence>,
    pub(crate) message: Option<String>,
    /// What takes the place of the group `at`.
    pub(crate) replace: Option<String>,
    /// Where to report instead of at the match: the first place in a part of the file that fits, before the
    /// match the last one.
    pub(crate) place: Option<Condition>,
}

#[derive(Debug)]
pub(crate) struct Condition {
    pub(crate) scope: Scope,
    /// Whether it holds where the pattern does not match.
    pub(crate) negated: bool,
    pub(crate) pattern: Pattern,
}

impl Condition {
    /// The pattern, if the file cannot but hold what matches it: the scope is one piece of it.
    pub(crate) fn of_text(&self) -> Option<&str> {
        if self.negated {
            return None;
        }
        match (&self.pattern, self.scope) {
            (_, Scope::Path | Scope::Keys | Scope::Guard | Scope::Gate | Scope::Exits) => None,
            (_, Scope::Role | Scope::Reach | Scope::Family | Scope::Value) => None,
            (_, Scope::Reaching | Scope::Then | Scope::Along) => None,
            (_, Scope::Address | Scope::Meaning) => None,
            (Pattern::Fixed(p), _) => Some(p.as_str()),
            (Pattern::Template(_), _) => None,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Pattern {
    Fixed(Lazy),
    /// Holds `{group}`s of the match.
    Template(String),
}

/// An example of a rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// A file name; it decides how the code is read.
    pub file: String,
    /// Lines at which the rule's class must be found, none for safe code.
    #[serde(default)]
    pub flagged: Vec<usize>,
    /// The code.
    pub code: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    title: String,
    #[serde(default)]
    why: Option<String>,
    #[serde(default)]
    fix: Option<String>,
    #[serde(default)]
    severity: Option<String>,
    #[serde(default)]
    confidence: Option<Confidence>,
    /// Empty where the check is code: key material, and what many files show together.
    #[serde(default)]
    kinds: Vec<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    shape: Vec<ShapeFile>,
    #[serde(default)]
    example: Vec<Example>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShapeFile {
    #[serde(rename = "match")]
    pattern: String,
    #[serde(default)]
    strings: bool,
    #[serde(default)]
    comments: bool,
    #[serde(default, rename = "if")]
    if_: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    unless: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    except: Vec<BTreeMap<String, OneOrMany>>,
    #[serde(default)]
    severity: Option<String>,
    #[serde(default)]
    confidence: Option<Confidence>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    replace: Option<String>,
    #[serde(default)]
    place: BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(s) => vec![s],
            OneOrMany::Many(v) => v,
        }
    }
}

/// Classes and rules.
#[derive(Debug)]
pub struct Catalogue {
    /// In the order of the review's steps.
    pub classes: Vec<&'static Class>,
    /// Those that work on text.
    pub rules: Vec<Rule>,
}

/// The file of the classes, and of what patterns abbreviate.
const CLASSES: &str = "classes.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassesFile {
    #[serde(default)]
    class: BTreeMap<String, Class>,
    #[serde(default)]
    macros: BTreeMap<String, String>,
}

impl Catalogue {
    /// Reads the rules that are built in. A mistake in one is an error of this program, found by its tests.
    pub fn built_in() -> Result<Self, String> {
        Self::with(&[])
    }

    /// The rules that are built in and others, each the name of its file (`<class>/<where>-<shape>.toml`) and its
    /// text. One of a name that there is takes its place. `classes.toml` may add classes and macros. `Err` names the
    /// file and what is wrong in it.
    pub fn with(own: &[(String, String)]) -> Result<Self, String> {
        let mut files: BTreeMap<&str, &str> = files::FILES.iter().copied().collect();
        let built_in = files.remove(CLASSES).unwrap_or_default();
        let mut file: ClassesFile =
            toml::from_str(built_in).map_err(|e| format!("{CLASSES}: {e}"))?;
        for (name, text) in own {
            if name == CLASSES {
                let more: ClassesFile =
                    toml::from_str(text).map_err(|e| format!("{CLASSES}: {e}"))?;
                file.class.extend(more.class);
                file.macros.extend(more.macros);
            } else {
                files.insert(name, text);
            }
        }
        let mut classes: Vec<&'static Class> = Vec::new();
        for (name, mut class) in file.class {
            class.severity = severity(&class.severity_name)?;
            class.name = name;
            // Read once and kept for as long as the program runs.
            classes.push(Box::leak(Box::new(class)));
        }
        classes.sort_by_key(|c| c.step);
        let mut rules = Vec::new();
        for (name, text) in files {
            let id = name.trim_end_matches(".toml");
            let rule =
                read(id, text, &classes, &file.macros).map_err(|e| format!("{name}: {e}"))?;
            rules.push(rule);
        }
        Ok(Self { classes, rules })
    }

    /// Compiles every regular expression of the rules that `which` names. Those that are part of this program are
    /// compiled when they are needed, and a bad one is found by its tests.
    pub fn check(&self, which: impl Fn(&Rule) -> bool) -> Result<(), String> {
        for rule in self.rules.iter().filter(|r| which(r)) {
            let shapes = rule.shapes.iter();
            let path = rule.path.iter().map(|p| p.text.clone());
            let conditions = shapes.clone().flat_map(|s| {
                s.if_.iter().chain(&s.unless).chain(s.except.iter().flatten()).chain(&s.place)
            });
            let texts = conditions.map(|c| match &c.pattern {
                Pattern::Fixed(lazy) => lazy.text.clone(),
                Pattern::Template(text) => flags(&text.replace("{var}", "x").replace("{cb}", "x")),
            });
            for text in texts.chain(path).chain(shapes.map(|s| s.pattern.text.clone())) {
                Regex::new(&text).map_err(|e| format!("{}: {e}", rule.id))?;
            }
        }
        Ok(())
    }

    /// A class by its name.
    pub fn class(&self, name: &str) -> Option<&'static Class> {
        self.classes.iter().copied().find(|c| c.name == name)
    }
}

impl Catalogue {
    /// A finding of a rule that is not about text alone.
    pub(crate) fn issue(
        &self,
        rule: &str,
        path: &str,
        line: usize,
        evidence: String,
        message: String,
    ) -> Option<Issue> {
        let rule = self.rules.iter().find(|r| r.id == rule)?;
        let context = Context::of(path);
        let severity =
            if context == Context::Production { rule.severity } else { rule.severity.lowered() };
        let issue = Issue::of(rule, path, context, severity);
        Some(Issue { line, end_line: line, evidence, message, ..issue })
    }
}

fn severity(name: &str) -> Result<Severity, String> {
    Severity::parse(name).ok_or_else(|| format!("`{name}` is not a severity"))
}

fn read(
    id: &str,
    text: &str,
    classes: &[&'static Class],
    macros: &BTreeMap<String, String>,
) -> Result<Rule, String> {
    let file: RuleFile = toml::from_str(text).map_err(|e| e.to_string())?;
    let class_name = id.split('/').next().unwrap_or_default();
    let class = classes.iter().copied().find(|c| c.name == class_name).ok_or_else(|| {
        let names: Vec<&str> = classes.iter().map(|c| c.name.as_str()).collect();
        format!("`{class_name}` is not a class; there are {}", names.join(", "))
    })?;
    let kinds = file
        .kinds
        .iter()
        .map(|k| {
            let unknown = || format!("`{k}` is not a kind of file; there are {}", Kind::names());
            Kind::parse(k).ok_or_else(unknown)
        })
        .collect::<Result<_, _>>()?;
    let shapes = file.shape.into_iter().map(|s| shape(s, macros)).collect::<Result<_, _>>()?;
    Ok(Rule {
        id: id.to_owned(),
        class,
        title: file.title,
        why: file.why.unwrap_or_else(|| class.why.clone()),
        fix: file.fix.unwrap_or_else(|| class.fix.clone()),
        severity: file.severity.as_deref().map_or(Ok(class.severity), severity)?,
        confidence: file.confidence.unwrap_or(Confidence::High),
        kinds,
        path: file.path.map(|p| regex(&p, macros)),
        shapes,
        examples: file.example,
    })
}

fn shape(file: ShapeFile, macros: &BTreeMap<String, String>) -> Result<Shape, String> {
    let conditions = |map: BTreeMap<String, OneOrMany>| -> Result<Vec<Condition>, String> {
        let mut out = Vec::new();
        for (scope, patterns) in map {
            let (scope, negated) = match scope.strip_prefix("no ") {
                Some(scope) => (scope.to_owned(), true),
                None => (scope, false),
            };
            let scope = Scope::parse(&scope).ok_or_else(|| {
                format!("`{scope}` is not a part of a file that a condition can look at")
            })?;
            for text in patterns.into_vec() {
                let text = expand(&text, macros);
                let pattern = if text.contains("{var}") || text.contains("{cb}") {
                    Pattern::Template(text)
                } else {
                    Pattern::Fixed(Lazy::new(flags(&text)))
                };
                out.push(Condition { scope, negated, pattern });
            }
        }
        Ok(out)
    };
    Ok(Shape {
        pattern: regex(&file.pattern, macros),
        in_strings: file.strings,
        in_comments: file.comments,
        if_: conditions(file.if_)?,
        unless: conditions(file.unless)?,
        except: file.except.into_iter().map(conditions).collect::<Result<_, _>>()?,
        severity: file.severity.as_deref().map(severity).transpose()?,
        confidence: file.confidence,
        message: file.message,
        replace: file.replace,
        place: conditions(file.place)?.pop(),
    })
}

/// `^` and `$` are the ends of lines; words, digits and blanks are those of ASCII.
pub(crate) fn flags(pattern: &str) -> String {
    format!("(?m){}", ascii(pattern))
}

/// The same pattern with `\b`, `\w`, `\d` and `\s` of ASCII. Code is written in it, and the fast matchers do not know
/// where words of Unicode begin: with one letter beyond ASCII in a file they give up in favour of one that takes ten
/// times as long. Between a name and the parenthesis of its call may be a blank, as some write it.
fn ascii(pattern: &str) -> String {
    let anything = pattern.replace(r"[\s\S]", "(?s:.)");
    let mut out = String::with_capacity(anything.len() * 2);
    let mut chars = anything.chars().peekable();
    let mut depth = 0_usize;
    // Whether what comes before may be the end of a name.
    let mut name = false;
    while let Some(c) = chars.next() {
        let after_name = std::mem::replace(&mut name, !matches!(c, '(' | '|' | '^' | ' '));
        match c {
            '\\' => {
                let Some(escaped) = chars.next() else {
                    out.push(c);
                    break;
                };
                if depth == 0 {
                    // `\s*` and `\s+`: a blank is part of it.
                    name = !matches!(escaped, 's' | '(' | '{' | '[' | '.' | 'b' | 'A');
                    if escaped == '(' && after_name {
                        out.push_str(" ?");
                    }
                }
                let class = match escaped {
                    'w' => "0-9A-Za-z_",
                    'd' => "0-9",
                    's' => r"\x09-\x0d\x20",
                    'b' if depth == 0 => {
                        out.push_str(r"(?-u:\b)");
                        continue;
                    }
                    _ => {
                        out.extend([c, escaped]);
                        continue;
                    }
                };
                match depth {
                    0 => out.push_str(&format!("[{class}]")),
                    _ => out.push_str(class),
                }
            }
            '[' => {
                depth += 1;
                out.push(c);
                // A bracket that comes first is one of the set.
                for first in ['^', ']'] {
                    if chars.peek() == Some(&first) {
                        out.extend(chars.next());
                    }
                }
            }
            ']' => {
                depth = depth.saturating_sub(1);
                out.push(c);
            }
            '(' if depth == 0 => {
                out.push(c);
                if chars.peek() == Some(&'?') {
                    // `(?:`, `(?i)`, `(?P<name>`.
                    for c in chars.by_ref() {
                        out.push(c);
                        if matches!(c, ':' | ')' | '>') {
                            break;
                        }
                    }
                }
            }
            '*' | '+' | '?' if depth == 0 => {
                name = after_name;
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    out
}

fn regex(pattern: &str, macros: &BTreeMap<String, String>) -> Lazy {
    Lazy::new(flags(&expand(pattern, macros)))
}

/// Replaces `@name@` by what `classes.toml` says it stands for.
fn expand(pattern: &str, macros: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(pattern.len());
    expand_into(pattern, macros, MACRO_DEPTH, &mut out);
    out
}

/// How far macros may use one another.
const MACRO_DEPTH: usize = 8;

fn expand_into(pattern: &str, macros: &BTreeMap<String, String>, depth: usize, out: &mut String) {
    let mut rest = pattern;
    while let Some(at) = rest.find('@') {
        let inner = &rest[at + 1..];
        let used = inner.split_once('@').and_then(|(name, after)| Some((macros.get(name)?, after)));
        match used.filter(|_| depth > 0) {
            Some((text, after)) => {
                out.push_str(&rest[..at]);
                out.push_str("(?:");
                expand_into(text, macros, depth - 1, out);
                out.push(')');
                rest = after;
            }
            None => {
                out.push_str(&rest[..=at]);
                rest = inner;
            }
        }
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_in_ascii() {
        assert_eq!(
            ascii(r"\bverify\s*=\s*(\w+)"),
            r"(?-u:\b)verify[\x09-\x0d\x20]*=[\x09-\x0d\x20]*([0-9A-Za-z_]+)"
        );
        assert_eq!(ascii(r"[^\w.\-\]]\d"), r"[^0-9A-Za-z_.\-\]][0-9]");
        assert_eq!(ascii(r"[]\w][\s\S]*?\\b"), r"[]0-9A-Za-z_](?s:.)*?\\b");
        assert_eq!(ascii(r"wrap\("), r"wrap ?\(");
        assert_eq!(ascii(r"(?:a|b)\(\(|x\s*\(|[(]"), r"(?:a|b) ?\(\(|x[\x09-\x0d\x20]*\(|[(]");
        let regex = Regex::new(&flags(r"\bkey\s*:\s*(\w+)")).unwrap();
        assert!(regex.is_match("é key: größe") && !regex.is_match("monkey: x"));
    }
}
