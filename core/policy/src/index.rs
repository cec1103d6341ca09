//! Finding the rules that may match without looking at all of them.
//!
//! A tree of splits by what a rule demands exactly or by prefix: of the caller's principal or namespace, the
//! port, the path, the method. A rule that demands nothing of an attribute goes to the split's `any` branch.
//! So a request visits the few rules that share its values, however many there are. The index only narrows:
//! every rule that it yields is still evaluated whole.

use std::borrow::Cow;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::matcher::{Facts, Matcher, Semantics};
use crate::pattern::{PathPattern, Pattern, Reach};
use crate::rule::{Group, Rule, Test};

/// So few rules are faster looked at than looked up.
const FEW: usize = 6;
/// Rules looked at to choose a split.
const SAMPLE: usize = 1024;
/// Copies of a rule in the whole tree, on average.
const MOST_COPIES: usize = 8;
/// A rule with more values than this is not spread over as many branches.
const MOST_KEYS: usize = 32;

/// A rule with where it is from.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    /// Number of the policy in its set.
    pub(crate) policy: u32,
    /// Position in the policy.
    pub(crate) position: u32,
    pub(crate) rule: Arc<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    Principal,
    Namespace,
    Path,
    Port,
    Method,
}

const ATTRIBUTES: [Attribute; 5] = [
    Attribute::Principal,
    Attribute::Namespace,
    Attribute::Path,
    Attribute::Port,
    Attribute::Method,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key<'r> {
    Exact(Cow<'r, str>),
    Prefix(Cow<'r, str>),
    Port(u16),
}

#[derive(Debug)]
enum Node {
    Leaf(Box<[u32]>),
    Split(Box<Split>),
}

#[derive(Debug)]
struct Split {
    attribute: Attribute,
    exact: HashMap<Box<str>, u32>,
    prefixes: Prefixes,
    ports: HashMap<u16, u32>,
    any: Option<u32>,
}

/// Prefixes in order, each with the longest other one that it begins with.
#[derive(Debug, Default)]
struct Prefixes(Vec<(Box<str>, u32, Option<usize>)>);

impl Prefixes {
    fn new(mut list: Vec<(Box<str>, u32)>) -> Self {
        list.sort();
        let mut out: Vec<(Box<str>, u32, Option<usize>)> = Vec::with_capacity(list.len());
        for (text, node) in list {
            // Whatever it begins with is the one before, or one of those that that one begins with.
            let mut parent = out.len().checked_sub(1);
            while let Some(i) = parent {
                if text.starts_with(&*out[i].0) {
                    break;
                }
                parent = out[i].2;
            }
            out.push((text, node, parent));
        }
        Self(out)
    }

    /// The nodes of every prefix of `value`.
    fn of(&self, value: &str) -> impl Iterator<Item = u32> {
        // The greatest that is not behind `value`; all prefixes of `value` are among what it begins with.
        let mut next = self.0.partition_point(|(p, ..)| &**p <= value).checked_sub(1);
        std::iter::from_fn(move || {
            while let Some(i) = next {
                let (text, node, parent) = &self.0[i];
                next = *parent;
                if value.starts_with(&**text) {
                    return Some(*node);
                }
            }
            None
        })
    }
}

/// The rules of one action, indexed.
#[derive(Debug)]
pub(crate) struct Index {
    rules: Vec<Placed>,
    nodes: Vec<Node>,
    root: u32,
    reach: Reach,
}

/// An attribute, the rules of each of its values, and the rules that take any.
struct Branches<'r> {
    attribute: Attribute,
    by_key: HashMap<Key<'r>, Vec<u32>>,
    any: Vec<u32>,
}

impl Branches<'_> {
    /// How many rules and comparisons the worst request meets, if these are of every `step`th rule.
    fn cost(&self, step: usize) -> usize {
        let worst = self.by_key.values().map(Vec::len).max().unwrap_or(0);
        // Finding prefixes takes as many comparisons as their number has bits.
        let prefixes = self.by_key.keys().filter(|k| matches!(k, Key::Prefix(_))).count() * step;
        let bits = (usize::BITS - prefixes.leading_zeros()) as usize;
        self.any.len() * step + worst.saturating_sub(1) * step + worst.min(1) + bits
    }
}

struct Builder<'r> {
    /// Places that rules may still be copied to: a rule with many values stands in many branches.
    budget: usize,
    rules: &'r [Placed],
    matcher: &'r Matcher,
    reach: Reach,
    nodes: Vec<Node>,
}

impl Index {
    pub(crate) fn new(rules: Vec<Placed>, matcher: &Matcher, reach: Reach) -> Self {
        let all: Vec<u32> = (0..u32::try_from(rules.len()).unwrap_or(u32::MAX)).collect();
        let mut builder = Builder {
            budget: rules.len() * MOST_COPIES,
            rules: &rules,
            matcher,
            reach,
            nodes: Vec::new(),
        };
        let root = builder.build(all, &ATTRIBUTES);
        let nodes = builder.nodes;
        Self { rules, nodes, root, reach }
    }

    pub(crate) fn rules(&self) -> &[Placed] {
        &self.rules
    }

    /// The first rule found to match.
    pub(crate) fn find(&self, matcher: &Matcher, f: &Facts<'_>) -> Option<&Placed> {
        self.visit(self.root, f, &mut |placed| matcher.rule(&placed.rule, f, self.reach))
    }

    /// As [`Index::find`], looking at every rule in turn.
    pub(crate) fn find_linearly(&self, matcher: &Matcher, f: &Facts<'_>) -> Option<&Placed> {
        self.rules.iter().find(|placed| matcher.rule(&placed.rule, f, self.reach))
    }

    /// Up to `most` rules that share something with the request, then others.
    pub(crate) fn near(&self, f: &Facts<'_>, most: usize) -> Vec<&Placed> {
        let mut out: Vec<&Placed> = Vec::new();
        self.visit(self.root, f, &mut |placed| {
            out.push(placed);
            out.len() >= most
        });
        for placed in self.rules.iter().take(most) {
            if out.len() < most && !out.iter().any(|p| std::ptr::eq(*p, placed)) {
                out.push(placed);
            }
        }
        out
    }

    fn visit<'s>(
        &'s self,
        node: u32,
        f: &Facts<'_>,
        found: &mut impl FnMut(&'s Placed) -> bool,
    ) -> Option<&'s Placed> {
        let split = match &self.nodes[node as usize] {
            Node::Leaf(rules) => {
                return rules.iter().map(|i| &self.rules[*i as usize]).find(|p| found(p));
            }
            Node::Split(split) => split,
        };
        let mut value = |text: &str| {
            if let Some(child) = split.exact.get(text)
                && let Some(hit) = self.visit(*child, f, found)
            {
                return Some(hit);
            }
            split.prefixes.of(text).find_map(|child| self.visit(child, f, found))
        };
        let hit = match split.attribute {
            Attribute::Principal => match &f.identity {
                Some(id) => value(id.principal),
                None => {
                    let names = f.a.caller.names().iter();
                    names.filter_map(|n| n.strip_prefix("spiffe://")).find_map(&mut value)
                }
            },
            Attribute::Namespace => {
                f.identity.as_ref().and_then(|id| id.namespace()).and_then(value)
            }
            Attribute::Path => f.a.http.and_then(|h| value(h.path)),
            Attribute::Method => f.a.http.and_then(|h| value(h.method)),
            Attribute::Port => {
                f.a.destination_port
                    .and_then(|p| split.ports.get(&p))
                    .and_then(|child| self.visit(*child, f, found))
            }
        };
        hit.or_else(|| split.any.and_then(|child| self.visit(child, f, found)))
    }
}

impl<'r> Builder<'r> {
    fn add(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
    }

    fn build(&mut self, set: Vec<u32>, attributes: &[Attribute]) -> u32 {
        let Some(Branches { attribute, by_key, any }) = self.best(&set, attributes) else {
            return self.add(Node::Leaf(set.into()));
        };
        let copies = by_key.values().map(Vec::len).sum::<usize>() + any.len();
        let Some(budget) = self.budget.checked_sub(copies.saturating_sub(set.len())) else {
            return self.add(Node::Leaf(set.into()));
        };
        self.budget = budget;
        let rest: Vec<Attribute> = attributes.iter().copied().filter(|a| *a != attribute).collect();
        let mut split = Split {
            attribute,
            exact: HashMap::new(),
            prefixes: Prefixes::default(),
            ports: HashMap::new(),
            any: None,
        };
        let mut prefixes = Vec::new();
        for (key, rules) in by_key {
            let child = self.build(rules, &rest);
            match key {
                Key::Exact(text) => {
                    split.exact.insert(text.into(), child);
                }
                Key::Prefix(text) => prefixes.push((text.into(), child)),
                Key::Port(port) => {
                    split.ports.insert(port, child);
                }
            }
        }
        split.prefixes = Prefixes::new(prefixes);
        if !any.is_empty() {
            split.any = Some(self.build(any, &rest));
        }
        self.add(Node::Split(Box::new(split)))
    }

    /// The attribute whose worst branch is smallest, if splitting is worth it.
    fn best(&self, set: &[u32], attributes: &[Attribute]) -> Option<Branches<'r>> {
        if set.len() <= FEW {
            return None;
        }
        // Of a large set a sample says which attribute splits it well.
        let step = (set.len() / SAMPLE).max(1);
        let sample: Vec<u32> = set.iter().copied().step_by(step).collect();
        let mut best: Option<(usize, Branches<'r>)> = None;
        for attribute in attributes {
            let branches = self.branches(&sample, *attribute);
            let cost = branches.cost(step);
            if best.as_ref().is_none_or(|(c, _)| cost < *c) {
                best = Some((cost, branches));
            }
        }
        let (cost, branches) = best?;
        if cost * 4 >= set.len() * 3 {
            return None;
        }
        Some(if step == 1 { branches } else { self.branches(set, branches.attribute) })
    }

    fn branches(&self, set: &[u32], attribute: Attribute) -> Branches<'r> {
        let mut out = Branches { attribute, by_key: HashMap::new(), any: Vec::new() };
        for i in set {
            match self.keys(&self.rules[*i as usize].rule, attribute) {
                Some(keys) if keys.len() <= MOST_KEYS => {
                    for key in keys {
                        let branch = out.by_key.entry(key).or_default();
                        if branch.last() != Some(i) {
                            branch.push(*i);
                        }
                    }
                }
                _ => out.any.push(*i),
            }
        }
        out
    }

    /// The values of `attribute` outside which the rule cannot match; `None` if it may match any.
    fn keys(&self, rule: &'r Rule, attribute: Attribute) -> Option<Vec<Key<'r>>> {
        // By Istio's regular expressions an identity may be of several namespaces.
        let by_name = self.matcher.semantics == Semantics::Istio || self.reach == Reach::Wide;
        if by_name && attribute == Attribute::Namespace {
            return None;
        }
        let groups = match attribute {
            Attribute::Principal | Attribute::Namespace => &rule.from,
            _ => &rule.to,
        };
        if let Some(keys) = self.keys_of_group(&rule.when, attribute) {
            return Some(keys);
        }
        if groups.is_empty() {
            return None;
        }
        let mut out = Vec::new();
        for group in groups {
            out.extend(self.keys_of_group(group, attribute)?);
        }
        Some(out)
    }

    fn keys_of_group(&self, group: &'r Group, attribute: Attribute) -> Option<Vec<Key<'r>>> {
        group.iter().filter(|f| !f.negated).find_map(|f| self.keys_of_test(&f.test, attribute))
    }

    fn keys_of_test(&self, test: &'r Test, attribute: Attribute) -> Option<Vec<Key<'r>>> {
        let exact = |t: &'r str| Key::Exact(Cow::Borrowed(t));
        let of_pattern = |p: &'r Pattern| match p {
            Pattern::Exact(t) => Some(exact(t)),
            Pattern::Prefix(t) => Some(Key::Prefix(Cow::Borrowed(t))),
            Pattern::Suffix(_) | Pattern::Present => None,
        };
        match (attribute, test) {
            (Attribute::Principal, Test::Principals(list)) => {
                list.iter().map(|p| of_pattern(&p.0)).collect()
            }
            (Attribute::Principal, Test::ServiceAccounts { list, any_domain: false })
                if self.reach == Reach::Narrow && self.matcher.semantics == Semantics::Strict =>
            {
                let ids = list.iter().flat_map(|a| {
                    self.matcher
                        .domains
                        .iter()
                        .map(move |d| format!("{d}/ns/{}/sa/{}", a.namespace, a.name))
                });
                Some(ids.map(|id| Key::Exact(Cow::Owned(id))).collect())
            }
            // An identity that is spelt out says its namespace too.
            (Attribute::Namespace, Test::Principals(list)) => list
                .iter()
                .map(|p| match &p.0 {
                    Pattern::Exact(t) => {
                        let mut parts = t.split('/').skip(1);
                        let ns = (parts.next(), parts.next(), parts.next(), parts.count());
                        match ns {
                            (Some("ns"), Some(ns), Some("sa"), 1) => Some(exact(ns)),
                            _ => None,
                        }
                    }
                    _ => None,
                })
                .collect(),
            (Attribute::Namespace, Test::Namespaces { list, .. }) => {
                list.iter().map(of_pattern).collect()
            }
            (Attribute::Namespace, Test::ServiceAccounts { list, .. }) => {
                Some(list.iter().map(|a| exact(&a.namespace)).collect())
            }
            (Attribute::Path, Test::Paths(list)) => list
                .iter()
                .map(|p| match p {
                    PathPattern::Plain(p) => of_pattern(p),
                    template => Some(Key::Prefix(Cow::Owned(template.literal_prefix()))),
                })
                .collect(),
            // `*` takes an empty method too, but so does no branch.
            (Attribute::Method, Test::Methods(list)) => list.iter().map(of_pattern).collect(),
            (Attribute::Port, Test::Ports(list)) => {
                Some(list.iter().map(|p| Key::Port(*p)).collect())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn prefixes_are_found(list in proptest::collection::btree_set("[ab]{0,4}", 0..12), value in "[abc]{0,6}") {
            let entries = list.iter().enumerate().map(|(i, p)| (p.as_str().into(), i as u32)).collect();
            let table = Prefixes::new(entries);
            let mut found: Vec<u32> = table.of(&value).collect();
            found.sort_unstable();
            let expected: Vec<u32> = list
                .iter()
                .enumerate()
                .filter(|(_, p)| value.starts_with(p.as_str()))
                .map(|(i, _)| i as u32)
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
