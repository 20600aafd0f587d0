//! A model as the engine drives it.

use crate::forward::Model;
use engine::runner::{Batch, Draws, Fault, Limits, ModelRunner, Outcome};
use kernels::{Backend, KernelError, Step};

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

    fn launch(&mut self, batch: &mut Batch, masks: &mut dyn FnMut(&mut Draws)) -> Result<(), Fault> {
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
        self.compute(&step, |_, _| ()).map_err(fault)?;
        if !batch.draws.masks.is_empty() {
            self.backend_mut().start().map_err(fault)?;
        }
        masks(&mut batch.draws);
        self.draw(&batch.draws, batch.reads.iter().copied()).map_err(fault)
    }

    fn collect(&mut self, outcome: &mut Outcome) -> Result<(), Fault> {
        Model::collect(self, &mut outcome.drawn, &mut outcome.logits).map_err(fault)
    }
}

/// # Panics
/// If the device is lost: each later step would fail, so the engine ends, and with it the process.
fn fault(error: KernelError) -> Fault {
    match error {
        lost @ KernelError::Lost { .. } => panic!("{lost}"),
        error => Fault(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_ends_the_engine_and_other_errors_a_step() {
        let what = || "an illegal address".to_owned();
        let other = fault(KernelError::Device { op: "read", what: what() });
        assert_eq!(other, Fault("read: an illegal address".into()));
        let lost = std::panic::catch_unwind(|| fault(KernelError::Lost { op: "read", what: what() }));
        let said = lost.unwrap_err().downcast::<String>().unwrap();
        assert!(said.contains("must be started again: read: an illegal address"), "{said}");
    }
}
