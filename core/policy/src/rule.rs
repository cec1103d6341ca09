//! Authorization policies as data: what was written, checked.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::Labels;
use crate::certificate::Pin;
use crate::identity::{Principal, ServiceAccount};
use crate::pattern::{Cidr, HostPattern, PathPattern, Pattern};
use crate::token::{ClaimPath, RequestPrincipal};

/// What a policy does when it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Grants.
    Allow,
    /// Refuses, before any grant counts.
    Deny,
    /// Only notes.
    Audit,
    /// Asks an external engine, before anything else counts.
    Custom,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Audit => "AUDIT",
            Action::Custom => "CUSTOM",
        })
    }
}

/// An authorization policy.
#[derive(Clone, Debug)]
pub struct AuthorizationPolicy {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels a workload must have; empty for all.
    pub selector: Labels,
    /// Whether it is attached to gateways or services (`targetRefs`): no sidecar minds it (AP-1).
    pub for_gateways: bool,
    /// What it does.
    pub action: Action,
    /// The engine that a CUSTOM policy asks.
    pub provider: Option<Arc<str>>,
    /// `istio.io/dry-run`: matched and reported, never enforced.
    pub dry_run: bool,
    pub(crate) rules: Vec<Arc<Rule>>,
}

impl AuthorizationPolicy {
    /// How many rules it has.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }
}

/// One rule: any source, any operation, all conditions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    pub(crate) from: Vec<Group>,
    pub(crate) to: Vec<Group>,
    pub(crate) when: Group,
}

/// Fields that must all match.
pub(crate) type Group = Vec<Field>;

/// One field with its alternatives. `negated` is a `not…` field.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// As written, for explanations.
    pub(crate) name: Cow<'static, str>,
    pub(crate) negated: bool,
    pub(crate) test: Test,
}

/// What a field asks for; any of the values will do.
#[derive(Clone, Debug)]
pub(crate) enum Test {
    Principals(Vec<Principal>),
    /// `any_domain`: the rule names trust domains itself, so these are not only the local one's.
    Namespaces {
        list: Vec<Pattern>,
        any_domain: bool,
    },
    ServiceAccounts {
        list: Vec<ServiceAccount>,
        any_domain: bool,
    },
    TrustDomains(Vec<Pattern>),
    SourceIps(Vec<Cidr>),
    RemoteIps(Vec<Cidr>),
    DestinationIps(Vec<Cidr>),
    Ports(Vec<u16>),
    Sni(Vec<Pattern>),
    Hosts(Vec<HostPattern>),
    Methods(Vec<Pattern>),
    Paths(Vec<PathPattern>),
    Header(String, Vec<Pattern>),
    /// `request.headers[:authority]`: the text counts; where it refuses, the host does too.
    Authority(Vec<(Pattern, HostPattern)>),
    RequestPrincipals(Vec<RequestPrincipal>),
    Audiences(Vec<Pattern>),
    Presenter(Vec<Pattern>),
    Claim(ClaimPath, Vec<Pattern>),
    CertificateSubject(String, Vec<Pattern>),
    CertificateExtension(String, Vec<Pattern>),
    CertificateDns(Vec<Pattern>),
    CertificatePins(Vec<Pin>),
}

impl Test {
    /// Whether it names the caller's identity, or what a token says of it.
    pub(crate) fn is_about_identity(&self) -> bool {
        matches!(
            self,
            Test::Principals(_)
                | Test::Namespaces { .. }
                | Test::ServiceAccounts { .. }
                | Test::TrustDomains(_)
                | Test::RequestPrincipals(_)
                | Test::Audiences(_)
                | Test::Presenter(_)
                | Test::Claim(..)
        )
    }

    /// Whether it can be judged only on HTTP.
    pub(crate) fn is_http_only(&self) -> bool {
        matches!(
            self,
            Test::Hosts(_)
                | Test::Methods(_)
                | Test::Paths(_)
                | Test::Header(..)
                | Test::Authority(_)
                | Test::RequestPrincipals(_)
                | Test::Audiences(_)
                | Test::Presenter(_)
                | Test::Claim(..)
        )
    }

    /// The values as written.
    pub(crate) fn values(&self) -> Vec<String> {
        fn all<T: ToString>(list: &[T]) -> Vec<String> {
            list.iter().map(T::to_string).collect()
        }
        match self {
            Test::Principals(l) => all(l),
            Test::ServiceAccounts { list, .. } => all(list),
            Test::Namespaces { list: l, .. }
            | Test::TrustDomains(l)
            | Test::Sni(l)
            | Test::Methods(l)
            | Test::Header(_, l)
            | Test::Audiences(l)
            | Test::Presenter(l)
            | Test::Claim(_, l)
            | Test::CertificateSubject(_, l)
            | Test::CertificateExtension(_, l)
            | Test::CertificateDns(l) => all(l),
            Test::CertificatePins(l) => all(l),
            Test::SourceIps(l) | Test::RemoteIps(l) | Test::DestinationIps(l) => all(l),
            Test::Ports(l) => all(l),
            Test::Hosts(l) => all(l),
            Test::Authority(l) => l.iter().map(|(p, _)| p.to_string()).collect(),
            Test::Paths(l) => all(l),
            Test::RequestPrincipals(l) => all(l),
        }
    }
}

impl Rule {
    /// Every field of it.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &Field> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }

    /// Whether some field of it can be judged only on HTTP.
    pub(crate) fn names_http(&self) -> bool {
        self.fields().any(|f| f.test.is_http_only())
    }

    /// The rule without its HTTP-only fields: how a rule that refuses looks on a TCP connection, where it
    /// must not narrow. A group that is left empty matches everything.
    pub(crate) fn without_http(&self) -> Rule {
        let strip = |group: &Group| -> Group {
            group.iter().filter(|f| !f.test.is_http_only()).cloned().collect()
        };
        Rule {
            from: self.from.iter().map(strip).collect(),
            to: self.to.iter().map(strip).collect(),
            when: strip(&self.when),
        }
    }
}
