//! The process at the other end of a Unix socket.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

/// A caller, pinned by pidfd and start time: a process that reuses the pid is told apart.
#[derive(Clone, Debug)]
pub struct PeerProcess {
    /// Process id.
    pub pid: i32,
    /// User id of the caller when it connected.
    pub uid: u32,
    /// Group id of the caller when it connected.
    pub gid: u32,
    start_time: u64,
    pidfd: Arc<OwnedFd>,
}

/// Why nothing reliable can be said about a caller.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The kernel does not say who it is.
    #[error("peer credentials are not available: {0}")]
    Credentials(io::Error),
    /// It ended, or another process has its pid now.
    #[error("process {0} ended, or is not the one that connected")]
    Gone(i32),
}

impl PeerProcess {
    /// Identifies the peer of `stream` (SO_PEERCRED) and pins it.
    pub fn of(stream: &UnixStream) -> Result<Self, ProcessError> {
        let cred = stream.peer_cred().map_err(ProcessError::Credentials)?;
        let pid = cred.pid().ok_or_else(|| {
            ProcessError::Credentials(io::Error::other("caller lives in another pid namespace"))
        })?;
        Self::pin(pid, cred.uid(), cred.gid())
    }

    fn pin(pid: i32, uid: u32, gid: u32) -> Result<Self, ProcessError> {
        let gone = || ProcessError::Gone(pid);
        let raw = Pid::from_raw(pid).ok_or_else(gone)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|_| gone())?;
        let start_time = start_time_of(pid).ok_or_else(gone)?;
        let process = Self { pid, uid, gid, start_time, pidfd: Arc::new(pidfd) };
        process.still_alive()?;
        Ok(process)
    }

    /// Fails if the process ended or its pid names another one now. Facts read from `/proc` count only
    /// if this succeeds after they were read.
    pub fn still_alive(&self) -> Result<(), ProcessError> {
        let gone = || ProcessError::Gone(self.pid);
        // A pidfd becomes readable when its process ends.
        let mut fds = [rustix::event::PollFd::new(&*self.pidfd, rustix::event::PollFlags::IN)];
        let ready = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default()))
            .map_err(|_| gone())?;
        if ready > 0 || start_time_of(self.pid) != Some(self.start_time) {
            return Err(gone());
        }
        Ok(())
    }

    /// When it started, in clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }
}

/// Raises the soft limit of open files to the hard one: each connection costs at least one.
pub fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// This process' effective user id.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Field 22 of `/proc/<pid>/stat`. The command name before it may hold anything, so fields are counted
/// from the last `)`.
pub fn start_time_of(pid: i32) -> Option<u64> {
    stat_field(pid, 19)?.parse().ok()
}

/// The parent's pid.
pub fn parent_of(pid: i32) -> Option<i32> {
    stat_field(pid, 1)?.parse().ok()
}

/// Memory in use that is not swapped out, bytes; `None` if the process is gone or hidden.
pub fn resident_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// This process.
pub fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn stat_field(pid: i32, after_name: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(after_name).map(str::to_owned)
}

/// Whether `pid` is `ancestor` (started at `start_time`) or descends from it.
pub fn is_descendant(pid: i32, ancestor: i32, start_time: u64) -> bool {
    let mut current = pid;
    // Deeper trees than this do not occur; the bound guards against races in /proc.
    for _ in 0..64 {
        if current == ancestor {
            return start_time_of(current) == Some(start_time);
        }
        match parent_of(current) {
            Some(parent) if parent > 0 => current = parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_peer_of_a_socket_pair_is_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = PeerProcess::of(&a).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        peer.still_alive().unwrap();
        assert_eq!(own_pid(), peer.pid);
        assert!(resident_bytes(peer.pid).unwrap() > 100_000);
        assert!(is_descendant(
            peer.pid,
            parent_of(peer.pid).unwrap(),
            start_time_of(parent_of(peer.pid).unwrap()).unwrap()
        ));
        assert!(!is_descendant(1, peer.pid, peer.start_time()));
        assert!(!is_descendant(peer.pid, peer.pid, 1), "same pid, another process");
    }

    #[test]
    fn a_process_that_ended_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pinned = PeerProcess::pin(pid, 0, 0).unwrap();
        pinned.still_alive().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(pinned.still_alive(), Err(ProcessError::Gone(_))));
    }
}
