//! Listening sockets.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use countersign_findings::{Code, Finding};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// Why a socket cannot be opened for listening.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {place}: {source}")]
pub struct ListenError {
    place: String,
    source: io::Error,
}

impl ListenError {
    /// The catalogue's view.
    pub fn finding(&self) -> Finding {
        let code = if self.source.kind() == io::ErrorKind::AddrInUse {
            Code::AddressInUse
        } else {
            Code::CannotListen
        };
        Finding::new(code, self.to_string()).at(self.place.clone())
    }
}

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Binds a TCP listener; with `shared` several may bind the same address and the kernel spreads
/// connections over them (one per worker thread). The first must be bound unshared to notice that a
/// foreign process has the address, see `probe` in the callers.
pub fn bind_tcp(addr: SocketAddr, shared: bool) -> Result<TcpListener, ListenError> {
    let open = || -> io::Result<TcpListener> {
        let domain = if addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if shared {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|source| ListenError { place: addr.to_string(), source })
}

/// Binds a Unix socket with the given mode. A socket file that nobody listens on any more (left by a
/// killed process) is replaced; anything else there is an error.
pub fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    let fail = |source| ListenError { place: path.display().to_string(), source };
    // sun_path holds 108 bytes including the terminating zero.
    if path.as_os_str().len() > 107 {
        return Err(fail(io::Error::new(
            io::ErrorKind::InvalidInput,
            "path is longer than the 107 bytes a Unix socket may have; use a shorter --data-dir",
        )));
    }
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(fail(io::Error::new(io::ErrorKind::AlreadyExists, "a file is in the way")));
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(fail(io::ErrorKind::AddrInUse.into())),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(fail)?;
            }
            Err(e) => return Err(fail(e)),
        }
    }
    // Bound under a private name first, so that nobody connects before the mode is right.
    let temporary: PathBuf = path.with_extension(format!("{}.tmp", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).map_err(fail)?;
    let finish = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(e) = finish {
        let _ = std::fs::remove_file(&temporary);
        return Err(fail(e));
    }
    Ok(listener)
}

/// Options for every connection: no Nagle delay, keep-alive so that dead peers are noticed.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(std::time::Duration::from_secs(60))
        .with_interval(std::time::Duration::from_secs(15));
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
