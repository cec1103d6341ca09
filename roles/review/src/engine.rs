//! Matching the rules against one file.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

use regex::Regex;

use crate::comments::without_comments;
use crate::inner;
use crate::issue::{Edit, Issue};
use crate::kind::Kind;
use crate::layout;
use crate::literals::Words;
use crate::meaning::meaning;
use crate::plain::plain;
use crate::rule::{Catalogue, Condition, Lazy, Pattern, Rule, Shape, flags};
use crate::scope::Scope;
use crate::source::{Context, Source};
use crate::suppress;

/// The rules, arranged by the kind of file that they are about.
pub(crate) struct Engine<'c> {
    catalogue: &'c Catalogue,
    by_kind: HashMap<Kind, Selected>,
}

struct Selected {
    /// `(rule, shape)`.
    shapes: Vec<(usize, usize)>,
    /// Their words, gathered when the first file of that kind comes.
    words: OnceLock<Words>,
}

/// Most matches of one shape that are looked at in one file.
const MAX_MATCHES: usize = 500;

impl<'c> Engine<'c> {
    pub(crate) fn new(catalogue: &'c Catalogue) -> Self {
        let mut by_kind: HashMap<Kind, Selected> = HashMap::new();
        for (r, rule) in catalogue.rules.iter().enumerate() {
            for kind in &rule.kinds {
                let selected = by_kind
                    .entry(*kind)
                    .or_insert_with(|| Selected { shapes: Vec::new(), words: OnceLock::new() });
                selected.shapes.extend((0..rule.shapes.len()).map(|s| (r, s)));
            }
        }
        Self { catalogue, by_kind }
    }

    /// The shapes that may match. In configuration whose words are there: whether they match is seen once
    /// comments are out of the way, which costs nothing. Source has to be parsed for that, so there the text as it
    /// stands decides, and what is left of it without what looks like comments.
    fn candidates<'s>(
        &'s self,
        kind: Kind,
        selected: &'s Selected,
        text: &str,
    ) -> Vec<(&'s Rule, &'s Shape)> {
        let shape = |(r, s): &(usize, usize)| {
            let rule = &self.catalogue.rules[*r];
            (rule, &rule.shapes[*s])
        };
        let words = selected.words.get_or_init(|| {
            Words::new(selected.shapes.iter().map(|at| {
                let s = shape(at).1;
                std::iter::once(s.pattern.as_str())
                    .chain(s.if_.iter().filter_map(Condition::of_text))
            }))
        });
        let mut out: Vec<(&Rule, &Shape)> =
            words.candidates(text).into_iter().map(|i| shape(&selected.shapes[i])).collect();
        if kind.language().is_some() && !out.is_empty() {
            let plain = plain(kind, Cow::Borrowed(text));
            let text: &str = &plain;
            let bare = OnceCell::new();
            // Shapes of several rules have one pattern.
            let mut known: HashMap<&str, bool> = HashMap::new();
            out.retain(|(_, s)| {
                if let Some(known) = known.get(s.pattern.as_str()).filter(|_| !s.in_comments) {
                    return *known;
                }
                let matches = |text: &str| s.pattern.get().is_some_and(|p| p.is_match(text));
                // A comment may stand between two words, or behind the last one.
                let (bare, unsure) = bare.get_or_init(|| without_comments(kind, text));
                let found =
                    !s.in_comments && matches(bare) || (s.in_comments || *unsure) && matches(text);
                if !s.in_comments {
                    known.insert(s.pattern.as_str(), found);
                }
                found
            });
        }
        out
    }

    /// Every finding in one file. `Err` if its syntax cannot be followed at all.
    pub(crate) fn review(
        &self,
        path: &str,
        kind: Kind,
        text: &str,
        today: &str,
    ) -> Result<Vec<Issue>, String> {
        let mut out = self.one(path, kind, text)?;
        let own = out.len();
        self.within(path, kind, text, inner::DEPTH, &mut out)?;
        if out.len() > own {
            // Much of what is in an inner file is found in the outer one too.
            settle(&mut out);
        }
        let starts = match kind {
            Kind::Yaml if !out.is_empty() => layout::documents(text),
            _ => Vec::new(),
        };
        let document = |line: usize| starts.partition_point(|s| *s <= line);
        let same_document = |a, b| document(a) == document(b);
        suppress::apply(text, &same_document, &mut out, today);
        Ok(out)
    }

    /// What is in the files within a file.
    fn within(
        &self,
        path: &str,
        kind: Kind,
        text: &str,
        depth: usize,
        out: &mut Vec<Issue>,
    ) -> Result<(), String> {
        if depth == 0 {
            return Ok(());
        }
        for inner in inner::inner(kind, text) {
            let mut found = self.one(path, inner.kind, &inner.text)?;
            self.within(path, inner.kind, &inner.text, depth - 1, &mut found)?;
            for mut issue in found {
                if inner.one_line {
                    (issue.line, issue.end_line) = (1, 1);
                }
                issue.line += inner.first_line - 1;
                issue.end_line += inner.first_line - 1;
                // Places in the inner text are none in the file.
                issue.edit = None;
                out.push(issue);
            }
        }
        Ok(())
    }

    fn one(&self, path: &str, kind: Kind, text: &str) -> Result<Vec<Issue>, String> {
        let Some(selected) = self.by_kind.get(&kind) else { return Ok(Vec::new()) };
        let mut candidates = self.candidates(kind, selected, text);
        candidates.retain(|(rule, _)| {
            rule.path.as_ref().and_then(Lazy::get).is_none_or(|p| p.is_match(path))
        });
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let source = Source::new(path, kind, text).ok_or("the parser gave up on it")?;
        let mut out: Vec<Issue> = Vec::new();
        for (rule, s) in candidates {
            shape(rule, s, &source, &mut out);
        }
        settle(&mut out);
        Ok(out)
    }
}

fn shape(rule: &Rule, shape: &Shape, source: &Source<'_>, out: &mut Vec<Issue>) {
    let view: &str = match (shape.in_comments, shape.in_strings) {
        (true, _) => source.raw,
        (false, true) => &source.text,
        (false, false) => &source.code,
    };
    let Some(pattern) = shape.pattern.get() else { return };
    for found in pattern.captures_iter(view).take(MAX_MATCHES) {
        let Some(whole) = found.get(0) else { continue };
        let mut place = found.name("at").unwrap_or(whole).range();
        let means = match (found.name("key"), found.name("val")) {
            (Some(key), Some(value)) => {
                // The pattern begins with a word somewhere in the name.
                let name = source.name(&key.range());
                place.start = place.start.min(key.end() - name.len());
                meaning(name, value.as_str())
            }
            _ => "",
        };
        // What a string holds is no comment.
        if shape.in_comments && source.in_string(place.start) {
            continue;
        }
        // Conditions look from the place that decides.
        let at = place.clone();
        let callback = found.name("cb").map(|m| m.range());
        let names = Names {
            var: found.name("var").map_or("", |m| m.as_str()),
            cb: found.name("cb").map_or("", |m| m.as_str()),
        };
        let holds = |c: &Condition| {
            let mut part = match c.scope {
                Scope::Whole => view.get(whole.range()).unwrap_or_default().into(),
                Scope::Value => source.value(names.var, &at).into(),
                Scope::Meaning => means.into(),
                _ => source.part(c.scope, &at, callback.clone()),
            };
            // Of a shape that is in a comment, so is what it asks of its line.
            if shape.in_comments && matches!(c.scope, Scope::Match | Scope::Line) {
                let raw = source.range(c.scope, &at, callback.clone());
                part = raw.and_then(|r| source.raw.get(r)).unwrap_or_default().into();
            }
            let matches = match &c.pattern {
                Pattern::Fixed(regex) => regex.get().is_some_and(|r| r.is_match(&part)),
                Pattern::Template(text) => names.fill(text).is_some_and(|r| r.is_match(&part)),
            };
            matches != c.negated
        };
        if !shape.if_.iter().all(holds)
            || shape.unless.iter().any(holds)
            || shape.except.iter().any(|group| group.iter().all(holds))
        {
            continue;
        }
        let reported = match &shape.place {
            None => place,
            Some(c) => names.find(c, source, &at, callback.clone()).unwrap_or(place),
        };
        out.push(issue(rule, shape, source, &reported));
    }
}

struct Names<'a> {
    var: &'a str,
    cb: &'a str,
}

impl Names<'_> {
    /// Where in its part of the file the condition's pattern is.
    fn find(
        &self,
        c: &Condition,
        source: &Source<'_>,
        at: &Range<usize>,
        callback: Option<Range<usize>>,
    ) -> Option<Range<usize>> {
        let part = source.range(c.scope, at, callback)?;
        let filled;
        let regex = match &c.pattern {
            Pattern::Fixed(regex) => regex.get()?,
            Pattern::Template(text) => {
                filled = self.fill(text)?;
                &filled
            }
        };
        let mut all = regex.find_iter(source.text.get(part.clone())?);
        let found = if c.scope == Scope::Before { all.last() } else { all.next() }?;
        Some(part.start + found.start()..part.start + found.end())
    }

    fn fill(&self, template: &str) -> Option<Regex> {
        let mut out = template.to_owned();
        for (name, value) in [("{var}", self.var), ("{cb}", self.cb)] {
            if out.contains(name) {
                // Without the group nothing is meant by it.
                if value.trim().is_empty() {
                    return None;
                }
                out = out.replace(name, &regex::escape(value.trim()));
            }
        }
        Regex::new(&flags(&out)).ok()
    }
}

fn issue(rule: &Rule, shape: &Shape, source: &Source<'_>, place: &Range<usize>) -> Issue {
    let (line, column) = source.position(place.start);
    let (end_line, end_column) = source.position(place.end);
    let mut context = Context::of(source.path);
    if context == Context::Production && source.in_tests(place.start) {
        context = Context::Test;
    }
    let mut severity = shape.severity.unwrap_or(rule.severity);
    if context != Context::Production || guarded_by_environment(source, place) {
        severity = severity.lowered();
    }
    // A default of a template stands where the template does.
    let as_written = source.raw.get(place.clone()) == source.text.get(place.clone());
    let edit = shape.replace.as_ref().filter(|_| as_written);
    let edit = edit.map(|text| Edit { range: place.clone(), text: text.clone() });
    Issue {
        message: shape.message.clone().unwrap_or_else(|| rule.title.clone()),
        confidence: shape.confidence.unwrap_or(rule.confidence),
        line,
        column,
        end_line,
        end_column,
        evidence: source.line(line).trim().chars().take(200).collect(),
        edit,
        ..Issue::of(rule, source.path, context, severity)
    }
}

/// Whether only development gets here; a guard that names production keeps its severity.
fn guarded_by_environment(source: &Source<'_>, place: &Range<usize>) -> bool {
    let guards = source.part(Scope::Guard, place, None).to_ascii_lowercase();
    let development = [
        "isdevelopment",
        "is_development",
        "isdev",
        "is_dev",
        "debug",
        "development",
        "\"dev\"",
        "'dev'",
    ];
    let inverted =
        ["!env.isdevelopment", "not settings.debug", "!debug", "not debug", "production"];
    development.iter().any(|d| guards.contains(d)) && !inverted.iter().any(|d| guards.contains(d))
}

/// One finding of a class a line: the worst.
fn settle(issues: &mut Vec<Issue>) {
    issues.sort_by(|a, b| {
        (a.line, &a.class.name, std::cmp::Reverse(a.severity), &a.rule).cmp(&(
            b.line,
            &b.class.name,
            std::cmp::Reverse(b.severity),
            &b.rule,
        ))
    });
    issues.dedup_by(|b, a| a.line == b.line && a.class.name == b.class.name);
}
