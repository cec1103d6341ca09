//! The `spiffe` crate against the Workload API: X.509, JWT, and an X.509 source across a rotation.

use std::time::Duration;

use spiffe::{WorkloadApiClient, X509Source};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let id = std::env::args().nth(1).ok_or("usage: interop-rust ID")?;
    let client = WorkloadApiClient::connect_env().await?;
    let svids = client.fetch_all_x509_svids().await?;
    assert!(svids.iter().any(|s| s.spiffe_id().to_string() == id), "X.509");
    assert!(client.fetch_x509_bundles().await?.iter().count() == 1, "bundles");
    let token = client.fetch_jwt_token(&["reports"], None).await?;
    client.validate_jwt_token("reports", &token).await?;
    assert!(client.validate_jwt_token("others", &token).await.is_err(), "audience");
    client.fetch_jwt_bundles().await?;
    let source = X509Source::new().await?;
    let mut updates = source.updated();
    let before = source.svid()?.leaf().as_bytes().to_vec();
    tokio::time::timeout(Duration::from_secs(30), async {
        while source.svid().is_ok_and(|s| s.leaf().as_bytes() == before) {
            let _ = updates.changed().await;
        }
    })
    .await?;
    println!("rotated");
    Ok(())
}
