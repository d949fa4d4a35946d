# SPDX-License-Identifier: MIT
"""`run` and `profile` as a user runs them, on tiny random models, and every way to get them wrong.

usage: TOKENSPARSE=the/program WRITE_TINY_MODEL=its/writer python3 run_test.py"""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest
from pathlib import Path

PROGRAM = os.environ["TOKENSPARSE"]
TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it does. " * 20


def write_model(path, *arguments):
    subprocess.run([os.environ["WRITE_TINY_MODEL"], path, *map(str, arguments)], check=True)


def run(*arguments, **options):
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, timeout=120, **options
    )


class WithModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.models = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.models.cleanup)
        cls.tiny = Path(cls.models.name) / "tiny.gguf"
        write_model(cls.tiny, "llama", 4096, 6)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.model = self.folder / "model.gguf"
        os.link(self.tiny, self.model)
        self.text = self.folder / "text.txt"
        self.text.write_text(TEXT)

    def use_weights(self, weights):
        self.model = self.folder / f"{weights}.gguf"
        write_model(self.model, "llama", 4096, 6, weights)

    def arguments(self, *more, model=None, text=None):
        return ["run", "-m", model or self.model, "-f", text or self.text, "-p", "Why?", *more]

    def json_of(self, *more):
        result = run(*self.arguments("-n", 4, "--json", *more))
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        return json.loads(result.stdout)

    def fails(self, pattern, code, *arguments, **options):
        result = run(*arguments, **options)
        stderr = result.stderr.decode()
        self.assertEqual(result.returncode, code, stderr)
        self.assertEqual(result.stdout, b"")
        self.assertRegex(stderr, r"\Atokensparse: [^\n]*\n\Z")
        self.assertRegex(stderr, pattern)


def read_all(terminal):
    """What a terminal was sent, until nobody has it open: it comes in parts."""
    text = b""
    while True:
        try:
            part = terminal.read(65536)
        except OSError:  # EIO, its end
            return text
        if not part:
            return text
        text += part


class Run(WithModel):
    KEYS = {"answer", "ttft_s", "attention_s", "decode_tps", "kept"}

    def check_variant(self, variant):
        self.assertLessEqual(self.KEYS, variant.keys())
        self.assertIsInstance(variant["answer"], str)
        self.assertGreater(variant["ttft_s"], variant["attention_s"])
        self.assertGreater(variant["attention_s"], 0)
        self.assertGreater(variant["decode_tps"], 0)

    def test_compare_runs_the_three_variants(self):
        options = ("--keep", 0.5, "--min-tokens", 64, "--min-keys", 0, "--min-rows", 2)
        options += ("--layers", "2-3", "--ubatch", 700)
        report = self.json_of("--compare", *options)
        self.assertGreater(report["prompt_tokens"], len(TEXT))  # a token a byte
        self.assertEqual(report["sparse_layers"], [2, 3])
        for name in ("stock", "exact", "sparse"):
            self.check_variant(report[name])
        self.assertEqual(report["stock"]["kept"], 1)
        self.assertEqual(report["exact"]["kept"], 1)
        self.assertAlmostEqual(report["sparse"]["kept"], 0.5, delta=0.01)
        self.assertAlmostEqual(report["sparse"]["kept_of_all"], 5 / 6, delta=0.01)
        self.assertEqual(report["exact"]["pairs"], 1)
        self.assertTrue(0.7 < report["sparse"]["pairs"] < 0.9, report["sparse"]["pairs"])
        self.assertNotIn("never_sparse", report)
        self.assertEqual(report["exact"]["answer"], report["stock"]["answer"])

    def test_too_short_to_gain_is_exact_and_says_so(self):
        report = self.json_of("--coverage", 0.1)
        self.assertEqual(report["sparse_layers"], [])
        self.assertEqual(report["why_exact"], "fewer than 4096 tokens (--min-keys)")
        report = self.json_of("--min-keys", 0, "--ubatch", 700)
        self.assertRegex(report["why_exact"], "^fewer than 1024 tokens at once .--min-rows")
        options = ("--keep", 0.5, "--min-tokens", 64, "--layers", "2", "--verbose")
        options += ("--min-rows", 2, "--ubatch", 700)
        for min_keys, exact in ((0, False), (1400, True)):
            result = run(*self.arguments("-n", 2, *options, "--min-keys", min_keys))
            self.assertEqual(b"exact, few keys (--min-keys)" in result.stdout, exact, result.stdout)
        self.fails("--min-keys: must be an integer between", 2, *self.arguments("--min-keys", -1))

    def test_layers_are_the_middle_ones_where_none_are_given(self):
        sparse = ("--keep", 0.5, "--min-tokens", 64, "--min-keys", 0, "--min-rows", 2)
        report = self.json_of(*sparse)
        self.assertEqual((report["layers"], report["sparse_layers"]), ("middle", [1, 2, 3, 4]))
        self.assertFalse(Path(str(self.model) + ".tokensparse.json").exists(), "no profile is made")
        for layers, listed in (("all", [0, 1, 2, 3, 4, 5]), ("1, 3-4", [1, 3, 4]), ("none", [])):
            self.assertEqual(self.json_of(*sparse, "--layers", layers)["sparse_layers"], listed)

    def test_layers_that_cannot_be_sparse_are_not_counted_and_named(self):
        gemma = self.folder / "gemma.gguf"
        write_model(gemma, "gemma3", 4096, 6)  # layers 0, 2 and 4 slide
        sparse = ("--keep", 0.5, "--min-tokens", 64, "--min-keys", 0, "--min-rows", 2)
        result = run(*self.arguments("-n", 2, "--json", *sparse, model=gemma))
        report = json.loads(result.stdout)
        self.assertEqual(report["sparse_layers"], [1, 3])
        self.assertEqual([entry["layers"] for entry in report["never_sparse"]], [[2, 4]])
        self.assertIn("sliding window", report["never_sparse"][0]["why"])
        result = run(*self.arguments("-n", 2, *sparse, model=gemma))
        self.assertRegex(result.stdout, rb"2 sparse layers \(1,3\)")
        self.assertRegex(result.stdout, rb"never sparse, though layers are middle: 2,4: .*sliding")

    def test_a_setting_file(self):
        file = self.folder / "mine.json"
        setting = {"format": "tokensparse setting 1", "layers": [2], "keep": 0.5, "min_keys": 0}
        setting |= {"min_rows": 64, "min_tokens": 64, "model": {"num_layers": 6}}
        file.write_text(json.dumps(setting))
        report = self.json_of("--setting", file, "--ubatch", 700)
        self.assertEqual(report["sparse_layers"], [2])
        # The command line changes what the file says, wherever it stands.
        report = self.json_of("--layers", "3", "--setting", file, "--ubatch", 700)
        self.assertEqual(report["sparse_layers"], [3])
        file.write_text(json.dumps({**setting, "model": {"num_layers": 28}}))
        arguments = self.arguments("--setting", file)
        self.fails("for a model with num_layers 28, this model has 6", 1, *arguments)
        file.write_text(json.dumps({**setting, "pool": 4}))
        self.fails("mine.json: pool must be an odd integer between 1 and 1023, got 4", 1, *arguments)
        self.fails("cannot read /no/such", 1, *self.arguments("--setting", "/no/such"))

    def test_without_compare_runs_one(self):
        report = self.json_of("--coverage", 0)
        self.check_variant(report["exact"])
        self.assertFalse({"stock", "sparse"} & report.keys())
        report = self.json_of("--layers", "none")
        self.assertIn("exact", report)
        report = self.json_of("--sparse-layers", "1")
        self.assertFalse({"stock", "exact"} & report.keys())

    def test_verbose_shows_each_layer_and_why_it_was_left_to_ggml(self):
        gemma = self.folder / "gemma.gguf"
        write_model(gemma, "gemma3", 4096, 4)  # layers 0 and 2 slide
        result = run(*self.arguments("-n", 2, "--verbose", "--coverage", 0, model=gemma))
        self.assertEqual(result.returncode, 0)
        lines = result.stdout.decode().splitlines()
        layers = [line for line in lines if line.split()[:1] in (["0"], ["1"], ["2"], ["3"])]
        self.assertEqual(len(layers), 4)
        for number, line in enumerate(layers):
            self.assertEqual("sliding window" in line, number % 2 == 0, line)
        self.assertIn(b"llama", result.stderr)

    def test_json_comes_alone_and_quiet_means_quiet(self):
        result = run(*self.arguments("-n", 2, "--coverage", 0))
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertIn(b"first token", result.stdout)

    def test_reads_texts_of_any_encoding_or_says_why_not(self):
        self.text.write_bytes(b"caf\xc3\xa9 x")
        tokens = self.json_of("--coverage", 0)["prompt_tokens"]
        for same in (b"\xef\xbb\xbfcaf\xc3\xa9 x", b"caf\xe9 x"):
            self.text.write_bytes(same)
            self.assertEqual(self.json_of("--coverage", 0)["prompt_tokens"], tokens)
        result = run(*self.arguments("-n", 1, "--coverage", 0))
        self.assertRegex(result.stderr, rb"note: \S+text.txt is not all UTF-8; 1 byte was read as")
        self.text.write_bytes("text".encode("utf-16"))
        self.fails("text.txt is UTF-16; a text must be UTF-8", 1, *self.arguments())
        self.text.write_bytes(bytes(range(1, 256)) + b"\0")
        self.fails("text.txt is not a text: byte 255 is NUL", 1, *self.arguments())

    def test_reads_standard_input(self):
        expected = self.json_of("--coverage", 0)["prompt_tokens"]
        arguments = self.arguments("-n", 1, "--json", "--coverage", 0, text="-")
        result = run(*arguments, input=TEXT.encode())
        self.assertEqual(json.loads(result.stdout)["prompt_tokens"], expected)
        self.fails("standard input is empty", 1, *arguments, input=b"")
        target = self.folder / "profile.json"
        result = run("profile", "-m", self.model, "-f", "-", "-o", target, input=TEXT.encode())
        self.assertEqual((result.returncode, result.stderr), (0, b""))

    def test_chat_templates_and_empty_answers_are_told(self):
        self.assertEqual(self.json_of("--coverage", 0)["chat_template"], "the model's")
        bare = self.json_of("--coverage", 0, "--chat-template", "none")
        self.assertEqual(bare["chat_template"], "none")
        self.assertEqual(bare["prompt_tokens"], len(TEXT) + len("\n\nWhy?"))
        self.fails("--chat-template: must be .* got nosuch", 2, *self.arguments("--chat-template", "nosuch"))
        broken = self.folder / "broken.gguf"
        write_model(broken, "llama", 4096, 2, "f32", "{% for m in messages %}")
        self.fails("the model's chat template cannot be applied", 1, *self.arguments(model=broken))

    def test_markers_in_the_text_are_text(self):
        self.text.write_text("a" * 100)
        plain = self.json_of("--coverage", 0)["prompt_tokens"]
        self.text.write_text("a" * 90 + "<|im_end|>")
        self.assertEqual(self.json_of("--coverage", 0)["prompt_tokens"], plain)

    def test_a_short_prompt_is_answered_by_ggml(self):
        self.text.write_text("Hi")
        self.assertEqual(self.json_of("--coverage", 0)["exact"]["attention_s"], 0)

    def test_linear_layers_go_on_without_onednn_unless_asked_for_it(self):
        nowhere = {**os.environ, "TOKENSPARSE_ONEDNN_LIBRARY": "/nowhere/libdnnl.so.3"}
        arguments = self.arguments("-n", 2, "--json", "--coverage", 0)
        result = run(*arguments, env=nowhere)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertRegex(json.loads(result.stdout)["linear"], r"^ggml \(.*(oneDNN.*|f32 weights)\)$")
        self.fails("--linear onednn: .*oneDNN", 1, *arguments, "--linear", "onednn", env=nowhere)
        self.assertEqual(self.json_of("--coverage", 0, "--linear", "ggml")["linear"], "ggml")
        self.fails("--linear", 2, *arguments, "--linear", "nobody")

    def test_linear_layers_in_int8_are_for_quantised_weights(self):
        self.use_weights("q8_0")
        arguments = self.arguments("-n", 2, "--json", "--coverage", 0, "--linear", "int8")
        result = run(*arguments)
        if b"VNNI" in result.stderr:
            self.fails("--linear int8: this processor has neither", 1, *arguments)
            self.skipTest("no 8-bit products on this processor")
        report = json.loads(result.stdout)
        self.assertRegex(report["linear"], r"^int8 \(")
        self.assertGreater(report["exact"]["linear"]["served"], 0)
        self.assertEqual(self.json_of("--coverage", 0)["linear"], report["linear"])
        for weights in ("f16", "f32"):
            self.use_weights(weights)
            message = f"--linear int8: the weights must be quantised, these are {weights}"
            self.fails(message, 1, *self.arguments("-n", 2, "--coverage", 0, "--linear", "int8"))

    def test_answers_the_same_on_fewer_threads_than_asked_for(self):
        # The first token alone: ggml's attention of decoding differs with the number of threads.
        self.use_weights("q8_0")
        arguments = self.arguments("-n", 1, "--json", "--coverage", 0, "--threads", 2)
        for text in (TEXT, TEXT[3:], TEXT[7:]):
            self.text.write_text(text)
            answers = set()
            for limit in ({}, {"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}):
                result = run(*arguments, env={**os.environ, **limit})
                self.assertEqual((result.returncode, result.stderr), (0, b""))
                answers.add(json.loads(result.stdout)["exact"]["answer"])
            self.assertEqual(len(answers), 1, answers)

    def test_threads_spin_as_the_environment_says_or_for_a_short_time(self):
        free = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        free["OMP_DISPLAY_ENV"] = "verbose"  # printed where OpenMP starts
        for given, spins in (({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")):
            result = run(*self.arguments("-n", 1, "--coverage", 0), env={**free, **given})
            self.assertEqual(result.returncode, 0)
            shown = re.findall(rb"GOMP_SPINCOUNT = '(\d+)'", result.stderr)
            self.assertEqual(shown[-1].decode(), spins)

    def test_attention_in_bf16_only_where_linear_layers_are_or_asked_for(self):
        self.use_weights("q8_0")
        report = self.json_of("--coverage", 0)
        rounds = not report["linear"].startswith("ggml")
        self.assertEqual(report["precision"], "bf16" if rounds else "f32")
        plain = self.json_of("--coverage", 0, "--linear", "ggml")
        self.assertEqual(plain["precision"], "f32")
        arguments = self.arguments("-n", 2, "--json", "--coverage", 0, "--precision", "bf16")
        self.fails("precision: bf16 needs isa", 1, *arguments, "--isa", "scalar")
        self.fails("--precision", 2, *arguments[:-1], "f64")

    def test_exact_weights_are_not_rounded_unless_asked_for(self):
        self.use_weights("q8_0")
        probe = run(*self.arguments("-n", 2, "--json", "--coverage", 0, "--linear", "onednn"))
        if b"bf16" not in probe.stdout:
            self.skipTest("oneDNN or a dot product of bf16 is missing")
        for weights, rounds in (("f16", "bf16"), ("f32", "f32")):
            self.use_weights(weights)
            report = self.json_of("--coverage", 0)
            self.assertRegex(report["linear"], rf"^ggml \({weights} weights")
            self.assertEqual(report["precision"], "f32")
            asked = self.json_of("--coverage", 0, "--linear", "onednn")
            self.assertRegex(asked["linear"], "oneDNN .*bf16")
            self.assertEqual(asked["precision"], rounds)

    def test_peaks_count_one_copy_of_the_model(self):
        model = self.folder / "deep.gguf"
        write_model(model, "llama", 4096, 300)
        self.text.write_text(TEXT[:150])
        peaks = []
        for linear in ("ggml", "onednn"):
            options = ("-n", 2, "--json", "--coverage", 0, "--compare", "--linear", linear)
            result = run(*self.arguments(*options, model=model))
            if b"oneDNN" in result.stderr:
                self.skipTest("oneDNN is missing")
            peaks.append(json.loads(result.stdout)["stock"]["peak_bytes"])
        # The library itself takes 13 MB, or 27 where its file lies in memory in larger pieces; a copy
        # of the weights in bf16 would be half of the file.
        self.assertLess(peaks[1] - peaks[0], 0.7 * model.stat().st_size)

    def test_shows_progress_on_a_terminal_only(self):
        for columns in (0, 30, 120):
            reader, terminal = pty.openpty()
            with os.fdopen(reader, "rb", 0) as seen:
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
                arguments = [PROGRAM, *map(str, self.arguments("-n", 2, "--coverage", 0))]
                subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=terminal, check=True)
                os.close(terminal)
                text = read_all(seen)
            self.assertNotIn(b"\x1b", text)
            if columns == 120:
                self.assertRegex(text, rb", the last \d+ in \d+\.\d s")
            if columns != 30:
                self.assertRegex(text, rb"exact: reading the prompt: \d+ of \d+ tokens")
            lines = text.split(b"\r")
            self.assertTrue(any(line.startswith(b"exact: reading the prompt: ") for line in lines))
            self.assertLess(max(map(len, lines)), columns or 80)
            self.assertEqual(lines[-1], b"")  # wiped

    def test_the_answer_comes_as_it_is_decoded_and_once(self):
        answer = self.json_of("--coverage", 0)["exact"]["answer"].encode()
        result = run(*self.arguments("-n", 4, "--coverage", 0))
        shown, rest = result.stdout.split(b"\n\n", 1)
        self.assertEqual(shown.decode(errors="replace").encode(), answer)
        self.assertNotIn(b"answers:", rest)
        self.assertIn(b"prompt tokens", rest)
        arguments = [PROGRAM, *map(str, self.arguments("-n", 2400, "--coverage", 0))]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, bufsize=0) as process:
            self.assertEqual(len(process.stdout.read(1)), 1)
            self.assertIsNone(process.poll())
            process.kill()


class Profile(WithModel):
    SPARSE = ("--profile", "--keep", 0.5, "--min-tokens", 64, "--min-keys", 0, "--min-rows", 2)

    def test_run_makes_stores_and_reuses_it(self):
        stored = Path(str(self.model) + ".tokensparse.json")
        text = self.json_of(*self.SPARSE)
        profile = json.loads(stored.read_text())
        self.assertEqual(text["sparse_layers"], profile["sparse_layers"])
        self.assertEqual(len(profile["sparse_layers"]), 3)  # half of six
        self.assertFalse({0, 5} & set(profile["sparse_layers"]))
        self.assertEqual(len(profile["drift"]), 6)
        profile["sparse_layers"] = [4]
        stored.write_text(json.dumps(profile))
        self.assertEqual(self.json_of(*self.SPARSE)["sparse_layers"], [4])

    def test_the_sparse_layers_drift_least(self):
        target = self.folder / "profile.json"
        result = run("profile", "-m", self.model, "-f", self.text, "-o", target, "--json")
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        profile = json.loads(target.read_text())
        self.assertEqual(json.loads(result.stdout), profile)
        drift = profile["drift"]
        self.assertIsNone(drift[0])
        self.assertIsNone(drift[5])
        highest = max(drift[layer] for layer in profile["sparse_layers"])
        others = [d for layer, d in enumerate(drift) if layer not in profile["sparse_layers"]]
        self.assertGreaterEqual(min(d for d in others if d is not None), highest)

    def test_where_it_cannot_be_stored_it_is_kept_in_the_cache(self):
        Path(str(self.model) + ".tokensparse.json").mkdir()  # stops root as well
        arguments = self.arguments("-n", 2, *self.SPARSE)
        cache = self.folder / "cache"
        env = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        not_there = rb"layer profile not stored: [^\n]+\n"
        result = run(*arguments, env=env)
        self.assertEqual(result.returncode, 0)
        stored = rb"layer profile stored in [^\n]+/cache/tokensparse/[^\n]+\n"
        self.assertRegex(result.stderr, rb"\A" + not_there + stored + rb"\Z")
        self.assertEqual(run(*arguments, env=env).stderr, b"")  # read
        bare = {k: v for k, v in env.items() if k not in ("HOME", "XDG_CACHE_HOME")}
        result = run(*arguments, env=bare)
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stderr, rb"\A" + not_there + rb"\Z")

    def test_a_damaged_one_is_named(self):
        stored = Path(str(self.model) + ".tokensparse.json")
        for text in ("", "{", "[]", '{"format": "tokensparse layer profile 1"}'):
            stored.write_text(text)
            self.fails("model.gguf.tokensparse.json: ", 1, *self.arguments(*self.SPARSE))

    def test_one_of_another_model_is_made_anew(self):
        stored = Path(str(self.model) + ".tokensparse.json")
        self.json_of(*self.SPARSE)
        profile = json.loads(stored.read_text())
        stored.write_text(json.dumps({**profile, "model_bytes": 1, "sparse_layers": [1]}))
        again = self.json_of(*self.SPARSE)
        self.assertEqual(again["sparse_layers"], profile["sparse_layers"])

    def test_only_layers_that_attend_to_the_whole_prompt_are_chosen(self):
        gemma = self.folder / "gemma.gguf"
        write_model(gemma, "gemma3", 4096, 8)  # every second layer slides, from layer 0 on
        target = self.folder / "profile.json"
        result = run("profile", "-m", gemma, "-f", self.text, "-o", target)
        self.assertEqual(result.returncode, 0, result.stderr)
        profile = json.loads(target.read_text())
        self.assertEqual(len(profile["sparse_layers"]), 2)  # half of four
        self.assertLessEqual(set(profile["sparse_layers"]), {1, 3, 5})
        self.assertEqual(result.stdout.count(b"does not attend to the whole prompt"), 4)

    def test_a_short_text_is_refused(self):
        self.text.write_text("short")
        target = self.folder / "profile.json"
        arguments = ("profile", "-m", self.model, "-f", self.text, "-o", target)
        self.fails("at least 256 tokens, got 5", 1, *arguments)
        self.fails("/no/where.json: cannot be written", 1, *arguments[:-1], "/no/where.json")
        self.assertFalse(target.exists())


class Eval(WithModel):
    def eval(self, lines, *more, **options):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        predict = () if "--predict" in more else ("--predict", 4)
        arguments = ("eval", "-m", self.model, *predict, *more)
        return run(*arguments, input=text.encode(), **options)

    def test_a_line_for_each_prompt_and_setting(self):
        file = self.folder / "half.json"
        setting = {"format": "tokensparse setting 1", "name": "half", "keep": 0.5, "min_keys": 0}
        file.write_text(json.dumps({**setting, "min_rows": 64, "min_tokens": 64}))
        prompts = [
            {"id": "one", "prompt": TEXT, "answer": "fox", "mine": [1]},
            {"id": 2, "tokens": [70 + i % 20 for i in range(500)]},
        ]
        options = ("-s", "exact", "-s", file, "-s", "stock")
        result = self.eval(prompts, *options)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        names = [(line["id"], line["setting"]) for line in lines]
        self.assertEqual(names, [(i, s) for i in ("one", 2) for s in ("exact", "half", "stock")])
        exact, half, stock = lines[:3]
        self.assertEqual(exact["answer"], stock["answer"])
        self.assertAlmostEqual(exact["loss"], stock["loss"], delta=0.05)
        self.assertEqual((exact["answer_tokens"], exact["pairs"], exact["kept"]), (3, 1, 1))
        self.assertGreater(exact["loss"], 0)
        self.assertEqual(half["sparse_layers"], [1, 2, 3, 4])
        self.assertAlmostEqual(half["kept"], 0.5, delta=0.01)
        self.assertLess(half["pairs"], 0.8)
        self.assertAlmostEqual(sum(half["pairs_by_layer"]), 6 * half["pairs"], delta=0.01)
        self.assertNotIn("loss", lines[3])
        # A teacher-forced loss does not depend on whether an answer is written as well.
        alone = self.eval(prompts[:1], "-s", "exact", "--predict", 0)
        line = json.loads(alone.stdout)
        self.assertEqual((line["loss"], line["answer"]), (exact["loss"], ""))

    def test_a_line_is_answered_before_the_next_is_written(self):
        command = [PROGRAM, "eval", "-m", self.model, "-s", "exact"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            for number in range(2):
                question = {"id": number, "prompt": "a" * 70, "max_tokens": 1, "answer": "b"}
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                line = json.loads(process.stdout.readline())
                self.assertEqual(line["id"], number)
                self.assertEqual(line["exact"], line["right_tokens"] == 1)

    def test_the_loss_of_the_answer_it_would_give_is_the_lowest(self):
        tokens = [70 + i % 20 for i in range(300)]
        answers = [[65 + i] * 40 for i in range(3)]  # longer than what goes through at once
        prompts = [{"id": i, "tokens": tokens, "answer_tokens": a} for i, a in enumerate(answers)]
        lines = self.eval(prompts, "-s", "exact").stdout.splitlines()
        for line in map(json.loads, lines):
            self.assertEqual(line["answer_tokens"], 40)
            self.assertGreater(line["loss"], 0)
            self.assertLess(line["right_tokens"], 40)

    def test_what_is_wrong_is_named_with_its_line(self):
        good = {"id": 1, "prompt": "a"}
        for line, message in (
            ({"prompt": "a"}, ":2: must have an id"),
            ({"id": 1}, ":2: must have either prompt or tokens"),
            ({"id": 1, "prompt": "a", "tokens": [1]}, ":2: must have either"),
            ({"id": 1, "prompt": 7}, ":2: prompt must be text"),
            ({"id": 1, "tokens": [-1]}, ":2: tokens must be a list of tokens, each at least 0"),
            ({"id": 1, "tokens": []}, ":2: the prompt must not be empty"),
            ({"id": [], "prompt": "a"}, ":2: id must be"),
            ({**good, "max_tokens": -1}, ":2: max_tokens must be an integer between 0 and"),
            ([], ":2: must be a JSON object"),
        ):
            prompts = self.folder / "prompts.jsonl"
            prompts.write_text(json.dumps(good) + "\n" + json.dumps(line) + "\n")
            result = self.eval([], prompts)
            self.assertEqual((result.returncode, result.stdout), (1, b""), line)
            self.assertIn(message, result.stderr.decode())
            self.assertIn("standard input" + message, self.eval([good, line]).stderr.decode())
        prompts.write_text('{"id": 1, "prompt": "a", "max_tokens": 1, "max_tokens": 2}\n')
        self.assertIn(b":1: max_tokens must be given once", self.eval([], prompts).stderr)
        prompts.write_text("\n")
        self.assertIn(b"no prompts", self.eval([], prompts).stderr)
        self.assertEqual(self.eval([]).returncode, 0)
        self.assertIn(b"cannot read /no", self.eval([good], "-s", "/no/such").stderr)
        self.assertIn(b"two settings", self.eval([good], "-s", "exact", "-s", "exact").stderr)


class BadInput(WithModel):
    def test_files(self):
        empty = self.folder / "empty"
        empty.write_bytes(b"")
        missing = self.folder / "missing"
        self.fails("missing: No such file", 1, *self.arguments(model=missing))
        self.fails("empty is not a GGUF file", 1, *self.arguments(model=empty))
        self.fails("text.txt is not a GGUF file", 1, *self.arguments(model=self.text))
        self.fails("Is a directory", 1, *self.arguments(model=self.folder))
        self.fails("missing: No such file", 1, *self.arguments(text=missing))
        self.fails("empty is empty", 1, *self.arguments(text=empty))
        self.fails("Is a directory", 1, *self.arguments(text=self.folder))

    def test_a_model_that_is_cut_off(self):
        whole = self.tiny.read_bytes()
        cut = self.folder / "cut.gguf"
        for share in [*range(0, 100, 7), 99.9]:
            cut.write_bytes(whole[: max(4, int(len(whole) * share / 100))])
            self.fails(r"cannot load \S+cut.gguf: \w", 1, *self.arguments(model=cut))

    def test_a_model_without_a_layer_to_serve(self):
        capped = self.folder / "capped.gguf"
        write_model(capped, "gemma2", 4096, 2)
        pattern = "no attention layer that tokensparse can serve: logit soft-cap"
        self.fails(pattern, 1, *self.arguments("--coverage", "0", model=capped))

    def test_a_prompt_longer_than_the_context(self):
        self.fails(r"more than 256 tokens, .*\(--ctx\)", 1, *self.arguments("-c", 256))
        self.fails(r"more than the context of 1600 \(--ctx\)", 1, *self.arguments("-c", 1600, "-n", 99))
        self.text.write_text(TEXT)
        self.fails("more than the context of 4096, which the model", 1, *self.arguments("-n", 4096))

    def test_a_text_that_is_too_long_is_refused_before_it_is_tokenised(self):
        start = time.monotonic()
        self.text.write_text(TEXT * 10)
        self.fails("text.txt is too long: .* the context holds 4096", 1, *self.arguments())
        self.text.write_bytes(b"All work and no play. " * 1_000_000)
        self.fails("text.txt is too long: .* the context holds 4096", 1, *self.arguments())
        for size in ((4 << 30) + 2000, (2 << 30) + 100):
            os.truncate(self.text, size)
            for arguments in (self.arguments(), ["profile", "-m", self.model, "-f", self.text]):
                result = run(*arguments)
                self.assertEqual(result.returncode, int(arguments[0] == "run"), result.stderr)
            self.fails(f"text.txt is too long .* 1073741824 bytes, got {size}", 1, *self.arguments())
        self.assertLess(time.monotonic() - start, 30)  # 2 s on a machine of one's own

    def test_options(self):
        for layers in ("x", "1-", "3-2", "6", "1,,2", "-1", "99999999999", " "):
            arguments = self.arguments(f"--layers={layers}")
            self.fails("layers: must be ", 1 if layers == "6" else 2, *arguments)
        self.fails("--pool: must be an odd integer between 1 and 1023, got 4", 2,
                   *self.arguments("--pool", 4))
        self.fails("--prompt: must not be empty", 2, *self.arguments()[:-1], "")
        self.fails("--prompt: must not be empty", 2, *self.arguments()[:-1], " \n")
        self.fails("--ubatch", 2, *self.arguments("--ubatch", 1))
        self.fails("--coverage", 2, *self.arguments("--coverage", "nan"))
        self.fails("--share", 2, *self.arguments("--share", "all"))
        self.fails("-m|--model", 2, "run", "-f", self.text, "-p", "Why?")
        self.fails("isa", 1, *self.arguments("--isa", "mmx", "--coverage", "0"))

    def test_a_full_disk_for_the_answer(self):
        with open("/dev/full", "wb") as full:
            arguments = [PROGRAM, *map(str, self.arguments("-n", 1, "--coverage", 0))]
            result = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, timeout=120)
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, rb"\Atokensparse: cannot write to stdout[^\n]*\n\Z")

    def test_interrupt_during_prefill(self):
        model = self.folder / "long.gguf"
        write_model(model, "llama", 1 << 20, 6)
        self.text.write_text(TEXT * 200)
        for more in (["--coverage", "0"], ["--compare"]):  # ours, and ggml's own
            arguments = self.arguments("--layers", "1", *more, model=model)
            process = subprocess.Popen([PROGRAM, *map(str, arguments)], stderr=subprocess.PIPE)
            time.sleep(3)
            self.assertIsNone(process.poll(), "ended before it could be interrupted")
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            _, stderr = process.communicate(timeout=60)
            self.assertLess(time.monotonic() - start, 5)  # a second on a machine of one's own
            self.assertEqual((process.returncode, stderr), (130, b"tokensparse: interrupted\n"))


if __name__ == "__main__":
    unittest.main()
