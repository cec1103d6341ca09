//! Providers: where the engines are that CUSTOM policies ask, in the YAML of Istio's mesh configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::place::yaml;
use super::request::header_name;

/// How long an engine may take, unless told otherwise. Istio's own default is ten minutes, in which a dead
/// engine holds every request.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The longest that can be asked for.
const LONGEST: Duration = Duration::from_secs(60);
/// Most providers in one file.
const MAX_PROVIDERS: usize = 100;

/// An external engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// What `spec.provider.name` of a CUSTOM policy says.
    pub name: Arc<str>,
    /// It must have answered by then.
    pub timeout: Duration,
    /// The status of requests refused because it did not.
    pub status_on_error: u16,
    /// How it is asked.
    pub engine: Engine,
}

/// How an engine is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Envoy's `envoy.service.auth.v3.Authorization/Check`.
    ExtAuthzGrpc {
        /// Where it listens.
        target: Target,
    },
    /// A request like the one to be judged; 200 allows.
    ExtAuthzHttp(HttpCheck),
    /// Rego in this process, with the same input.
    Rego {
        /// Modules, `*.rego`.
        files: Vec<PathBuf>,
        /// A JSON object for `data`, if there is one.
        data: Option<PathBuf>,
        /// What decides: `data.envoy.authz.allow`.
        query: String,
    },
    /// `POST /v1/data/…` with the input that OPA's Envoy plugin makes.
    Opa {
        /// Where it listens.
        target: Target,
        /// The path of the document that decides, with `/v1/data`.
        path: String,
    },
}

/// A query in Rego's terms: `data.envoy.authz.allow`.
fn rego_query(text: &str) -> bool {
    let word = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    text.starts_with("data.") && text.split('.').all(word)
}

/// How an engine is asked over plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// Where it listens.
    pub target: Target,
    /// Put before the request's own path.
    pub path_prefix: String,
    /// Header fields of the request that the engine sees besides Authorization, in lower case.
    pub include: Vec<NamePattern>,
    /// Header fields with fixed values that it gets too.
    pub additional: Vec<(String, String)>,
    /// Fields of its answer that go on with an allowed request.
    pub to_upstream_on_allow: Vec<NamePattern>,
    /// Fields of its answer that the client gets with a refusal; all if none are named.
    pub to_downstream_on_deny: Vec<NamePattern>,
}

/// Where an engine listens: on this host, so that what it is told and says needs no protection of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A loopback address or `localhost`, and a port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// `name`, `prefix*` or `*suffix`, of header fields, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// Whether `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        match (self.0.strip_suffix('*'), self.0.strip_prefix('*')) {
            (Some(prefix), _) => name.starts_with(prefix),
            (_, Some(suffix)) => name.ends_with(suffix),
            _ => name == self.0,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    extension_providers: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    name: String,
    #[serde(default)]
    envoy_ext_authz_grpc: Option<GrpcSpec>,
    #[serde(default)]
    envoy_ext_authz_http: Option<HttpSpec>,
    #[serde(default)]
    opa: Option<OpaSpec>,
    #[serde(default)]
    rego: Option<RegoSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GrpcSpec {
    service: String,
    #[serde(default)]
    port: Option<u32>,
    #[serde(default)]
    timeout: Option<String>,
    #[serde(default)]
    fail_open: bool,
    #[serde(default)]
    status_on_error: Option<String>,
    // Routes are chosen after the decision in any case.
    #[serde(default, rename = "clearRouteCache")]
    _clear_route_cache: Option<bool>,
    #[serde(default)]
    include_request_body_in_check: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HttpSpec {
    service: String,
    #[serde(default)]
    port: Option<u32>,
    #[serde(default)]
    timeout: Option<String>,
    #[serde(default)]
    path_prefix: String,
    #[serde(default)]
    fail_open: bool,
    #[serde(default)]
    status_on_error: Option<String>,
    #[serde(default, rename = "clearRouteCache")]
    _clear_route_cache: Option<bool>,
    #[serde(default, alias = "includeHeadersInCheck")]
    include_request_headers_in_check: Vec<String>,
    #[serde(default)]
    include_additional_headers_in_check: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    include_request_body_in_check: Option<IgnoredAny>,
    #[serde(default)]
    headers_to_upstream_on_allow: Vec<String>,
    #[serde(default)]
    headers_to_downstream_on_deny: Vec<String>,
    #[serde(default)]
    headers_to_downstream_on_allow: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OpaSpec {
    url: String,
    #[serde(default)]
    timeout: Option<String>,
    #[serde(default)]
    status_on_error: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RegoSpec {
    files: Vec<PathBuf>,
    #[serde(default)]
    data: Option<PathBuf>,
    #[serde(default)]
    query: Option<String>,
    #[serde(default)]
    timeout: Option<String>,
    #[serde(default)]
    status_on_error: Option<String>,
}

/// Reads a file of providers; `origin` names it in errors. All or nothing.
pub fn parse_providers(text: &str, origin: &str) -> Result<Vec<Provider>, Finding> {
    let file: File = yaml(text, origin, 1)?;
    let mut out: Vec<Provider> = Vec::new();
    if file.extension_providers.len() > MAX_PROVIDERS {
        let what = format!("more than {MAX_PROVIDERS} providers");
        return Err(Finding::new(Code::InvalidValue, what).at(origin.to_owned()));
    }
    for (i, spec) in file.extension_providers.into_iter().enumerate() {
        let at = At { origin, path: format!("extensionProviders[{i}]"), name: spec.name.clone() };
        if spec.name.is_empty() {
            return Err(at.invalid("name", "is missing"));
        }
        if out.iter().any(|p| *p.name == *spec.name) {
            return Err(at.invalid("name", "is given twice"));
        }
        out.push(provider(spec, &at)?);
    }
    Ok(out)
}

struct At<'a> {
    origin: &'a str,
    path: String,
    name: String,
}

impl At<'_> {
    fn invalid(&self, field: &str, what: impl std::fmt::Display) -> Finding {
        let text = format!("provider `{}`: {}.{field}: {what}", self.name, self.path);
        Finding::new(Code::InvalidValue, text).at(self.origin.to_owned())
    }
}

fn provider(spec: Spec, at: &At<'_>) -> Result<Provider, Finding> {
    let name = Arc::from(spec.name);
    let make =
        |timeout, status, engine| Provider { name, timeout, status_on_error: status, engine };
    match (spec.envoy_ext_authz_grpc, spec.envoy_ext_authz_http, spec.opa, spec.rego) {
        (Some(s), None, None, None) => {
            let at = &at.within("envoyExtAuthzGrpc");
            common(s.fail_open, s.include_request_body_in_check.is_some(), at)?;
            let target = target(&s.service, s.port, at)?;
            let status = status(s.status_on_error.as_deref(), at)?;
            Ok(make(timeout(s.timeout.as_deref(), at)?, status, Engine::ExtAuthzGrpc { target }))
        }
        (None, Some(s), None, None) => {
            let at = &at.within("envoyExtAuthzHttp");
            common(s.fail_open, s.include_request_body_in_check.is_some(), at)?;
            if !s.headers_to_downstream_on_allow.is_empty() {
                return Err(at.invalid("headersToDownstreamOnAllow", "is not supported"));
            }
            if !s.path_prefix.is_empty() && !s.path_prefix.starts_with('/') {
                return Err(at.invalid("pathPrefix", "must begin with `/`"));
            }
            let patterns = |field: &str, list: Vec<String>| {
                list.iter()
                    .map(|v| name_pattern(v).map_err(|e| at.invalid(field, e)))
                    .collect::<Result<Vec<_>, _>>()
            };
            let mut additional = Vec::new();
            for (name, value) in s.include_additional_headers_in_check {
                let field = "includeAdditionalHeadersInCheck";
                let name = header_name(&name)
                    .ok_or_else(|| at.invalid(field, format!("`{name}` cannot be set")))?;
                if !value.bytes().all(|b| b == b'\t' || (0x20..0x7f).contains(&b)) {
                    return Err(
                        at.invalid(field, format!("the value of `{name}` is not ASCII text"))
                    );
                }
                additional.push((name, value));
            }
            let check = HttpCheck {
                target: target(&s.service, s.port, at)?,
                path_prefix: s.path_prefix.trim_end_matches('/').to_owned(),
                include: patterns(
                    "includeRequestHeadersInCheck",
                    s.include_request_headers_in_check,
                )?,
                additional,
                to_upstream_on_allow: patterns(
                    "headersToUpstreamOnAllow",
                    s.headers_to_upstream_on_allow,
                )?,
                to_downstream_on_deny: patterns(
                    "headersToDownstreamOnDeny",
                    s.headers_to_downstream_on_deny,
                )?,
            };
            let status = status(s.status_on_error.as_deref(), at)?;
            Ok(make(timeout(s.timeout.as_deref(), at)?, status, Engine::ExtAuthzHttp(check)))
        }
        (None, None, Some(s), None) => {
            let at = &at.within("opa");
            let (target, path) = opa_url(&s.url).map_err(|e| at.invalid("url", e))?;
            let status = status(s.status_on_error.as_deref(), at)?;
            Ok(make(timeout(s.timeout.as_deref(), at)?, status, Engine::Opa { target, path }))
        }
        (None, None, None, Some(s)) => {
            let at = &at.within("rego");
            if s.files.is_empty() {
                return Err(at.invalid("files", "is empty"));
            }
            let query = s.query.unwrap_or_else(|| "data.envoy.authz.allow".into());
            if !rego_query(&query) {
                return Err(at.invalid("query", "must be of the form data.package.rule"));
            }
            let status = status(s.status_on_error.as_deref(), at)?;
            let engine = Engine::Rego { files: s.files, data: s.data, query };
            Ok(make(timeout(s.timeout.as_deref(), at)?, status, engine))
        }
        _ => Err(at.invalid("", "needs one of envoyExtAuthzGrpc, envoyExtAuthzHttp, opa and rego")),
    }
}

impl At<'_> {
    fn within(&self, field: &str) -> Self {
        Self { path: format!("{}.{field}", self.path), name: self.name.clone(), ..*self }
    }
}

fn common(fail_open: bool, body: bool, at: &At<'_>) -> Result<(), Finding> {
    if fail_open {
        return Err(at
            .invalid("failOpen", "is refused: an engine that is down must not let everybody in")
            .hint("leave it out, and watch `countersign_engine_checks_total{result=\"failed\"}`"));
    }
    if body {
        return Err(at.invalid(
            "includeRequestBodyInCheck",
            "is not supported: bodies are relayed, not kept",
        ));
    }
    Ok(())
}

/// `127.0.0.1` with a port, or `unix:///path`.
fn target(service: &str, port: Option<u32>, at: &At<'_>) -> Result<Target, Finding> {
    if let Some(path) = service.strip_prefix("unix://") {
        return match (path.starts_with('/'), port) {
            (true, None) => Ok(Target::Unix(PathBuf::from(path))),
            (true, Some(_)) => Err(at.invalid("port", "a Unix socket has none")),
            (false, _) => Err(at.invalid("service", "the path of a Unix socket must be absolute")),
        };
    }
    // Istio qualifies a service by its namespace; what is on this host has none.
    let host = service.trim_start_matches('[').trim_end_matches(']');
    if !is_loopback(host) {
        return Err(at
            .invalid("service", format!("`{service}` is not on this host"))
            .expected("a loopback address, `localhost` or `unix:///path`".to_owned())
            .hint(
                "the question holds headers and the answer grants access: let them go through an outbound \
                 listener (`--outbound 127.0.0.1:9191=HOST:PORT,ID`) and name that here",
            ));
    }
    match port.map(u16::try_from) {
        Some(Ok(port)) if port > 0 => Ok(Target::Tcp(host.to_owned(), port)),
        _ => Err(at.invalid("port", "must be 1 to 65535")),
    }
}

fn opa_url(url: &str) -> Result<(Target, String), String> {
    let rest =
        url.strip_prefix("http://").ok_or("must begin with `http://`, and be on this host")?;
    let (authority, path) = rest.split_once('/').ok_or("has no path")?;
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "8181"));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port: u16 = port.parse().ok().filter(|p| *p > 0).ok_or("has no valid port")?;
    if !is_loopback(host) {
        return Err(format!("`{host}` is not on this host; use a loopback address"));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/_-.".contains(&b);
    if !path.starts_with("v1/data/") || path.len() == 8 || !path.bytes().all(plain) {
        return Err("the path must be /v1/data/ and the name of a document".into());
    }
    Ok((Target::Tcp(host.to_owned(), port), format!("/{path}")))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn name_pattern(text: &str) -> Result<NamePattern, String> {
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_suffix('*').or(lower.strip_prefix('*')).unwrap_or(&lower);
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("`{}` is not a name, `prefix*` or `*suffix`", text.escape_default()));
    }
    Ok(NamePattern(lower))
}

fn status(text: Option<&str>, at: &At<'_>) -> Result<u16, Finding> {
    match text.map(str::parse::<u16>) {
        None => Ok(403),
        Some(Ok(n)) if (400..600).contains(&n) => Ok(n),
        _ => Err(at.invalid("statusOnError", "must be a status from 400 to 599")),
    }
}

/// Seconds with a fraction, or milliseconds: `0.5s`, `500ms`.
fn timeout(text: Option<&str>, at: &At<'_>) -> Result<Duration, Finding> {
    let Some(text) = text else { return Ok(TIMEOUT) };
    let parsed = match text.strip_suffix("ms") {
        Some(ms) => ms.parse::<u32>().ok().map(|ms| Duration::from_millis(ms.into())),
        None => text
            .strip_suffix('s')
            .and_then(|s| s.parse::<f64>().ok())
            .and_then(|s| Duration::try_from_secs_f64(s).ok()),
    };
    parsed
        .filter(|d| !d.is_zero() && *d <= LONGEST)
        .ok_or_else(|| at.invalid("timeout", format!("`{text}` is not a time from 1ms to 60s")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(body: &str) -> Result<Provider, Finding> {
        let text = format!("extensionProviders:\n- name: x\n{body}");
        parse_providers(&text, "p.yaml").map(|mut p| p.remove(0))
    }

    #[test]
    fn istios_form_is_read() {
        let p =
            one("  envoyExtAuthzGrpc: {service: 127.0.0.1, port: 9191, timeout: 0.25s}").unwrap();
        assert_eq!(p.timeout, Duration::from_millis(250));
        assert_eq!(p.status_on_error, 403);
        let target = Target::Tcp("127.0.0.1".into(), 9191);
        assert_eq!(p.engine, Engine::ExtAuthzGrpc { target });
        let p = one("  envoyExtAuthzHttp: {service: localhost, port: 8000, headersToUpstreamOnAllow: [x-user-*], statusOnError: \"503\"}").unwrap();
        let Engine::ExtAuthzHttp(check) = p.engine else { panic!() };
        assert_eq!(p.status_on_error, 503);
        assert!(check.to_upstream_on_allow[0].matches("X-User-Name"));
        assert!(!check.to_upstream_on_allow[0].matches("x-use"));
        let p = one("  opa: {url: \"http://127.0.0.1:8181/v1/data/envoy/authz/allow\"}").unwrap();
        assert_eq!(p.timeout, Duration::from_secs(1));
        assert!(
            matches!(p.engine, Engine::Opa { path, .. } if path == "/v1/data/envoy/authz/allow")
        );
        let p = one("  envoyExtAuthzGrpc: {service: \"unix:///run/opa.sock\"}").unwrap();
        assert!(matches!(p.engine, Engine::ExtAuthzGrpc { target: Target::Unix(_) }));
    }

    #[test]
    fn what_would_fail_open_or_leave_the_host_is_refused() {
        for (body, part) in [
            ("  envoyExtAuthzGrpc: {service: 127.0.0.1, port: 9191, failOpen: true}", "failOpen"),
            (
                "  envoyExtAuthzGrpc: {service: opa.opa.svc.cluster.local, port: 9191}",
                "not on this host",
            ),
            ("  envoyExtAuthzGrpc: {service: 127.0.0.1, port: 70000}", "port"),
            ("  envoyExtAuthzGrpc: {service: 127.0.0.1}", "port"),
            ("  envoyExtAuthzGrpc: {service: 127.0.0.1, port: 1, timeout: 600s}", "timeout"),
            ("  envoyExtAuthzGrpc: {service: 127.0.0.1, port: 1, timeout: -1s}", "timeout"),
            (
                "  envoyExtAuthzGrpc: {service: 127.0.0.1, port: 1, statusOnError: \"200\"}",
                "statusOnError",
            ),
            (
                "  envoyExtAuthzHttp: {service: 127.0.0.1, port: 1, includeRequestBodyInCheck: {maxRequestBytes: 1}}",
                "bodies",
            ),
            (
                "  envoyExtAuthzHttp: {service: 127.0.0.1, port: 1, headersToUpstreamOnAllow: [\"a*b\"]}",
                "prefix",
            ),
            ("  opa: {url: \"https://opa.corp/v1/data/x\"}", "http://"),
            ("  opa: {url: \"http://127.0.0.1/v1/policies/x\"}", "/v1/data/"),
            ("  opa: {url: \"http://127.0.0.1/v1/data/x?explain=full\"}", "/v1/data/"),
            ("  {}", ""),
        ] {
            let e = one(body).expect_err(body).to_string();
            assert!(e.contains(part), "{body}: {e}");
        }
        let e = one("  envoyExtAuthzGrpc: {servcie: 127.0.0.1, port: 1}").unwrap_err();
        assert_eq!(e.code, Code::UnknownField, "{e}");
        assert_eq!(e.hint, "did you mean `service`?");
        let twice = "extensionProviders:\n- {name: a, opa: {url: \"http://localhost/v1/data/a\"}}\n- {name: a, opa: {url: \"http://localhost/v1/data/a\"}}";
        assert!(parse_providers(twice, "p").unwrap_err().to_string().contains("twice"));
    }
}
