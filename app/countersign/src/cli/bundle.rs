//! `countersign bundle`.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use countersign_findings::{Code, Finding};
use countersign_wire::convert;
use countersign_wire::proto::spire::api::server::bundle::v1::GetBundleRequest;
use countersign_x509::{CertInfo, hex, pem};

use super::Global;
use crate::client::Server;
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct BundleCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the trust bundle
    Show {
        /// In which form; `-o json` is the SPIFFE form
        #[arg(long, value_enum, default_value_t)]
        form: Form,
    },
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Form {
    /// One line per authority
    #[default]
    Table,
    /// The roots in PEM
    Pem,
    /// A SPIFFE bundle document (JWKS)
    Spiffe,
}

impl BundleCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let Command::Show { form } = self.command;
        let server = Server::new(&global.data_dir()?);
        let bundle = server
            .bundles()
            .get_bundle(GetBundleRequest::default())
            .await
            .map_err(|s| server.refused(&s))?;
        let bundle = convert::bundle(bundle.get_ref())?;
        let form = if global.output == Format::Json { Form::Spiffe } else { form };
        match form {
            Form::Spiffe => {
                let doc = countersign_jose::bundle_to_jwks(&bundle)
                    .map_err(|e| Finding::new(Code::InternalError, e.to_string()))?;
                output::line(&doc.to_string())?;
            }
            Form::Pem => {
                let text: String = bundle
                    .x509_authorities
                    .iter()
                    .map(|a| pem::encode("CERTIFICATE", &a.der))
                    .collect();
                output::line(text.trim_end())?;
            }
            Form::Table => {
                let mut rows = Vec::new();
                for a in &bundle.x509_authorities {
                    let info = CertInfo::parse(&a.der)
                        .map_err(|e| Finding::new(Code::MalformedCertificate, e.to_string()))?;
                    rows.push(vec![
                        "x509".into(),
                        format!("sha256:{}", hex(&info.sha256)),
                        info.not_after.to_string(),
                        if a.tainted { "tainted".into() } else { info.subject },
                    ]);
                }
                for k in &bundle.jwt_authorities {
                    rows.push(vec![
                        "jwt".into(),
                        format!("kid:{}", k.key_id),
                        k.expires_at.map_or_else(String::new, |t| t.to_string()),
                        String::new(),
                    ]);
                }
                output::note(&format!(
                    "trust domain {}, sequence {}",
                    bundle.trust_domain, bundle.sequence
                ));
                output::table(&["KIND", "AUTHORITY", "UNTIL", "NAME"], &rows)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
