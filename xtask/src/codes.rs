//! `docs/codes.md`.

use std::fmt::Write;

use anyhow::Result;
use countersign_findings::Code;

pub(crate) fn generate(check: bool) -> Result<()> {
    let mut out = String::from(
        "# Codes\n\nGenerated from `core/findings/src/catalogue.rs`; do not edit.\n\n\
         Each refusal carries one of these, the same in logs, metrics (`reason` is the slug), output and here.\n",
    );
    let families = [
        (1, "Certificate, chain and token"),
        (2, "Handshake, mode and relaying"),
        (3, "Authorization"),
        (4, "Issuance and attestation"),
        (5, "Configuration"),
        (6, "Operations"),
    ];
    for (family, title) in families {
        let _ = write!(out, "\n## CS{family}xxx {title}\n");
        for &code in Code::ALL.iter().filter(|c| **c as u16 / 1000 == family) {
            let _ = write!(
                out,
                "\n### {code} `{}`\n\nSeverity {}. {}.\n\nWhat to do: {}.\n",
                code.slug(),
                code.severity().as_str(),
                capitalised(code.title()),
                code.hint()
            );
        }
    }
    crate::put(&crate::root().join("docs/codes.md"), &out, check)
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}
