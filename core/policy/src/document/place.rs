//! Where a value is, and errors that say so.

use countersign_findings::{Code, Finding};
use serde::de::DeserializeOwned;

/// Where a value is, for errors: file and line of the document, then the path of fields.
pub(super) struct Place<'a> {
    pub(super) origin: &'a str,
    pub(super) line: usize,
    pub(super) title: String,
}

impl Place<'_> {
    pub(super) fn error(&self, code: Code, path: &str, message: impl std::fmt::Display) -> Finding {
        Finding::new(code, format!("{}: {path}: {message}", self.title))
            .at(format!("{}:{}", self.origin, self.line))
    }

    pub(super) fn invalid(&self, path: &str, message: impl std::fmt::Display) -> Finding {
        self.error(Code::InvalidValue, path, message)
    }

    pub(super) fn unsupported(&self, path: &str) -> Finding {
        self.error(Code::UnsupportedDocument, path, "is not supported")
    }
}

pub(super) fn yaml<T: DeserializeOwned>(
    text: &str,
    origin: &str,
    first_line: usize,
) -> Result<T, Finding> {
    serde_saphyr::from_str(text).map_err(|e| {
        let e = e.without_snippet();
        let (line, column) =
            e.location().map_or((1, 1), |l| (usize::try_from(l.line()).unwrap_or(1), l.column()));
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().trim().to_owned();
        let place = format!("{origin}:{}:{column}", first_line + line.max(1) - 1);
        match unknown_field(&message) {
            Some((unknown, nearest)) => {
                let finding =
                    Finding::new(Code::UnknownField, format!("unknown field `{unknown}`"))
                        .at(place);
                match nearest {
                    Some(name) => finding.hint(format!("did you mean `{name}`?")),
                    None => finding,
                }
            }
            None => Finding::new(Code::ConfigSyntax, message).at(place),
        }
    })
}

/// Every field of every kind, for "did you mean".
const KNOWN_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    "name",
    "namespace",
    "labels",
    "annotations",
    "selector",
    "matchLabels",
    "mtls",
    "mode",
    "portLevelMtls",
    "action",
    "rules",
    "from",
    "to",
    "when",
    "source",
    "operation",
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "ipBlocks",
    "notIpBlocks",
    "hosts",
    "notHosts",
    "ports",
    "notPorts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
    "key",
    "values",
    "notValues",
    "spiffeID",
    "parentID",
    "selectors",
    "x509SVIDTTL",
    "jwtSVIDTTL",
    "dnsNames",
    "federatesWith",
    "admin",
    "downstream",
    "hint",
    "storeSVID",
    "className",
    "provider",
    "extensionProviders",
    "envoyExtAuthzGrpc",
    "envoyExtAuthzHttp",
    "opa",
    "rego",
    "files",
    "data",
    "query",
    "url",
    "service",
    "port",
    "timeout",
    "pathPrefix",
    "statusOnError",
    "includeRequestHeadersInCheck",
    "includeAdditionalHeadersInCheck",
    "headersToUpstreamOnAllow",
    "headersToDownstreamOnDeny",
];

/// `(unknown, nearest known)` out of serde's message.
fn unknown_field(message: &str) -> Option<(String, Option<String>)> {
    let rest = &message[message.find("unknown field")?..];
    let unknown = rest.split('`').nth(1)?.to_owned();
    let nearest = KNOWN_FIELDS
        .iter()
        .copied()
        .map(|known| {
            (strsim::damerau_levenshtein(&unknown.to_lowercase(), &known.to_lowercase()), known)
        })
        .filter(|(distance, known)| *distance <= 3.max(known.len() / 3))
        .min()
        .map(|(_, known)| known.to_owned());
    Some((unknown, nearest))
}
