//! Who comes when, with what. All of it follows from a seed.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// One client: turns one after the other, each beginning with all that was said before.
pub(crate) struct Session {
    pub(crate) arrives: Duration,
    pub(crate) priority: i32,
    /// Shared with others, before the first turn.
    pub(crate) system: Vec<u32>,
    pub(crate) turns: Vec<Turn>,
}

pub(crate) struct Turn {
    /// After the answer before.
    pub(crate) pause: Duration,
    pub(crate) user: Vec<u32>,
    pub(crate) answer_len: usize,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Trace {
    Chat,
    Burst,
    LongMix,
    Shared,
    Crowd,
    Turns,
    Pressure,
    Ranks,
}

impl Trace {
    pub(crate) const ALL: [Self; 8] = [
        Self::Chat,
        Self::Burst,
        Self::LongMix,
        Self::Shared,
        Self::Crowd,
        Self::Turns,
        Self::Pressure,
        Self::Ranks,
    ];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|trace| trace.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Burst => "burst",
            Self::LongMix => "long-mix",
            Self::Shared => "shared",
            Self::Crowd => "crowd",
            Self::Turns => "turns",
            Self::Pressure => "pressure",
            Self::Ranks => "ranks",
        }
    }

    pub(crate) fn story(self) -> &'static str {
        match self {
            Self::Chat => {
                "single questions, 1.2 a second at random; prompts of about 200 tokens, answers of about 100"
            }
            Self::Burst => "40 such questions at once, each minute",
            Self::LongMix => "single questions, 0.3 a second; one in ten has a prompt of 8,000 tokens",
            Self::Shared => "questions, 1.2 a second, all of which begin with the same 2,048 tokens",
            Self::Crowd => {
                "16 questions at once, every three minutes, that begin with the same 4,096 tokens, new ones each time"
            }
            Self::Turns => {
                "conversations of ten turns, a new one every five seconds, 3 s of thought between turns"
            }
            Self::Pressure => "answers of about 600 tokens, 0.3 a second, and a pool of 12,288 tokens",
            Self::Ranks => {
                "more questions than can be answered, 5 a second, one in ten of lower priority than the others"
            }
        }
    }

    /// Tokens of the KV pool.
    pub(crate) fn pool_tokens(self) -> usize {
        match self {
            Self::Pressure => 12_288,
            _ => 131_072,
        }
    }

    pub(crate) fn sessions(self, seed: u64) -> Vec<Session> {
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
        let d = &mut dice;
        match self {
            Self::Chat => d.arrivals(300, 1.2, |d| d.question(200.0, 100.0)),
            Self::Burst => {
                let at = |i: u64| Duration::from_secs(i / 40 * 60);
                (0..240).map(|i| Session { arrives: at(i), ..d.question(200.0, 100.0) }).collect()
            }
            Self::LongMix => d.arrivals(200, 0.3, |d| match d.uniform() < 0.1 {
                true => d.question_of(8_000, 100.0),
                false => d.question(200.0, 100.0),
            }),
            Self::Shared => {
                let system = d.tokens(2_048);
                d.arrivals(300, 1.2, |d| Session { system: system.clone(), ..d.question(100.0, 60.0) })
            }
            Self::Crowd => (0..10)
                .flat_map(|i| {
                    let (arrives, system) = (Duration::from_secs(180 * i), d.tokens(4_096));
                    let one = |_| Session { arrives, system: system.clone(), ..d.question(100.0, 60.0) };
                    (0..16).map(one).collect::<Vec<_>>()
                })
                .collect(),
            Self::Turns => d.arrivals(40, 0.2, |d| {
                let turns = (0..10).map(|i| d.turn(if i == 0 { 0.0 } else { 3.0 }, 60.0, 120.0)).collect();
                Session { arrives: Duration::ZERO, priority: 0, system: d.tokens(32), turns }
            }),
            Self::Pressure => d.arrivals(150, 0.3, |d| d.question(300.0, 600.0)),
            Self::Ranks => d.arrivals(900, 5.0, |d| {
                let priority = i32::from(d.uniform() < 0.1);
                Session { priority, ..d.question(200.0, 100.0) }
            }),
        }
    }
}

struct Dice(ChaCha8Rng);

impl Dice {
    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Log-normal: half are longer than `median`, one in twenty more than three times as long.
    fn length(&mut self, median: f64) -> usize {
        let normal = (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        (median * (0.7 * normal).exp()).clamp(1.0, 10.0 * median) as usize
    }

    fn tokens(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|_| self.0.next_u32() % super::machine::VOCAB_SIZE as u32).collect()
    }

    fn turn(&mut self, pause_s: f64, user: f64, answer: f64) -> Turn {
        let len = self.length(user);
        let (user, answer_len) = (self.tokens(len), self.length(answer));
        Turn { pause: Duration::from_secs_f64(pause_s), user, answer_len }
    }

    fn question(&mut self, prompt: f64, answer: f64) -> Session {
        let turns = vec![self.turn(0.0, prompt, answer)];
        Session { arrives: Duration::ZERO, priority: 0, system: Vec::new(), turns }
    }

    fn question_of(&mut self, prompt_len: usize, answer: f64) -> Session {
        let mut session = self.question(1.0, answer);
        session.turns[0].user = self.tokens(prompt_len);
        session
    }

    /// `n` sessions, `rate` a second at random: a Poisson process.
    fn arrivals(&mut self, n: usize, rate: f64, mut make: impl FnMut(&mut Self) -> Session) -> Vec<Session> {
        let mut now_s = 0.0;
        let mut session = |_| {
            now_s -= self.uniform().ln() / rate;
            Session { arrives: Duration::from_secs_f64(now_s), ..make(self) }
        };
        (0..n).map(&mut session).collect()
    }
}
