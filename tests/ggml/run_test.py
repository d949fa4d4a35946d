# SPDX-License-Identifier: MIT
"""`run` and `profile` as a user runs them, on tiny random models, and every way to get them wrong.

usage: TOKENSPARSE=the/program WRITE_TINY_MODEL=its/writer python3 run_test.py"""

import json
import os
import pty
import re
import signal
import subprocess
import tempfile
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


class Run(WithModel):
    KEYS = {"answer", "ttft_s", "attention_s", "decode_tps", "kept"}

    def check_variant(self, variant):
        self.assertLessEqual(self.KEYS, variant.keys())
        self.assertIsInstance(variant["answer"], str)
        self.assertGreater(variant["ttft_s"], variant["attention_s"])
        self.assertGreater(variant["attention_s"], 0)
        self.assertGreater(variant["decode_tps"], 0)

    def test_compare_runs_the_three_variants(self):
        options = ("--keep", 0.5, "--min-tokens", 64, "--min-keys", 0)
        options += ("--sparse-layers", "2-3", "--ubatch", 700)
        report = self.json_of("--compare", *options)
        self.assertGreater(report["prompt_tokens"], len(TEXT))  # a token a byte
        self.assertEqual(report["sparse_layers"], [2, 3])
        for name in ("stock", "exact", "sparse"):
            self.check_variant(report[name])
        self.assertEqual(report["stock"]["kept"], 1)
        self.assertEqual(report["exact"]["kept"], 1)
        self.assertAlmostEqual(report["sparse"]["kept"], 0.5, delta=0.01)
        self.assertEqual(report["exact"]["answer"], report["stock"]["answer"])

    def test_too_short_to_gain_is_exact_and_says_so(self):
        report = self.json_of("--coverage", 0.1)
        self.assertEqual(report["sparse_layers"], [])
        self.assertEqual(report["why_exact"], "fewer than 4096 tokens (--min-keys)")
        options = ("--keep", 0.5, "--min-tokens", 64, "--sparse-layers", "2", "--verbose")
        for min_keys, exact in ((0, False), (1400, True)):
            result = run(*self.arguments("-n", 2, *options, "--min-keys", min_keys, "--ubatch", 700))
            self.assertEqual(b"exact, too short to gain" in result.stdout, exact, result.stdout)
        self.fails("--min-keys: must be between", 2, *self.arguments("--min-keys", -1))

    def test_without_compare_runs_one(self):
        report = self.json_of("--coverage", 0)
        self.check_variant(report["exact"])
        self.assertFalse({"stock", "sparse"} & report.keys())
        report = self.json_of("--sparse-layers", "none")
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
        self.assertRegex(json.loads(result.stdout)["linear"], r"^ggml \(.*oneDNN.*\)$")
        self.fails("--linear onednn: .*oneDNN", 1, *arguments, "--linear", "onednn", env=nowhere)
        self.assertEqual(self.json_of("--coverage", 0, "--linear", "ggml")["linear"], "ggml")
        self.fails("--linear", 2, *arguments, "--linear", "nobody")

    def test_linear_layers_in_int8_are_for_quantised_weights(self):
        self.use_weights("q8_0")
        arguments = self.arguments("-n", 2, "--json", "--coverage", 0, "--linear", "int8")
        result = run(*arguments)
        if b"AVX512-VNNI" in result.stderr:
            self.fails("--linear int8: this processor has no AVX512-VNNI", 1, *arguments)
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
        # The library itself takes 13 MB.
        self.assertLess(peaks[1] - peaks[0], model.stat().st_size / 2)

    def test_shows_progress_on_a_terminal_only(self):
        reader, terminal = pty.openpty()
        with os.fdopen(terminal, "wb"), os.fdopen(reader, "rb", 0) as seen:
            arguments = [PROGRAM, *map(str, self.arguments("-n", 2, "--coverage", 0))]
            subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=terminal, check=True)
            self.assertRegex(seen.read(65536), rb"exact: reading the prompt: \d+ of \d+ tokens")


class Profile(WithModel):
    def test_run_makes_stores_and_reuses_it(self):
        stored = Path(str(self.model) + ".tokensparse.json")
        text = self.json_of("--min-keys", 0)
        profile = json.loads(stored.read_text())
        self.assertEqual(text["sparse_layers"], profile["sparse_layers"])
        self.assertEqual(len(profile["sparse_layers"]), 3)  # half of six
        self.assertFalse({0, 5} & set(profile["sparse_layers"]))
        self.assertEqual(len(profile["drift"]), 6)
        profile["sparse_layers"] = [4]
        stored.write_text(json.dumps(profile))
        self.assertEqual(self.json_of("--min-keys", 0)["sparse_layers"], [4])

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

    def test_where_it_cannot_be_stored_run_goes_on(self):
        Path(str(self.model) + ".tokensparse.json").mkdir()  # stops root as well
        result = run(*self.arguments("-n", 2, "--min-keys", 0))
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stderr, rb"\Alayer profile not stored: [^\n]+\n\Z")

    def test_a_damaged_one_is_named(self):
        stored = Path(str(self.model) + ".tokensparse.json")
        for text in ("", "{", "[]", '{"format": "tokensparse layer profile 1"}'):
            stored.write_text(text)
            self.fails("model.gguf.tokensparse.json is not a layer profile", 1, *self.arguments("--min-keys", 0))

    def test_one_of_another_model_is_made_anew(self):
        stored = Path(str(self.model) + ".tokensparse.json")
        self.json_of("--min-keys", 0)
        profile = json.loads(stored.read_text())
        stored.write_text(json.dumps({**profile, "model_bytes": 1, "sparse_layers": [1]}))
        again = self.json_of("--min-keys", 0)
        self.assertEqual(again["sparse_layers"], profile["sparse_layers"])

    def test_a_short_text_is_refused(self):
        self.text.write_text("short")
        target = self.folder / "profile.json"
        arguments = ("profile", "-m", self.model, "-f", self.text, "-o", target)
        self.fails("at least 256 tokens, got 5", 1, *arguments)
        self.fails("/no/where.json: cannot be written", 1, *arguments[:-1], "/no/where.json")
        self.assertFalse(target.exists())


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
        for layers in ("x", "1-", "3-2", "6", "1,,2", "-1", "99999999999", ""):
            arguments = self.arguments(f"--sparse-layers={layers}")
            self.fails("--sparse-layers", 2, *arguments)
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
            arguments = self.arguments("--sparse-layers", "1", *more, model=model)
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
