//! Printing: data on stdout, everything else on stderr; tables for people, JSON for machines.

use std::io::Write;
use std::process::ExitCode;

use countersign_findings::{Code, Finding};
use serde::Serialize;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON document with a `schema`.
    Json,
}

/// Prints a document. `schema` names its version.
pub(crate) fn json<T: Serialize>(schema: &str, body: &T) -> Result<(), Finding> {
    let mut value =
        serde_json::to_value(body).map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
    if let Some(map) = value.as_object_mut() {
        map.insert("schema".into(), schema.into());
    }
    line(&value.to_string())
}

/// Prints one line of data. A reader that went away is no error of ours.
pub(crate) fn line(text: &str) -> Result<(), Finding> {
    match writeln!(anstream::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Finding::new(Code::StorageFailed, format!("cannot write output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Prints columns, aligned; the last is not padded.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> Result<(), Finding> {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let render = |cells: &[String]| {
        let mut out = String::new();
        for (i, cell) in cells.iter().enumerate() {
            out.push_str(cell);
            if i + 1 < cells.len() {
                let pad = widths[i].saturating_sub(cell.chars().count()) + 2;
                out.extend(std::iter::repeat_n(' ', pad));
            }
        }
        out
    };
    let header: Vec<String> = header.iter().map(|h| (*h).to_owned()).collect();
    line(&render(&header))?;
    rows.iter().try_for_each(|row| line(&render(row)))
}

/// `1 finding`, `2 findings`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    let end = if n == 1 { "" } else { "s" };
    format!("{n} {what}{end}")
}

/// A remark for people, on stderr.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Names the next command.
pub(crate) fn next(text: &str) {
    note(&format!("next: {text}"));
}

/// Prints an error as `format` asks and gives its exit code.
pub(crate) fn fail(finding: &Finding, format: Format) -> ExitCode {
    match format {
        Format::Table => note(&format!("error{finding}")),
        Format::Json => {
            let mut value = serde_json::to_value(finding).unwrap_or_default();
            if let Some(map) = value.as_object_mut() {
                map.insert("schema".into(), "countersign.error/v1".into());
            }
            note(&value.to_string());
        }
    }
    ExitCode::from(exit_code(finding.code))
}

/// 1 failed, 2 usage, 3 nothing to examine, 4 unreachable or unauthenticated, 5 refused by policy, 70 internal error.
fn exit_code(code: Code) -> u8 {
    match code {
        Code::InvalidValue
        | Code::UnknownField
        | Code::ConfigSyntax
        | Code::UnsupportedDocument
        | Code::PermissiveWithoutEnd
        | Code::JoinStringMalformed => 2,
        Code::NothingToExamine => 3,
        Code::ServerUnreachable
        | Code::AgentUnreachable
        | Code::AgentNotAttested
        | Code::JoinTokenInvalid
        | Code::CallerNotAuthorized
        | Code::NoIdentityIssued
        | Code::NoIdentityYet
        | Code::UpstreamUnreachable
        | Code::UpstreamTimeout => 4,
        Code::DeniedByPolicy | Code::NotAllowedByPolicy | Code::IdentityNotAllowed => 5,
        Code::InternalError => 70,
        _ => 1,
    }
}
