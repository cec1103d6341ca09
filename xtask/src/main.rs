//! Project tasks. `cargo xtask` lists them.

mod codes;
mod layers;
mod protos;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let check = args.iter().any(|a| a == "--check");
    match args.first().map(String::as_str) {
        Some("layers") => layers::check(),
        Some("protos") => protos::generate(check),
        Some("codes") => codes::generate(check),
        Some("check") => {
            layers::check()?;
            protos::generate(true)?;
            codes::generate(true)
        }
        _ => bail!(
            "usage: cargo xtask TASK [--check]\n\
             \x20 layers   no crate depends on a layer to its right\n\
             \x20 protos   generate io/wire/src/generated from proto/\n\
             \x20 codes    generate docs/codes.md from the catalogue\n\
             \x20 check    all of the above, without writing"
        ),
    }
}

/// The workspace's root.
fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("root").to_owned()
}

/// Writes `text` to `path`, or with `check` fails if the file differs.
fn put(path: &std::path::Path, text: &str, check: bool) -> Result<()> {
    if check {
        let there = std::fs::read_to_string(path).unwrap_or_default();
        if there != text {
            bail!("{} is out of date; run `cargo xtask` with the same task", path.display());
        }
    } else {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(path, text)?;
    }
    Ok(())
}
