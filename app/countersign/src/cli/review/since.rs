//! What a change brings: findings that the same file did not have at a revision.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_findings::{Code, Finding};
use countersign_review::Issue;

/// Changed files by absolute path, with their text at the revision; `None` for new ones.
pub(super) struct Changed(HashMap<PathBuf, Option<String>>);

/// Keeps what is new in changed files. So a line that was taken away counts where it leaves a flaw, and one that
/// only moved does not.
pub(super) fn only_new(
    issues: &mut Vec<Issue>,
    changed: &Changed,
    review: &dyn Fn(&str, &str) -> Vec<Issue>,
) {
    // What a file had, by rule and line of code, and how often.
    let mut had: HashMap<String, HashMap<(String, String), usize>> = HashMap::new();
    let key = |i: &Issue| (i.rule.clone(), i.evidence.split_whitespace().collect::<String>());
    issues.retain(|issue| {
        // Of what lies in an archive, the archive.
        let file = |path: &str| {
            let (file, _) = path.split_once("!/").unwrap_or((path, ""));
            std::fs::canonicalize(file).ok()
        };
        let before = file(&issue.path).and_then(|path| changed.0.get(&path));
        let Some(before) = before else {
            // What two files show together is new where either has changed.
            let mut related = issue.related.iter().filter_map(|r| file(&r.path));
            return related.any(|path| changed.0.contains_key(&path));
        };
        let Some(text) = before else { return true };
        if issue.path.contains("!/") {
            return true;
        }
        let had = had.entry(issue.path.clone()).or_insert_with(|| {
            let mut counts = HashMap::new();
            for old in review(&issue.path, text) {
                *counts.entry(key(&old)).or_insert(0) += 1;
            }
            counts
        });
        match had.get_mut(&key(issue)) {
            Some(count) if *count > 0 => {
                *count -= 1;
                false
            }
            _ => true,
        }
    });
}

fn git(directory: &Path, arguments: &[&str]) -> Result<Vec<u8>, Finding> {
    let out = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .output()
        .map_err(|e| super::invalid(format!("--since: cannot run git: {e}")))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        let first = text.lines().next().unwrap_or("git failed").to_owned();
        return Err(super::invalid(format!("--since: {first}"))
            .hint("name a commit, branch or tag of the repository that the paths are in"));
    }
    Ok(out.stdout)
}

pub(super) fn changed(revision: &str, paths: &[PathBuf]) -> Result<Changed, Finding> {
    if revision.starts_with('-') {
        return Err(super::invalid(format!("--since: `{revision}` is not a revision")));
    }
    let mut out = HashMap::new();
    for path in paths {
        let directory =
            if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(Path::new(".")) };
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let top = git(directory, &["rev-parse", "--show-toplevel"])?;
        let top = PathBuf::from(String::from_utf8_lossy(&top).trim_end());
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for file in
            git(&top, &["ls-files", "--others", "--exclude-standard", "-z"])?.split(|b| *b == 0)
        {
            if !file.is_empty() {
                out.insert(top.join(name(file)), None);
            }
        }
        let diff = git(&top, &["diff", "--name-status", "-z", "--find-renames", revision, "--"])?;
        let mut fields = diff.split(|b| *b == 0).filter(|f| !f.is_empty());
        while let (Some(status), Some(first)) = (fields.next(), fields.next()) {
            let old = name(first);
            let (old, new) = match status.first() {
                Some(b'R' | b'C') => (Some(old), fields.next().map(name)),
                Some(b'A') => (None, Some(old)),
                Some(b'D') => continue,
                _ => (Some(old.clone()), Some(old)),
            };
            let Some(new) = new else { break };
            let text = match old {
                None => None,
                Some(old) => {
                    let bytes = git(&top, &["show", &format!("{revision}:{old}")])?;
                    Some(String::from_utf8(bytes).map_err(|_| {
                        Finding::new(Code::ConfigSyntax, format!("--since: `{old}` was not UTF-8"))
                    }))
                    // What cannot be compared is taken for new.
                    .and_then(Result::ok)
                }
            };
            out.insert(top.join(new), text);
        }
    }
    Ok(Changed(out))
}
