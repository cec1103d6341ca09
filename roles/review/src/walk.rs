//! Which files to look at.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use countersign_findings::{Code, Finding};
use ignore::WalkBuilder;

use crate::review::Unreadable;

/// Largest file in bytes that is read as text.
pub(crate) const MAX_TEXT: u64 = 4 << 20;
/// Largest file in bytes that is read as key material.
pub(crate) const MAX_MATERIAL: u64 = 8 << 20;
/// Most files of one review.
const MAX_FILES: usize = 2_000_000;

/// Directories that hold other people's code.
const VENDORED: [&str; 8] =
    ["node_modules", "vendor", "third_party", ".git", "target", ".venv", "site-packages", "dist"];

/// In gitignore's form: what is not to be looked at, such as examples of flaws. It is told that there is one.
const IGNORE: &str = ".countersignignore";

/// Most directories of others that are named.
const MAX_SKIPPED: usize = 100;

/// What there is to look at.
#[derive(Default)]
pub(crate) struct Files {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) unreadable: Vec<Unreadable>,
    /// Directories of other people's code, which are passed over.
    pub(crate) skipped: Vec<String>,
}

/// Every file in `paths` that .gitignore does not hide, and what could not be looked at. A path that is given
/// itself is always looked at; if nothing that is given can be, that is an error.
pub(crate) fn files(paths: &[PathBuf], everything: bool) -> Result<Files, Finding> {
    let mut out = Vec::new();
    let mut bad: Vec<Unreadable> = Vec::new();
    let skipped = Arc::new(Mutex::new(BTreeSet::new()));
    let mut usable = 0;
    for path in paths {
        let unreadable = |reason: String| Unreadable { path: shown(path), reason };
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) => {
                bad.push(unreadable(e.to_string()));
                continue;
            }
        };
        if !meta.is_dir() && !meta.is_file() {
            bad.push(unreadable("neither a file nor a directory".into()));
            continue;
        }
        usable += 1;
        if meta.is_file() {
            out.push(path.clone());
            continue;
        }
        let mut builder = WalkBuilder::new(path);
        if !everything {
            builder.add_custom_ignore_filename(IGNORE);
        }
        let walk = builder
            .hidden(false)
            .git_ignore(!everything)
            .git_exclude(!everything)
            .git_global(false)
            .ignore(!everything)
            .parents(!everything)
            .require_git(false)
            .follow_links(false)
            .filter_entry({
                let skipped = Arc::clone(&skipped);
                move |e| {
                    let name = e.file_name().to_string_lossy();
                    if e.depth() == 0 || !e.file_type().is_some_and(|t| t.is_dir()) {
                        return true;
                    }
                    if name == ".git" {
                        return false;
                    }
                    let looked_at = everything || !VENDORED.contains(&&*name);
                    if !looked_at {
                        let mut skipped = skipped.lock().unwrap_or_else(|e| e.into_inner());
                        if skipped.len() < MAX_SKIPPED {
                            skipped.insert(shown(e.path()));
                        }
                    }
                    looked_at
                }
            })
            .build();
        for entry in walk {
            match entry {
                Ok(entry) if entry.file_type().is_some_and(|t| t.is_file()) => {
                    if !everything && entry.file_name() == IGNORE {
                        let what = format!("what {} names", shown(entry.path()));
                        skipped.lock().unwrap_or_else(|e| e.into_inner()).insert(what);
                    }
                    out.push(entry.into_path());
                }
                Ok(_) => {}
                Err(e) => bad.push(unreadable(e.to_string())),
            }
            if out.len() > MAX_FILES {
                return Err(Finding::new(
                    Code::InvalidValue,
                    format!("more than {MAX_FILES} files"),
                )
                .hint("name the directories that matter"));
            }
        }
    }
    if let (0, Some(first)) = (usable, bad.first()) {
        let text = format!("cannot read `{}`: {}", first.path, first.reason);
        return Err(Finding::new(Code::FileUnreadable, text));
    }
    out.sort();
    out.dedup();
    let skipped = std::mem::take(&mut *skipped.lock().unwrap_or_else(|e| e.into_inner()));
    Ok(Files { paths: out, unreadable: bad, skipped: skipped.into_iter().collect() })
}

/// Where paths begin that fingerprints are made of: the repository, else what was given. So they are the same
/// for a whole tree and for one file of it.
pub(crate) fn base(paths: &[PathBuf]) -> PathBuf {
    let Some(first) = paths.first().and_then(|p| std::fs::canonicalize(p).ok()) else {
        return PathBuf::new();
    };
    let start =
        if first.is_dir() { first } else { first.parent().map(Path::to_owned).unwrap_or_default() };
    start.ancestors().find(|d| d.join(".git").exists()).map_or(start.clone(), Path::to_owned)
}

/// The path as it is shown, with `/`.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    clean(text.strip_prefix("./").unwrap_or(&text))
}

/// A line end in a name would break every line that it is printed in.
pub(crate) fn clean(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
