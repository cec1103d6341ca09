//! `countersign check`.

pub(super) mod certificates;
mod files;
mod hosts;
mod listeners;
pub(super) mod live;
pub(super) mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use countersign_findings::{Code, Finding};
use countersign_tls::current_time;

use super::{Global, parse_duration};
use crate::output::{self, Format};
use report::{Report, Verdict};

const EXAMPLES: &str = "\
Examples:
  countersign check                                        the server and the agent on this host, and all they know
  countersign check --listener 127.0.0.1:8443              also what that port presents
  countersign check --wait 1m                              until everything is well, or the minute is over
  countersign check cert.pem key.pem bundle.pem policy/    files alone: nothing has to run

Exit codes: 0 well, perhaps with warnings; 10 something failed (with --fail-on warning: or a warning);
4 nothing could be reached; 3 nothing to examine.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Warning,
    Error,
}

/// Checks health: authorities, clock, server, agent, entries, policies, proxies, certificates.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckCommand {
    /// Certificates, keys and bundles in PEM, policies in YAML (or directories of them); without any, what runs
    #[arg(value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// A port that speaks TLS: is its certificate in time, and its chain complete? Repeat for more
    #[arg(long, value_name = "HOST:PORT")]
    listener: Vec<String>,
    /// Keep trying for this long until nothing fails
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", conflicts_with = "paths")]
    wait: Option<Duration>,
    /// Print only what is not well
    #[arg(long)]
    short: bool,
    /// What makes the exit code 10
    #[arg(long, value_enum, default_value = "error")]
    fail_on: FailOn,
}

impl CheckCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let deadline = self.wait.map(|w| tokio::time::Instant::now() + w);
        let report = loop {
            let report = self.once(global).await?;
            match deadline {
                Some(at)
                    if report.worst() == Verdict::Error && tokio::time::Instant::now() < at =>
                {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                _ => break report,
            }
        };
        match global.output {
            Format::Json => output::json("countersign.check/v1", &report)?,
            Format::Table => report.print(self.short)?,
        }
        Ok(match (report.worst(), self.fail_on) {
            _ if report.reached_nothing => ExitCode::from(4),
            (Verdict::Error, _) | (Verdict::Warning, FailOn::Warning) => ExitCode::from(10),
            _ => ExitCode::SUCCESS,
        })
    }

    async fn once(&self, global: &Global) -> Result<Report, Finding> {
        let now = current_time();
        let mut report = Report::default();
        let mut roots = Vec::new();
        if !self.paths.is_empty() {
            roots = files::check(&mut report, &self.paths, now)?;
        } else {
            match global.data_dir() {
                // Ports can be looked at from anywhere.
                Ok(dir) if self.listener.is_empty() || dir.exists() => {
                    roots = live::check(&mut report, &dir, now).await;
                }
                Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
        for address in &self.listener {
            listeners::check(&mut report, address, &roots, now).await;
        }
        if report.is_empty() {
            return Err(Finding::new(Code::NothingToExamine, "nothing was found to check"));
        }
        Ok(report)
    }
}
