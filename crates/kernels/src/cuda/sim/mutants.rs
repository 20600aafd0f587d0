//! Kernels with a mistake planted in their source, to see that tests find it.

use super::{Emulator, LaunchFn, ModulesFn, Table, lock, table};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A mistake: in `csrc/{file}`, the one place that reads `from` reads `to`.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    pub file: &'static str,
    pub from: &'static str,
    pub to: &'static str,
}

/// A source's kernels, compiled while the program runs; they take the place of those that it was built with.
pub struct Module {
    kernels: Table,
}

/// # Panics
/// unless `case` accepts the sources as they are and refuses each mutant, whose kernels it is given for
/// [`Emulator::replace`]: by the emulator's error, or because numbers are wrong.
pub fn all_are_found(mutants: &[Mutant], case: impl Fn(Option<&Module>) -> Result<(), String>) {
    case(None).expect("the case passes without a mistake");
    let mut escaped = Vec::new();
    for mutant in mutants {
        let module = Module::compile(mutant).unwrap_or_else(|e| panic!("{mutant:?}: {e}"));
        match case(Some(&module)) {
            Ok(()) => escaped.push(mutant),
            Err(how) => println!("{} -> {}\n    found: {how}", mutant.from, mutant.to),
        }
    }
    assert!(escaped.is_empty(), "not found: {escaped:#?}");
}

impl Emulator {
    /// From now on runs the module's kernels where it has some of the name asked for.
    pub fn replace(&mut self, module: &Module) {
        lock(&self.handle).replaced.extend(module.kernels.iter().map(|(name, entry)| (*name, *entry)));
    }
}

impl Module {
    /// Compiles the mutated source to a library and loads it, for as long as the program runs.
    pub fn compile(mutant: &Mutant) -> Result<Self, String> {
        let source = csrc().join(mutant.file);
        let text = std::fs::read_to_string(&source).map_err(|e| format!("{}: {e}", source.display()))?;
        let places = text.matches(mutant.from).count();
        if places != 1 {
            return Err(format!("{places} places read so, not one"));
        }
        Self::load(mutant.file, &text.replace(mutant.from, mutant.to))
    }

    /// Compiles and loads kernels that are not part of `csrc`.
    pub fn of_source(source: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(source).map_err(|e| format!("{}: {e}", source.display()))?;
        let name = source.file_name().and_then(|n| n.to_str()).ok_or("a source without a name")?;
        Self::load(name, &text)
    }

    /// `name` is the file's in messages.
    fn load(name: &str, text: &str) -> Result<Self, String> {
        let scratch = Scratch::new()?;
        let file = |name: &str| scratch.0.join(name);
        let write = |name: &str, text: &str| {
            std::fs::write(file(name), text).map_err(|e| format!("{}: {e}", file(name).display()))
        };
        write(name, text)?;
        write("modules.cpp", MODULES)?;
        let compiled = Command::new(env!("SIM_CXX"))
            .args(env!("SIM_FLAGS").split_whitespace())
            .args(["-w", "-shared", "-Wl,-Bsymbolic", "-DSIM_MODULE=sim_module_mutant", "-I"])
            .arg(csrc())
            .args(["-x", "c++"])
            .args([file(name), file("modules.cpp")])
            .args(["-x", "none", "-Wl,--whole-archive"])
            .arg(Path::new(env!("SIM_LIBRARIES")).join("libstrait_sim_core.a"))
            .arg("-Wl,--no-whole-archive")
            .arg("-o")
            .arg(file("mutant.so"))
            .output()
            .map_err(|e| format!("{}: {e}", env!("SIM_CXX")))?;
        if !compiled.status.success() {
            return Err(String::from_utf8_lossy(&compiled.stderr).into_owned());
        }
        open(&file("mutant.so"))
    }
}

fn csrc() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/csrc")
}

/// As build.rs lists them; what it defines is for the mutant's own file.
const MODULES: &str = r#"
#undef SIM_MODULE
#include "dev.h"
extern "C" const sim::Kernel *sim_module_mutant();
extern const sim::Module sim::modules[] = {{"mutant", sim_module_mutant}, {nullptr, nullptr}};
"#;

/// A folder of our own, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, String> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("strait-mutant-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

fn open(path: &Path) -> Result<Module, String> {
    const RTLD_NOW: c_int = 2;
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: a library that was compiled a moment ago from our own sources, and is never unloaded.
    unsafe {
        let library = dlopen(name.as_ptr(), RTLD_NOW);
        if library.is_null() {
            return Err(CStr::from_ptr(dlerror()).to_string_lossy().into_owned());
        }
        let modules = dlsym(library, c"sim_modules".as_ptr());
        let launch = dlsym(library, c"sim_launch".as_ptr());
        if modules.is_null() || launch.is_null() {
            return Err("the library has no emulator".into());
        }
        let modules = std::mem::transmute::<*mut c_void, ModulesFn>(modules);
        let launch = std::mem::transmute::<*mut c_void, LaunchFn>(launch);
        Ok(Module { kernels: table(modules, launch) })
    }
}
