//! `countersign completion`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use countersign_findings::Finding;

#[derive(Args)]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completion {
    pub(crate) fn run(self) -> Result<ExitCode, Finding> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "countersign", &mut script);
        crate::output::line(String::from_utf8_lossy(&script).trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}
