//! Machine code of every kernel, for every architecture: by NVRTC, and in the binary.

#[cfg(not(feature = "cuda-aot"))]
use kernels::cuda::nvrtc_version;
use kernels::cuda::{Code, CodePaths, Origin, Version, code, holdings};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const ARCHS: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// Names in `KERNEL(threads, blocks, name, params)`, as far as they are written out.
fn kernels_of(module: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/cuda/csrc/{module}.cu"));
    let text = fs::read_to_string(path).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').nth(2));
    names.map(|name| name.trim().to_owned()).collect()
}

/// All modules, each with all its kernels that this architecture has, from one origin.
fn check(arch: u32, made: &[Code], origin: Origin) {
    assert_eq!(made.iter().map(|code| code.file).collect::<Vec<_>>(), holdings().modules);
    for code in made {
        assert_eq!(code.origin, origin, "{} for {arch}", code.file);
        let there = |name: &String| arch >= 90 || !name.starts_with("sm90");
        for kernel in kernels_of(code.file).into_iter().filter(there) {
            let section = format!(".text.{kernel}\0");
            let found = code.cubin.windows(section.len()).any(|bytes| bytes == section.as_bytes());
            assert!(found, "{kernel} for {arch}");
        }
    }
}

#[test]
#[cfg(not(feature = "cuda-aot"))]
#[ignore = "needs NVRTC: NVRTC_HOME names a toolkit's folder, which scripts/cuda/toolkit.sh fills"]
fn nvrtc_compiles_every_kernel() {
    let home = std::env::var_os("NVRTC_HOME").expect("NVRTC_HOME is set");
    let cache = tempfile::tempdir().unwrap();
    let paths = CodePaths { cache: Some(cache.path().into()), toolkits: vec![home.into()] };
    let nvrtc = nvrtc_version(&paths).expect("an NVRTC in NVRTC_HOME");
    let driver = Version { major: nvrtc.major, minor: 9 };
    let modules = holdings().modules;
    let made = |arch| code(arch, driver, &modules, &paths);
    for arch in ARCHS {
        let first = made(arch).unwrap_or_else(|error| panic!("{error}"));
        check(arch, &first, Origin::Compiled);
        let again = made(arch).unwrap();
        check(arch, &again, Origin::Cached);
        assert!(first.iter().zip(&again).all(|(first, again)| first.cubin == again.cubin));
    }
    let older = Version { major: nvrtc.major - 1, minor: 9 };
    let error = code(80, older, &modules, &paths).unwrap_err().to_string();
    assert!(error.contains("update the driver"), "{error}");
    let error = made(30).unwrap_err().to_string();
    assert!(error.contains("sm_30") && error.contains("architecture"), "{error}");
}

#[test]
#[cfg(feature = "cuda-aot")]
fn the_binary_holds_every_kernel() {
    let held = holdings();
    let nvcc = held.nvcc.expect("nvcc's version");
    assert_eq!(held.targets, ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"]);
    // 8.7 runs what is made for 8.6.
    for arch in ARCHS.into_iter().chain([87]) {
        let code = code(arch, nvcc, &held.modules, &CodePaths::default()).unwrap();
        check(arch, &code, Origin::Embedded);
    }
    // Of the modules that are asked for, and of no other major version.
    assert_eq!(code(80, nvcc, &["probe"], &CodePaths::default()).unwrap().len(), 1);
    let said = |arch, driver| {
        code(arch, driver, &["probe"], &CodePaths::default()).map(|_| ()).unwrap_err().to_string()
    };
    let older = said(80, Version { major: nvcc.major - 1, minor: 9 });
    assert!(older.contains("the driver") || older.contains("NVRTC"), "{older}");
    let unknown = said(30, nvcc);
    assert!(unknown.contains("sm_30"), "{unknown}");
}
