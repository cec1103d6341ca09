//! The layer check: `core ← io ← roles ← app`, roles never on each other.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Crates that only one crate of the workspace may name.
const RESERVED: &[(&str, &[&str])] = &[
    ("rustls", &["countersign-tls", "countersign-bench", "countersign-testkit"]),
    ("tokio-rustls", &["countersign-tls", "countersign-bench", "countersign-testkit"]),
    ("tonic", &["countersign-wire"]),
    ("prost", &["countersign-wire"]),
    ("rusqlite", &["countersign-store"]),
];

fn layer(path: &str) -> Option<usize> {
    ["/core/", "/io/", "/roles/", "/app/"].iter().position(|dir| path.contains(dir))
}

pub(crate) fn check() -> Result<()> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(crate::root())
        .output()?;
    let meta: serde_json::Value = serde_json::from_slice(&out.stdout).context("cargo metadata")?;
    let packages = meta["packages"].as_array().context("packages")?;
    let root = crate::root().display().to_string();
    let place = |name: &str| {
        packages
            .iter()
            .find(|p| p["name"] == name)
            .and_then(|p| p["manifest_path"].as_str())
            .map(|p| p.trim_start_matches(&root).to_owned())
    };
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(from) = place(name).as_deref().and_then(layer) else { continue };
        for dep in package["dependencies"].as_array().into_iter().flatten() {
            if dep["kind"] == "dev" {
                continue;
            }
            let dep = dep["name"].as_str().unwrap_or_default();
            if let Some(to) = place(dep).as_deref().and_then(layer) {
                if to > from || (to == from && from == 2) {
                    wrong.push(format!("{name} must not depend on {dep}"));
                }
            } else if dep == "countersign-testkit" {
                wrong.push(format!("{name} uses the test kit outside its tests"));
            }
            for (reserved, owners) in RESERVED {
                if dep == *reserved && !owners.contains(&name) {
                    wrong.push(format!("{name} names {dep}, which is reserved to {}", owners[0]));
                }
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("layers are violated:\n  {}", wrong.join("\n  "))
}
