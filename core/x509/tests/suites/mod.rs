//! What the public suites of path validation are run with.

use std::path::{Path, PathBuf};

/// Where a file of the vectors is. Without it a test is skipped, which fails under `CI=true`.
pub(crate) fn vectors(name: &str) -> Option<PathBuf> {
    let dir = std::env::var("COUNTERSIGN_VECTORS").map_or_else(
        |_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"),
        Into::into,
    );
    let path = dir.join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing", path.display());
    eprintln!("SKIPPED: {} is missing", path.display());
    None
}

/// Judges the cases of a suite: their names, what is wanted, and what came of them, if they could be read. None may be accepted that the suite
/// refuses, but for those that `known` lists by the beginning of their names, with the reason; of these each must occur.
pub(crate) fn judge<'a>(
    cases: impl Iterator<Item = (&'a str, bool, Option<bool>)>,
    known: &[(&str, &str)],
) {
    let (mut agreed, mut stricter, mut wrong) = (0, Vec::new(), Vec::new());
    for (name, wanted, got) in cases {
        match got {
            Some(got) if got == wanted => agreed += 1,
            Some(false) | None => stricter.push(name),
            Some(true) => wrong.push(name),
        }
    }
    let unexplained: Vec<_> = wrong
        .iter()
        .filter(|name| !known.iter().any(|(known, _)| name.starts_with(known)))
        .collect();
    assert!(unexplained.is_empty(), "accepted though refused by the suite: {unexplained:#?}");
    let gone: Vec<_> = known
        .iter()
        .filter(|(known, _)| !wrong.iter().any(|name| name.starts_with(known)))
        .collect();
    assert!(gone.is_empty(), "no longer accepted, take off the list: {gone:?}");
    assert!(agreed > 100, "{agreed} agreed, stricter here: {stricter:?}");
}
