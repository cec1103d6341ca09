//! Which words a text must hold for a pattern to match at all. One pass for all words of all patterns tells
//! nearly every file to be of no interest, long before anything is parsed.

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};
use regex_syntax::hir::{Hir, HirKind};

/// Shorter words are in every file.
const SHORTEST: usize = 4;
/// Most words for one pattern; beyond that it is tried itself.
const MOST: usize = 64;

/// Words of which at least one is in every text that the pattern matches; `None` if there are no such words.
fn required(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Literal(l) if l.0.len() >= SHORTEST => Some(vec![l.0.to_vec()]),
        HirKind::Capture(c) => required(&c.sub),
        HirKind::Repetition(r) if r.min > 0 => required(&r.sub),
        HirKind::Concat(parts) => {
            // Of several parts that must be there, the one with the longest words tells the most.
            let shortest = |words: &Vec<Vec<u8>>| words.iter().map(Vec::len).min().unwrap_or(0);
            parts.iter().filter_map(required).max_by_key(shortest)
        }
        HirKind::Alternation(branches) => {
            let mut all = Vec::new();
            for branch in branches {
                all.extend(required(branch)?);
            }
            (all.len() <= MOST).then_some(all)
        }
        _ => None,
    }
}

/// Tells which of many patterns can match a text.
pub(crate) struct Words {
    automaton: Option<AhoCorasick>,
    /// By word: the patterns that it is one of the words of.
    patterns: Vec<Vec<usize>>,
    /// Those without words: they may match anything.
    always: Vec<usize>,
    count: usize,
}

impl Words {
    /// Each of several patterns that must all match; the first that has words stands for them.
    pub(crate) fn new<'a, P: Iterator<Item = &'a str>>(patterns: impl Iterator<Item = P>) -> Self {
        let mut words: Vec<Vec<u8>> = Vec::new();
        let mut owners: Vec<Vec<usize>> = Vec::new();
        let mut always = Vec::new();
        let mut count = 0;
        for (i, mut all) in patterns.enumerate() {
            count = i + 1;
            let found =
                all.find_map(|p| regex_syntax::parse(p).ok().and_then(|hir| required(&hir)));
            let Some(found) = found else {
                always.push(i);
                continue;
            };
            for word in found {
                match words.iter().position(|w| *w == word) {
                    Some(at) => owners[at].push(i),
                    None => {
                        words.push(word);
                        owners.push(vec![i]);
                    }
                }
            }
        }
        let automaton =
            AhoCorasickBuilder::new().match_kind(MatchKind::Standard).build(&words).ok();
        Self { automaton, patterns: owners, always, count }
    }

    /// The patterns that can match `text`, in order.
    pub(crate) fn candidates(&self, text: &str) -> Vec<usize> {
        let Some(automaton) = &self.automaton else { return (0..self.count).collect() };
        let mut seen = vec![false; self.patterns.len()];
        for found in automaton.find_overlapping_iter(text) {
            seen[found.pattern().as_usize()] = true;
        }
        let mut out: Vec<usize> = self.always.clone();
        for (word, _) in seen.iter().enumerate().filter(|(_, s)| **s) {
            out.extend(&self.patterns[word]);
        }
        out.sort_unstable();
        out.dedup();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_candidate_wherever_it_matches() {
        let words = Words::new(
            [
                r"Insecure(Skip|Jump)Verify\s*:",
                r"(alpha|beta_)\w+",
                r"(?i)whatever",
                r"x?long_word",
                r"(?:aa|bbbbb)",
            ]
            .into_iter()
            .map(std::iter::once),
        );
        assert_eq!(words.candidates("InsecureJumpVerify:"), [0, 2, 4]);
        assert_eq!(words.candidates("a beta_x and long_word"), [1, 2, 3, 4]);
        assert_eq!(words.candidates(""), [2, 4], "what has no words is always tried");
        let words = Words::new([[r"\w+:", r"besides"].into_iter()].into_iter());
        assert!(words.candidates("a: b").is_empty(), "what is asked besides is not there");
        assert_eq!(words.candidates("a: besides"), [0]);
    }
}
