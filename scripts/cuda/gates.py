#!/usr/bin/env python3
"""Compile each CUDA kernel, and hold what the compiler made of it against crates/kernels/src/cuda/gates.json.

A kernel fails that spills registers, keeps a stack frame, touches local memory, or draws a warning from nvcc or ptxas. One
that differs from the file in registers, shared memory or the number of tensor, copy, barrier, memory or special-function
instructions fails too, until `--update` takes it over: then the difference is part of the commit. Standard library only.

    scripts/cuda/gates.py --nvcc "$(scripts/cuda/toolkit.sh)"
    scripts/cuda/gates.py --update gemm mla
    scripts/cuda/gates.py --list                   what each kernel takes, and how many blocks fit
    scripts/cuda/gates.py --self-test              see a kernel that spills fail, and a new one
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "crates/kernels/src/cuda/csrc"
SNAPSHOT = ROOT / "crates/kernels/src/cuda/gates.json"
ARCHS = ["sm_80", "sm_89", "sm_90a"]

# What is counted: name, and the instructions that it stands for, as cuobjdump writes them.
COUNTED = [
    ("HMMA", r"HMMA"),
    ("HGMMA", r"HGMMA"),
    ("LDSM", r"LDSM"),
    ("LDGSTS", r"LDGSTS"),
    ("UBLKCP", r"UBLKCP|UTMALDG"),
    ("BAR", r"BAR"),
    ("MUFU", r"MUFU"),
    ("LDG.128", r"LDG\S*\.128"),
    ("STG.128", r"STG\S*\.128"),
    ("ATOM", r"ATOMG?"),
    ("RED", r"REDG?"),
    ("LDL", r"LDL"),
    ("STL", r"STL"),
]
COUNTED = [(name, re.compile(rf"(?:{pattern})(?![A-Z0-9])")) for name, pattern in COUNTED]
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)")
# Of a kernel that passes, whatever the file says.
FORBIDDEN = {"stack": 0, "spill_stores": 0, "spill_loads": 0, "LDL": 0, "STL": 0}

# Of a multiprocessor, by the CUDA C++ programming guide, "Compute capabilities": threads, blocks, bytes of shared memory.
# Registers are 65,536, taken by 256 a warp; a block takes 1 KiB of shared memory beside its own.
LIMITS = {"sm_80": (2048, 32, 164 << 10), "sm_89": (1536, 24, 100 << 10), "sm_90a": (2048, 32, 228 << 10)}


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


def compiled(nvcc, source, arch, folder):
    """What one file's kernels take: ({kernel: {figure: number}}, warnings)."""
    cubin = pathlib.Path(folder) / f"{source.stem}.{arch}.cubin"
    number = arch.removeprefix("sm_")
    flags = ["-std=c++17", "--fmad=false", "-gencode", f"arch=compute_{number},code={arch}", "-cubin"]
    flags += ["-diag-suppress", "177"]
    flags += ["-Xptxas", "-v,-warn-spills,-warn-lmem-usage", "-I", SOURCES]
    out, err = run([nvcc, *flags, source, "-o", cubin])
    kernels, name = {}, None
    for line in (out + err).splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
            kernels[name] = {"registers": 0, "shared": 0}
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            figures = zip(["stack", "spill_stores", "spill_loads"], map(int, match.groups()))
            # Of a function that was not inlined, too.
            for figure, n in figures:
                kernels[name][figure] = kernels[name].get(figure, 0) + n
        elif match := re.search(r"Used (\d+) registers", line):
            kernels[name]["registers"] = int(match[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                kernels[name]["shared"] = int(shared[1])
    warnings = [line for line in (out + err).splitlines() if "warning" in line.lower()]
    bin_folder = pathlib.Path(nvcc).parent
    count_instructions(run([bin_folder / "cuobjdump", "-sass", cubin])[0], kernels)
    read_threads(run([bin_folder / "cuobjdump", "-elf", cubin])[0], kernels)
    return kernels, warnings


def count_instructions(sass, kernels):
    figures = None
    for line in sass.splitlines():
        if match := re.search(r"Function : (\w+)", line):
            figures = kernels[match[1]]
        elif match := INSTRUCTION.match(line):
            for name, pattern in COUNTED:
                if pattern.match(match[1]):
                    figures[name] = figures.get(name, 0) + 1


def read_threads(elf, kernels):
    """The launch bound, which is in the section .nv.info.KERNEL."""
    figures, wanted = None, False
    for line in elf.splitlines():
        if match := re.match(r"\.nv\.info\.(\w+)", line):
            figures = kernels.get(match[1])
        elif "EIATTR_MAX_THREADS" in line:
            wanted = figures is not None
        elif wanted and (match := re.search(r"Value:\s*0x([0-9a-f]+)", line)):
            figures["threads"], wanted = int(match[1], 16), False


def blocks_that_fit(arch, figures, dynamic):
    """Blocks on one multiprocessor at the same time."""
    threads_max, blocks_max, shared_max = LIMITS[arch]
    threads = figures["threads"]
    warps = -(-threads // 32)
    registers = -(-figures["registers"] * 32 // 256) * 256
    # Registers are dealt out to the four parts of a multiprocessor, whole warps each.
    by_registers = 4 * (65536 // 4 // registers) // warps
    own = figures["shared"] if arch != "sm_90a" else max(figures["shared"] - 1024, 0)  # there it counts the system's
    by_shared = shared_max // (1024 + -(-(own + dynamic) // 128) * 128)
    return min(threads_max // threads, blocks_max, by_registers, by_shared)


def wrong_with(kernel, arch, figures):
    bad = [f"{name} {figures[name]}" for name, most in FORBIDDEN.items() if figures.get(name, 0) > most]
    if figures["registers"] * figures.get("threads", 0) > 65536:
        bad.append(f"{figures['registers']} registers x {figures['threads']} threads do not fit")
    return [f"{kernel} {arch}: {', '.join(bad)}"] if bad else []


def kept(figures):
    """For the file: what is not 0 anyway."""
    return {name: n for name, n in figures.items() if n or name == "registers"}


def differences(before, after):
    if before is None:
        return "is new"
    if after is None:
        return "is gone"
    names = [name for name in {**before, **after} if before.get(name, 0) != after.get(name, 0)]
    return ", ".join(f"{name} {before.get(name, 0)} -> {after.get(name, 0)}" for name in names)


# 1,024 threads have 64 registers each, for 96 numbers; what is indexed by `at` must lie in memory.
PLANTED = """
#include "dev.h"
#define P_FIELDS(F) F(float *, p) F(int, n) F(int, at)
PARAMS(P, P_FIELDS)
KERNEL(1024, 1, smxx_f32_spilling, P) {
    float x[96];
    for (int i = 0; i < 96; i++) x[i] = ldg_f(p.p + 1024 * i + tid());
    for (int n = 0; n < p.n; n++)
#pragma unroll
        for (int i = 0; i < 96; i++) x[i] = fma_f(x[i], x[(i + 7) % 96], x[(i + 31) % 96]);
#pragma unroll
    for (int i = 0; i < 96; i++) stg_f(p.p + 1024 * i + tid(), x[i]);
}
KERNEL(32, 1, smxx_f32_stack, P) {
    float x[128];
#pragma unroll
    for (int i = 0; i < 128; i++) x[i] = ldg_f(p.p + 32 * i + tid());
    stg_f(p.p + tid(), x[p.at]);
}
KERNEL(32, 1, smxx_f32_fine, P) { stg_f(p.p + tid(), ldg_f(p.p + tid())); }
"""


def self_test(nvcc):
    """Whether the two kernels that must fail do, and the third does not."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "planted.cu"
        source.write_text(PLANTED)
        kernels, warnings = compiled(nvcc, source, "sm_80", folder)
    failing = {name for name, figures in kernels.items() if wrong_with(name, "sm_80", figures)}
    assert failing == {"smxx_f32_spilling", "smxx_f32_stack"}, (failing, kernels)
    assert any("spill" in warning.lower() for warning in warnings), warnings
    assert kernels["smxx_f32_spilling"]["threads"] == 1024 and kernels["smxx_f32_fine"]["registers"] > 0, kernels
    assert differences({"registers": 8, "HMMA": 2}, {"registers": 8}) == "HMMA 2 -> 0"
    assert differences(None, {"registers": 8}) == "is new"
    # 64 registers x 256 threads: 4 blocks; 100 KiB a block: 1 on sm_80 and 2 on sm_90a.
    figures = {"threads": 256, "registers": 64, "shared": 0}
    cases = [("sm_80", 0), ("sm_80", 100 << 10), ("sm_90a", 100 << 10)]
    fit = [blocks_that_fit(arch, figures, size) for arch, size in cases]
    assert fit == [4, 1, 2], fit
    print("the gates close")
    return 0


def write(snapshot):
    """One line a kernel and architecture, so that a change reads well in a diff."""
    lines = []
    for file, kernels in sorted(snapshot.items()):
        inner = []
        for kernel, archs in sorted(kernels.items()):
            rows = ",\n".join(f'      "{arch}": {json.dumps(archs[arch])}' for arch in ARCHS if arch in archs)
            inner.append(f'    "{kernel}": {{\n{rows}\n    }}')
        lines.append(f'  "{file}": {{\n' + ",\n".join(inner) + "\n  }")
    SNAPSHOT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def shared_table(path):
    """Dynamic shared memory: lines of `kernel bytes`."""
    rows = (line.split() for line in pathlib.Path(path).read_text().splitlines() if line.strip())
    return {kernel: int(size) for kernel, size in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("NVCC", ROOT / "target/cuda-toolkit/nvidia/cu13/bin/nvcc")
    parser.add_argument("--nvcc", default=default, help="beside it lies cuobjdump [default: $NVCC, target/cuda-toolkit]")
    parser.add_argument("--update", action="store_true", help="take what is into the file")
    parser.add_argument("--list", action="store_true", help="print what each kernel takes")
    parser.add_argument("--shared", metavar="FILE", help="dynamic shared memory for --list, lines of `kernel bytes`")
    parser.add_argument("--self-test", action="store_true", help="see whether the gates close")
    parser.add_argument("files", nargs="*", help="names in csrc, without .cu [default: all]")
    args = parser.parse_args()
    if not pathlib.Path(args.nvcc).is_file():
        raise SystemExit(f"no nvcc at {args.nvcc}; run scripts/cuda/toolkit.sh")
    if args.self_test:
        return self_test(args.nvcc)
    sources = sorted(SOURCES.glob("*.cu"))
    if unknown := set(args.files) - {source.stem for source in sources}:
        raise SystemExit(f"no such file in csrc: {', '.join(sorted(unknown))}")
    sources = [source for source in sources if not args.files or source.stem in args.files]

    snapshot = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    now, failures = {source.stem: {} for source in sources}, []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(source, arch) for source in sources for arch in ARCHS]
        results = pool.map(lambda job: compiled(args.nvcc, *job, folder), jobs)
        for (source, arch), (kernels, warnings) in zip(jobs, results):
            failures += [f"{source.name} {arch}: {warning}" for warning in warnings]
            for kernel, figures in kernels.items():
                failures += wrong_with(kernel, arch, figures)
                now[source.stem].setdefault(kernel, {})[arch] = kept(figures)

    if args.list:
        dynamic = shared_table(args.shared) if args.shared else {}
        for file, kernels in now.items():
            for kernel, archs in kernels.items():
                for arch, figures in archs.items():
                    fit = blocks_that_fit(arch, {"shared": 0, **figures}, dynamic.get(kernel, 0))
                    said = ", ".join(f"{name} {n}" for name, n in figures.items())
                    print(f"{file} {kernel} {arch}: {fit} blocks fit; {said}")

    gone = {} if args.files else {file: {} for file in snapshot if file not in now}
    changes = []
    for file, kernels in {**now, **gone}.items():
        before = snapshot.get(file, {})
        for kernel in sorted({**before, **kernels}):
            for arch in ARCHS:
                pair = before.get(kernel, {}).get(arch), kernels.get(kernel, {}).get(arch)
                if pair[0] != pair[1]:
                    changes.append(f"{file}: {kernel} {arch}: {differences(*pair)}")
    for line in changes + failures:
        print(line)
    if args.update:
        write({file: kernels for file, kernels in {**snapshot, **now, **gone}.items() if kernels})
    n = sum(len(kernels) for kernels in now.values())
    print(f"{n} kernels of {len(now)} files for {', '.join(ARCHS)}: {len(failures)} fail, {len(changes)} differ")
    if changes and not args.update:
        print(f"if that is meant: scripts/cuda/gates.py --update, and commit {SNAPSHOT.relative_to(ROOT)}")
    return 1 if failures or (changes and not args.update) else 0


if __name__ == "__main__":
    sys.exit(main())
