//! What a token costs once the logits are there: one row drawn from, and its log probabilities.
//!
//! ```text
//! cargo bench -p sampler --bench sampler
//! ```
//!
//! Three kinds of rows: "text" has a head of some tens of tokens, as a trained model's; in "wide"
//! thousands of tokens share the mass; "flat" is nearly even, as an untrained model's. The first line
//! is the yardstick: one sum over the row.

use std::f32::consts::TAU;
use std::hint::black_box;
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use sampler::{Draw, Draws, Scratch, draw_all, logprobs};

const VOCAB_SIZES: [usize; 4] = [32_000, 102_400, 129_280, 163_840];
const ROUNDS: usize = 100;

fn main() {
    println!("| µs a row, median |{} |", VOCAB_SIZES.map(|n| format!(" {n}")).join(" |"));
    println!("|---|---|---|---|---|");
    line("reading it", "text", |row| {
        let row = row.to_vec();
        Box::new(move || {
            let _ = black_box(sum(black_box(&row)));
        })
    });
    let hot = Draw { temperature: 0.8, uniform: 0.5, ..Draw::default() };
    let penalties =
        Draw { repetition_penalty: 1.1, frequency_penalty: 0.1, presence_penalty: 0.1, ..Draw::default() };
    draws("greedy", "text", Draw::default());
    draws("greedy, penalties over 1000 tokens", "text", penalties);
    draws("temperature", "text", hot.clone());
    for kind in ["text", "wide", "flat"] {
        draws("top-k 50", kind, Draw { top_k: 50, ..hot.clone() });
        draws("top-k 1000", kind, Draw { top_k: 1000, ..hot.clone() });
        draws("top-p 0.95", kind, Draw { top_p: 0.95, ..hot.clone() });
        draws("min-p 0.05", kind, Draw { min_p: 0.05, ..hot.clone() });
    }
    draws("top-k 50, top-p 0.95, min-p 0.05", "text", Draw { top_k: 50, top_p: 0.95, min_p: 0.05, ..hot });
    for n in [0, 5, 20] {
        line(&format!("logprobs, {n} best"), "text", |row| {
            let row = row.to_vec();
            Box::new(move || {
                let _ = black_box(logprobs(black_box(&row), 77, n));
            })
        });
    }
}

fn draws(name: &str, kind: &str, draw: Draw) {
    line(name, kind, |row| {
        let counts: Vec<(u32, u32)> = (0..1000).map(|i| (i * 17 % 30_000, 1)).collect();
        let draw = Draw { counts: 0..counts.len(), ..draw.clone() };
        let draws = Draws { sampled_vocab: row.len(), draws: vec![draw], counts, ..Draws::default() };
        let (row, mut scratch, mut ids) = (row.to_vec(), Scratch::default(), Vec::new());
        Box::new(move || {
            draw_all(&draws, black_box(&row), row.len(), &[], &mut scratch, &mut ids);
            let _ = black_box(&ids);
        })
    });
}

fn line(name: &str, kind: &str, work: impl Fn(&[f32]) -> Box<dyn FnMut()>) {
    let medians = VOCAB_SIZES.map(|vocab_size| {
        let mut work = work(&row(vocab_size, kind));
        let mut times: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        format!(" {:.1}", times[ROUNDS / 2])
    });
    println!("| {name}; {kind} |{} |", medians.join(" |"));
}

fn sum(row: &[f32]) -> f32 {
    let mut lanes = [0.0; 32];
    for chunk in row.as_chunks::<32>().0 {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane += logit;
        }
    }
    lanes.iter().sum()
}

fn row(vocab_size: usize, kind: &str) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut uniform = || (random.next_u32() as f32 + 0.5) / 2f32.powi(32);
    let deviation = match kind {
        "text" => 2.0,
        "wide" => 3.0,
        _ => 0.1,
    };
    // Normally distributed (Box and Muller).
    let mut normal = || deviation * (-2.0 * uniform().ln()).sqrt() * (TAU * uniform()).cos();
    let mut row: Vec<f32> = (0..vocab_size).map(|_| normal()).collect();
    if kind == "text" {
        for rank in 1..=60 {
            row[rank * 7919 % vocab_size] = 17.0 - 2.4 * (rank as f32).ln();
        }
    }
    row
}
