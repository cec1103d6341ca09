//! `countersign id`: look at certificates, verify them, fetch one's own.

mod fetch;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use countersign_findings::{Code, Finding};
use countersign_identity::{Bundle, BundleSet, SpiffeId, UnixTime};
use countersign_tls::{current_time, presented_chain};
use countersign_x509::{
    CertInfo, CertificateDer, Crls, PeerRole, TrustStore, hex, pem, spiffe_leaf,
};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{Global, invalid};
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct IdCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print what certificates say: a PEM or DER file, `-` for standard input, or HOST:PORT
    Inspect {
        /// FILE, `-`, or HOST:PORT
        what: String,
    },
    /// Verify a chain against a bundle; exit code 0 if it holds
    Verify(Verify),
    /// Print, or write to files, the identities that the Workload API gives to the calling process
    Fetch(fetch::Fetch),
}

#[derive(Args)]
struct Verify {
    /// The chain in PEM, leaf first; `-` for standard input
    chain: PathBuf,
    /// The roots, PEM or a SPIFFE bundle document
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,
    /// The identity it must prove
    #[arg(long, value_name = "ID")]
    expect: Option<SpiffeId>,
    /// Verify as of this time, RFC 3339 or seconds [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Revocation lists, PEM or DER; repeat for more
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
}

const MAX: u64 = 16 << 20;

fn read(path: &Path) -> Result<Vec<u8>, Finding> {
    let mut out = Vec::new();
    let result = if path == Path::new("-") {
        std::io::stdin().take(MAX).read_to_end(&mut out)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(MAX).read_to_end(&mut out))
    };
    result.map_err(|e| {
        Finding::new(Code::FileUnreadable, format!("cannot read `{}`: {e}", path.display()))
    })?;
    Ok(out)
}

/// Certificates from PEM or one DER certificate.
fn certificates(bytes: &[u8], place: &str) -> Result<Vec<Vec<u8>>, Finding> {
    if bytes.first() == Some(&0x30) {
        return pem::split_der(bytes).filter(|c| !c.is_empty()).ok_or_else(|| {
            Finding::new(Code::MalformedCertificate, "not DER certificates").at(place.to_owned())
        });
    }
    pem::certificates(bytes).map_err(|e| {
        Finding::new(Code::PemMalformed, e.what.clone()).at(format!("{place}:{}", e.line))
    })
}

impl IdCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        match self.command {
            Command::Inspect { what } => inspect(&what, global.output).await,
            Command::Verify(v) => v.run(global.output),
            Command::Fetch(f) => f.run(global).await,
        }
    }
}

async fn inspect(what: &str, format: Format) -> Result<ExitCode, Finding> {
    let path = Path::new(what);
    let chain = if what == "-" || path.exists() {
        certificates(&read(path)?, what)?
    } else if let Some((host, port)) = what.rsplit_once(':')
        && !host.is_empty()
        && port.parse::<u16>().is_ok()
    {
        let unreachable = |e: &dyn std::fmt::Display| {
            Finding::new(Code::UpstreamUnreachable, format!("cannot connect to {what}: {e}"))
        };
        let timeout = Duration::from_secs(5);
        let stream = tokio::time::timeout(timeout, TcpStream::connect(what))
            .await
            .map_err(|e| unreachable(&e))?
            .map_err(|e| unreachable(&e))?;
        presented_chain(stream, timeout).await.map_err(|e| e.finding().at(what.to_owned()))?
    } else {
        return Err(Finding::new(Code::FileUnreadable, format!("`{what}` does not exist"))
            .expected("a file, `-`, or HOST:PORT"));
    };
    let mut infos = Vec::new();
    for (i, der) in chain.iter().enumerate() {
        infos.push(CertInfo::parse(der).map_err(|e| {
            Finding::new(Code::MalformedCertificate, e.to_string())
                .at(format!("{what}, certificate {i}"))
        })?);
    }
    match format {
        Format::Json => {
            let all: Vec<Value> = infos.iter().map(to_json).collect();
            output::json("countersign.certificates/v1", &json!({ "certificates": all }))?;
        }
        Format::Table => {
            for (i, info) in infos.iter().enumerate() {
                print(i, info)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn kind(info: &CertInfo) -> &'static str {
    match (info.is_ca, info.is_self_issued()) {
        (true, true) => "root CA",
        (true, false) => "intermediate CA",
        (false, _) => "leaf",
    }
}

/// What X509-SVID says of a leaf, from both ends.
fn judgement(info: &CertInfo) -> String {
    if info.is_ca {
        return match countersign_x509::spiffe_authority(info) {
            Ok(()) => "valid SPIFFE signing certificate".into(),
            Err(cause) => format!("no SPIFFE signing certificate: {cause}"),
        };
    }
    let both = [PeerRole::Server, PeerRole::Client].map(|role| spiffe_leaf(info, role));
    match both.into_iter().find_map(Result::err) {
        None => "valid X509-SVID leaf".into(),
        Some(cause) => format!("no X509-SVID: {cause}"),
    }
}

fn to_json(info: &CertInfo) -> Value {
    json!({
        "kind": kind(info), "serial": info.serial, "subject": info.subject, "issuer": info.issuer,
        "not_before": info.not_before.to_string(), "not_after": info.not_after.to_string(),
        "uri_sans": info.uri_sans, "dns_sans": info.dns_sans, "ip_sans": info.ip_sans,
        "is_ca": info.is_ca, "path_len": info.path_len,
        "key_type": info.key_type, "signature_algorithm": info.signature_algorithm,
        "extended_key_usage": info.extended_key_usage, "sha256": hex(&info.sha256),
        "judgement": judgement(info),
    })
}

fn print(i: usize, info: &CertInfo) -> Result<(), Finding> {
    let now = current_time();
    let state = if now > info.not_after {
        format!("EXPIRED {} s ago", now.since(info.not_after).as_secs())
    } else if now < info.not_before {
        format!("NOT YET VALID for {} s", info.not_before.since(now).as_secs())
    } else {
        format!("{} s left", info.not_after.since(now).as_secs())
    };
    output::line(&format!("[{i}] {}  {}  serial {}", kind(info), info.key_type, info.serial))?;
    for uri in &info.uri_sans {
        output::line(&format!("    id       {uri}"))?;
    }
    if !info.dns_sans.is_empty() {
        output::line(&format!("    dns      {}", info.dns_sans.join(", ")))?;
    }
    output::line(&format!("    subject  {}", info.subject))?;
    output::line(&format!("    issuer   {}", info.issuer))?;
    output::line(&format!("    valid    {} to {}  ({state})", info.not_before, info.not_after))?;
    output::line(&format!("    sha256   {}", hex(&info.sha256)))?;
    output::line(&format!("    svid     {}", judgement(info)))
}

impl Verify {
    fn run(&self, format: Format) -> Result<ExitCode, Finding> {
        let place = self.chain.display().to_string();
        let chain = certificates(&read(&self.chain)?, &place)?;
        let now = match &self.at {
            None => current_time(),
            Some(t) => UnixTime::parse(t)
                .ok_or_else(|| invalid(format!("`{t}` is neither RFC 3339 nor seconds")))?,
        };
        let leaf = CertInfo::parse(&chain[0]).map_err(|e| {
            Finding::new(Code::MalformedCertificate, e.to_string()).at(place.clone())
        })?;
        // The bundle is of the trust domain expected, or else of the one that the leaf names.
        let td = match &self.expect {
            Some(id) => Some(id.trust_domain().clone()),
            None => leaf
                .uri_sans
                .first()
                .and_then(|u| SpiffeId::parse(u).ok())
                .map(|id| id.trust_domain().clone()),
        };
        let bundle_bytes = read(&self.bundle)?;
        let bundle_place = self.bundle.display().to_string();
        let bundles = match td {
            None => BundleSet::default(),
            Some(td) => {
                let text = bundle_bytes.trim_ascii_start();
                let bundle = if text.first() == Some(&b'{') {
                    countersign_jose::bundle_from_jwks(&td, text).map_err(|e| {
                        Finding::new(Code::ConfigSyntax, e.to_string()).at(bundle_place.clone())
                    })?
                } else {
                    Bundle::of_x509(td, certificates(&bundle_bytes, &bundle_place)?)
                };
                BundleSet::collect([bundle]).map_err(|e| invalid(e.to_string()))?
            }
        };
        let store = TrustStore::new(&bundles, 0).map_err(|e| {
            Finding::new(Code::MalformedCertificate, e.to_string()).at(bundle_place)
        })?;
        let mut lists = Vec::new();
        for path in &self.crl {
            let bytes = read(path)?;
            if bytes.first() == Some(&0x30) {
                lists.push(bytes);
            } else {
                let blocks = pem::parse(&bytes).map_err(|e| {
                    Finding::new(Code::PemMalformed, e.what.clone()).at(format!(
                        "{}:{}",
                        path.display(),
                        e.line
                    ))
                })?;
                lists.extend(blocks.into_iter().filter(|b| b.label == "X509 CRL").map(|b| b.der));
            }
        }
        let crls = Crls::from_ders(lists.iter().map(Vec::as_slice))
            .map_err(|e| Finding::new(Code::RevocationUnknown, e))?;
        let ders: Vec<CertificateDer<'_>> =
            chain.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
        let peer = store
            .verify(&ders, PeerRole::Server, now, &crls)
            .and_then(|p| match &self.expect {
                Some(id) if id != p.id() => Err(countersign_x509::ChainError {
                    cause: countersign_x509::ChainCause::WrongSpiffeId {
                        presented: p.id().clone(),
                        expected: id.to_string(),
                    },
                    now,
                    presented: p.id().to_string(),
                    trusted: String::new(),
                }),
                _ => Ok(p),
            })
            .map_err(|e| e.finding().at(place.clone()))?;
        match format {
            Format::Json => output::json(
                "countersign.verify/v1",
                &json!({
                    "ok": true, "id": peer.id().to_string(), "not_after": peer.not_after().to_string(),
                    "root_sha256": hex(peer.authority_sha256()), "at": now.to_string(),
                }),
            )?,
            Format::Table => {
                output::line(&format!("ok  {}", peer.id()))?;
                output::line(&format!("    until {}", peer.not_after()))?;
                output::line(&format!("    root  sha256:{}", hex(peer.authority_sha256())))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
