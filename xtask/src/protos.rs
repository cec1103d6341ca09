//! `io/wire/src/generated` from `proto/`.

use anyhow::{Context, Result, bail};

const FILES: &[&str] = &[
    "spiffe/workload.proto",
    "spire/types.proto",
    "spire/agent.proto",
    "spire/entry.proto",
    "spire/bundle.proto",
    "spire/svid.proto",
    "google/status.proto",
    "grpc/health.proto",
    "envoy/core.proto",
    "envoy/auth.proto",
    "envoy/tls.proto",
    "envoy/discovery.proto",
    "envoy/sds.proto",
    "countersign/server.proto",
    "countersign/node.proto",
];

pub(crate) fn generate(check: bool) -> Result<()> {
    let root = crate::root();
    let descriptors = protox::compile(FILES, [root.join("proto")]).context("proto/")?;
    let out = std::env::temp_dir().join(format!("countersign-protos-{}", std::process::id()));
    std::fs::create_dir_all(&out)?;
    tonic_prost_build::configure()
        .out_dir(&out)
        // They carry keys and tokens; `io/wire` prints them redacted.
        .skip_debug([
            ".X509SVID",
            ".JWTSVID",
            ".ValidateJWTSVIDRequest",
            ".spire.api.types.JWTSVID",
            ".spire.api.types.JoinToken",
            ".spire.api.types.AttestationData",
            ".envoy.config.core.v3.DataSource",
            ".envoy.config.core.v3.DataSource.specifier",
            ".envoy.config.core.v3.HeaderValue",
            ".envoy.service.auth.v3.AttributeContext.HttpRequest",
        ])
        .compile_fds(descriptors)?;
    let target = root.join("io/wire/src/generated");
    let mut stale: Vec<_> = std::fs::read_dir(&target)
        .map(|d| d.filter_map(Result::ok).map(|e| e.file_name()).collect())
        .unwrap_or_default();
    for file in std::fs::read_dir(&out)? {
        let file = file?;
        let text = std::fs::read_to_string(file.path())?;
        if text.lines().count() > 1 {
            crate::put(&target.join(file.file_name()), &text, check)?;
            stale.retain(|name| *name != file.file_name());
        }
    }
    std::fs::remove_dir_all(&out)?;
    if let Some(name) = stale.iter().find(|n| n.to_string_lossy().ends_with(".rs")) {
        bail!("io/wire/src/generated/{} has no source in proto/", name.to_string_lossy());
    }
    Ok(())
}
