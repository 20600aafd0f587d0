//! Runs the kernels' sources on the host, thread by thread, with checks that no GPU makes: how, `csrc/sim.h` says.

pub mod mutants;
mod table;

pub use table::{Declared, declared};

use super::device::{About, Device, Kernel, Launch, Ptr};
use crate::error::{KernelError, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use table::{
    RawDevice, RawLaunch, Table, built_in, sim_alloc, sim_close, sim_counters, sim_counters_reset, sim_free,
    sim_open, sim_read, sim_write,
};

/// When asynchronous copies land: at once, when they are waited for, or at random in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    Eager,
    Lazy,
    Random,
}

/// Which threads, warps and blocks go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Up,
    Down,
    Random,
}

/// What the emulator chooses where a GPU is free to, and what it checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    pub copies: Copies,
    pub order: Order,
    pub seed: u64,
    /// Find accesses to shared memory that no barrier orders.
    pub races: bool,
    /// Refuse to read global memory that nobody has written.
    pub unwritten: bool,
    /// Count sectors of global memory and wavefronts of shared memory.
    pub lanes: bool,
}

impl Mode {
    /// One run, without the costlier checks: for whole models.
    pub const FAST: Self = Self {
        copies: Copies::Eager,
        order: Order::Up,
        seed: 0,
        races: false,
        unwritten: false,
        lanes: false,
    };

    /// Each way for copies to land with each order, all checks on.
    pub fn all() -> [Self; 9] {
        let copies = [Copies::Eager, Copies::Lazy, Copies::Random];
        let orders = [Order::Up, Order::Down, Order::Random];
        std::array::from_fn(|i| Self {
            copies: copies[i / 3],
            order: orders[i % 3],
            seed: 1 + i as u64,
            races: true,
            unwritten: true,
            ..Self::FAST
        })
    }
}

/// What kernels have done since the last reset. Barriers and collectives are counted once a warp.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of global memory.
    pub loaded_bytes: u64,
    pub stored_bytes: u64,
    pub mma: u64,
    /// `ldmatrix` reads 8 rows at once where no two lie in the same bank.
    pub ldsm_wavefronts: u64,
    pub ldsm_ideal: u64,
    pub barriers: u64,
    pub collectives: u64,
    /// 32 bytes each, counted with [`Mode::lanes`] only, as are the fields below.
    pub load_sectors: u64,
    pub load_sectors_ideal: u64,
    pub store_sectors: u64,
    pub store_sectors_ideal: u64,
    /// Of `lds_*` and `sts_*`.
    pub shared_wavefronts: u64,
    pub shared_ideal: u64,
}

struct Handle {
    device: *mut RawDevice,
    mode: Mode,
    /// Kernels that take the place of those of the same name.
    replaced: Table,
}

// SAFETY: the device is used by one thread at a time (a mutex is around it) and keeps nothing of a thread.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by `Emulator::new`, closed once.
        unsafe { sim_close(self.device) }
    }
}

fn lock(handle: &Mutex<Handle>) -> MutexGuard<'_, Handle> {
    handle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device made of this host.
pub struct Emulator {
    handle: Arc<Mutex<Handle>>,
    about: About,
}

/// Global memory of an emulated device.
pub struct Memory {
    handle: Arc<Mutex<Handle>>,
    start: u64,
    bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated on this device, freed once.
        let freed = unsafe { sim_free(lock(&self.handle).device, self.start as *mut c_void) };
        debug_assert!(freed, "memory that the device does not know");
    }
}

impl Emulator {
    /// Looks like a device of compute capability `arch` (as `90`).
    pub fn new(mode: Mode, arch: u32) -> Self {
        // SAFETY: no argument; closed by the handle.
        let device = unsafe { sim_open() };
        let handle = Handle { device, mode, replaced: Table::new() };
        let about = About {
            name: "emulator".into(),
            arch,
            multiprocessors: 4,
            shared_bytes_max: match arch {
                90..120 => 232_448,
                80 | 87 => 166_912,
                _ => 101_376,
            },
            memory_bytes: 1 << 36,
        };
        Self { handle: Arc::new(Mutex::new(handle)), about }
    }

    pub fn set_mode(&self, mode: Mode) {
        lock(&self.handle).mode = mode;
    }

    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        // SAFETY: an open device, and a place for the counters.
        unsafe { sim_counters(lock(&self.handle).device, &mut counters) };
        counters
    }

    pub fn reset_counters(&self) {
        // SAFETY: an open device.
        unsafe { sim_counters_reset(lock(&self.handle).device) }
    }

    /// Memory whose bytes nobody has written: NaN as f32 and as bf16.
    pub fn allocate_unwritten(&self, bytes: usize) -> Result<Memory> {
        self.allocate_filled(bytes, 0xff, "a buffer")
    }

    fn allocate_filled(&self, bytes: usize, fill: c_int, what: &'static str) -> Result<Memory> {
        // SAFETY: an open device.
        let start = unsafe { sim_alloc(lock(&self.handle).device, bytes as u64, fill) } as u64;
        if start == 0 {
            return Err(KernelError::Memory { what, bytes });
        }
        Ok(Memory { handle: self.handle.clone(), start, bytes })
    }

    /// Runs one kernel by its name.
    pub fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        shared_bytes: u32,
        params: &[u8],
    ) -> std::result::Result<(), String> {
        let handle = lock(&self.handle);
        let known = handle.replaced.get(kernel).or_else(|| built_in().get(kernel));
        let entry = *known.ok_or_else(|| format!("no kernel {kernel} in csrc"))?;
        let Mode { copies, order, seed, races, unwritten, lanes } = handle.mode;
        let launch = RawLaunch {
            kernel: entry.kernel,
            grid,
            shared_bytes,
            params: params.as_ptr().cast(),
            params_bytes: params.len() as u64,
            copies: copies as u32,
            order: order as u32,
            seed,
            races,
            unwritten,
            lanes,
        };
        // SAFETY: an open device that nobody else uses; what `launch` points to outlives the call, and the struct's
        // size is compared there. Kernels reach memory through checked accesses only.
        let error = unsafe { (entry.launch)(handle.device, &launch) };
        // SAFETY: a text that lives until the next call.
        unsafe { text(error) }.map_or(Ok(()), Err)
    }

    /// As a GPU would: what is promised of the kernel is held against its source.
    fn run_one(&self, launch: &Launch) -> std::result::Result<(), String> {
        let Kernel { name, file, threads, shared_bytes_max } = *launch.kernel;
        if let Some(entry) = built_in().get(name)
            && (entry.file, entry.kernel.threads) != (file, threads)
        {
            let (is_in, has) = (entry.file, entry.kernel.threads);
            return Err(format!("{name}: {threads} threads in {file}.cu here, but {has} in {is_in}.cu"));
        }
        if launch.shared_bytes > shared_bytes_max.min(self.about.shared_bytes_max) {
            let asked = launch.shared_bytes;
            let most = self.about.shared_bytes_max;
            return Err(format!(
                "{name}: {asked} bytes of shared memory, {shared_bytes_max} promised, {most} to be had"
            ));
        }
        if !launch.grid_fits() {
            return Err(format!("{name}: a grid of {:?}", launch.grid));
        }
        self.launch(name, launch.grid, launch.shared_bytes, launch.params.as_slice())
    }
}

/// What differs between a parameter struct and its twin in `csrc`, if anything.
#[cfg(test)]
fn twin_differs(name: &str, bytes: usize, fields: &[super::device::Field]) -> Option<String> {
    let all = declared();
    let twins: Vec<&Declared> = all.iter().filter(|d| d.params == name).collect();
    if twins.is_empty() {
        return Some(format!("no kernel takes a {name}"));
    }
    let wrong = twins.iter().find(|d| d.params_bytes != bytes || d.fields != fields)?;
    Some(format!(
        "{name}: {bytes} bytes, {fields:?}, but {} bytes, {:?} in {}.cu",
        wrong.params_bytes, wrong.fields, wrong.file
    ))
}

/// Run for each struct of `params!` as a test of its name.
#[cfg(test)]
pub(super) fn assert_twin<P: super::Params>() {
    assert_eq!(twin_differs(P::NAME, size_of::<P>(), &P::fields()), None);
}

/// # Safety
/// `message` is null or a string that nobody changes meanwhile.
unsafe fn text(message: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    (!message.is_null()).then(|| unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
}

fn checked(op: &'static str, done: std::result::Result<(), String>) -> Result<()> {
    done.map_err(|what| KernelError::Device { op, what })
}

impl Device for Emulator {
    type Memory = Memory;
    type Reading = Vec<u8>;
    type Graph = Vec<Launch>;

    fn about(&self) -> &About {
        &self.about
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(self.about.memory_bytes)
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Memory> {
        self.allocate_filled(bytes, 0, what)
    }

    fn address(memory: &Memory) -> Ptr {
        Ptr(memory.start)
    }

    fn bytes(memory: &Memory) -> usize {
        memory.bytes
    }

    fn write(&self, to: &Memory, at: usize, bytes: &[u8]) -> Result<()> {
        let target = (to.start + at as u64) as *mut c_void;
        // SAFETY: the range is checked there; `bytes` outlives the call.
        let error = unsafe {
            let device = lock(&self.handle).device;
            text(sim_write(device, target, bytes.as_ptr().cast(), bytes.len() as u64))
        };
        checked("write", error.map_or(Ok(()), Err))
    }

    fn read(&self, from: &Memory, at: usize, out: &mut [u8]) -> Result<()> {
        let source = (from.start + at as u64) as *const c_void;
        // SAFETY: the range is checked there; `out` outlives the call.
        let error = unsafe {
            let device = lock(&self.handle).device;
            text(sim_read(device, source, out.as_mut_ptr().cast(), out.len() as u64))
        };
        checked("read", error.map_or(Ok(()), Err))
    }

    fn read_later(&self, from: &Memory, at: usize, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(from, at, &mut bytes).map(|()| bytes)
    }

    fn finish_reading(&self, reading: Vec<u8>, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&reading);
        Ok(())
    }

    fn run(&self, launches: &[Launch]) -> Result<()> {
        launches.iter().try_for_each(|launch| checked("launch", self.run_one(launch)))
    }

    fn capture(&self, launches: &[Launch]) -> Result<Vec<Launch>> {
        Ok(launches.to_vec())
    }

    fn replay(&self, graph: &Vec<Launch>) -> Result<()> {
        self.run(graph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::device::{Params, params};

    params! {
        #[allow(dead_code, reason = "only its fields are compared")]
        struct ProbeP {
            from: Ptr,
            to: Ptr,
            n: i32,
        }
    }

    #[test]
    fn a_wrong_twin_is_seen() {
        let good = ProbeP::fields();
        let cases = [
            ("ProbeQ", 24, good.clone(), "no kernel takes a ProbeQ"),
            ("ProbeP", 28, good.clone(), "28 bytes"),
            ("ProbeP", 24, good[..2].to_vec(), "24 bytes"),
            ("ProbeP", 24, vec![good[1], good[0], good[2]], "24 bytes"),
        ];
        for (name, bytes, fields, expected) in cases {
            let differs = twin_differs(name, bytes, &fields).expect("a difference");
            assert!(differs.contains(expected), "{differs}");
        }
    }

    #[test]
    fn promises_about_a_kernel_are_held_against_its_source() {
        const GOOD: Kernel =
            Kernel { name: "smxx_u32_probe_place", file: "probe", threads: 64, shared_bytes_max: 16 };
        const THREADS: Kernel = Kernel { threads: 128, ..GOOD };
        const FILE: Kernel = Kernel { file: "gemm", ..GOOD };
        let emulator = Emulator::new(Mode::FAST, 80);
        let to = emulator.allocate(1024, "to").unwrap();
        let params = ProbeP { from: Ptr::default(), to: Emulator::address(&to), n: 0 }.bytes();
        let good = Launch { kernel: &GOOD, grid: [1, 1, 1], shared_bytes: 16, params };
        let cases = [
            (good, None),
            (
                Launch { shared_bytes: 20, ..good },
                Some("20 bytes of shared memory, 16 promised, 166912 to be had"),
            ),
            (Launch { kernel: &THREADS, ..good }, Some("128 threads in probe.cu here, but 64 in probe.cu")),
            (Launch { kernel: &FILE, ..good }, Some("64 threads in gemm.cu here, but 64 in probe.cu")),
            (Launch { grid: [1, 65_536, 1], ..good }, Some("a grid of [1, 65536, 1]")),
        ];
        for (launch, expected) in cases {
            let ran = emulator.run(&[launch]);
            let message = ran.err().map(|e| e.to_string());
            assert_eq!(message.is_some(), expected.is_some(), "{message:?}");
            assert!(message.unwrap_or_default().contains(expected.unwrap_or_default()));
        }
    }
}
