//! Flags that say which token issuers may be asked for their keys.

use std::path::PathBuf;

use clap::Args;
use countersign_findings::{Code, Finding};
use countersign_issuers::IssuerOptions;
use countersign_keys::read_bounded;
use countersign_policy::{Cidr, MAX_INPUT};
use countersign_x509::pem;

use super::invalid;

/// Where keys of token issuers come from (`jwksUri`, discovery).
#[derive(Args, Clone, Debug)]
pub(crate) struct IssuerFlags {
    /// Roots in PEM for the servers of token issuers, instead of those that this host trusts
    #[arg(long, value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
    /// A block of addresses where a token issuer may be although it is loopback or link-local; repeat for more
    #[arg(long, value_name = "CIDR")]
    issuer_address: Vec<String>,
    /// Fetch keys of token issuers over plain HTTP too: whoever is on the way can replace them
    #[arg(long)]
    issuer_plaintext: bool,
}

impl IssuerFlags {
    pub(crate) fn options(&self) -> Result<IssuerOptions, Finding> {
        let block = |text: &String| {
            text.parse::<Cidr>().map_err(|e| invalid(format!("--issuer-address: {e}")))
        };
        let roots = match &self.issuer_ca {
            None => Vec::new(),
            Some(path) => {
                let bytes = read_bounded(path, MAX_INPUT as u64).map_err(|e| e.finding())?;
                pem::certificates(&bytes).map_err(|e| {
                    let place = format!("{}:{}", path.display(), e.line);
                    Finding::new(Code::PemMalformed, e.what).at(place)
                })?
            }
        };
        Ok(IssuerOptions {
            roots,
            addresses: self.issuer_address.iter().map(block).collect::<Result<_, _>>()?,
            plaintext: self.issuer_plaintext,
        })
    }
}
