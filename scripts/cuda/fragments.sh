#!/usr/bin/env bash
# A second opinion on what the emulator cannot know by itself: how the operands of the tensor cores lie in registers. Fetches
# NVIDIA's CuTe headers (some 60 MB unpacked, from PyPI) into a temporary folder and compares. Needs Python with pip, and g++.
set -euo pipefail
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$folder" \
    nvidia-cutlass==4.2.0.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
cuda=$folder/nvidia/cu13/include
g++ -std=c++17 -w -I"$folder/cutlass_library/source/include" -I"$cuda" -I"$cuda/cccl" fragments.cpp -o "$folder/fragments"
"$folder/fragments"
