//! Launches of the GPU kit (`scripts/gpu`) alone: what a GPU can do at best, and what each wrapper of `csrc/dev.h` does. No
//! step of a model has them. Each is to be run while the memory that it was made with lives.

use super::device::{Device, Kernel, Launch, Params, Ptr, params};
use crate::error::{Result, require};

const THREADS: usize = 256;
/// Bytes that a block takes at a time: what [`read`] and [`copy`] move is a multiple.
pub const TILE_BYTES: usize = 16 * THREADS * UNROLL;
const UNROLL: usize = 8;
/// Threads of a probe's block.
pub const PROBE_THREADS: usize = 64;
const PROBE_SHARED: u32 = 4096;

const fn peak(name: &'static str, threads: usize) -> Kernel {
    Kernel { name, file: "peaks", threads: threads as u32, shared_bytes_max: 0 }
}

const fn probe_kernel(name: &'static str) -> Kernel {
    Kernel { name, file: "probe", threads: PROBE_THREADS as u32, shared_bytes_max: PROBE_SHARED }
}

static READ: Kernel = peak("smxx_u32_peak_read", THREADS);
static COPY: Kernel = peak("smxx_u32_peak_copy", THREADS);
static PRODUCTS: Kernel = peak("smxx_bf16_peak_mma", THREADS);
static TICK: Kernel = peak("smxx_u32_peak_tick", 32);
static FILL: Kernel = peak("smxx_bf16_peak_fill", THREADS);
/// `csrc/probe.cu`
static PROBES: [Kernel; 14] = [
    probe_kernel("smxx_u32_probe_place"),
    probe_kernel("smxx_u32_probe_warp"),
    probe_kernel("smxx_f32_probe_unary"),
    probe_kernel("smxx_f32_probe_binary"),
    probe_kernel("smxx_u32_probe_shared"),
    probe_kernel("smxx_u32_probe_global"),
    probe_kernel("smxx_u32_probe_reverse"),
    probe_kernel("smxx_u32_probe_atomics"),
    probe_kernel("smxx_u32_probe_release"),
    probe_kernel("smxx_f32_probe_pipeline"),
    probe_kernel("smxx_u32_probe_ldsm"),
    probe_kernel("smxx_bf16_probe_mma"),
    probe_kernel("smxx_u32_probe_named"),
    probe_kernel("sm90_f32_probe_bulk"),
];

params! {
    struct PeakP {
        from: Ptr,
        to: Ptr,
        units: u64,
        n: i32,
    }

    struct ProbeP {
        from: Ptr,
        to: Ptr,
        n: i32,
    }
}

/// All kernels that this module launches.
pub fn kernels() -> Vec<&'static Kernel> {
    [&READ, &COPY, &PRODUCTS, &TICK, &FILL].into_iter().chain(&PROBES).collect()
}

fn launch(kernel: &'static Kernel, grid: [u32; 3], params: &impl Params) -> Launch {
    Launch { kernel, grid, shared_bytes: kernel.shared_bytes_max, params: params.bytes() }
}

fn tiles(bytes: usize) -> Result<u64> {
    require(bytes.is_multiple_of(TILE_BYTES), "peak", || {
        format!("{bytes} B, which is no multiple of {TILE_BYTES}")
    })?;
    Ok(bytes as u64 / 16)
}

fn room<D: Device>(memory: &D::Memory, bytes: usize) -> Result<Ptr> {
    require(bytes <= D::bytes(memory), "peak", || format!("{bytes} B of {} B", D::bytes(memory)))?;
    Ok(D::address(memory))
}

/// Reads `bytes` of `from`; `to` becomes u32 `[blocks, 256]`, whose exclusive or is that of all words read.
pub fn read<D: Device>(from: &D::Memory, to: &D::Memory, bytes: usize, blocks: usize) -> Result<Launch> {
    let (from, to) = (room::<D>(from, bytes)?, room::<D>(to, 4 * blocks * THREADS)?);
    Ok(launch(&READ, [blocks as u32, 1, 1], &PeakP { from, to, units: tiles(bytes)?, n: 0 }))
}

/// Copies `bytes`.
pub fn copy<D: Device>(from: &D::Memory, to: &D::Memory, bytes: usize, blocks: usize) -> Result<Launch> {
    let (from, to) = (room::<D>(from, bytes)?, room::<D>(to, bytes)?);
    Ok(launch(&COPY, [blocks as u32, 1, 1], &PeakP { from, to, units: tiles(bytes)?, n: 0 }))
}

/// Multiplies ones in registers, [`products_flop`] operations; `to` becomes f32 `[blocks, 256]`, each
/// [`products_expect`].
pub fn products<D: Device>(to: &D::Memory, rounds: usize, blocks: usize) -> Result<Launch> {
    let to = room::<D>(to, 4 * blocks * THREADS)?;
    let params = PeakP { from: Ptr::NONE, to, units: 0, n: rounds as i32 };
    Ok(launch(&PRODUCTS, [blocks as u32, 1, 1], &params))
}

/// Operations of [`products`]: an mma is 16 x 8 x 16 products and sums.
pub fn products_flop(rounds: usize, blocks: usize) -> f64 {
    (blocks * THREADS / 32 * UNROLL * rounds) as f64 * (2 * 16 * 8 * 16) as f64
}

/// What each thread of [`products`] leaves behind.
pub fn products_expect(rounds: usize) -> f32 {
    (16 * 4 * UNROLL * rounds) as f32
}

/// Adds 1 to the first word of `to`.
pub fn tick<D: Device>(to: &D::Memory) -> Result<Launch> {
    let to = room::<D>(to, 4)?;
    Ok(launch(&TICK, [1, 1, 1], &PeakP { from: Ptr::NONE, to, units: 0, n: 0 }))
}

/// Fills memory, but for what is left of 16 bytes at its end, with bf16 noise of sizes from 2^-5 to 2^-4: numbers of the
/// same sizes when read as f32.
pub fn fill<D: Device>(to: &D::Memory, seed: i32) -> Launch {
    let units = (D::bytes(to) / 16) as u64;
    let blocks = units.div_ceil(THREADS as u64).clamp(1, 4096) as u32;
    let params = PeakP { from: Ptr::NONE, to: D::address(to), units, n: seed };
    launch(&FILL, [blocks, 1, 1], &params)
}

/// A probe by its name: words in, words out and a number, as `csrc/probe.cu` says; `None` if there is no such probe.
pub fn probe<D: Device>(
    name: &str,
    grid: [u32; 3],
    from: &D::Memory,
    to: &D::Memory,
    n: i32,
) -> Option<Launch> {
    let kernel = PROBES.iter().find(|kernel| kernel.name == name)?;
    Some(launch(kernel, grid, &ProbeP { from: D::address(from), to: D::address(to), n }))
}
