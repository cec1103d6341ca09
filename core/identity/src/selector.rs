//! Selectors: facts about a node or workload that an attestor established.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// One attested fact, `type:value`, for example `unix:uid:1000` (type `unix`, value `uid:1000`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    kind: String,
    value: String,
}

/// Why a string is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// No `:` between type and value.
    #[error("selector `{0}` has no `:`; write TYPE:VALUE, for example `unix:uid:1000`")]
    NoColon(String),
    /// The type is empty or itself holds a `:`.
    #[error("selector type `{0}` is empty or holds a `:`")]
    BadType(String),
    /// The value is empty.
    #[error("selector of type `{0}` has an empty value")]
    EmptyValue(String),
    /// Longer than [`Selector::MAX_LEN`].
    #[error("selector has {0} bytes; the limit is {max}", max = Selector::MAX_LEN)]
    TooLong(usize),
}

impl Selector {
    /// Longest `type:value` in bytes.
    pub const MAX_LEN: usize = 4096;

    /// The selector `kind:value`.
    pub fn new(kind: &str, value: &str) -> Result<Self, SelectorError> {
        if kind.is_empty() || kind.contains(':') {
            return Err(SelectorError::BadType(kind.to_owned()));
        }
        if value.is_empty() {
            return Err(SelectorError::EmptyValue(kind.to_owned()));
        }
        let len = kind.len() + 1 + value.len();
        if len > Self::MAX_LEN {
            return Err(SelectorError::TooLong(len));
        }
        Ok(Self { kind: kind.to_owned(), value: value.to_owned() })
    }

    /// The attestor that vouches for it (`unix`, `k8s`, …).
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The fact, in the attestor's own notation.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (kind, value) =
            s.split_once(':').ok_or_else(|| SelectorError::NoColon(s.to_owned()))?;
        Self::new(kind, value)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of selectors, without duplicates and in a fixed order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct SelectorSet(BTreeSet<Selector>);

impl SelectorSet {
    /// Whether every selector in `self` is also in `other`: an entry's selectors must be a subset
    /// of what was attested.
    pub fn is_subset_of(&self, other: &SelectorSet) -> bool {
        self.0.is_subset(&other.0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds one.
    pub fn insert(&mut self, selector: Selector) {
        self.0.insert(selector);
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Selector> {
        self.0.iter()
    }

    /// Whether `selector` is in the set.
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.contains(selector)
    }
}

impl FromIterator<Selector> for SelectorSet {
    fn from_iter<I: IntoIterator<Item = Selector>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl fmt::Display for SelectorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, s) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            fmt::Display::fmt(s, f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_refuses() {
        let s: Selector = "unix:uid:1000".parse().unwrap();
        assert_eq!((s.kind(), s.value()), ("unix", "uid:1000"));
        assert_eq!(s.to_string(), "unix:uid:1000");
        assert!(matches!("unix".parse::<Selector>(), Err(SelectorError::NoColon(_))));
        assert!(matches!(":x".parse::<Selector>(), Err(SelectorError::BadType(_))));
        assert!(matches!("unix:".parse::<Selector>(), Err(SelectorError::EmptyValue(_))));
    }

    #[test]
    fn subset() {
        let all: SelectorSet = ["a:1", "a:2", "b:1"].iter().map(|s| s.parse().unwrap()).collect();
        let some: SelectorSet = ["a:2"].iter().map(|s| s.parse().unwrap()).collect();
        assert!(some.is_subset_of(&all));
        assert!(!all.is_subset_of(&some));
    }
}
