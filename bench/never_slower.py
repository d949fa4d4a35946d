#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prefill that may attend exactly (--when pays) beside dense attention, in turn, in one process.

usage: bench/never_slower.py [--quick] [--limit 1.02] [--json FILE] [options of the shape]
For lengths of 64 to 32K tokens, chunks, and coverages that keep anything from a few tokens to all
of them: the time over dense's. A row counts as slower if its ratio is over the limit and the middle
halves of the two samples lie apart. Exits 1 if there is one.
"""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
GRID = {  # queries at once, 0 = the whole prompt: lengths
    0: (64, 256, 512, 1024, 1536, 2048, 4096, 8192),
    256: (2048, 4096, 8192, 16384, 32768),
    512: (2048, 4096, 8192, 16384, 32768),
    1024: (2048, 4096, 8192, 16384, 32768),
    2048: (4096, 8192, 16384, 32768),
}
QUICK = {0: (512, 2048, 4096), 512: (4096, 16384), 2048: (4096, 8192, 16384)}
COVERAGES = "0.3,0.1,0.05,0.02,0.005,0.001,1e-4,1e-6"
QUICK_COVERAGES = "0.1,0.02,0.005,1e-4"


def measure(options, chunk, lengths):
    command = [options.program, "bench", "prefill", "--when", "pays", "--peer", "dense", "--json"]
    command += ["--tokens", ",".join(map(str, lengths)), "--chunk", str(chunk)]
    command += ["--coverage", options.coverages, "--precision", options.precision]
    command += ["--share", "kv_group", "--dropped", "local", "--sink", "64", "--band", "256"]
    command += ["--heads", str(options.heads), "--kv-heads", str(options.kv_heads)]
    command += ["--dim", str(options.dim)]
    if options.cpu_time:
        command += ["--cpu-time", "--threads", "1"]
    else:
        command += ["--threads", str(options.threads)]
    command += ["--repeat", "7", "--min-time", str(options.min_time), "--max-time", "2"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr.strip())
    return json.loads(done.stdout)


def judge(row, limit):
    dense = row["peers"]["dense"]
    ratio = row["median_s"] / dense["median_s"]
    apart = row["spread"]["p25"] > dense["spread"]["p75"]
    return {
        **{key: row[key] for key in ("tokens", "q_tokens", "coverage", "kept", "served")},
        "median_s": row["median_s"],
        "dense_s": dense["median_s"],
        "ratio": ratio,
        "slower": ratio > limit and apart,
    }


def print_row(row):
    print(
        f"{row['tokens']:>7} {row['q_tokens']:>7} {row['coverage']:>9.3g} {row['kept']:6.3f} "
        f"{row['served']:6.3f} {1e3 * row['dense_s']:9.2f} ms {row['ratio']:6.3f}"
        + ("  slower" if row["slower"] else ""),
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer of all")
    parser.add_argument("--limit", type=float, default=1.02, help="time over dense's")
    parser.add_argument("--precision", default="bf16", choices=["f32", "bf16"])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=14)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="one thread's, not the clock's")
    parser.add_argument("--min-time", type=float, default=0.2, help="seconds of samples of each")
    parser.add_argument("--coverages", help="comma-separated")
    parser.add_argument("--chunks", help="comma-separated, of: " + ", ".join(map(str, GRID)))
    parser.add_argument("--json", type=pathlib.Path)
    program = ROOT / "build" / "release" / "bin" / "tokensparse"
    parser.add_argument("--program", type=pathlib.Path, default=program)
    options = parser.parse_args()
    grid = QUICK if options.quick else GRID
    if options.chunks:
        grid = {int(chunk): GRID[int(chunk)] for chunk in options.chunks.split(",")}
    options.coverages = options.coverages or (QUICK_COVERAGES if options.quick else COVERAGES)
    print(" tokens queries  coverage   kept served        dense  ratio")
    rows, document = [], {}
    for chunk, lengths in grid.items():
        document = measure(options, chunk, lengths)
        for row in document["rows"]:
            rows.append(judge(row, options.limit))
            print_row(rows[-1])
    worst = max(rows, key=lambda row: row["ratio"])
    slower = sum(row["slower"] for row in rows)
    print(f"{len(rows)} rows, {slower} slower than {options.limit} x dense, worst {worst['ratio']:.3f}")
    if options.json:
        kept = {key: document[key] for key in ("version", "date", "machine", "notes")}
        shape = {key: getattr(options, key) for key in ("precision", "dim", "heads", "kv_heads")}
        text = json.dumps({**kept, **shape, "limit": options.limit, "rows": rows}, indent=1)
        options.json.write_text(text + "\n")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
