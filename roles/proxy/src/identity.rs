//! The proxy's own identity, kept current: from a Workload API stream or from watched files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_identity::{Bundle, BundleSet, SpiffeId, X509Context, X509Svid};
use countersign_keys::{read_bounded, read_private_key};
use countersign_lifecycle::Backoff;
use countersign_telemetry::{Metrics, Outcome};
use countersign_tls::{Credentials, LiveCredentials, TlsOptions};
use countersign_wire::dial;
use countersign_wire::rpc::Code as GrpcCode;
use countersign_wire::status::to_finding;
use countersign_wire::workload::{to_context, watch_x509};
use countersign_x509::{CertInfo, PeerRole, pem, spiffe_leaf};
use notify::Watcher;
use tokio::sync::{mpsc, watch};

/// Follows a Workload API until stopped, putting each full set in place.
pub(crate) async fn follow_workload_api(
    socket: PathBuf,
    wanted: Option<SpiffeId>,
    options: TlsOptions,
    live: Arc<LiveCredentials>,
    metrics: Arc<Metrics>,
    last_error: watch::Sender<Option<Finding>>,
) {
    let channel = dial::unix(socket.clone());
    let mut backoff = Backoff::new(Duration::from_secs(5));
    let mut generation = 0;
    loop {
        let failure = match watch_x509(channel.clone()).await {
            Err(status) => to_finding(&status, Code::AgentUnreachable),
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(message)) => {
                        backoff.reset();
                        generation += 1;
                        let result = to_context(message)
                            .and_then(|c| pick(&c, wanted.as_ref()).map(|svid| (svid, c)))
                            .and_then(|(svid, c)| {
                                install(
                                    &live,
                                    &svid,
                                    &c.bundles,
                                    generation,
                                    options.clone(),
                                    &metrics,
                                )
                            });
                        match result {
                            Ok(()) => {
                                last_error.send_replace(None);
                            }
                            // Another workload's entry may arrive first; ours is still on its way.
                            Err(e)
                                if e.code == Code::NoIdentityIssued && live.current().is_none() =>
                            {
                                tracing::info!(code = %e.code, "waiting for an identity: {}", e.message);
                                last_error.send_replace(Some(e));
                            }
                            Err(e) => {
                                metrics.rotated("proxy", Outcome::Failure);
                                tracing::error!(code = %e.code, "new identity is not used: {}", e.message);
                                last_error.send_replace(Some(e));
                            }
                        }
                    }
                    Ok(None) => break Finding::new(Code::AgentUnreachable, "the stream ended"),
                    Err(status) => {
                        // No longer entitled: the identity is withdrawn at once (Workload API §4.4).
                        if status.code() == GrpcCode::PermissionDenied {
                            live.withdraw();
                        }
                        break to_finding(&status, Code::AgentUnreachable);
                    }
                }
            },
        };
        // A Workload API that is away leaves the identity in use until it ends by itself.
        if failure.code == Code::NoIdentityIssued && live.current().is_none() {
            // Its entry is on its way, or was never made; readiness tells which.
            tracing::info!(code = %failure.code, "waiting for an identity: {}", failure.message);
        } else {
            tracing::warn!(code = %failure.code, socket = %socket.display(), "identity source: {}", failure.message);
        }
        last_error.send_replace(Some(failure));
        tokio::time::sleep(backoff.pause(u32::from_be_bytes(countersign_keys::random()))).await;
    }
}

fn pick(context: &X509Context, wanted: Option<&SpiffeId>) -> Result<X509Svid, Finding> {
    match wanted {
        None => context.svids.first().cloned(),
        Some(id) => context.svids.iter().find(|s| s.id == *id).cloned(),
    }
    .ok_or_else(|| {
        let ids: Vec<&str> = context.svids.iter().map(|s| s.id.as_str()).collect();
        let finding = Finding::new(
            Code::NoIdentityIssued,
            "the Workload API does not offer the wanted identity",
        )
        .presented(ids.join(", "));
        match wanted {
            Some(id) => finding.expected(id.to_string()),
            None => finding,
        }
    })
}

fn install(
    live: &LiveCredentials,
    svid: &X509Svid,
    bundles: &BundleSet,
    generation: u64,
    options: TlsOptions,
    metrics: &Metrics,
) -> Result<(), Finding> {
    let credentials =
        Credentials::new(svid, bundles, generation, options).map_err(|e| e.finding())?;
    metrics.own_certificate(credentials.id.as_str(), credentials.leaf.not_after.secs());
    tracing::info!(
        id = %credentials.id, serial = credentials.leaf.serial, until = %credentials.leaf.not_after,
        "identity in use"
    );
    live.replace(credentials);
    metrics.rotated("proxy", Outcome::Success);
    Ok(())
}

/// Reads the certificates of a PEM file; at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<Vec<u8>>, Finding> {
    let text = read_bounded(path, 4 << 20).map_err(|e| e.finding())?;
    pem::certificates(&text).map_err(|e| {
        Finding::new(Code::PemMalformed, e.what).at(format!("{}:{}", path.display(), e.line))
    })
}

/// Reads certificate, key and bundle as one set.
pub(crate) fn read_files(
    cert: &Path,
    key: &Path,
    bundle: &Path,
) -> Result<(X509Svid, BundleSet), Finding> {
    let chain = read_certificates(cert)?;
    let roots = read_certificates(bundle)?;
    let private = read_private_key(key).map_err(|e| e.finding())?;
    let at_cert = |code, what: String| Finding::new(code, what).at(cert.display().to_string());
    let leaf = CertInfo::parse(&chain[0])
        .map_err(|e| at_cert(Code::MalformedCertificate, e.to_string()))?;
    let id = spiffe_leaf(&leaf, PeerRole::Server).map_err(|cause| {
        let error = countersign_x509::ChainError {
            cause,
            now: countersign_tls::current_time(),
            presented: leaf.display_name(),
            trusted: String::new(),
        };
        error.finding().at(cert.display().to_string())
    })?;
    let bundles = BundleSet::collect([Bundle::of_x509(id.trust_domain().clone(), roots)])
        .map_err(|e| Finding::new(Code::InvalidValue, e.to_string()))?;
    let svid = X509Svid { id, chain, key: private.pkcs8().clone(), hint: String::new() };
    Ok((svid, bundles))
}

/// Tells of changes in the directories of `files`, for as long as the watcher lives.
fn watch_directories(files: &[&Path]) -> (Option<notify::RecommendedWatcher>, mpsc::Receiver<()>) {
    use notify::event::{AccessKind, AccessMode, EventKind};
    let (changed, changes) = mpsc::channel::<()>(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // That a file was opened is told too: our own reading would make us read again, for ever.
        let is_change = match event.map(|e| e.kind) {
            Ok(EventKind::Access(AccessKind::Close(AccessMode::Write))) => true,
            Ok(kind) => !kind.is_access(),
            Err(_) => true,
        };
        if is_change {
            let _ = changed.try_send(());
        }
    });
    let mut watcher = watcher.ok();
    for dir in files.iter().filter_map(|path| path.parent()) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        if let Some(watcher) = &mut watcher {
            let _ = watcher.watch(dir, notify::RecursiveMode::NonRecursive);
        }
    }
    (watcher, changes)
}

/// Follows files until stopped. Directories are watched, not files: mounts swap a symlink, and tools
/// replace by rename. A set that does not fit together (half-way through a renewal) is tried again and
/// the one in use stays.
pub(crate) async fn follow_files(
    cert: PathBuf,
    key: PathBuf,
    bundle: PathBuf,
    options: TlsOptions,
    live: Arc<LiveCredentials>,
    metrics: Arc<Metrics>,
    last_error: watch::Sender<Option<Finding>>,
) {
    let (_watcher, mut changes) = watch_directories(&[&cert, &key, &bundle]);
    let mut generation = 0;
    let mut last: Option<[u8; 32]> = None;
    loop {
        match read_files(&cert, &key, &bundle) {
            Ok((svid, bundles)) => {
                let mut digest: Vec<u8> = svid.chain.concat();
                digest.extend(bundles.iter().flat_map(|b| b.x509_der_concatenated()));
                let digest = countersign_x509::sha256(&digest);
                if last != Some(digest) {
                    generation += 1;
                    match install(&live, &svid, &bundles, generation, options.clone(), &metrics) {
                        Ok(()) => {
                            last = Some(digest);
                            last_error.send_replace(None);
                        }
                        Err(e) => {
                            metrics.rotated("proxy", Outcome::Failure);
                            tracing::error!(code = %e.code, "new files are not used: {}", e.message);
                            last_error.send_replace(Some(e));
                        }
                    }
                }
            }
            Err(e) => {
                tracing::error!(code = %e.code, "files cannot be used: {}", e.message);
                last_error.send_replace(Some(e));
            }
        }
        // Notifications first; the poll catches file systems that send none.
        let told = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await;
        if told == Ok(None) {
            // Nobody watches: look now and then.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        while changes.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reading_a_file_is_no_change_and_writing_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cert.pem");
        std::fs::write(&file, "a").unwrap();
        let (_watcher, mut changes) = watch_directories(&[&file]);
        let soon = Duration::from_millis(300);
        let _ = tokio::time::timeout(soon, changes.recv()).await;
        for _ in 0..3 {
            std::fs::read(&file).unwrap();
        }
        assert!(tokio::time::timeout(soon, changes.recv()).await.is_err(), "only read");
        for replace in [false, true] {
            let next = dir.path().join("next");
            std::fs::write(if replace { &next } else { &file }, "b").unwrap();
            if replace {
                std::fs::rename(&next, &file).unwrap();
            }
            let told = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await;
            assert_eq!(told, Ok(Some(())));
            while tokio::time::timeout(soon, changes.recv()).await.is_ok() {}
        }
    }
}
