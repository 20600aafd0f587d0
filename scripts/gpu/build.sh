#!/usr/bin/env bash
# Builds the GPU kit where there is no GPU: one binary with machine code for every GPU that is served and with the emulator to
# compare with. Prints where it is: target/gpu-kit/gpu_kit. Wants a Rust toolchain, g++, and Python with pip for nvcc
# ($NVCC names another one).
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
NVCC=${NVCC:-$(scripts/cuda/toolkit.sh "$target/cuda-toolkit")}
export NVCC
cargo build --release --locked -p model --features sim,cuda-aot --example gpu_kit >&2
mkdir -p target/gpu-kit
binary=target/gpu-kit/gpu_kit
cp "$target/release/examples/gpu_kit" "$binary"
strip "$binary"

# What it asks of the machine that it is carried to: Ubuntu 22.04 or later.
at_most() {
    local prefix=$1 most=$2 newest
    newest=$(objdump -T "$binary" | grep -o "${prefix}_[0-9.]*" | sort -uV | tail -n 1)
    echo "asks for ${newest:-no ${prefix}}, at most ${prefix}_$most" >&2
    [[ -z $newest || $(printf '%s\n' "$newest" "${prefix}_$most" | sort -V | tail -n 1) == "${prefix}_$most" ]]
}
at_most GLIBC 2.34
at_most GLIBCXX 3.4.30
if ldd "$binary" | grep -iE 'cuda|nvidia|nvrtc' >&2; then exit 1; fi
bytes=$(stat -c %s "$binary")
echo "$bytes bytes, less than 40000000" >&2
((bytes < 40000000))
echo "$PWD/$binary"
