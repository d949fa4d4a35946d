# SPDX-License-Identifier: MIT
"""`tokensparse bench` and scripts/compare-bench: what they print, not how fast anything is.

usage: TOKENSPARSE=path/of/the/program python3 bench_test.py"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROGRAM = os.environ["TOKENSPARSE"]
COMPARE = Path(__file__).resolve().parents[2] / "scripts" / "compare-bench"
QUICK = ("--repeat", "3", "--min-time", "0")
KEYS = set(
    "op backend isa dtype tokens heads kv_heads dim threads median_s gflops floor_share"
    " peers".split()
)


def run(command, **environment):
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def bench(*arguments):
    result = run([PROGRAM, "bench", *arguments, *QUICK, "--json"])
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


class Rows(unittest.TestCase):
    def check(self, row):
        self.assertLessEqual(KEYS, set(row))
        spread = row["spread"]
        times = [spread["min"], spread["p25"], row["median_s"], spread["p75"], spread["max"]]
        self.assertEqual(times, sorted(times))
        self.assertGreater(times[0], 0)
        self.assertGreaterEqual(spread["samples"], 3)
        self.assertGreater(row["gbs"], 0)
        self.assertGreater(row["floor_share"], 0)
        for peer in row["peers"].values():
            self.assertGreater(peer["median_s"], 0)

    def test_every_op_has_its_row(self):
        for op in ("attend", "score", "select", "estimate", "prefill"):
            with self.subTest(op=op):
                document = bench(op, "--tokens", 160, "--heads", 4, "--kv-heads", 2, "--threads", 2)
                (row,) = document["rows"]
                self.check(row)
                self.assertEqual(
                    (row["op"], row["backend"], row["tokens"], row["heads"], row["kv_heads"]),
                    (op, "cpu", 160, 4, 2),
                )
                self.assertEqual((row["dim"], row["threads"], row["dtype"]), (64, 2, "f16"))
                self.assertEqual("dense" in row["peers"], op != "attend")

    def test_a_choice_that_cannot_pay_is_exact(self):
        command = ("prefill", "--tokens", 200, "--heads", 2, "--kv-heads", 1, "--min-tokens", 8)
        command += ("--window", 8, "--coverage", "0.5,0.25", "--cpu-time", "--threads", 1)
        for when, served in (("always", False), ("pays", True)):
            rows = bench(*command, "--when", when)["rows"]
            self.assertEqual([row["coverage"] for row in rows], [0.5, 0.25])
            for row in rows:
                self.assertLess(row["kept"], 1)
                self.assertEqual(row["served"] == 1, served)

    def test_floors_are_measured(self):
        floor = bench("attend", "--tokens", 64, "--threads", 1)["floors"][0]
        self.assertEqual(floor["threads"], 1)
        for name in ("f32_gflops", "copy_gbs", "cached_copy_gbs"):
            self.assertGreater(floor[name], 0)

    def test_lists_make_every_combination(self):
        rows = bench(
            *("attend", "--tokens", "48,96", "--dim", "16,64", "--dtype", "f16,bf16"),
            *("--heads", 2, "--kv-heads", 1, "--isa", "scalar"),
        )["rows"]
        shapes = {(row["tokens"], row["dim"], row["dtype"]) for row in rows}
        self.assertEqual((len(rows), len(shapes)), (8, 8))
        self.assertEqual({row["isa"] for row in rows}, {"scalar"})

    def test_useful_flops_only(self):
        (row,) = bench("attend", "--tokens", 100, "--heads", 2, "--kv-heads", 1, "--dim", 8)["rows"]
        flops = 4 * 8 * 2 * (100 * 101 / 2)  # QK and PV, pairs on and below the diagonal
        self.assertAlmostEqual(row["gflops"] * row["median_s"] * 1e9 / flops, 1, places=9)

        (chunk,) = bench(
            "attend", "--tokens", 100, "--q-tokens", 10, "--heads", 2, "--kv-heads", 1, "--dim", 8
        )["rows"]
        flops = 4 * 8 * 2 * sum(range(91, 101))
        self.assertAlmostEqual(chunk["gflops"] * chunk["median_s"] * 1e9 / flops, 1, places=9)

    def test_kept_shares(self):
        rows = bench(
            *("attend", "--tokens", 600, "--keep", "0.25,0.5", "--min-tokens", 0, "--window", 32),
            *("--heads", 4, "--kv-heads", 2, "--dim", 16),
        )["rows"]
        self.assertEqual([row["kept"] for row in rows], [0.25, 0.5])
        for row in rows:
            kept = row["kept"] * 600
            flops = 4 * 16 * 4 * kept * (kept + 1) / 2
            self.assertAlmostEqual(row["gflops"] * row["median_s"] * 1e9 / flops, 1, places=9)
            self.assertIn("dense", row["peers"])

    def test_parts_of_prefill(self):
        (row,) = bench(
            *("prefill", "--tokens", 400, "--chunk", 300, "--keep", 0.5, "--min-tokens", 0),
            *("--window", 32, "--share", "layer", "--dropped", "local"),
            *("--sink", 2, "--band", 8, "--parts", "--heads", 2, "--kv-heads", 1, "--dim", 8),
        )["rows"]
        self.assertEqual(set(row["parts"]), {"score", "select", "pack", "kept_rows", "attend"})
        for part in row["parts"].values():
            self.assertGreater(part["median_s"], 0)
        self.assertGreater(row["pairs"], 0.2 * 0.5)
        self.assertLess(row["pairs"], 0.5)

    def test_missing_torch_is_said(self):
        result = run(
            [PROGRAM, "bench", "attend", "--tokens", 64, "--peer", "torch", *QUICK, "--json"],
            TOKENSPARSE_PEER_PYTHON="",
        )
        self.assertEqual(result.returncode, 0)
        self.assertIn("TOKENSPARSE_PEER_PYTHON", result.stderr)
        self.assertEqual(json.loads(result.stdout)["rows"][0]["peers"], {})

    def test_gpu_rows(self):
        shape = ("--tokens", 320, "--heads", 4, "--kv-heads", 2, "--dim", 64, "--dtype", "bf16")
        for op in ("attend", "score", "select", "prefill"):
            command = ("bench", op, "--backend", "cuda", *shape, *QUICK, "--json")
            result = run([PROGRAM, *command])
            if result.returncode != 0:
                self.assertEqual(result.returncode, 1)
                self.assertRegex(
                    result.stderr, "backend: (no CUDA device|cuda is not part of this build)"
                )
                self.assertEqual(result.stdout, "")
                continue
            document = json.loads(result.stdout)
            (row,) = document["rows"]
            self.check(row)
            self.assertEqual((row["backend"], row["q_dtype"]), ("cuda", "bf16"))
            self.assertTrue(document["machine"]["gpu"])
            self.assertGreater(document["floors"][0]["bf16_gflops"], 0)

    def test_gpu_has_no_cpu_peers(self):
        for peer in ("torch", "llama.cpp"):
            result = run([PROGRAM, "bench", "attend", "--backend", "cuda", "--peer", peer])
            self.assertEqual(result.returncode, 2)
            self.assertIn(f"--peer: beside --backend cuda runs dense or none, got {peer}", result.stderr)

    def test_wrong_command_lines(self):
        for arguments, words in (
            (["attend", "--heads", 3, "--kv-heads", 2], "multiple"),
            (["attend", "--tokens", 64, "--q-tokens", 65], "--q-tokens"),
            (["attend", "--tokens", 0], "--tokens"),
            (["attend", "--dtype", "int8"], "--dtype"),
            (["attend", "--peer", "nobody"], "--peer"),
            (["attend", "--repeat", 0], "--repeat"),
            (["prefill", "--parts", "--backend", "cuda"], "--parts"),
            ([], "what to bench is not given"),
        ):
            with self.subTest(arguments=arguments):
                result = run([PROGRAM, "bench", *arguments])
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertIn(words, result.stderr)
                self.assertEqual(result.stderr.count("\n"), 1)

    def test_impossible_sizes_fail_before_they_start(self):
        result = run([PROGRAM, "bench", "attend", "--tokens", 1 << 24, "--heads", 64])
        self.assertEqual(result.returncode, 1)
        self.assertIn("GB of memory", result.stderr)


class Compare(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        row = {
            **{"op": "attend", "backend": "cpu", "isa": "avx2", "dtype": "f16", "q_dtype": "f32"},
            **{"precision": "f32", "tokens": 8192, "q_tokens": 8192, "heads": 14, "kv_heads": 2},
            **{"dim": 64, "threads": 2, "share": "head", "kept": 1, "median_s": 1.0},
            "spread": {"min": 0.97, "p25": 0.99, "p75": 1.02, "max": 1.1, "samples": 7},
            "peers": {"llama.cpp": {"median_s": 3.0}},
        }
        self.old = {"rows": [row]}

    def scaled(self, factor):
        new = copy.deepcopy(self.old)
        for row in new["rows"]:
            row["median_s"] *= factor
            row["spread"] = {
                name: value * (1 if name == "samples" else factor)
                for name, value in row["spread"].items()
            }
        return new

    def compare(self, new, *options):
        paths = [self.folder / "old.json", self.folder / "new.json"]
        for path, document in zip(paths, (self.old, new)):
            path.write_text(json.dumps(document))
        return run([sys.executable, COMPARE, *paths, *options])

    def test_within_the_spread(self):
        result = self.compare(self.scaled(1.02))
        self.assertEqual(result.returncode, 0)
        self.assertIn("0 faster (+), 0 slower (-), 1 within", result.stdout)

    def test_beyond_the_spread(self):
        result = self.compare(self.scaled(1.2))
        self.assertTrue(result.stdout.startswith("- "), result.stdout)
        self.assertIn("1 slower", result.stdout)
        self.assertIn("llama.cpp 3.00x -> 2.50x", result.stdout)
        self.assertIn("1 faster", self.compare(self.scaled(0.8)).stdout)

    def test_fail_slower(self):
        self.assertEqual(self.compare(self.scaled(1.2), "--fail-slower", 10).returncode, 1)
        self.assertEqual(self.compare(self.scaled(1.2), "--fail-slower", 30).returncode, 0)

    def test_wide_spread_hides_a_small_move(self):
        self.old["rows"][0]["spread"]["p75"] = 1.5
        self.assertIn("1 within", self.compare(self.scaled(1.2)).stdout)

    def test_what_is_in_one_file_only(self):
        new = self.scaled(1.0)
        new["rows"].append({**new["rows"][0], "tokens": 4096})
        self.assertIn("1 in one file only", self.compare(new).stdout)

    def test_files_that_are_no_benchmarks(self):
        for new in ({}, [], {"rows": [{"op": "attend"}]}, {"rows": []}):
            with self.subTest(new=new):
                result = self.compare(new)
                self.assertEqual((result.returncode, result.stdout), (2, ""))
                self.assertEqual(result.stderr.count("\n"), 1)
        self.assertEqual(run([sys.executable, COMPARE, "nowhere", "nowhere"]).returncode, 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
