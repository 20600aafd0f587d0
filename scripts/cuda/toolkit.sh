#!/usr/bin/env bash
# NVIDIA's compilers from PyPI, in a folder of their own (default target/cuda-toolkit): for scripts/cuda/gates.py, for builds
# with `--features cuda-aot`, and for the test of NVRTC. Some 350 MB; does nothing where it has been done. Needs Python with
# pip, and g++ to run nvcc. Prints where nvcc is.
#
#   NVCC=$(scripts/cuda/toolkit.sh) cargo build --release --features cuda-aot
set -euo pipefail
folder=${1:-$(dirname "$0")/../../target/cuda-toolkit}
packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-nvrtc==13.0.88
    nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86 # not published before 13.2; they read older code
)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [[ $(cat "$folder/packages" 2>/dev/null) != "${packages[*]}" ]]; then
    # In one go: all share a folder, which pip does not add to.
    rm -rf "$folder"/{nvidia,packages,*.dist-info}
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --only-binary :all: --target "$folder" "${packages[@]}" >&2
    echo "${packages[*]}" >"$folder/packages"
fi
echo "$folder/nvidia/cu13/bin/nvcc"
