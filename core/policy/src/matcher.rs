//! Whether one rule matches: the naive evaluator, which the index only spares work.

use countersign_identity::{SpiffeId, TrustDomain};

use crate::decision::{Attributes, Caller};
use crate::identity::{namespace_matches_name, trust_domain_matches_name};
use crate::pattern::{Cidr, Pattern, Reach};
use crate::rule::{Field, Group, Rule, Test};

/// Whose semantics count where the two differ; ARCHITECTURE.md lists the differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Semantics {
    /// Ours: identities are compared by parsed segments within the local trust domain, and doubt refuses.
    #[default]
    Strict,
    /// Istio's sidecar's, as Envoy evaluates it.
    Istio,
}

/// The attributes of a request with what is read off them more than once.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) a: &'a Attributes<'a>,
    pub(crate) identity: Option<Identity<'a>>,
}

/// A SPIFFE ID taken apart.
#[derive(Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub(crate) id: &'a SpiffeId,
    pub(crate) principal: &'a str,
    pub(crate) namespace_and_account: Option<(&'a str, &'a str)>,
    /// Whether it is of the local trust domain, under any of its names.
    is_local: bool,
}

impl Identity<'_> {
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace_and_account.map(|(ns, _)| ns)
    }
}

/// What matching depends on besides rule and request.
#[derive(Clone, Debug)]
pub(crate) struct Matcher {
    pub(crate) semantics: Semantics,
    /// The local trust domain and its aliases.
    pub(crate) domains: Vec<TrustDomain>,
}

impl Matcher {
    pub(crate) fn facts<'a>(&self, a: &'a Attributes<'a>) -> Facts<'a> {
        let identity = match a.caller {
            Caller::Identity(id) => Some(Identity {
                id,
                principal: id.principal(),
                namespace_and_account: id.namespace_and_service_account(),
                is_local: self.domains.iter().any(|d| id.is_member_of(d)),
            }),
            Caller::Names(_) | Caller::Legacy(_) | Caller::Nobody => None,
        };
        Facts { a, identity }
    }

    /// `reach` is that of the action. HTTP-only fields must have been dealt with before on TCP.
    pub(crate) fn rule(&self, rule: &Rule, f: &Facts<'_>, reach: Reach) -> bool {
        (rule.from.is_empty() || rule.from.iter().any(|g| self.group(g, f, reach)))
            && (rule.to.is_empty() || rule.to.iter().any(|g| self.group(g, f, reach)))
            && self.group(&rule.when, f, reach)
    }

    fn group(&self, group: &Group, f: &Facts<'_>, reach: Reach) -> bool {
        group.iter().all(|field| self.field(field, f, reach))
    }

    /// A `not…` field is the opposite of its values, also where the attribute is absent (AP-6).
    pub(crate) fn field(&self, field: &Field, f: &Facts<'_>, reach: Reach) -> bool {
        self.test(&field.test, f, reach.of_values(field.negated)) != field.negated
    }

    fn test(&self, test: &Test, f: &Facts<'_>, reach: Reach) -> bool {
        let a = f.a;
        match test {
            Test::Principals(_)
            | Test::Namespaces { .. }
            | Test::ServiceAccounts { .. }
            | Test::TrustDomains(_) => match (self.semantics, &f.identity, a.caller) {
                (Semantics::Strict, Some(id), _) => {
                    // What Istio would refuse is refused here too, however it gets there.
                    identity(test, id, reach) || reach == Reach::Wide && name(test, id.id.as_str())
                }
                (Semantics::Istio, Some(id), _) => name(test, id.id.as_str()),
                (Semantics::Istio, None, caller) => caller.names().iter().any(|n| name(test, n)),
                // A certificate without a SPIFFE ID is nobody.
                (Semantics::Strict, None, _) => false,
            },
            Test::SourceIps(list) => within(list, a.source_ip),
            Test::RemoteIps(list) => within(list, a.remote_ip),
            Test::DestinationIps(list) => within(list, a.destination_ip),
            Test::Ports(list) => a.destination_port.is_some_and(|p| list.contains(&p)),
            Test::Sni(list) => a.sni.is_some_and(|sni| any(list, sni)),
            Test::Hosts(list) => a.http.is_some_and(|h| {
                let reach = match self.semantics {
                    Semantics::Strict => reach,
                    Semantics::Istio => Reach::Narrow,
                };
                list.iter().any(|p| p.matches(h.host, reach))
            }),
            Test::Methods(list) => {
                a.http.is_some_and(|h| list.iter().any(|p| p.matches_present(h.method)))
            }
            Test::Paths(list) => a.http.is_some_and(|h| list.iter().any(|p| p.matches(h.path))),
            Test::Authority(list) => a.http.is_some_and(|h| {
                let wide = self.semantics == Semantics::Strict && reach == Reach::Wide;
                list.iter().any(|(text, host)| {
                    text.matches_present(h.host) || wide && host.matches(h.host, Reach::Wide)
                })
            }),
            // A repeated field: each value by itself.
            Test::Header(name, list) => a.http.is_some_and(|h| {
                h.headers
                    .iter()
                    .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                    .any(|(_, v)| list.iter().any(|p| p.matches_present(v)))
            }),
            Test::RequestPrincipals(list) => {
                a.token.is_some_and(|t| list.iter().any(|p| p.matches(t)))
            }
            Test::Audiences(list) => {
                a.token.is_some_and(|t| t.any(&["aud".to_owned()], |v| any(list, v)))
            }
            Test::Presenter(list) => {
                a.token.is_some_and(|t| t.any(&["azp".to_owned()], |v| any(list, v)))
            }
            Test::CertificateSubject(name, list) => {
                a.certificate.is_some_and(|c| named(c.subject, name, list))
            }
            Test::CertificateExtension(oid, list) => {
                a.certificate.is_some_and(|c| named(c.extensions, oid, list))
            }
            Test::CertificateDns(list) => {
                a.certificate.is_some_and(|c| c.dns_names.iter().any(|d| any(list, d)))
            }
            Test::CertificatePins(list) => a
                .certificate
                .and_then(|c| c.spki_sha256)
                .is_some_and(|pin| list.iter().any(|p| p.0 == pin)),
            Test::Claim(path, list) => a.token.is_some_and(|t| t.any(&path.0, |v| any(list, v))),
        }
    }
}

/// A test of the caller in our semantics.
fn identity(test: &Test, id: &Identity<'_>, reach: Reach) -> bool {
    // Namespaces and accounts mean the local trust domain's, unless refusing.
    let counts = |any_domain: bool| any_domain || id.is_local || reach == Reach::Wide;
    match test {
        Test::Principals(list) => list.iter().any(|p| p.matches(id.principal, reach)),
        Test::Namespaces { list, any_domain } => {
            counts(*any_domain) && id.namespace().is_some_and(|ns| any(list, ns))
        }
        Test::ServiceAccounts { list, any_domain } => {
            counts(*any_domain)
                && id
                    .namespace_and_account
                    .is_some_and(|(ns, sa)| list.iter().any(|a| a.matches(ns, sa)))
        }
        // The trust domain itself is no workload.
        Test::TrustDomains(list) => {
            (reach == Reach::Wide || !id.id.is_trust_domain())
                && any(list, id.id.trust_domain().as_str())
        }
        _ => false,
    }
}

/// A test of the caller in Istio's semantics, on one of Envoy's principal names.
fn name(test: &Test, name: &str) -> bool {
    match test {
        Test::Principals(list) => list.iter().any(|p| p.matches_name(name)),
        Test::Namespaces { list, .. } => list.iter().any(|p| namespace_matches_name(p, name)),
        Test::ServiceAccounts { list, .. } => list.iter().any(|a| a.matches_name(name)),
        Test::TrustDomains(list) => list.iter().any(|p| trust_domain_matches_name(p, name)),
        _ => false,
    }
}

fn any(list: &[Pattern], value: &str) -> bool {
    list.iter().any(|p| p.matches(value))
}

/// Whether some value of that name matches.
fn named(values: &[(String, String)], name: &str, list: &[Pattern]) -> bool {
    values.iter().any(|(n, v)| n == name && any(list, v))
}

fn within(list: &[Cidr], ip: Option<std::net::IpAddr>) -> bool {
    ip.is_some_and(|ip| list.iter().any(|c| c.contains(ip)))
}
