//! What is wrong, risky or useless in a set of policies, without knowing any request.

use std::sync::Arc;

use countersign_findings::{Code, Finding};

use crate::identity::Principal;
use crate::modes::{Mode, Until};
use crate::path::normalize;
use crate::pattern::{PathPattern, Pattern};
use crate::rule::{Action, AuthorizationPolicy, Field, Group, Rule, Test};
use crate::{Document, PeerAuthentication};

/// Looks at every document; findings name policy, rule and field. `root_namespace` is the one whose policies
/// are for all.
pub fn lint(documents: &[Document], root_namespace: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    let policies: Vec<&AuthorizationPolicy> = documents
        .iter()
        .filter_map(|d| match d {
            Document::AuthorizationPolicy(p) => Some(p),
            _ => None,
        })
        .collect();
    let tokens = documents.iter().any(|d| matches!(d, Document::RequestAuthentication(_)));
    for policy in &policies {
        each(policy, &mut out);
        if !tokens {
            without_tokens(policy, &mut out);
        }
    }
    shadowed(&policies, root_namespace, &mut out);
    for document in documents {
        if let Document::PeerAuthentication(d) = document {
            modes(d, root_namespace, &mut out);
        }
    }
    out
}

fn finding(code: Code, policy: &AuthorizationPolicy, rule: Option<usize>, text: String) -> Finding {
    let name = format!("{}/{}", policy.namespace, policy.name);
    Finding::new(code, text).at(match rule {
        Some(i) => format!("AuthorizationPolicy {name}, rule {i}"),
        None => format!("AuthorizationPolicy {name}"),
    })
}

fn each(policy: &AuthorizationPolicy, out: &mut Vec<Finding>) {
    if policy.dry_run {
        let text = format!("{} is only tried out (istio.io/dry-run)", policy.action);
        out.push(finding(Code::PolicyNotEnforced, policy, None, text));
    }
    if policy.for_gateways {
        let text = "it is attached by targetRefs, which no sidecar minds".to_owned();
        out.push(finding(Code::PolicyNotEnforced, policy, None, text));
    }
    for (i, rule) in policy.rules.iter().enumerate() {
        let mut say = |code, text| out.push(finding(code, policy, Some(i), text));
        if let Some(text) = contradiction(rule) {
            say(Code::PolicyNeverMatches, text);
        }
        for (field, path, normal) in unusual_paths(rule) {
            if policy.action == Action::Allow {
                let text = format!(
                    "`{field}`: `{path}` is not in normal form, so no request has it; write `{normal}`"
                );
                say(Code::PolicyNeverMatches, text);
            } else {
                let text = format!(
                    "`{field}`: `{path}` is taken for its normal form `{normal}`; Istio compares the text"
                );
                say(Code::PolicyDiffersFromIstio, text);
            }
        }
        match policy.action {
            Action::Allow => allow(rule, &mut say),
            Action::Deny => deny(rule, &mut say),
            Action::Audit | Action::Custom => {}
        }
    }
}

/// Rules on tokens, where nothing says whose tokens are verified.
fn without_tokens(policy: &AuthorizationPolicy, out: &mut Vec<Finding>) {
    for (i, rule) in policy.rules.iter().enumerate() {
        let about_tokens = |f: &&Field| {
            matches!(
                f.test,
                Test::RequestPrincipals(_)
                    | Test::Audiences(_)
                    | Test::Presenter(_)
                    | Test::Claim(..)
            )
        };
        if let Some(field) = rule.fields().filter(|f| !f.negated).find(about_tokens) {
            let text = format!(
                "`{}`: no RequestAuthentication is in the set, so no request has a token that counts",
                field.name
            );
            out.push(finding(Code::PolicyNeverMatches, policy, Some(i), text));
        }
    }
}

fn allow(rule: &Rule, say: &mut impl FnMut(Code, String)) {
    let anyone = rule.from.is_empty()
        && !rule.when.iter().any(|f| !f.negated && is_about_the_caller(&f.test));
    if rule.from.is_empty() && rule.to.is_empty() && rule.when.is_empty() {
        say(Code::PolicyAllowsAll, "it allows every request of everybody, plaintext too".into());
    } else if anyone {
        say(Code::PolicyAllowsAll, "it names no caller: plaintext is allowed too".into());
    }
    let groups = || rule.from.iter().chain([&rule.when]);
    for field in groups().flatten().filter(|f| !f.negated) {
        match &field.test {
            Test::Principals(list) => {
                for p in list.iter().filter(|p| crosses_domains(p)) {
                    let text = format!("`{}`: `{p}` matches in every trust domain", field.name);
                    say(Code::PolicyCrossesTrustDomains, text);
                }
                for p in list {
                    if let Pattern::Prefix(t) = &p.0
                        && !t.ends_with('/')
                    {
                        let text = format!(
                            "`{}`: `{p}` stays within its segment; Istio lets it cross the next `/`",
                            field.name
                        );
                        say(Code::PolicyDiffersFromIstio, text);
                    }
                }
            }
            Test::Namespaces { any_domain: false, .. }
            | Test::ServiceAccounts { any_domain: false, .. } => {
                let text = format!(
                    "`{}` means the local trust domain; Istio does not look at the trust domain",
                    field.name
                );
                say(Code::PolicyDiffersFromIstio, text);
            }
            _ => {}
        }
    }
}

fn deny(rule: &Rule, say: &mut impl FnMut(Code, String)) {
    if rule.names_http() {
        let left = rule.without_http();
        if left.fields().next().is_none() {
            let text = "on TCP nothing of it is left, so it refuses every connection".to_owned();
            say(Code::PolicyWiderOnTcp, text);
        }
    }
    if rule.fields().any(|f| matches!(f.test, Test::Hosts(_))) {
        let text = "`hosts` refuses the host with any port and with a trailing dot; Istio compares the text";
        say(Code::PolicyDiffersFromIstio, text.into());
    }
}

fn is_about_the_caller(test: &Test) -> bool {
    matches!(
        test,
        Test::Principals(_)
            | Test::Namespaces { .. }
            | Test::ServiceAccounts { .. }
            | Test::TrustDomains(_)
            | Test::RequestPrincipals(_)
            | Test::Audiences(_)
            | Test::Presenter(_)
            | Test::Claim(..)
            | Test::SourceIps(_)
            | Test::RemoteIps(_)
            | Test::CertificateSubject(..)
            | Test::CertificateExtension(..)
            | Test::CertificateDns(_)
            | Test::CertificatePins(_)
    )
}

fn crosses_domains(p: &Principal) -> bool {
    matches!(p.0, Pattern::Present | Pattern::Suffix(_))
}

/// Why a rule can never match, if it cannot.
fn contradiction(rule: &Rule) -> Option<String> {
    let every = |groups: &[Group]| -> Option<String> {
        let mut why = None;
        for group in groups {
            why = Some(impossible(group)?);
        }
        why
    };
    every(&rule.from).or_else(|| every(&rule.to)).or_else(|| impossible(&rule.when)).or_else(|| {
        // Ports asked for in one place and in another.
        let ports = |group: &Group| -> Option<Vec<u16>> {
            group.iter().filter(|f| !f.negated).find_map(|f| match &f.test {
                Test::Ports(list) => Some(list.clone()),
                _ => None,
            })
        };
        let wanted = ports(&rule.when)?;
        let disjoint = !rule.to.is_empty()
            && rule
                .to
                .iter()
                .all(|g| ports(g).is_some_and(|list| !list.iter().any(|p| wanted.contains(p))));
        disjoint.then(|| "`ports` and `when destination.port` have no port in common".to_owned())
    })
}

/// Why a group can never match, if it cannot.
fn impossible(group: &Group) -> Option<String> {
    for field in group.iter().filter(|f| !f.negated) {
        match &field.test {
            Test::Paths(list) => {
                if let Some(why) = list.iter().map(impossible_path).collect::<Option<Vec<_>>>() {
                    return why.into_iter().next().map(|w| format!("`{}`: {w}", field.name));
                }
            }
            Test::Methods(list) => {
                let lower = |p: &Pattern| matches!(p, Pattern::Exact(t) if t.bytes().any(|b| b.is_ascii_lowercase()));
                if list.iter().all(lower) {
                    return Some(format!("`{}`: methods are in capitals", field.name));
                }
            }
            _ => {}
        }
        let excluded = group.iter().filter(|f| f.negated).any(|not| covers(not, field));
        if excluded {
            return Some(format!("everything that `{}` names is excluded again", field.name));
        }
    }
    None
}

/// Exact paths that are not in normal form: field, path, normal form.
fn unusual_paths(rule: &Rule) -> Vec<(String, String, String)> {
    let mut out = Vec::new();
    for field in rule.fields() {
        let Test::Paths(list) = &field.test else { continue };
        for pattern in list {
            if let PathPattern::Plain(Pattern::Exact(t)) = pattern
                && let Ok(normal) = normalize(t)
                && normal != **t
            {
                out.push((field.name.to_string(), t.to_string(), normal.into_owned()));
            }
        }
    }
    out
}

/// Why no path in normal form matches, if none does.
fn impossible_path(pattern: &PathPattern) -> Option<String> {
    let PathPattern::Plain(Pattern::Exact(t)) = pattern else {
        return match pattern {
            PathPattern::Plain(Pattern::Prefix(t)) if !t.starts_with('/') => {
                Some(format!("`{t}*`: every path begins with `/`"))
            }
            _ => None,
        };
    };
    if t.contains('?') {
        return Some(format!("`{t}`: the query is not part of the path"));
    }
    match normalize(t) {
        Ok(_) => None,
        Err(e) => Some(format!("`{t}`: such a request is refused with 400: {e}")),
    }
}

/// Rules that another one covers, in the same scope.
fn shadowed(policies: &[&AuthorizationPolicy], root: &str, out: &mut Vec<Finding>) {
    let enforced: Vec<&&AuthorizationPolicy> =
        policies.iter().filter(|p| !p.dry_run && !p.for_gateways).collect();
    // The scope of one includes that of another.
    let includes = |wide: &AuthorizationPolicy, narrow: &AuthorizationPolicy| {
        (wide.namespace == narrow.namespace || wide.namespace == root)
            && wide.selector.iter().all(|(k, v)| narrow.selector.get(k) == Some(v))
    };
    for policy in &enforced {
        for (i, rule) in policy.rules.iter().enumerate() {
            let by = enforced.iter().find_map(|other| {
                let relevant = other.action == policy.action
                    || other.action == Action::Deny && policy.action == Action::Allow;
                if !relevant || !includes(other, policy) {
                    return None;
                }
                other.rules.iter().enumerate().find_map(|(j, r)| {
                    let same = std::ptr::eq(**other, **policy) && i == j;
                    let twin = rule_covers(rule, r);
                    // Of two equal rules only the later one is named.
                    let earlier = (&other.namespace, &other.name, j)
                        < (&policy.namespace, &policy.name, i)
                        || other.action != policy.action;
                    (!same && rule_covers(r, rule) && (!twin || earlier)).then_some((*other, j))
                })
            });
            if let Some((other, j)) = by {
                let text = format!(
                    "{} {}/{}, rule {j}, covers it",
                    other.action, other.namespace, other.name
                );
                out.push(finding(Code::PolicyShadowed, policy, Some(i), text));
            }
        }
    }
}

/// Whether everything that `narrow` matches is matched by `wide`. `false` where that is not plain.
fn rule_covers(wide: &Arc<Rule>, narrow: &Arc<Rule>) -> bool {
    let groups = |wide: &[Group], narrow: &[Group]| {
        wide.is_empty()
            || !narrow.is_empty() && narrow.iter().all(|n| wide.iter().any(|w| group_covers(w, n)))
    };
    groups(&wide.from, &narrow.from)
        && groups(&wide.to, &narrow.to)
        && group_covers(&wide.when, &narrow.when)
}

fn group_covers(wide: &Group, narrow: &Group) -> bool {
    wide.iter().all(|w| {
        narrow
            .iter()
            .any(|n| n.negated == w.negated && if w.negated { covers(n, w) } else { covers(w, n) })
    })
}

/// Whether every value of `narrow` is one of `wide`, both taken as positive.
fn covers(wide: &Field, narrow: &Field) -> bool {
    fn all(wide: &[Pattern], narrow: &[Pattern]) -> bool {
        narrow.iter().all(|n| wide.iter().any(|w| pattern_covers(w, n)))
    }
    match (&wide.test, &narrow.test) {
        (Test::Methods(w), Test::Methods(n)) | (Test::Sni(w), Test::Sni(n)) => all(w, n),
        (Test::Ports(w), Test::Ports(n)) => n.iter().all(|p| w.contains(p)),
        (Test::Paths(w), Test::Paths(n)) => n.iter().all(|n| {
            w.iter().any(|w| match (w, n) {
                (PathPattern::Plain(w), PathPattern::Plain(n)) => pattern_covers(w, n),
                (w, n) => w == n,
            })
        }),
        (Test::Principals(w), Test::Principals(n)) => n.iter().all(|n| {
            w.iter().any(|w| {
                w == n
                    || matches!((&w.0, &n.0), (Pattern::Present, _))
                    || match &n.0 {
                        Pattern::Exact(t) => w.matches(t, crate::pattern::Reach::Narrow),
                        _ => false,
                    }
            })
        }),
        (
            Test::Namespaces { list: w, any_domain: a },
            Test::Namespaces { list: n, any_domain: b },
        ) => a == b && all(w, n),
        (Test::Header(a, w), Test::Header(b, n)) => a == b && all(w, n),
        (Test::Claim(a, w), Test::Claim(b, n)) => a == b && all(w, n),
        (Test::CertificateSubject(a, w), Test::CertificateSubject(b, n))
        | (Test::CertificateExtension(a, w), Test::CertificateExtension(b, n)) => {
            a == b && all(w, n)
        }
        (
            Test::ServiceAccounts { any_domain: a, .. },
            Test::ServiceAccounts { any_domain: b, .. },
        ) if a != b => false,
        (a, b) if std::mem::discriminant(a) == std::mem::discriminant(b) => {
            let wide = a.values();
            b.values().iter().all(|n| wide.contains(n))
        }
        _ => false,
    }
}

fn pattern_covers(wide: &Pattern, narrow: &Pattern) -> bool {
    match (wide, narrow) {
        (Pattern::Present, _) => true,
        (_, Pattern::Exact(t)) => wide.matches(t),
        (Pattern::Prefix(w), Pattern::Prefix(n)) => n.starts_with(&**w),
        (Pattern::Suffix(w), Pattern::Suffix(n)) => n.ends_with(&**w),
        _ => false,
    }
}

fn modes(d: &PeerAuthentication, root: &str, out: &mut Vec<Finding>) {
    let at = format!("PeerAuthentication {}/{}", d.namespace, d.name);
    let forever = |m: &Option<Mode>| *m == Some(Mode::Permissive { until: Until::Never });
    if forever(&d.mode) || d.port_modes.values().any(forever) {
        out.push(
            Finding::new(Code::PermissiveWithoutEnd, "plaintext is accepted for ever")
                .at(at.clone())
                .hint("set the annotation countersign.dev/permissive-until to a time"),
        );
    }
    if d.namespace == root && !d.selector.is_empty() {
        let text = "a selector in the root namespace is for no workload (PA-2)";
        out.push(Finding::new(Code::PolicyNotEnforced, text).at(at));
    }
}
