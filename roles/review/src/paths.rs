//! Which way leads to a place: the branches around it, those before it that leave, and the arms that exclude it.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use crate::gate::{DEPTH, MOST, MOST_IN_FILE, is_set, words};
use crate::scope::innermost;
use crate::source::{Source, blank};
use crate::syntax::{Branch, Function};

impl Source<'_> {
    /// Conditions of the branches around a match, within its function, one a line.
    pub(crate) fn guards(&self, at: &Range<usize>) -> String {
        if self.kind.language().is_none() {
            return match ["{{", "{%", "<%"].iter().any(|t| self.text.contains(t)) {
                true => self.template_guards(at),
                false => String::new(),
            };
        }
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

    /// Conditions of a template around a place in configuration: Go's `{{ if }}`, Jinja's `{% if %}`, `<% if %>` of ERB.
    fn template_guards(&self, at: &Range<usize>) -> String {
        static TAG: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r"(?:\{\{|\{%)[-+]?\s*(?P<word>if|else\s+if|elif|elsif|else|end|endif|range|with|for|endfor|define|block|",
                r"unless|endunless|macro|endmacro|case|endcase)\b(?P<rest>[^{}%]*)[-+]?(?:\}\}|%\})|",
                r"<%-?\s*(?P<erb>if|unless|else|elsif|end)\b(?P<cond>[^%]*)-?%>|<%-?[^%=][^%]*\bdo\b\s*(?:\|[^|]*\|)?\s*-?(?P<do>%>)"
            ))
            .ok()
        });
        let Some(tag) = TAG.as_ref() else { return String::new() };
        let mut open: Vec<String> = Vec::new();
        for found in tag.captures_iter(&self.text[..at.start]) {
            let rest = found.name("rest").or(found.name("cond")).map_or("", |m| m.as_str()).trim();
            let word = found.name("word").or(found.name("erb")).map_or("do", |m| m.as_str());
            match word {
                "if" => open.push(rest.to_owned()),
                "unless" => open.push(format!("not {rest}")),
                "range" | "with" | "for" | "define" | "block" | "macro" | "case" | "do" => {
                    open.push(String::new());
                }
                "end" | "endif" | "endfor" | "endunless" | "endmacro" | "endcase" => {
                    open.pop();
                }
                // Of what is not so the condition says the same.
                _ => {
                    if let Some(last) = open.last_mut() {
                        *last = format!("{rest} else {last}");
                    }
                }
            }
            open.truncate(MOST);
        }
        open.retain(|c| !c.is_empty());
        open.join("\n")
    }

    /// What a condition that is one variable is made of, if that asks whether something is there: a file, a
    /// setting. Taken for the condition itself.
    fn whether_there(&self, condition: &str, at: &Range<usize>) -> Option<String> {
        static ASKS: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r#"(?i)exists|is_?file\b|\baccess\s*\(|\bstat\s*\(|[!=]==?\s*(?:""|''|nil\b|null\b|undefined\b|None\b)|"#,
                r"is\s+not\s+None|&&|\band\b|!!|\bBoolean\s*\(|\bbool\s*\(|is_?(?:null|none|empty)|isset|\.present\?|is_some\(|",
                // Or whether a setting is on, which it is not unless somebody says so.
                r#"env\w*[\[.(][^;]*[!=]==?\s*["'`](?:true|1|yes|on)|unwrap_or\(\s*false|unwrap_or_default|,\s*(?:default\s*=\s*)?["']?false["']?\s*\)|(?:\|\||\?\?)\s*false\b"#
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
        let (name, negated) = asked_about(condition);
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
        let mut functions = self.parts.functions.iter().filter(|f| within(f));
        functions.any(|f| {
            let head = self.text.get(f.range.start..f.body).unwrap_or_default();
            // Where it is given a value on the way, the default is not what counts.
            let before = self.code.get(f.body..branch.condition.start).unwrap_or_default();
            default_of(head, name) == Some(wanted) && !is_assigned(before, name)
        })
    }

    /// The function around a match without what excludes it: what that does does not happen when this does.
    pub(crate) fn reaching(&self, at: &Range<usize>, then: bool) -> String {
        let function = self.function(at).unwrap_or(0..self.raw.len());
        let from = if then { at.end } else { function.start };
        let text = blank(&self.text, &self.excluded(at));
        text.get(from..function.end.max(from)).unwrap_or_default().to_owned()
    }

    /// The file without what excludes a place, and without what is called from there only.
    pub(crate) fn along(&self, at: &Range<usize>) -> Cow<'_, str> {
        let mut out = self.excluded(at);
        let functions = &self.parts.functions;
        if functions.len() > MOST_IN_FILE {
            return blank(&self.text, &out);
        }
        if let Some(own) = self.function_around(at) {
            // Who calls it excludes more, if that is one only.
            let mut calls = self.calls_in(0..self.code.len(), own).take(2);
            if let (Some(call), None) = (calls.next(), calls.next()) {
                out.extend(self.excluded(&call));
            }
        }
        let mut gone = vec![false; functions.len()];
        for _ in 0..DEPTH {
            let mut more = Vec::new();
            for (f, gone) in functions.iter().zip(&mut gone) {
                let around = f.range.start <= at.start && at.end <= f.range.end;
                if *gone || around || f.name.is_empty() {
                    continue;
                }
                // Nearly none is called from there, and to find all calls takes a look at the whole file.
                let named = |o: &Range<usize>| {
                    self.code.get(o.clone()).is_some_and(|t| t.contains(&f.name))
                };
                if !out.iter().any(named) {
                    continue;
                }
                let mut calls = self.calls_in(0..self.code.len(), f).take(MOST).peekable();
                let excluded =
                    |c: Range<usize>| out.iter().any(|o| o.start <= c.start && c.end <= o.end);
                if calls.peek().is_some() && calls.all(excluded) {
                    *gone = true;
                    more.push(f.body..f.range.end);
                }
            }
            out.extend(more);
        }
        blank(&self.text, &out)
    }

    /// What does not happen in its function when a place is reached: the other arms of the branches around it, and those
    /// before it that leave.
    pub(crate) fn excluded(&self, at: &Range<usize>) -> Vec<Range<usize>> {
        let function = self.function(at).unwrap_or(0..self.raw.len());
        let mut out = Vec::new();
        for b in self.parts.branches.iter().filter(|b| b.range.start >= function.start) {
            let otherwise = b.otherwise.filter(|o| *o >= b.condition.end);
            if b.range.start <= at.start && at.end <= b.range.end {
                match otherwise {
                    Some(o) if at.start >= o => out.push(b.condition.end..o),
                    Some(o) => out.push(o..b.range.end),
                    None => {}
                }
            } else if b.range.end <= at.start {
                let body = b.condition.end..otherwise.unwrap_or(b.range.end);
                if self.ends_by_leaving(&body) {
                    out.push(body);
                }
            }
        }
        for (arm, all) in self.parts.arms.iter().filter(|(_, all)| all.start >= function.start) {
            if arm.start <= at.start && at.end <= arm.end {
                out.extend([all.start..arm.start, arm.end..all.end]);
            }
        }
        out
    }

    /// Whether the last statement of a block leaves the function.
    fn ends_by_leaving(&self, body: &Range<usize>) -> bool {
        static LEAVES: LazyLock<Option<Regex>> = LazyLock::new(|| {
            Regex::new(concat!(
                r"\A(?:(?:return|throw|raise|panic!?|bail!|die|exit|abort|error)\b|(?:[\w.:]*[.:])?(?:exit|Exit|abort)!?\s*\(|",
                r"[\w.]*[fF]atal\w*(?:\([^)]*\)\.\w+)*\(|[\w.]*[pP]anic\w*\()"
            ))
            .ok()
        });
        let statements = self.parts.statements.iter();
        let within = statements.filter(|s| body.start <= s.start && s.end <= body.end);
        let last = within.max_by_key(|s| (s.end, std::cmp::Reverse(s.start)));
        let Some(last) = last else { return false };
        // One that is in a branch of its own is not always reached.
        let mut inner = self.parts.branches.iter().map(|b| &b.range);
        if inner.any(|b| {
            body.start <= b.start && b.end <= body.end && b.start <= last.start && last.end <= b.end
        }) {
            return false;
        }
        let text = self.code.get(last.clone()).unwrap_or_default();
        LEAVES.as_ref().is_some_and(|r| r.is_match(text.trim_start_matches(['{', ' ', '\n'])))
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

/// The name that a condition is about, and whether it holds where that is not there: `not x`, `x is None`, `x != null`.
fn asked_about(condition: &str) -> (&str, bool) {
    const ABSENT: [&str; 6] =
        [" is None", " == None", " === null", " == null", " === undefined", " == undefined"];
    const PRESENT: [&str; 6] =
        [" is not None", " != None", " !== null", " != null", " !== undefined", " != undefined"];
    if let Some(name) = ABSENT.iter().find_map(|a| condition.strip_suffix(a)) {
        return (name.trim(), true);
    }
    if let Some(name) = PRESENT.iter().find_map(|p| condition.strip_suffix(p)) {
        return (name.trim(), false);
    }
    match condition.strip_prefix("not ").or(condition.strip_prefix('!')) {
        Some(rest) => (rest.trim(), true),
        None => (condition, false),
    }
}

/// Whether a variable is set in `text`.
fn is_assigned(text: &str, name: &str) -> bool {
    words(text, name).any(|w| {
        let rest = text[w.end..].trim_start_matches([' ', '\t']);
        let or_else = rest.starts_with("||=") || rest.starts_with("??=");
        !text[..w.start].ends_with('.') && (or_else || is_set(rest))
    })
}

/// What a parameter is unless the caller says, as a condition: `head` is the signature of a function.
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
        // `x=True`, `x: bool = True`, `x = true`, `x: true`; what is not there is not so.
        let value = rest.split([',', ')', '\n']).next().unwrap_or_default();
        let value = value.rsplit(['=', ':']).next().unwrap_or_default().trim();
        match value {
            "True" | "true" | "TRUE" => return Some(true),
            "False" | "false" | "FALSE" | "None" | "null" | "nil" | "undefined" => {
                return Some(false);
            }
            _ => {}
        }
    }
    None
}
