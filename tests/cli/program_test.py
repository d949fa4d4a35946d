# SPDX-License-Identifier: MIT
"""The program as a user runs it: `apply`, `info`, help, and every way to get it wrong.

usage: TOKENSPARSE=path/of/the/program python3 program_test.py"""

import json
import os
import resource
import subprocess
import tempfile
import unittest
from pathlib import Path

import attention_oracle as oracle
from tensor_files import decode, encode, flatten, random_tensor, with_header

PROGRAM = os.environ["TOKENSPARSE"]


def run(*arguments, **options):
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options
    )


class InFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.source, self.target = self.folder / "in.safetensors", self.folder / "out.safetensors"

    def write(self, q, k, v, dtype="F32"):
        self.source.write_bytes(encode({"q": (dtype, q), "k": (dtype, k), "v": (dtype, v)}))

    def apply(self, *options):
        """Runs apply, expects success and returns its statistics and tensors."""
        result = run("apply", self.source, "--out", self.target, "--json", *options)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return json.loads(result.stdout), decode(self.target.read_bytes())


class Apply(InFolder):
    SHAPES = {"q": (29, 4, 8), "kv": (40, 2, 8)}

    def setUp(self):
        super().setUp()
        self.q = random_tensor(1, *self.SHAPES["q"])
        self.k = random_tensor(2, *self.SHAPES["kv"])
        self.v = random_tensor(3, *self.SHAPES["kv"])
        self.write(self.q, self.k, self.v)

    def check_against_oracle(self, backend, share, dropped, coverage=0.3, keep=0.0, dtype="F32"):
        window, pool, min_tokens, band, tk = 5, 3, 4, 6, len(self.k)
        statistics, tensors = self.apply(
            *("--backend", backend, "--share", share, "--dropped", dropped, "--band", band),
            *("--coverage", coverage, "--keep", keep, "--window", window, "--pool", pool),
            *("--min-tokens", min_tokens),
        )
        num_sets = {"head": 4, "kv_group": 2, "layer": 1}[share]
        s = oracle.scores(self.q, self.k, window, pool)
        count = oracle.kept_prefix(s, coverage, keep, min_tokens, tk)
        sets = oracle.select(s, count, num_sets, tk)
        out = oracle.attend(self.q, self.k, self.v, sets, band if dropped == "local" else 0)

        self.assertLess(statistics["kept"], tk)  # the case must leave something out
        self.assertEqual(statistics["kept"], count + window)
        self.assertEqual(statistics["backend"], backend)
        self.assertEqual(tensors["indices"][:2], ("I32", [num_sets, count + window]))
        self.assertEqual(tensors["indices"][2], flatten(sets))
        self.assertEqual(tensors["out"][:2], (dtype, [29, 4, 8]))
        bound = {"F32": 1e-5, "F16": 2e-3, "BF16": 2e-2}[dtype]
        for got, wanted in zip(tensors["out"][2], flatten(out)):
            self.assertAlmostEqual(got, wanted, delta=bound)

    def test_a_gpu_gives_what_the_cpu_gives_or_says_why_it_cannot(self):
        q, k, v = random_tensor(1, 70, 4, 64), random_tensor(2, 90, 2, 64), random_tensor(3, 90, 2, 64)
        self.write(q, k, v, "F16")
        options = ("--window", 5, "--min-tokens", 4, "--coverage", 0.3)
        result = run("apply", self.source, "--out", self.target, "--backend", "cuda", "--json", *options)
        if result.returncode != 0:
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, "backend: (no CUDA device|cuda is not part of this build)")
            self.assertEqual(result.stderr.count("\n"), 1)
            return
        gpu, statistics = decode(self.target.read_bytes()), json.loads(result.stdout)
        cpu_statistics, cpu = self.apply(*options)
        self.assertEqual(statistics["backend"], "cuda")
        self.assertEqual(statistics["kept"], cpu_statistics["kept"])
        self.assertEqual(gpu["indices"], cpu["indices"])
        for got, wanted in zip(gpu["out"][2], cpu["out"][2]):
            self.assertAlmostEqual(got, wanted, delta=4e-3)

    def test_follows_the_definition(self):
        for backend in ("ref", "cpu"):
            for share in ("head", "kv_group", "layer"):
                for dropped in ("zero", "local"):
                    with self.subTest(backend=backend, share=share, dropped=dropped):
                        self.check_against_oracle(backend, share, dropped)

    def test_keeps_a_fixed_share(self):
        self.check_against_oracle("cpu", "head", "zero", keep=0.5)

    def test_reads_and_writes_half_precision(self):
        for dtype in ("F16", "BF16"):
            with self.subTest(dtype=dtype):
                self.write(self.q, self.k, self.v, dtype)
                self.check_against_oracle("cpu", "kv_group", "local", dtype=dtype)

    def test_coverage_0_is_exact_and_keeps_everything(self):
        statistics, tensors = self.apply("--coverage", 0)
        self.assertEqual((statistics["kept"], statistics["kept_share"]), (40, 1.0))
        self.assertEqual(tensors["indices"][2], list(range(40)) * 4)
        everything = [list(range(40))] * 4
        wanted = flatten(oracle.attend(self.q, self.k, self.v, everything, 0))
        for got, value in zip(tensors["out"][2], wanted):
            self.assertAlmostEqual(got, value, delta=1e-5)

    def test_by_blocks(self):
        tensors = {"q": random_tensor(1, 300, 4, 16), "k": random_tensor(2, 300, 2, 16)}
        tensors["v"] = random_tensor(3, 300, 2, 16)
        self.source.write_bytes(encode({name: ("F32", x) for name, x in tensors.items()}))
        exact, dense = self.apply("--coverage", 0)
        self.assertEqual(exact["pairs_share"], 1)
        blocks = "pooled,block=16,threshold="
        everything, same = self.apply("--coverage", 0, "--blocks", blocks + "1")
        self.assertEqual((everything["pairs_share"], same["out"]), (1, dense["out"]))
        some, out = self.apply("--coverage", 0, "--blocks", blocks + "0.2")
        self.assertEqual(some["kept_share"], 1)
        self.assertTrue(0.05 < some["pairs_share"] < 0.6, some["pairs_share"])
        self.assertNotEqual(out["out"], dense["out"])
        tokens, _ = self.apply("--keep", 0.5, "--min-tokens", 1, "--window", 16)
        both, _ = self.apply("--keep", 0.5, "--min-tokens", 1, "--window", 16, "--blocks", blocks + "0.2")
        self.assertEqual(tokens["kept"], both["kept"])
        self.assertLess(both["pairs_share"], 0.9 * tokens["pairs_share"])

    def test_same_bits_on_any_number_of_threads(self):
        options = ("--coverage", 0.3, "--window", 5, "--min-tokens", 4, "--threads")
        contents = set()
        for threads in (1, 2, 3):
            self.apply(*options, threads)
            contents.add(self.target.read_bytes())
        self.assertEqual(len(contents), 1)

    def test_a_link_to_the_output_stays_a_link(self):
        self.target.write_bytes(b"old")
        link = self.folder / "link"
        link.symlink_to(self.target)
        result = run("apply", self.source, "--out", link)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(link.is_symlink())
        self.assertGreater(len(self.target.read_bytes()), 3)

    def test_one_token(self):
        self.write(*(random_tensor(seed, 1, 1, 4) for seed in (1, 2, 3)))
        _, tensors = self.apply()
        self.assertEqual(tensors["indices"], ("I32", [1, 1], [0]))
        self.assertEqual(tensors["out"][2], flatten(random_tensor(3, 1, 1, 4)))

    def test_tells_a_person_what_it_did(self):
        result = run("apply", self.source, "--out", self.target)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("kept     40 of 40 tokens (100.0 %)", result.stdout)


class BadInput(InFolder):
    def refuse(self, code, part, *arguments, **options):
        """The program fails with one sentence that has `part`, and leaves no file behind."""
        before = sorted(path.name for path in self.folder.iterdir())
        result = run(*arguments, **options)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertRegex(result.stderr, r"\Atokensparse: [^\n]+\n\Z")
        self.assertIn(part, result.stderr)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), before)

    def refuse_file(self, content, part, *options):
        self.source.write_bytes(content)
        self.refuse(1, part, "apply", self.source, "--out", self.target, *options)

    def refuse_tensors(self, part, *options, **changed):
        tensors = {
            "q": ("F32", random_tensor(1, 6, 4, 8)),
            "k": ("F32", random_tensor(2, 8, 2, 8)),
            "v": ("F32", random_tensor(3, 8, 2, 8)),
        }
        tensors.update(changed)
        self.refuse_file(encode({n: t for n, t in tensors.items() if t}), part, *options)

    def test_command_lines(self):
        self.source.write_bytes(encode({}))
        base = ("apply", self.source, "--out", self.target)
        self.refuse(2, "no verb given")
        self.refuse(2, "no verb named fly", "fly")
        self.refuse(2, "--out is required", "apply", self.source)
        self.refuse(2, "IN is required", "apply", "--out", self.target)
        self.refuse(2, "no option --frobnicate; `tokensparse apply", *base, "--frobnicate")
        self.refuse(2, "no option --ouch; `tokensparse apply", "apply", self.source, "--ouch=a")
        self.refuse(2, "no option --dims; `tokensparse bench attend", "bench", "attend", "--dims", 3)
        self.refuse(2, "b is one argument too many", *base, "b")
        self.refuse(2, "--keep: needs a value", *base, "--keep")
        self.refuse(2, "--keep: must be given once", *base, "--keep=1", "--keep=1")
        self.refuse(2, "--threads: must be an integer, got 1.5", *base, "--threads", "1.5")
        self.refuse(
            2, "--dtype: must be one of f32, f16, bf16, got f8", "bench", "attend", "--dtype", "f8"
        )
        self.refuse(2, "--coverage: must be a number between 0 and", *base, "--coverage", "1.5")
        self.refuse(2, "--coverage: must be a number between 0 and", *base, "--coverage", "nan")
        self.refuse(2, "--coverage", *base, "--coverage", "much")
        self.refuse(2, "--keep: must be a number between 0 and 1, got -1", *base, "--keep=-1")
        self.refuse(2, "--pool: must be an odd integer between 1 and 1023, got 4", *base, "--pool", "4")
        self.refuse(2, "--sink: must be an integer between 0 and 1073741824, got -1", *base, "--sink=-1")
        self.refuse(2, "--window: must be an integer between 1 and 1048576, got 0", *base, "--window", "0")
        self.refuse(2, "between 0 and 0.9999999, got 1", *base, "--coverage", "1")
        self.refuse(2, "what to bench is not given; `tokensparse bench --help` lists it", "bench")
        self.refuse(2, "--window", *base, "--window", "99999999999999999999")
        self.refuse(2, "--share: must be one of head, kv_group, layer, got all", *base, "--share", "all")
        self.refuse(2, "--backend: must be one of cpu, ref", *base, "--backend", "tpu")
        for blocks, part in (
            ("all", "pattern must be one of none, xattention, flexprefill, minference, pooled, flash, got all"),
            ("xattention,threshold=0", "threshold must be a number above 0 and at most 1, got 0"),
            ("xattention,xattention_threshold=1.5", "xattention_threshold must be a number above 0"),
            ("xattention,gamma=0.9", "gamma must be a parameter of xattention (threshold, stride, block"),
            ("xattention,stride=3", "stride must divide block (128), got 3"),
            ("pooled,block=100", "block must be an integer between 16 and 512, a multiple of 16, got 100"),
            ("pooled 0.9", "pattern must be one of"),
        ):
            self.refuse(2, "--blocks: " + part, *base, "--blocks", blocks)
        self.refuse(2, "--threads: must be between", *base, "--threads=-1")

    def test_files_that_are_not_safetensors(self):
        self.refuse(1, "no such file", "apply", self.folder / "none", "--out", self.target)
        self.refuse(1, "not a regular file", "apply", self.folder, "--out", self.target)
        self.refuse_file(b"", "it has 0 bytes")
        self.refuse_file(b"GGUF" * 10, "beyond the end of the file")
        self.refuse_file(with_header(b"{", length=2**63), "beyond the end of the file")
        self.refuse_file(with_header(b"[]"), "does not begin with {")
        self.refuse_file(with_header(b'{"q":'), "not valid JSON")
        whole = encode({name: ("F32", random_tensor(1, 4, 1, 4)) for name in "qkv"})
        for length in range(0, len(whole), 7):
            self.refuse_file(whole[:length], str(self.source))

    def test_headers_that_lie(self):
        def header(shape, offsets, dtype="F32"):
            return {"q": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}

        self.refuse_file(with_header(header([-1, 2, 2], [0, 16]), b"x" * 16), "got -1")
        self.refuse_file(with_header(header([2**62, 2**62, 4], [0, 16]), b"x" * 16), "overflows")
        self.refuse_file(with_header(header([2, 2, 2], [0, 16]), b"x" * 16), "takes 32")
        self.refuse_file(with_header(header([1, 2, 2], [0, 2**40]), b"x" * 16), "beyond the file")
        twice = b'{"q":{},"q":{}}'
        self.refuse_file(with_header(twice), 'names "q" twice')

    def test_tensors_that_do_not_fit(self):
        rank2 = ("F32", ([6, 32], [0.5] * 192))
        self.refuse_tensors('has no tensor "v"; it has "q", "k"', v=None)
        self.refuse_tensors('"q" must be [tokens, heads, dim], each at least 1, got [6, 32]', q=rank2)
        self.refuse_tensors("got [0, 4, 8]", q=("F32", ([0, 4, 8], [])))
        self.refuse_tensors('"q" must be F32, F16 or BF16, got I32', q=("I32", ([6, 4, 8], [1] * 192)))
        self.refuse_tensors("v.dtype: must be f32 as k, got f16", v=("F16", random_tensor(3, 8, 2, 8)))
        self.refuse_tensors("k.heads: must divide the query heads (4), got 3",
                            k=("F32", random_tensor(2, 8, 3, 8)), v=("F32", random_tensor(3, 8, 3, 8)))
        self.refuse_tensors("v.tokens: must be 8 as k, got 7", v=("F32", random_tensor(3, 7, 2, 8)))
        self.refuse_tensors("v.dim: must equal the head dim of q (8), got 4",
                            v=("F32", random_tensor(3, 8, 2, 4)))
        self.refuse_tensors("more queries (Tq = 9) than keys (Tk = 8)",
                            q=("F32", random_tensor(1, 9, 4, 8)))

    def test_values_that_are_not_finite(self):
        values = (float("nan"), float("inf"), float("-inf"))
        cases = [(d, n, v) for d in ("F32", "F16", "BF16") for n in "qkv" for v in values]
        for dtype, name, value in cases:
            shapes = {"q": (6, 4, 8), "k": (8, 2, 8), "v": (8, 2, 8)}
            tensors = {n: (dtype, random_tensor(1, *shape)) for n, shape in shapes.items()}
            tensors[name][1][5][1][3] = value
            with self.subTest(dtype=dtype, name=name, value=value):
                self.refuse_tensors(f'"{name}" must be finite, but is NaN or infinity at [5, 1, 3]',
                                    **tensors)

    def test_outputs_that_cannot_be_written(self):
        self.source.write_bytes(encode({name: ("F32", random_tensor(1, 64, 2, 64)) for name in "qkv"}))
        base = ("apply", self.source, "--out")
        self.refuse(1, "No such file or directory", *base, self.folder / "no" / "folder")
        self.refuse(1, "not a regular file", *base, "/dev/null")
        source = self.source.read_bytes()
        for name, make in (("hard", os.link), ("soft", os.symlink)):
            make(self.source, self.folder / name)
        for name in (self.source.name, "hard", "soft", "./" + self.source.name):
            # As text: a Path would drop the dot.
            out = f"{self.folder}/{name}"
            self.refuse(1, f"{out}: cannot be written: it is an input", *base, out)
        self.assertEqual(self.source.read_bytes(), source)
        for name in ("hard", "soft"):
            (self.folder / name).unlink()
        self.refuse(1, "not a regular file", *base, self.folder)

        def small_files_only():  # write() fails half-way, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

        self.refuse(1, "cannot be written: File too large", *base, self.target,
                    preexec_fn=small_files_only, restore_signals=False)

    def test_machines_that_lack_what_was_asked_for(self):
        self.source.write_bytes(encode({}))
        self.refuse(1, "isa", "apply", self.source, "--out", self.target, "--isa", "mmx")


class Shell(unittest.TestCase):
    def test_help_teaches(self):
        top = run("--help")
        self.assertEqual((top.returncode, top.stderr), (0, ""))
        for word in ("run", "apply", "profile", "info", "Start here", "Exit codes"):
            self.assertIn(word, top.stdout)
        verb = run("apply", "--help")
        self.assertEqual(verb.returncode, 0)
        for word in ("--coverage", "0.005", "--share", "kv_group", "Examples:", "[Tq, Hq, D]"):
            self.assertIn(word, verb.stdout)

    def test_info(self):
        text = run("info")
        self.assertEqual((text.returncode, text.stderr), (0, ""))
        self.assertIn("llama.cpp", text.stdout)
        info = json.loads(run("info", "--json").stdout)
        self.assertEqual(run("--version").stdout.strip(), info["version"])
        self.assertIn(info["cpu"]["isa"], info["cpu"]["isas"])
        self.assertIn("scalar", info["cpu"]["isas"])
        self.assertGreaterEqual(info["cpu"]["threads"], 1)
        self.assertGreaterEqual(len(info["gpus"]), 0 if info["cuda"] is None else 1)
        for gpu in info["gpus"]:
            self.assertGreater(gpu["memory_bytes"], 1 << 30)
            self.assertRegex(gpu["compute_capability"], r"^[0-9]+\.[0-9]$")
            self.assertIn(gpu["name"], text.stdout)
            self.assertIn("driver " + gpu["driver"], text.stdout)
        if info["cuda"] is None:
            self.assertRegex(text.stdout, "cuda +no: backend: ")
        self.assertEqual(info["plugin"] is None, info["llama_cpp"] is None)
        if info["plugin"] is not None:
            self.assertTrue(os.path.isfile(info["plugin"]))
            self.assertIn("export GGML_BACKEND_PATH=" + info["plugin"] + "\n", text.stdout)

    def test_a_build_without_llama_cpp_says_so(self):
        if json.loads(run("info", "--json").stdout)["llama_cpp"] is not None:
            self.assertEqual(run("run").returncode, 2)  # it is there, and wants its options
            return
        result = run("run", "-m", "x.gguf")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, r"\Atokensparse: `run` needs llama.cpp[^\n]+\n\Z")

    def test_full_stdout(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            result = subprocess.run([PROGRAM, "info"], stdout=full, stderr=subprocess.PIPE, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"cannot write to stdout", result.stderr)


if __name__ == "__main__":
    unittest.main()
