//! Which way leads to a place: the branches around it, those before it that leave, and the arms that exclude it.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use crate::scope::innermost;
use crate::source::{Source, blank};
use crate::syntax::{Branch, Function};

impl Source<'_> {
    /// Conditions of the branches around a match, within its function, one a line.
    pub(crate) fn guards(&self, at: &Range<usize>) -> String {
        let function = self.function(at).unwrap_or(0..self.raw.len());
        let mut out = String::new();
        for b in &self.parts.branches {
            if b.range.start >= function.start
                && b.range.start <= at.start
                && at.end <= b.range.end
                && !(b.condition.start <= at.start && at.end <= b.condition.end)
                && !self.taken_by_default(b, at)
            {
                let condition = &self.text[b.condition.clone()];
                if b.arm && !condition.starts_with("case") {
                    out.push_str("case ");
                }
                if let Some(subject) = &b.subject {
                    out.push_str(self.text.get(subject.clone()).unwrap_or_default());
                    out.push_str(" is ");
                }
                match self.whether_there(condition, at) {
                    Some(made) => out.push_str(&made),
                    None => out.push_str(condition),
                }
                out.push('\n');
            }
        }
        out
    }

    /// What a condition that is one variable is made of, if that asks whether something is there: a file, a
    /// setting. Taken for the condition itself.
    fn whether_there(&self, condition: &str, at: &Range<usize>) -> Option<String> {
        static ASKS: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r#"(?i)exists|is_?file\b|\baccess\s*\(|\bstat\s*\(|[!=]==?\s*(?:""|''|nil\b|null\b|undefined\b|None\b)|"#,
                r"is\s+not\s+None|&&|\band\b|!!|\bBoolean\s*\(|\bbool\s*\(|is_?(?:null|none|empty)|isset|\.present\?|is_some\("
            ))
            .ok()
        });
        let name = condition.trim().trim_start_matches("not ").trim_matches(['!', '(', ')', ' ']);
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return None;
        }
        let made = self.value(name, at);
        let (_, made) = made.trim().split_once('=')?;
        ASKS.as_ref()?.is_match(made).then(|| made.replace('\n', " "))
    }

    /// Conditions under which a match is not reached, as a branch before it has left its function, one a line.
    pub(crate) fn exits(&self, at: &Range<usize>) -> String {
        let function = self.function(at).unwrap_or(0..self.raw.len());
        let mut out = String::new();
        for b in &self.parts.branches {
            if b.range.start >= function.start
                && b.range.end <= at.start
                && leaves(&self.code[b.condition.end..b.range.end])
                && never_closes(&self.code[b.range.end..at.start])
            {
                out.push_str(&self.text[b.condition.clone()]);
                out.push('\n');
            }
        }
        out
    }

    /// Whether the arm around the match is the one that is taken unless the caller says otherwise: its condition is a
    /// parameter with a default. Such a branch guards nothing.
    fn taken_by_default(&self, branch: &Branch, at: &Range<usize>) -> bool {
        let condition = self.text[branch.condition.clone()].trim();
        if condition.starts_with("hasattr(") {
            // What a library offers is no choice of the caller.
            return true;
        }
        let condition = condition.trim_matches(['(', ')', ' ']);
        let (name, negated) = match condition.strip_prefix("not ").or(condition.strip_prefix('!')) {
            Some(rest) => (rest.trim(), true),
            None => (condition, false),
        };
        let (name, member) = match name.strip_prefix("self.").or(name.strip_prefix("this.")) {
            Some(rest) => (rest.trim_start_matches('_'), true),
            None => (name, false),
        };
        if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return false;
        }
        let otherwise = branch.otherwise.is_some_and(|o| at.start >= o);
        let wanted = negated == otherwise;
        let class = innermost(&self.parts.classes, at);
        let within = |f: &Function| match member {
            true => {
                class.as_ref().is_some_and(|c| c.start <= f.range.start && f.range.end <= c.end)
            }
            false => f.range.start <= at.start && at.end <= f.range.end,
        };
        let mut heads =
            self.parts.functions.iter().filter(|f| within(f)).map(|f| f.range.start..f.body);
        heads.any(|head| self.text.get(head).is_some_and(|h| default_of(h, name) == Some(wanted)))
    }

    /// The function around a match without the other arms of the branches that it is in: what they do does not
    /// happen when this does.
    pub(crate) fn reaching(&self, at: &Range<usize>, then: bool) -> String {
        let function = self.function(at).unwrap_or(0..self.raw.len());
        let other = |b: &Branch| {
            let otherwise = b.otherwise.filter(|o| *o >= b.condition.end)?;
            match at.start >= otherwise {
                true => Some(b.condition.end..otherwise),
                false => Some(otherwise..b.range.end),
            }
        };
        let around = |b: &&Branch| {
            b.range.start >= function.start && b.range.start <= at.start && at.end <= b.range.end
        };
        let arms: Vec<_> = self.parts.branches.iter().filter(around).filter_map(other).collect();
        let from = if then { at.end } else { function.start };
        blank(&self.text, &arms).get(from..function.end.max(from)).unwrap_or_default().to_owned()
    }
}

/// Whether what follows a condition, up to the end of its first block, always leaves.
fn leaves(body: &str) -> bool {
    const WORDS: [&str; 8] =
        ["return", "throw", "panic", "continue", "break", "goto", "os.Exit", "log.Fatal"];
    let mut depth = 0usize;
    for (i, c) in body.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return false,
            '}' => depth -= 1,
            _ if depth <= 1 && c.is_ascii_alphabetic() => {
                let starts = !body[..i].ends_with(|p: char| p.is_alphanumeric() || p == '_');
                if starts && WORDS.iter().any(|w| body[i..].starts_with(w)) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// Whether no block that was open before `text` ends in it.
fn never_closes(text: &str) -> bool {
    let mut depth = 0usize;
    for c in text.bytes() {
        match c {
            b'{' => depth += 1,
            b'}' if depth == 0 => return false,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    true
}

/// What a boolean parameter is unless the caller says: `head` is the signature of a function.
fn default_of(head: &str, name: &str) -> Option<bool> {
    for (i, _) in head.match_indices(name) {
        let before = head[..i].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &head[i + name.len()..];
        if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        // `x=True`, `x: bool = True`, `x = true`, `x: true`.
        let value = rest.split([',', ')', '\n']).next().unwrap_or_default();
        let value = value.rsplit(['=', ':']).next().unwrap_or_default().trim();
        match value {
            "True" | "true" | "TRUE" => return Some(true),
            "False" | "false" | "FALSE" => return Some(false),
            _ => {}
        }
    }
    None
}
