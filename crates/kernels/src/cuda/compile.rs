//! Machine code for a GPU: what the binary holds, else what an earlier start left on disk, else what NVRTC makes of
//! the sources now.

mod cache;
mod nvrtc;

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::thread;

use cache::Cache;
use nvrtc::Nvrtc;
use sources::{HEADERS, MODULES};

/// A file of `csrc`: a header by the name that it is included by, or a module without its ending.
struct Source {
    name: &'static str,
    text: &'static str,
}

/// All of them, as the build found them.
mod sources {
    use super::Source;
    include!(concat!(env!("OUT_DIR"), "/sources.rs"));
}

/// Cubins made at build time: by the feature `cuda-aot`, else none.
mod embedded {
    #[cfg(feature = "cuda-aot")]
    include!(concat!(env!("OUT_DIR"), "/cubins.rs"));
    #[cfg(not(feature = "cuda-aot"))]
    pub(super) const NVCC: Option<super::Version> = None;
    #[cfg(not(feature = "cuda-aot"))]
    pub(super) const CUBINS: &[super::Embedded] = &[];
}

/// One cubin in the binary.
#[cfg_attr(not(feature = "cuda-aot"), allow(dead_code))]
struct Embedded {
    file: &'static str,
    /// Compute capability, as `90`.
    arch: u32,
    cubin: &'static [u8],
}

/// Of CUDA: what a driver offers, or a compiler belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Where machine code may come from, beside the binary.
#[derive(Debug, Clone, Default)]
pub struct CodePaths {
    /// Folder of what was compiled before; `None`: nothing is kept.
    pub cache: Option<PathBuf>,
    /// Folders of CUDA toolkits, in whose `lib64` or `lib` NVRTC is looked for before the system's own places.
    pub toolkits: Vec<PathBuf>,
}

/// Why there is no code for a GPU, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCode {
    /// Neither in the binary, nor anything to make it with.
    #[error(
        "this binary holds no machine code for {target} ({held}), and NVRTC, which makes it at start, is not found: \
         install it (python3 -m pip install {}, or the CUDA toolkit) and set CUDA_HOME to the folder above its lib, or \
         build strait with --features cuda-aot", package(*driver)
    )]
    NoCompiler { target: String, held: String, driver: Version },
    /// A driver loads code of its own major version and older ones.
    #[error(
        "NVRTC is of CUDA {nvrtc}, but the driver only of CUDA {driver}: update the driver, or install an older NVRTC \
         (python3 -m pip install {}) and set CUDA_HOME to the folder above its lib", package(*driver)
    )]
    NewerCompiler { nvrtc: Version, driver: Version },
    /// NVRTC does not know the GPU, or the sources are wrong.
    #[error("NVRTC of CUDA {nvrtc} does not compile {file} for {target}: {log}")]
    Compile { nvrtc: Version, file: &'static str, target: String, log: String },
}

/// What PyPI calls an NVRTC that a driver can load the code of.
fn package(driver: Version) -> &'static str {
    if driver.major < 13 { "nvidia-cuda-nvrtc-cu12" } else { "nvidia-cuda-nvrtc" }
}

/// Where a module's code came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Embedded,
    Cached,
    Compiled,
}

/// One module's code.
#[derive(Debug, Clone)]
pub struct Code {
    /// `csrc/{file}.cu`
    pub file: &'static str,
    pub origin: Origin,
    pub cubin: Cow<'static, [u8]>,
}

/// What this binary holds.
#[derive(Debug, Clone)]
pub struct Holdings {
    /// Source modules.
    pub modules: Vec<&'static str>,
    /// `sm_80`, …: what they are compiled for.
    pub targets: Vec<String>,
    /// Of the compiler that did.
    pub nvcc: Option<Version>,
}

/// What this binary holds.
pub fn holdings() -> Holdings {
    let mut archs: Vec<u32> = embedded::CUBINS.iter().map(|cubin| cubin.arch).collect();
    archs.sort_unstable();
    archs.dedup();
    Holdings {
        modules: MODULES.iter().map(|source| source.name).collect(),
        targets: archs.into_iter().map(target).collect(),
        nvcc: embedded::NVCC,
    }
}

/// NVRTC's version, if there is one to be found.
pub fn nvrtc_version(paths: &CodePaths) -> Option<Version> {
    Nvrtc::open(&paths.toolkits, u32::MAX).map(|nvrtc| nvrtc.version())
}

/// Whether [`code`] would have anything to begin with, without making it.
pub fn can_make_code(arch: u32, driver: Version, paths: &CodePaths) -> Result<(), NoCode> {
    if embedded_for(arch, driver).is_some() {
        return Ok(());
    }
    compiler(arch, driver, paths).map(|_| ())
}

/// Code of the modules `files` for a GPU of compute capability `arch` under a driver.
pub fn code(arch: u32, driver: Version, files: &[&str], paths: &CodePaths) -> Result<Vec<Code>, NoCode> {
    if let Some(arch) = embedded_for(arch, driver) {
        let held = embedded::CUBINS.iter().filter(|held| held.arch == arch && files.contains(&held.file));
        let code = |held: &Embedded| Code {
            file: held.file,
            origin: Origin::Embedded,
            cubin: Cow::Borrowed(held.cubin),
        };
        return Ok(held.map(code).collect());
    }
    let nvrtc = compiler(arch, driver, paths)?;
    let cache = paths.cache.as_deref().map(Cache::new);
    let (nvrtc, cache, target) = (&nvrtc, &cache, &target(arch));
    thread::scope(|scope| {
        let module = |source| scope.spawn(move || compiled(source, target, nvrtc, cache.as_ref()));
        let asked = MODULES.iter().filter(|source| files.contains(&source.name));
        let modules: Vec<_> = asked.map(module).collect();
        let joined = |module: thread::ScopedJoinHandle<'_, _>| module.join().expect("no panic in compiling");
        modules.into_iter().map(joined).collect()
    })
}

/// What ptxas is asked for. Tensor cores of 9.0 by warpgroup are reached only by its own name.
fn target(arch: u32) -> String {
    format!("sm_{arch}{}", if arch == 90 { "a" } else { "" })
}

/// The best of the binary's architectures: code runs on its own major version, and on minor ones from its own on.
fn embedded_for(arch: u32, driver: Version) -> Option<u32> {
    embedded::NVCC.filter(|nvcc| nvcc.major <= driver.major)?;
    let runs = |held: &u32| held / 10 == arch / 10 && *held <= arch;
    embedded::CUBINS.iter().map(|cubin| cubin.arch).filter(runs).max()
}

fn compiler(arch: u32, driver: Version, paths: &CodePaths) -> Result<Nvrtc, NoCode> {
    let Some(nvrtc) = Nvrtc::open(&paths.toolkits, driver.major) else {
        let Holdings { targets, nvcc, .. } = holdings();
        let held = match nvcc {
            None => "it holds none at all".into(),
            Some(nvcc) if nvcc.major > driver.major => {
                format!("what it holds is of CUDA {nvcc}, and the driver of CUDA {driver}")
            }
            Some(_) => format!("it holds {}", targets.join(", ")),
        };
        return Err(NoCode::NoCompiler { target: target(arch), held, driver });
    };
    match nvrtc.version() {
        version if version.major > driver.major => Err(NoCode::NewerCompiler { nvrtc: version, driver }),
        _ => Ok(nvrtc),
    }
}

fn compiled(
    source: &'static Source,
    target: &str,
    nvrtc: &Nvrtc,
    cache: Option<&Cache>,
) -> Result<Code, NoCode> {
    let code = |origin, cubin| Code { file: source.name, origin, cubin: Cow::Owned(cubin) };
    let version = nvrtc.version().to_string();
    let texts = HEADERS.iter().chain([source]).flat_map(|source| [source.name, source.text]);
    let texts: Vec<&str> = [target, &version].into_iter().chain(nvrtc::OPTIONS).chain(texts).collect();
    let entry = cache.map(|cache| cache.entry(&format!("{}-{target}", source.name), &texts));
    if let Some(cubin) = entry.as_ref().and_then(cache::Entry::read) {
        return Ok(code(Origin::Cached, cubin));
    }
    let cubin = nvrtc.cubin(source, HEADERS, target).map_err(|log| NoCode::Compile {
        nvrtc: nvrtc.version(),
        file: source.name,
        target: target.into(),
        log,
    })?;
    if let Some(entry) = entry {
        entry.write(&cubin);
    }
    Ok(code(Origin::Compiled, cubin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_made_for_the_names_that_compilers_know() {
        for (arch, expected) in [(80, "sm_80"), (89, "sm_89"), (90, "sm_90a"), (120, "sm_120")] {
            assert_eq!(target(arch), expected);
        }
    }

    #[test]
    fn what_is_missing_is_said_with_the_remedy() {
        let nowhere = CodePaths::default();
        let Some(error) = code(30, Version { major: 13, minor: 0 }, &["probe"], &nowhere).err() else {
            panic!("code for a GPU that no compiler knows");
        };
        let said = error.to_string();
        match error {
            NoCode::NoCompiler { .. } => {
                assert!(said.contains("sm_30") && said.contains("pip install nvidia-cuda-nvrtc"), "{said}");
            }
            // Where an NVRTC is installed, it does not know such a GPU either.
            NoCode::Compile { .. } | NoCode::NewerCompiler { .. } => {
                assert!(said.contains("NVRTC"), "{said}")
            }
        }
    }
}
