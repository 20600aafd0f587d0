//! What this machine offers: cores, and memory that is free to take.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::thread::available_parallelism;

use kernels::cuda::CodePaths;

/// Threads to compute with: one a physical core, as far as this process may use them. A second
/// thread of a core shares its arithmetic units and its way to memory, and only makes both wait.
pub(crate) fn default_threads() -> usize {
    let allowed = available_parallelism().map_or(1, usize::from);
    fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| physical_cores(&text))
        .unwrap_or(allowed)
        .min(allowed)
}

/// Threads that HTTP is served on: the model needs the others, and a request that wakes fewer threads is
/// answered sooner (`strait bench added` on two cores: 80 µs with one, 105 with two).
pub(crate) fn http_threads() -> usize {
    (available_parallelism().map_or(1, usize::from) / 4).clamp(1, 8)
}

/// Where compiled kernels are kept, and where CUDA toolkits lie.
pub(crate) fn code_paths() -> CodePaths {
    let folder = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(folder);
    CodePaths {
        cache: cache.map(|cache| cache.join("strait/kernels")),
        toolkits: named.chain([PathBuf::from("/usr/local/cuda")]).collect(),
    }
}

/// Distinct pairs of socket and core; `None` where the file does not tell (other than x86).
fn physical_cores(cpuinfo: &str) -> Option<usize> {
    let mut cores = HashSet::new();
    for processor in cpuinfo.split("\n\n") {
        let field = |name: &str| {
            let line = processor
                .lines()
                .find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
            line.split(':').nth(1).map(str::trim)
        };
        if let (Some(socket), Some(core)) = (field("physical id"), field("core id")) {
            cores.insert((socket, core));
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Bytes that can be taken without pushing others out, within the limit of this process's control
/// group. `None` where the system does not say (other than Linux).
pub(crate) fn available_memory() -> Option<u64> {
    let machine = meminfo_available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(cgroup_available().map_or(machine, |group| group.min(machine)))
}

fn meminfo_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// What is left of a container's limit (cgroup 2); file pages that nobody uses count as free.
fn cgroup_available() -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    let (max, current) = (number("memory.max")?, number("memory.current")?);
    let stat = fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    let idle =
        stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok()).unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(idle)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_and_memory_as_linux_tells_them() {
        let processor =
            |socket, core| format!("processor\t: 0\nphysical id\t: {socket}\ncore id\t\t: {core}\n");
        let two_cores_of_two_threads =
            [processor(0, 0), processor(0, 1), processor(0, 0), processor(0, 1)].join("\n");
        assert_eq!(physical_cores(&two_cores_of_two_threads), Some(2));
        assert_eq!(physical_cores("BogoMIPS : 50\n"), None);
        assert_eq!(meminfo_available("MemTotal: 9 kB\nMemAvailable:      2048 kB\n"), Some(2 << 20));
        assert_eq!(meminfo_available("MemTotal: 9 kB\n"), None);
    }
}
