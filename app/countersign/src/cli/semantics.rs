//! Flags that say how policies are to be understood.

use clap::{Args, ValueEnum};
use countersign_findings::Finding;
use countersign_identity::TrustDomain;
use countersign_policy::{Mesh, Normalization, Semantics};

use super::invalid;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compat {
    /// As Istio's sidecar decides
    Istio,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NormalizationArg {
    /// Decode, resolve, merge; 400 for what could be read in two ways
    Strict,
    /// Leave paths as they are
    None,
    /// Istio's default
    Base,
    /// Base, and merge slashes
    MergeSlashes,
    /// Merge slashes, and take %2F and %5C for slashes
    DecodeAndMergeSlashes,
}

impl From<NormalizationArg> for Normalization {
    fn from(arg: NormalizationArg) -> Self {
        match arg {
            NormalizationArg::Strict => Normalization::Strict,
            NormalizationArg::None => Normalization::None,
            NormalizationArg::Base => Normalization::Base,
            NormalizationArg::MergeSlashes => Normalization::MergeSlashes,
            NormalizationArg::DecodeAndMergeSlashes => Normalization::DecodeAndMergeSlashes,
        }
    }
}

/// How policies are understood.
#[derive(Args, Clone, Debug)]
pub(crate) struct SemanticsFlags {
    /// Another name of the local trust domain; repeat for more
    #[arg(long, value_name = "TRUST-DOMAIN")]
    pub(crate) alias: Vec<String>,
    /// The namespace whose policies are for every namespace
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    pub(crate) root_namespace: String,
    /// Whose semantics count, if not Countersign's own
    #[arg(long, value_enum)]
    pub(crate) compat: Option<Compat>,
    /// How paths are normalised [default: strict; base with --compat istio]
    #[arg(long, value_enum)]
    pub(crate) normalization: Option<NormalizationArg>,
    /// Proxies in front that append to X-Forwarded-For and are believed: `remote.ip` is what the outermost saw
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=16))]
    pub(crate) trusted_hops: u8,
}

pub(crate) fn trust_domain(name: &str) -> Result<TrustDomain, Finding> {
    TrustDomain::new(name).map_err(|e| invalid(format!("trust domain `{name}`: {e}")))
}

impl SemanticsFlags {
    pub(crate) fn mesh(&self) -> Result<Mesh, Finding> {
        let istio = self.compat == Some(Compat::Istio);
        Ok(Mesh {
            aliases: self.alias.iter().map(|a| trust_domain(a)).collect::<Result<_, _>>()?,
            root_namespace: self.root_namespace.clone(),
            semantics: if istio { Semantics::Istio } else { Semantics::Strict },
            normalization: match self.normalization {
                Some(arg) => arg.into(),
                None if istio => Normalization::Base,
                None => Normalization::Strict,
            },
            trusted_hops: self.trusted_hops,
        })
    }
}
