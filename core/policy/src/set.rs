//! Policies compiled for one workload, and deciding with them.

use std::collections::BTreeSet;
use std::sync::Arc;

use countersign_findings::Code;
use countersign_identity::{TrustDomain, UnixTime};

use crate::decision::{
    Attributes, Caller, Decision, Denial, HttpRequest, Request, RuleName, Verdict,
};
use crate::explain::closest;
use crate::external::{Answer, Consultation, External};
use crate::identity::trust_domains_with_aliases;
use crate::index::{Index, Placed};
use crate::issuer_keys::{KeySource, PublishedKeys};
use crate::matcher::{Facts, Matcher, Semantics};
use crate::modes::{Mode, resolve};
use crate::pattern::Reach;
use crate::request_auth::{Authenticated, Authenticator, TokenRefused};
use crate::rule::{Action, AuthorizationPolicy, Field, Group, Rule, Test};
use crate::workload::Workload;
use crate::{Document, PeerAuthentication};

/// A policy that concerns the workload.
#[derive(Debug)]
pub(crate) struct Selected {
    pub(crate) name: Arc<str>,
    pub(crate) action: Action,
    /// Whom a CUSTOM policy asks.
    pub(crate) provider: Option<Arc<str>>,
    pub(crate) dry_run: bool,
    /// Whether it may be for another workload: the labels that its selector wants are not known.
    pub(crate) doubtful: bool,
    pub(crate) rules: Vec<Arc<Rule>>,
}

/// The rules as they count on one kind of connection.
#[derive(Debug)]
struct Side {
    custom: Index,
    deny: Index,
    allow: Index,
    audit: Index,
}

/// The enforced ALLOW policies in a sentence.
#[derive(Debug)]
pub(crate) struct Allows {
    /// If there is one, nothing is granted but what some ALLOW grants.
    pub(crate) first: Option<Arc<str>>,
    pub(crate) names: String,
    /// Those among them that grant nothing because the workload's labels are not known.
    pub(crate) doubtful: String,
}

impl Allows {
    fn of(policies: &[Selected]) -> Self {
        let enforced = || policies.iter().filter(|p| p.action == Action::Allow && !p.dry_run);
        let some = |doubtful_only: bool| {
            let chosen = || enforced().filter(|p| p.doubtful || !doubtful_only);
            let mut names = chosen().take(5).map(|p| &*p.name).collect::<Vec<&str>>().join(", ");
            let more = chosen().skip(5).count();
            if more > 0 {
                names.push_str(&format!(" and {more} more"));
            }
            names
        };
        Self {
            first: enforced().next().map(|p| Arc::clone(&p.name)),
            names: some(false),
            doubtful: some(true),
        }
    }
}

/// The policies that concern one workload. Immutable; a change makes a new one.
#[derive(Debug)]
pub struct PolicySet {
    generation: u64,
    pub(crate) matcher: Matcher,
    workload: Workload,
    pub(crate) policies: Vec<Selected>,
    http: Side,
    /// Without the fields that only HTTP has.
    tcp: Side,
    pub(crate) allows: Allows,
    modes: Vec<PeerAuthentication>,
    authenticator: Authenticator,
    needs_http: bool,
    providers: BTreeSet<Arc<str>>,
}

impl PolicySet {
    /// Selects and compiles what concerns `workload` (AP-1). The order of `documents` does not matter.
    pub fn compile(documents: &[Document], workload: &Workload, generation: u64) -> Self {
        let mut domains = vec![workload.trust_domain.clone()];
        domains.extend(workload.mesh.aliases.iter().cloned());
        let matcher = Matcher { semantics: workload.mesh.semantics, domains };
        let mut policies: Vec<Selected> = Vec::new();
        let mut modes = Vec::new();
        for document in documents {
            match document {
                Document::AuthorizationPolicy(p) => {
                    policies.extend(select(p, workload, &matcher));
                }
                Document::PeerAuthentication(p) => modes.push(p.clone()),
                _ => {}
            }
        }
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        let needs_http = documents.iter().any(|d| matches!(d, Document::RequestAuthentication(_)))
            || policies
                .iter()
                .filter(|p| !p.dry_run)
                .any(|p| p.rules.iter().any(|r| r.names_http()));
        Self {
            generation,
            http: Side::new(&policies, &matcher, |_, rule| Some(Arc::clone(rule))),
            tcp: Side::new(&policies, &matcher, on_tcp),
            allows: Allows::of(&policies),
            matcher,
            workload: workload.clone(),
            providers: policies.iter().filter_map(|p| p.provider.clone()).collect(),
            policies,
            modes,
            authenticator: Authenticator::new(documents, workload),
            needs_http,
        }
    }

    /// Which state of the documents this is.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// For whom it was compiled.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Whether some rule names a method, path, host or header, so that HTTP must be parsed.
    pub fn needs_http(&self) -> bool {
        self.needs_http
    }

    /// How many policies concern the workload.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Verifies the tokens of a request (RequestAuthentication): what they prove, or why the request is
    /// refused. `query` is without `?`; `published` holds the keys of those issuers
    /// that [`PolicySet::key_sources`] names.
    pub fn authenticate(
        &self,
        http: &HttpRequest<'_>,
        query: &str,
        now: UnixTime,
        published: &PublishedKeys,
    ) -> Result<Authenticated, TokenRefused> {
        self.authenticator.authenticate(http, query, now, published)
    }

    /// Places that the keys of token issuers are to be fetched from.
    pub fn key_sources(&self) -> Vec<KeySource> {
        self.authenticator.key_sources()
    }

    /// Whether JWT-SVIDs are taken, for which the trust bundles' JWT keys are needed.
    pub fn wants_jwt_svids(&self) -> bool {
        self.authenticator.wants_jwt_svids()
    }

    /// Whether tokens are looked at at all.
    pub fn expects_tokens(&self) -> bool {
        !self.authenticator.is_empty()
    }

    /// The mode that PeerAuthentication gives `port`, if it does.
    pub fn mode(&self, port: u16) -> Option<Mode> {
        resolve(&self.modes, &self.workload, port)
    }

    fn side(&self, a: &Attributes<'_>) -> &Side {
        if a.http.is_some() { &self.http } else { &self.tcp }
    }

    /// Whether some policy is AUDIT or only tried out.
    pub fn audits(&self) -> bool {
        !self.http.audit.rules().is_empty() || !self.tcp.audit.rules().is_empty()
    }

    /// Names of AUDIT and dry-run policies that match; they never change the decision.
    pub fn audited(&self, request: &Request<'_>) -> BTreeSet<&str> {
        let a = Attributes::from(request);
        // Each of them is reported, not only the first.
        let audit = &self.side(&a).audit;
        let facts = self.matcher.facts(&a);
        audit
            .rules()
            .iter()
            .filter(|p| {
                let allows = self.policies[p.policy as usize].action == Action::Allow;
                let reach = if allows { Reach::Narrow } else { Reach::Wide };
                self.matcher.rule(&p.rule, &facts, reach)
            })
            .map(|p| &*self.policies[p.policy as usize].name)
            .collect()
    }

    /// Decides about a proven caller: the only way to a permit.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        match self.judge(&Attributes::from(request)) {
            Verdict::Allow(by) => {
                Decision::allow(&request.source, by.map(|r| r.policy), self.generation)
            }
            Verdict::Deny(denial) => Decision::deny(denial),
        }
    }

    /// What the policies say (AP-3): a matching CUSTOM is for its engine to decide; a matching DENY refuses; without any ALLOW everything else is
    /// granted; with some, one must match.
    pub fn judge(&self, a: &Attributes<'_>) -> Verdict {
        if let Some(refused) = self.without_identity(a) {
            return refused;
        }
        let side = self.side(a);
        let f = &self.matcher.facts(a);
        if let Some(refused) = self.by_engine(f, side.custom.find(&self.matcher, f)) {
            return refused;
        }
        self.verdict(f, side.deny.find(&self.matcher, f), || side.allow.find(&self.matcher, f))
    }

    /// Whether an external engine must be asked before this can be decided, which one, and why. What it
    /// answers goes into [`Attributes::external`]; without that, [`PolicySet::judge`] refuses.
    pub fn consult(&self, a: &Attributes<'_>) -> Option<Consultation> {
        if self.providers.is_empty() || self.without_identity(a).is_some() {
            return None;
        }
        let placed = self.side(a).custom.find(&self.matcher, &self.matcher.facts(a))?;
        Some(Consultation { provider: self.only_provider()?, rule: self.name_of(placed) })
    }

    /// The engines that policies name for this workload.
    pub fn providers(&self) -> impl Iterator<Item = &str> {
        self.providers.iter().map(|p| &**p)
    }

    /// As in Istio, a workload has one engine at most; which of two should count is not for us to guess.
    fn only_provider(&self) -> Option<Arc<str>> {
        let mut all = self.providers.iter();
        all.next().filter(|_| all.next().is_none()).cloned()
    }

    /// What a matching CUSTOM policy leads to: `None` if the engine lets it pass.
    fn by_engine(&self, f: &Facts<'_>, custom: Option<&Placed>) -> Option<Verdict> {
        let name = self.name_of(custom?);
        let refused = |code, message| {
            Some(Verdict::Deny(Denial {
                code,
                policy: Some(Arc::clone(&name.policy)),
                rule: Some(name.rule),
                field: None,
                message,
            }))
        };
        let Some(provider) = self.only_provider() else {
            let all: Vec<&str> = self.providers().collect();
            let what = format!("CUSTOM policies name several providers: {}", all.join(", "));
            return refused(Code::EngineMisconfigured, what);
        };
        let who = who(f.a);
        match f.a.external {
            Some(External { provider: asked, answer }) if *asked == provider => match answer {
                Answer::Allowed => None,
                Answer::Denied(why) => refused(
                    Code::DeniedByEngine,
                    format!(
                        "{who} is denied by `{provider}`, asked by policy {}: {why}",
                        name.policy
                    ),
                ),
                Answer::Failed(why) => refused(
                    Code::EngineUnavailable,
                    format!("{who} is denied because `{provider}` gave no answer: {why}"),
                ),
                Answer::Misconfigured(why) => refused(
                    Code::EngineMisconfigured,
                    format!("{who} is denied because `{provider}` cannot be asked: {why}"),
                ),
            },
            _ => refused(
                Code::EngineNotAsked,
                format!(
                    "{who} is for `{provider}` to decide (policy {}), which has not been asked",
                    name.policy
                ),
            ),
        }
    }

    /// As [`PolicySet::judge`], looking at every rule in turn: what the index is checked and measured
    /// against.
    pub fn judge_linearly(&self, a: &Attributes<'_>) -> Verdict {
        if let Some(refused) = self.without_identity(a) {
            return refused;
        }
        let side = self.side(a);
        let f = &self.matcher.facts(a);
        if let Some(refused) = self.by_engine(f, side.custom.find_linearly(&self.matcher, f)) {
            return refused;
        }
        self.verdict(f, side.deny.find_linearly(&self.matcher, f), || {
            side.allow.find_linearly(&self.matcher, f)
        })
    }

    /// A certificate that proves no SPIFFE ID is refused at the handshake, before any policy counts.
    fn without_identity(&self, a: &Attributes<'_>) -> Option<Verdict> {
        let Caller::Names(names) = a.caller else { return None };
        if self.matcher.semantics == Semantics::Istio {
            return None;
        }
        let several = names.iter().filter(|n| n.starts_with("spiffe://")).count() > 1;
        Some(Verdict::Deny(Denial {
            code: if several { Code::SeveralUriSans } else { Code::NoSpiffeId },
            policy: None,
            rule: None,
            field: None,
            message: format!("{} proves no single SPIFFE ID: refused at the handshake", who(a)),
        }))
    }

    fn verdict<'s>(
        &'s self,
        f: &Facts<'_>,
        deny: Option<&Placed>,
        allow: impl FnOnce() -> Option<&'s Placed>,
    ) -> Verdict {
        if let Some(placed) = deny {
            let name = self.name_of(placed);
            return Verdict::Deny(Denial {
                code: Code::DeniedByPolicy,
                message: format!(
                    "{} is denied by policy {}, rule {}",
                    who(f.a),
                    name.policy,
                    name.rule
                ),
                policy: Some(name.policy),
                rule: Some(name.rule),
                field: None,
            });
        }
        if self.allows.first.is_none() {
            return Verdict::Allow(None);
        }
        match allow() {
            Some(placed) => Verdict::Allow(Some(self.name_of(placed))),
            None => Verdict::Deny(closest(self, &self.side(f.a).allow, f)),
        }
    }

    pub(crate) fn name_of(&self, placed: &Placed) -> RuleName {
        RuleName {
            policy: Arc::clone(&self.policies[placed.policy as usize].name),
            rule: placed.position as usize,
        }
    }

    /// Positions of those `contexts` that `other` decides differently.
    pub fn decided_differently<'a>(
        &self,
        other: &PolicySet,
        contexts: impl IntoIterator<Item = Attributes<'a>>,
    ) -> Vec<usize> {
        contexts
            .into_iter()
            .enumerate()
            .filter(|(_, a)| self.judge(a).is_allowed() != other.judge(a).is_allowed())
            .map(|(i, _)| i)
            .collect()
    }
}

/// A rule as it counts on a TCP connection: an ALLOW that names HTTP fields cannot be met (AP-10); in a
/// DENY those fields do not count, so that it never narrows.
fn on_tcp(action: Action, rule: &Arc<Rule>) -> Option<Arc<Rule>> {
    match action {
        _ if !rule.names_http() => Some(Arc::clone(rule)),
        Action::Allow => None,
        Action::Deny | Action::Audit | Action::Custom => Some(Arc::new(rule.without_http())),
    }
}

impl Side {
    fn new(
        policies: &[Selected],
        matcher: &Matcher,
        rule: impl Fn(Action, &Arc<Rule>) -> Option<Arc<Rule>>,
    ) -> Self {
        let of = |wanted: &dyn Fn(&Selected) -> bool, reach| {
            let mut out = Vec::new();
            for (number, policy) in policies.iter().enumerate().filter(|(_, p)| wanted(p)) {
                for (position, r) in policy.rules.iter().enumerate() {
                    if let Some(rule) = rule(policy.action, r) {
                        out.push(Placed {
                            policy: u32::try_from(number).unwrap_or(u32::MAX),
                            position: u32::try_from(position).unwrap_or(u32::MAX),
                            rule,
                        });
                    }
                }
            }
            Index::new(out, matcher, reach)
        };
        Self {
            // A doubt is for the engine to settle: it may refuse, and where it allows, the rest still counts.
            custom: of(&|p| p.action == Action::Custom, Reach::Wide),
            deny: of(&|p| p.action == Action::Deny && !p.dry_run, Reach::Wide),
            allow: of(&|p| p.action == Action::Allow && !p.dry_run, Reach::Narrow),
            audit: of(&|p| p.action == Action::Audit || p.dry_run, Reach::Wide),
        }
    }
}

/// The policy as it concerns the workload, if it does.
fn select(p: &AuthorizationPolicy, workload: &Workload, matcher: &Matcher) -> Option<Selected> {
    if p.for_gateways
        || p.namespace != workload.namespace && p.namespace != workload.mesh.root_namespace
    {
        return None;
    }
    let mut rules = p.rules.as_slice();
    let known = workload.has_labels(&p.selector);
    match known {
        Some(false) => return None,
        Some(true) => {}
        // It may or may not be meant: a DENY counts, an ALLOW only switches to "nothing but what is
        // allowed".
        None if p.action == Action::Allow => rules = &[],
        None => {}
    }
    Some(Selected {
        name: format!("{}/{}", p.namespace, p.name).into(),
        action: p.action,
        provider: p.provider.clone(),
        dry_run: p.dry_run,
        doubtful: known.is_none(),
        rules: rules.iter().map(|r| settle(r, p.action, workload, matcher)).collect(),
    })
}

/// The rule as it is meant here: what stands for several trust domains written out (AP-17), and paths, unless
/// Istio's semantics are wanted, in the normal form that requests are in where they refuse. Otherwise a DENY of
/// `/a%2Fb` would refuse nothing; where they grant, the text counts, which no request has.
fn settle(rule: &Arc<Rule>, action: Action, workload: &Workload, matcher: &Matcher) -> Arc<Rule> {
    let concerned =
        |f: &Field| matches!(f.test, Test::Principals(_) | Test::TrustDomains(_) | Test::Paths(_));
    if !rule.fields().any(concerned) {
        return Arc::clone(rule);
    }
    let domains: Vec<&TrustDomain> = matcher.domains.iter().collect();
    let reach = if action == Action::Allow { Reach::Narrow } else { Reach::Wide };
    let settled = |f: &Field| match &f.test {
        Test::Principals(list) => {
            let all: Vec<_> = list.iter().flat_map(|p| p.with_aliases(&domains)).collect();
            (all != *list).then_some(Test::Principals(all))
        }
        Test::TrustDomains(list) => {
            let all = trust_domains_with_aliases(list, &domains);
            (all != *list).then_some(Test::TrustDomains(all))
        }
        Test::Paths(list)
            if workload.mesh.semantics == Semantics::Strict
                && reach.of_values(f.negated) == Reach::Wide =>
        {
            let all: Vec<_> =
                list.iter().map(|p| p.normalized(workload.mesh.normalization)).collect();
            (all != *list).then_some(Test::Paths(all))
        }
        _ => None,
    };
    if !rule.fields().any(|f| settled(f).is_some()) {
        return Arc::clone(rule);
    }
    let mut rule = Rule::clone(rule);
    let apply = |group: &mut Group| {
        for field in group {
            if let Some(test) = settled(field) {
                field.test = test;
            }
        }
    };
    rule.from.iter_mut().for_each(apply);
    rule.to.iter_mut().for_each(apply);
    apply(&mut rule.when);
    Arc::new(rule)
}

/// The caller in a sentence.
pub(crate) fn who(a: &Attributes<'_>) -> String {
    match a.caller {
        Caller::Identity(id) => format!("`{id}`"),
        Caller::Legacy(name) => format!("the legacy peer `{name}`"),
        Caller::Names([]) => "a caller without a SPIFFE ID".to_owned(),
        Caller::Names(names) => format!("`{}`", names.join("`, `")),
        Caller::Nobody => "an unauthenticated caller".to_owned(),
    }
}
