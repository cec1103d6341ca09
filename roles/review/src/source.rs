//! A file with its views and parts.

use std::borrow::Cow;
use std::ops::Range;

use crate::kind::Kind;
use crate::layout;
use crate::plain;
use crate::scope::{Scope, innermost};
use crate::syntax::{self, Parts};

/// Where a file belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// What runs.
    Production,
    /// Tests and their data.
    Test,
    /// Examples and documentation.
    Example,
}

impl Context {
    /// In lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Context::Production => "production",
            Context::Test => "test",
            Context::Example => "example",
        }
    }

    /// By the path: a directory or a suffix that says so.
    pub(crate) fn of(path: &str) -> Self {
        let lower = path.to_ascii_lowercase();
        let mut parts: Vec<&str> = lower.split('/').collect();
        let name = parts.pop().unwrap_or_default();
        let stem = name.split('.').next().unwrap_or_default();
        let test_directory = |d: &&str| {
            matches!(
                *d,
                "test"
                    | "tests"
                    | "testing"
                    | "testdata"
                    | "testutil"
                    | "testutils"
                    | "__tests__"
                    | "spec"
                    | "specs"
                    | "fixtures"
                    | "e2e"
                    | "mock"
                    | "mocks"
                    | "fakes"
                    | "androidtest"
                    | "integrationtest"
                    | "unittest"
                    | "testsuite"
                    | "functionaltest"
                    | "testfixtures"
                    | "jvmtest"
            )
        };
        let is_test = parts.iter().any(|d| {
            test_directory(d)
                || d.ends_with(".tests")
                || d.ends_with("-test")
                || d.ends_with("-tests")
                || d.ends_with("-testing")
                || d.ends_with("-testsuite")
                || d.starts_with("fake")
        }) || stem.ends_with("_test")
            || stem.starts_with("test_")
            || matches!(stem, "test" | "testing" | "testutil" | "testutils" | "test_util")
            || stem.ends_with("test") && name.ends_with(".java")
            || stem.ends_with("tests")
            || name.contains(".test.")
            || name.contains(".spec.")
            || name == "conftest.py";
        if is_test {
            return Context::Test;
        }
        let example = |d: &&str| {
            matches!(
                *d,
                "example"
                    | "examples"
                    | "sample"
                    | "samples"
                    | "demo"
                    | "demos"
                    | "docs"
                    | "doc"
                    | "tutorials"
            ) || d.ends_with(".samples")
        };
        // `com/example/…` is the name of a package.
        let names = |i: usize| i > 0 && matches!(parts[i - 1], "com" | "org" | "net" | "io");
        let shows =
            stem == "example" || parts.iter().enumerate().any(|(i, d)| example(d) && !names(i));
        if shows { Context::Example } else { Context::Production }
    }
}

/// A file, read.
pub(crate) struct Source<'a> {
    pub(crate) path: &'a str,
    pub(crate) kind: Kind,
    pub(crate) raw: &'a str,
    /// Comments blanked out; as long as `raw`.
    pub(crate) text: Cow<'a, str>,
    /// Comments and what strings hold blanked out.
    pub(crate) code: Cow<'a, str>,
    pub(crate) parts: Parts,
    lines: Vec<usize>,
    /// Where the lines of `text` begin, which are fewer where some go on in the next one.
    logical: Vec<usize>,
}

impl<'a> Source<'a> {
    /// `None` if its grammar gives up on it.
    pub(crate) fn new(path: &'a str, kind: Kind, raw: &'a str) -> Option<Self> {
        let starts = |text: &str| -> Vec<usize> {
            let ends = text.bytes().enumerate().filter(|(_, b)| *b == b'\n');
            std::iter::once(0).chain(ends.map(|(i, _)| i + 1)).collect()
        };
        let lines = starts(raw);
        let (parts, comments) = if kind.language().is_some() {
            let parts = syntax::parse(kind, raw)?;
            let comments = parts.comments.clone();
            (parts, comments)
        } else {
            (Parts::default(), layout::comments(kind, raw))
        };
        let continued = layout::continuations(kind, raw);
        let mut text = plain::plain(kind, blank(raw, &comments));
        // Fewer lines where some were put behind others.
        let mut logical = if kind.language().is_some() { lines.clone() } else { starts(&text) };
        if !continued.is_empty() {
            text = joined(&text, &continued);
            logical = starts(&text);
        }
        let code = if parts.strings.is_empty() {
            text.clone()
        } else {
            Cow::Owned(blank(&text, &parts.strings).into_owned())
        };
        Some(Self { path, kind, raw, text, code, parts, lines, logical })
    }

    /// Line and column from 1.
    pub(crate) fn position(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|l| *l <= at);
        let start = self.lines[line.saturating_sub(1)];
        (line, self.raw[start..at.min(self.raw.len())].chars().count() + 1)
    }

    /// The text of a line, from 1.
    pub(crate) fn line(&self, number: usize) -> &'a str {
        self.raw.lines().nth(number.saturating_sub(1)).unwrap_or_default()
    }

    fn line_range(&self, at: &Range<usize>, around: usize) -> Range<usize> {
        let lines = &self.logical;
        let first = lines.partition_point(|l| *l <= at.start).saturating_sub(1 + around);
        let last = lines.partition_point(|l| *l < at.end.max(at.start + 1)) + around;
        let end = lines.get(last).copied().unwrap_or(self.raw.len());
        lines[first]..end.max(lines[first])
    }

    /// The function around a match; closures belong to the function that they are in.
    pub(crate) fn function(&self, at: &Range<usize>) -> Option<Range<usize>> {
        self.parts
            .functions
            .iter()
            .filter(|f| f.range.start <= at.start && at.end <= f.range.end && !f.name.is_empty())
            .min_by_key(|f| f.range.end - f.range.start)
            .map(|f| f.range.clone())
    }

    fn closure(&self, at: &Range<usize>) -> Option<Range<usize>> {
        self.parts
            .functions
            .iter()
            .filter(|f| f.range.start <= at.start && at.end <= f.range.end)
            .min_by_key(|f| f.range.end - f.range.start)
            .map(|f| f.range.clone())
    }

    /// The text of the part of the file that a scope means; empty if there is none.
    pub(crate) fn part(
        &self,
        scope: Scope,
        at: &Range<usize>,
        callback: Option<Range<usize>>,
    ) -> Cow<'_, str> {
        match scope {
            Scope::Path => Cow::Borrowed(self.path),
            Scope::Keys => Cow::Owned(layout::keys(self.kind, &self.text, at.start)),
            Scope::Guard => Cow::Owned(self.guards(at)),
            Scope::Gate => Cow::Owned(self.gate(at)),
            Scope::Family => Cow::Owned(self.family(at)),
            Scope::Role => Cow::Borrowed(self.role(at)),
            Scope::Address => Cow::Borrowed(self.address(at)),
            Scope::Reach => {
                let body = self.body(at, callback).or_else(|| self.function(at));
                Cow::Owned(body.map(|b| self.reach(b)).unwrap_or_default())
            }
            Scope::Exits => Cow::Owned(self.exits(at)),
            Scope::Along => self.along(at),
            Scope::Reaching => Cow::Owned(self.reaching(at, false)),
            Scope::Then => Cow::Owned(self.reaching(at, true)),
            _ => {
                let range = self.range(scope, at, callback);
                Cow::Borrowed(range.and_then(|r| self.text.get(r)).unwrap_or_default())
            }
        }
    }

    /// The part of the file that a scope means, if it is one piece of it.
    pub(crate) fn range(
        &self,
        scope: Scope,
        at: &Range<usize>,
        callback: Option<Range<usize>>,
    ) -> Option<Range<usize>> {
        let whole = 0..self.raw.len();
        Some(match scope {
            Scope::Path
            | Scope::Keys
            | Scope::Guard
            | Scope::Reaching
            | Scope::Then
            | Scope::Along
            | Scope::Exits
            | Scope::Gate
            | Scope::Reach
            | Scope::Family
            | Scope::Value
            | Scope::Role
            | Scope::Meaning
            | Scope::Address => return None,
            Scope::Match | Scope::Whole => at.clone(),
            Scope::Line => self.line_range(at, 0),
            Scope::Around => {
                // What the next function does says nothing about this one.
                let lines = self.line_range(at, 4);
                match self.function(at) {
                    Some(f) => lines.start.max(f.start)..lines.end.min(f.end).max(at.end),
                    None => lines,
                }
            }
            Scope::Call => {
                innermost(&self.parts.calls, at).unwrap_or_else(|| self.line_range(at, 0))
            }
            Scope::Chain => self.chain(at),
            Scope::Literal => match self.kind {
                Kind::Xml => layout::tag(&self.text, at),
                _ => innermost(&self.parts.literals, at).unwrap_or_else(|| {
                    self.part_of_layout(at).unwrap_or_else(|| self.line_range(at, 0))
                }),
            },
            Scope::Statement => innermost(&self.parts.statements, at)
                // One that a closure around the match is part of says what the closure is for.
                .filter(|s| {
                    self.closure(at).is_none_or(|c| !(s.start <= c.start && c.end <= s.end))
                })
                .unwrap_or_else(|| self.line_range(at, 0)),
            Scope::Body => self.body(at, callback)?,
            Scope::Function => self.function(at).unwrap_or(whole),
            Scope::Closure => self.closure(at).unwrap_or(whole),
            Scope::Before => self.function(at).unwrap_or(whole).start..at.start,
            Scope::After => at.end..self.function(at).unwrap_or(whole).end.max(at.end),
            Scope::Class => innermost(&self.parts.classes, at).unwrap_or(whole),
            Scope::Block => self.part_of_layout(at).unwrap_or(whole),
            Scope::Document => layout::document(self.kind, &self.text, at),
            Scope::File => whole,
        })
    }

    /// The whole name that a range is a part of.
    pub(crate) fn name(&self, at: &Range<usize>) -> &str {
        let part = |b: char| b.is_ascii_alphanumeric() || matches!(b, '_' | '$' | '-');
        let before = self.text[..at.start].chars().rev().take_while(|c| part(*c)).count();
        &self.text[at.start - before..at.end]
    }

    fn part_of_layout(&self, at: &Range<usize>) -> Option<Range<usize>> {
        layout::block(self.kind, &self.text, at)
    }

    /// The outermost chain that reaches the match through calls upon calls, not through arguments.
    fn chain(&self, at: &Range<usize>) -> Range<usize> {
        self.parts
            .chains
            .iter()
            .filter(|r| r.start <= at.start && at.end <= r.end)
            .min_by_key(|r| r.end - r.start)
            .cloned()
            .unwrap_or_else(|| self.line_range(at, 0))
    }

    /// The body of the function that is declared at the match, or that the group `cb` is or names.
    fn body(&self, at: &Range<usize>, callback: Option<Range<usize>>) -> Option<Range<usize>> {
        let functions = &self.parts.functions;
        if let Some(cb) = callback {
            let here = functions
                .iter()
                .filter(|f| f.range.start >= cb.start && f.range.start < cb.end.max(cb.start + 1))
                .max_by_key(|f| f.range.end - f.range.start);
            if let Some(f) = here {
                return Some(f.body..f.range.end);
            }
            let name = self.text[cb].rsplit(['.', ':', '>', '&']).next().unwrap_or_default();
            let name = name.trim().trim_end_matches(['(', ')', ',', ';', '}']);
            let named = functions.iter().find(|f| f.name == name && !name.is_empty())?;
            return Some(named.body..named.range.end);
        }
        let declared = functions
            .iter()
            .filter(|f| f.range.start <= at.end && at.start <= f.body)
            .min_by_key(|f| f.range.end - f.range.start)?;
        Some(declared.body..declared.range.end)
    }

    pub(crate) fn in_string(&self, at: usize) -> bool {
        self.parts.strings.iter().any(|r| r.contains(&at))
    }

    /// Whether the match lies in a test that is part of the file.
    pub(crate) fn in_tests(&self, at: usize) -> bool {
        self.parts.tests.iter().any(|r| r.contains(&at))
    }
}

/// `text` with `ranges` replaced by spaces, line by line and byte by byte as long.
pub(crate) fn blank<'a>(text: &'a str, ranges: &[Range<usize>]) -> Cow<'a, str> {
    if ranges.is_empty() {
        return Cow::Borrowed(text);
    }
    spaces(text, ranges, |b| b != b'\n')
}

/// The same, the ends of lines too.
fn joined<'a>(text: &str, ranges: &[Range<usize>]) -> Cow<'a, str> {
    spaces(text, ranges, |_| true)
}

fn spaces<'a>(text: &str, ranges: &[Range<usize>], replaced: impl Fn(u8) -> bool) -> Cow<'a, str> {
    let mut bytes = text.as_bytes().to_vec();
    for range in ranges {
        let end = range.end.min(bytes.len());
        for b in &mut bytes[range.start.min(end)..end] {
            if replaced(*b) {
                *b = b' ';
            }
        }
    }
    // Ranges are whole characters, so what is left is text.
    Cow::Owned(
        String::from_utf8(bytes)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
    )
}
