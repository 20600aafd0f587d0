#!/usr/bin/env python3
"""Write the tables of docs/cuda.md: what each op moves (crates/kernels/examples/cuda_table.rs tells, from the code that
launches it) and what the compiler made of each kernel (crates/kernels/src/cuda/gates.json). Standard library only.

    scripts/cuda/table.py           writes them
    scripts/cuda/table.py --check   fails if they are not what is written
"""

import argparse
import json
import subprocess
import sys

import gates

DOCUMENT = gates.ROOT / "docs/cuda.md"
BATCHES = [1, 16, 64, 256]
PROMPT_OP = "attend_expanded"
# Of an H100 SXM, on paper.
BYTES_PER_MICROSECOND = 3.35e6
FLOP_PER_MICROSECOND = 989e6
ARCH = "sm_90a"


def launches():
    """Rows of tokens, op, bytes read and written, kernel, threads, grid, dynamic shared memory."""
    command = ["cargo", "run", "--quiet", "--locked", "-p", "kernels", "--example", "cuda_table"]
    out = subprocess.run(command, cwd=gates.ROOT, check=True, capture_output=True, text=True).stdout
    for line in out.splitlines():
        tokens, op, read, written, kernel, threads, grid, shared = line.split("\t")
        yield int(tokens), op, int(read), int(written), kernel, int(threads), grid, int(shared)


def amount(n):
    for unit, size in [("GB", 1e9), ("MB", 1e6), ("KB", 1e3)]:
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n} B"


def microseconds(n):
    return f"{n / BYTES_PER_MICROSECOND:.3g}" if n >= 1e5 else "0.0"


def ops(rows):
    lines = [
        "| op | " + " | ".join(f"B {b}: read, written, µs at least" for b in BATCHES) + " | measured |",
        "|---|" + "---|" * (len(BATCHES) + 1),
    ]
    moved = {(op, tokens): (read, written) for tokens, op, read, written, *_ in rows}
    for op in dict.fromkeys(op for _, op, *_ in rows if op != PROMPT_OP):
        cells = []
        for b in BATCHES:
            read, written = moved[op, b]
            cells.append(f"{amount(read)}, {amount(written)}, {microseconds(read + written)}")
        lines.append(f"| {op} | " + " | ".join(cells) + " | not yet |")
    return lines


def prompts(rows):
    """DeepSeek-V2-Lite: 16 heads, keys of 128 + 64 numbers, values of 128, from 512."""
    lines = ["| prompt | read, written | operations | µs at least | measured |", "|---|---|---|---|---|"]
    for tokens, read, written in dict.fromkeys((t, r, w) for t, op, r, w, *_ in rows if op == PROMPT_OP):
        pairs = tokens * (tokens + 1) // 2
        flop = 2 * 16 * (pairs * (192 + 128) + tokens * 512 * (128 + 128))
        least = max((read + written) / BYTES_PER_MICROSECOND, flop / FLOP_PER_MICROSECOND)
        moved = f"{amount(read)}, {amount(written)}"
        lines.append(f"| {tokens:,} tokens | {moved} | {flop / 1e9:.3g} G | {least:.3g} | not yet |")
    return lines


def kernels(rows):
    """Of the kernels that these launches name, and then of all others but those of tests and measurements."""
    files = json.loads(gates.SNAPSHOT.read_text()).items()
    compiled = {name: archs for file, of in files if file not in ("probe", "peaks") for name, archs in of.items()}
    shared = {}
    used = {}
    for tokens, op, _, _, kernel, _, grid, dynamic in rows:
        shared[kernel] = max(shared.get(kernel, 0), dynamic)
        used.setdefault(kernel, {}).setdefault(op, []).append(f"{tokens}: {grid}")
    lines = [
        "| kernel | op, with its grid at B | threads | registers | shared memory | blocks an SM | HMMA | LDSM | LDGSTS |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in [*used, *sorted(set(compiled) - set(used))]:
        figures = {"shared": 0, **compiled[name][ARCH]}
        grids = "; ".join(f"{op} {', '.join(grid)}" for op, grid in used.get(name, {}).items())
        if name in used:
            fit = gates.blocks_that_fit(ARCH, figures, shared[name])
            memory = amount(shared[name])
        else:
            fit, memory = "", ""
        counts = " | ".join(str(figures.get(what, 0)) for what in ["HMMA", "LDSM", "LDGSTS"])
        lines.append(
            f"| `{name}` | {grids} | {figures['threads']} | {figures['registers']} | {memory} | {fit} | {counts} |"
        )
    return lines


def between(text, name, lines):
    begin, end = f"<!-- {name}: written by scripts/cuda/table.py -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the document is as it would be written")
    check = parser.parse_args().check
    rows = list(launches())
    before = DOCUMENT.read_text()
    after = before
    for name, lines in [("ops", ops), ("prompts", prompts), ("kernels", kernels)]:
        after = between(after, name, lines(rows))
    if check and before != after:
        sys.exit("docs/cuda.md is not what the code says: run scripts/cuda/table.py and commit what it writes")
    if not check:
        DOCUMENT.write_text(after)


if __name__ == "__main__":
    main()
