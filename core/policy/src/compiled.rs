//! Policies compiled for one workload, and deciding with them.

use std::sync::Arc;

use countersign_findings::Code;
use countersign_identity::{SpiffeId, TrustDomain};

use crate::decision::{Decision, Denial, Request, Source};
use crate::document::{Field, Rule, Test};
use crate::modes::{Mode, resolve};
use crate::pattern::Reach;
use crate::{Action, AuthorizationPolicy, Document, Labels, PeerAuthentication};

/// Whose proxy decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its trust domain: what `namespaces` and `serviceAccounts` refer to.
    pub trust_domain: TrustDomain,
    /// Its namespace.
    pub namespace: String,
    /// Its labels; `None` if they are not known. Then a selector is taken to match where that refuses
    /// more, and not to match where it would allow more.
    pub labels: Option<Labels>,
    /// Policies of this namespace apply to every namespace.
    pub root_namespace: String,
}

impl Workload {
    /// The workload behind `id`: the namespace is the ID's, or `default`; labels unknown.
    pub fn of(id: &SpiffeId) -> Self {
        Self {
            trust_domain: id.trust_domain().clone(),
            namespace: id.namespace().unwrap_or("default").to_owned(),
            labels: None,
            root_namespace: "istio-system".into(),
        }
    }

    /// Whether the workload has these labels; `None` if that is not known.
    pub(crate) fn has_labels(&self, wanted: &Labels) -> Option<bool> {
        if wanted.is_empty() {
            return Some(true);
        }
        let labels = self.labels.as_ref()?;
        Some(wanted.iter().all(|(k, v)| labels.get(k) == Some(v)))
    }
}

#[derive(Debug)]
struct Compiled {
    name: Arc<str>,
    rules: Vec<Rule>,
}

/// The policies that concern one workload. Immutable; a change makes a new one.
#[derive(Debug)]
pub struct PolicySet {
    generation: u64,
    trust_domain: TrustDomain,
    workload: Workload,
    deny: Vec<Compiled>,
    allow: Vec<Compiled>,
    audit: Vec<Compiled>,
    modes: Vec<PeerAuthentication>,
    needs_http: bool,
}

impl PolicySet {
    /// Selects and compiles what concerns `workload` (AP-1). Dry-run policies are left out of
    /// enforcement (AP-9).
    pub fn compile(documents: &[Document], workload: &Workload, generation: u64) -> Self {
        let mut set = Self {
            generation,
            trust_domain: workload.trust_domain.clone(),
            workload: workload.clone(),
            deny: Vec::new(),
            allow: Vec::new(),
            audit: Vec::new(),
            modes: Vec::new(),
            needs_http: false,
        };
        for document in documents {
            match document {
                Document::AuthorizationPolicy(p) => match applies(p, workload) {
                    Some(true) => set.add(p),
                    Some(false) => {}
                    None => set.add_doubtful(p),
                },
                Document::PeerAuthentication(p) => set.modes.push(p.clone()),
                _ => {}
            }
        }
        set
    }

    fn add(&mut self, p: &AuthorizationPolicy) {
        let compiled =
            Compiled { name: format!("{}/{}", p.namespace, p.name).into(), rules: p.rules.clone() };
        if p.dry_run {
            self.audit.push(compiled);
            return;
        }
        self.needs_http |= p.rules.iter().any(Rule::names_http);
        match p.action {
            Action::Allow => self.allow.push(compiled),
            Action::Deny => self.deny.push(compiled),
            Action::Audit => self.audit.push(compiled),
        }
    }

    /// A policy whose selector may or may not match: a DENY counts, an ALLOW only switches to "nothing
    /// but what is allowed".
    fn add_doubtful(&mut self, p: &AuthorizationPolicy) {
        match p.action {
            Action::Deny | Action::Audit => self.add(p),
            Action::Allow => self.add(&AuthorizationPolicy { rules: Vec::new(), ..p.clone() }),
        }
    }

    /// Which state of the documents this is.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether some rule names a method, path, host or header, so that HTTP must be parsed.
    pub fn needs_http(&self) -> bool {
        self.needs_http
    }

    /// The mode that PeerAuthentication gives `port`, if it does.
    pub fn mode(&self, port: u16) -> Option<Mode> {
        resolve(&self.modes, &self.workload, port)
    }

    /// Names of AUDIT and dry-run policies that match; they never change the decision.
    pub fn audited<'a>(&'a self, request: &'a Request<'_>) -> impl Iterator<Item = &'a str> {
        self.audit
            .iter()
            .filter(|p| p.rules.iter().any(|r| self.matches(r, request, Reach::Wide)))
            .map(|p| &*p.name)
    }

    /// Decides (AP-3): a matching DENY refuses; without any ALLOW everything else is granted; with
    /// some, one must match.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        for policy in &self.deny {
            for (i, rule) in policy.rules.iter().enumerate() {
                if self.matches(rule, request, Reach::Wide) {
                    return Decision::deny(Denial {
                        code: Code::DeniedByPolicy,
                        policy: Some(Arc::clone(&policy.name)),
                        rule: Some(i),
                        field: None,
                        message: format!(
                            "{} is denied by policy {}, rule {i}",
                            who(request),
                            policy.name
                        ),
                    });
                }
            }
        }
        if self.allow.is_empty() {
            return Decision::allow(&request.source, None, self.generation);
        }
        for policy in &self.allow {
            if policy.rules.iter().any(|rule| self.matches(rule, request, Reach::Narrow)) {
                return Decision::allow(
                    &request.source,
                    Some(Arc::clone(&policy.name)),
                    self.generation,
                );
            }
        }
        Decision::deny(self.closest(request))
    }

    /// `reach` is that of the action. HTTP-only fields on a TCP connection: an ALLOW rule that names one
    /// cannot match; a DENY rule matches as if it were not there, so a DENY never narrows.
    fn matches(&self, rule: &Rule, request: &Request<'_>, reach: Reach) -> bool {
        let group = |fields: &[Field]| fields.iter().all(|f| self.field(f, request, reach));
        (rule.from.is_empty() || rule.from.iter().any(|g| group(g)))
            && (rule.to.is_empty() || rule.to.iter().any(|g| group(g)))
            && group(&rule.when)
    }

    fn field(&self, field: &Field, request: &Request<'_>, reach: Reach) -> bool {
        if request.http.is_none() && field.test.is_http_only() {
            return reach == Reach::Wide;
        }
        // An exception's doubt counts the other way.
        let inner = match (reach, field.negated) {
            (Reach::Wide, false) | (Reach::Narrow, true) => Reach::Wide,
            _ => Reach::Narrow,
        };
        self.test(&field.test, request, inner) != field.negated
    }

    fn test(&self, test: &Test, request: &Request<'_>, reach: Reach) -> bool {
        let peer = match request.source {
            Source::Peer(peer) => Some(peer.id()),
            Source::Unauthenticated { .. } => None,
        };
        // Namespaces and accounts mean the local trust domain's, unless refusing.
        let local = |id: &&SpiffeId| reach == Reach::Wide || id.is_member_of(&self.trust_domain);
        match test {
            Test::Principals(list) => peer
                .is_some_and(|id| list.iter().any(|p| p.matches_segments(id.principal(), reach))),
            Test::Namespaces(list) => peer
                .filter(local)
                .and_then(SpiffeId::namespace)
                .is_some_and(|ns| list.iter().any(|p| p.matches(ns))),
            Test::ServiceAccounts(list) => peer
                .filter(local)
                .and_then(SpiffeId::namespace_and_service_account)
                .is_some_and(|(ns, sa)| list.iter().any(|(n, s)| n == ns && s == sa)),
            Test::TrustDomains(list) => {
                peer.is_some_and(|id| list.iter().any(|p| p.matches(id.trust_domain().as_str())))
            }
            Test::SourceIps(list) => list.iter().any(|c| c.contains(request.source_ip)),
            Test::DestinationIps(list) => list.iter().any(|c| c.contains(request.destination_ip)),
            Test::Ports(list) => list.contains(&request.destination_port),
            Test::Hosts(list) => {
                request.http.is_some_and(|h| list.iter().any(|p| p.matches_host(h.host)))
            }
            Test::Methods(list) => {
                request.http.is_some_and(|h| list.iter().any(|p| p.matches(h.method)))
            }
            Test::Paths(list) => {
                request.http.is_some_and(|h| list.iter().any(|p| p.matches(h.path)))
            }
            Test::Header(name, list) => request.http.is_some_and(|h| {
                h.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).any(|(_, v)| {
                    list.iter().any(|p| p.matches(v) || *p == crate::pattern::Pattern::Present)
                })
            }),
        }
    }

    /// The refusal when nothing allows: names the rule that came closest and its first failing field.
    fn closest(&self, request: &Request<'_>) -> Denial {
        let mut best: Option<(usize, &Compiled, usize, String)> = None;
        for policy in &self.allow {
            for (i, rule) in policy.rules.iter().enumerate() {
                let (score, failing) = self.score(rule, request);
                if best.as_ref().is_none_or(|(s, ..)| score > *s) {
                    best = Some((score, policy, i, failing));
                }
            }
        }
        let names: Vec<&str> = self.allow.iter().take(5).map(|p| &*p.name).collect();
        match best {
            Some((_, policy, rule, field)) => Denial {
                code: Code::NotAllowedByPolicy,
                policy: Some(Arc::clone(&policy.name)),
                rule: Some(rule),
                message: format!(
                    "{} is allowed by none of the policies {}; closest is {}, rule {rule}: `{field}` does not match",
                    who(request),
                    names.join(", "),
                    policy.name
                ),
                field: Some(field),
            },
            None => Denial {
                code: Code::NotAllowedByPolicy,
                policy: self.allow.first().map(|p| Arc::clone(&p.name)),
                rule: None,
                field: None,
                message: format!("policy {} allows nothing", names.join(", ")),
            },
        }
    }

    /// How many fields match in the best groups, and the first that does not.
    fn score(&self, rule: &Rule, request: &Request<'_>) -> (usize, String) {
        let mut total = 0;
        let mut failing = String::new();
        let count = |fields: &[Field]| {
            let good = fields.iter().take_while(|f| self.field(f, request, Reach::Narrow)).count();
            (good, fields.get(good).map(|f| f.name.clone()))
        };
        for groups in [&rule.from, &rule.to] {
            let best = groups.iter().map(|g| count(g)).max_by_key(|(n, miss)| (miss.is_none(), *n));
            if let Some((n, miss)) = best {
                total += n;
                if failing.is_empty() {
                    failing = miss.unwrap_or_default();
                }
            }
        }
        let (n, miss) = count(&rule.when);
        if failing.is_empty() {
            failing = miss.unwrap_or_default();
        }
        (total + n, failing)
    }
}

impl Rule {
    fn names_http(&self) -> bool {
        self.from.iter().chain(&self.to).flatten().chain(&self.when).any(|f| f.test.is_http_only())
    }
}

fn applies(p: &AuthorizationPolicy, workload: &Workload) -> Option<bool> {
    if p.namespace != workload.namespace && p.namespace != workload.root_namespace {
        return Some(false);
    }
    workload.has_labels(&p.selector)
}

fn who(request: &Request<'_>) -> String {
    match request.source {
        Source::Peer(peer) => format!("`{}`", peer.id()),
        Source::Unauthenticated { .. } => "an unauthenticated caller".to_owned(),
    }
}

/// Identities that may call, given on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList(pub Vec<SpiffeId>);

/// Everything that decides at one listener: the list first, then the policies.
#[derive(Debug)]
pub struct Authorizer {
    list: Option<Arc<AllowList>>,
    policies: Arc<PolicySet>,
}

impl Authorizer {
    /// With an optional list; the policies always count.
    pub fn new(list: Option<Arc<AllowList>>, policies: Arc<PolicySet>) -> Self {
        Self { list, policies }
    }

    /// The policies.
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// Decides.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        if let Some(list) = &self.list {
            let listed = match request.source {
                Source::Peer(peer) => list.0.contains(peer.id()),
                Source::Unauthenticated { .. } => false,
            };
            if !listed {
                return Decision::deny(Denial {
                    code: Code::IdentityNotAllowed,
                    policy: None,
                    rule: None,
                    field: None,
                    message: format!("{} is not on the list of allowed peers", who(request)),
                });
            }
        }
        self.policies.decide(request)
    }
}
