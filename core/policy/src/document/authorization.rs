//! AuthorizationPolicy.

use std::borrow::Cow;
use std::sync::Arc;

use countersign_findings::Finding;

use super::place::Place;
use super::read::{check_version, selector, targets};
use super::shapes::{Doc, OperationSpec, PolicySpec, RuleSpec, SourceSpec};
use crate::certificate::{attribute_name, oid};
use crate::identity::{Principal, ServiceAccount};
use crate::pattern::Pattern;
use crate::rule::{Action, AuthorizationPolicy, Field, Group, Rule, Test};

/// Most service accounts in one field.
const MAX_SERVICE_ACCOUNTS: usize = 16;

pub(super) fn read(
    doc: Doc<PolicySpec>,
    origin: &str,
    line: usize,
) -> Result<AuthorizationPolicy, Finding> {
    let place =
        Place { origin, line, title: format!("AuthorizationPolicy `{}`", doc.metadata.name) };
    check_version(&["v1", "v1beta1"], &doc.api_version, &place)?;
    let spec = doc.spec.unwrap_or_default();
    let for_gateways = targets(
        spec.target_ref.as_ref(),
        spec.target_refs.as_deref(),
        spec.selector.is_some(),
        &place,
    )?;
    let action = match spec.action.as_deref() {
        None | Some("ALLOW") => Action::Allow,
        Some("DENY") => Action::Deny,
        Some("AUDIT") => Action::Audit,
        Some("CUSTOM") => Action::Custom,
        Some(other) => {
            return Err(place.invalid(
                "spec.action",
                format!("`{other}` is not an action; use ALLOW, DENY, AUDIT or CUSTOM"),
            ));
        }
    };
    let provider = match (action, spec.provider) {
        (Action::Custom, Some(p)) if !p.name.is_empty() => Some(Arc::from(p.name)),
        (Action::Custom, _) => {
            return Err(place.invalid("spec.provider.name", "is missing: whom should CUSTOM ask?"));
        }
        (_, Some(_)) => {
            return Err(place.invalid("spec.provider", "only a CUSTOM policy has one"));
        }
        (_, None) => None,
    };
    let dry_run = match doc.metadata.annotations.get("istio.io/dry-run").map(String::as_str) {
        None => false,
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        Some(_) => {
            return Err(place.invalid("metadata.annotations[istio.io/dry-run]", "is not a boolean"));
        }
    };
    if dry_run && action == Action::Custom {
        let what = "an engine's answer cannot be tried out";
        return Err(place.invalid("metadata.annotations[istio.io/dry-run]", what));
    }
    let namespace = doc.metadata.namespace.unwrap_or_else(|| "default".into());
    if action == Action::Deny && spec.rules.as_ref().is_none_or(Vec::is_empty) {
        return Err(place.invalid("spec.rules", "a DENY without rules never matches"));
    }
    if action == Action::Custom && spec.rules.as_ref().is_none_or(Vec::is_empty) {
        let what = "a CUSTOM policy without rules never asks; `- {}` asks about every request";
        return Err(place.invalid("spec.rules", what));
    }
    let mut rules = Vec::new();
    for (i, spec) in spec.rules.unwrap_or_default().into_iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        // `- {}` reads as an empty rule and matches everything; a bare `-` is null and refused.
        let spec = spec.ok_or_else(|| place.invalid(&at, "is null"))?;
        let rule = Reader { namespace: &namespace, place: &place }.rule(spec, &at)?;
        // AP-24: Istio asks the engine before it knows who calls, so such a rule would mean something else there.
        if action == Action::Custom
            && let Some(field) = rule.fields().find(|f| f.test.is_about_identity())
        {
            let text = format!("`{}` cannot be used in a CUSTOM policy", field.name);
            return Err(place.invalid(&at, text).hint(
                "the engine is told who calls: let it decide, or put the condition into a DENY or ALLOW policy",
            ));
        }
        rules.push(Arc::new(rule));
    }
    Ok(AuthorizationPolicy {
        name: doc.metadata.name,
        selector: selector(spec.selector, &place)?,
        for_gateways,
        namespace,
        action,
        provider,
        dry_run,
        rules,
    })
}

struct Reader<'a> {
    namespace: &'a str,
    place: &'a Place<'a>,
}

/// A field's name, whether it is a `not…` field, and its values.
type Written<'a> = (&'static str, bool, &'a [String]);

impl Reader<'_> {
    fn rule(&self, spec: RuleSpec, at: &str) -> Result<Rule, Finding> {
        let mut rule = Rule::default();
        let empty = |path: &str| self.place.invalid(path, "is empty");
        if let Some(from) = spec.from {
            if from.is_empty() {
                return Err(empty(&format!("{at}.from")));
            }
            for (i, f) in from.into_iter().enumerate() {
                let at = format!("{at}.from[{i}].source");
                let group = self.source(&f.source, &at)?;
                if group.is_empty() {
                    return Err(empty(&at));
                }
                rule.from.push(group);
            }
        }
        if let Some(to) = spec.to {
            if to.is_empty() {
                return Err(empty(&format!("{at}.to")));
            }
            for (i, t) in to.into_iter().enumerate() {
                let at = format!("{at}.to[{i}].operation");
                let group = self.operation(&t.operation, &at)?;
                if group.is_empty() {
                    return Err(empty(&at));
                }
                rule.to.push(group);
            }
        }
        for (i, c) in spec.when.unwrap_or_default().into_iter().enumerate() {
            let at = format!("{at}.when[{i}]");
            if c.values.is_empty() && c.not_values.is_empty() {
                return Err(self.place.invalid(&at, "needs `values` or `notValues`"));
            }
            for (list, negated, name) in
                [(&c.values, false, "values"), (&c.not_values, true, "notValues")]
            {
                if !list.is_empty() {
                    let test = self.condition(&c.key, list, &format!("{at}.{name}"))?;
                    let name = Cow::Owned(format!("when {}", c.key));
                    rule.when.push(Field { name, negated, test });
                }
            }
        }
        settle_domains(&mut rule);
        Ok(rule)
    }

    /// Parses every value of one field; an error names the value's index.
    fn all<T>(
        &self,
        list: &[String],
        at: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Finding> {
        list.iter()
            .enumerate()
            .map(|(i, v)| {
                parse(v).map_err(|e| {
                    let text = format!("`{}` {e}", v.escape_default());
                    self.place.invalid(&format!("{at}[{i}]"), text)
                })
            })
            .collect()
    }

    /// The group of those fields that were given.
    fn group(
        &self,
        at: &str,
        written: &[Written<'_>],
        test: impl Fn(&str, &[String], &str) -> Result<Test, Finding>,
    ) -> Result<Group, Finding> {
        let mut out = Vec::new();
        for (name, negated, list) in written.iter().filter(|(_, _, list)| !list.is_empty()) {
            let test = test(positive(name), list, &format!("{at}.{name}"))?;
            out.push(Field { name: Cow::Borrowed(name), negated: *negated, test });
        }
        Ok(out)
    }

    fn source(&self, s: &SourceSpec, at: &str) -> Result<Group, Finding> {
        let accounts = !s.service_accounts.is_empty();
        if accounts && !(s.principals.is_empty() && s.namespaces.is_empty()) {
            return Err(self.place.invalid(
                &format!("{at}.serviceAccounts"),
                "cannot stand beside principals or namespaces",
            ));
        }
        if s.service_accounts.len().max(s.not_service_accounts.len()) > MAX_SERVICE_ACCOUNTS {
            return Err(self.place.invalid(
                &format!("{at}.serviceAccounts"),
                format!("holds more than {MAX_SERVICE_ACCOUNTS} values"),
            ));
        }
        let written: [Written<'_>; 14] = [
            ("principals", false, &s.principals),
            ("notPrincipals", true, &s.not_principals),
            ("requestPrincipals", false, &s.request_principals),
            ("notRequestPrincipals", true, &s.not_request_principals),
            ("namespaces", false, &s.namespaces),
            ("notNamespaces", true, &s.not_namespaces),
            ("serviceAccounts", false, &s.service_accounts),
            ("notServiceAccounts", true, &s.not_service_accounts),
            ("trustDomains", false, &s.trust_domains),
            ("notTrustDomains", true, &s.not_trust_domains),
            ("ipBlocks", false, &s.ip_blocks),
            ("notIpBlocks", true, &s.not_ip_blocks),
            ("remoteIpBlocks", false, &s.remote_ip_blocks),
            ("notRemoteIpBlocks", true, &s.not_remote_ip_blocks),
        ];
        self.group(at, &written, |name, list, at| match name {
            "principals" => self.principals(list, at),
            "requestPrincipals" => self.all(list, at, str::parse).map(Test::RequestPrincipals),
            "namespaces" => self.namespaces(list, at),
            "serviceAccounts" => self.service_accounts(list, at),
            "trustDomains" => self.trust_domains(list, at),
            "ipBlocks" => self.all(list, at, str::parse).map(Test::SourceIps),
            _ => self.all(list, at, str::parse).map(Test::RemoteIps),
        })
    }

    fn principals(&self, list: &[String], at: &str) -> Result<Test, Finding> {
        self.all(list, at, str::parse::<Principal>).map(Test::Principals)
    }

    fn namespaces(&self, list: &[String], at: &str) -> Result<Test, Finding> {
        Ok(Test::Namespaces { list: self.all(list, at, str::parse)?, any_domain: false })
    }

    fn service_accounts(&self, list: &[String], at: &str) -> Result<Test, Finding> {
        let list = self.all(list, at, |v| ServiceAccount::parse(v, self.namespace))?;
        Ok(Test::ServiceAccounts { list, any_domain: false })
    }

    fn trust_domains(&self, list: &[String], at: &str) -> Result<Test, Finding> {
        self.all(list, at, trust_domain).map(Test::TrustDomains)
    }

    fn operation(&self, o: &OperationSpec, at: &str) -> Result<Group, Finding> {
        let written: [Written<'_>; 8] = [
            ("hosts", false, &o.hosts),
            ("notHosts", true, &o.not_hosts),
            ("ports", false, &o.ports),
            ("notPorts", true, &o.not_ports),
            ("methods", false, &o.methods),
            ("notMethods", true, &o.not_methods),
            ("paths", false, &o.paths),
            ("notPaths", true, &o.not_paths),
        ];
        self.group(at, &written, |name, list, at| match name {
            "hosts" => self.all(list, at, str::parse).map(Test::Hosts),
            "ports" => self.all(list, at, port).map(Test::Ports),
            "methods" => self.all(list, at, str::parse).map(Test::Methods),
            _ => self.all(list, at, str::parse).map(Test::Paths),
        })
    }

    fn condition(&self, key: &str, list: &[String], at: &str) -> Result<Test, Finding> {
        let patterns = || self.all(list, at, str::parse::<Pattern>);
        Ok(match key {
            "source.ip" => Test::SourceIps(self.all(list, at, str::parse)?),
            "remote.ip" => Test::RemoteIps(self.all(list, at, str::parse)?),
            "source.namespace" => self.namespaces(list, at)?,
            "source.principal" => self.principals(list, at)?,
            "source.serviceAccount" => self.service_accounts(list, at)?,
            "source.trustDomain" => self.trust_domains(list, at)?,
            "destination.ip" => Test::DestinationIps(self.all(list, at, str::parse)?),
            "destination.port" => Test::Ports(self.all(list, at, port)?),
            "connection.sni" => Test::Sni(patterns()?),
            "request.auth.principal" => Test::RequestPrincipals(self.all(list, at, str::parse)?),
            "request.auth.audiences" => Test::Audiences(patterns()?),
            "request.auth.presenter" => Test::Presenter(patterns()?),
            _ => {
                if let Some(path) = key.strip_prefix("request.auth.claims") {
                    let path = path.parse().map_err(|e| self.place.invalid(at, e))?;
                    return Ok(Test::Claim(path, patterns()?));
                }
                if let Some(rest) = key.strip_prefix("request.headers") {
                    let name = header_name(rest).map_err(|e| self.place.invalid(at, e))?;
                    return match name.as_str() {
                        ":method" => Ok(Test::Methods(patterns()?)),
                        ":authority" => {
                            let both = |v: &str| Ok((v.parse()?, v.parse()?));
                            Ok(Test::Authority(self.all(list, at, both)?))
                        }
                        _ => Ok(Test::Header(name, patterns()?)),
                    };
                }
                if let Some(rest) = key.strip_prefix("source.certificate.") {
                    return self.certificate(rest, list, at);
                }
                if key.starts_with("experimental.envoy.filters.") {
                    // Facts of Envoy's filters do not exist here. Taken for absent, a DENY on them would
                    // never refuse.
                    return Err(self.place.unsupported(&format!("{at}: {key}")));
                }
                return Err(self.unknown_key(key, at));
            }
        })
    }

    /// Keys of our own: what the caller's certificate says.
    fn certificate(&self, key: &str, list: &[String], at: &str) -> Result<Test, Finding> {
        let patterns = || self.all(list, at, str::parse::<Pattern>);
        let named = |prefix: &str| {
            key.strip_prefix(prefix)
                .and_then(|k| k.strip_prefix('['))
                .and_then(|k| k.strip_suffix(']'))
        };
        if let Some(name) = named("subject") {
            let name = attribute_name(name).map_err(|e| self.place.invalid(at, e))?;
            return Ok(Test::CertificateSubject(name, patterns()?));
        }
        if let Some(name) = named("extension") {
            let name = oid(name).map_err(|e| self.place.invalid(at, e))?;
            return Ok(Test::CertificateExtension(name, patterns()?));
        }
        match key {
            "dns" => Ok(Test::CertificateDns(patterns()?)),
            "spki" => Ok(Test::CertificatePins(self.all(list, at, str::parse)?)),
            _ => Err(self.unknown_key(&format!("source.certificate.{key}"), at)),
        }
    }

    fn unknown_key(&self, key: &str, at: &str) -> Finding {
        const KNOWN: [&str; 18] = [
            "source.certificate.subject[OU]",
            "source.certificate.extension[OID]",
            "source.certificate.dns",
            "source.certificate.spki",
            "source.ip",
            "remote.ip",
            "source.namespace",
            "source.principal",
            "source.serviceAccount",
            "source.trustDomain",
            "destination.ip",
            "destination.port",
            "connection.sni",
            "request.headers[NAME]",
            "request.auth.principal",
            "request.auth.audiences",
            "request.auth.presenter",
            "request.auth.claims[NAME]",
        ];
        let nearest = KNOWN
            .iter()
            .min_by_key(|k| strsim::damerau_levenshtein(key, k))
            .copied()
            .unwrap_or_default();
        self.place
            .invalid(at, format!("key `{}` is not known", key.escape_default()))
            .hint(format!("did you mean `{nearest}`?"))
    }
}

/// The name of a field without `not`.
fn positive(name: &str) -> &'static str {
    const ALL: [&str; 11] = [
        "principals",
        "requestPrincipals",
        "namespaces",
        "serviceAccounts",
        "trustDomains",
        "ipBlocks",
        "remoteIpBlocks",
        "hosts",
        "ports",
        "methods",
        "paths",
    ];
    let name = name.strip_prefix("not").unwrap_or(name);
    ALL.into_iter().find(|n| n.eq_ignore_ascii_case(name)).unwrap_or_default()
}

fn port(v: &str) -> Result<u16, String> {
    let digits = !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit());
    v.parse::<u16>()
        .ok()
        .filter(|p| digits && *p > 0)
        .ok_or_else(|| "is not a port from 1 to 65535".into())
}

fn trust_domain(v: &str) -> Result<Pattern, String> {
    if v.contains('/') {
        return Err("must not hold `/`".into());
    }
    v.parse()
}

/// `[NAME]`, the name in lower case. Of the pseudo-header fields only those that a request has here.
fn header_name(text: &str) -> Result<String, String> {
    let name = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .ok_or("is not of the form request.headers[NAME]")?;
    if let Some(pseudo) = name.strip_prefix(':') {
        return match pseudo {
            "method" | "authority" => Ok(name.to_owned()),
            _ => Err(format!("`{name}` cannot be named here; use `paths`, `hosts` or `methods`")),
        };
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("`{}` is not the name of a header field", name.escape_default()));
    }
    Ok(name.to_ascii_lowercase())
}

/// Marks namespaces and accounts of a rule that says itself which trust domains it means: in the same
/// source, or in a condition.
fn settle_domains(rule: &mut Rule) {
    let named = |group: &Group| {
        group.iter().any(|f| {
            !f.negated
                && match &f.test {
                    Test::TrustDomains(_) => true,
                    Test::Principals(list) => list.iter().all(Principal::names_trust_domain),
                    _ => false,
                }
        })
    };
    let mark = |group: &mut Group| {
        for field in group {
            if let Test::Namespaces { any_domain, .. } | Test::ServiceAccounts { any_domain, .. } =
                &mut field.test
            {
                *any_domain = true;
            }
        }
    };
    if named(&rule.when) {
        rule.from.iter_mut().for_each(mark);
        mark(&mut rule.when);
    }
    for group in &mut rule.from {
        if named(group) {
            mark(group);
        }
    }
}
