//! NVRTC makes machine code of every kernel, for every architecture. `NVRTC_HOME` names a toolkit's folder; CI sets it.

use kernels::cuda::{CodePaths, Origin, Version, code, holdings, nvrtc_version};
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

fn holds(cubin: &[u8], kernel: &str) -> bool {
    let section = format!(".text.{kernel}\0");
    cubin.windows(section.len()).any(|bytes| bytes == section.as_bytes())
}

#[test]
#[ignore = "needs NVRTC: NVRTC_HOME=FOLDER, which scripts/cuda/toolkit.sh fills"]
fn every_kernel_compiles_for_every_architecture() {
    let home = std::env::var_os("NVRTC_HOME").expect("NVRTC_HOME is set");
    let cache = tempfile::tempdir().unwrap();
    let paths = CodePaths { cache: Some(cache.path().into()), toolkits: vec![home.into()] };
    let nvrtc = nvrtc_version(&paths).expect("an NVRTC in NVRTC_HOME");
    let (driver, modules) = (Version { major: nvrtc.major, minor: 9 }, holdings().modules);
    for arch in ARCHS {
        let made = code(arch, driver, &modules, &paths).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(made.len(), modules.len());
        for code in &made {
            assert_eq!(code.origin, Origin::Compiled, "{}", code.file);
            let there = |name: &String| arch >= 90 || !name.starts_with("sm90");
            for kernel in kernels_of(code.file).into_iter().filter(there) {
                assert!(holds(&code.cubin, &kernel), "{kernel} for {arch}");
            }
        }
        // What is made once is found again.
        let again = code(arch, driver, &modules, &paths).unwrap();
        assert!(again.iter().all(|code| code.origin == Origin::Cached));
        assert!(made.iter().zip(&again).all(|(made, again)| made.cubin == again.cubin));
    }
    let older = Version { major: nvrtc.major - 1, minor: 9 };
    let error = code(80, older, &modules, &paths).unwrap_err().to_string();
    assert!(error.contains("update the driver"), "{error}");
    let error = code(30, driver, &modules, &paths).unwrap_err().to_string();
    assert!(error.contains("sm_30") && error.contains("architecture"), "{error}");
}
