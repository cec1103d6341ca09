//! The `unix` workload attestor: facts about a calling process from the kernel.
//!
//! User and group names come from `/etc/passwd` and `/etc/group`; directories behind NSS are not asked.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use countersign_identity::{Selector, SelectorSet};
use countersign_sys::{PeerProcess, ProcessError};
use countersign_x509::{Sha256, hex};

/// Largest executable that is hashed, in bytes.
const MAX_HASHED: u64 = 512 << 20;

/// Device, inode, change time in seconds and nanoseconds, length. The change time cannot be set by the
/// file's owner, unlike the modification time.
type FileKey = (u64, u64, i64, i64, u64);

/// Hashes by file identity, so that a binary is read once.
#[derive(Default)]
pub(crate) struct Hashes(Mutex<HashMap<FileKey, String>>);

/// The selectors of `process`, checked to be still the same process after the facts were read.
pub(crate) fn attest(
    process: &PeerProcess,
    hashes: Option<&Hashes>,
) -> Result<SelectorSet, ProcessError> {
    let mut set = SelectorSet::default();
    let mut add = |value: String| {
        if let Ok(selector) = Selector::new("unix", &value) {
            set.insert(selector);
        }
    };
    add(format!("uid:{}", process.uid));
    add(format!("gid:{}", process.gid));
    if let Some(name) = name_of("/etc/passwd", process.uid) {
        add(format!("user:{name}"));
    }
    if let Some(name) = name_of("/etc/group", process.gid) {
        add(format!("group:{name}"));
    }
    for gid in supplementary_groups(process.pid) {
        add(format!("supplementary_gid:{gid}"));
        if let Some(name) = name_of("/etc/group", gid) {
            add(format!("supplementary_group:{name}"));
        }
    }
    // Needs the caller's uid or CAP_SYS_PTRACE; without it those selectors are simply absent.
    let exe = format!("/proc/{}/exe", process.pid);
    if let Ok(path) = fs::read_link(&exe) {
        if let Some(path) = path.to_str() {
            add(format!("path:{path}"));
        }
        if let Some(digest) = hashes.and_then(|h| h.of(&exe)) {
            add(format!("sha256:{digest}"));
        }
    }
    process.still_alive()?;
    Ok(set)
}

/// The name with this number in a file of `name:x:number:…` lines.
fn name_of(file: &str, number: u32) -> Option<String> {
    fs::read_to_string(file).ok()?.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == number).then(|| name.to_owned())
    })
}

fn supplementary_groups(pid: i32) -> Vec<u32> {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return Vec::new();
    };
    status
        .lines()
        .find_map(|l| l.strip_prefix("Groups:"))
        .map(|l| l.split_whitespace().filter_map(|g| g.parse().ok()).take(1024).collect())
        .unwrap_or_default()
}

impl Hashes {
    fn of(&self, exe: &str) -> Option<String> {
        let file = fs::File::open(exe).ok()?;
        let meta = file.metadata().ok()?;
        if meta.len() > MAX_HASHED {
            return None;
        }
        let key_of = |m: &fs::Metadata| (m.dev(), m.ino(), m.ctime(), m.ctime_nsec(), m.len());
        let key = key_of(&meta);
        if let Some(known) = self.0.lock().unwrap_or_else(|e| e.into_inner()).get(&key) {
            return Some(known.clone());
        }
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 64 << 10];
        let mut left = MAX_HASHED;
        let mut reader = &file;
        loop {
            let n = reader.read(&mut chunk).ok()?;
            if n == 0 {
                break;
            }
            left = left.checked_sub(n as u64)?;
            hash.update(&chunk[..n]);
        }
        let digest = hex(&hash.finish());
        // Changed while it was read: what was hashed is not what is there.
        if key_of(&file.metadata().ok()?) != key {
            return None;
        }
        let mut cache = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if cache.len() >= 1024 {
            cache.clear();
        }
        cache.insert(key, digest.clone());
        Some(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_process_has_its_facts() {
        let (a, _b) = tokio::net::UnixStream::pair().unwrap();
        let process = PeerProcess::of(&a).unwrap();
        let set = attest(&process, Some(&Hashes::default())).unwrap();
        let has = |s: String| set.contains(&s.parse().unwrap());
        assert!(has(format!("unix:uid:{}", process.uid)));
        let exe = std::env::current_exe().unwrap();
        assert!(has(format!("unix:path:{}", exe.display())));
        let digest = hex(&countersign_x509::sha256(&fs::read(exe).unwrap()));
        assert!(has(format!("unix:sha256:{digest}")));
    }
}
