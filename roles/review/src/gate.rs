//! What the rest of a file says about a place: who is called from there, who uses it, and under which
//! conditions. All by names within one file: what other files do is not known here.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use crate::scope::{Scope, innermost};
use crate::source::Source;
use crate::syntax::Function;

/// How far calls are followed.
pub(crate) const DEPTH: usize = 2;
/// How far uses are followed: a local variable on the way is a step of its own.
const USES: usize = 3;
/// Most functions that are gathered; a file with more tells nothing definite.
pub(crate) const MOST: usize = 40;
/// In files with more functions than this nobody looks for who calls whom: every pair would have to be compared.
pub(crate) const MOST_IN_FILE: usize = 600;

pub(crate) fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Where `name` stands as a word of its own.
pub(crate) fn words<'t>(text: &'t str, name: &'t str) -> impl Iterator<Item = Range<usize>> + 't {
    let bytes = text.as_bytes();
    text.match_indices(name).filter_map(move |(i, m)| {
        let end = i + m.len();
        let before = i == 0 || !is_word(bytes[i - 1]);
        let after = end >= bytes.len() || !is_word(bytes[end]);
        (before && after && !name.is_empty()).then_some(i..end)
    })
}

/// Whether what follows a name gives it a value.
pub(crate) fn is_set(rest: &str) -> bool {
    rest.starts_with(":=")
        || rest.starts_with('=') && !rest.starts_with("==") && !rest.starts_with("=>")
}

/// Names that an interface gives: whoever implements it has them, and nobody calls them by name.
fn is_hook(name: &str) -> bool {
    matches!(
        name,
        "checkServerTrusted" | "checkClientTrusted" | "getAcceptedIssuers" | "isTrusted" | "verify"
    )
}

impl Source<'_> {
    /// Where a function is called, or handed on, in a part of the file.
    pub(crate) fn calls_in<'s>(
        &'s self,
        part: Range<usize>,
        function: &'s Function,
    ) -> impl Iterator<Item = Range<usize>> + 's {
        let text = self.code.get(part.clone()).unwrap_or_default();
        words(text, &function.name).filter_map(move |w| {
            let next = text[w.end..].trim_start().bytes().next();
            let reference = text[..w.start].ends_with("::");
            let call = part.start + w.start..part.start + w.end;
            let inside = call.start >= function.range.start && call.end <= function.range.end;
            // A function of the same name elsewhere is no call of this one.
            let declares = || {
                let mut others = self.parts.functions.iter().filter(|f| f.name == function.name);
                others.any(|f| f.range.start <= call.start && call.start < f.body)
            };
            let used = reference || matches!(next, Some(b'(' | b'<' | b',' | b')' | b';'));
            (!inside && used && !declares()).then_some(call)
        })
    }

    fn mentions(&self, part: &Range<usize>, function: &Function) -> bool {
        self.calls_in(part.clone(), function).next().is_some()
    }

    fn callees(&self, part: Range<usize>, depth: usize, seen: &mut BTreeSet<usize>) {
        if self.parts.functions.len() > MOST_IN_FILE {
            return;
        }
        for (i, f) in self.parts.functions.iter().enumerate() {
            if f.name.is_empty() || seen.len() >= MOST || seen.contains(&i) {
                continue;
            }
            if self.mentions(&part, f) {
                seen.insert(i);
                if depth > 1 {
                    self.callees(f.body..f.range.end, depth - 1, seen);
                }
            }
        }
    }

    fn bodies(&self, first: Option<Range<usize>>, more: &BTreeSet<usize>) -> String {
        let mut out = String::new();
        let more = more.iter().map(|i| {
            let f = &self.parts.functions[*i];
            f.body..f.range.end
        });
        for range in first.into_iter().chain(more) {
            out.push_str(self.text.get(range).unwrap_or_default());
            out.push('\n');
        }
        out
    }

    /// A body with those of the functions of this file that it calls.
    pub(crate) fn reach(&self, body: Range<usize>) -> String {
        let mut seen = BTreeSet::new();
        self.callees(body.clone(), DEPTH, &mut seen);
        self.bodies(Some(body), &seen)
    }

    /// The function around a place, what it calls, who calls it, and what these call.
    pub(crate) fn family(&self, at: &Range<usize>) -> String {
        let Some(own) = self.function_around(at) else { return self.text.to_string() };
        let mut seen = BTreeSet::new();
        self.callees(own.range.clone(), DEPTH, &mut seen);
        let callers: Vec<&Function> = self
            .parts
            .functions
            .iter()
            .take(MOST_IN_FILE)
            .filter(|f| !f.name.is_empty() && f.range != own.range && self.mentions(&f.range, own))
            .take(MOST)
            .collect();
        let mut out = self.bodies(Some(own.range.clone()), &seen);
        for caller in callers {
            let mut more = BTreeSet::new();
            self.callees(caller.range.clone(), 1, &mut more);
            out.push_str(&self.bodies(Some(caller.range.clone()), &more));
        }
        out
    }

    /// What a variable is made of, in the function around a place, else in the file: the statements that assign to it,
    /// and those that begin with it.
    pub(crate) fn value(&self, name: &str, at: &Range<usize>) -> String {
        let name = name.trim();
        let makes = |w: &Range<usize>| {
            let rest = self.code[w.end..].trim_start();
            // `name: Type = …`, `name Type = …`, `name.field = …`, `name->set(…)`.
            let typed = rest.split_once('=').is_some_and(|(head, tail)| {
                head.len() < 60
                    && !tail.starts_with(['=', '>'])
                    && head.bytes().all(|b| is_word(b) || b" :.<>[]*&?".contains(&b))
            });
            is_set(rest) || rest.starts_with(['.', '[']) || rest.starts_with("->") || typed
        };
        let within = |range: Range<usize>| {
            let mut out = String::new();
            let Some(part) = self.code.get(range.clone()) else { return out };
            for w in words(part, name).take(MOST) {
                let w = range.start + w.start..range.start + w.end;
                if makes(&w) {
                    let statement = self.range(Scope::Statement, &w, None).unwrap_or(w);
                    out.push_str(self.text.get(statement).unwrap_or_default());
                    out.push('\n');
                }
            }
            out
        };
        let local = self.function_around(at).map(|f| within(f.range.clone())).unwrap_or_default();
        if local.is_empty() { within(0..self.code.len()) } else { local }
    }

    pub(crate) fn function_around(&self, at: &Range<usize>) -> Option<&Function> {
        self.parts
            .functions
            .iter()
            .filter(|f| f.range.start <= at.start && at.end <= f.range.end && !f.name.is_empty())
            .min_by_key(|f| f.range.end - f.range.start)
    }

    /// Conditions on the way to a place, one a line: of the branches around it, of those before it that leave
    /// the function, and of every use of what it is part of; of no use if one of them has none.
    pub(crate) fn gate(&self, at: &Range<usize>) -> String {
        let mut out = self.guards(at);
        out.push_str(&self.exits(at));
        if let Some(uses) = self.used_under(at, USES) {
            out.push_str(&uses);
        }
        out
    }

    /// The conditions under which everything is used that a place is part of. `None` if there is a use without
    /// one, or none at all.
    fn used_under(&self, at: &Range<usize>, depth: usize) -> Option<String> {
        if depth == 0 {
            return None;
        }
        let (name, declared) = self.used_as(at)?;
        let mut out = String::new();
        for word in words(&self.code, &name) {
            if word.start >= declared.start && word.end <= declared.end {
                continue;
            }
            let line_start = self.code[..word.start].rfind('\n').map_or(0, |i| i + 1);
            if self.code[line_start..word.start].trim_start().starts_with("import") {
                continue;
            }
            let mut conditions = self.guards(&word);
            conditions.push_str(&self.exits(&word));
            if conditions.is_empty() {
                conditions = self.used_under(&word, depth - 1)?;
            }
            out.push_str(&conditions);
        }
        (!out.is_empty()).then_some(out)
    }

    /// The innermost thing with a name around a place that is used somewhere else in the file: a variable, a
    /// class, a function. With where it is declared.
    fn used_as(&self, at: &Range<usize>) -> Option<(String, Range<usize>)> {
        static ASSIGNED: LazyLock<Option<Regex>> =
            LazyLock::new(|| Regex::new(r"(\w+)\s*(?::\s*[\w<>?.\[\]]+\s*)?=[^=>]").ok());
        static CLASS: LazyLock<Option<Regex>> =
            LazyLock::new(|| Regex::new(r"\b(?:class|record|struct|object|enum)\s+(\w+)").ok());
        let mut entities: Vec<(String, Range<usize>)> = Vec::new();
        if let Some(statement) = innermost(&self.parts.statements, at) {
            let head = self.code.get(statement.start..at.start).unwrap_or_default();
            if let Some(found) = ASSIGNED.as_ref().and_then(|r| r.captures(head)) {
                entities.push((found[1].to_owned(), statement));
            }
        }
        for class in &self.parts.classes {
            if class.start <= at.start && at.end <= class.end {
                let head = self.code.get(class.clone()).unwrap_or_default();
                let head = head.split('{').next().unwrap_or_default();
                if let Some(found) = CLASS.as_ref().and_then(|r| r.captures(head)) {
                    entities.push((found[1].to_owned(), class.clone()));
                }
            }
        }
        for f in &self.parts.functions {
            if f.range.start <= at.start
                && at.end <= f.range.end
                && !f.name.is_empty()
                && !is_hook(&f.name)
            {
                entities.push((f.name.clone(), f.range.clone()));
            }
        }
        entities.sort_by_key(|(_, r)| r.end - r.start);
        entities.into_iter().find(|(name, declared)| {
            words(&self.code, name).any(|w| w.start < declared.start || w.end > declared.end)
        })
    }
}
