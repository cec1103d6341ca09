//! The command line: one file per command.

mod agent;
mod apply;
mod bundle;
mod ca;
mod check;
mod completion;
mod demo;
mod documents;
mod entry;
mod ext_authz;
mod id;
mod init;
mod issuers;
mod legacy;
mod policy;
mod probe;
mod proxy;
mod review;
mod run;
mod semantics;
mod server;
mod status;
mod token;
mod up;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use countersign_findings::{Code, Finding};
use countersign_telemetry::{LogFormat, init_logs};

use crate::output::{self, Format};
use crate::paths;

const EXAMPLES: &str = "\
Examples:
  countersign demo                                  see it work, on loopback, in a temporary directory
  countersign init --trust-domain corp.test         make a certificate authority
  countersign up                                    run server and agent on this host
  countersign run --id /ns/shop/sa/web -- ./web     give a command an identity and a sidecar

Exit codes:
  0 ok   1 failed   2 usage or bad input   3 nothing to examine   4 unreachable or unauthenticated
  5 refused by policy   10 findings or changes   70 internal error";

/// A cryptographic identity for every service, and connections where both ends prove theirs.
#[derive(Parser)]
#[command(name = "countersign", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Where help lists the flags of every command.
const GLOBAL: &str = "Options of every command";

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Where data is kept [default: /var/lib/countersign for root, else ~/.local/share/countersign]
    #[arg(long, global = true, help_heading = GLOBAL, env = "COUNTERSIGN_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How data is printed
    #[arg(short, long, global = true, help_heading = GLOBAL, value_enum, default_value_t)]
    output: Format,
    /// More log lines (-v debug, -vv trace)
    #[arg(short, long, global = true, help_heading = GLOBAL, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Fewer log lines (-q warnings, -qq errors)
    #[arg(short, long, global = true, help_heading = GLOBAL, action = clap::ArgAction::Count)]
    quiet: u8,
    /// Log lines as JSON
    #[arg(long, global = true, help_heading = GLOBAL)]
    log_json: bool,
    /// Log filter, for example `info,h2=debug`
    #[arg(long, global = true, help_heading = GLOBAL, env = "COUNTERSIGN_LOG", value_name = "FILTER")]
    log: Option<String>,
}

impl Global {
    fn data_dir(&self) -> Result<PathBuf, Finding> {
        paths::data_dir(self.data_dir.clone())
    }
}

#[derive(Subcommand)]
enum Command {
    /// Show everything at work: CA, server, agent, two sidecars, allowed and refused calls
    Demo(demo::Demo),
    /// Make a certificate authority in the data directory
    Init(init::Init),
    /// Run server and agent in one process
    Up(up::Up),
    /// Run the server
    Server(server::ServerCommand),
    /// Run the agent
    Agent(agent::AgentCommand),
    /// Print a join string that admits one agent
    Token(token::Token),
    /// Start a command with an identity and a sidecar; both end together
    Run(run::Run),
    /// Run a proxy
    Proxy(Box<proxy::ProxyCommand>),
    /// Registration entries: who gets which identity
    Entry(entry::EntryCommand),
    /// Apply entries and policies from YAML files; all or nothing
    Apply(apply::Apply),
    /// Answer Envoy's external authorization (ext_authz) by policies
    ExtAuthz(ext_authz::ExtAuthzCommand),
    /// Say what an error of TLS means, whoever wrote it; or why a workload has its identity, or has not
    Why(why::Why),
    /// Find out what a live endpoint, or a client, really accepts
    Probe(Box<probe::ProbeCommand>),
    /// Find flaws of mTLS and identity in source, configuration and key material
    Review(review::ReviewCommand),
    /// Policies: explain, decide, test, compare, suggest, lint, list, delete
    Policy(policy::PolicyCommand),
    /// Look at certificates and verify them
    Id(id::IdCommand),
    /// Show the trust bundle
    Bundle(bundle::BundleCommand),
    /// Certificate authorities: show, roll over
    Ca(ca::CaCommand),
    /// Check health: authorities, clock, entries, policies, proxies, certificates; or files
    Check(check::CheckCommand),
    /// Show what runs and whether it is well
    Status(status::StatusCommand),
    /// Print a completion script for a shell
    Completion(completion::Completion),
}

/// Runs a parsed command.
pub(crate) fn run(cli: Cli) -> ExitCode {
    countersign_sys::raise_open_files();
    let global = cli.global;
    let quiet_by_default = !matches!(
        cli.command,
        Command::Server(_)
            | Command::Agent(_)
            | Command::Up(_)
            | Command::Proxy(_)
            | Command::Run(_)
    );
    let level = match (i32::from(global.verbose) - i32::from(global.quiet), quiet_by_default) {
        (..=-2, _) => "error",
        (-1, _) | (0, true) => "warn",
        (0, false) => "info",
        (1, _) => "debug",
        _ => "trace",
    };
    let format = if global.log_json { LogFormat::Json } else { LogFormat::Text };
    init_logs(format, global.log.as_deref().unwrap_or(level));
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => {
                return output::fail(
                    &Finding::new(Code::InternalError, format!("cannot start: {e}")),
                    global.output,
                );
            }
        };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Demo(c) => c.run(&global).await,
            Command::Init(c) => c.run(&global).await,
            Command::Up(c) => c.run(&global).await,
            Command::Server(c) => c.run(&global).await,
            Command::Agent(c) => c.run(&global).await,
            Command::Token(c) => c.run(&global).await,
            Command::Run(c) => c.run(&global).await,
            Command::Proxy(c) => c.run(&global).await,
            Command::Entry(c) => c.run(&global).await,
            Command::Apply(c) => c.run(&global).await,
            Command::ExtAuthz(c) => c.run(&global).await,
            Command::Why(c) => c.run(&global).await,
            Command::Probe(c) => c.run(&global).await,
            Command::Review(c) => c.run(&global),
            Command::Policy(c) => c.run(&global).await,
            Command::Id(c) => c.run(&global).await,
            Command::Bundle(c) => c.run(&global).await,
            Command::Ca(c) => c.run(&global).await,
            Command::Check(c) => c.run(&global).await,
            Command::Status(c) => c.run(&global).await,
            Command::Completion(c) => c.run(),
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(code) => code,
        Err(finding) => output::fail(&finding, global.output),
    }
}

/// Resolves on SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}

/// `1h30m`, `45s`, `2d`, or plain seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a duration; write for example 90s, 30m, 1h30m or 2d");
    if let Ok(secs) = text.parse::<u64>() {
        return if secs > 0 { Ok(Duration::from_secs(secs)) } else { Err(bad()) };
    }
    let mut total = 0u64;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            'd' => 86_400,
            'h' => 3_600,
            'm' => 60,
            's' => 1,
            _ => return Err(bad()),
        };
        let n: u64 = number.parse().map_err(|_| bad())?;
        number.clear();
        total = n.checked_mul(unit).and_then(|n| total.checked_add(n)).ok_or_else(bad)?;
    }
    if number.is_empty() && total > 0 { Ok(Duration::from_secs(total)) } else { Err(bad()) }
}

/// A bad value on the command line.
fn invalid(what: impl Into<String>) -> Finding {
    Finding::new(Code::InvalidValue, what)
}

/// Serves metrics and health if an address was given; the address bound.
fn serve_admin(
    address: Option<std::net::SocketAddr>,
    metrics: std::sync::Arc<countersign_telemetry::Metrics>,
    health: countersign_telemetry::Health,
) -> Result<Option<std::net::SocketAddr>, Finding> {
    let Some(address) = address else { return Ok(None) };
    let listener = countersign_sys::bind_tcp(address, false).map_err(|e| e.finding())?;
    let bound = listener.local_addr().ok();
    tokio::spawn(countersign_telemetry::AdminServer::new(metrics, health).run(listener));
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "0", "1x", "h", "1h5", "-1"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
