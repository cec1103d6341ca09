//! `countersign init`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use countersign_findings::Finding;
use countersign_identity::TrustDomain;
use countersign_server::{DataDir, InitOptions, initialise};
use countersign_tls::current_time;
use serde::Serialize;

use super::{Global, invalid, parse_duration};
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct Init {
    /// Name of the trust domain, for example corp.test
    #[arg(long, env = "COUNTERSIGN_TRUST_DOMAIN", value_name = "NAME")]
    trust_domain: String,
    /// Life of the root
    #[arg(long, value_parser = parse_duration, default_value = "3650d")]
    root_ttl: Duration,
    /// Life of the intermediate
    #[arg(long, value_parser = parse_duration, default_value = "365d")]
    intermediate_ttl: Duration,
}

#[derive(Serialize)]
struct Made {
    trust_domain: String,
    data_dir: String,
    root_sha256: String,
    root_not_after: String,
    intermediate_not_after: String,
    bundle: String,
    root_key: String,
}

impl Init {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let trust_domain =
            TrustDomain::new(&self.trust_domain).map_err(|e| invalid(e.to_string()))?;
        let dir = DataDir::new(global.data_dir()?);
        let options =
            InitOptions { root_ttl: self.root_ttl, intermediate_ttl: self.intermediate_ttl };
        let made = initialise(&dir, &trust_domain, options, current_time()).await?;
        let made = Made {
            trust_domain: trust_domain.to_string(),
            data_dir: dir.path().display().to_string(),
            root_sha256: made.root_fingerprint,
            root_not_after: made.root_not_after.to_string(),
            intermediate_not_after: made.intermediate_not_after.to_string(),
            bundle: dir.bundle().display().to_string(),
            root_key: dir.root_key().display().to_string(),
        };
        match global.output {
            Format::Json => output::json("countersign.init/v1", &made)?,
            Format::Table => {
                output::line(&format!("trust domain  {}", made.trust_domain))?;
                output::line(&format!("root          sha256:{}", made.root_sha256))?;
                output::line(&format!("              until {}", made.root_not_after))?;
                output::line(&format!("intermediate  until {}", made.intermediate_not_after))?;
                output::line(&format!("bundle        {}", made.bundle))?;
                output::line(&format!(
                    "root key      {}  (needed once a year: you may move it offline)",
                    made.root_key
                ))?;
            }
        }
        output::next(
            "countersign up   (or `countersign server`, then on each node `countersign agent`)",
        );
        Ok(ExitCode::SUCCESS)
    }
}
