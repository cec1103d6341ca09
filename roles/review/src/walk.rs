//! Which files to look at.

use std::path::{Path, PathBuf};

use countersign_findings::{Code, Finding};
use ignore::WalkBuilder;

/// Largest file in bytes that is read as text.
pub(crate) const MAX_TEXT: u64 = 4 << 20;
/// Largest file in bytes that is read as key material.
pub(crate) const MAX_MATERIAL: u64 = 8 << 20;
/// Most files of one review.
const MAX_FILES: usize = 2_000_000;

/// Directories that hold other people's code.
const VENDORED: [&str; 8] =
    ["node_modules", "vendor", "third_party", ".git", "target", ".venv", "site-packages", "dist"];

/// Every file in `paths` that .gitignore does not hide. A path that is given itself is always looked at.
pub(crate) fn files(paths: &[PathBuf], everything: bool) -> Result<Vec<PathBuf>, Finding> {
    let mut out = Vec::new();
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|e| {
            let text = format!("cannot read `{}`: {e}", path.display());
            Finding::new(Code::FileUnreadable, text)
        })?;
        if !meta.is_dir() {
            out.push(path.clone());
            continue;
        }
        let walk = WalkBuilder::new(path)
            .hidden(false)
            .git_ignore(!everything)
            .git_exclude(!everything)
            .git_global(false)
            .ignore(!everything)
            .parents(!everything)
            .require_git(false)
            .follow_links(false)
            .filter_entry(move |e| {
                let name = e.file_name().to_string_lossy();
                e.depth() == 0
                    || !e.file_type().is_some_and(|t| t.is_dir())
                    || name != ".git" && (everything || !VENDORED.contains(&&*name))
            })
            .build();
        for entry in walk {
            let entry = entry.map_err(|e| Finding::new(Code::FileUnreadable, e.to_string()))?;
            if entry.file_type().is_some_and(|t| t.is_file()) {
                out.push(entry.into_path());
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
    out.sort();
    out.dedup();
    Ok(out)
}

/// The path as it is shown, with `/`.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    text.strip_prefix("./").unwrap_or(&text).to_owned()
}
