//! Kernels on a GPU: modules and the functions in them, all found at start.

use super::driver::said;
use super::{NoGpu, failed, refused};
use crate::cuda::compile::Code;
use crate::cuda::{About, Kernel, Launch};
use crate::error::{Result, require};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};
use cudarc::driver::{CudaContext, CudaStream};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

/// Dynamic shared memory that a kernel may take without asking.
const SHARED_BYTES_UNASKED: u32 = 48 << 10;

/// Of one GPU.
pub(super) struct Loaded {
    functions: HashMap<&'static str, Function>,
    /// Those that they are in.
    _modules: Vec<Module>,
}

struct Module {
    raw: sys::CUmodule,
    context: Arc<CudaContext>,
}

#[derive(Clone, Copy)]
struct Function {
    raw: sys::CUfunction,
    params_bytes: usize,
    /// Dynamic, of a block.
    shared_bytes_max: u32,
}

// SAFETY: modules belong to a context and not to a thread; each use binds the context to its thread first.
unsafe impl Send for Module {}
// SAFETY: a module is only read once it is loaded.
unsafe impl Sync for Module {}
// SAFETY: as for modules, which outlive their functions in `Loaded`.
unsafe impl Send for Function {}
// SAFETY: attributes are set before anybody else sees the function.
unsafe impl Sync for Function {}

impl Loaded {
    /// All `kernels` that this GPU has, from the modules that hold them.
    pub(super) fn new(
        context: &Arc<CudaContext>,
        about: &About,
        code: &[Code],
        kernels: &[&'static Kernel],
    ) -> std::result::Result<Self, NoGpu> {
        let wrong = |what: String| NoGpu::Kernels { name: about.name.clone(), what };
        let mut modules = HashMap::new();
        for code in code {
            let module = Module::load(context, &code.cubin)
                .map_err(|error| wrong(format!("{}: its code is refused: {}", code.file, said(error))))?;
            modules.insert(code.file, module);
        }
        let mut functions = HashMap::new();
        for kernel in kernels.iter().filter(|kernel| least_arch(kernel.name) <= about.arch) {
            let module = modules.get(kernel.file);
            let module =
                module.ok_or_else(|| wrong(format!("{}: no module {}", kernel.name, kernel.file)))?;
            let function = module.function(kernel, about);
            let function = function.map_err(|error| wrong(format!("{}: {}", kernel.name, said(error))))?;
            functions.insert(kernel.name, function);
        }
        Ok(Self { functions, _modules: modules.into_values().collect() })
    }

    /// Puts a launch on the stream, whose context is bound to this thread.
    pub(super) fn launch(&self, launch: &Launch, stream: &CudaStream) -> Result<()> {
        let Launch { kernel, grid, shared_bytes, params } = launch;
        let function = self.functions.get(kernel.name);
        let function = function.ok_or_else(|| refused(kernel.name, "this GPU has no such kernel".into()))?;
        let size = params.as_slice().len();
        require(size == function.params_bytes, kernel.name, || {
            format!("parameters of {size} B, its source has {} B", function.params_bytes)
        })?;
        require(*shared_bytes <= function.shared_bytes_max, kernel.name, || {
            format!("{shared_bytes} B of shared memory, at most {} B", function.shared_bytes_max)
        })?;
        require(launch.grid_fits(), kernel.name, || format!("a grid of {grid:?}"))?;
        let mut arguments = [params.as_slice().as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the function is of a loaded module and takes one parameter of just this size, which the driver copies
        // before it returns. That the kernel stays within memory that lives, its op has checked (see `Device`).
        let launched = unsafe {
            result::launch_kernel(
                function.raw,
                (grid[0], grid[1], grid[2]),
                (kernel.threads, 1, 1),
                *shared_bytes,
                stream.cu_stream(),
                &mut arguments,
            )
        };
        launched.map_err(|error| failed(kernel.name, &format!("{}: ", sizes(launch)), error))
    }
}

/// `grid [4, 1, 1] of 256 threads, 512 B of shared memory`
pub(super) fn sizes(launch: &Launch) -> String {
    let Launch { kernel, grid, shared_bytes, .. } = launch;
    format!("grid {grid:?} of {} threads, {shared_bytes} B of shared memory", kernel.threads)
}

/// A kernel's name says from which compute capability on it is there: `sm90_…`; `smxx_…` is always.
fn least_arch(name: &str) -> u32 {
    name.strip_prefix("sm").and_then(|rest| rest.split('_').next()?.parse().ok()).unwrap_or(0)
}

impl Module {
    fn load(context: &Arc<CudaContext>, cubin: &[u8]) -> std::result::Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: a whole cubin, as it came from the compiler: embedded, just made, or kept with its digest.
        let raw = unsafe { result::module::load_data(cubin.as_ptr().cast()) }?;
        Ok(Self { raw, context: context.clone() })
    }

    fn function(&self, kernel: &Kernel, about: &About) -> std::result::Result<Function, DriverError> {
        self.context.bind_to_thread()?;
        let name = CString::new(kernel.name).unwrap_or_default();
        // SAFETY: the module is loaded, and lives as long as the function (in `Loaded`).
        let raw = unsafe { result::module::get_function(self.raw, name) }?;
        let number = |attribute| {
            // SAFETY: the function has just been found.
            let value = unsafe { result::function::get_function_attribute(raw, attribute) };
            value.map(|value| u32::try_from(value).unwrap_or(0))
        };
        let (mut at, mut params_bytes) = (0, 0);
        // SAFETY: as above; both numbers live on. Else a kernel would be loaded by its first launch, which waits for the
        // GPU, and may not happen within a graph's capture.
        unsafe {
            sys::cuFuncLoad(raw).result()?;
            sys::cuFuncGetParamInfo(raw, 0, &raw mut at, &raw mut params_bytes).result()?;
        }
        if number(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)? < kernel.threads {
            return Err(DriverError(sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES));
        }
        let own = number(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        // Some kernels are larger than some GPUs; whoever chooses kernels knows.
        let shared_bytes_max = kernel.shared_bytes_max.min(about.shared_bytes_max.saturating_sub(own));
        if shared_bytes_max > SHARED_BYTES_UNASKED {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            unsafe { result::function::set_function_attribute(raw, attribute, shared_bytes_max as i32) }?;
        }
        Ok(Function { raw, params_bytes, shared_bytes_max })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded once, unloaded once; the GPU has waited for its last launch (`Drop for Gpu`).
            let _ = unsafe { result::module::unload(self.raw) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_where_a_kernel_runs() {
        for (name, expected) in [("smxx_bf16_gemm", 0), ("sm90_bf16_mla", 90), ("sm80_f32_x", 80), ("odd", 0)]
        {
            assert_eq!(least_arch(name), expected, "{name}");
        }
    }
}
