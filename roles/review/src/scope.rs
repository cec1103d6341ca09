//! The parts of a file that a condition of a rule can look at.

use std::ops::Range;

/// A part of a file, seen from a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What matched.
    Match,
    /// All that matched, where the group `at` is a part of it.
    Whole,
    /// What the variable that the group `var` names is made of: what is assigned to it, and what is done with it.
    Value,
    /// The lines that the match touches.
    Line,
    /// Four lines before and after.
    Around,
    /// The innermost call around it, arguments included.
    Call,
    /// The whole chain of calls and fields that it is part of: `a.b().c()`.
    Chain,
    /// The innermost object, struct or map literal, or XML tag.
    Literal,
    /// The statement; for configuration its line.
    Statement,
    /// The body of the function that is declared at the match, or that the group `cb` names or holds.
    Body,
    /// The innermost named function, closures included.
    Function,
    /// The innermost function or closure.
    Closure,
    /// That function before the match.
    Before,
    /// That function after the match.
    After,
    /// The innermost named function without the other arms of the branches around the match.
    Reaching,
    /// Of that what follows the match.
    Then,
    /// The file without what excludes it: other arms of the branches around it and those that have left before it, and
    /// what is called only from there.
    Along,
    /// The innermost class, object or impl; the file without one.
    Class,
    /// The innermost block: braces, or the same indentation; for HAProxy its section.
    Block,
    /// The document of a file of several, the file without any.
    Document,
    /// The keys that lead there, in YAML: `spec.mtls.mode`.
    Keys,
    /// Conditions of the branches around it, within its function.
    Guard,
    /// Those, and the ones of branches before it that leave the function, and of all uses of what it is part of.
    Gate,
    /// Its `Body`, or the function around it, with the functions of the file that are called from there.
    Reach,
    /// The function around it, with those that it calls, those that call it, and what these call.
    Family,
    /// `server`, `client` or both, as far as the code around tells.
    Role,
    /// What the setting in the groups `key` and `val` does, by the words of its name.
    Meaning,
    /// `network`, `loopback` or both: the addresses in its function.
    Address,
    /// Conditions of the branches before it that leave: where one of them holds, it is not reached.
    Exits,
    /// The whole file.
    File,
    /// The file's path.
    Path,
}

impl Scope {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "match" => Scope::Match,
            "whole" => Scope::Whole,
            "value" => Scope::Value,
            "line" => Scope::Line,
            "around" => Scope::Around,
            "call" => Scope::Call,
            "chain" => Scope::Chain,
            "literal" => Scope::Literal,
            "statement" => Scope::Statement,
            "body" => Scope::Body,
            "function" => Scope::Function,
            "closure" => Scope::Closure,
            "before" => Scope::Before,
            "after" => Scope::After,
            "reaching" => Scope::Reaching,
            "then" => Scope::Then,
            "along" => Scope::Along,
            "class" => Scope::Class,
            "block" => Scope::Block,
            "document" => Scope::Document,
            "keys" => Scope::Keys,
            "guard" => Scope::Guard,
            "gate" => Scope::Gate,
            "reach" => Scope::Reach,
            "family" => Scope::Family,
            "role" => Scope::Role,
            "meaning" => Scope::Meaning,
            "address" => Scope::Address,
            "exits" => Scope::Exits,
            "file" => Scope::File,
            "path" => Scope::Path,
            _ => return None,
        })
    }
}

/// The innermost of `ranges` around `at`.
pub(crate) fn innermost(ranges: &[Range<usize>], at: &Range<usize>) -> Option<Range<usize>> {
    ranges
        .iter()
        .filter(|r| r.start <= at.start && at.end <= r.end)
        .min_by_key(|r| r.end - r.start)
        .cloned()
}
