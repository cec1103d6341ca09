//! Which words a text must hold for a pattern to match at all. One pass for all words of all patterns tells
//! nearly every file to be of no interest, long before anything is parsed.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, AhoCorasickKind, MatchKind};
use regex_syntax::hir::{Class, Hir, HirKind};

/// Shorter words are in every file.
const SHORTEST: usize = 4;
/// Most words for one pattern; beyond that it is tried itself.
const MOST: usize = 64;

/// Most that one pattern asks for; more would tell little more.
const ASKED: usize = 3;

/// Words of which at least one is in a text.
type OneOf = Vec<Vec<u8>>;

fn shortest(words: &OneOf) -> usize {
    words.iter().map(Vec::len).min().unwrap_or(0)
}

/// What every text that the pattern matches holds, in whatever case: of each of these words at least one.
fn required(hir: &Hir) -> Vec<OneOf> {
    let mut all = match hir.kind() {
        HirKind::Literal(l) if l.0.len() >= SHORTEST => vec![vec![l.0.to_vec()]],
        HirKind::Capture(c) => required(&c.sub),
        HirKind::Repetition(r) if r.min > 0 => required(&r.sub),
        HirKind::Concat(parts) => {
            let whole = runs(parts).into_iter().map(|run| vec![run]);
            parts.iter().flat_map(required).chain(whole).collect()
        }
        HirKind::Alternation(branches) => {
            let mut any = Vec::new();
            for branch in branches {
                // The longest words tell the most.
                match required(branch).into_iter().max_by_key(shortest) {
                    Some(words) => any.extend(words),
                    None => return Vec::new(),
                }
            }
            if any.len() <= MOST { vec![any] } else { Vec::new() }
        }
        _ => Vec::new(),
    };
    all.sort_by_key(|words| std::cmp::Reverse(shortest(words)));
    all.truncate(ASKED);
    all
}

/// Words that parts which follow one another spell: where case does not matter each letter is a part of its own.
fn runs(parts: &[Hir]) -> Vec<Vec<u8>> {
    let mut out = vec![Vec::new()];
    for part in parts {
        match (part.kind(), out.last_mut()) {
            (HirKind::Literal(l), Some(run)) => run.extend_from_slice(&l.0),
            (HirKind::Class(class), Some(run)) => match letter(class) {
                Some(letter) => run.push(letter),
                None => out.push(Vec::new()),
            },
            // What is at a boundary is nothing in between.
            (HirKind::Look(_), _) => {}
            _ => out.push(Vec::new()),
        }
    }
    out.retain(|run| run.len() >= SHORTEST);
    out
}

/// The letter that a class is, large or small. Two letters beyond ASCII that are folded to one of it are left out:
/// nobody writes code with them.
fn letter(class: &Class) -> Option<u8> {
    let mut ascii = Vec::new();
    match class {
        Class::Unicode(c) => {
            for r in c.ranges().iter().filter(|r| r.start().is_ascii()) {
                ascii.push((r.start() as u32, r.end() as u32));
            }
        }
        Class::Bytes(c) => {
            for r in c.ranges() {
                ascii.push((u32::from(r.start()), u32::from(r.end())));
            }
        }
    }
    let [(large, a), (small, b)] = ascii[..] else { return None };
    let same = large == a && small == b && large + 32 == small;
    u8::try_from(small).ok().filter(|l| same && l.is_ascii_lowercase())
}

/// Tells which of many shapes can match a text. A shape asks for several patterns at once, and for each that has
/// words one of them must be there.
pub(crate) struct Words {
    automaton: Option<AhoCorasick>,
    /// By word: what is asked for that it answers.
    answers: Vec<Vec<usize>>,
    /// By what is asked for: the shape.
    asked: Vec<usize>,
    /// By shape: how much it asks for.
    needed: Vec<usize>,
}

impl Words {
    /// Of shapes, each with the patterns that must all match.
    pub(crate) fn new<'a, P: Iterator<Item = &'a str>>(shapes: impl Iterator<Item = P>) -> Self {
        let mut words: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut texts = Vec::new();
        let mut answers: Vec<Vec<usize>> = Vec::new();
        let mut asked = Vec::new();
        let mut needed = Vec::new();
        for (shape, patterns) in shapes.enumerate() {
            needed.push(0);
            let parsed = patterns.filter_map(|p| regex_syntax::parse(p).ok());
            for found in parsed.flat_map(|hir| required(&hir)) {
                for mut word in found {
                    word.make_ascii_lowercase();
                    let at = *words.entry(word).or_insert_with_key(|word| {
                        texts.push(word.clone());
                        answers.push(Vec::new());
                        answers.len() - 1
                    });
                    answers[at].push(asked.len());
                }
                asked.push(shape);
                needed[shape] += 1;
            }
        }
        let automaton = AhoCorasickBuilder::new()
            .match_kind(MatchKind::Standard)
            .ascii_case_insensitive(true)
            // Every byte of every file goes through it.
            .kind(Some(AhoCorasickKind::DFA))
            .build(&texts)
            .ok();
        Self { automaton, answers, asked, needed }
    }

    /// The shapes that can match `text`, in order.
    pub(crate) fn candidates(&self, text: &str) -> Vec<usize> {
        let Some(automaton) = &self.automaton else { return (0..self.needed.len()).collect() };
        let mut seen = vec![false; self.answers.len()];
        for found in automaton.find_overlapping_iter(text) {
            seen[found.pattern().as_usize()] = true;
        }
        let mut answered = vec![false; self.asked.len()];
        let mut missing = self.needed.clone();
        for (word, _) in seen.iter().enumerate().filter(|(_, s)| **s) {
            for &asked in &self.answers[word] {
                if !std::mem::replace(&mut answered[asked], true) {
                    missing[self.asked[asked]] -= 1;
                }
            }
        }
        (0..missing.len()).filter(|shape| missing[*shape] == 0).collect()
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
        assert_eq!(words.candidates("InsecureJumpVerify:"), [0, 4]);
        assert_eq!(words.candidates("a beta_x and long_word"), [1, 3, 4]);
        assert_eq!(words.candidates("WhatEver"), [2, 4]);
        assert_eq!(words.candidates(""), [4], "what has no words is always tried");
        let words = Words::new([[r"\w+:", r"besides"].into_iter()].into_iter());
        assert!(words.candidates("a: b").is_empty(), "what is asked besides is not there");
        assert_eq!(words.candidates("a: besides"), [0]);
        let words = Words::new([[r"first\w+", r"(?i)\bsecond_one\b"].into_iter()].into_iter());
        assert!(
            words.candidates("first only").is_empty() && words.candidates("SECOND_ONE").is_empty()
        );
        assert_eq!(words.candidates("second_One first"), [0]);
        let words = Words::new([[r"(?:alpha|beta_)\w+\(gamma"].into_iter()].into_iter());
        assert!(words.candidates("alpha beta_x").is_empty(), "of each part there is a word");
        assert_eq!(words.candidates("(gamma BETA_x"), [0]);
    }
}
