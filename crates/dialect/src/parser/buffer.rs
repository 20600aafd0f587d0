//! Text that was not taken yet, and tags to look for in it.

use aho_corasick::{AhoCorasick, MatchKind};

/// Taking from its front costs what is taken.
#[derive(Default)]
pub(super) struct Buffer {
    text: String,
    at: usize,
}

impl Buffer {
    pub(super) fn push(&mut self, text: &str) {
        if self.at > self.text.len() / 2 {
            self.text.drain(..self.at);
            self.at = 0;
        }
        self.text.push_str(text);
    }

    pub(super) fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    pub(super) fn skip(&mut self, n: usize) {
        self.at += n;
    }

    pub(super) fn take(&mut self, n: usize) -> String {
        let taken = self.rest()[..n].to_owned();
        self.skip(n);
        taken
    }

    /// Takes `text` if it comes next.
    pub(super) fn take_if(&mut self, text: &str) -> bool {
        let comes = self.rest().starts_with(text);
        if comes {
            self.skip(text.len());
        }
        comes
    }
}

/// Texts that end what is before them.
pub(super) struct Tags {
    texts: Vec<String>,
    finder: AhoCorasick,
}

impl Tags {
    pub(super) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let texts: Vec<String> = texts.into_iter().map(str::to_owned).collect();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts);
        Self { finder: finder.expect("a few short texts"), texts }
    }

    /// Where the first one stands, and which it is.
    pub(super) fn find(&self, text: &str) -> Option<(usize, usize)> {
        self.finder.find(text).map(|found| (found.start(), found.pattern().as_usize()))
    }

    pub(super) fn len(&self, tag: usize) -> usize {
        self.texts[tag].len()
    }

    /// Bytes at the end of a text that may begin a tag.
    pub(super) fn beginning(&self, text: &str) -> usize {
        let longest = self.texts.iter().map(String::len).max().unwrap_or(0);
        let from = text.len().saturating_sub(longest.saturating_sub(1));
        let starts = (from..text.len()).filter(|&at| text.is_char_boundary(at));
        let mut starts = starts.filter(|&at| self.texts.iter().any(|tag| tag.starts_with(&text[at..])));
        starts.next().map_or(0, |at| text.len() - at)
    }
}
