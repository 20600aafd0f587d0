//! Stop strings, found in a stream of pieces: the earliest match, and the longest of those at its place.

use std::collections::{HashMap, VecDeque};

/// What a piece, with what was held back before it, gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that no stop string can touch any more. After a match: the last of the text.
    pub text: String,
    /// Index of the stop string that ended the text.
    pub matched: Option<usize>,
}

/// Searches streamed text. Holds back only what may begin a stop string.
pub struct StopStrings {
    automaton: Automaton,
    include_in_output: bool,
    /// Taken but not given out: what may belong to a match.
    held: String,
    /// Bytes taken so far.
    taken: usize,
    node: usize,
    /// The best match so far; an earlier or longer one may still come.
    candidate: Option<Match>,
    ended: Option<usize>,
}

/// Offsets count bytes from the start of the stream.
#[derive(Debug, Clone, Copy)]
struct Match {
    start: usize,
    end: usize,
    stop: usize,
}

impl StopStrings {
    /// An empty stop string never matches. With `include_in_output` the text ends after the match, else before it.
    pub fn new(stops: Vec<String>, include_in_output: bool) -> Self {
        Self {
            automaton: Automaton::new(&stops),
            include_in_output,
            held: String::new(),
            taken: 0,
            node: ROOT,
            candidate: None,
            ended: None,
        }
    }

    /// Takes more text. After a match nothing more comes out.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.ended.is_some() {
            return StopOutcome { text: String::new(), matched: self.ended };
        }
        let base = self.taken - self.held.len();
        self.held.push_str(piece);
        for &byte in piece.as_bytes() {
            self.node = self.automaton.step(self.node, byte);
            self.taken += 1;
            self.note_match();
            if let Some(found) = self.candidate.filter(|found| self.is_final(found)) {
                return self.end(found, base);
            }
        }
        let certain = self.alive_from().min(self.candidate.map_or(usize::MAX, |found| found.start));
        StopOutcome { text: self.held.drain(..certain - base).collect(), matched: None }
    }

    /// What was taken and is not told yet: the last of the text so far.
    pub fn held(&self) -> &str {
        &self.held
    }

    /// The stream is over: what was held back comes out, or the match that waited for a longer one.
    pub fn finish(&mut self) -> StopOutcome {
        let base = self.taken - self.held.len();
        match self.candidate.take() {
            Some(found) => self.end(found, base),
            None => StopOutcome { text: std::mem::take(&mut self.held), matched: self.ended },
        }
    }

    /// Where the longest beginning of a stop string that the text ends in starts.
    fn alive_from(&self) -> usize {
        self.taken - self.automaton.nodes[self.node].depth
    }

    fn note_match(&mut self) {
        let Some((stop, len)) = self.automaton.longest_ending(self.node) else { return };
        let start = self.taken - len;
        if self.candidate.is_none_or(|best| start <= best.start) {
            self.candidate = Some(Match { start, end: self.taken, stop });
        }
    }

    /// Nothing that starts as early can still match.
    fn is_final(&self, found: &Match) -> bool {
        let alive_from = self.alive_from();
        alive_from > found.start || (alive_from == found.start && self.automaton.nodes[self.node].is_leaf)
    }

    fn end(&mut self, found: Match, base: usize) -> StopOutcome {
        let end = if self.include_in_output { found.end } else { found.start };
        let mut text = std::mem::take(&mut self.held);
        text.truncate(end - base);
        self.candidate = None;
        self.ended = Some(found.stop);
        StopOutcome { text, matched: self.ended }
    }
}

const ROOT: usize = 0;

/// Aho and Corasick's, over bytes; it differs from the crate of that name in telling how deep a state is, which is
/// how much text must be held back.
struct Automaton {
    nodes: Vec<Node>,
    /// (node, byte) → node.
    children: HashMap<(usize, u8), usize>,
}

struct Node {
    /// Bytes from the root.
    depth: usize,
    /// The node of the longest proper suffix.
    suffix: usize,
    /// The stop string that is this node.
    stop: Option<usize>,
    /// The nearest node along the suffixes, itself included, that is a stop string.
    ending: Option<usize>,
    is_leaf: bool,
}

impl Automaton {
    fn new(stops: &[String]) -> Self {
        let mut this = Self { nodes: vec![Node::new(0)], children: HashMap::new() };
        for (index, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
            let end = stop.bytes().fold(ROOT, |node, byte| this.child(node, byte));
            this.nodes[end].stop.get_or_insert(index);
        }
        this.link();
        this
    }

    fn child(&mut self, node: usize, byte: u8) -> usize {
        self.nodes[node].is_leaf = false;
        *self.children.entry((node, byte)).or_insert_with(|| {
            self.nodes.push(Node::new(self.nodes[node].depth + 1));
            self.nodes.len() - 1
        })
    }

    /// Breadth first: a suffix is shorter than the node, so it is linked before.
    fn link(&mut self) {
        let mut edges: Vec<Vec<(u8, usize)>> = self.nodes.iter().map(|_| Vec::new()).collect();
        for (&(node, byte), &child) in &self.children {
            edges[node].push((byte, child));
        }
        let mut queue = VecDeque::from([ROOT]);
        while let Some(node) = queue.pop_front() {
            for &(byte, child) in &edges[node] {
                let suffix = if node == ROOT { ROOT } else { self.step(self.nodes[node].suffix, byte) };
                let own = self.nodes[child].stop.map(|_| child);
                self.nodes[child].ending = own.or(self.nodes[suffix].ending);
                self.nodes[child].suffix = suffix;
                queue.push_back(child);
            }
        }
    }

    fn step(&self, mut node: usize, byte: u8) -> usize {
        loop {
            match self.children.get(&(node, byte)) {
                Some(&child) => return child,
                None if node == ROOT => return ROOT,
                None => node = self.nodes[node].suffix,
            }
        }
    }

    /// The longest stop string that the text ends in, and its length.
    fn longest_ending(&self, node: usize) -> Option<(usize, usize)> {
        let ending = &self.nodes[self.nodes[node].ending?];
        ending.stop.map(|stop| (stop, ending.depth))
    }
}

impl Node {
    fn new(depth: usize) -> Self {
        Self { depth, suffix: ROOT, stop: None, ending: None, is_leaf: true }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str], include: bool) -> (Vec<String>, Option<usize>) {
        let mut search = StopStrings::new(stops.iter().map(|s| s.to_string()).collect(), include);
        let mut told: Vec<_> = pieces.iter().map(|piece| search.push(piece).text).collect();
        let last = search.finish();
        told.push(last.text);
        (told, search.ended)
    }

    #[test]
    fn cases() {
        let check = |stops: &[&str], pieces: &[&str], told: &[&str], matched| {
            assert_eq!(
                run(stops, pieces, false),
                (told.iter().map(|s| s.to_string()).collect(), matched),
                "{stops:?}"
            );
        };
        check(&[], &["a", "b"], &["a", "b", ""], None);
        check(&[""], &["a"], &["a", ""], None);
        check(&["END"], &["one E", "N", "D two", "x"], &["one ", "", "", "", ""], Some(0));
        check(&["END"], &["E", "NE", "x"], &["", "EN", "Ex", ""], None);
        check(&["END"], &["an EN"], &["an ", "EN"], None);
        // Released as soon as it cannot match, and no later.
        check(&["aab"], &["a", "a", "a", "b"], &["", "", "a", "", ""], Some(0));
        // The earliest start wins though another stop string ends before it.
        check(&["bc", "abcd"], &["abc", "d!"], &["", "", ""], Some(1));
        check(&["bc", "abcd"], &["abc", "e"], &["", "a", ""], Some(0));
        // The longest at one place, across pieces too; the shorter if the longer one does not come.
        check(&["ab", "abc"], &["xab", "c"], &["x", "", ""], Some(1));
        check(&["ab", "abc"], &["xab", "d"], &["x", "", ""], Some(0));
        check(&["ab", "abc"], &["xab"], &["x", ""], Some(0));
        check(&["二"], &["一", "二三"], &["一", "", ""], Some(0));
        check(&["x", "x"], &["x"], &["", ""], Some(0));
    }

    #[test]
    fn a_match_is_told_as_soon_as_it_is_certain() {
        let told = |stops: &[&str], pieces: &[&str]| {
            let mut search = StopStrings::new(stops.iter().map(|s| s.to_string()).collect(), false);
            pieces.iter().map(|piece| search.push(piece).matched).collect::<Vec<_>>()
        };
        assert_eq!(told(&["END"], &["E", "ND", "x"]), [None, Some(0), Some(0)]);
        assert_eq!(told(&["ab", "abc"], &["ab", "x"]), [None, Some(0)]);
        assert_eq!(told(&["bc", "abcd"], &["abc", "d"]), [None, Some(1)]);
    }

    #[test]
    fn the_match_may_stay() {
        assert_eq!(run(&["END"], &["one E", "ND two"], true).0.concat(), "one END");
        assert_eq!(run(&["ab", "abc"], &["xab", "d"], true).0.concat(), "xab");
    }

    /// The same by trying every place.
    fn naive(stops: &[String], text: &str) -> Option<(usize, usize)> {
        let places = (0..=text.len()).filter(|&at| text.is_char_boundary(at));
        places.into_iter().find_map(|at| {
            let here =
                stops.iter().enumerate().filter(|(_, s)| !s.is_empty() && text[at..].starts_with(s.as_str()));
            here.rev().max_by_key(|(_, stop)| stop.len()).map(|(index, _)| (at, index))
        })
    }

    proptest! {
        #[test]
        fn equals_a_search_of_the_whole(
            stops in prop::collection::vec("[abé]{0,5}", 0..5),
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
        ) {
            let text = pieces.concat();
            let mut search = StopStrings::new(stops.clone(), false);
            let mut told: String = pieces.iter().map(|piece| search.push(piece).text).collect();
            told += &search.finish().text;
            match naive(&stops, &text) {
                Some((at, index)) => {
                    prop_assert_eq!(told, &text[..at]);
                    prop_assert_eq!(search.ended, Some(index));
                }
                None => {
                    prop_assert_eq!(told, text);
                    prop_assert_eq!(search.ended, None);
                }
            }
        }
    }

    #[test]
    fn long_stop_strings_cost_no_more() {
        let stops: Vec<String> = (0..64).map(|i| format!("{}{i}", "a".repeat(1022))).collect();
        let mut search = StopStrings::new(stops, false);
        let start = Instant::now();
        let told: usize = (0..200_000).map(|_| search.push("a").text.len()).sum();
        assert_eq!(told, 200_000 - 1022);
        // Quadratic search would take a thousand times the some 50 ms of this.
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
