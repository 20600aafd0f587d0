//! The emulator's kernels by name, and the C interface of `csrc/sim_api.cpp`.

use super::Counters;
use crate::cuda::device::Field;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// A kernel as its source declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// `csrc/{file}.cu`
    pub file: &'static str,
    pub name: &'static str,
    pub threads: u32,
    /// Name and size of the parameter struct, and its fields.
    pub params: &'static str,
    pub params_bytes: usize,
    pub fields: Vec<Field>,
}

/// A compiled kernel and the emulator it was linked with.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Without `.cu`.
    pub(super) file: &'static str,
    pub(super) kernel: &'static RawKernel,
    pub(super) launch: LaunchFn,
}

// SAFETY: kernels are described by constants that are never written.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

pub(super) type Table = HashMap<&'static str, Entry>;

/// # Safety
/// `text` is a string constant.
unsafe fn constant(text: *const c_char) -> &'static str {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().expect("names are ASCII")
}

/// All kernels of the modules that `modules` lists.
///
/// # Safety
/// Both functions belong to the same emulator and are never unloaded.
pub(super) unsafe fn table(modules: ModulesFn, launch: LaunchFn) -> Table {
    let mut table = Table::new();
    // SAFETY: constants all: an array of modules that ends with one without a function, and a linked list of kernels each.
    unsafe {
        let mut module = modules();
        while let Some(kernels) = (*module).kernels {
            let file = constant((*module).file);
            let mut next = kernels().as_ref();
            while let Some(kernel) = next {
                let name = constant(kernel.name);
                let known = table.insert(name, Entry { file, kernel, launch });
                assert!(known.is_none(), "two kernels {name}");
                next = kernel.next.as_ref();
            }
            module = module.add(1);
        }
    }
    table
}

pub(super) fn built_in() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    // SAFETY: both are linked into this program.
    TABLE.get_or_init(|| unsafe { table(sim_modules, sim_launch) })
}

/// All kernels of `csrc`, by name.
pub fn declared() -> Vec<Declared> {
    let describe = |entry: &Entry| {
        let RawKernel { threads, params_bytes, n_fields, .. } = *entry.kernel;
        // SAFETY: constants of the module; `fields` has `n_fields` items.
        let (name, params, fields) = unsafe {
            let fields = std::slice::from_raw_parts(entry.kernel.fields, n_fields);
            let fields = fields.iter().map(|f| (constant(f.name), f.at, f.bytes)).collect();
            (constant(entry.kernel.name), constant(entry.kernel.params), fields)
        };
        Declared { file: entry.file, name, threads, params, params_bytes, fields }
    };
    let mut all: Vec<Declared> = built_in().values().map(describe).collect();
    all.sort_by_key(|d| d.name);
    all
}

// ---- the C interface

#[repr(C)]
pub(super) struct RawDevice {
    _opaque: [u8; 0],
}

#[repr(C)]
pub(super) struct RawField {
    name: *const c_char,
    at: usize,
    bytes: usize,
}

#[repr(C)]
pub(super) struct RawKernel {
    name: *const c_char,
    pub(super) threads: u32,
    run: *const c_void,
    params: *const c_char,
    params_bytes: usize,
    fields: *const RawField,
    n_fields: usize,
    next: *const RawKernel,
}

/// A file; the last of a list has no name.
#[repr(C)]
pub(super) struct RawModule {
    file: *const c_char,
    kernels: Option<unsafe extern "C" fn() -> *const RawKernel>,
}

#[repr(C)]
pub(super) struct RawLaunch {
    pub(super) kernel: *const RawKernel,
    pub(super) grid: [u32; 3],
    pub(super) shared_bytes: u32,
    pub(super) params: *const c_void,
    pub(super) params_bytes: u64,
    pub(super) copies: u32,
    pub(super) order: u32,
    pub(super) seed: u64,
    pub(super) races: bool,
    pub(super) unwritten: bool,
    pub(super) lanes: bool,
}

pub(super) type LaunchFn = unsafe extern "C" fn(*mut RawDevice, *const RawLaunch) -> *const c_char;
pub(super) type ModulesFn = unsafe extern "C" fn() -> *const RawModule;

unsafe extern "C" {
    pub(super) fn sim_open() -> *mut RawDevice;
    pub(super) fn sim_close(device: *mut RawDevice);
    pub(super) fn sim_alloc(device: *mut RawDevice, bytes: u64, fill: c_int) -> *mut c_void;
    pub(super) fn sim_free(device: *mut RawDevice, start: *mut c_void) -> bool;
    pub(super) fn sim_write(
        device: *mut RawDevice,
        to: *mut c_void,
        from: *const c_void,
        bytes: u64,
    ) -> *const c_char;
    pub(super) fn sim_read(
        device: *mut RawDevice,
        from: *const c_void,
        to: *mut c_void,
        bytes: u64,
    ) -> *const c_char;
    pub(super) fn sim_launch(device: *mut RawDevice, launch: *const RawLaunch) -> *const c_char;
    pub(super) fn sim_modules() -> *const RawModule;
    pub(super) fn sim_counters(device: *const RawDevice, out: *mut Counters);
    pub(super) fn sim_counters_reset(device: *mut RawDevice);
}
