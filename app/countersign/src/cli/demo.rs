//! `countersign demo`: the real thing, small, on loopback, in a temporary directory.

mod scene;
mod services;

use std::process::ExitCode;

use clap::Args;
use countersign_findings::Finding;
use serde::Serialize;

use super::{Global, interrupted};
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct Demo {
    /// Leave when every row has been shown: exit code 0 if all are as expected, 1 if not
    #[arg(long)]
    once: bool,
}

/// One thing shown.
#[derive(Serialize)]
struct Row {
    what: String,
    ok: bool,
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_exchange: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_requests: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotations: Option<u64>,
}

impl Row {
    fn new(what: &str) -> Self {
        Self {
            what: what.to_owned(),
            ok: false,
            outcome: String::new(),
            code: None,
            source: None,
            destination: None,
            tls_version: None,
            key_exchange: None,
            latency_ms: None,
            requests: None,
            failed_requests: None,
            rotations: None,
        }
    }

    fn print(&self) -> Result<(), Finding> {
        let mark = if self.ok { "ok  " } else { "FAIL" };
        let code = self.code.as_deref().map(|c| format!("  [{c}]")).unwrap_or_default();
        output::line(&format!("{mark}  {:<34} {}{code}", self.what, self.outcome))
    }
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    trust_domain: &'a str,
    rows: &'a [Row],
}

impl Demo {
    pub(crate) async fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let table = global.output == Format::Table;
        let scene = scene::Scene::start().await?;
        if table {
            output::line(&format!(
                "trust domain {}   root sha256:{}…",
                scene::TRUST_DOMAIN,
                &scene.root[..16]
            ))?;
        }
        let mut rows = Vec::new();
        // Each step is shown as soon as it is done.
        for step in scene::STEPS {
            let row = scene.play(*step).await;
            if table {
                row.print()?;
            }
            rows.push(row);
        }
        let ok = rows.iter().all(|r| r.ok);
        if !table {
            let report = Report { ok, trust_domain: scene::TRUST_DOMAIN, rows: &rows };
            output::json("countersign.demo/v1", &report)?;
        }
        if !self.once {
            output::note(&format!(
                "\nstill running: `curl {}` goes web -> api through both sidecars; Ctrl-C ends it and removes {}",
                scene.web_url(),
                scene.dir.display()
            ));
            output::next("countersign init --trust-domain corp.test");
            interrupted().await;
        }
        scene.stop().await;
        Ok(ExitCode::from(u8::from(!ok)))
    }
}
