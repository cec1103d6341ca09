//! `countersign policy explain`: the trace of one decision.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use countersign_findings::{Code, Finding};
use countersign_identity::{SpiffeId, TrustDomain};
use countersign_policy::{Document, Explanation, Labels, Outcome, Step, Verdict, parse};
use countersign_wire::proto::countersign::server::v1::PolicySet;
use countersign_x509::LegacyName;
use serde_json::{Value, json};

use super::super::entry::id_or_path;
use super::super::{Global, invalid};
use super::decide::to_json;
use super::preview::{Destination, Http, MeshFlags, Preview, Request, Source, describe};
use crate::client::Server;
use crate::output::{self, Format};

#[derive(Args)]
pub(crate) struct Explain {
    /// Who calls: a SPIFFE ID or its path, `plaintext`, or a client without a SPIFFE ID: CN=…, DNS=…, SPKI=…
    #[arg(long, value_name = "ID")]
    from: String,
    /// Who is called: an ID or path, or NAMESPACE[/LABEL=VALUE,…]; with the port
    #[arg(long, value_name = "ID|NS/LABELS:PORT")]
    to: String,
    /// HTTP method; without it the connection is taken for TCP
    #[arg(long)]
    method: Option<String>,
    /// HTTP path
    #[arg(long, requires = "method")]
    path: Option<String>,
    /// HTTP authority
    #[arg(long, requires = "method")]
    host: Option<String>,
    /// HTTP header field; repeat for more
    #[arg(long = "header", requires = "method", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Address of the caller
    #[arg(long, value_name = "IP")]
    source_ip: Option<std::net::IpAddr>,
    /// Labels of the called workload, where `--to` is an ID
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// A file or a directory of policies [default: those of the running server]
    #[arg(long, value_name = "FILE|DIR")]
    policies: Vec<PathBuf>,
    #[command(flatten)]
    mesh: MeshFlags,
}

impl Explain {
    pub(super) async fn run(mut self, global: &Global) -> Result<ExitCode, Finding> {
        let preview = if self.policies.is_empty() {
            let server = Server::new(&global.data_dir()?);
            let trust_domain = super::super::entry::trust_domain(&server).await?.to_string();
            if let Some(given) = self.mesh.trust_domain.replace(trust_domain.clone())
                && given != trust_domain
            {
                let text = format!("the running server is of `{trust_domain}`, not `{given}`");
                return Err(invalid(text).hint("give the policies with --policies"));
            }
            Preview::new(of_server(&server).await?, &self.mesh)?
        } else {
            self.mesh = self.mesh.settled(global);
            Preview::of_files(&self.policies, &self.mesh)?
        };
        let request = self.request(preview.trust_domain())?;
        let explained = preview.with(&request, |set, a| set.explain(a)).unwrap_or_else(|denial| {
            Explanation { steps: Vec::new(), verdict: Verdict::Deny(denial) }
        });
        remarks(&request, &preview);
        print(&request, &explained, global.output)?;
        Ok(if explained.verdict.is_allowed() { ExitCode::SUCCESS } else { ExitCode::from(5) })
    }

    fn request(&self, td: &TrustDomain) -> Result<Request, Finding> {
        let mut source = match (self.from.as_str(), self.from.parse::<LegacyName>()) {
            ("plaintext", _) => Source::default(),
            (_, Ok(name)) => Source::of_legacy(&name),
            (text, Err(_)) => {
                let principal = Some(id_or_path(text, td)?.to_string());
                Source { principal, ..Source::default() }
            }
        };
        source.ip = self.source_ip;
        let mut destination = destination(&self.to, td)?;
        for text in &self.labels {
            let (name, value) = label(text)?;
            destination.labels.insert(name, value);
            destination.labels_unknown = false;
        }
        let http = match &self.method {
            None => None,
            Some(method) => Some(Http {
                method: method.clone(),
                host: self.host.clone().unwrap_or_default(),
                path: self.path.clone().unwrap_or_else(|| "/".into()),
                headers: self.headers.iter().map(|h| header(h)).collect::<Result<_, _>>()?,
            }),
        };
        Ok(Request { source, destination, http, ..Request::default() })
    }
}

pub(super) async fn of_server(server: &Server) -> Result<Vec<Document>, Finding> {
    parse_set(server.list_policies().await?)
}

/// The documents of a set that the server told.
pub(crate) fn parse_set(set: PolicySet) -> Result<Vec<Document>, Finding> {
    let mut out = Vec::new();
    for d in set.documents {
        out.extend(parse(&d.yaml, &format!("{}/{}/{}", d.kind, d.namespace, d.name))?);
    }
    Ok(out)
}

/// What the reader may not be aware of.
fn remarks(request: &Request, preview: &Preview) {
    let namespaces = preview.namespaces();
    let d = &request.destination;
    let set = preview.set(d);
    if !namespaces.contains(d.namespace.as_str()) {
        let known: Vec<&str> = namespaces.into_iter().filter(|n| !n.is_empty()).collect();
        output::note(&format!(
            "note: no policy is in namespace `{}`; there are some in: {}",
            d.namespace,
            known.join(", ")
        ));
    }
    if request.source.principal.is_none() && d.port.and_then(|p| set.mode(p)).is_none() {
        output::note(
            "note: no PeerAuthentication says whether the port takes plaintext; a proxy that is not told otherwise \
             is STRICT and refuses it (CS2101) before any policy counts",
        );
    }
    if d.labels_unknown {
        output::note(
            "note: labels are taken as not known, as for a proxy without --label; give those of the workload with --label",
        );
    }
}

fn label(text: &str) -> Result<(String, String), Finding> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| invalid(format!("label `{text}` is not NAME=VALUE")))
}

fn header(text: &str) -> Result<(String, String), Finding> {
    text.split_once(':')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .ok_or_else(|| invalid(format!("header `{text}` is not NAME: VALUE")))
}

/// An ID or path, or namespace and labels; with or without a port.
fn destination(text: &str, td: &TrustDomain) -> Result<Destination, Finding> {
    let (what, port) = match text.rsplit_once(':') {
        Some((what, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            let port = port.parse().map_err(|_| invalid(format!("`{port}` is not a port")))?;
            (what, Some(port))
        }
        _ => (text, None),
    };
    if what.starts_with('/') || what.contains("://") {
        let id: SpiffeId = id_or_path(what, td)?;
        if !id.is_member_of(td) {
            return Err(invalid(format!("`{id}` is not of the local trust domain `{td}`")));
        }
        let namespace = id.namespace().unwrap_or("default").to_owned();
        return Ok(Destination { namespace, port, labels_unknown: true, ..Destination::default() });
    }
    let labels_unknown = !what.contains('/');
    let (namespace, labels) = what.split_once('/').unwrap_or((what, ""));
    let labels: Labels =
        labels.split(',').filter(|l| !l.is_empty()).map(label).collect::<Result<_, _>>()?;
    if namespace.is_empty() {
        return Err(invalid(format!("`{text}` names no namespace")));
    }
    let namespace = namespace.to_owned();
    Ok(Destination { namespace, labels, port, labels_unknown, ip: None })
}

fn outcome(step: &Step) -> (&'static str, String) {
    match &step.outcome {
        Outcome::Matched => ("matched", String::new()),
        Outcome::NoRules => ("no rules", "grants nothing".into()),
        Outcome::LabelsUnknown => {
            ("unknown", "its selector wants labels; those of the workload are not known".into())
        }
        Outcome::HttpOnly { field } => ("no", format!("`{field}` exists on HTTP only")),
        Outcome::Missed { field, wanted, presented } => {
            let mut wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
            let more = wanted.len().saturating_sub(4);
            wanted.truncate(4);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let presented = presented.as_deref().unwrap_or("nothing");
            ("no", format!("`{field}`: [{}]{more}, presented {presented}", wanted.join(", ")))
        }
    }
}

fn step_json(step: &Step) -> Value {
    let mut value = json!({
        "policy": &*step.policy,
        "action": step.action.to_string(),
        "dry_run": step.dry_run,
        "rule": step.rule,
        "matched": step.outcome == Outcome::Matched,
    });
    match &step.outcome {
        Outcome::Missed { field, wanted, presented } => {
            value["field"] = field.as_str().into();
            value["wanted"] = wanted.clone().into();
            value["presented"] = presented.clone().into();
        }
        Outcome::HttpOnly { field } => {
            value["field"] = field.as_str().into();
            value["http_only"] = true.into();
        }
        Outcome::LabelsUnknown => value["labels_unknown"] = true.into(),
        Outcome::Matched | Outcome::NoRules => {}
    }
    value
}

fn print(request: &Request, explained: &Explanation, format: Format) -> Result<(), Finding> {
    if format == Format::Json {
        let steps: Vec<Value> = explained.steps.iter().map(step_json).collect();
        return output::json(
            "countersign.policy-explain/v1",
            &json!({"request": request, "decision": to_json(&explained.verdict), "steps": steps}),
        );
    }
    output::note(&describe(request));
    if !explained.steps.is_empty() {
        let rows: Vec<Vec<String>> = explained
            .steps
            .iter()
            .map(|step| {
                let dry = if step.dry_run { " (dry run)" } else { "" };
                let (matched, why) = outcome(step);
                vec![
                    format!("{}{dry}", step.action),
                    step.policy.to_string(),
                    step.rule.map(|r| r.to_string()).unwrap_or_else(|| "-".into()),
                    matched.to_owned(),
                    why,
                ]
            })
            .collect();
        output::table(&["ACTION", "POLICY", "RULE", "MATCHES", "WHY NOT"], &rows)?;
    }
    let decision = to_json(&explained.verdict);
    let reason = decision["reason"].as_str().unwrap_or_default();
    match &explained.verdict {
        Verdict::Allow(_) => output::line(&format!("ALLOWED: {reason}")),
        Verdict::Deny(d) => output::line(&format!("DENIED [{}]: {reason}", d.code)),
    }?;
    if let Verdict::Deny(d) = &explained.verdict
        && d.code == Code::NotAllowedByPolicy
        && d.policy.is_some()
    {
        output::note(&format!("hint: {}", d.code.hint()));
    }
    Ok(())
}
