//! A step allocates nothing. Alone in its process, since all threads are counted.

mod golden;

use golden::{Chunks, Golden, Shape, steps};
use kernels::{Cpu, Precision};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const SHAPE: Shape = Shape { step_tokens: 400, block_len: 16 };

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
        let blocks = dhat::HeapStats::get().total_blocks - before.total_blocks;
        assert_eq!(blocks, 0, "{name} allocated");
    }
}
