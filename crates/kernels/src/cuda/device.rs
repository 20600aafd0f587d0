//! What runs the kernels: a GPU, or the emulator that runs their sources on the host.

use crate::error::Result;
use std::fmt;

/// Something that runs our kernels, in the order in which they are given, and holds their memory.
///
/// # Safety
/// of the kernels that a launch names is settled before: each op checks its sizes, and memory that a launch may touch
/// lives until the launch has run (see `CudaBackend`).
pub trait Device: Send + Sized + 'static {
    /// Freed when dropped.
    type Memory: Send;
    /// Launches that were put together once, to be run again as they are.
    type Graph: Send;
    /// A read under way.
    type Reading: Send;

    fn about(&self) -> &About;
    fn free_bytes(&self) -> Result<u64>;
    /// Zeros, aligned to 256 bytes at least.
    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Self::Memory>;
    fn address(memory: &Self::Memory) -> Ptr;
    fn bytes(memory: &Self::Memory) -> usize;
    /// Copies to `at` bytes behind the beginning, after all that was launched before. `bytes` is free at once.
    fn write(&self, to: &Self::Memory, at: usize, bytes: &[u8]) -> Result<()>;
    /// Waits for all that was launched before.
    fn read(&self, from: &Self::Memory, at: usize, out: &mut [u8]) -> Result<()>;
    /// Begins to read what will be there after all that was launched before, whatever is launched then. A few numbers.
    fn read_later(&self, from: &Self::Memory, at: usize, len: usize) -> Result<Self::Reading>;
    /// Waits for it. `out` has the length that it was begun with.
    fn finish_reading(&self, reading: Self::Reading, out: &mut [u8]) -> Result<()>;
    fn run(&self, launches: &[Launch]) -> Result<()>;
    fn capture(&self, launches: &[Launch]) -> Result<Self::Graph>;
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
}

/// What the choice of a kernel depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    pub name: String,
    /// Compute capability, as `90`.
    pub arch: u32,
    pub multiprocessors: u32,
    /// Shared memory that a block may have.
    pub shared_bytes_max: u32,
    pub memory_bytes: u64,
}

/// An address on the device; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ptr(pub u64);

impl Ptr {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// A kernel by its name in the source, whose threads the source fixes too.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    pub name: &'static str,
    /// `csrc/{file}.cu`
    pub file: &'static str,
    /// Of a block.
    pub threads: u32,
    /// The most dynamic shared memory that it is ever launched with.
    pub shared_bytes_max: u32,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Blocks that a grid may have in each dimension.
pub(super) const GRID_MAX: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// One run of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Launch {
    pub kernel: &'static Kernel,
    /// Blocks.
    pub grid: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    pub params: ParamBytes,
}

impl Launch {
    pub(super) fn grid_fits(&self) -> bool {
        self.grid.iter().zip(GRID_MAX).all(|(&n, max)| (1..=max).contains(&n))
    }
}

/// The parameter struct of a launch as it is passed to the device.
#[derive(Clone, Copy, PartialEq)]
pub struct ParamBytes {
    bytes: [u8; Self::MAX],
    len: u16,
}

impl ParamBytes {
    pub const MAX: usize = 256;

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    pub(crate) fn zeros(len: usize) -> Self {
        assert!(len <= Self::MAX, "a parameter struct of {len} bytes");
        Self { bytes: [0; Self::MAX], len: len as u16 }
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl fmt::Debug for ParamBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.len)
    }
}

/// A field of a parameter struct: name, offset and size in bytes.
pub type Field = (&'static str, usize, usize);

/// The Rust twin of a `PARAMS` struct in `csrc`.
pub trait Params: Copy {
    const NAME: &'static str;
    fn fields() -> Vec<Field>;
    fn bytes(&self) -> ParamBytes;
}

/// A number or an address in a parameter struct.
pub(super) trait Argument: Copy {
    fn put(self, at: usize, into: &mut ParamBytes);
}

impl Argument for Ptr {
    fn put(self, at: usize, into: &mut ParamBytes) {
        into.put(at, &self.0.to_ne_bytes());
    }
}

macro_rules! argument {
    ($($number:ty),*) => {$(
        impl Argument for $number {
            fn put(self, at: usize, into: &mut ParamBytes) {
                into.put(at, &self.to_ne_bytes());
            }
        }
    )*};
}

argument!(i32, u32, f32, u64);

/// Declares parameter structs: `#[repr(C)]`, fields in the order of their twin in `csrc`.
macro_rules! params {
    ($($(#[$doc:meta])* struct $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name { $($(#[$field_doc])* pub $field: $kind),* }

        impl $crate::cuda::device::Params for $name {
            const NAME: &'static str = stringify!($name);

            fn fields() -> Vec<$crate::cuda::device::Field> {
                vec![$((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$kind>())),*]
            }

            fn bytes(&self) -> $crate::cuda::device::ParamBytes {
                let mut bytes = $crate::cuda::device::ParamBytes::zeros(size_of::<Self>());
                $($crate::cuda::device::Argument::put(self.$field, std::mem::offset_of!($name, $field), &mut bytes);)*
                bytes
            }
        }

        #[cfg(all(test, feature = "sim"))]
        #[test]
        #[allow(non_snake_case)]
        fn $name() {
            $crate::cuda::sim::assert_twin::<$name>();
        }
    )*};
}

pub(crate) use params;
