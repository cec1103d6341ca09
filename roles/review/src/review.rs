//! A whole review: files, in parallel; then what only many files together show.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use countersign_findings::Finding;
use countersign_identity::UnixTime;
use countersign_keys::read_bounded;

use crate::archive;
use crate::engine::Engine;
use crate::issue::{Issue, fingerprint};
use crate::kind::Kind;
use crate::material::{self, Facts};
use crate::project::Project;
use crate::rule::{Catalogue, Rule};
use crate::source::Context;
use crate::suppress;
use crate::walk::{Files, MAX_MATERIAL, MAX_TEXT, base, files, shown};

/// What to look at, and when that is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files and directories.
    pub paths: Vec<PathBuf>,
    /// Also what .gitignore hides, and vendored code.
    pub everything: bool,
    /// For lifetimes.
    pub now: UnixTime,
    /// `YYYY-MM-DD`, for exceptions.
    pub today: String,
    /// Threads.
    pub threads: usize,
}

/// What could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// As given.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// By path and line.
    pub issues: Vec<Issue>,
    /// Nothing passes because it could not be read.
    pub unreadable: Vec<Unreadable>,
    /// Directories of other people's code, which were passed over.
    pub skipped: Vec<String>,
    /// Files looked at.
    pub files: usize,
    /// Lines in them.
    pub lines: usize,
}

/// Reviews files. `progress` is told how many of how many are done.
pub fn review(
    catalogue: &Catalogue,
    options: &Options,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Report, Finding> {
    let engine = Engine::new(catalogue);
    let Files { paths, unreadable, skipped } = files(&options.paths, options.everything)?;
    let next = AtomicUsize::new(0);
    let merged = Mutex::new((Report::default(), Project::default()));
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                let mut report = Report::default();
                let mut project = Project::default();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = paths.get(i) else { break };
                    one(catalogue, &engine, path, options, &mut report, &mut project);
                    progress(i + 1, paths.len());
                }
                let mut merged = merged.lock().unwrap_or_else(|e| e.into_inner());
                merged.0.issues.append(&mut report.issues);
                merged.0.unreadable.append(&mut report.unreadable);
                merged.0.skipped.append(&mut report.skipped);
                merged.0.files += report.files;
                merged.0.lines += report.lines;
                merged.1.merge(project);
            });
        }
    });
    let (mut report, mut project) = merged.into_inner().unwrap_or_else(|e| e.into_inner());
    project.settle();
    project.material.raise_keys_of_authorities(&mut report.issues);
    report.issues.extend(project.findings(catalogue));
    report.issues.sort_by(|a, b| {
        (&a.path, a.line, a.column, &a.rule).cmp(&(&b.path, b.line, b.column, &b.rule))
    });
    report.unreadable.extend(unreadable);
    report.skipped.extend(skipped);
    report.skipped.sort();
    report.unreadable.sort_by(|a, b| a.path.cmp(&b.path));
    fingerprint(&mut report.issues, &base(&options.paths));
    Ok(report)
}

/// Reviews single texts.
pub struct Reviewer<'c> {
    catalogue: &'c Catalogue,
    engine: Engine<'c>,
}

impl<'c> Reviewer<'c> {
    /// With these rules.
    pub fn new(catalogue: &'c Catalogue) -> Self {
        Self { catalogue, engine: Engine::new(catalogue) }
    }

    /// Reviews one text as if it were in a file of that name. `today` is `YYYY-MM-DD`.
    pub fn text(
        &self,
        path: &str,
        text: &str,
        now: UnixTime,
        today: &str,
    ) -> Result<Vec<Issue>, String> {
        let mut issues = match Kind::of(path, text) {
            Some(kind) => self.engine.review(path, kind, text, today)?,
            None => Vec::new(),
        };
        let mut facts = Facts::default();
        issues.extend(keys(self.catalogue, path, text, (now, today), &mut facts));
        Ok(issues)
    }

    /// The examples of the rules that `which` names that are judged otherwise than they say, a line each.
    pub fn wrong_examples(
        &self,
        which: impl Fn(&Rule) -> bool,
        now: UnixTime,
        today: &str,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        for rule in self.catalogue.rules.iter().filter(|r| which(r)) {
            for (n, example) in rule.examples.iter().enumerate() {
                let at = format!("{}: example {} ({})", rule.id, n + 1, example.file);
                let code = example.code.trim_start_matches('\n');
                let issues = match self.text(&example.file, code, now, today) {
                    Ok(issues) => issues,
                    Err(reason) => {
                        wrong.push(format!("{at}: {reason}"));
                        continue;
                    }
                };
                let of_class = issues.iter().filter(|i| i.class.name == rule.class.name);
                let mut lines: Vec<usize> = of_class.map(|i| i.line).collect();
                lines.sort_unstable();
                if lines != example.flagged {
                    let all: Vec<String> =
                        issues.iter().map(|i| format!("{}:{}", i.rule, i.line)).collect();
                    let expected = &example.flagged;
                    wrong
                        .push(format!("{at}: expected {expected:?}, found {lines:?}, all {all:?}"));
                }
            }
        }
        wrong
    }
}

/// Key material in text, as far as no exception covers it.
fn keys(
    catalogue: &Catalogue,
    path: &str,
    text: &str,
    (now, today): (UnixTime, &str),
    facts: &mut Facts,
) -> Vec<Issue> {
    let mut out = material::in_text(catalogue, path, text, now, facts);
    if !out.is_empty()
        && let Some(tests) = unit_tests(path, text)
    {
        for issue in out.iter_mut().filter(|i| i.line > tests && i.context == Context::Production) {
            issue.context = Context::Test;
            issue.severity = issue.severity.lowered();
        }
    }
    suppress::apply(text, &|_, _| true, &mut out, today);
    out
}

/// The line behind which a file of Rust has its unit tests only.
fn unit_tests(path: &str, text: &str) -> Option<usize> {
    let lines: Vec<&str> = text.lines().filter(|_| path.ends_with(".rs")).map(str::trim).collect();
    let opens = |w: &&[&str]| w[0] == "#[cfg(test)]" && w[1].starts_with("mod ");
    lines.windows(2).rposition(|w| opens(&w)).map(|i| i + 1)
}

/// UTF-8, or UTF-16 with its mark; `None` for anything else.
fn decoded(bytes: &[u8]) -> Option<Cow<'_, str>> {
    let wide = |rest: &[u8], pair: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = rest.chunks_exact(2).map(|c| pair([c[0], c[1]])).collect();
        String::from_utf16(&units).ok().map(Cow::Owned)
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        _ => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
    }
}

fn one(
    catalogue: &Catalogue,
    engine: &Engine<'_>,
    path: &PathBuf,
    options: &Options,
    report: &mut Report,
    project: &mut Project,
) {
    let name = shown(path);
    let mut unreadable = |reason: String| {
        report.unreadable.push(Unreadable { path: name.clone(), reason });
    };
    let size = match std::fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(e) => return unreadable(e.to_string()),
    };
    if archive::is_archive(&name) {
        let look = archive::Look { catalogue, now: options.now, everything: options.everything };
        match look.at(&name, path, &mut project.material) {
            Ok(found) => {
                let is_other = found.is_other;
                found.unreadable.into_iter().for_each(&mut unreadable);
                if is_other && archive::is_named_so(&name) {
                    unreadable("no tar file, or compressed in a way that is not known".into());
                }
                report.issues.extend(found.issues);
                report.files += found.files;
                if found.skipped {
                    report.skipped.push(format!("other people's code in {name}"));
                }
                if !is_other || archive::is_named_so(&name) {
                    return;
                }
                // A blob that is something else.
            }
            Err(e) => return unreadable(e.to_string()),
        }
    }
    let is_material = material::is_interesting(&name);
    let by_name = Kind::of(&name, "");
    let most = if is_material { MAX_MATERIAL } else { MAX_TEXT };
    if size > most {
        if is_material || by_name.is_some() {
            unreadable(format!("larger than {} MiB", most >> 20));
        }
        return;
    }
    let bytes = match read_bounded(path, most) {
        Ok(bytes) => bytes,
        Err(e) => return unreadable(e.finding().message),
    };
    let mut facts = Facts::default();
    if is_material {
        let found = material::in_file(catalogue, &name, &bytes, options.now, &mut facts);
        report.issues.extend(found);
    }
    let text = match decoded(&bytes) {
        Some(text) => text,
        // Old sources have other encodings; what matters in them is ASCII.
        None if by_name.is_some() && !bytes.contains(&0) => String::from_utf8_lossy(&bytes),
        None if by_name.is_some() => return unreadable("neither UTF-8 nor UTF-16".into()),
        None => {
            project.material.add(&name, facts);
            return;
        }
    };
    let same_bytes = matches!(text, Cow::Borrowed(_));
    report.files += 1;
    report.lines += text.lines().count();
    let when = (options.now, options.today.as_str());
    report.issues.extend(keys(catalogue, &name, &text, when, &mut facts));
    project.material.add(&name, facts);
    let Some(kind) = Kind::of(&name, &text) else { return };
    project.look(&name, kind, &text);
    match engine.review(&name, kind, &text, &options.today) {
        Ok(mut issues) => {
            // Places in what was decoded are none in the file.
            issues.iter_mut().filter(|_| !same_bytes).for_each(|i| i.edit = None);
            report.issues.extend(issues);
        }
        Err(reason) => report.unreadable.push(Unreadable { path: name, reason }),
    }
}

/// Puts the safe rewrites of `issues`, all of one file, into its text.
pub fn apply_edits(text: &str, issues: &[&Issue]) -> String {
    let mut edits: Vec<_> = issues.iter().filter_map(|i| i.edit.as_ref()).collect();
    edits.sort_by_key(|e| std::cmp::Reverse(e.range.start));
    edits.dedup_by(|a, b| a.range.end > b.range.start);
    let mut out = text.to_owned();
    for edit in edits {
        out.replace_range(edit.range.clone(), &edit.text);
    }
    out
}
