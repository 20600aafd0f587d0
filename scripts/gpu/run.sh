#!/usr/bin/env bash
# Runs the GPU kit, from a clone of this repository and the binary that build.sh made elsewhere:
#
#   scripts/gpu/run.sh [BINARY] [--quick] [--only STEP,...] [--device sim]
#
# BINARY is target/gpu-kit/gpu_kit unless named. Leaves kit.json and kit.txt in target/gpu-kit; exits with the number of cases
# that failed, 100 at most. Needs no network and no toolkit; what NVIDIA's tools and PyTorch would add is left out without them.
set -uo pipefail
binary=
if (($# > 0)) && [[ $1 != --* ]]; then
    binary=$(realpath "$1")
    shift
fi
cd "$(dirname "$0")/../.."
binary=${binary:-$PWD/target/gpu-kit/gpu_kit}
if [[ ! -x $binary ]]; then
    echo "no kit at $binary: build it with scripts/gpu/build.sh and carry it here" >&2
    exit 101
fi
out=target/gpu-kit
mkdir -p "$out"
clocks() {
    local fields=clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active
    ! command -v nvidia-smi >/dev/null || nvidia-smi --query-gpu="$fields" --format=csv
}
{
    clocks
    GOLDENS_DIR=$PWD/tests/goldens "$binary" --out "$out/kit.json" --torch scripts/gpu/torch_peaks.py "$@"
    status=$?
    clocks
    exit "$status"
} 2>&1 | tee "$out/kit.txt"
exit "${PIPESTATUS[0]}"
