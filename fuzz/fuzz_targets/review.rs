//! Files of every kind, by the first byte: reviewing them never panics, and finds places that exist.
#![no_main]
use std::sync::LazyLock;

use countersign_identity::UnixTime;
use countersign_review::{Catalogue, Reviewer};

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| Catalogue::built_in().expect("rules"));
static REVIEWER: LazyLock<Reviewer<'static>> = LazyLock::new(|| Reviewer::new(&CATALOGUE));

const NAMES: [&str; 16] = [
    "a.go", "a.py", "A.java", "a.kt", "A.cs", "a.ts", "a.rs", "a.cpp", "a.rb", "a.php", "a.yaml", "a.json",
    "nginx.conf", "haproxy.cfg", "Dockerfile", "a.toml",
];

libfuzzer_sys::fuzz_target!(|input: (u8, &str)| {
    let (kind, text) = input;
    let name = NAMES[usize::from(kind) % NAMES.len()];
    let found = REVIEWER.text(name, text, UnixTime::default(), "2026-01-01").unwrap_or_default();
    let lines = text.lines().count().max(1);
    assert!(found.iter().all(|i| i.line >= 1 && i.line <= lines));
});
