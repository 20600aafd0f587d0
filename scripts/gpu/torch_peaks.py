#!/usr/bin/env python3
"""What PyTorch and cuBLAS make of this GPU, for the GPU kit to show beside its own figures: a line of JSON a case.

A large bf16 product, a copy, and the linear layers of DeepSeek-V2-Lite, whose weights rotate so that none is in the L2.
Prints {"absent": why} where there is no PyTorch or no GPU.
"""

import json
import statistics
import sys


def out(**line):
    print(json.dumps(line), flush=True)


try:
    import torch
except Exception as error:  # a broken installation fails in many ways
    out(absent=f"no PyTorch: {type(error).__name__}: {error}")
    sys.exit()
if not torch.cuda.is_available():
    out(absent=f"PyTorch {torch.__version__} sees no GPU")
    sys.exit()


def seconds(run, repeats=20):
    """Median of `run`, by events."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def noise(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def case(name, run, flop=0.0, moved=0.0, times=1):
    took = seconds(run) / times
    numbers = {"us": 1e6 * took}
    if flop:
        numbers["TFLOP/s"] = flop / took / 1e12
    if moved:
        numbers["GB/s"] = moved / took / 1e9
    out(case=name, detail=f"PyTorch {torch.__version__}", numbers=numbers)


def graphed(run):
    """Replays `run` as one graph, so that launches do not count."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def linear(name, rows, cols, tokens):
    copies = max(1, -(-220_000_000 // (2 * rows * cols)))
    weights = [noise(rows, cols) for _ in range(copies)]
    x, y = noise(tokens, cols), torch.empty(tokens, rows, device="cuda", dtype=torch.bfloat16)

    def run():
        for weight in weights:
            torch.mm(x, weight.t(), out=y)

    moved = 2 * (rows * cols + tokens * (rows + cols))
    case(f"{name} x{tokens}", graphed(run), 2.0 * tokens * rows * cols, moved, copies)


def main():
    n = 8192
    a, b = noise(n, n), noise(n, n)
    case("8192^3", lambda: torch.mm(a, b), flop=2.0 * n**3)
    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    case("copy of 1 GiB", lambda: target.copy_(source), moved=2.0 * (1 << 30))
    layers = [
        ("q, kv_a", 3072 + 576, 2048),
        ("o", 2048, 2048),
        ("gate_up (shared)", 5632, 2048),
        ("down (shared)", 2048, 2816),
        ("lm_head", 102_400, 2048),
    ]
    for name, rows, cols in layers:
        for tokens in [1, 16, 64, 256]:
            linear(name, rows, cols, tokens)


main()
