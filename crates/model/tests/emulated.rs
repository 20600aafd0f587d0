//! Reference checkpoints through the CUDA backend, its kernels run on this host: the bare model, whole and in chunks, in
//! latent space and expanded; then the engine on top, with paged blocks, chunks and batches.

#![cfg(feature = "sim")]

mod golden;

use engine::grammar::{Constraint, Grammar, Matcher};
use engine::request::{End, Event, FinishReason, Request, Sampling};
use engine::{EngineHandle, Events, Options};
use golden::{Chunks, Golden, Shape, WHOLE_EXPANDED, error_of, run};
use kernels::cuda::CudaBackend;
use kernels::cuda::sim::{Emulator, Mode};
use kernels::{Backend, Cpu, Precision, StepLimits};
use model::forward::Model;
use std::sync::{Arc, Mutex};

type Emulated = CudaBackend<Emulator>;

fn backend(precision: Precision) -> Emulated {
    CudaBackend::new(Emulator::new(Mode::FAST, 90), precision)
}

/// Each golden once, on a few threads: the emulator has one each.
fn each_golden(check: impl Fn(&Golden) + Sync) {
    let left = Mutex::new(Golden::all());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(golden) = { left.lock().expect("no check has failed").pop() } {
                    check(&golden);
                }
            });
        }
    });
}

#[test]
fn logits_within_tolerance() {
    each_golden(|golden| {
        let by_33 = Chunks { len: 33, expanded: false };
        for (chunks, block_len) in [(WHOLE_EXPANDED, 64), (by_33, 7)] {
            let shape = Shape { step_tokens: 450, block_len };
            let mut model = golden.model(backend(Precision::F32), Precision::F32, shape);
            let error = error_of(golden, &mut model, chunks);
            println!("{}: {chunks:?}, blocks of {block_len}: {error:.1e}", golden.name);
            assert!(error < 2e-4, "{}, {chunks:?}, blocks of {block_len}: {error}", golden.name);
        }
    });
}

/// What greedy decoding gives for each request, all submitted at once.
fn greedy(engine: &EngineHandle, requests: impl Iterator<Item = Request>) -> Vec<Vec<u32>> {
    let all: Vec<_> = requests.map(|request| engine.submit(request).expect("room in the queue")).collect();
    all.into_iter().flatten().map(answer).collect()
}

fn answer(mut events: Events) -> Vec<u32> {
    let mut ids = Vec::new();
    loop {
        match events.blocking_recv().expect("an end before the channel closes") {
            Event::Tokens(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
            Event::End(end) => {
                assert_eq!(end, End::Finished(FinishReason::Length));
                return ids;
            }
            Event::Started { .. } | Event::Prompt(_) => {}
        }
    }
}

/// Tokens that a pool of few blocks must page, chunk and batch; the goldens' own greedy answers come out.
#[test]
fn the_engine_decodes_what_the_reference_does() {
    each_golden(|golden| {
        let spec = golden.spec();
        let all = [(16, 16, 40), (70, 64, 14)];
        let shapes = if golden.name == "v3-fp8" { &all[..] } else { &all[..1] };
        for &(tokens, block_len, n_blocks) in shapes {
            let limits = StepLimits {
                tokens,
                rows: 4,
                outputs: tokens,
                vocab_size: spec.vocab_size,
                context_len: 400,
                block_len,
                n_blocks,
            };
            let model: Model<Emulated> =
                golden.model_within(limits, spec.clone(), backend(Precision::F32), Precision::F32);
            let (engine, thread) = engine::start(model, Options::default());
            let request = |p: usize| Request {
                prompt: golden.ids(p),
                max_new_tokens: golden.greedy(p).len().min(12),
                ..Request::default()
            };
            for (p, got) in greedy(&engine, (0..3).map(request)).iter().enumerate() {
                assert_eq!(
                    got[..],
                    golden.greedy(p)[..got.len()],
                    "{} prompt {p}, {tokens} a step",
                    golden.name
                );
            }
            drop(engine);
            thread.join().expect("the engine ends by itself");
        }
    });
}

/// Ids, log probabilities told, and the end of a choice.
type Heard = (Vec<u32>, usize, End);

fn hear(mut events: Events) -> Heard {
    let (mut ids, mut scores) = (Vec::new(), 0);
    loop {
        match events.blocking_recv().expect("an end before the channel closes") {
            Event::Tokens(tokens) => {
                scores += tokens.iter().filter(|token| token.logprobs.is_some()).count();
                ids.extend(tokens.iter().map(|token| token.id));
            }
            Event::Prompt(prompt) => scores += prompt.len(),
            Event::End(end) => return (ids, scores, end),
            Event::Started { .. } => {}
        }
    }
}

/// A grammar: the tokens before decide on eleven that may come next.
struct Few;

struct After(u32);

impl Grammar for Few {
    fn begin(&self) -> Box<dyn Matcher> {
        Box::new(After(7))
    }
}

impl Matcher for After {
    fn advance(&mut self, id: u32) -> Result<(), String> {
        self.0 = self.0.wrapping_mul(31).wrapping_add(id);
        Ok(())
    }

    fn mask(&mut self, words: &mut [u32]) -> Result<(), String> {
        let ids = (0..11).map(|i| self.0.wrapping_add(i * 37) % 500);
        ids.for_each(|id| words[id as usize / 32] |= 1 << (id % 32));
        Ok(())
    }
}

/// A request of its own kind for each number: cuts, penalties, biases, stops, choices, grammars, and now and then log probabilities.
fn mixed(golden: &Golden, i: usize) -> Request {
    let every = |n: usize, at: usize| i % n == at;
    let sampling = Sampling {
        temperature: 0.9,
        seed: Some(i as u64),
        top_k: if every(3, 0) { 20 } else { 0 },
        top_p: if every(2, 0) { 0.9 } else { 1.0 },
        repetition_penalty: if every(4, 1) { 1.3 } else { 1.0 },
        frequency_penalty: if every(5, 2) { 0.7 } else { 0.0 },
        logit_bias: if every(6, 3) { vec![(5, 3.0), (7, -100.0)] } else { Vec::new() },
        ..Sampling::default()
    };
    let prompt = golden.ids(i % 3);
    let len = prompt.len().min(5 + i * 13 % 60);
    Request {
        prompt: prompt[..len].to_vec(),
        n: if every(4, 0) { 3 } else { 1 },
        max_new_tokens: 1 + i * 7 % 30,
        min_new_tokens: if every(3, 1) { 4 } else { 0 },
        stop_ids: if every(3, 1) { (0..60).collect() } else { Vec::new() },
        constraint: every(4, 2).then(|| Constraint(Arc::new(Few))),
        logprobs: every(5, 0).then_some(1),
        prompt_logprobs: every(10, 0).then_some(1),
        sampling,
        ..Request::default()
    }
}

/// Answers to requests that come one after another while others run, and clients that leave.
fn crowd<B: Backend + 'static>(golden: &Golden, backend: B, together: bool) -> Vec<Vec<Heard>> {
    let spec = golden.spec();
    let limits = StepLimits {
        tokens: 24,
        rows: 4,
        outputs: 24,
        vocab_size: spec.vocab_size,
        context_len: 200,
        block_len: 8,
        n_blocks: 40,
    };
    let model = golden.model_within(limits, spec.clone(), backend, Precision::F32);
    let (engine, thread) = engine::start(model, Options::default());
    let submit = |i| engine.submit(mixed(golden, i)).expect("room in the queue");
    let mut answers = Vec::new();
    std::thread::scope(|scope| {
        let mut waiting = Vec::new();
        for i in 0..30 {
            let choices = submit(i);
            if i % 7 == 6 && together {
                drop(submit(i + 100));
            }
            let answer = scope.spawn(|| choices.into_iter().map(hear).collect::<Vec<_>>());
            if together {
                std::thread::sleep(std::time::Duration::from_millis(i as u64 * 17 % 60));
                waiting.push(answer);
            } else {
                answers.push(answer.join().expect("an answer"));
            }
        }
        answers.extend(waiting.into_iter().map(|answer| answer.join().expect("an answer")));
    });
    drop(engine);
    thread.join().expect("the engine ends by itself");
    answers
}

/// Steps are launched before it is known what the last ones drew; some must be waited for, since logits are read.
#[test]
fn a_crowd_hears_what_each_would_alone_on_the_cpu() {
    let golden = Golden::open("v2lite-bf16");
    let alone = crowd(&golden, Cpu::new(1, Precision::F32), false);
    let together = crowd(&golden, backend(Precision::F32), true);
    for (i, (got, want)) in together.iter().zip(&alone).enumerate() {
        assert_eq!(got, want, "request {i}");
    }
}

/// To the last bit, in bf16, on tensor cores where there are kernels for them: together and alone, whole and in pieces, by
/// launches and by replayed graphs.
#[test]
fn company_and_pieces_change_no_bit() {
    for name in ["v2-bf16", "v3-fp8"] {
        let golden = Golden::open(name);
        let sequences: Vec<Vec<u32>> =
            (0..4).map(|p| golden.ids(p)[..golden.ids(p).len().min(70)].to_vec()).collect();
        let logits = |backend: Emulated, sequences: &[Vec<u32>], chunks: Chunks| {
            let mut model = golden.model(backend, Precision::Bf16, Shape { step_tokens: 300, block_len: 64 });
            run(&mut model, sequences, chunks)
        };
        for expanded in [false, true] {
            let pieces = |len| Chunks { len, expanded };
            let whole = logits(backend(Precision::Bf16), &sequences, pieces(400));
            for len in [1, 33] {
                let cut = logits(backend(Precision::Bf16), &sequences, pieces(len));
                assert!(cut == whole, "{name}: pieces of {len}, expanded: {expanded}");
            }
            let by_launches = logits(backend(Precision::Bf16).without_graphs(), &sequences, pieces(33));
            assert!(by_launches == whole, "{name}: without graphs, expanded: {expanded}");
            for (alone, together) in sequences.iter().zip(&whole) {
                let alone = logits(backend(Precision::Bf16), std::slice::from_ref(alone), pieces(400));
                assert!(alone[0] == *together, "{name}: alone, expanded: {expanded}");
            }
        }
    }
}
