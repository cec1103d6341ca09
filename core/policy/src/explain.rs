//! Why: the rule that came closest, and the whole trace.

use std::sync::Arc;

use countersign_findings::Code;

use crate::certificate::CertificateFacts;
use crate::decision::{Attributes, Caller, Denial, Verdict};
use crate::index::Index;
use crate::matcher::{Facts, Matcher};
use crate::pattern::Reach;
use crate::rule::{Action, Field, Group, Rule, Test};
use crate::set::{PolicySet, who};

/// Rules looked at for the closest one: enough for a useful sentence, bounded because refusing must stay
/// cheap however many policies there are.
const NEAR: usize = 12;

/// How one rule, or a policy without any, fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `namespace/name`.
    pub policy: Arc<str>,
    /// What the policy does.
    pub action: Action,
    /// Whether it is only tried out.
    pub dry_run: bool,
    /// The rule from 0; `None` for a policy that has none.
    pub rule: Option<usize>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It matches.
    Matched,
    /// This field is the first that does not.
    Missed {
        /// Its name as written.
        field: String,
        /// The values that were written.
        wanted: Vec<String>,
        /// What the request has; `None` if nothing.
        presented: Option<String>,
    },
    /// It names what only HTTP has, and this is a TCP connection: an ALLOW cannot be met.
    HttpOnly {
        /// The first such field.
        field: String,
    },
    /// The policy has no rules: as an ALLOW it grants nothing.
    NoRules,
    /// The selector wants labels, and those of the workload are not known: an ALLOW grants nothing.
    LabelsUnknown,
}

/// A trace with its end.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Every rule of every policy that concerns the workload, in the order in which they count: CUSTOM, DENY,
    /// ALLOW, then AUDIT and what is tried out.
    pub steps: Vec<Step>,
    /// What [`PolicySet::judge`] says.
    pub verdict: Verdict,
}

impl PolicySet {
    /// Goes through every rule and says how it fared.
    pub fn explain(&self, a: &Attributes<'_>) -> Explanation {
        let facts = self.matcher.facts(a);
        let mut steps = Vec::new();
        let order = |p: &crate::set::Selected| match (p.dry_run, p.action) {
            (false, Action::Custom) => 0,
            (false, Action::Deny) => 1,
            (false, Action::Allow) => 2,
            _ => 3,
        };
        let mut policies: Vec<_> = self.policies.iter().collect();
        policies.sort_by_key(|p| order(p));
        for policy in policies {
            let step = |rule, outcome| Step {
                policy: Arc::clone(&policy.name),
                action: policy.action,
                dry_run: policy.dry_run,
                rule,
                outcome,
            };
            if policy.doubtful && policy.action == Action::Allow {
                steps.push(step(None, Outcome::LabelsUnknown));
            } else if policy.rules.is_empty() {
                steps.push(step(None, Outcome::NoRules));
            }
            for (i, rule) in policy.rules.iter().enumerate() {
                steps.push(step(Some(i), self.outcome(policy.action, rule, &facts)));
            }
        }
        Explanation { steps, verdict: self.judge(a) }
    }

    fn outcome(&self, action: Action, rule: &Rule, f: &Facts<'_>) -> Outcome {
        let reach = if action == Action::Allow { Reach::Narrow } else { Reach::Wide };
        if f.a.http.is_none() && rule.names_http() {
            if action == Action::Allow {
                let field = rule.fields().find(|f| f.test.is_http_only());
                let field = field.map(|f| f.name.to_string()).unwrap_or_default();
                return Outcome::HttpOnly { field };
            }
            return miss(&self.matcher, &rule.without_http(), f, reach);
        }
        miss(&self.matcher, rule, f, reach)
    }
}

fn miss(matcher: &Matcher, rule: &Rule, f: &Facts<'_>, reach: Reach) -> Outcome {
    match progress(matcher, rule, f, reach).1 {
        None => Outcome::Matched,
        Some(field) => Outcome::Missed {
            field: field.name.to_string(),
            wanted: field.test.values(),
            presented: presented(&field.test, f.a),
        },
    }
}

/// How many fields match in the best groups, and the first that does not.
fn progress<'r>(
    matcher: &Matcher,
    rule: &'r Rule,
    f: &Facts<'_>,
    reach: Reach,
) -> (usize, Option<&'r Field>) {
    let count = |group: &'r Group| {
        let good = group.iter().take_while(|field| matcher.field(field, f, reach)).count();
        (good, group.get(good))
    };
    let mut total = 0;
    let mut failing = None;
    for groups in [&rule.from, &rule.to] {
        if let Some((n, miss)) =
            groups.iter().map(count).max_by_key(|(n, miss)| (miss.is_none(), *n))
        {
            total += n;
            failing = failing.or(miss);
        }
    }
    let (n, miss) = count(&rule.when);
    (total + n, failing.or(miss))
}

/// What the request has where a field looks.
fn presented(test: &Test, a: &Attributes<'_>) -> Option<String> {
    let caller = |part: &dyn Fn(&countersign_identity::SpiffeId) -> Option<String>| match a.caller {
        Caller::Identity(id) => part(id),
        Caller::Legacy(name) => Some(name.to_owned()),
        Caller::Names(names) => (!names.is_empty()).then(|| names.join(", ")),
        Caller::Nobody => None,
    };
    match test {
        Test::Principals(_) => caller(&|id| Some(id.principal().to_owned())),
        Test::Namespaces { .. } => caller(&|id| {
            let ns = id.namespace()?;
            Some(format!("{ns} of {}", id.trust_domain()))
        }),
        Test::ServiceAccounts { .. } => caller(&|id| {
            let (ns, sa) = id.namespace_and_service_account()?;
            Some(format!("{ns}/{sa} of {}", id.trust_domain()))
        }),
        Test::TrustDomains(_) => caller(&|id| Some(id.trust_domain().to_string())),
        Test::SourceIps(_) => a.source_ip.map(|ip| ip.to_string()),
        Test::RemoteIps(_) => a.remote_ip.map(|ip| ip.to_string()),
        Test::DestinationIps(_) => a.destination_ip.map(|ip| ip.to_string()),
        Test::Ports(_) => a.destination_port.map(|p| p.to_string()),
        Test::Sni(_) => a.sni.map(str::to_owned),
        Test::Hosts(_) | Test::Authority(_) => a.http.map(|h| h.host.to_owned()),
        Test::Methods(_) => a.http.map(|h| h.method.to_owned()),
        Test::Paths(_) => a.http.map(|h| h.path.to_owned()),
        // Values of header fields and claims may be secrets: only whether they are there is told.
        Test::Header(name, _) => a
            .http
            .is_some_and(|h| h.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)))
            .then(|| "another value".to_owned()),
        Test::Claim(path, _) => {
            a.token.is_some_and(|t| t.any(&path.0, |_| true)).then(|| "another value".to_owned())
        }
        Test::CertificateSubject(name, _) => of(a, |c| all_named(c.subject, name)),
        Test::CertificateExtension(oid, _) => of(a, |c| all_named(c.extensions, oid)),
        Test::CertificateDns(_) => of(a, |c| c.dns_names.join(", ")),
        Test::CertificatePins(_) => {
            let pin = a.certificate.and_then(|c| c.spki_sha256);
            pin.map(|pin| crate::certificate::Pin(pin).to_string())
        }
        Test::RequestPrincipals(_) => a.token.map(|t| format!("{}/{}", t.issuer(), t.subject())),
        Test::Audiences(_) => a.token.map(|_| "another audience".to_owned()),
        Test::Presenter(_) => a.token.map(|t| t.presenter().to_owned()),
    }
}

fn of(a: &Attributes<'_>, text: impl Fn(CertificateFacts<'_>) -> String) -> Option<String> {
    a.certificate.map(text).filter(|t| !t.is_empty())
}

fn all_named(values: &[(String, String)], name: &str) -> String {
    let all: Vec<&str> =
        values.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
    all.join(", ")
}

/// The refusal when nothing allows: names the rule that came closest and its first failing field.
pub(crate) fn closest(set: &PolicySet, allow: &Index, f: &Facts<'_>) -> Denial {
    let a = f.a;
    let mut best: Option<(usize, crate::RuleName, &Field)> = None;
    for placed in allow.near(f, NEAR) {
        let (score, failing) = progress(&set.matcher, &placed.rule, f, Reach::Narrow);
        if let Some(field) = failing
            && best.as_ref().is_none_or(|(s, ..)| score > *s)
        {
            best = Some((score, set.name_of(placed), field));
        }
    }
    let names = &set.allows.names;
    let doubt = match set.allows.doubtful.as_str() {
        "" => String::new(),
        names => format!(
            "; {names} may be meant for the workload, but its labels are not known: tell them to its proxy with --label"
        ),
    };
    match best {
        Some((_, name, field)) => Denial {
            code: Code::NotAllowedByPolicy,
            message: format!(
                "{} is allowed by none of the policies {names}; closest is {}, rule {}: `{}` does not match{doubt}",
                who(a),
                name.policy,
                name.rule,
                field.name
            ),
            policy: Some(name.policy),
            rule: Some(name.rule),
            field: Some(field.name.to_string()),
        },
        None => Denial {
            code: Code::NotAllowedByPolicy,
            message: format!("{} is allowed by none of the policies {names}{doubt}", who(a)),
            policy: set.allows.first.clone(),
            rule: None,
            field: None,
        },
    }
}
