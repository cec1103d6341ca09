//! Lines that changed since a revision.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_findings::{Code, Finding};

/// Changed lines by absolute path; `None` for files that are wholly new.
pub(super) struct Changed(HashMap<PathBuf, Option<Vec<RangeInclusive<usize>>>>);

impl Changed {
    /// Whether one of these lines changed. A finding about a file as a whole counts if the file did.
    pub(super) fn touches(&self, path: &str, first: usize, last: usize) -> bool {
        let Ok(path) = std::fs::canonicalize(path) else { return false };
        match self.0.get(&path) {
            None => false,
            Some(None) => true,
            Some(Some(_)) if first == 0 => true,
            Some(Some(ranges)) => ranges.iter().any(|r| *r.start() <= last && first <= *r.end()),
        }
    }
}

fn git(directory: &Path, arguments: &[&str]) -> Result<String, Finding> {
    let failed = |what: String| Finding::new(Code::FileUnreadable, format!("--since: {what}"));
    let out = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .output()
        .map_err(|e| failed(format!("cannot run git: {e}")))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        return Err(failed(text.lines().next().unwrap_or("git failed").to_owned()));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
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
        let top = PathBuf::from(git(directory, &["rev-parse", "--show-toplevel"])?.trim_end());
        // Untracked files are new in every line.
        for name in git(&top, &["ls-files", "--others", "--exclude-standard", "-z"])?.split('\0') {
            if !name.is_empty() {
                out.insert(top.join(name), None);
            }
        }
        let diff = git(
            &top,
            &[
                "diff",
                "--unified=0",
                "--no-color",
                "--no-ext-diff",
                "--no-prefix",
                "--no-renames",
                revision,
                "--",
            ],
        )?;
        read(&diff, &top, &mut out);
    }
    Ok(Changed(out))
}

fn read(diff: &str, top: &Path, out: &mut HashMap<PathBuf, Option<Vec<RangeInclusive<usize>>>>) {
    let mut file: Option<PathBuf> = None;
    for line in diff.lines() {
        if let Some(name) = line.strip_prefix("+++ ") {
            let name = name.trim_end_matches('\t').trim_matches('"');
            file = (name != "/dev/null").then(|| top.join(name));
            if let Some(f) = &file {
                out.entry(f.clone()).or_insert_with(|| Some(Vec::new()));
            }
        } else if let Some(rest) = line.strip_prefix("@@ ")
            && let Some(f) = &file
            && let Some(Some(ranges)) = out.get_mut(f)
        {
            // @@ -a,b +c,d @@
            let Some(new) = rest.split(' ').find_map(|p| p.strip_prefix('+')) else { continue };
            let (start, count) = new.split_once(',').unwrap_or((new, "1"));
            let (Ok(start), Ok(count)) = (start.parse::<usize>(), count.parse::<usize>()) else {
                continue;
            };
            if count > 0 {
                ranges.push(start..=start + count - 1);
            }
        }
    }
}
