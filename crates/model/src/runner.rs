//! A model as the engine drives it.

use crate::forward::Model;
use engine::runner::{Batch, Fault, Limits, ModelRunner, Outcome};
use kernels::{Backend, Step};

impl<B: Backend> ModelRunner for Model<B> {
    fn limits(&self) -> Limits {
        let l = self.step_limits();
        Limits {
            vocab_size: l.vocab_size,
            context_len: l.context_len,
            block_len: l.block_len,
            n_blocks: l.n_blocks,
            step_tokens: l.tokens,
            step_rows: l.rows,
            step_outputs: l.outputs,
            prefill_unit: self.prefill_unit(),
        }
    }

    fn steps_ahead(&self) -> usize {
        B::STEPS_AHEAD
    }

    fn launch(&mut self, batch: &Batch) -> Result<(), Fault> {
        let step = Step {
            copies: &batch.copies,
            tokens: &batch.tokens,
            positions: &batch.positions,
            slots: &batch.slots,
            row_start: &batch.row_start,
            kv_len: &batch.kv_len,
            expanded: &batch.expanded,
            tables: &batch.tables,
            outputs: &batch.outputs,
        };
        Model::launch(self, &step, &batch.draws, &batch.reads).map_err(|e| Fault(e.to_string()))
    }

    fn collect(&mut self, outcome: &mut Outcome) -> Result<(), Fault> {
        Model::collect(self, &mut outcome.drawn, &mut outcome.logits).map_err(|e| Fault(e.to_string()))
    }
}
