//! The operations, one file each: arguments, their check, and the scalar reference.
//!
//! A reference is loops and f32, nothing clever; sums run in the order of the inner index. It is
//! what each fast kernel is compared with.

mod absorb;
mod attend;
mod copy_blocks;
mod embed;
mod experts;
mod gated_mlp;
mod latent_write;
mod linear;
mod lm_head;
mod rms_norm;
mod route;

pub use absorb::{AbsorbOutput, AbsorbQuery};
pub use attend::{AttendExpanded, AttendLatent};
pub use copy_blocks::CopyBlocks;
pub use embed::Embed;
pub use experts::Experts;
pub use gated_mlp::GatedMlp;
pub use latent_write::LatentWrite;
pub use linear::Linear;
pub use lm_head::LmHead;
pub use rms_norm::RmsNorm;
pub use route::{Route, RouteRule, Scoring};

pub(crate) use attend::reference as attend_reference;
pub(crate) use copy_blocks::reference as copy_blocks_reference;
pub(crate) use gated_mlp::silu;
pub(crate) use linear::reference as linear_reference;
pub(crate) use rms_norm::reference as rms_norm_reference;
pub(crate) use route::{RouteScratch, reference as route_reference};

use crate::backend::{Backend, View};
use crate::error::{Result, require};

/// Rows `0..rows` of `view`, `width` wide, lie inside its buffer.
fn check_view<B: Backend>(
    op: &'static str,
    name: &str,
    view: &View<'_, B>,
    rows: usize,
    width: usize,
) -> Result<()> {
    let len = B::buffer_len(view.buffer);
    require(rows > 0, op, || "no step has begun".into())?;
    let fits = view.stride >= width
        && (rows - 1)
            .checked_mul(view.stride)
            .and_then(|n| n.checked_add(view.offset)?.checked_add(width))
            .is_some_and(|end| end <= len);
    require(fits, op, || {
        format!("{name}: {rows} rows of {width} at {} + t * {} in {len}", view.offset, view.stride)
    })
}

/// `buffer` holds `rows * width` values.
fn check_len<B: Backend>(
    op: &'static str,
    name: &str,
    buffer: &B::Buffer,
    rows: usize,
    width: usize,
) -> Result<()> {
    let len = B::buffer_len(buffer);
    require(rows.checked_mul(width).is_some_and(|n| n <= len), op, || {
        format!("{name}: {rows} rows of {width} in {len}")
    })
}

/// `weight` is a stack of `[rows, cols]`.
fn check_weight<B: Backend>(
    op: &'static str,
    name: &str,
    weight: &B::Weight,
    want: [usize; 3],
) -> Result<()> {
    let have = B::weight_shape(weight);
    require(have == want, op, || format!("{name} is {have:?}, expected {want:?}"))
}

/// Rotates interleaved pairs `(2i, 2i + 1)` by the angles of one token.
/// `cos_sin`: `[dim / 2, 2]`.
pub(crate) fn rotate_pairs(x: &mut [f32], cos_sin: &[f32]) {
    for (pair, angle) in x.chunks_exact_mut(2).zip(cos_sin.chunks_exact(2)) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * angle[0] - b * angle[1];
        pair[1] = b * angle[0] + a * angle[1];
    }
}
