//! Products of weights with activations: dense, gated, by expert, by head.

mod experts;
mod pack;
mod product;
mod scratch;

pub(crate) use experts::experts;
pub(super) use pack::CudaWeight;
pub(crate) use pack::{Kind, pack};
pub(crate) use scratch::Scratch;

use super::device::{Kernel, Ptr, params};
use super::step::{DeviceStep, bucket};
use super::{CudaBackend, Device};
use crate::backend::View;
use crate::error::{Result, require};
use crate::ops::{AbsorbOutput, AbsorbQuery, GatedMlp, Linear, LmHead};
use product::{Finish, Operand, Over, Product, Rows, operand};

static NORM_OUTPUTS: Kernel =
    Kernel { name: "smxx_f32_norm_outputs", file: "gemm_rows", threads: 256, shared_bytes_max: 32 };

pub(super) const KERNELS: &[&Kernel] = &{
    let [a, b, c, d, e, f, g, h, i, j, k] = product::KERNELS;
    [a, b, c, d, e, f, g, h, i, j, k, &experts::LISTS, &experts::SUM, &NORM_OUTPUTS]
};

params! {
    struct NormOutputsParams {
        x: Ptr,
        norm: Ptr,
        out: Ptr,
        step: Ptr,
        outputs: Ptr,
        cols: i32,
        units: i32,
        eps: f32,
    }
}

fn output_bucket<D: Device>(step: &DeviceStep<D>) -> usize {
    if step.outputs == 0 { 0 } else { bucket(step.outputs) }
}

fn rows<D: Device>(view: &View<'_, CudaBackend<D>>, group: usize) -> Rows {
    Rows { at: view.buffer.ptr().offset(4 * view.offset), stride: view.stride, group }
}

fn dense(at: Ptr, stride: usize, group: usize) -> Rows {
    Rows { at, stride, group }
}

pub(super) fn linear<D: Device>(b: &CudaBackend<D>, op: &Linear<'_, CudaBackend<D>>) -> Result<()> {
    let [_, n, _] = op.weight.shape();
    let x = operand(b, "linear", op.weight, rows(&op.x, 0), Over::Tokens)?;
    let finish = if op.accumulate { Finish::Add } else { Finish::Store };
    let out = dense(op.out.ptr(), n, 0);
    Product { weight: op.weight, x, out, finish, over: Over::Tokens }.launch(b, "linear")
}

pub(super) fn absorb_query<D: Device>(
    b: &CudaBackend<D>,
    op: &AbsorbQuery<'_, CudaBackend<D>>,
) -> Result<()> {
    let (d, over) = (&op.dims, Over::LatentTokens);
    let x = operand(b, "absorb_query", op.w_uk, rows(&op.q, d.qk_head_dim()), over)?;
    let out = dense(op.out.ptr(), d.n_heads * d.latent_width(), d.latent_width());
    Product { weight: op.w_uk, x, out, finish: Finish::Store, over }.launch(b, "absorb_query")
}

pub(super) fn absorb_output<D: Device>(
    b: &CudaBackend<D>,
    op: &AbsorbOutput<'_, CudaBackend<D>>,
) -> Result<()> {
    let (d, over) = (&op.dims, Over::LatentTokens);
    let latent = dense(op.latent.ptr(), d.n_heads * d.kv_lora_rank, d.kv_lora_rank);
    let x = operand(b, "absorb_output", op.w_uv, latent, over)?;
    let out = dense(op.out.ptr(), d.n_heads * d.v_head_dim, d.v_head_dim);
    Product { weight: op.w_uv, x, out, finish: Finish::Store, over }.launch(b, "absorb_output")
}

pub(super) fn gated_mlp<D: Device>(b: &CudaBackend<D>, op: &GatedMlp<'_, CudaBackend<D>>) -> Result<()> {
    let [_, hidden, intermediate] = op.down.shape();
    let x = operand(b, "gated_mlp", op.gate_up, rows(&op.x, 0), Over::Tokens)?;
    let rounded = op.down.kind() != Kind::F32;
    let (stride, size) = if rounded { (op.down.units() * 32, 2) } else { (intermediate, 4) };
    let middle = b.reserved("gated_mlp")?.gemm.middle("gated_mlp", b.token_bucket() * stride * size)?;
    let middle = dense(middle, stride, 0);
    let (weight, over) = (op.gate_up, Over::Tokens);
    Product { weight, x, out: middle, finish: Finish::Gated, over }.launch(b, "gated_mlp")?;
    let (x, out) = (Operand { rows: middle, rounded }, dense(op.out.ptr(), hidden, 0));
    Product { weight: op.down, x, out, finish: Finish::Add, over }.launch(b, "gated_mlp")
}

/// Leaves `[outputs, vocab]` in [`Scratch::logits`].
pub(super) fn lm_head<D: Device>(b: &mut CudaBackend<D>, op: &LmHead<'_, CudaBackend<D>>) -> Result<()> {
    let [_, vocab, hidden] = op.weight.shape();
    let reserved = b.reserved("lm_head")?;
    let (step, scratch) = (&reserved.step, &reserved.gemm);
    let outputs = output_bucket(step);
    let len = step.outputs * vocab;
    scratch.logits("lm_head", len)?;
    if outputs > 0 {
        let rounded = op.weight.kind() != Kind::F32;
        let (stride, size) = if rounded { (op.weight.units() * 32, 2) } else { (hidden, 4) };
        let normed = scratch.rounded("lm_head", outputs * stride * size)?;
        let params = NormOutputsParams {
            x: op.x.ptr(),
            norm: op.norm.ptr(),
            out: normed,
            step: step.header(),
            outputs: step.output_tokens(),
            cols: hidden as i32,
            units: if rounded { op.weight.units() as i32 } else { 0 },
            eps: op.eps,
        };
        b.launch(&NORM_OUTPUTS, [outputs, 1, 1], 32, &params);
        let x = Operand { rows: dense(normed, stride, 0), rounded };
        let out = dense(scratch.logits("lm_head", len)?.ptr(), vocab, 0);
        let (weight, finish, over) = (op.weight, Finish::Store, Over::Outputs);
        Product { weight, x, out, finish, over }.launch(b, "lm_head")?;
    }
    Ok(())
}

/// Rows of the logits of the step launched last.
pub(super) fn read_logits<D: Device>(
    b: &CudaBackend<D>,
    outputs: &[u32],
    vocab: usize,
    logits: &mut Vec<f32>,
) -> Result<()> {
    let reserved = b.reserved("read_logits")?;
    let there = outputs.iter().all(|&output| (output as usize) < reserved.step.outputs);
    require(there, "read_logits", || format!("outputs {outputs:?} of {}", reserved.step.outputs))?;
    let from = reserved.gemm.logits("read_logits", reserved.step.outputs * vocab)?;
    logits.resize(outputs.len() * vocab, 0.0);
    let mut rows = logits.as_mut_slice();
    // Rows that lie together come together.
    for run in outputs.chunk_by(|a, b| a + 1 == *b) {
        let (out, rest) = rows.split_at_mut(run.len() * vocab);
        // SAFETY: any bytes are numbers; the slice covers those of `out`, which nobody else has now.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<u8>(), size_of_val(out)) };
        b.device.read(from.get(), 4 * run[0] as usize * vocab, bytes)?;
        rows = rest;
    }
    Ok(())
}
