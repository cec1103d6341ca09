//! YAML documents from files and directories.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use countersign_findings::{Code, Finding};
use countersign_keys::read_bounded;
use countersign_policy::{Document, MAX_INPUT, parse_each};

/// A document with its text and place.
pub(crate) struct Source {
    pub(crate) document: Document,
    pub(crate) yaml: String,
    pub(crate) place: String,
    /// The file alone.
    pub(crate) file: String,
}

/// Reads everything in `paths`: files, and the *.yaml and *.yml of directories. All or nothing.
pub(crate) fn load(paths: &[PathBuf]) -> Result<Vec<Source>, Finding> {
    let mut out = Vec::new();
    for path in paths {
        read(path, &mut out)?;
    }
    if out.is_empty() {
        let places: Vec<String> = paths.iter().map(|f| f.display().to_string()).collect();
        return Err(Finding::new(Code::NothingToExamine, "no document found").at(places.join(", ")));
    }
    let mut seen: HashMap<(&str, &str, &str), &str> = HashMap::new();
    for s in &out {
        let key = (s.document.kind(), s.document.namespace(), s.document.name());
        if let Some(first) = seen.insert(key, &s.place) {
            let (kind, namespace, name) = key;
            return Err(Finding::new(
                Code::InvalidValue,
                format!("{kind} `{namespace}/{name}` is defined twice"),
            )
            .at(format!("{first} and {}", s.place))
            .hint("rename or remove one of them: a mesh knows only one by that name"));
        }
    }
    Ok(out)
}

/// The files that [`load`] reads, and the directories they are in: what to watch for changes.
pub(crate) fn files(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut out = paths.to_vec();
    for path in paths {
        if let Ok(entries) = std::fs::read_dir(path) {
            out.extend(entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| is_yaml(p)));
        }
    }
    out.sort();
    out
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml")
}

fn read(path: &Path, out: &mut Vec<Source>) -> Result<(), Finding> {
    let unreadable = |e: std::io::Error| {
        Finding::new(Code::FileUnreadable, format!("cannot read `{}`: {e}", path.display()))
    };
    if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        let mut files: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(unreadable)?
            .map(|e| e.map(|e| e.path()))
            .collect::<Result<_, _>>()
            .map_err(unreadable)?;
        files.retain(|p| is_yaml(p));
        files.sort();
        return files.iter().try_for_each(|f| read(f, out));
    }
    let text = read_bounded(path, MAX_INPUT as u64).map_err(|e| e.finding())?;
    let place = path.display().to_string();
    let text = std::str::from_utf8(&text)
        .map_err(|_| Finding::new(Code::ConfigSyntax, "not UTF-8").at(place.clone()))?;
    for (document, yaml) in parse_each(text, &place)? {
        out.push(Source {
            place: format!("{place} ({} `{}`)", document.kind(), document.name()),
            file: place.clone(),
            document,
            yaml: yaml.to_owned(),
        });
    }
    Ok(())
}
