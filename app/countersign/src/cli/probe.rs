//! `countersign probe`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::{Args, ValueEnum};
use countersign_findings::{Code, Finding, Severity};
use countersign_identity::{PrivateKeyDer, SpiffeId};
use countersign_keys::{Signer, read_bounded, read_private_key};
use countersign_probe::{
    CaFiles, ClientOptions, ClientProbe, Driver, Ended, Outcome, Protocol, Report, ServerOptions,
    probe_server,
};
use countersign_tls::current_time;
use countersign_tls::probe::ProbeIdentity;
use countersign_x509::pem;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::{Global, invalid, parse_duration};
use crate::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  countersign probe api.corp.test:8443                              what can be seen from outside
  countersign probe api.corp.test:8443 --ca-cert ca.pem --ca-key ca.key --id spiffe://corp.test/ns/shop/sa/web
                                                                    with certificates of the CA that it trusts
  countersign probe db.corp.test:5432 --protocol postgres --cert web.pem --key web.key --expect strict
  countersign probe --listen 127.0.0.1:9443 --ca-cert ca.pem --ca-key ca.key --server-name localhost -- \\
      curl -s --cacert ca.pem https://localhost:9443/               which servers does this client believe?

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
    /// With --listen: the client; run anew for each certificate. COUNTERSIGN_PROBE_ADDR holds the address
    #[arg(last = true, requires = "listen", value_name = "COMMAND")]
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
        print(&report, global)?;
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
        options.roots = self.bundle.as_deref().map(certificates).transpose()?.unwrap_or_default();
        options.server_id.clone_from(&self.server_id);
        options.path.clone_from(&self.path);
        options.also.clone_from(&self.also);
        options.timeout = self.timeout;
        options.max_connections = usize::from(self.max_connections);
        options.strict = self.expect == Some(Expect::Strict);
        probe_server(&options, current_time()).await
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
        let mut driver =
            Runner { command: self.command.clone(), address, child: None, group: None };
        probe.run(&mut driver).await
    }
}

/// Runs the client's command, or waits for somebody to do it.
struct Runner {
    command: Vec<String>,
    address: SocketAddr,
    child: Option<(Child, tokio::task::JoinHandle<String>)>,
    /// The process group of the child.
    group: Option<i32>,
}

/// As much of what a command says in the end as is told.
const LAST_WORDS: usize = 200;

impl Driver for Runner {
    async fn connect(&mut self, case: &str) -> Result<(), Finding> {
        let Some((program, arguments)) = self.command.split_first() else {
            output::note(&format!("{case}: connect now"));
            return Ok(());
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("COUNTERSIGN_PROBE_ADDR", self.address.to_string())
            .stdin(Stdio::null())
            // What it prints is of no interest, and would mix with ours.
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // What it starts in turn must not connect to the next certificate.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| {
            Finding::new(Code::FileUnreadable, format!("cannot start `{program}`: {e}"))
        })?;
        self.group = child.id().and_then(|id| i32::try_from(id).ok());
        let stderr = child.stderr.take();
        let said = tokio::spawn(async move {
            let mut last = Vec::new();
            let mut buf = [0; 4096];
            if let Some(mut stderr) = stderr {
                while let Ok(n @ 1..) = stderr.read(&mut buf).await {
                    last.extend_from_slice(&buf[..n]);
                    let too_much = last.len().saturating_sub(4096);
                    last.drain(..too_much);
                }
            }
            let text = String::from_utf8_lossy(&last).into_owned();
            let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
            line.trim().chars().filter(|c| !c.is_control()).take(LAST_WORDS).collect()
        });
        self.child = Some((child, said));
        Ok(())
    }

    async fn ended(&mut self) -> Ended {
        let Some((child, said)) = &mut self.child else { return std::future::pending().await };
        let status = child.wait().await;
        let said = tokio::time::timeout(Duration::from_millis(200), said).await;
        let said = said.ok().and_then(Result::ok).filter(|s| !s.is_empty());
        let how = match &status {
            Ok(status) => format!("ended with {status}"),
            Err(e) => e.to_string(),
        };
        let how = match said {
            Some(said) => format!("{how}: `{said}`"),
            None => how,
        };
        Ended { well: status.is_ok_and(|s| s.success()), how }
    }

    fn tells(&self) -> bool {
        !self.command.is_empty()
    }

    async fn stop(&mut self) {
        let Some((mut child, said)) = self.child.take() else { return };
        said.abort();
        // The group lives on while one of its processes does, so its number is not another's by now; where none
        // is left this fails, which is as well.
        if let Some(pid) = self.group.take().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = child.kill().await;
    }
}

fn print(report: &Report, global: &Global) -> Result<(), Finding> {
    if global.output == Format::Json {
        return output::json("countersign.probe/v1", report);
    }
    let rows: Vec<Vec<String>> = report
        .cases
        .iter()
        .map(|c| vec![c.id.clone(), c.outcome.as_str().to_owned(), c.evidence.clone()])
        .collect();
    output::table(&["TRIED", "OUTCOME", "EVIDENCE"], &rows)?;
    if !report.findings.is_empty() {
        output::line("")?;
        let rows: Vec<Vec<String>> = report
            .findings
            .iter()
            .map(|f| {
                let what = format!("{}: {}", f.title, f.evidence);
                vec![f.severity.as_str().to_owned(), f.rule.to_owned(), what]
            })
            .collect();
        output::table(&["SEVERITY", "RULE", "WHAT IS WRONG"], &rows)?;
        let mut told: Vec<&str> = Vec::new();
        for f in &report.findings {
            if !told.contains(&f.fix) {
                told.push(f.fix);
                output::note(&format!("fix ({}): {}", f.rule, f.fix));
            }
        }
    }
    for what in &report.not_tried {
        output::note(&format!("not tried: {what}"));
    }
    let unclear = report.cases.iter().filter(|c| c.outcome == Outcome::Unclear).count();
    let mut line = format!(
        "{} tried over {} connections, {} unclear, {} findings",
        report.cases.len(),
        report.connections,
        unclear,
        report.findings.len()
    );
    if let Some(negotiated) = &report.negotiated {
        line.push_str(&format!("; {negotiated}"));
    }
    output::note(&line);
    Ok(())
}
