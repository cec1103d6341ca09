//! Who calls: principals, namespaces, service accounts, trust domains, in both semantics.
//!
//! Strict: the caller is its one proven SPIFFE ID, compared by parsed segments. Istio's: the caller is a set
//! of strings as Envoy takes them from the certificate, compared by prefix, suffix and regular expressions
//! over the whole string (AP-14 to AP-16).

use std::fmt;
use std::str::FromStr;

use countersign_identity::TrustDomain;

use crate::pattern::{Pattern, Reach};

const SCHEME: &str = "spiffe://";

/// A pattern for identities, written without `spiffe://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal(pub(crate) Pattern);

impl FromStr for Principal {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s.contains("://") {
            return Err("must be written without `spiffe://`".into());
        }
        s.parse().map(Self)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Principal {
    /// Against a proven identity, its scheme left out.
    pub(crate) fn matches(&self, principal: &str, reach: Reach) -> bool {
        self.0.matches_segments(principal, reach)
    }

    /// Against one of Envoy's principal names.
    pub(crate) fn matches_name(&self, name: &str) -> bool {
        match &self.0 {
            Pattern::Present => !name.is_empty(),
            Pattern::Exact(t) => name.strip_prefix(SCHEME) == Some(&**t),
            Pattern::Prefix(t) => name.strip_prefix(SCHEME).is_some_and(|n| n.starts_with(&**t)),
            Pattern::Suffix(t) => name.strip_prefix(SCHEME).is_some_and(|n| n.ends_with(&**t)),
        }
    }

    /// Whether it says itself which trust domain it means.
    pub(crate) fn names_trust_domain(&self) -> bool {
        matches!(&self.0, Pattern::Exact(t) | Pattern::Prefix(t) if t.contains('/'))
    }

    /// This principal, and what it stands for where a trust domain has aliases (AP-17). Only principals
    /// of five parts (`td/ns/N/sa/S`) whose trust domain is `cluster.local` or one of `domains`.
    pub(crate) fn with_aliases(&self, domains: &[&TrustDomain]) -> Vec<Principal> {
        if let (Pattern::Exact(t), [only]) = (&self.0, domains)
            && t.strip_prefix(only.as_str()).is_some_and(|r| r.starts_with('/'))
        {
            return vec![self.clone()];
        }
        let text = self.0.to_string();
        let (domain, rest) = text.split_once('/').unwrap_or((&text, ""));
        let known =
            || domain == "cluster.local" || domains.iter().any(|d| alike(domain, d.as_str()));
        if text.split('/').count() != 5 || domain == "*" || !known() {
            return vec![self.clone()];
        }
        let mut out: Vec<Principal> = Vec::new();
        for d in domains {
            // `*-td` stays as it is for the domains it covers.
            let covered = domain.strip_prefix('*').is_some_and(|s| d.as_str().ends_with(s));
            let principal = if covered {
                self.clone()
            } else {
                let Ok(replaced) = format!("{d}/{rest}").parse() else { continue };
                replaced
            };
            if !out.contains(&principal) {
                out.push(principal);
            }
        }
        out
    }
}

/// Whether either matches the other, where one may end or begin with `*`.
fn alike(a: &str, b: &str) -> bool {
    a == b
        || b.strip_suffix('*').is_some_and(|p| a.starts_with(p))
        || a.strip_suffix('*').is_some_and(|p| b.starts_with(p))
        || b.strip_prefix('*').is_some_and(|s| a.ends_with(s))
        || a.strip_prefix('*').is_some_and(|s| b.ends_with(s))
}

/// Trust domains with what they stand for: a member of `domains` stands for all of them (AP-17).
pub(crate) fn trust_domains_with_aliases(
    list: &[Pattern],
    domains: &[&TrustDomain],
) -> Vec<Pattern> {
    let mut out: Vec<Pattern> = Vec::new();
    for pattern in list {
        let stands_for_all = matches!(pattern, Pattern::Exact(t)
            if **t == *"cluster.local" || domains.iter().any(|d| d.as_str() == &**t));
        if stands_for_all {
            out.extend(domains.iter().map(|d| Pattern::Exact(d.as_str().into())));
        } else {
            out.push(pattern.clone());
        }
    }
    out.dedup();
    out
}

/// `namespace/account`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl ServiceAccount {
    /// `NAMESPACE/ACCOUNT`, or `ACCOUNT` of the policy's `namespace`.
    pub(crate) fn parse(text: &str, namespace: &str) -> Result<Self, String> {
        if text.contains('*') {
            return Err("must not hold `*`".into());
        }
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') || text.len() > 320 {
            return Err("is not NAMESPACE/ACCOUNT or ACCOUNT".into());
        }
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    /// Against `/ns/…/sa/…` of a proven identity.
    pub(crate) fn matches(&self, namespace: &str, name: &str) -> bool {
        *self.namespace == *namespace && *self.name == *name
    }

    /// Against one of Envoy's principal names: `spiffe://.+/ns/NS/(.+/|)sa/SA(/.+)?`.
    pub(crate) fn matches_name(&self, name: &str) -> bool {
        let Some(rest) = name.strip_prefix(SCHEME) else { return false };
        let ns = format!("/ns/{}/", self.namespace);
        let sa = format!("sa/{}", self.name);
        let ends = |tail: &str| tail.is_empty() || tail.starts_with('/') && tail.len() > 1;
        rest.match_indices('/').filter(|(i, _)| *i > 0 && rest[*i..].starts_with(&ns)).any(
            |(i, _)| {
                let after = &rest[i + ns.len()..];
                after.strip_prefix(&*sa).is_some_and(ends)
                    || after
                        .match_indices('/')
                        .any(|(j, _)| j > 0 && after[j + 1..].strip_prefix(&*sa).is_some_and(ends))
            },
        )
    }
}

/// One of Envoy's principal names against a namespace: `.*/ns/NS/.*`, where `*` in NS takes anything.
pub(crate) fn namespace_matches_name(pattern: &Pattern, name: &str) -> bool {
    name.match_indices("/ns/").any(|(i, m)| {
        let after = &name[i + m.len()..];
        // Where the last slash is: everything in front of it may belong to a wildcard.
        let Some(last) = after.rfind('/') else { return false };
        match pattern {
            Pattern::Exact(t) => after.strip_prefix(&**t).is_some_and(|r| r.starts_with('/')),
            Pattern::Prefix(t) => after.starts_with(&**t) && last >= t.len(),
            Pattern::Suffix(t) => after.match_indices('/').any(|(j, _)| after[..j].ends_with(&**t)),
            Pattern::Present => true,
        }
    })
}

/// One of Envoy's principal names against a trust domain.
pub(crate) fn trust_domain_matches_name(pattern: &Pattern, name: &str) -> bool {
    name.strip_prefix(SCHEME)
        .and_then(|n| n.split_once('/'))
        .is_some_and(|(domain, _)| *pattern == Pattern::Present || pattern.matches(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(s: &str) -> Principal {
        s.parse().unwrap()
    }

    #[test]
    fn ap_14_principals_in_istios_semantics() {
        assert!(principal("*").matches_name("only.a.dns.name"));
        assert!(
            principal("a/b").matches_name("spiffe://a/b") && !principal("a/b").matches_name("a/b")
        );
        assert!(principal("a/*").matches_name("spiffe://a/b"));
        assert!(
            principal("*/b").matches_name("spiffe://a/b") && !principal("*/b").matches_name("x/b")
        );
    }

    #[test]
    fn ap_15_regular_expressions_of_istios_semantics() {
        let sa = ServiceAccount::parse("foo/bar", "x").unwrap();
        for (name, expected) in [
            ("spiffe://td/ns/foo/sa/bar", true),
            ("spiffe://td/ns/foo/sa/bar/more", true),
            ("spiffe://td/ns/foo/sa/bar/", false),
            ("spiffe://td/ns/foo/x/sa/bar", true),
            ("spiffe://td/a/ns/foo/sa/bar", true),
            ("spiffe:///ns/foo/sa/bar", false),
            ("spiffe://td/ns/foo/sa/barx", false),
            ("spiffe://td/ns/foo//sa/bar", false),
            ("td/ns/foo/sa/bar", false),
        ] {
            assert_eq!(sa.matches_name(name), expected, "{name}");
        }
        let ns = |p: &str, name: &str| namespace_matches_name(&p.parse().unwrap(), name);
        assert!(ns("foo", "spiffe://td/ns/foo/sa/x") && !ns("foo", "spiffe://td/ns/foo"));
        assert!(ns("foo", "spiffe://evil/ns/bar/sa/q/ns/foo/z"), "AP-16");
        assert!(ns("fo*", "spiffe://td/ns/foo/sa/x") && !ns("fo*", "spiffe://td/ns/foo"));
        assert!(ns("*oo", "spiffe://td/ns/foo/sa/x") && !ns("*ox", "spiffe://td/ns/foo/sa/x"));
        assert!(ns("*", "spiffe://td/ns/foo/sa/x") && !ns("*", "spiffe://td/sa/x"));
    }

    #[test]
    fn ap_17_aliases() {
        let td: Vec<TrustDomain> =
            ["td1", "cluster.local", "td2"].iter().map(|t| TrustDomain::new(t).unwrap()).collect();
        let expand = |text: &str, n: usize| -> Vec<String> {
            let domains: Vec<&TrustDomain> = td.iter().take(n).collect();
            principal(text).with_aliases(&domains).iter().map(ToString::to_string).collect()
        };
        assert_eq!(expand("cluster.local/ns/a/sa/b", 1), ["td1/ns/a/sa/b"]);
        assert_eq!(expand("td1/ns/a/sa/b", 3).len(), 3);
        assert_eq!(expand("other/ns/a/sa/b", 3), ["other/ns/a/sa/b"]);
        assert_eq!(expand("*/ns/a/sa/b", 3), ["*/ns/a/sa/b"]);
        assert_eq!(expand("td1/x", 3), ["td1/x"], "not five parts");
        assert_eq!(
            expand("*1/ns/a/sa/b", 3),
            ["*1/ns/a/sa/b", "cluster.local/ns/a/sa/b", "td2/ns/a/sa/b"]
        );
    }
}
