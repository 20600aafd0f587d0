//! The router: scores, and the choice by them.

use super::super::device::params;
use super::super::gemm::Kind;
use super::super::{CudaBackend, Device, Held, Kernel, Ptr};
use super::{aligned, first_row};
use crate::backend::{Backend, Workspace};
use crate::error::{Result, require};
use crate::ops::{Route, Scoring};

const WARPS: usize = 4;
/// A lane keeps each choice.
const TOP_K_MAX: usize = 32;
const EXPERTS_MAX: usize = 1024;
/// A warp's scores, orders and groups.
const CHOICE_BYTES_MAX: usize = 4 * 3 * EXPERTS_MAX;
/// Tokens from which a warp takes tiles of them.
const MANY: usize = 32;

const fn kernel(name: &'static str, shared_bytes_max: usize) -> Kernel {
    Kernel { name, file: "route", threads: 32 * WARPS as u32, shared_bytes_max: shared_bytes_max as u32 }
}

pub(super) const LOGITS: Kernel = kernel("smxx_f32_route_logits", 0);
pub(super) const LOGITS_MANY: Kernel = kernel("smxx_f32_route_logits_many", 0);
pub(super) const CHOOSE: Kernel = kernel("smxx_f32_route_choose", WARPS * CHOICE_BYTES_MAX);

params! {
    struct RouteLogitsParams {
        x: Ptr,
        weight: Ptr,
        logits: Ptr,
        step: Ptr,
        stride: u64,
        experts: i32,
        hidden: i32,
        aligned: i32,
    }

    struct RouteChooseParams {
        logits: Ptr,
        bias: Ptr,
        ids: Ptr,
        weights: Ptr,
        step: Ptr,
        experts: i32,
        top_k: i32,
        sigmoid: i32,
        groups: i32,
        top_groups: i32,
        normalise: i32,
        scale: f32,
    }
}

pub(in crate::cuda) struct Scratch<D: Device> {
    /// f32 `[tokens, experts]`
    logits: Held<D>,
}

impl<D: Device> Scratch<D> {
    pub(in crate::cuda) fn new(b: &CudaBackend<D>, workspace: &Workspace) -> Result<Self> {
        let bytes = 4 * workspace.limits.tokens * workspace.n_experts;
        Ok(Self { logits: b.hold(bytes, "scores of experts")? })
    }
}

pub(in crate::cuda) fn route<D: Device>(b: &CudaBackend<D>, op: &Route<'_, CudaBackend<D>>) -> Result<()> {
    let rule = &op.rule;
    let experts = rule.n_experts;
    let [_, _, hidden] = op.weight.shape();
    require(op.weight.kind() == Kind::F32, "route", || "weights that are not f32".into())?;
    require(experts <= EXPERTS_MAX && rule.top_k <= TOP_K_MAX, "route", || {
        format!(
            "{} of {experts} experts a token; this device chooses at most {TOP_K_MAX} of {EXPERTS_MAX}",
            rule.top_k
        )
    })?;
    let reserved = b.reserved("route")?;
    let logits = &reserved.rows.logits;
    require(4 * b.step_tokens() * experts <= D::bytes(logits.get()), "route", || {
        format!("more than the experts reserved for: {experts}")
    })?;
    let tokens = b.token_bucket();
    let params = RouteLogitsParams {
        x: first_row(&op.x),
        weight: op.weight.ptr(),
        logits: logits.ptr(),
        step: reserved.step.header(),
        stride: op.x.stride as u64,
        experts: experts as i32,
        hidden: hidden as i32,
        aligned: aligned(&op.x, hidden),
    };
    let (kernel, warp_experts, warp_tokens) =
        if tokens < MANY { (&LOGITS, 1, 4) } else { (&LOGITS_MANY, 4, 8) };
    let grid = [experts.div_ceil(WARPS * warp_experts), tokens.div_ceil(warp_tokens), 1];
    b.launch(kernel, grid, 0, &params);
    let params = RouteChooseParams {
        logits: logits.ptr(),
        bias: op.bias.map_or(Ptr::NONE, |bias| bias.ptr()),
        ids: op.ids.ptr(),
        weights: op.weights.ptr(),
        step: reserved.step.header(),
        experts: experts as i32,
        top_k: rule.top_k as i32,
        sigmoid: (rule.scoring == Scoring::Sigmoid).into(),
        groups: rule.n_groups as i32,
        top_groups: rule.top_groups as i32,
        normalise: rule.normalise.into(),
        scale: rule.scale,
    };
    let shared_bytes = 4 * WARPS * (2 * experts + rule.n_groups);
    b.launch(&CHOOSE, [tokens.div_ceil(WARPS), 1, 1], shared_bytes, &params);
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
mod tests;
