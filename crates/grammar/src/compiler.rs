//! From pieces to matchers: one compiler a model, which knows its tokens and keeps what it has compiled.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use llguidance::{Matcher, ParserFactory};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie};

use crate::limits::{Limits, parser_limits};
use crate::{Piece, Refused, lark};

/// Schemas nest, and so does the code that reads them.
const STACK_BYTES: usize = 32 << 20;

/// A model's tokens.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// `[sampled_vocab]` each token's own bytes
    pub tokens: Vec<Vec<u8>>,
    /// Ids of control tokens: no text holds them.
    pub control: Vec<u32>,
    /// Ids that end an answer; at least one for grammars to be of use.
    pub eos: Vec<u32>,
}

/// Makes grammars for one model. Made at little cost: what the tokens need is done when the first grammar comes.
pub struct Compiler {
    limits: Limits,
    /// Asked by whoever comes first.
    vocabulary: Mutex<Option<Box<dyn FnOnce() -> Vocabulary + Send>>>,
    factory: OnceLock<Result<Factory, String>>,
    kept: Mutex<Kept>,
    /// Compilations under way.
    at_once: Mutex<usize>,
    one_less: Condvar,
    observe: Observe,
}

/// Is told how long each mask took.
type Observe = Arc<dyn Fn(Duration) + Send + Sync>;

struct Factory {
    parsers: ParserFactory,
    /// Text of a control token → id.
    tags: HashMap<String, u32>,
}

#[derive(Default)]
struct Kept {
    /// By what the piece looks like when it is printed.
    grammars: HashMap<String, Arc<Compiled>>,
    /// The least recently used first.
    order: VecDeque<String>,
}

impl Compiler {
    pub fn new(
        vocabulary: impl FnOnce() -> Vocabulary + Send + 'static,
        limits: Limits,
        observe: impl Fn(Duration) + Send + Sync + 'static,
    ) -> Self {
        Self {
            limits,
            vocabulary: Mutex::new(Some(Box::new(vocabulary))),
            factory: OnceLock::new(),
            kept: Mutex::default(),
            at_once: Mutex::new(0),
            one_less: Condvar::new(),
            observe: Arc::new(observe),
        }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The grammar of a piece. Blocks, for as long as [`Limits`] allow: twice `time_max` at most. What then still
    /// compiles goes on until llguidance's own limits end it, and counts among those at once.
    pub fn compile(self: &Arc<Self>, piece: &Piece) -> Result<Arc<dyn engine::grammar::Grammar>, Refused> {
        let name = format!("{piece:?}");
        if let Some(known) = lock(&self.kept).find(&name) {
            return Ok(known);
        }
        self.enter()?;
        let (sender, receiver) = std::sync::mpsc::channel();
        let (this, piece) = (Arc::clone(self), piece.clone());
        let work = move || {
            let compiled = catch_unwind(AssertUnwindSafe(|| this.compile_now(&piece)));
            this.leave();
            let panicked = || Err(Refused::Grammar("it cannot be compiled".to_owned()));
            let _ = sender.send(compiled.unwrap_or_else(|_| panicked())); // nobody may wait any more
        };
        let spawned = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES).spawn(work);
        if spawned.is_err() {
            self.leave();
            return Err(Refused::Time("no thread is left to compile it; send it again".to_owned()));
        }
        let first = self.factory.get().is_none();
        // A large vocabulary takes its time once.
        let time_max =
            if first { self.limits.time_max + Duration::from_secs(10) } else { self.limits.time_max };
        let compiled = receiver.recv_timeout(time_max).map_err(|_| {
            let limit = self.limits.time_max.as_secs_f64();
            Refused::Time(format!("it takes longer than {limit} s to compile; make it simpler"))
        })??;
        lock(&self.kept).keep(name, &compiled, self.limits.kept_max);
        Ok(compiled)
    }

    fn enter(&self) -> Result<(), Refused> {
        let full = |n: &mut usize| *n >= self.limits.at_once_max;
        let (mut n, waited) = self
            .one_less
            .wait_timeout_while(lock(&self.at_once), self.limits.time_max, full)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(Refused::Time("others are being compiled; send it again later".to_owned()));
        }
        *n += 1;
        Ok(())
    }

    fn leave(&self) {
        *lock(&self.at_once) -= 1;
        self.one_less.notify_one();
    }

    fn compile_now(&self, piece: &Piece) -> Result<Arc<Compiled>, Refused> {
        let factory = self.factory.get_or_init(|| {
            let vocabulary = lock(&self.vocabulary).take().map(|vocabulary| vocabulary());
            Factory::new(&vocabulary.unwrap_or_default())
        });
        let factory = factory.as_ref().map_err(|why| Refused::Grammar(why.clone()))?;
        let tags = |text: &str| factory.tags.get(text).copied();
        let grammar = lark::grammar(piece, &tags, &self.limits)?;
        let parser = factory.parsers.create_parser(grammar);
        let parser = parser.map_err(|error| Refused::Grammar(said(&error)))?;
        let mut matcher = Matcher::new(Ok(parser));
        let mut tried = matcher.deep_clone();
        let mask = tried.compute_mask_or_eos().map_err(|error| Refused::Grammar(said(&error)))?;
        if mask.is_zero() {
            return Err(Refused::Grammar("no text of this model's tokens satisfies it".to_owned()));
        }
        // What the trial computed serves all who come.
        matcher = tried;
        Ok(Arc::new(Compiled { matcher: Mutex::new(matcher), observe: self.observe.clone() }))
    }
}

impl Factory {
    fn new(vocabulary: &Vocabulary) -> Result<Self, String> {
        let Vocabulary { tokens, control, eos } = vocabulary;
        let known: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < tokens.len()).collect();
        let Some(&first) = known.first() else {
            return Err("this model names no token that ends an answer: none could".to_owned());
        };
        let mut words = tokens.clone();
        let mut tags = HashMap::new();
        for &id in control {
            let Some(word) = words.get_mut(id as usize) else { continue };
            tags.entry(String::from_utf8_lossy(word).into_owned()).or_insert(id);
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        // The mark of special tokens is a byte that no text has; a token that is only this byte is no text either.
        let stray = |(id, word): (usize, &mut Vec<u8>)| {
            if word.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) && !control.contains(&(id as u32)) {
                word.clear();
            }
        };
        words.iter_mut().enumerate().for_each(stray);
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, first), &words).with_eos_tokens(&known);
        let env: toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut parsers =
            ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(|e| e.to_string())?;
        parsers.quiet();
        *parsers.limits_mut() = parser_limits();
        Ok(Self { parsers, tags })
    }
}

impl Kept {
    fn find(&mut self, name: &str) -> Option<Arc<Compiled>> {
        let known = self.grammars.get(name)?.clone();
        if let Some(at) = self.order.iter().position(|other| other == name) {
            let name = self.order.remove(at)?;
            self.order.push_back(name);
        }
        Some(known)
    }

    fn keep(&mut self, name: String, grammar: &Arc<Compiled>, most: usize) {
        while self.order.len() >= most.max(1) {
            let Some(oldest) = self.order.pop_front() else { break };
            self.grammars.remove(&oldest);
        }
        if self.grammars.insert(name.clone(), grammar.clone()).is_none() {
            self.order.push_back(name);
        }
    }
}

/// A grammar before its first token.
struct Compiled {
    matcher: Mutex<Matcher>,
    observe: Observe,
}

impl engine::grammar::Grammar for Compiled {
    fn begin(&self) -> Box<dyn engine::grammar::Matcher> {
        let matcher = lock(&self.matcher).deep_clone();
        Box::new(Position { matcher, observe: self.observe.clone() })
    }
}

struct Position {
    matcher: Matcher,
    observe: Observe,
}

impl engine::grammar::Matcher for Position {
    fn advance(&mut self, id: u32) -> Result<(), String> {
        self.matcher.consume_token(id).map_err(|error| said(&error))
    }

    fn mask(&mut self, words: &mut [u32]) -> Result<(), String> {
        let start = Instant::now();
        let mask: SimpleVob = self.matcher.compute_mask_or_eos().map_err(|error| said(&error))?;
        words.iter_mut().zip(mask.as_slice()).for_each(|(word, own)| *word = *own);
        (self.observe)(start.elapsed());
        Ok(())
    }
}

/// llguidance's words in one line. By its name for a grammar that allows no token it means no text.
fn said(error: &impl ToString) -> String {
    let message = error.to_string();
    if message.starts_with("NoExtension") {
        return "no text satisfies it".to_owned();
    }
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
