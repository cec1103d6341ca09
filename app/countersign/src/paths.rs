//! Where things are by default.

use std::path::PathBuf;

use countersign_findings::{Code, Finding};

/// The data directory: `--data-dir`, `COUNTERSIGN_DATA_DIR`, `/var/lib/countersign` for root, else
/// `$XDG_DATA_HOME/countersign` or `~/.local/share/countersign`.
pub(crate) fn data_dir(given: Option<PathBuf>) -> Result<PathBuf, Finding> {
    if let Some(dir) = given {
        return std::path::absolute(&dir)
            .map_err(|e| Finding::new(Code::InvalidValue, format!("--data-dir: {e}")));
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/countersign".into());
    }
    if let Some(base) = std::env::var_os("XDG_DATA_HOME").filter(|v| !v.is_empty()) {
        return Ok(PathBuf::from(base).join("countersign"));
    }
    std::env::var_os("HOME")
        .filter(|v| !v.is_empty())
        .map(|home| PathBuf::from(home).join(".local/share/countersign"))
        .ok_or_else(|| Finding::new(Code::InvalidValue, "no home directory; give --data-dir"))
}

/// The agent's socket in a data directory.
pub(crate) fn agent_socket(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("agent.sock")
}

/// A socket path from `unix:///path`, `unix:/path` or a plain path (Workload Endpoint §4).
pub(crate) fn parse_socket(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
    if path.contains("://") {
        return Err(format!("`{text}`: only unix: sockets are supported"));
    }
    if path.starts_with('/') {
        Ok(path.into())
    } else if text.starts_with("unix:") {
        Err(format!("`{text}`: the path must be absolute"))
    } else {
        std::path::absolute(path).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::parse_socket;

    #[test]
    fn workload_endpoint_4_socket_addresses() {
        for good in ["unix:///run/agent.sock", "unix:/run/agent.sock", "/run/agent.sock"] {
            assert_eq!(parse_socket(good).unwrap().to_str(), Some("/run/agent.sock"), "{good}");
        }
        // No authority, no relative path; TCP endpoints are not spoken to.
        for bad in
            ["unix://host/run/agent.sock", "unix:agent.sock", "tcp://127.0.0.1:8000", "http://x/y"]
        {
            assert!(parse_socket(bad).is_err(), "{bad}");
        }
    }
}
