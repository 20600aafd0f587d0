//! A step allocates nothing. Alone in its process, since all threads are counted.

mod golden;

use golden::{Chunks, Golden, Shape, steps};
use kernels::{Cpu, Draw, Draws, Precision, StepLimits};
use model::forward::Model;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const SHAPE: Shape = Shape { step_tokens: 400, block_len: 16 };

fn one_draw_a_row(outputs: usize, limits: &StepLimits) -> Draws {
    let draw = |output| Draw {
        output: output as u32,
        temperature: 0.8,
        top_k: if output == 1 { 20 } else { 0 },
        top_p: 0.9,
        uniform: 0.5,
        ..Draw::default()
    };
    let draws = (0..outputs.min(limits.rows)).map(draw).collect();
    Draws { sampled_vocab: limits.vocab_size, draws, ..Draws::default() }
}

#[test]
fn a_hundred_mixed_steps_allocate_nothing() {
    for (name, precision) in [("v3-fp8", Precision::Bf16), ("v2lite-bf16", Precision::F32)] {
        let golden = Golden::open(name);
        let mut model = golden.model(Cpu::new(2, precision), precision, SHAPE);
        let limits = model.step_limits().clone();
        let sequences: Vec<Vec<u32>> = (0..4).map(|p| [golden.ids(p), golden.greedy(p)].concat()).collect();
        // Chunks that are expanded and chunks that stay in latent space, prefill beside decode.
        let chunks = [(300, true), (50, false), (50, true), (7, false), (1, false)];
        let chunks = chunks.map(|(len, expanded)| Chunks { len, expanded });
        let mut all: Vec<_> = chunks.iter().flat_map(|&chunks| steps(&limits, &sequences, chunks)).collect();
        assert!(all.len() > 100);
        for step in all.iter_mut().step_by(3) {
            // Blocks of no sequence.
            step.copies = (1..=limits.rows as u32).map(|block| (block, block + 1)).collect();
        }
        let mut logits = Vec::with_capacity(limits.outputs * limits.vocab_size);
        let _profiler = dhat::Profiler::builder().testing().build();
        let before = dhat::HeapStats::get();
        for step in &all {
            model.forward(&step.step(), &mut logits).unwrap();
        }
        let forwards = dhat::HeapStats::get().total_blocks - before.total_blocks;
        assert_eq!(forwards, 0, "{name} allocated");
        let draws: Vec<Draws> =
            all.iter().map(|step| one_draw_a_row(step.step().outputs.len(), &limits)).collect();
        let mut drawn = Vec::with_capacity(limits.rows);
        let mut draw_all = |model: &mut Model<Cpu>| {
            for (step, draws) in all.iter().zip(&draws) {
                model.launch(&step.step(), draws, &[]).unwrap();
                model.collect(&mut drawn, &mut logits).unwrap();
                assert!(drawn.iter().all(Result::is_ok) && drawn.len() == draws.len());
            }
        };
        draw_all(&mut model); // what it draws with grows once
        let before = dhat::HeapStats::get();
        draw_all(&mut model);
        let blocks = dhat::HeapStats::get().total_blocks - before.total_blocks;
        assert_eq!(blocks, 0, "{name} allocated to draw");
    }
}
