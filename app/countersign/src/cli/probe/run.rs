//! Commands that the user gives a probe: the client that is probed, and what brings a revocation list to a server.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_keys::{random, write_atomic};
use countersign_probe::{Driver, Ended, Publisher};
use countersign_x509::pem;
use tokio::process::{Child, Command};

use crate::output;

/// As much of what a command says in the end as is told.
const LAST_WORDS: usize = 200;

/// What brings a list to the server may restart it.
const PUBLISH_LIMIT: Duration = Duration::from_secs(60);

fn temporary() -> PathBuf {
    let number = u64::from_be_bytes(random());
    std::env::temp_dir().join(format!("countersign-probe-{number:016x}"))
}

/// A file that is gone when nobody has it open.
fn nameless() -> std::io::Result<File> {
    let path = temporary();
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// A command that runs, with all that it starts.
struct Running {
    child: Child,
    /// Its standard error; a file without a name.
    log: File,
    /// Its process group.
    group: Option<i32>,
}

impl Running {
    fn start(words: &[String], variables: &[(&str, String)]) -> Result<Self, Finding> {
        let (program, arguments) =
            words.split_first().ok_or_else(|| crate::cli::invalid("a command is missing"))?;
        let unwritable = |e: std::io::Error| {
            Finding::new(
                Code::FileUnreadable,
                format!("cannot write to {}: {e}", std::env::temp_dir().display()),
            )
        };
        let log = nameless().map_err(unwritable)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            // What it prints is of no interest, and would mix with ours.
            .stdout(Stdio::null())
            // A file: what lives on after its turn may go on writing to it.
            .stderr(log.try_clone().map_err(unwritable)?)
            // What it starts in turn must not outlive its turn.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|e| {
            Finding::new(Code::FileUnreadable, format!("cannot start `{program}`: {e}"))
        })?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self { child, log, group })
    }

    async fn ended(&mut self) -> Ended {
        let status = self.child.wait().await;
        let how = match &status {
            Ok(status) => format!("ended with {status}"),
            Err(e) => e.to_string(),
        };
        let how = match self.last_words() {
            said if said.is_empty() => how,
            said => format!("{how}: `{said}`"),
        };
        Ended { well: status.is_ok_and(|s| s.success()), how }
    }

    /// The last line that it wrote to its standard error.
    fn last_words(&self) -> String {
        let mut last = [0; 4096];
        let length = self.log.metadata().map_or(0, |m| m.len());
        let from = length.saturating_sub(last.len() as u64);
        let n = self.log.read_at(&mut last, from).unwrap_or(0);
        let text = String::from_utf8_lossy(&last[..n]).into_owned();
        let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
        line.trim().chars().filter(|c| !c.is_control()).take(LAST_WORDS).collect()
    }

    async fn stop(mut self) {
        // The group lives on while one of its processes does, so its number is not another's by now; where none
        // is left this fails, which is as well.
        if let Some(pid) = self.group.take().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill().await;
    }
}

/// Runs the client that is probed, or waits for somebody to do it.
pub(super) struct Client {
    command: Vec<String>,
    address: SocketAddr,
    running: Option<Running>,
}

impl Client {
    pub(super) fn new(command: Vec<String>, address: SocketAddr) -> Self {
        Self { command, address, running: None }
    }
}

impl Driver for Client {
    async fn connect(&mut self, case: &str) -> Result<(), Finding> {
        if self.command.is_empty() {
            output::note(&format!("{case}: connect now"));
            return Ok(());
        }
        let variables = [("COUNTERSIGN_PROBE_ADDR", self.address.to_string())];
        self.running = Some(Running::start(&self.command, &variables)?);
        Ok(())
    }

    async fn ended(&mut self) -> Ended {
        match &mut self.running {
            Some(running) => running.ended().await,
            None => std::future::pending().await,
        }
    }

    fn tells(&self) -> bool {
        !self.command.is_empty()
    }

    async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }
}

/// Runs what brings a revocation list to the server.
pub(super) struct Publish {
    command: Vec<String>,
    /// Where the list lies; gone when the probe is over.
    directory: Option<PathBuf>,
}

impl Publish {
    pub(super) fn new(command: Vec<String>) -> Self {
        Self { command, directory: None }
    }

    /// The server may be somebody else's process, so it is readable by all, as lists are.
    fn write(&mut self, list: &[u8]) -> Result<PathBuf, Finding> {
        let unwritable = |what: String| Finding::new(Code::FileUnreadable, what);
        let directory = temporary();
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(&directory)
            .map_err(|e| unwritable(format!("{}: {e}", directory.display())))?;
        let path = directory.join("crl.pem");
        self.directory = Some(directory);
        let text = pem::encode("X509 CRL", list);
        write_atomic(&path, text.as_bytes(), 0o644).map_err(|e| e.finding())?;
        Ok(path)
    }
}

impl Publisher for Publish {
    async fn publish(&mut self, list: &[u8], serial: &str) -> Result<(), Finding> {
        let path = self.write(list)?;
        let variables = [
            ("COUNTERSIGN_PROBE_CRL", path.display().to_string()),
            ("COUNTERSIGN_PROBE_SERIAL", serial.to_owned()),
        ];
        let mut running = Running::start(&self.command, &variables)?;
        let ended = tokio::select! {
            ended = tokio::time::timeout(PUBLISH_LIMIT, running.ended()) => ended,
            () = crate::cli::interrupted() => {
                running.stop().await;
                return Err(Finding::new(Code::InvalidValue, "interrupted before the list was there"));
            }
        };
        let program = self.command.first().map(String::as_str).unwrap_or_default();
        let how = match ended {
            // A server that it started lives on.
            Ok(ended) if ended.well => return Ok(()),
            Ok(ended) => ended.how,
            Err(_) => format!("did not end within {} s", PUBLISH_LIMIT.as_secs()),
        };
        running.stop().await;
        let text = format!("`{program}` {how}");
        Err(Finding::new(Code::InvalidValue, text).hint(
            "the command after `--` brings the list in $COUNTERSIGN_PROBE_CRL to the server, and ends",
        ))
    }
}

impl Drop for Publish {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}
