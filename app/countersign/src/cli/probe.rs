//! `countersign probe`.

mod print;
mod run;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use countersign_findings::{Code, Finding, Severity};
use countersign_identity::{PrivateKeyDer, SpiffeId};
use countersign_keys::{Signer, read_bounded, read_private_key};
use countersign_probe::{
    CaFiles, ClientOptions, ClientProbe, Protocol, Report, Revocation, ServerOptions, probe_server,
};
use countersign_tls::current_time;
use countersign_tls::probe::ProbeIdentity;
use countersign_x509::{RevocationList, pem};

use super::{Global, invalid, parse_duration};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  # what can be seen from outside
  countersign probe api.corp.test:8443
  # with certificates of the CA that it trusts
  countersign probe api.corp.test:8443 --ca-cert ca.pem --ca-key ca.key --id spiffe://corp.test/web
  # a database, and everything wrong must be refused
  countersign probe db.corp.test:5432 --protocol postgres --cert web.pem --key web.key --expect strict
  # does a revoked certificate get in with an old session?
  countersign probe api.corp.test:8443 --ca-cert ca.pem --ca-key ca.key --revoke -- \\
      sh -c 'cp $COUNTERSIGN_PROBE_CRL /etc/nginx/crl.pem && nginx -s reload'
  # which servers does this client believe?
  countersign probe --listen 127.0.0.1:9443 --ca-cert ca.pem --ca-key ca.key -- \\
      curl -s --cacert ca.pem https://localhost:9443/

Certificates are made in memory and live for an hour. Probe only what you may probe.
Exit codes: 0 nothing at or above --fail-on, 10 findings, 4 nobody answers.";

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ProtocolArg {
    /// HTTP, by what ALPN chooses; bytes if no HTTP comes back
    #[default]
    Auto,
    /// HTTP/1.1
    Http,
    /// HTTP/2
    Http2,
    /// gRPC
    Grpc,
    /// Bytes
    Tcp,
    /// PostgreSQL, TLS by its SSLRequest
    Postgres,
    /// MySQL, TLS by its SSLRequest
    Mysql,
    /// SMTP with STARTTLS
    Smtp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Expect {
    /// Everything wrong is refused, and that is shown
    Strict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Low,
    Medium,
    High,
    Critical,
}

/// Finds out what a live endpoint, or a client, really accepts.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ProbeCommand {
    /// The server to probe
    #[arg(value_name = "HOST:PORT", required_unless_present = "listen")]
    target: Option<String>,
    /// Probe a client instead: listen here, and show it other certificates each time it connects
    #[arg(long, value_name = "ADDR", value_parser = listen_address, requires = "ca_cert",
        conflicts_with_all = ["target", "also", "protocol", "cert", "other_cert", "revoked_cert", "bundle", "server_id", "path", "max_connections"])]
    listen: Option<SocketAddr>,
    /// What is spoken, and how TLS begins
    #[arg(long, value_enum, default_value_t)]
    protocol: ProtocolArg,
    /// The name sent as SNI [default: HOST]; with --listen, the name that the client dials [default: localhost]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// The CA that the other end trusts, in PEM, the issuing certificate first
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// Its key (PKCS#8, mode 0600); used in memory, to make certificates for this probe
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// The identity that may call; with --listen, the one that the client expects
    #[arg(long, value_name = "SPIFFE-ID")]
    id: Option<SpiffeId>,
    /// A client certificate that is right, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// A client certificate of the right CA, of somebody who may not call
    #[arg(long, value_name = "FILE", requires = "other_key")]
    other_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "other_cert")]
    other_key: Option<PathBuf>,
    /// A client certificate that has been revoked
    #[arg(long, value_name = "FILE", requires = "revoked_key")]
    revoked_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "revoked_cert")]
    revoked_key: Option<PathBuf>,
    /// Revoke a certificate made by --ca-cert while a session and a connection of it are alive: the COMMAND after `--`
    /// brings the list in $COUNTERSIGN_PROBE_CRL to the server
    #[arg(long, requires = "ca_cert", requires = "command", conflicts_with = "listen")]
    revoke: bool,
    /// With --revoke: the list in force (PEM or DER), whose entries are taken over
    #[arg(long, value_name = "FILE", requires = "revoke")]
    crl: Option<PathBuf>,
    /// With --revoke: how long the server may take to know
    #[arg(long, value_parser = parse_duration, default_value = "10s", value_name = "DURATION", requires = "revoke")]
    revoke_within: Duration,
    /// Roots of the server's certificate, in PEM
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Who the server must be
    #[arg(long, value_name = "SPIFFE-ID")]
    server_id: Option<SpiffeId>,
    /// The path that HTTP requests ask for
    #[arg(long, default_value = "/", value_name = "PATH")]
    path: String,
    /// Another port, where the same must not be had for less; repeat for more
    #[arg(long, value_name = "HOST:PORT")]
    also: Vec<String>,
    /// What must hold: also report what could not be shown to be refused
    #[arg(long, value_enum)]
    expect: Option<Expect>,
    /// The least severity that makes the exit code 10
    #[arg(long, value_enum, default_value = "medium")]
    fail_on: FailOn,
    /// For each connection and each answer
    #[arg(long, value_parser = parse_duration, default_value = "5s", value_name = "DURATION")]
    timeout: Duration,
    /// Connections, at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    max_connections: u16,
    /// With --listen: the client; run anew for each certificate. COUNTERSIGN_PROBE_ADDR holds the address. With
    /// --revoke: what brings the list to the server
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl From<ProtocolArg> for Protocol {
    fn from(arg: ProtocolArg) -> Self {
        match arg {
            ProtocolArg::Auto => Protocol::Auto,
            ProtocolArg::Http => Protocol::Http,
            ProtocolArg::Http2 => Protocol::Http2,
            ProtocolArg::Grpc => Protocol::Grpc,
            ProtocolArg::Tcp => Protocol::Tcp,
            ProtocolArg::Postgres => Protocol::Postgres,
            ProtocolArg::Mysql => Protocol::Mysql,
            ProtocolArg::Smtp => Protocol::Smtp,
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, Finding> {
    let bytes = read_bounded(path, 4 << 20).map_err(|e| e.finding())?;
    pem::certificates(&bytes).map_err(|e| {
        Finding::new(Code::PemMalformed, e.what).at(format!("{}:{}", path.display(), e.line))
    })
}

/// PEM or DER.
fn revocation_list(path: &Path) -> Result<RevocationList, Finding> {
    let bytes = read_bounded(path, 4 << 20).map_err(|e| e.finding())?;
    let at = path.display();
    let der = match bytes.starts_with(b"-----BEGIN") {
        false => bytes,
        true => {
            let blocks = pem::parse(&bytes).map_err(|e| {
                Finding::new(Code::PemMalformed, e.what).at(format!("{at}:{}", e.line))
            })?;
            let list = blocks.into_iter().find(|b| b.label == "X509 CRL");
            list.ok_or_else(|| invalid(format!("`{at}` holds no `X509 CRL`")))?.der
        }
    };
    RevocationList::parse(&der)
        .map_err(|e| invalid(format!("`{at}` is no revocation list: {e}")).at(at.to_string()))
}

/// `ADDR:PORT`, `localhost:PORT` or `PORT`.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None if text.parse::<u16>().is_ok() => format!("127.0.0.1:{text}"),
        None => text.to_owned(),
    };
    numeric.parse().map_err(|_| "write for example 127.0.0.1:9443, or 9443".to_owned())
}

/// A key with its certificate; the two must belong together.
fn pair(cert: &Path, key: &Path) -> Result<(Vec<Vec<u8>>, PrivateKeyDer), Finding> {
    let chain = certificates(cert)?;
    let private = read_private_key(key).map_err(|e| e.finding())?;
    let leaf = chain.first().and_then(|c| countersign_x509::CertInfo::parse(c).ok());
    if leaf.is_some_and(|l| l.spki_der != private.public_key_spki()) {
        let text = format!("`{}` is not the key of `{}`", key.display(), cert.display());
        return Err(Finding::new(Code::KeyCertificateMismatch, text)
            .hint("give the key that was made for the first certificate of that file"));
    }
    Ok((chain, private.pkcs8().clone()))
}

fn identity(
    cert: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> Result<Option<ProbeIdentity>, Finding> {
    let (Some(cert), Some(key)) = (cert, key) else { return Ok(None) };
    let (chain, key) = pair(cert, key)?;
    Ok(Some(ProbeIdentity { chain, key }))
}

impl ProbeCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let ca = match (&self.ca_cert, &self.ca_key) {
            (Some(cert), Some(key)) => {
                let (certificates, key) = pair(cert, key)?;
                Some(CaFiles { certificates, key })
            }
            _ => None,
        };
        let report = match (self.listen, ca) {
            (Some(address), Some(ca)) => self.client(address, ca).await?,
            (_, ca) => self.server(ca).await?,
        };
        print::print(&report, global)?;
        if let Some(why) = report.failed {
            return Err(why);
        }
        let least = match self.fail_on {
            FailOn::Low => Severity::Low,
            FailOn::Medium => Severity::Medium,
            FailOn::High => Severity::High,
            FailOn::Critical => Severity::Critical,
        };
        let failed = report.findings.iter().any(|f| f.severity >= least);
        Ok(if failed { ExitCode::from(10) } else { ExitCode::SUCCESS })
    }

    async fn server(&self, ca: Option<CaFiles>) -> Result<Report, Finding> {
        let target = self.target.clone().unwrap_or_default();
        for address in std::iter::once(&target).chain(&self.also) {
            let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                return Err(invalid(format!("`{address}` is not HOST:PORT"))
                    .hint("write for example api.corp.test:8443"));
            }
        }
        if !self.path.starts_with('/') || self.path.bytes().any(|b| b <= b' ' || b >= 0x7f) {
            return Err(invalid(format!("--path: `{}` is not a path", self.path.escape_default())));
        }
        let mut options = ServerOptions::new(target);
        options.server_name.clone_from(&self.server_name);
        options.protocol = self.protocol.into();
        options.ca = ca;
        options.right = identity(self.cert.as_ref(), self.key.as_ref())?;
        options.id = match (&self.id, &options.right) {
            (Some(id), _) => Some(id.clone()),
            // The certificate that is right says who may call.
            (None, Some(right)) => right
                .chain
                .first()
                .and_then(|leaf| countersign_x509::CertInfo::parse(leaf).ok())
                .and_then(|leaf| SpiffeId::parse(leaf.uri_sans.first()?).ok()),
            (None, None) => None,
        };
        options.other = identity(self.other_cert.as_ref(), self.other_key.as_ref())?;
        options.revoked = identity(self.revoked_cert.as_ref(), self.revoked_key.as_ref())?;
        options.revocation = self.revocation(options.ca.as_ref())?;
        options.roots = self.bundle.as_deref().map(certificates).transpose()?.unwrap_or_default();
        options.server_id.clone_from(&self.server_id);
        options.path.clone_from(&self.path);
        options.also.clone_from(&self.also);
        options.timeout = self.timeout;
        options.max_connections = usize::from(self.max_connections);
        options.strict = self.expect == Some(Expect::Strict);
        let mut publish = run::Publish::new(self.command.clone());
        probe_server(&options, &mut publish, current_time()).await
    }

    fn revocation(&self, ca: Option<&CaFiles>) -> Result<Option<Revocation>, Finding> {
        if !self.revoke {
            return match self.command.is_empty() {
                true => Ok(None),
                false => Err(invalid("a COMMAND without --listen or --revoke")
                    .hint("with --listen it is the client, with --revoke what brings a revocation list to the server")),
            };
        }
        let extends = self.crl.as_deref().map(revocation_list).transpose()?;
        let issuer = ca
            .and_then(|ca| ca.certificates.first())
            .and_then(|der| countersign_x509::CertInfo::parse(der).ok());
        if let (Some(list), Some(issuer), Some(path)) = (&extends, &issuer, &self.crl)
            && !list.may_be_of(issuer)
        {
            let text = format!("`{}` is no list of `{}`", path.display(), issuer.display_name());
            return Err(invalid(text).hint("give the list of the CA in --ca-cert"));
        }
        Ok(Some(Revocation { extends, within: self.revoke_within }))
    }

    async fn client(&self, address: SocketAddr, ca: CaFiles) -> Result<Report, Finding> {
        let options = ClientOptions {
            ca,
            name: self.server_name.clone().unwrap_or_else(|| "localhost".into()),
            id: self.id.clone(),
            timeout: self.timeout.max(Duration::from_secs(1)),
            strict: self.expect == Some(Expect::Strict),
        };
        let by_hand = self.command.is_empty();
        let options = match by_hand {
            // People take their time.
            true => ClientOptions { timeout: Duration::from_secs(120), ..options },
            false => options,
        };
        let probe = ClientProbe::listen(address, options, current_time()).await?;
        let address = probe.address()?;
        if by_hand {
            let text = format!("listening on {address}; let the client connect once for each line");
            output::note(&text);
        }
        probe.run(&mut run::Client::new(self.command.clone(), address)).await
    }
}
