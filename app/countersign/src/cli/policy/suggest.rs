//! `countersign policy suggest`: a least-privilege set from what was observed, with its proof.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use countersign_findings::{Code, Finding};
use countersign_policy::{Labels, normalize, parse};

use super::super::Global;
use super::preview::{
    Destination, Http, MeshFlags, Preview, Request, Source, all_requests, describe,
};
use crate::output;

/// Requests made up for the proof at most.
const MOST_PROBES: usize = 200_000;

#[derive(Args)]
pub(crate) struct Suggest {
    /// Observed edges: requests as for `policy decide`, one JSON document a line
    #[arg(long, value_name = "FILE")]
    edges: PathBuf,
    #[command(flatten)]
    mesh: MeshFlags,
}

/// Whom a workload is: namespace and labels.
type Workload = (String, Labels);
/// What is asked of it: port, and method and path where it is HTTP.
type Operation = (Option<u16>, Option<(String, String)>);

#[derive(Default)]
struct Observed {
    /// By what is asked: who asks.
    operations: BTreeMap<Operation, BTreeSet<String>>,
}

impl Suggest {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, Finding> {
        let edges = all_requests(&self.edges)?;
        let mut observed: BTreeMap<Workload, Observed> = BTreeMap::new();
        for edge in &edges {
            let principal = principal(edge)?;
            let operation = (edge.destination.port, http(edge)?);
            let key = (edge.destination.namespace.clone(), edge.destination.labels.clone());
            let of = observed.entry(key).or_default();
            of.operations.entry(operation).or_default().insert(principal);
        }
        let text = write(&observed);
        let preview = Preview::new(parse(&text, "suggested")?, &self.mesh.settled(global))?;
        let probes = prove(&preview, &edges, &observed)?;
        output::line(text.trim_end())?;
        output::note(&format!(
            "proved: all {} edges are allowed, and none of {probes} other combinations of the same callers and operations",
            edges.len()
        ));
        output::next("countersign policy diff OLD NEW --edges FILE, then countersign apply -f NEW");
        Ok(ExitCode::SUCCESS)
    }
}

fn principal(edge: &Request) -> Result<String, Finding> {
    let text = edge.source.principal.as_deref().unwrap_or_default();
    let text = text.strip_prefix("spiffe://").unwrap_or(text);
    if text.is_empty() || text.contains('*') {
        return Err(Finding::new(
            Code::NoSpiffeId,
            format!("{}: a caller without an identity cannot be granted anything", describe(edge)),
        )
        .hint("give the caller an identity, or leave the edge out"));
    }
    Ok(text.to_owned())
}

fn http(edge: &Request) -> Result<Option<(String, String)>, Finding> {
    let Some(http) = &edge.http else { return Ok(None) };
    let path = normalize(&http.path)
        .map_err(|e| Finding::new(Code::MalformedHttp, format!("{}: {e}", describe(edge))))?;
    let path = path.split('?').next().unwrap_or_default().to_owned();
    if path.contains(['*', '{', '}']) {
        let text = format!("{}: `*`, `{{` and `}}` cannot be written in a policy", describe(edge));
        return Err(Finding::new(Code::InvalidValue, text));
    }
    Ok(Some((http.method.clone(), path)))
}

/// A quoted YAML string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn list<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let all: Vec<String> = values.into_iter().map(quoted).collect();
    format!("[{}]", all.join(", "))
}

fn write(observed: &BTreeMap<Workload, Observed>) -> String {
    let mut out = String::new();
    for (i, ((namespace, labels), of)) in observed.iter().enumerate() {
        let _ = write!(
            out,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {}\n  namespace: {}\nspec:\n",
            quoted(&format!("observed-{}", i + 1)),
            quoted(namespace)
        );
        if !labels.is_empty() {
            out.push_str("  selector:\n    matchLabels:\n");
            for (k, v) in labels {
                let _ = writeln!(out, "      {}: {}", quoted(k), quoted(v));
            }
        }
        out.push_str("  action: ALLOW\n  rules:\n");
        // Operations that the same callers use go into one rule.
        let mut rules: BTreeMap<&BTreeSet<String>, Vec<&Operation>> = BTreeMap::new();
        for (operation, callers) in &of.operations {
            rules.entry(callers).or_default().push(operation);
        }
        for (callers, operations) in rules {
            let callers = list(callers.iter().map(String::as_str));
            let _ = write!(out, "  - from:\n    - source:\n        principals: {callers}\n");
            // The paths of one port and method go into one operation.
            let mut by: BTreeMap<(Option<u16>, Option<&str>), Vec<&str>> = BTreeMap::new();
            for (port, http) in operations {
                let method = http.as_ref().map(|(m, _)| m.as_str());
                let paths = by.entry((*port, method)).or_default();
                paths.extend(http.as_ref().map(|(_, p)| p.as_str()));
            }
            if by.keys().any(|k| *k == (None, None)) {
                continue;
            }
            out.push_str("    to:\n");
            for ((port, method), paths) in by {
                out.push_str("    - operation:\n");
                if let Some(port) = port {
                    let _ = writeln!(out, "        ports: [\"{port}\"]");
                }
                if let Some(method) = method {
                    let _ = writeln!(out, "        methods: {}", list([method]));
                    let _ = writeln!(out, "        paths: {}", list(paths));
                }
            }
        }
    }
    out
}

/// Every edge must be allowed, and every other combination of a caller and an operation seen at the same
/// workload refused. The number of those other combinations.
fn prove(
    preview: &Preview,
    edges: &[Request],
    observed: &BTreeMap<Workload, Observed>,
) -> Result<usize, Finding> {
    let wrong = |request: &Request, what: &str| {
        Finding::new(
            Code::InternalError,
            format!("the suggestion is wrong: {} {what}", describe(request)),
        )
    };
    if let Some(edge) = edges.iter().find(|e| !preview.judge(e).is_allowed()) {
        return Err(wrong(edge, "is not allowed"));
    }
    let mut probes = 0;
    for ((namespace, labels), of) in observed {
        let callers: BTreeSet<&String> = of.operations.values().flatten().collect();
        for ((port, http), allowed) in &of.operations {
            // An operation on HTTP that is part of one on TCP is allowed by that.
            let on_tcp = http.is_some().then(|| of.operations.get(&(*port, None))).flatten();
            for caller in &callers {
                if allowed.contains(*caller) || on_tcp.is_some_and(|s| s.contains(*caller)) {
                    continue;
                }
                probes += 1;
                if probes > MOST_PROBES {
                    return Ok(probes - 1);
                }
                let probe = Request {
                    source: Source { principal: Some((*caller).clone()), ..Source::default() },
                    destination: Destination {
                        namespace: namespace.clone(),
                        labels: labels.clone(),
                        port: *port,
                        ..Destination::default()
                    },
                    http: http.as_ref().map(|(method, path)| Http {
                        method: method.clone(),
                        path: path.clone(),
                        ..Http::default()
                    }),
                    ..Request::default()
                };
                if preview.judge(&probe).is_allowed() {
                    return Err(wrong(&probe, "is allowed, and was not observed"));
                }
            }
        }
    }
    Ok(probes)
}
