//! `countersign why`.

mod identity;

use std::io::Read;
use std::process::ExitCode;

use clap::Args;
use countersign_findings::{Code, Finding, Foreign, explain};
use serde_json::json;

use super::{Global, invalid};
use crate::output::{self, Format};

/// Longest text in bytes.
const MAX_TEXT: u64 = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  countersign why 'x509: certificate signed by unknown authority'
  curl https://api:8443/ 2>&1 | countersign why -
  kubectl logs deploy/api | grep -i tls | countersign why -
  countersign why /ns/shop/sa/web                   why a workload has this identity, or has not";

/// Say what an error of TLS means, whoever wrote it: OpenSSL, Go, Java, Envoy, rustls, Node, .NET, nginx; or why a workload
/// has its identity, or has not.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Why {
    /// The error, as it was printed; `-` reads it from standard input. Or a SPIFFE ID, or its path
    #[arg(required = true, value_name = "ERROR|ID")]
    error: Vec<String>,
}

impl Why {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        if let [only] = self.error.as_slice()
            && (only.starts_with("spiffe://") || only.starts_with('/'))
            && !only.contains(char::is_whitespace)
        {
            return identity::run(only, global).await;
        }
        let text = match self.error.as_slice() {
            [only] if only == "-" => {
                let mut bytes = Vec::new();
                std::io::stdin()
                    .take(MAX_TEXT)
                    .read_to_end(&mut bytes)
                    .map_err(|e| invalid(format!("standard input: {e}")))?;
                String::from_utf8_lossy(&bytes).into_owned()
            }
            words => words.join(" "),
        };
        // A log holds many errors: each line by itself, each meaning once.
        let mut found: Vec<&Foreign> = Vec::new();
        for line in text.lines() {
            if let Some(best) = explain(line).first()
                && !found.iter().any(|f| f.code == best.code)
            {
                found.push(best);
            }
        }
        if found.is_empty() {
            return Err(Finding::new(Code::NothingToExamine, "no error of TLS that is known here")
                .hint("give the whole line as it was printed; `countersign id inspect HOST:PORT` shows what a port presents"));
        }
        match global.output {
            Format::Json => {
                let list: Vec<_> = found
                    .iter()
                    .map(|f| {
                        json!({"code": f.code, "title": f.code.title(), "stack": f.stack,
                               "meaning": f.meaning, "look": f.look, "hint": f.code.hint()})
                    })
                    .collect();
                output::json("countersign.why/v1", &json!({"causes": list}))?;
            }
            Format::Table => {
                for (i, f) in found.iter().enumerate() {
                    if i > 0 {
                        output::line("")?;
                    }
                    let stack =
                        if f.stack == "any" { String::new() } else { format!("  ({})", f.stack) };
                    output::line(&format!("{}  {}{stack}", f.code, f.code.title()))?;
                    output::line(&format!("  {}", f.meaning))?;
                    for (n, step) in f.look.iter().enumerate() {
                        output::line(&format!("  {}. {step}", n + 1))?;
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
