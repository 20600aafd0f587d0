//! Random lives of tables against a plain model of the pool, and against an arena whose rows say what
//! they hold: whatever is shared, copied, evicted or lent again wrongly shows as a wrong row.
mod model;
mod steps;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use kv_cache::{BlockId, BlockPool, BlockTable, Chain, PoolFull, Units};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use model::{Kind, Model};
use steps::{Step, steps};

/// A latent row, as its sequence computed it from all rows before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    position: usize,
    token: u32,
    in_unit: bool,
    /// Of the salt and all rows up to this one.
    state: u64,
}

struct Life {
    table: BlockTable,
    chain: Chain,
    kind: Kind,
    tokens: Vec<u32>,
    computed: usize,
    /// What the table must list, and of that the first so many published.
    ids: Vec<BlockId>,
    n_published: usize,
    source: Option<BlockId>,
}

/// How often each thing happened, so that none is tested in name only.
type Seen = BTreeMap<&'static str, usize>;

struct World<'a> {
    pool: BlockPool,
    model: Model,
    caching: bool,
    unit: usize,
    /// `[n_blocks * block_len]`
    arena: Vec<Option<Row>>,
    lives: Vec<Life>,
    /// Everything that was ever asked for.
    known: Vec<(Chain, Kind, Vec<u32>)>,
    seen: &'a RefCell<Seen>,
}

fn token(family: u32, own: usize, name: u32, position: usize) -> u32 {
    if position < own { family * 2 + position as u32 % 2 } else { 100 + name * 2 + position as u32 % 2 }
}

impl<'a> World<'a> {
    fn new(n_blocks: usize, block_len: usize, unit: usize, caching: bool, seen: &'a RefCell<Seen>) -> Self {
        Self {
            pool: BlockPool::new(n_blocks, block_len, caching),
            model: Model::new(n_blocks, block_len, caching),
            caching,
            unit,
            arena: vec![None; n_blocks * block_len],
            lives: Vec::new(),
            known: Vec::new(),
            seen,
        }
    }

    fn note(&self, what: &'static str) {
        *self.seen.borrow_mut().entry(what).or_default() += 1;
    }

    fn play(&mut self, step: Step) {
        let n = self.lives.len().max(1);
        match step {
            Step::Open { salt, drawn, family, own, len, limit } => {
                let name = self.known.len() as u32 % 3; // some come again as they were
                let tokens: Vec<u32> = (0..len).map(|at| token(family, own, name, at)).collect();
                let drawn = drawn.map_or(0..0, |(from, n)| from..from + n);
                let in_unit = |at: usize| {
                    let unit = at / self.unit * self.unit..(at / self.unit + 1) * self.unit;
                    unit.end <= len && !unit.clone().any(|at| drawn.contains(&at))
                };
                let kind = Kind { salt, in_unit: (0..len).map(in_unit).collect() };
                self.open(tokens, kind, Units::new(self.unit, len, &[drawn]), limit);
            }
            _ if self.lives.is_empty() => {}
            Step::Compute { table, tokens, publish } => self.compute(table % n, tokens, publish),
            Step::Reserve { table, len } => drop(self.reserve(table % n, len)),
            Step::Fork { table, len } => self.fork(table % n, len),
            Step::CopyDone { table } => self.copy(table % n),
            Step::Scribble { table } => self.scribble(table % n),
            Step::Drop { table } => self.close(table % n),
        }
    }

    fn open(&mut self, tokens: Vec<u32>, kind: Kind, units: Units, limit: usize) {
        let block_len = self.pool.block_len();
        let mut chain = Chain::new(b"model", &[kind.salt], block_len, units);
        chain.extend(&tokens);
        self.known.push((chain.clone(), kind.clone(), tokens.clone()));
        let cached = self.model.cached(&kind, &tokens);
        let mut table = self.pool.open(&chain, &tokens, limit);
        let len = table.len_cached();
        assert!(len <= limit, "{len} tokens of at most {limit}");
        // What whole blocks can serve is the least that is found.
        let whole = (0..=cached.len()).rev().map(|n| n * block_len).find(|&n| n <= limit);
        assert!(len >= whole.unwrap(), "{len} tokens found, {whole:?} are cached in whole blocks");
        let ids = table.ids().to_vec();
        assert_eq!(ids, cached[..len / block_len]);
        self.note(if len > 0 { "hit" } else { "miss" });
        // The source of a copy shows once there is room to copy to, and is taken only if there will be.
        let room = table.reserve(tokens.len());
        let source = table.copy().map(|(from, _)| from);
        assert_eq!(source.is_some(), !len.is_multiple_of(block_len), "{room:?}");
        self.note(if source.is_some() { "copy from the cache" } else { "no copy" });
        ids.iter().chain(&source).for_each(|&id| self.model.hold(id));
        let n_published = ids.len();
        self.lives.push(Life { table, chain, kind, tokens, computed: len, ids, n_published, source });
        let at = self.lives.len() - 1;
        let wanted = self.lives[at].tokens.len();
        self.check_room(at, wanted, room);
        if room.is_err() {
            self.close(at);
        }
    }

    fn reserve(&mut self, at: usize, len: usize) -> Result<(), PoolFull> {
        let room = self.lives[at].table.reserve(len);
        self.check_room(at, len, room);
        room
    }

    /// Was it right to make `room` for `len` tokens, or none? The model lends the same.
    fn check_room(&mut self, at: usize, len: usize, room: Result<(), PoolFull>) {
        let life = &mut self.lives[at];
        let wanted = len.div_ceil(self.pool.block_len()).saturating_sub(life.ids.len());
        let available = self.model.stats().available();
        if wanted > available {
            assert_eq!(room, Err(PoolFull { wanted, available }));
            assert_eq!(life.table.ids(), life.ids, "nothing was taken");
            self.note("full");
            return;
        }
        assert_eq!(room, Ok(()));
        let lent = &life.table.ids()[life.ids.len()..];
        assert_eq!((lent.len(), &life.table.ids()[..life.ids.len()]), (wanted, &life.ids[..]));
        self.model.lend(lent);
        life.ids.extend(lent);
    }

    fn slot(&self, at: usize, position: usize) -> usize {
        let (ids, block_len) = (&self.lives[at].ids, self.pool.block_len());
        let slot = ids[position / block_len] as usize * block_len + position % block_len;
        assert_eq!(self.lives[at].table.slot(position) as usize, slot);
        slot
    }

    /// The row that `position` must hold, after one of `before`.
    fn row(life: &Life, position: usize, before: Option<Row>) -> Row {
        let (token, in_unit) = (life.tokens[position], life.kind.in_unit(position));
        let mut hash = DefaultHasher::new();
        (life.kind.salt, before.map(|row| row.state), token, in_unit).hash(&mut hash);
        Row { position, token, in_unit, state: hash.finish() }
    }

    fn compute(&mut self, at: usize, n: Option<usize>, publish: bool) {
        self.copy(at);
        let life = &mut self.lives[at];
        let end = n.map_or(life.tokens.len(), |n| life.computed + n);
        for position in life.tokens.len()..end {
            life.tokens.push(position as u32 % 3);
        }
        if self.reserve(at, end).is_err() {
            return;
        }
        for position in self.lives[at].computed..end {
            let before = position.checked_sub(1).map(|before| self.arena[self.slot(at, before)].unwrap());
            let slot = self.slot(at, position);
            self.arena[slot] = Some(Self::row(&self.lives[at], position, before));
        }
        let life = &mut self.lives[at];
        life.computed = end;
        if publish {
            self.publish(at);
        }
    }

    fn publish(&mut self, at: usize) {
        let (life, block_len) = (&mut self.lives[at], self.pool.block_len());
        let end = life.computed;
        life.table.publish(&mut life.chain, &life.tokens[..end]);
        for block in life.n_published..end / block_len {
            let key = life.kind.key(&life.tokens[..(block + 1) * block_len]);
            life.ids[block] = self.model.publish(life.ids[block], key);
        }
        life.n_published = if self.caching { life.n_published.max(end / block_len) } else { 0 };
        self.known.push((life.chain.clone(), life.kind.clone(), life.tokens[..end].to_vec()));
    }

    fn copy(&mut self, at: usize) {
        let (life, block_len) = (&mut self.lives[at], self.pool.block_len());
        let Some((from, to)) = life.table.copy() else {
            return assert_eq!(life.source, None, "a copy was forgotten");
        };
        assert_eq!((Some(from), to), (life.source, life.ids[life.table.len_cached() / block_len]));
        let rows = |block: BlockId| block as usize * block_len..(block as usize + 1) * block_len;
        self.arena.copy_within(rows(from), rows(to).start);
        life.table.copied();
        life.source = None;
        self.model.release(from);
        assert_eq!(life.table.copy(), None);
    }

    fn fork(&mut self, at: usize, len: usize) {
        self.copy(at);
        self.publish(at);
        let (life, block_len) = (&self.lives[at], self.pool.block_len());
        let len = len.min(life.computed);
        let whole = len / block_len;
        let source = (whole * block_len < len).then(|| life.ids[whole]);
        let before = self.pool.stats();
        let Ok(table) = life.table.fork(len) else {
            assert_eq!((before.available(), source.is_some()), (0, true));
            assert_eq!(self.pool.stats(), before, "nothing was taken");
            return self.note("fork without room");
        };
        // Its parent's chain may name blocks that the fork does not begin with.
        let units = life.chain.units().clone();
        let mut chain = Chain::new(b"model", &[life.kind.salt], block_len, units);
        chain.extend(&life.tokens[..len]);
        let fork = Life {
            table,
            chain,
            kind: life.kind.clone(),
            tokens: [&life.tokens[..len], &[200 + self.known.len() as u32 % 2]].concat(),
            computed: len,
            ids: life.ids[..whole].to_vec(),
            n_published: whole.min(life.n_published),
            source,
        };
        assert_eq!(fork.table.len_cached(), len);
        fork.ids.iter().chain(&source).for_each(|&id| self.model.hold(id));
        self.lives.push(fork);
        self.check_room(self.lives.len() - 1, len, Ok(()));
        self.note("fork");
    }

    fn scribble(&mut self, at: usize) {
        let life = &self.lives[at];
        let reserved = life.ids.len() * self.pool.block_len();
        let slots: Vec<usize> = (life.computed..reserved).map(|position| self.slot(at, position)).collect();
        slots.into_iter().for_each(|slot| self.arena[slot] = None);
    }

    fn close(&mut self, at: usize) {
        let life = self.lives.swap_remove(at);
        life.ids.iter().rev().chain(&life.source).for_each(|&id| self.model.release(id));
    }

    fn check(&self) {
        self.pool.check(self.lives.iter().map(|life| &life.table)).unwrap();
        assert_eq!(self.pool.stats(), self.model.stats());
        let mut listed: BTreeMap<BlockId, usize> = BTreeMap::new();
        self.lives.iter().flat_map(|life| &life.ids).for_each(|&id| *listed.entry(id).or_default() += 1);
        for (at, life) in self.lives.iter().enumerate() {
            assert_eq!(life.table.ids(), life.ids);
            for id in life.table.writable(life.computed) {
                assert_eq!(listed[id], 1, "block {id} is written by one table and read by another");
            }
            self.check_rows(at);
        }
        for (chain, kind, tokens) in &self.known {
            assert_eq!(self.pool.n_cached(chain, tokens), self.model.cached(kind, tokens).len());
        }
    }

    /// The table's rows are what its sequence would have computed; those not copied yet are in the source.
    fn check_rows(&self, at: usize) {
        let (life, block_len) = (&self.lives[at], self.pool.block_len());
        let mut before = None;
        for position in 0..life.computed {
            let slot = match life.source {
                Some(source) if position / block_len == life.table.len_cached() / block_len => {
                    source as usize * block_len + position % block_len
                }
                _ => self.slot(at, position),
            };
            let row = Self::row(life, position, before);
            assert_eq!(self.arena[slot], Some(row), "slot {slot}");
            before = Some(row);
        }
    }
}

/// Plays many lives; returns how often each thing happened.
fn play(caching: bool) -> Seen {
    let seen = RefCell::new(Seen::new());
    let mut config = ProptestConfig::with_source_file(file!());
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 2_000;
    }
    let outcome = TestRunner::new(config).run(
        &(2usize..40, 1usize..6, 1usize..6, steps()),
        |(n_blocks, block_len, unit, steps)| {
            let mut world = World::new(n_blocks, block_len, unit, caching, &seen);
            for step in steps {
                world.play(step);
                world.check();
            }
            while !world.lives.is_empty() {
                world.close(0);
                world.check();
            }
            prop_assert_eq!(world.pool.stats().used, 0);
            *seen.borrow_mut().entry("evicted").or_default() += world.model.n_evicted;
            *seen.borrow_mut().entry("swapped").or_default() += world.model.n_swapped;
            Ok(())
        },
    );
    outcome.unwrap_or_else(|fault| panic!("{fault}"));
    println!("{:?}", seen.borrow());
    seen.into_inner()
}

#[test]
fn random_lives_keep_the_pool_whole_and_the_rows_right() {
    let seen = play(true);
    for what in
        ["hit", "miss", "copy from the cache", "full", "fork", "fork without room", "evicted", "swapped"]
    {
        assert!(seen.get(what).is_some_and(|&n| n > 100), "{what} is not tested: {seen:?}");
    }
}

#[test]
fn without_caching_nothing_is_found() {
    let seen = play(false);
    assert!(seen["fork"] > 100 && !seen.contains_key("hit") && seen["evicted"] == 0, "{seen:?}");
}

#[test]
#[should_panic(expected = "out of bounds")]
fn a_slot_beyond_the_reserved_room_is_a_bug() {
    let mut table = BlockPool::new(4, 4, true).open(&Chain::new(b"", b"", 4, Units::none()), &[], 0);
    table.reserve(4).unwrap();
    table.slot(4);
}

#[test]
#[should_panic(expected = "32 bits")]
fn slots_fit_in_32_bits() {
    BlockPool::new(1 << 20, 1 << 13, true);
}
